"""A stream is used only when it is whole: every cut, every changed byte and everything that leads out of its place is refused."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailbackup.errors import DamageError, MailbackupError, RecordInvalid, UsageError, WouldOverwrite
from mailbackup.model import codec
from mailbackup.model.events import ignore
from mailbackup.model.ids import to_name
from mailbackup.model.tree import Entry, Owner
from mailbackup.restore.stream import End, Head, Incoming, Sent, StreamTarget
from mailbackup.restore.target import Target
from mailbackup.server.receive import only_mail, receive_directory

OWNER = Owner(0o640, os.geteuid(), None, os.getegid(), None)
FOLDER = Owner(0o750, os.geteuid(), None, os.getegid(), None)
NAME = b"cur/17.M\xff\xc3\xbc:2,S"


def sent(*, end: bool = True, limit: int = 1 << 20, extra: Callable[[StreamTarget], None] | None = None) -> bytes:
    """A small stream: directories, two messages (one has an odd name and a time to the nanosecond), a link, a further name."""
    out = io.BytesIO()
    target = StreamTarget()
    target.begin(out, Head(address="a@example.org", seq=3, folders=1, messages=2, bytes=limit))
    for path, content in ((NAME, b"one\n" * 3000), (b"new/18.M", b""), (b"dovecot-uidlist", b"3 V1 N9\n")):
        place = target.place(path)
        target.write_file(
            place, [content[:5], content[5:]], Entry(name="", size=len(content), mtime=(1700000000, 123456789)), OWNER, replace=False
        )
        place.release()
    target.special(b"link", Entry(name="", type="l", target=to_name(b"../../out\xff"), mtime=(5, 0)), OWNER, replace=False)
    target.link(b"second", b"dovecot-uidlist", replace=False)
    if extra is not None:
        extra(target)
    for path in (b"cur", b"new", b"tmp", b""):
        target.finish_directory(path, Entry(name="", type="d", mtime=(1600000000, 7)), FOLDER)
    if end:
        target.end()
    return out.getvalue()


def receive(stream: bytes, to: Path) -> None:
    receive_directory(io.BytesIO(stream), str(to), ignore)


def test_everything_arrives(tmp_path: Path):
    result = receive_directory(io.BytesIO(sent()), str(tmp_path / "to"), ignore)
    assert (result.outcome, result.messages, result.files, result.bytes, result.findings) == ("complete", 2, 3, 12008, ())
    place = os.fsencode(tmp_path / "to")
    status = os.stat(place + b"/" + NAME)
    assert (status.st_mode & 0o7777, status.st_mtime_ns, status.st_size) == (0o640, 1700000000123456789, 12000)
    assert os.readlink(place + b"/link") == b"../../out\xff"
    assert os.path.samefile(place + b"/second", place + b"/dovecot-uidlist")
    assert (os.stat(place).st_mtime_ns, os.stat(place).st_mode & 0o7777) == (1600000000000000007, 0o750)
    assert os.listdir(tmp_path) == ["to"]


def test_any_tar_can_read_it(tmp_path: Path):
    with tarfile.open(fileobj=io.BytesIO(sent())) as archive:
        names = archive.getnames()
        assert names[0] == "mailbackup-stream.json"
        assert names[-1] == "mailbackup-end.json"
        content = archive.extractfile(names[1])
        assert content is not None
        assert content.read() == b"one\n" * 3000


WHOLE = sent()


def refused(stream: bytes, tmp_path: Path) -> None:
    """It is refused as damage, and nothing is there afterwards."""
    with pytest.raises(DamageError):
        receive(stream, tmp_path / "to")
    assert os.listdir(tmp_path) == []


def test_every_cut_is_refused(tmp_path: Path):
    end = WHOLE.index(b"mailbackup-end.json")
    content = WHOLE.index(b'{"entries"')
    for size in [*range(0, content, 389), end, content, content + 20]:
        refused(WHOLE[:size], tmp_path)


def test_without_end_marker(tmp_path: Path):
    refused(sent(end=False), tmp_path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_changed_bytes_never_arrive(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject):
    """A changed byte is refused, or lies where nothing is (padding, the names for other programs): what arrives is what was sent."""
    at = data.draw(st.integers(0, len(WHOLE) - 1))
    changed = bytearray(WHOLE)
    changed[at] ^= data.draw(st.integers(1, 255))
    place = tmp_path_factory.mktemp("x")
    try:
        receive(bytes(changed), place / "to")
    except (DamageError, UsageError):
        assert os.listdir(place) == []
        return
    root = os.fsencode(place / "to")
    assert sorted(os.listdir(root)) == [b"cur", b"dovecot-uidlist", b"link", b"new", b"second", b"tmp"]
    with open(root + b"/" + NAME, "rb") as file:
        assert file.read() == b"one\n" * 3000
    assert os.stat(root + b"/" + NAME).st_mtime_ns == 1700000000123456789


@pytest.mark.parametrize("stream", [b"", b"\0" * 10240, b"not a tar" * 2000, WHOLE[512:]])
def test_no_stream(tmp_path: Path, stream: bytes):
    refused(stream, tmp_path)


def test_more_than_announced(tmp_path: Path):
    refused(sent(limit=11_999), tmp_path)


def test_twice_the_same_name(tmp_path: Path):
    def again(target: StreamTarget) -> None:
        target.write_file(target.place(NAME), [b"x"], Entry(name="", size=1), OWNER, replace=False)

    with pytest.raises(WouldOverwrite):
        receive(sent(extra=again), tmp_path / "to")
    assert os.listdir(tmp_path) == []


def test_a_longer_or_shorter_file_is_not_sent():
    target = StreamTarget()
    target.begin(io.BytesIO(), Head(address="a", seq=1, folders=1, messages=1, bytes=9))
    for size in (1, 3):
        with pytest.raises(RecordInvalid):
            target.write_file(target.place(b"cur/1"), [b"xy"], Entry(name="", size=size), OWNER, replace=False)


def test_a_newer_format(tmp_path: Path):
    with pytest.raises(UsageError, match="format 2"):
        receive(WHOLE.replace(b'"format":1', b'"format":2'), tmp_path / "to")


@pytest.mark.case("36")
@pytest.mark.parametrize("path", [b"../out", b"/etc/mailbackup-out", b"a/../../out", b"a//b", b"", b"a\0b", b"..", b"cur/.."])
def test_names_that_lead_out(tmp_path: Path, path: bytes):
    def lead_out(target: StreamTarget) -> None:
        target._member(path, Entry(name="", size=0), OWNER, content=io.BytesIO(), sha256=hashlib.sha256().hexdigest())

    if path:
        refused(sent(extra=lead_out), tmp_path)
    for first in (b"../out", b"/etc/passwd"):
        refused(sent(extra=lambda target, first=first: target.link(b"third", first, replace=False)), tmp_path)  # type: ignore[misc]


@pytest.mark.case("34")
def test_links_are_not_followed(tmp_path: Path):
    """A link that leads out, then a file through it."""
    (tmp_path / "victim").mkdir()

    def through(target: StreamTarget) -> None:
        target.special(b"evil", Entry(name="", type="l", target=to_name(os.fsencode(tmp_path / "victim"))), OWNER, replace=False)
        target.write_file(target.place(b"evil/passwd"), [b"x"], Entry(name="", size=1), OWNER, replace=False)

    with pytest.raises(MailbackupError):
        receive(sent(extra=through), tmp_path / "to")
    assert os.listdir(tmp_path) == ["victim"]
    assert os.listdir(tmp_path / "victim") == []


def test_devices_are_not_sent_nor_taken(tmp_path: Path):
    device = Entry(name="", type="c", device=(1, 3))
    with pytest.raises(RecordInvalid):
        sent(extra=lambda target: target.special(b"null", device, OWNER, replace=False))
    record = codec.encode(Sent(path="null", entry=device, owner=OWNER))
    refused(_with_member(record, tarfile.CHRTYPE), tmp_path)


def _with_member(
    record: bytes, kind: bytes, *, entries: int = 1, size: int = 0, digest: str | None = None, after: bytes | None = None
) -> bytes:
    """A stream of one member, with a right end marker if nothing else is said, and maybe something `after` it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        digest = digest or hashlib.sha256(b"%d:%b" % (len(record), record)).hexdigest()
        for name, data in (
            ("mailbackup-stream.json", codec.encode(Head(address="a", seq=1, folders=1, messages=1, bytes=100))),
            ("x", None),
            ("mailbackup-end.json", codec.encode(End(entries=entries, bytes=size, sha256=digest))),
            *([("more", after)] if after is not None else []),
        ):
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.pax_headers = kind, {"MAILBACKUP.entry": record.decode()}
            info.size = len(data or b"")
            archive.addfile(info, io.BytesIO(data or b""))
    return out.getvalue()


FIFO = codec.encode(Sent(path="fine", entry=Entry(name="", type="p"), owner=OWNER))


@pytest.mark.parametrize("wrong", [{"entries": 2}, {"entries": 0}, {"size": 1}, {"digest": "0" * 64}, {"after": b"x"}])
def test_an_end_marker_that_does_not_fit(tmp_path: Path, wrong: dict[str, Any]):
    """As when a member is lost, or put in, on the way."""
    refused(_with_member(FIFO, tarfile.FIFOTYPE, **wrong), tmp_path)


def test_a_member_that_is_something_else_than_its_record(tmp_path: Path):
    receive(_with_member(FIFO, tarfile.FIFOTYPE), tmp_path / "to")
    (tmp_path / "to" / "fine").unlink()
    (tmp_path / "to").rmdir()
    sized = Sent(path="bad", entry=Entry(name="", size=5), owner=OWNER, sha256="0" * 64)
    refused(_with_member(codec.encode(sized), tarfile.REGTYPE), tmp_path)
    refused(_with_member(b'{"path":1}', tarfile.REGTYPE), tmp_path)


@pytest.mark.parametrize("path", [b".dovecot.sieve", b"cur", b"cur/.hidden", b"sieve/x.sieve", b"dovecot-acl", b"subscriptions"])
def test_files_that_a_live_mailbox_does_not_take(path: bytes):
    with pytest.raises(RecordInvalid):
        only_mail(path, Sent(path=to_name(path), entry=Entry(name=""), owner=OWNER))


@pytest.mark.parametrize(
    "member",
    [
        Sent(path="cur/1", entry=Entry(name=""), owner=OWNER, first="cur/2"),
        Sent(path="cur/1", entry=Entry(name="", type="l", target="x"), owner=OWNER),
        Sent(path="cur/1", entry=Entry(name="", type="p"), owner=OWNER),
    ],
)
def test_kinds_that_a_live_mailbox_does_not_take(member: Sent):
    with pytest.raises(RecordInvalid):
        only_mail(b"cur/1", member)


def test_a_live_mailbox_takes_no_attributes():
    taken = only_mail(
        b"cur/1", Sent(path="cur/1", entry=Entry(name="", xattrs={"security.capability": "AAAA"}), owner=Owner(0o4755, 0, "root", 0, None))
    )
    assert taken.entry.xattrs is None
    assert taken.owner == Owner(0o755, 0, None, 0, None)


def test_a_directory_that_is_not_empty(tmp_path: Path):
    (tmp_path / "to").mkdir()
    receive(WHOLE, tmp_path / "to")  # an empty one is fine
    before = sorted(os.listdir(tmp_path / "to"))
    with pytest.raises(WouldOverwrite):
        receive(WHOLE, tmp_path / "to")
    assert sorted(os.listdir(tmp_path / "to")) == before
    assert os.listdir(tmp_path) == ["to"]


def test_the_first_damage_stops_it(tmp_path: Path):
    """What is in the target by then is for the caller to throw away."""
    target = Target(str(tmp_path / "to"))
    with pytest.raises(DamageError):
        Incoming(io.BytesIO(WHOLE[: len(WHOLE) // 2])).unpack(target, lambda _path, member: member)
