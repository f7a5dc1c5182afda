"""The reference server is what the other tests take it for."""

from __future__ import annotations

import hashlib
import imaplib
import os
import re
import smtplib
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reference import cache, populate
from tests.reference.accounts import ACCOUNTS, DOMAINS, HOST, SELECTOR, password
from tests.reference.namespace import ADDRESS, Machine
from tests.reference.server import REPOSITORY, ReferenceServer, folders, wait_for

pytestmark = [pytest.mark.root, pytest.mark.corpus]

ALICE, BOB, KIM = "alice@example.test", "bob@example.test", "kim@example.org"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReferenceServer]:
    """With its mail services running. Tests that share it add mail, but stop nothing."""
    with ReferenceServer.start(tmp_path_factory.mktemp("mx1")) as running:
        running.start_mail()
        yield running


def arrived(server: ReferenceServer, user: str, subject: str) -> bytes:
    """The message with this subject, once it lies in the user's INBOX."""
    found: list[bytes] = []

    def look() -> bool:
        with server.imap(user) as client:
            client.select("INBOX", readonly=True)
            numbers = client.search(None, "SUBJECT", f'"{subject}"')[1][0].split()
            parts = [client.fetch(number.decode(), "(BODY.PEEK[])")[1][0] for number in numbers]
            found[:] = [part[1] for part in parts if isinstance(part, tuple)]
        return bool(found)

    wait_for(look, f"the mail {subject!r}")
    return found[0]


def test_mail_from_outside_comes_in_unsigned_and_whole(server: ReferenceServer) -> None:
    with server.smtp(25) as client:
        client.sendmail(
            "friend@outside.example.net", [BOB], b"From: friend@outside.example.net\r\nSubject: from outside\r\n\r\nhello b\xe4r\r\n"
        )
    message = arrived(server, BOB, "from outside")
    assert message.endswith(b"\r\n\r\nhello b\xe4r\r\n")
    assert f"[{ADDRESS}]".encode() in message
    assert b"DKIM-Signature" not in message


def test_mail_of_both_domains_is_signed(server: ReferenceServer) -> None:
    for sender in (ALICE, KIM):
        domain = sender.partition("@")[2]
        server.deliver(BOB, f"From: {sender}\nSubject: signed by {domain}\n\nhello\n".encode(), sender=sender)
        message = arrived(server, BOB, f"signed by {domain}")
        signature = re.search(rb"^DKIM-Signature:([^\r]*(?:\r\n[ \t][^\r]*)*)", message, re.MULTILINE)
        assert signature
        assert f"d={domain}; s={SELECTOR};".encode() in b" ".join(signature[1].split())


def test_alias_and_delivery_to_a_local_user(server: ReferenceServer) -> None:
    server.deliver("info@example.org", b"Subject: for info\n\nx\n")
    server.deliver(f"root@{HOST}", b"Subject: for root\n\nx\n")
    assert arrived(server, KIM, "for info")
    assert arrived(server, ALICE, "for root")


def test_imap_login(server: ReferenceServer) -> None:
    for user in ACCOUNTS:
        server.imap(user, starttls=False).logout()
    with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
        server.imap(ALICE, "pw-bob")


def test_submission_asks_for_tls_and_the_password(server: ReferenceServer) -> None:
    with server.smtp(587) as client:
        assert not client.has_extn("auth")
        client.starttls(context=server.tls())
        client.ehlo()
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login(ALICE, "wrong")
        client.login(ALICE, password(ALICE))
        client.sendmail(ALICE, [KIM], f"From: {ALICE}\r\nSubject: submitted\r\n\r\nx\r\n")
    assert b"DKIM-Signature" in arrived(server, KIM, "submitted")
    with server.smtp(25) as client:
        client.starttls(context=server.tls())
        client.ehlo()
        assert not client.has_extn("auth")


def test_no_open_relay(server: ReferenceServer) -> None:
    with server.smtp(25) as client, pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        client.sendmail("friend@outside.example.net", ["someone@elsewhere.example.net"], b"Subject: x\r\n\r\nx\r\n")
    assert refused.value.recipients["someone@elsewhere.example.net"][0] == 554


def test_certificate_is_the_one_on_disk(server: ReferenceServer) -> None:
    on_disk = ssl.PEM_cert_to_DER_cert(server.path("/etc/ssl/mx1/mx1.crt").read_text())
    with server.smtp(25) as client:
        client.starttls(context=server.tls())
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.sock.getpeercert(binary_form=True) == on_disk
        shown = str(client.sock.getpeercert())
    assert all(f"('DNS', '{name}')" in shown for name in (HOST, *(f"mail.{domain}" for domain in DOMAINS)))
    with server.smtp(25) as client, pytest.raises(ssl.SSLCertVerificationError):
        client.starttls(context=ssl.create_default_context())


def test_mailboxes_are_full_of_real_mail(tmp_path: Path) -> None:
    with ReferenceServer.start(tmp_path) as server:
        server.start_mail()
        hashes = {user: server.uid_hashes(user) for user in ACCOUNTS}
        total = sum(len(folder) for user in hashes.values() for name, folder in user.items() if not name.startswith("shared/"))
        assert total == len(ACCOUNTS) * (populate.ARRIVED + populate.UNSEEN + sum(populate.FILED.values()) + populate.COPIED - 2)
        for folder, count in populate.FILED.items():
            assert len(hashes[BOB][folder]) >= count
        assert max(hashes[BOB]["INBOX"]) > len(hashes[BOB]["INBOX"])  # gaps
        assert hashes[BOB][f"shared/{ALICE}/{populate.SHARED_FOLDER}"] == hashes[ALICE][populate.SHARED_FOLDER]
        assert hashes == {user: server.uid_hashes(user) for user in ACCOUNTS}


def test_what_dovecot_keeps_beside_the_mail(server: ReferenceServer) -> None:
    for user in ACCOUNTS:
        maildir = server.path(f"{populate.home(user)}/Maildir")
        keywords = [line.split(" ", 1)[1] for line in (maildir / "dovecot-keywords").read_text().splitlines()]
        assert keywords == list(populate.KEYWORDS)
        assert (maildir / "dovecot-uidlist").read_text().startswith("3 V")
        names = os.listdir(maildir / "cur")
        assert all(re.search(r",S=\d+,W=\d+:2,", name) for name in names)
        assert {letter for name in names for letter in name.partition(":2,")[2]} >= set("DFRSabcd")
        assert (
            sum((maildir / ".Archive/cur" / name).stat().st_nlink == 2 for name in os.listdir(maildir / ".Archive/cur")) == populate.COPIED
        )
        with server.imap(user) as client:
            subscribed = {line.split(b' "/" ')[1].decode().strip('"') for line in client.lsub()[1]}
        assert subscribed == set(populate.SUBSCRIBED)
    assert "user=bob@example.test lr" in server.path(f"{populate.home(ALICE)}/Maildir/.Archive.2024/dovecot-acl").read_text()


def test_new_mail_has_not_been_seen(tmp_path: Path) -> None:
    with ReferenceServer.start(tmp_path) as server:
        assert {len(os.listdir(server.path(f"{populate.home(user)}/Maildir/new"))) for user in ACCOUNTS[1:]} == {populate.UNSEEN}


def test_sieve_files_new_mail(server: ReferenceServer) -> None:
    assert os.readlink(server.path(f"{populate.home(ALICE)}/.dovecot.sieve")) == "sieve/main.sieve"
    server.deliver(ALICE, b"Subject: to a list\nList-Id: <x.example.net>\n\nx\n")

    def filed() -> bool:
        with server.imap(ALICE) as client:
            client.select("Lists", readonly=True)
            return bool(client.search(None, "SUBJECT", '"to a list"')[1][0])

    wait_for(filed, "the mail in Lists")


def test_quota_counts(server: ReferenceServer) -> None:
    shown = server.run("doveadm", "-f", "tab", "quota", "get", "-u", BOB).stdout.decode()
    assert re.search(r"^User quota\tSTORAGE\t[1-9]\d*\t1048576\t", shown, re.MULTILINE)


def test_queue_waits(tmp_path: Path) -> None:
    with ReferenceServer.start(tmp_path) as server:
        server.start_mail()
        before = server.queue()
        assert sorted(entry["queue_name"] for entry in before) == ["deferred"] * populate.DEFERRED + ["hold"] * populate.HELD
        assert {entry["recipients"][0]["address"] for entry in before} == {f"someone{number}@outside.example.net" for number in range(5)}
        assert {entry["recipients"][0]["delay_reason"].partition(".")[0] for entry in before} == {"Host or domain name not found"}
        for entry in before:
            (file,) = server.path(f"/var/spool/postfix/{entry['queue_name']}").rglob(entry["queue_id"])
            assert file.stat().st_mtime > time.time() + 3000
        assert "Renamed to match" not in server.path("/var/log/mail.log").read_text()
        server.run("postqueue", "-f")  # tried again, they still find no way
        wait_for(lambda: tried(server) >= populate.DEFERRED, "another try")
        wait_for(lambda: places(server.queue()) == places(before), "the queue as it was")


def tried(server: ReferenceServer) -> int:
    """How often mail was deferred since the server was made."""
    return server.path("/var/log/mail.log").read_text().count("status=deferred") - populate.DEFERRED - populate.HELD


def places(queue: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(entry["queue_name"], entry["queue_id"]) for entry in queue}


def test_services_come_back_after_a_stop_without_complaint(tmp_path: Path) -> None:
    with ReferenceServer.start(tmp_path) as server:
        for _ in range(2):
            server.start_mail()
            server.stop_mail()
            assert not server.processes("master", "qmgr", "dovecot", "auth", "opendkim")
        assert server.run("postfix", "check").stderr == b""
        assert not re.search(r"fatal|panic|warning", server.path("/var/log/mail.log").read_text())
        assert not re.search(r"Error|Fatal|Panic", server.path("/var/log/dovecot.log").read_text())


def test_cron_runs(tmp_path: Path) -> None:
    with ReferenceServer.start(tmp_path) as server:
        server.start_cron()
        assert server.processes("cron")


def test_mailbackup_runs_inside(server: ReferenceServer) -> None:
    done = server.mailbackup("--version")
    assert done.stdout.startswith(b"mailbackup ")
    answer = server.mailbackup_json("config", "show", "--config", "/none.toml", check=False)
    assert (answer["command"], answer["outcome"]) == ("config show", "error")
    assert not os.access(REPOSITORY / "x", os.F_OK)
    assert server.run("touch", f"{REPOSITORY}/x", check=False).returncode
    assert (
        server.run(sys.executable, "-c", "import sys; print(sys.version)").stdout.decode().strip() == sys.version.replace("\n", " ").strip()
    )


def test_bubblewrap_works_inside(server: ReferenceServer) -> None:
    links = [word for name in ("bin", "lib", "lib64") for word in ("--symlink", f"usr/{name}", f"/{name}")]
    fences = ["--unshare-net", "--unshare-pid", "--die-with-parent", "--proc", "/proc", "--dev", "/dev"]
    done = server.run(
        "bwrap", "--ro-bind", "/usr", "/usr", *links, *fences, "sh", "-c", "echo $$; ls /sys/class/net 2>/dev/null; cat /proc/net/dev"
    )
    assert int(done.stdout.split()[0]) < 10
    assert ADDRESS.encode() not in done.stdout


def test_no_way_leads_out(server: ReferenceServer) -> None:
    assert re.findall(rb"^\d+: (\w+)", server.run("ip", "-o", "link").stdout, re.MULTILINE) == [b"lo"]
    assert server.run("ip", "route", "get", "198.51.100.1", check=False).returncode


def test_a_program_of_the_outside_in_its_network(server: ReferenceServer) -> None:
    done = server.run_beside(sys.executable, "-c", f"import socket; print(socket.create_connection(('{ADDRESS}', 143)).recv(4))")
    assert done.stdout == b"b'* OK'\n"


def test_programs_end_at_their_time_limit(server: ReferenceServer) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        server.run("sh", "-c", "sleep 1234; true", timeout=0.5)
    wait_for(lambda: not server.run("pgrep", "-f", "^sleep 1234", check=False).stdout, "the end of the program")


def test_a_failed_program_says_what_it_wrote(server: ReferenceServer) -> None:
    with pytest.raises(AssertionError, match=r"status 3\nsaid"):
        server.run("sh", "-c", "echo said >&2; exit 3")
    assert server.run("cat", input=b"given").stdout == b"given"


def test_path_of_what_lives_in_memory(server: ReferenceServer) -> None:
    server.run("sh", "-c", "echo in >/run/here; echo in >/usr/here; echo in >/srv/here")
    for inside in ("/run/here", "/usr/here", "/srv/here"):
        assert server.path(inside).read_text() == "in\n"


def test_bare_machine_has_programs_and_nothing_else(tmp_path: Path) -> None:
    with ReferenceServer.start(tmp_path, bare=True) as server:
        assert server.run("hostname").stdout.decode().strip() == HOST
        assert server.run("sh", "-c", "for name in postfix dovecot opendkim bwrap; do command -v $name; done").stdout.count(b"\n") == 4
        assert not server.path("/var/vmail").exists()
        assert not server.path("/etc/ssl/mx1").exists()


# -- nothing left behind


def traces(place: Path) -> tuple[list[str], list[str]]:
    """The processes and the mounts that have to do with a directory, as this process sees them."""
    processes = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            mounts = Path("/proc", number, "mountinfo").read_text()
        except OSError:
            continue
        if str(place) in mounts:
            processes.append(number)
    return processes, [line for line in Path("/proc/self/mounts").read_text().splitlines() if str(place) in line]


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with ReferenceServer.start(tmp_path) as server:
        server.start_mail()
        server.start_cron()
        server.run("sh", "-c", "setsid sleep 4321 >/dev/null 2>&1 &")
        seen = traces(tmp_path)
        assert len(seen[0]) > 8
        assert not seen[1]
    assert traces(tmp_path) == ([], [])
    assert list(tmp_path.iterdir()) == []
    server.stop()


def test_nothing_is_left_behind_by_a_failing_test(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ReferenceServer.start(tmp_path) as server:
        server.start_mail()
        _ = 1 / 0
    assert traces(tmp_path) == ([], [])
    assert list(tmp_path.iterdir()) == []


def test_a_killed_test_leaves_no_process(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tests.reference.server import ReferenceServer
server = ReferenceServer.start(Path({str(tmp_path)!r}))
server.start_mail()
print("up", flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as test:
        assert test.stdout is not None
        assert test.stdout.readline() == b"up\n"
        assert traces(tmp_path)[0]
        test.kill()
    wait_for(lambda: traces(tmp_path) == ([], []), "the end of the machine")


def test_a_machine_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(RuntimeError, match=r"did not start: .*mount"):
        Machine(tmp_path / "root", tmp_path / "usr", "x", [])
    assert traces(tmp_path) == ([], [])


# -- the cache


def test_half_made_trees_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAILBACKUP_TEST_CACHE", str(tmp_path / "cache"))
    made: list[str] = []

    def fail(partial: Path) -> None:
        (partial / "half").touch()
        raise KeyboardInterrupt

    def make(partial: Path) -> None:
        assert not os.listdir(partial)
        assert not (tmp_path / "cache/tree").exists()
        made.append(str(partial))
        (partial / "whole").touch()

    with pytest.raises(KeyboardInterrupt):
        cache.cached("tree", fail)
    assert os.listdir(tmp_path / "cache") == ["tree.lock"]
    left = tmp_path / "cache/tree.partial"  # by a killed run
    left.mkdir()
    (left / "half").touch()
    for _ in range(2):
        assert os.listdir(cache.cached("tree", make)) == ["whole"]
    assert len(made) == 1


def test_one_process_makes_what_several_want(tmp_path: Path) -> None:
    code = """
import time
from tests.reference.cache import cached
def make(partial):
    time.sleep(0.3)
    (partial / str(time.monotonic_ns())).touch()
print(*sorted(path.name for path in cached("tree", make).iterdir()))
"""
    environment = {**os.environ, "MAILBACKUP_TEST_CACHE": str(tmp_path)}
    workers = [subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    answers = {worker.communicate()[0] for worker in workers}
    assert len(answers) == 1
    assert answers.pop().strip()


def test_copies_do_not_share_files(tmp_path: Path) -> None:
    name = f"{populate.home(ALICE)}/Maildir/dovecot-uidlist"
    with ReferenceServer.start(tmp_path) as one, ReferenceServer.start(tmp_path) as other:
        before = hashlib.sha256(other.path(name).read_bytes()).digest()
        one.run("sh", "-c", f"echo >{name}; echo >/usr/changed")
        assert hashlib.sha256(other.path(name).read_bytes()).digest() == before
        assert not other.path("/usr/changed").exists()
        assert set(os.listdir(tmp_path)) == {one.tree.parent.name, other.tree.parent.name}


def test_folder_names_are_told(server: ReferenceServer) -> None:
    with server.imap(KIM) as client:
        assert set(folders(client)) == {"INBOX", *populate.FILED}
