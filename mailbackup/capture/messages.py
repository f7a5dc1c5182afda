"""Reading the messages of a folder into blobs, by base name, while their file names change."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from mailbackup.capture.reading import Gone, OtherKind, Unreadable, chunks, open_file, read_whole, unchanged, xattrs_of
from mailbackup.capture.scan import FolderScan, Seen
from mailbackup.mail.message import encoding, header_length, readable_headers
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import show
from mailbackup.model.tree import PIECE_LIMIT
from mailbackup.vault.trees import Item, Place, owner_now
from mailbackup.vault.units import Unit
from mailbackup.vault.writer import VaultWriter

OnItem = Callable[[Item], None]
Stored = tuple[int, list[Place], int, Place | None]  # bytes, blobs, how many of them are headers, readable copy of the headers

_IN_MEMORY = 16 << 20  # bytes; longer messages are read in pieces
_HEAD_FROM = 1 << 20  # bytes of a packed message that are looked at for its headers
_ABSENT_LISTINGS = 5  # absent from so many listings in a row = not in this folder
_ROUNDS_AT_MOST = 200
_FAILURES = 64  # so many names must be stale before the folder is listed again in the middle of a round


class FolderReader:
    """Reads messages of one folder. `read_bytes` counts what was read; findings are appended to `findings`."""

    def __init__(self, scan: FolderScan, label: str, unit: Unit, writer: VaultWriter, findings: list[Finding]) -> None:
        self.scan = scan
        self.label = label
        self.unit = unit
        self.writer = writer
        self.findings = findings
        self.read_bytes = 0
        self.torn: list[Item] = []  # messages that changed while they were read
        self._fds: dict[bytes, int] = {}

    @contextmanager
    def directories(self) -> Iterator[None]:
        """Hold `new` and `cur` open: opening a message by its name alone is faster, and a folder that is renamed meanwhile does not matter."""
        try:
            for place, name in ((b"n", b"/new"), (b"c", b"/cur")):
                try:
                    self._fds[place] = os.open(self.scan.path + name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                except OSError:
                    continue  # no such directory: no message claims to be in it, or it vanishes as Gone
            yield
        finally:
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()

    def read(self, bases: Iterable[bytes], on_message: OnItem) -> list[bytes]:
        """Read these messages, each under whatever name it has by then. Returns those that are not in this folder any more.

        A message that is there, but whose name could not be caught in 200 rounds, becomes the finding `lost`.
        """
        todo = list(bases)
        absent: Counter[bytes] = Counter()
        vanished: list[bytes] = []
        for _ in range(_ROUNDS_AT_MOST):
            todo = self._round(todo, on_message)
            if not todo:
                return vanished
            self.scan.list_once()
            still: list[bytes] = []
            for base in todo:
                absent[base] = 0 if base in self.scan.last else absent[base] + 1
                gone = absent[base] and (self.scan.quiet or absent[base] >= _ABSENT_LISTINGS)
                (vanished if gone else still).append(base)
            todo = still
        self.findings += [
            Finding(FindingKind.LOST, f"{self.label}: {show(base)}", "its file name changed faster than it could be read") for base in todo
        ]
        return vanished

    def _round(self, todo: list[bytes], on_message: OnItem) -> list[bytes]:
        """One try for each; stops early when most names have become stale, since listing again is cheaper then."""
        failed: list[bytes] = []
        for tried, base in enumerate(todo):
            seen = self.scan.seen[base]
            try:
                item = self.message(base, seen)
            except Gone:
                failed.append(base)
                if len(failed) > _FAILURES and len(failed) * 2 > tried:
                    return failed + todo[tried + 1 :]
                continue
            if item is not None:
                on_message(item)
        return failed

    def message(self, base: bytes, seen: Seen) -> Item | None:
        """The message in a file. None when it cannot be read (a finding says so). Raises Gone."""
        fd = self._fds.get(seen.place)
        if fd is None:
            raise Gone
        try:
            return self._stable(base, seen, fd)
        except OtherKind:
            self._report(FindingKind.UNREADABLE, seen, "is not a regular file any more")
        except Unreadable as error:
            self._report(FindingKind.UNREADABLE, seen, str(error))
        return None

    def _stable(self, base: bytes, seen: Seen, dir_fd: int) -> Item:
        torn = False
        for attempt in range(3):
            fd, status = open_file(seen.name, dir_fd)
            try:
                whole = status.st_size <= _IN_MEMORY
                data = read_whole(fd, status.st_size) if whole else b""
                if whole and attempt < 2 and not unchanged(status, fd, len(data)):
                    continue
                size, places, headers, head = self._store(data) if whole else self._large(fd)
                if (not whole or attempt == 2) and not unchanged(status, fd, size):
                    if attempt < 2:
                        continue
                    self._report(FindingKind.CHANGED, seen, f"{size} bytes of it are in the snapshot")
                    torn = True
                xattrs = xattrs_of(fd)
            finally:
                os.close(fd)
            self.read_bytes += size
            mtime = divmod(status.st_mtime_ns, 1_000_000_000)
            item = Item(
                base,
                "f",
                owner_now(status.st_mode, status.st_uid, status.st_gid),
                mtime,
                size,
                places,
                headers=headers,
                inode=status.st_ino,
            )
            item.head, item.flag, item.xattrs = head, seen.flag, xattrs
            if torn:
                self.torn.append(item)
            return item
        raise AssertionError("unreachable")

    def _store(self, data: bytes) -> Stored:
        """The blobs of a message: header block, then the body in pieces of at most 4 MiB."""
        cut = header_length(data)
        add, unit, view = self.writer.add, self.unit, memoryview(data)
        places: list[Place] = [add(unit, "headers", view[:cut])] if cut else []
        places += [add(unit, "bodies", view[start : start + PIECE_LIMIT]) for start in range(cut, len(data), PIECE_LIMIT)]
        return len(data), places, (1 if cut else 0), (None if cut else self._head(data[:_HEAD_FROM]))

    def _large(self, fd: int) -> Stored:
        """A message too large to hold: the same blobs, read piece by piece."""
        places: list[Place] = []
        headers, head = 0, None
        size = 0
        rest = b""
        for data in chunks(fd):
            if not size:
                cut = header_length(data)
                if cut == len(data) and not data.endswith((b"\n\n", b"\n\r\n")):
                    cut = 0  # they do not end here, and a longer header block is not split off
                headers = 1 if cut else 0
                if cut:
                    places.append(self.writer.add(self.unit, "headers", data[:cut]))
                else:
                    head = self._head(data[:_HEAD_FROM])
                rest = data[cut:]
            else:
                rest += data
            size += len(data)
            while len(rest) >= PIECE_LIMIT:
                places.append(self.writer.add(self.unit, "bodies", rest[:PIECE_LIMIT]))
                rest = rest[PIECE_LIMIT:]
        if rest:
            places.append(self.writer.add(self.unit, "bodies", rest))
        return size, places, headers, head

    def _head(self, start: bytes) -> Place | None:
        """A readable copy of the headers of a packed message, so that listing does not need its body."""
        headers = readable_headers(start) if encoding(start) is not None else None
        return self.writer.add(self.unit, "headers", headers) if headers else None

    def _report(self, kind: FindingKind, seen: Seen, detail: str) -> None:
        self.findings.append(Finding(kind, f"{self.label}: {show(seen.name)}", detail))
