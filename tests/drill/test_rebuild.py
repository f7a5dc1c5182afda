"""The whole server again from its vault: on a bare machine, and in full drills by podman and bubblewrap."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.drill.conftest import popen, set_up, write_config
from tests.reference import cache
from tests.reference.accounts import ACCOUNTS
from tests.reference.server import REPOSITORY, ReferenceServer

pytestmark = pytest.mark.root

PLACE = ("--config", "/root/kept/restore.toml", "--state", "/root/kept/state", "--identity", "/root/kept/kit.txt")


@pytest.fixture
def bare(kept: Path, tmp_path: Path) -> Iterator[ReferenceServer]:
    """A machine with the packages and what was kept of the old one, nothing else."""
    with ReferenceServer.start(tmp_path, bare=True) as server:
        inside = server.path("/root/kept")
        shutil.copytree(kept, inside)
        write_config(inside, "/root/kept")
        yield server


def steps(answer: dict[str, Any], outcome: str) -> list[str]:
    return [f"{step['system']}: {step['name']}" for step in answer["steps"] if step["outcome"] == outcome]


def test_plan_says_all_steps_and_changes_nothing(bare: ReferenceServer) -> None:
    before = bare.path("/etc/passwd").read_bytes()
    answer = bare.mailbackup_json(*PLACE, "restore", "server", "--plan")
    assert answer["outcome"] == "planned"
    names = steps(answer, "planned")
    order = [
        names.index(name)
        for name in ("host: users and groups", "tls: certificates and keys", "dovecot: mailboxes", "postfix: start Postfix")
    ]
    assert order == sorted(order)
    assert bare.path("/etc/passwd").read_bytes() == before
    assert not bare.path("/var/vmail").exists()


def test_a_bare_machine_becomes_the_server(saved: ReferenceServer, bare: ReferenceServer) -> None:
    answer = bare.mailbackup_json(*PLACE, "restore", "server", "--target", "/")
    assert answer["outcome"] == "complete", steps(answer, "failed")
    assert len(steps(answer, "planned")) == 3  # the daemons: somebody looks first
    bare.start_mail()
    for user in ACCOUNTS:  # the old server still runs here; its mail is that of the snapshot, and later drills added nothing to it
        assert bare.uid_hashes(user) == saved.uid_hashes(user), user
    assert {row["queue_name"] for row in bare.queue()} == {"hold"}
    assert len(bare.queue()) == len(saved.queue())


def test_an_interrupted_rebuild_is_continued(saved: ReferenceServer, bare: ReferenceServer) -> None:
    for delay in (0.9, 1.6, 2.3):
        process = popen(bare, sys.executable, "-m", "mailbackup", *PLACE, "restore", "server", "--target", "/")
        time.sleep(delay)
        bare.run("pkill", "-KILL", "-f", "mailbackup --config", check=False)
        process.wait(timeout=20)
    answer = bare.mailbackup_json(*PLACE, "restore", "server", "--target", "/")
    assert answer["outcome"] == "complete", steps(answer, "failed")
    bare.start_mail()
    for user in ACCOUNTS[:3]:
        assert bare.uid_hashes(user) == saved.uid_hashes(user)
    assert len(bare.queue()) == len(saved.queue())


def test_a_root_without_a_system_is_refused(bare: ReferenceServer) -> None:
    bare.path("/root/nothing").mkdir()
    done = bare.mailbackup(*PLACE, "restore", "server", "--target", "/root/nothing", check=False)
    assert done.returncode == 2
    assert b"holds no system" in done.stderr
    assert not list(bare.path("/root/nothing").iterdir())


# ---------------------------------------------------------------- full drills, from the vault alone


def prepare(state: Path) -> None:
    """A state directory whose installations are kept between test runs."""
    installations = cache.folder() / "drills"
    installations.mkdir(parents=True, exist_ok=True)
    state.mkdir()
    (state / "rootfs").symlink_to(installations)


def full(kept: Path, tmp_path: Path, engine: str) -> dict[str, Any]:
    """A full drill on the machine of the tests, which knows of the server only what was kept."""
    state = tmp_path / "state"
    prepare(state)
    done = subprocess.run(
        [sys.executable, "-m", "mailbackup", "--config", kept / "restore.toml", "--state", state, "--identity", kept / "kit.txt",
         "drill", "full", "--engine", engine, "--json"], capture_output=True, timeout=600, check=False, cwd=REPOSITORY,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert not list((state / "drill").iterdir())
    return answer


@pytest.mark.parametrize("engine", ["podman", "bwrap"])
def test_full_drill(kept: Path, tmp_path: Path, engine: str) -> None:
    answer = full(kept, tmp_path, engine)
    assert answer["outcome"] == "proven", [probe for probe in answer["probes"] if probe["outcome"] == "failed"]
    assert answer["engine"] == engine
    assert answer["messages"] > 2000
    assert answer["mailboxes"] == 20
    if engine == "podman":
        assert not [name for name in _containers() if name.startswith("mailbackup-drill-")]


def _containers() -> list[str]:
    return subprocess.run(
        ["podman", "ps", "--all", "--format", "{{.Names}}"], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()


def test_what_a_killed_drill_leaves_in_podman_is_removed(kept: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    prepare(state)
    argv = [sys.executable, "-m", "mailbackup", "--config", kept / "restore.toml", "--state", state, "--identity", kept / "kit.txt"]
    process = subprocess.Popen([*argv, "drill", "full", "--engine", "podman", "--json"], stdout=subprocess.DEVNULL, cwd=REPOSITORY)
    until = time.monotonic() + 300
    mine: list[str] = []
    while not mine:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.3)
        names = {path.name for path in (state / "drill").glob("mailbackup-drill-*")} if (state / "drill").exists() else set()
        mine = [name for name in _containers() if name in names]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert mine[0] in _containers()
    done = subprocess.run(
        [*argv, "drill", "full", "--engine", "podman", "--json"], capture_output=True, timeout=600, check=False, cwd=REPOSITORY
    )
    assert json.loads(done.stdout.splitlines()[-1])["outcome"] == "proven"
    assert mine[0] not in _containers()
    assert not list((state / "drill").iterdir())


# ---------------------------------------------------------------- while the server is busy


def test_a_snapshot_of_a_busy_server_can_be_rebuilt(tmp_path: Path) -> None:
    """Mail arrives and flags change while the snapshot is taken; what it holds comes back as the server was at some moment of the run."""
    with ReferenceServer.start(tmp_path) as server:
        server.start_mail()
        set_up(server)
        before = {user: server.uid_hashes(user) for user in ACCOUNTS[:4]}
        stop = threading.Event()
        storm = threading.Thread(target=_storm, args=(server, stop))
        storm.start()
        try:
            time.sleep(0.5)
            done = server.mailbackup("backup", check=False)
            assert done.returncode == 0, done.stderr.decode()
        finally:
            stop.set()
            storm.join()
        answer = server.mailbackup_json("drill", "light", "--identity", "/root/kit.txt", check=False)
        failed = [probe for probe in answer["probes"] if probe["outcome"] == "failed"]
        assert not failed
        server.mailbackup("restore", "mailbox", ACCOUNTS[0], "--to", "/root/back", "--identity", "/root/kit.txt")
        assert len(before[ACCOUNTS[0]]["INBOX"]) <= len(list(server.path("/root/back/cur").iterdir())) + len(
            list(server.path("/root/back/new").iterdir())
        )


def _storm(server: ReferenceServer, stop: threading.Event) -> None:
    with server.imap(ACCOUNTS[0]) as client:
        client.select("INBOX")
        number = 0
        while not stop.is_set():
            number += 1
            server.deliver(ACCOUNTS[number % 4], b"Subject: storm %d\n\nbody %d\n" % (number, number))
            client.store("1:5", "+FLAGS" if number % 2 else "-FLAGS", "\\Flagged")
