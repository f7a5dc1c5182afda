"""What was put and is not in the repository yet: files on this host, in the form in which borg will read them.

new/7/000000, 000001 …     an object that is being written
waiting/KEY/000000 …       an object that waits; borg runs in `waiting`, so a file's path there is its path in the archive
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mailbackup.errors import MailbackupError
from mailbackup.host import remove_tree, translated, write_all

PIECE = 4 << 20  # bytes of a file in the archive: what a range has to fetch at least, and borg's chunk


@dataclass(frozen=True, slots=True)
class Waiting:
    """An object that waits: size in bytes, and when it was put (seconds since 1970)."""

    size: int
    time: float


def pieces_of(size: int) -> list[int]:
    """The sizes of the pieces of an object; an empty object is one empty piece."""
    return [min(PIECE, size - start) for start in range(0, size, PIECE)] or [0]


def piece_path(key: str, number: int) -> str:
    """The path of a piece, in the archive and in the spool."""
    return f"{key}/{number:06d}"


class Spool:
    """The objects below `folder` that wait, in the order in which they were put. The caller locks."""

    def __init__(self, folder: str) -> None:
        self.folder = os.path.join(folder, "waiting")
        self.size = 0
        self.waiting: dict[str, Waiting] = {}
        self._new = os.path.join(folder, "new")
        self._numbers = itertools.count()
        with translated(f"make the spool {folder}"):
            os.makedirs(self.folder, mode=0o700)
            os.makedirs(self._new, mode=0o700)

    def start(self) -> PieceWriter:
        """A place for the bytes of one object. Safe to call from several threads."""
        return PieceWriter(os.path.join(self._new, str(next(self._numbers))))

    def add(self, key: str, written: PieceWriter) -> None:
        """The object that was written waits from now on."""
        target = os.path.join(self.folder, key)
        with translated(f"spool {key}"):
            remove_tree(target)
            os.makedirs(os.path.dirname(target), mode=0o700, exist_ok=True)
            os.rename(written.folder, target)
        self.waiting[key] = Waiting(written.size, time.time())
        self.size += written.size

    def remove(self, key: str) -> None:
        """Drop an object; harmless when it does not wait."""
        found = self.waiting.pop(key, None)
        if found is not None:
            self.size -= found.size
            with contextlib.suppress(OSError):  # the whole spool goes at the end
                shutil.rmtree(os.path.join(self.folder, key))

    def read(self, key: str, offset: int, length: int) -> bytes | None:
        """Bytes of an object that waits; None when it has left the spool meanwhile. The range is inside the object. Needs no lock."""
        parts = []
        while length:
            number, start = divmod(offset, PIECE)
            wanted = min(length, PIECE - start)
            with translated(f"read the spool of {key}"):
                try:
                    with open(os.path.join(self.folder, piece_path(key, number)), "rb") as file:
                        parts.append(os.pread(file.fileno(), wanted, start))
                except FileNotFoundError:
                    return None
            offset, length = offset + wanted, length - wanted
        return b"".join(parts)


class PieceWriter:
    """Writes one object into pieces. For one thread."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.size = 0
        self._fd = -1
        with translated(f"write the spool {folder}"):
            os.mkdir(folder, 0o700)
            self._open(0)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes. Raises NoSpace and the like."""
        rest = memoryview(data).cast("B")
        with translated(f"write the spool {self.folder}"):
            while rest:
                room = PIECE - self.size % PIECE
                if self.size and room == PIECE:
                    self._open(self.size // PIECE)
                write_all(self._fd, rest[:room])
                self.size += len(rest[:room])
                rest = rest[room:]

    def close(self) -> None:
        """No more bytes. Not flushed to disk: a power cut loses what waits, and whoever put it is told of nothing that was not flushed."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with translated(f"write the spool {self.folder}"):
                os.close(fd)

    def drop(self) -> None:
        """Remove what was written. Never raises."""
        with contextlib.suppress(OSError, MailbackupError):
            self.close()
            shutil.rmtree(self.folder)

    def _open(self, number: int) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = os.open(os.path.join(self.folder, f"{number:06d}"), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def paths_of(keys: Iterable[tuple[str, int]]) -> Iterator[str]:
    """The paths of the pieces of objects (key, size), in order."""
    for key, size in keys:
        for number in range(len(pieces_of(size))):
            yield piece_path(key, number)
