"""Light drills on the reference server: green when all is well, and each kind of damage turns exactly its own probe red."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.drill.conftest import KIT, popen
from tests.reference.server import ReferenceServer

pytestmark = pytest.mark.root

Drilled = Callable[..., dict[str, Any]]

PROVEN = {
    "host.accounts", "dovecot.config", "dovecot.accounts", "postfix.config", "postfix.services", "postfix.maps", "postfix.queue", "tls.smtp", "tls.imap",
    "dkim.signature", "imap.messages", "imap.flags", "imap.subscriptions", "mail.delivery", "mail.auth",
}  # fmt: skip

SABOTAGES = {
    "key_readable_by_others": {"dkim.signature"},
    "key_of_another_owner": {"dkim.signature"},
    "milter_stopped": {"dkim.signature"},
    "uidlist_missing": {"imap.messages"},
    "body_truncated": {"imap.messages"},
    "mailbox_empty": {"imap.messages"},
    "keywords_lost": {"imap.flags"},
    "subscriptions_lost": {"imap.subscriptions"},
    "certificate_of_somebody_else": {"tls.smtp", "tls.imap"},
    "parameter_unknown": {"postfix.config"},
    "map_missing": {"postfix.maps"},
    "queue_released": {"postfix.queue"},
}


def outcomes(result: dict[str, Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for probe in result["probes"]:
        found.setdefault(probe["outcome"], set()).add(probe["name"])
    return found


def test_control_run_is_green(drilled: Drilled) -> None:
    result = drilled("nothing")
    assert outcomes(result) == {"passed": PROVEN}, result["probes"]
    assert result["outcome"] == "proven"
    assert result["messages"] > 100
    assert [phase["name"] for phase in result["phases"]][:3] == ["base", "isolate", "prove isolation"]


@pytest.mark.parametrize("sabotage", SABOTAGES)
def test_damage_turns_its_probe_red(drilled: Drilled, sabotage: str) -> None:
    result = drilled(sabotage)
    assert outcomes(result).get("failed") == SABOTAGES[sabotage], [probe for probe in result["probes"] if probe["outcome"] != "passed"]
    assert result["outcome"] == "failed"


def test_boot_needs_no_key_and_notices(drilled: Drilled) -> None:
    good = drilled("nothing", "boot")
    assert good["outcome"] == "proven"
    assert outcomes(good)["passed"] == PROVEN - {"imap.messages", "imap.flags", "imap.subscriptions", "postfix.queue"}
    bad = drilled("key_of_another_owner", "boot")
    assert outcomes(bad)["failed"] == {"dkim.signature"}


def test_the_command_signs_its_result(saved: ReferenceServer) -> None:
    answer = saved.mailbackup_json("drill", "light", "--identity", KIT)
    assert answer["outcome"] == "proven"
    assert answer["act"] >= 1
    assert saved.path(f"/var/backups/mailbackup/acts/{answer['act']:010d}.json").is_file()
    assert saved.mailbackup_json("verify")["outcome"] == "clean"
    assert saved.mailbackup_json("verify", "--decrypt", "--identity", KIT)["outcome"] == "clean"


def test_a_drill_without_mail_is_not_green(saved: ReferenceServer) -> None:
    saved.mailbackup(
        *("init", "--yes", "--mail", "/var/empty/{user}/Maildir", "--config", "/root/none.toml", "--state", "/root/none.state"),
        *("--store", "/root/none.vault", "--kit-out", "/root/none.kit", "--no-passphrase"),
    )
    saved.path("/var/empty").mkdir(exist_ok=True)
    place = ("--config", "/root/none.toml", "--state", "/root/none.state")
    saved.mailbackup("backup", *place, check=False)
    done = saved.mailbackup("drill", "light", "--identity", "/root/none.kit", *place, check=False)
    assert done.returncode == 4, done.stdout.decode()
    assert b"no mailbox with a message was restored" in done.stdout


# ---------------------------------------------------------------- nothing gets out


@contextlib.contextmanager
def listener(server: ReferenceServer) -> Iterator[list[str]]:
    """Listens outside of the drill, where the server itself can be reached. Yields what came."""
    came: list[str] = []
    program = "import socket\ns=socket.create_server(('0.0.0.0',2525))\nwhile True:\n c,a=s.accept(); print(a, flush=True); c.close()"
    process = popen(server, "python3", "-c", program, out=subprocess.PIPE)
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: came.extend(line.decode() for line in process.stdout), daemon=True)  # type: ignore[union-attr]
    reader.start()
    try:
        until = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError):
                server.connect(2525).close()
                break
            assert time.monotonic() < until
            time.sleep(0.05)
        while not came:
            time.sleep(0.01)
        came.clear()
        yield came
    finally:
        server.run("pkill", "-KILL", "-f", "create_server")  # the program itself: nsenter is only its parent
        process.wait(timeout=20)
        reader.join(20)
        process.stdout.close()


def test_nothing_leaves_the_machine(saved: ReferenceServer, drilled: Drilled) -> None:
    """The queue is full of mail for the listener outside; inside, it is released and flushed."""
    main = saved.path("/etc/postfix/main.cf")
    before = main.read_text()
    assert len(saved.queue()) >= 3
    main.write_text(before + "\nrelayhost = [192.0.2.25]:2525\n")
    try:
        saved.mailbackup("backup")
        with listener(saved) as came:
            result = drilled("flushed")
            time.sleep(1)
            assert came == []
            saved.connect(2525).close()  # the listener would have heard it
            until = time.monotonic() + 5
            while not came and time.monotonic() < until:
                time.sleep(0.02)
            assert len(came) == 1
    finally:
        main.write_text(before)
        saved.mailbackup("backup")
    detail = next(probe["detail"] for probe in result["probes"] if probe["name"] == "mail.auth")
    assert "deferred" in detail, "the queue was not released, so nothing was shown"


# ---------------------------------------------------------------- nothing stays behind


def leftovers(server: ReferenceServer) -> list[str]:
    """Directories, mounts and processes of drills."""
    found = [str(path) for path in server.path("/var/lib/mailbackup/drill").glob("mailbackup-drill-*")]
    found += [line for line in server.run("cat", "/proc/mounts").stdout.decode().splitlines() if "mailbackup-drill" in line]
    said = server.run("pgrep", "-a", "-f", "bwrap|sleep infinity", check=False).stdout.decode()
    return found + [line for line in said.splitlines() if "pgrep" not in line]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_drill_leaves_nothing(saved: ReferenceServer, number: signal.Signals) -> None:
    process = started(saved)
    saved.run("pkill", f"-{number.name[3:]}", "-f", "mailbackup drill light")
    assert process.wait(timeout=30) == 130
    assert leftovers(saved) == []


def test_what_a_killed_drill_leaves_the_next_one_removes(saved: ReferenceServer) -> None:
    process = started(saved)
    saved.run("pkill", "-KILL", "-f", "mailbackup drill light")
    process.wait(timeout=30)
    left = leftovers(saved)
    assert not any("bwrap" in line or "sleep" in line for line in left), left
    assert any("/drill/" in line for line in left), "it was killed too late to show anything"
    saved.mailbackup("drill", "light", "--identity", KIT)
    assert leftovers(saved) == []


def started(server: ReferenceServer) -> subprocess.Popen[bytes]:
    """A drill that has its machine running."""
    process = popen(server, sys.executable, "-m", "mailbackup", "drill", "light", "--identity", KIT)
    until = time.monotonic() + 20
    while not server.processes("bwrap"):
        assert process.poll() is None, "it ended before it began"
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.7)
    return process


def test_a_machine_with_a_network_is_refused() -> None:
    """Isolation is shown, not assumed: where an address of the outside can be reached, or an interface besides loopback is there, nothing is started."""
    from mailbackup.drill.isolation import prove_isolation
    from mailbackup.drill.scratch import Scratch
    from mailbackup.errors import SafetyRefusal

    process = subprocess.Popen(["unshare", "--net", "--kill-child", "sleep", "60"])
    try:
        time.sleep(0.3)
        scratch = Scratch("/", process.pid)
        assert "no way out" in prove_isolation(scratch)
        enter = ["nsenter", "-t", str(process.pid), "-n", "ip"]
        subprocess.run([*enter, "address", "add", "192.0.2.1/24", "dev", "lo"], check=True)
        subprocess.run([*enter, "link", "set", "lo", "up"], check=True)
        with pytest.raises(SafetyRefusal, match="not isolated"):
            prove_isolation(scratch)
        with pytest.raises(SafetyRefusal, match="network interfaces"):
            prove_isolation(Scratch("/", os.getpid()))  # the machine of the tests has a network
    finally:
        process.kill()
        process.wait()


def test_sockets_lie_in_the_machine() -> None:
    """What a probe connects to is in the machine, not on this host."""
    from mailbackup.drill.scratch import Scratch

    process = subprocess.Popen(["unshare", "--net", "--kill-child", "sh", "-c", "ip link set lo up; sleep 60"])
    try:
        time.sleep(0.3)
        with socket.create_server(("127.0.0.1", 0)) as here:
            port = here.getsockname()[1]
            socket.create_connection(("127.0.0.1", port), 2).close()
            with pytest.raises(OSError, match="refused"):
                Scratch("/", process.pid).connect(port)
    finally:
        process.kill()
        process.wait()
