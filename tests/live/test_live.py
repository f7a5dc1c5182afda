"""Mail that was lost comes back into the running server, below a new folder, and nothing that is there is touched."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mailbackup.mail.maildir import readable_folder
from tests.live.conftest import CONFIG, KIT, Live
from tests.reference.accounts import password
from tests.reference.populate import home
from tests.reference.server import REPOSITORY, wait_for

pytestmark = pytest.mark.root

TODAY = time.strftime("%Y-%m-%d")
PARENT = f"Recovered/{TODAY}"
MAIL = b"From: someone@outside.example.net\r\nSubject: meanwhile %d\r\n\r\nnew %d\r\n"


@contextmanager
def deliveries(live: Live, user: str) -> Iterator[list[int]]:
    """Mail that keeps coming in, and flags that keep changing, until the body ends."""
    sent: list[int] = []
    stop = threading.Event()

    def work() -> None:
        with live.server.smtp() as smtp, live.server.imap(user) as imap:
            imap.select("INBOX")
            while not stop.is_set():
                smtp.sendmail("someone@outside.example.net", [user], MAIL % (len(sent), len(sent)))
                sent.append(len(sent))
                imap.store("1:3", "+FLAGS" if len(sent) % 2 else "-FLAGS", r"(\Answered)")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_for(lambda: bool(sent), "the first mail")
        yield sent
    finally:
        stop.set()
        thread.join(timeout=30)


@pytest.mark.case("M6", "M7")
def test_what_was_deleted_comes_back_and_nothing_else_changes(live: Live):
    user, server = "alice@example.test", live.server
    originals = {folder: live.seen(user, folder) for folder in server.uid_hashes(user)}
    with server.imap(user) as client:
        assert client.delete('"Archive/2023"')[0] == "OK"
        client.select("INBOX")
        client.store("1:10", "+FLAGS", r"(\Deleted)")
        client.expunge()
    before, subscribed = server.uid_hashes(user), live.subscribed(user)
    with deliveries(live, user) as sent:
        answer = live.restore(user, "--to", "live", "--mode", "recovered")
    assert answer["outcome"] == "complete"
    assert answer["findings"] == []
    assert answer["messages"] == sum(map(len, originals.values()))
    assert answer["mailboxes"][0]["into"] == PARENT

    after = server.uid_hashes(user)
    for folder, mails in before.items():  # every UID shows what it showed
        assert mails.items() <= after[folder].items(), folder
    assert sent
    assert set(after) == set(before) | {f"{PARENT}/{folder}" for folder in originals}
    for folder, mails in originals.items():  # content, flags, keywords, dates, order
        assert sorted(live.seen(user, f"{PARENT}/{folder}")) == sorted(mails), folder
    shown = {f"{PARENT}/{readable_folder(folder.encode()) if folder != 'INBOX' else folder}" for folder in originals}
    assert live.subscribed(user) == subscribed | shown
    assert not [name for name in live.staged() if name.startswith("mailbackup-live-")]


def test_each_restore_has_a_folder_of_its_own(live: Live):
    user = "bob@example.test"
    first, second, third = (live.restore(user, "--to", "live", "--folder", "Sent") for _ in range(3))
    names = [answer["mailboxes"][0]["into"] for answer in (first, second, third)]
    assert names == [PARENT, f"{PARENT}-2", f"{PARENT}-3"]
    assert [len(live.seen(user, f"{name}/Sent")) for name in names] == [first["messages"]] * 3
    assert first["mailboxes"][0]["folders"] == 1


def test_a_dry_run_changes_nothing(live: Live):
    user, server = "carol@example.test", live.server
    look = ("find", home(user), "-not", "-name", "dovecot*index*", "-type", "f", "-printf", r"%p %T@ %s\n")  # indexes change by looking
    before = server.run(*look).stdout
    answer = live.restore(user, "--to", "live", "--dry-run")
    assert answer["outcome"] == "planned"
    assert answer["mailboxes"] == [
        {"address": user, "into": PARENT, "folders": 7, "messages": answer["messages"], "bytes": answer["bytes"]}
    ]
    assert [line for line in answer["plan"] if line["action"] == "quota"]
    assert server.run(*look).stdout == before


def test_a_quota_without_room(live: Live):
    user, server = "dave@example.test", live.server
    used = int(server.run("doveadm", "-f", "tab", "quota", "get", "-u", user).stdout.decode().split("\t")[6])  # first row: STORAGE, in KiB
    limit = used * 3 // 2
    users = server.path("/etc/dovecot/users")
    text = users.read_text()
    users.write_text(re.sub(rf"^({re.escape(user)}:.*)$", rf"\1userdb_quota_rule=*:bytes={limit}K", text, flags=re.MULTILINE))
    wait_for(lambda: f"\t{limit}\t".encode() in server.run("doveadm", "-f", "tab", "quota", "get", "-u", user).stdout, "the new quota")
    before = server.uid_hashes(user)
    try:
        answer = live.restore(user, "--to", "live", status=8)
        assert re.search(
            rf"quota 'User quota' has no room: {used} KiB of {limit} are used, and the restore needs \d+ KiB more",
            answer["error"]["message"],
        )
        assert live.restore(user, "--to", "live", "--dry-run", status=8)["error"]["code"] == "MB-R001"
        assert live.restore(user, "--to", "live", "--folder", "Sent")["outcome"] == "complete"
    finally:
        users.write_text(text)
    after = server.uid_hashes(user)
    assert {folder: mails for folder, mails in after.items() if not folder.startswith(PARENT)} == before


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (("erin@example.test", "--to", "live", "--mode", "merge"), 2, "comes with a later version"),
        (("erin@example.test", "--to", "live", "--mode", "flags"), 2, "comes with a later version"),
        (("erin@example.test", "--to", "live", "--mode", "exact"), 2, "comes with a later version"),
        (("erin@example.test", "--to", "live", "--mode", "other"), 2, "no mode other"),
        (("erin@example.test", "--to", "live", "--overwrite"), 2, "overwrites nothing"),
        (("erin@example.test", "--to", "/tmp/x", "--mode", "recovered"), 2, "belongs to --to live"),
        (("nobody@example.test", "--to", "live"), 2, "knows no user nobody@example.test"),
        (("erin@example.test", "nobody@example.test", "--to", "live"), 2, "nobody@example.test"),
        (("erin@example.test", "--to", "live", "--folder", "Nowhere"), 2, "has no folder Nowhere"),
    ],
)  # fmt: skip
def test_what_is_refused(live: Live, args: tuple[str, ...], status: int, says: str):
    before = live.server.uid_hashes("erin@example.test")
    assert says in live.restore(*args, status=status)["error"]["message"]
    assert live.server.uid_hashes("erin@example.test") == before
    assert not [name for name in live.staged() if name.startswith("mailbackup-live-")]


def test_several_mailboxes(live: Live):
    users = ["frank@example.test", "grace@example.test"]
    answer = live.restore(*users, "--to", "live", "--folder", "Archive")
    assert [box["address"] for box in answer["mailboxes"]] == users
    assert answer["messages"] == sum(len(live.seen(user, f"{PARENT}/Archive")) for user in users)


# ---------------------------------------------------------------- when it goes wrong

TAMPERED = {
    "nothing arrives, and status 0": ("exit 0", "not-restored"),
    "a part arrives, and status 0": ('exec $REAL "${@:1:$#-1}" mailbox INBOX', "not-restored"),
    "it is stopped": ("exec timeout -s TERM 0.02 $REAL \"$@\"", "not-restored"),
    "one message is another": (
        '$REAL "$@"; echo "other" | $REAL save -u $USER_NAME -m $PARENT_NAME/Sent; exec $REAL expunge -u $USER_NAME mailbox $PARENT_NAME/Sent 1',
        "not-restored",
    ),
    "twice": ('$REAL "$@"; exec $REAL "$@"', "not-restored"),
    "a message of another folder is gone": ('$REAL "$@"; exec $REAL expunge -u $USER_NAME mailbox INBOX 1', "count-mismatch"),
    "another folder is gone": ('$REAL "$@"; exec $REAL mailbox delete -u $USER_NAME Junk', "count-mismatch"),
    "another folder is a new one": (
        '$REAL "$@"; $REAL mailbox delete -u $USER_NAME Archive/2024; exec $REAL mailbox create -u $USER_NAME Archive/2024', "count-mismatch"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", TAMPERED)
def test_the_proof_fails_when_the_import_does(live: Live, what: str):
    """Every fault turns the answer red, each as what it is."""
    user = f"{['heidi', 'ivan', 'judy'][list(TAMPERED).index(what) % 3]}@example.test"
    body, kind = TAMPERED[what]
    before = live.server.uid_hashes(user)
    live.program("doveadm", f'[ "$1" = import ] || exec $REAL "$@"\nUSER_NAME={user} PARENT_NAME=$6\n{body}')
    try:
        answer = live.restore(user, "--to", "live", status=4)
    finally:
        live.no_program("doveadm")
    assert {finding["kind"] for finding in answer["findings"] if finding["kind"] != "attribute-not-restored"} == {kind}
    if kind == "not-restored":
        after = live.server.uid_hashes(user)
        assert all(after[folder] == mails for folder, mails in before.items())


def test_flags_that_are_lost_are_said(live: Live):
    user = "kim@example.org"
    live.program("doveadm", f'[ "$1" = import ] || exec $REAL "$@"\n$REAL "$@"; exec $REAL flags remove -u {user} "\\Seen" mailbox "$6/*"')
    try:
        answer = live.restore(user, "--to", "live")
    finally:
        live.no_program("doveadm")
    assert [finding["kind"] for finding in answer["findings"]] == ["attribute-not-restored"]


KILLED = """
import os, signal, sys
from mailbackup.cli.main import run
from mailbackup.server import live
from mailbackup.server.dovecot import Dovecot
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
WHERE
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.parametrize("where", ["live.Mailbox.put = die", "live.read = die", "Dovecot.bring_in = die", "live.compare = die"])
def test_what_a_killed_restore_leaves_is_removed_by_the_next(live: Live, where: str):
    user, server = "lena@example.org", live.server
    before = server.uid_hashes(user)
    args = ("restore", "mailbox", user, "--to", "live", "--config", CONFIG, "--identity", KIT)
    done = server.run(sys.executable, "-c", KILLED.replace("WHERE", where), *args, check=False, env={"PYTHONPATH": str(REPOSITORY)})
    assert done.returncode in (-9, 137)
    left = [name for name in live.staged() if name.startswith("mailbackup-live-")]
    assert len(left) == 1
    answer = live.restore(user, "--to", "live")
    assert answer["outcome"] == "complete"
    assert not [name for name in live.staged() if name.startswith("mailbackup-live-")]
    after = server.uid_hashes(user)
    assert all(after[folder] == mails for folder, mails in before.items())


def test_another_restore_of_the_same_mailbox_runs(live: Live):
    user = "mika@example.org"
    live.program("doveadm", '[ "$1" = import ] && sleep 3; exec $REAL "$@"')
    answers: list[int] = []
    try:
        thread = threading.Thread(target=lambda: answers.append(live.restore(user, "--to", "live")["exit_status"]))
        thread.start()
        wait_for(lambda: bool(live.server.run("pgrep", "-f", "sleep 3", check=False).stdout), "the import")
        assert live.restore(user, "--to", "live", status=6)["error"]["code"] == "MB-C002"
        thread.join()
    finally:
        live.no_program("doveadm")
    assert answers == [0]


def test_dovecot_does_not_run(own: Live):
    own.server.start_mail()
    Live.of(own.server)
    own.server.stop_mail()
    answer = own.restore("alice@example.test", "--to", "live", status=5)
    assert answer["error"]["message"].startswith("Dovecot does not answer: ")
    assert "doveadm service status" in answer["error"]["hint"]
    own.server.run("rm", "/usr/bin/doveadm")
    answer = own.restore("alice@example.test", "--to", "live", status=2)
    assert "no Dovecot on this machine" in answer["error"]["message"]
    assert "--via" in answer["error"]["hint"]


# ---------------------------------------------------------------- other mailboxes

NAMESPACE = """
mail_location = {location}
namespace inbox {{
  separator = {separator}
  prefix = {prefix}
}}
namespace shared {{
  separator = {separator}
  prefix = shared{separator}%%u{separator}
}}
"""


@pytest.mark.parametrize(
    ("location", "separator", "prefix"),
    [
        ("mdbox:~/mdbox", ".", "INBOX."),
        ("sdbox:~/sdbox", "/", ""),
        ("maildir:~/Maildir", ".", "INBOX."),
        ("maildir:~/mail:LAYOUT=fs", "/", ""),
    ],
)
def test_other_formats_and_names(own: Live, location: str, separator: str, prefix: str):
    """A Maildir of the snapshot goes into whatever the server has by now."""
    user, server = "alice@example.test", own.server
    server.start_mail()
    Live.of(server)
    originals = {folder: own.seen(user, folder) for folder in server.uid_hashes(user)}
    server.path("/etc/dovecot/mx1.d/99-other.conf").write_text(NAMESPACE.format(location=location, separator=separator, prefix=prefix))
    server.run("doveadm", "reload")
    wait_for(lambda: server.run("doveadm", "mailbox", "status", "-u", user, "messages", "INBOX", check=False).returncode == 0, "the reload")
    answer = own.restore(user, "--to", "live")
    parent = f"{prefix}Recovered{separator}{TODAY}"
    assert (answer["outcome"], answer["findings"], answer["mailboxes"][0]["into"]) == ("complete", [], parent)
    for folder, mails in originals.items():
        assert sorted(own.seen(user, f"{parent}{separator}{folder.replace('/', separator)}")) == sorted(mails), folder


# ---------------------------------------------------------------- clients

MBSYNC = """
IMAPAccount server
Host 192.0.2.25
Port 993
User {user}
Pass {password}
SSLType IMAPS
CertificateFile {certificate}

IMAPStore far
Account server

MaildirStore near
Path {place}/
Inbox {place}/INBOX
SubFolders Verbatim

Channel all
Far :far:
Near :near:
Patterns *
Create Near
Sync Pull
SyncState *
"""


class Client:
    """mbsync, an independent client that remembers UIDs."""

    def __init__(self, live: Live, user: str, place: Path) -> None:
        self._live = live
        self._place = place / "mail"
        self._place.mkdir()
        certificate = live.server.path("/etc/ssl/mx1/mx1.crt")
        text = MBSYNC.format(user=user, password=password(user), certificate=certificate, place=self._place)
        (place / "mbsyncrc").write_text(text)
        self._config = str(place / "mbsyncrc")

    def sync(self) -> None:
        """Fetch what is new."""
        done = self._live.server.run_beside("mbsync", "-c", self._config, "all")
        assert done.returncode == 0, done.stderr.decode()

    def held(self) -> dict[str, dict[int, bytes]]:
        """Folder → UID on the server → the message that the client shows for it."""
        found = {}
        for state in self._place.rglob(".mbsyncstate"):
            folder = state.parent
            files = {
                int(match[1]): path
                for path in (*folder.glob("cur/*"), *folder.glob("new/*"))
                if (match := re.search(r",U=(\d+)", path.name))
            }
            rows = [line.split() for line in state.read_text().split("\n\n", 1)[1].splitlines()]
            shown = {int(far): files[int(near)].read_bytes() for far, near, *_ in rows if int(near)}
            found[str(folder.relative_to(self._place))] = shown
        return found


def test_a_client_downloads_nothing_twice(live: Live, tmp_path: Path):
    user = "nora@example.org"
    client = Client(live, user, tmp_path)
    client.sync()
    before = client.held()
    assert sum(map(len, before.values())) > 90
    with deliveries(live, user) as sent:
        answer = live.restore(user, "--to", "live")
    wait_for(lambda: len(live.server.uid_hashes(user)["INBOX"]) >= len(before["INBOX"]) + len(sent), "the deliveries")
    client.sync()
    after = client.held()
    recovered = {folder for folder in after if folder.startswith(PARENT)}
    assert sum(len(after[folder]) for folder in recovered) == answer["messages"]
    assert set(after) - recovered == set(before)
    for folder, mails in before.items():
        assert mails.items() <= after[folder].items(), folder  # each UID shows what it showed
        assert len(after[folder]) - len(mails) == (len(sent) if folder == "INBOX" else 0)


# ---------------------------------------------------------------- speed


def test_a_large_folder_comes_back(own: Live, record_property: pytest.RecordProperty):
    user, server = "alice@example.test", own.server
    server.run("bash", "-c", f"""
        cd /var/vmail && mkdir -p {home(user)}/Maildir/.Big/{{cur,new,tmp}}
        find . -path '*/cur/*' -type f -not -path './example.test/alice/*' -exec cp -p -t {home(user)}/Maildir/.Big/cur -- {{}} +
        chown -R vmail: {home(user)}/Maildir/.Big""")  # fmt: skip
    server.start_mail()
    Live.of(server)
    answer = own.restore(user, "--to", "live", "--folder", "Big")
    record_property("phases", answer["phases"])
    assert answer["messages"] > 1500
