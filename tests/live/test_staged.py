"""What is read of a staged Maildir is what a client will see of it, however its messages are stored."""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
from collections import Counter
from pathlib import Path

import pytest

from mailbackup.errors import SafetyRefusal
from mailbackup.model.finding import FindingKind
from mailbackup.server.dovecot import Quota, Status
from mailbackup.server.live import changed
from mailbackup.server.session import ContentHash, Mail
from mailbackup.server.staged import Staged, compare, read, take_over

BODY = b"Subject: x\n\none\ntwo\n"


def maildir(root: Path, messages: dict[str, bytes]) -> str:
    """Messages by their path below it."""
    for path, content in messages.items():
        file = root / path
        for place in ("cur", "new", "tmp"):
            (file.parent.parent / place).mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        os.utime(file, ns=(1700000000_987654321,) * 2)
    return str(root)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_hash_does_not_know_line_ends(size: int):
    for content in (BODY, b"a\r\nb\nc\r\r\nd\re\0\r", b"", b"\r"):
        digest = ContentHash()
        for at in range(0, len(content), size):
            digest.update(content[at : at + size])
        assert digest.hexdigest() == sha(content.replace(b"\r\n", b"\n").replace(b"\0", b"\x80"))


def test_flags_keywords_and_dates(tmp_path: Path):
    place = maildir(tmp_path, {"cur/1.M:2,FSa": BODY, "new/2.M": BODY, ".Sent/cur/3.M:2,DRTab": BODY, "cur/.nfs1": b"", "tmp/4.M": b"half"})
    (tmp_path / "dovecot-keywords").write_text("0 $Label1\n1 other\n")
    found = read(place)
    first = Mail(sha(BODY), frozenset({"\\Flagged", "\\Seen", "$Label1"}), 1700000000)
    second = Mail(sha(BODY), frozenset(), 1700000000)
    third = Mail(sha(BODY), frozenset({"\\Draft", "\\Answered", "\\Deleted"}), 1700000000)  # the folder has no keywords of its own
    assert found.folders == {b"": Counter([first, second]), b".Sent": Counter([third])}
    assert (found.messages, found.size, found.opaque, found.location) == (3, 3 * len(BODY.replace(b"\n", b"\r\n")), 0, "")


def test_compressed_and_opaque_messages(tmp_path: Path):
    found = read(maildir(tmp_path, {"cur/1": gzip.compress(BODY), "cur/2": b"CRYPTED\x03\x07" + b"x" * 99, "cur/3": b"\x1f\x8bbroken"}))
    assert found.opaque == 2
    assert sha(BODY) in {mail.digest for mail in found.folders[b""]}
    live = [Counter([Mail(sha(text), frozenset(), 1700000000) for text in (BODY, b"opened by Dovecot", b"\x1f\x8b")])]
    assert compare(found, live, "parent") == []
    live[0][Mail(sha(BODY), frozenset(), 1700000000)] = 0
    live[0][Mail(sha(b"another"), frozenset(), 1700000000)] = 1
    assert [finding.kind for finding in compare(found, live, "parent")] == [FindingKind.NOT_RESTORED]


@pytest.mark.parametrize(("folder", "location"), [(".A", ""), ("A/B", ":LAYOUT=fs"), (".Ä", ":UTF-8"), (".Entw&APw-rfe", "")])
def test_the_layout_is_that_of_the_snapshot(tmp_path: Path, folder: str, location: str):
    assert read(maildir(tmp_path, {"cur/1": BODY, f"{folder}/cur/2": BODY})).location == location


def test_messages_in_other_folders():
    one, two = Mail("1", frozenset(), 0), Mail("2", frozenset(), 0)
    staged = Staged({b"": Counter([one, two]), b".A": Counter(), b".B": Counter([one])}, messages=3)
    assert compare(staged, [Counter([one]), Counter([two, one])], "parent") == []
    assert [finding.kind for finding in compare(staged, [Counter([one, one]), Counter([two])], "parent")] == [FindingKind.NOT_RESTORED]


@pytest.mark.root
def test_the_owner_gets_everything_but_links(tmp_path: Path):
    """A link could lead the import into the mailbox of somebody else."""
    place = Path(maildir(tmp_path / "mail", {"cur/1": BODY}))
    (place / "cur/1").chmod(0o4407)
    (place / ".Evil").symlink_to("/etc")
    (place / "cur/2").symlink_to("/etc/shadow")
    os.mkfifo(place / "cur/3")
    mode = os.stat("/etc/shadow").st_mode, os.stat("/etc").st_uid
    take_over(str(place), 5000, 5001)
    assert (os.stat("/etc/shadow").st_mode, os.stat("/etc").st_uid) == mode
    assert sorted(os.listdir(place)) == ["cur", "new", "tmp"]
    assert os.listdir(place / "cur") == ["1"]
    for path in (place, place / "cur", place / "cur/1"):
        assert (path.stat().st_uid, path.stat().st_gid) == (5000, 5001)
    assert stat.S_IMODE((place / "cur/1").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("after", "findings"),
    [
        ({"INBOX": Status(3, 9, 1)}, 0),
        ({"INBOX": Status(7, 13, 1), "New": Status(0, 1, 5)}, 0),
        ({"INBOX": Status(2, 9, 1)}, 1),
        ({"INBOX": Status(3, 9, 2)}, 1),
        ({"INBOX": Status(3, 8, 1)}, 1),
        ({}, 1),
    ],
)
def test_what_was_there_before(after: dict[str, Status], findings: int):
    assert len(changed({"INBOX": Status(3, 9, 1)}, after)) == findings


def test_quotas():
    Quota("q", "STORAGE", 90, 100).room(10 << 10, 10_000)
    Quota("q", "MESSAGE", 90, 100).room(10 << 30, 10)
    for kind, size, messages in (("STORAGE", (10 << 10) + 1, 1), ("MESSAGE", 1, 11)):
        with pytest.raises(SafetyRefusal, match=r"90 .*of 100 are used"):
            Quota("q", kind, 90, 100).room(size, messages)
