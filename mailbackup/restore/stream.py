"""A restored mailbox as a stream, for a machine that must not hold the identity: a pax archive that proves at its end that it is whole.

    mailbackup-stream.json   `Head`: whose mailbox, and how much is to come
    …                        one member for each directory, file, link and FIFO; `Sent` as JSON in its pax record MAILBACKUP.entry
    mailbackup-end.json      `End`: how many members, and a hash over all their records

Any tar can list and unpack it. What counts is `Sent`: a name with all its bytes, times to the nanosecond, and the SHA-256 of the content, which the
sender has checked against the vault before the first byte leaves. Whoever reads a stream must not use anything of it before `End` was checked.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, TypeVar, cast

from mailbackup.errors import DamageError, RecordInvalid, UnsafeName, UsageError
from mailbackup.mail.maildir import MESSAGE_DIRECTORIES, is_message
from mailbackup.model import codec
from mailbackup.model.codec import Record
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import Name, from_name, safe_path, show, to_name
from mailbackup.model.tree import Entry, Owner
from mailbackup.restore.target import AttributeKept, Existing, Place, Target

FORMAT = 1
_HEAD, _END, _RECORD = "mailbackup-stream.json", "mailbackup-end.json", "MAILBACKUP.entry"
_RECORD_LIMIT = 1 << 20  # bytes of Head and End
_IN_MEMORY = 16 << 20  # bytes of a file; a larger one waits on the disk until it was checked
_CHUNK = 1 << 20
_KINDS = {"d": tarfile.DIRTYPE, "f": tarfile.REGTYPE, "l": tarfile.SYMTYPE, "p": tarfile.FIFOTYPE}

T = TypeVar("T")


class Head(Record, frozen=True, kw_only=True):
    """What is to come: at most so many `messages` in `folders`, and `bytes` of content, out of snapshot `seq`."""

    address: str
    seq: int
    folders: int
    messages: int
    bytes: int
    format: int = FORMAT


class Sent(Record, frozen=True, omit_defaults=True, kw_only=True):
    """One member. `path` below the target ("." is the target itself); `sha256` of a file's content; `first` = a further name of that path."""

    path: Name
    entry: Entry
    owner: Owner
    sha256: str = ""
    first: Name | None = None


class End(Record, frozen=True, kw_only=True):
    """`sha256` over the records of all members in their order, each after its length and a colon."""

    entries: int
    bytes: int
    sha256: str


class _Sum:
    """What both sides count."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.entries = 0
        self.bytes = 0

    def add(self, record: bytes, size: int) -> None:
        self._hash.update(b"%d:%b" % (len(record), record))
        self.entries += 1
        self.bytes += size

    def end(self) -> End:
        return End(entries=self.entries, bytes=self.bytes, sha256=self._hash.hexdigest())


# ---------------------------------------------------------------- sending


class Nowhere(Target):
    """A target in which nothing is, for plans that are not carried out here."""

    def __init__(self) -> None:
        super().__init__("/nonexistent")

    def look(self, path: bytes, entry: Entry) -> Existing:
        """Nothing lies anywhere."""
        return Existing.ABSENT

    def names(self, path: bytes) -> list[bytes]:
        """No names."""
        return []

    def prepare(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class _Pipe:
    """The file that a stream goes to, until it is abandoned."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.open = True

    def write(self, data: bytes) -> int:
        """As that of the file."""
        return self._file.write(data) if self.open else len(data)


class _NoPlace(Place):
    """Where a file goes in a stream: nothing is open for it."""

    def release(self) -> None:
        """Nothing to close."""


class StreamTarget(Nowhere):
    """Restores into a stream, between `begin` and `end`. Without the end marker, which says that everything succeeded, it is worthless.

    Raises what the file raises (BrokenPipeError when its reader went away).
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._sum = _Sum()
        self._pipe = _Pipe(io.BytesIO())

    def begin(self, file: IO[bytes], head: Head) -> None:
        """Before everything else: where the stream goes."""
        self._pipe = _Pipe(file)
        self._tar = tarfile.open(fileobj=cast("IO[bytes]", self._pipe), mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8")  # noqa: SIM115
        self._json(_HEAD, head)

    def end(self) -> None:
        """The end marker. Everything that was to be sent was."""
        self._json(_END, self._sum.end())
        self._tar.close()

    def abandon(self) -> None:
        """Nothing more is written, also not by an archive that is only thrown away. Harmless after `end`."""
        self._pipe.open = False

    def make_directory(self, path: bytes) -> None:
        """The reader makes directories as they are needed; their attributes come at the end."""

    def place(self, path: bytes, through: bytes | None = None) -> Place:
        """Nothing is opened."""
        return _NoPlace(path, b"", -1, -1, inherits=False)

    def write_file(self, place: Place, parts: Iterable[bytes], entry: Entry, owner: Owner, *, replace: bool) -> None:
        """A file, sent when all its parts were given. Raises RecordInvalid when they are not as long as the entry says."""
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as content:
            digest, size = hashlib.sha256(), 0
            for part in parts:
                digest.update(part)
                size += content.write(part)
            if size != entry.size:
                raise RecordInvalid(f"{show(place.path)} has {size} bytes, not {entry.size}")
            content.seek(0)
            self._member(place.path, entry, owner, content=content, sha256=digest.hexdigest())

    def link(self, path: bytes, first: bytes, *, replace: bool) -> None:
        """A further name of what was sent."""
        self._member(path, Entry(name=""), Owner(0o600, 0, None, 0, None), first=to_name(first))

    def special(self, path: bytes, entry: Entry, owner: Owner, *, replace: bool) -> None:
        """A symbolic link or FIFO. Raises RecordInvalid for a device, which no mailbox has."""
        if entry.type not in _KINDS:
            raise RecordInvalid(f"{show(path)}: a device in a mailbox")
        self._member(path, entry, owner)

    def finish_directory(self, path: bytes, entry: Entry, owner: Owner) -> None:
        """A directory with its attributes."""
        self._member(path, entry, owner)

    def _member(
        self, path: bytes, entry: Entry, owner: Owner, *, content: IO[bytes] | None = None, sha256: str = "", first: Name | None = None
    ) -> None:
        kind = "d" if entry.type == "m" else entry.type
        bare = Entry(name="", type=kind, mtime=entry.mtime, size=entry.size, target=entry.target, xattrs=entry.xattrs)
        record = codec.encode(Sent(path=to_name(path or b"."), entry=bare, owner=owner, sha256=sha256, first=first))
        info = tarfile.TarInfo(show(path or b"."))
        info.type = tarfile.LNKTYPE if first is not None else _KINDS[kind]
        info.mode, info.uid, info.gid = owner.mode, owner.uid, owner.gid
        info.mtime = max(0, entry.mtime[0])
        info.linkname = _shown(first if first is not None else entry.target)
        info.size = entry.size if content is not None else 0
        info.pax_headers = {_RECORD: record.decode("utf-8")}
        with self._lock:
            self._tar.addfile(info, content)
            self._sum.add(record, info.size)

    def _json(self, name: str, record: Record) -> None:
        data = codec.encode(record)
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o600
        with self._lock:
            self._tar.addfile(info, io.BytesIO(data))


def _shown(name: Name | None) -> str:
    return "" if name is None else show(from_name(name))


# ---------------------------------------------------------------- receiving


@dataclass(slots=True)
class Unpacked:
    """What a stream brought: `files` are all but directories, messages included."""

    files: int = 0
    messages: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)


class Incoming:
    """A stream that is read. Its `head` has come when it is made. Raises DamageError for what is no such stream, UsageError for a newer one."""

    def __init__(self, file: IO[bytes]) -> None:
        with _readable():
            self._tar = tarfile.open(fileobj=file, mode="r|", encoding="utf-8")  # noqa: SIM115
            self.head = self._json(self._next(), _HEAD, Head)
        if self.head.format != FORMAT:
            raise UsageError(
                f"the stream has format {self.head.format}, this version of mailbackup reads {FORMAT}",
                hint="Install the same version of mailbackup on both machines.",
            )
        self._sum = _Sum()
        self._finish: list[tuple[bytes, Sent]] = []
        self._done = Unpacked()

    def unpack(self, target: Target, accept: Callable[[bytes, Sent], Sent]) -> Unpacked:
        """Everything into an empty target, up to a correct end marker. `accept` returns each member as it is to be unpacked, or raises.

        Raises DamageError for a stream that is cut, damaged, or holds what it must not: what lies in the target is then not to be used.
        """
        target.prepare()
        try:
            with _readable():
                while (member := self._next()).name != _END:
                    self._member(target, member, accept)
                self._check_end(member)
            for path, sent in sorted(self._finish, key=lambda item: item[0].count(b"/") + bool(item[0]), reverse=True):
                self._guarded(path, lambda path=path, sent=sent: target.finish_directory(path, sent.entry, sent.owner))  # type: ignore[misc]
        finally:
            target.close()
        return self._done

    def _next(self) -> tarfile.TarInfo:
        member = self._tar.next()
        self._tar.members.clear()  # type: ignore[attr-defined]  # else every name is kept in memory
        if member is None:
            raise DamageError("the stream was cut: it has no end marker", hint=_HINT)
        return member

    def _member(self, target: Target, member: tarfile.TarInfo, accept: Callable[[bytes, Sent], Sent]) -> None:
        record = member.pax_headers.get(_RECORD)
        if record is None:
            raise RecordInvalid(f"{member.name!r} in the stream has no record", hint=_HINT)
        sent = codec.decode(record, Sent, "a record of the stream")
        path = _path_of(sent.path)
        self._sum.add(record.encode("utf-8"), member.size)
        if sent.entry.type not in _KINDS or member.size != (sent.entry.size if _has_content(sent) else 0):
            raise RecordInvalid(f"{show(path)} in the stream is not what its record says", hint=_HINT)
        if self._sum.bytes > self.head.bytes:
            raise RecordInvalid("the stream holds more than it said at its beginning", hint=_HINT)
        sent = accept(path, sent)
        self._guarded(path, lambda: self._put(target, path, sent, member))

    def _put(self, target: Target, path: bytes, sent: Sent, member: tarfile.TarInfo) -> None:
        self._done.files += sent.entry.type != "d"
        self._done.messages += sent.entry.type == "f" and is_mail(path)
        if sent.first is not None:
            target.link(path, _path_of(sent.first), replace=False)
        elif sent.entry.type == "d":
            target.make_directory(path)
            self._finish.append((path, sent))
        elif sent.entry.type == "f":
            self._file(target, path, sent, member)
        else:
            target.special(path, sent.entry, sent.owner, replace=False)

    def _file(self, target: Target, path: bytes, sent: Sent, member: tarfile.TarInfo) -> None:
        place = target.place(path)
        try:
            self._done.bytes += member.size
            target.write_file(place, self._content(member, sent.sha256), sent.entry, sent.owner, replace=False)
        finally:
            place.release()

    def _content(self, member: tarfile.TarInfo, sha256: str) -> Iterator[bytes]:
        digest, left = hashlib.sha256(), member.size
        file = self._tar.extractfile(member)
        while file is not None and left and (data := file.read(min(left, _CHUNK))):
            digest.update(data)
            left -= len(data)
            yield data
        if left or digest.hexdigest() != sha256:
            raise DamageError(f"{member.name} did not arrive as it was sent", hint=_HINT)

    def _guarded(self, path: bytes, action: Callable[[], None]) -> None:
        try:
            action()
        except AttributeKept as kept:
            self._done.findings.append(Finding(FindingKind.ATTRIBUTE_KEPT, show(path), str(kept)))

    def _check_end(self, member: tarfile.TarInfo) -> None:
        if self._json(member, _END, End) != self._sum.end():
            raise DamageError("the stream is not what its end marker says", hint=_HINT)
        if self._tar.next() is not None:
            raise DamageError("the stream goes on after its end marker", hint=_HINT)

    def _json(self, member: tarfile.TarInfo, name: str, kind: type[T]) -> T:
        file = self._tar.extractfile(member) if member.isreg() and member.name == name and member.size <= _RECORD_LIMIT else None
        if file is None:
            raise DamageError("this is no stream of mailbackup", hint=_HINT)
        return codec.decode(file.read(), kind, name)


_HINT = "Nothing was changed. Run it again; the machine that sends says what went wrong there."


def is_mail(path: bytes) -> bool:
    """Whether a file at this path of a mailbox is a message."""
    directory, name = os.path.split(path)
    return os.path.basename(directory) in MESSAGE_DIRECTORIES and is_message(name)


def _has_content(sent: Sent) -> bool:
    return sent.entry.type == "f" and sent.first is None


def _path_of(name: Name) -> bytes:
    try:
        path = safe_path(name)
    except UnsafeName as error:
        raise RecordInvalid(f"the stream would write outside of its place: {error}", hint=_HINT) from None
    return b"" if path == b"." else path


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    """What a broken archive makes `tarfile` raise is damage."""
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError, OverflowError, OSError) as error:
        raise DamageError(f"the stream is cut or damaged: {error}", hint=_HINT) from None
