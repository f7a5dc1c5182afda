"""Reading objects out of archives: only the pieces that are needed, and those that were read lately not again.

A call of borg costs a third of a second before it reads anything, more through ssh. So neighbours are fetched together: all small objects of an
archive with the first of them, and the next pieces of an object that is read from front to back.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from mailbackup.errors import ObjectDamaged
from mailbackup.stores.borg.answers import ARCHIVE_MISSING
from mailbackup.stores.borg.catalogue import Archive
from mailbackup.stores.borg.command import Borg
from mailbackup.stores.borg.spool import PIECE, piece_path, pieces_of

KEPT = 64 << 20  # bytes of pieces kept in memory
SMALL = 64 << 10  # objects up to this size come with the first of them
_TOGETHER = 8  # pieces of one call: 32 MiB in memory
_AHEAD = 3  # pieces more for who reads from front to back
_SMALL_BYTES = 8 << 20
_SMALL_COUNT = 500  # of one call: each is an argument

_Part = tuple[str, int]  # key and number of a piece


class Gate:
    """How many calls of borg run at once: several that read, or one that writes. Else they would wait for each other by polling borg's lock."""

    def __init__(self, readers: int) -> None:
        self._readers = readers
        self._seats = threading.Semaphore(readers)
        self._writer = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Others may read meanwhile."""
        with self._seats:
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Nobody else does anything meanwhile."""
        with self._writer:
            taken = 0
            try:
                for _ in range(self._readers):
                    self._seats.acquire()
                    taken += 1
                yield
            finally:
                for _ in range(taken):
                    self._seats.release()


class PieceReader:
    """Reads objects of archives. Safe to use from several threads."""

    def __init__(self, borg: Borg, gate: Gate) -> None:
        self._borg = borg
        self._gate = gate
        self._kept: OrderedDict[tuple[str, str, int], bytes] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()
        self._guards = [threading.Lock() for _ in range(64)]

    def read(self, archive: Archive, key: str, offset: int, length: int) -> bytes:
        """Bytes of an object; the range is inside of it.

        Raises Answered when there is no such archive any more, ObjectDamaged when it does not hold what it should.
        """
        small = archive.small.get(key)
        if small is not None:
            return small[offset : offset + length]
        if length == 0:
            return b""
        numbers = range(offset // PIECE, (offset + length - 1) // PIECE + 1)
        with self._guards[hash(key) % len(self._guards)]:  # who comes second finds the pieces of the first
            parts = [self._some(archive, key, numbers[at : at + _TOGETHER]) for at in range(0, len(numbers), _TOGETHER)]
        start = offset - numbers[0] * PIECE
        return b"".join(parts)[start : start + length]

    def stream(self, archive: Archive, key: str) -> Iterator[bytes]:
        """The whole object in parts of up to 32 MiB, which are not kept. Raises as `read` does."""
        size = archive.objects[key]
        if key in archive.small or size <= SMALL:
            yield self.read(archive, key, 0, size)
            return
        sizes = pieces_of(size)
        for at in range(0, len(sizes), _TOGETHER):
            numbers = range(at, min(at + _TOGETHER, len(sizes)))
            yield b"".join(self._extract(archive, [(key, number) for number in numbers]))

    def _some(self, archive: Archive, key: str, numbers: range) -> bytes:
        """The pieces of these numbers, of an object, one after the other."""
        found = {number: self._look(archive, key, number) for number in numbers}
        lacking = [number for number in numbers if found[number] is None]
        if lacking:
            wanted = [(key, number) for number in range(lacking[0], lacking[-1] + 1)]
            for (got, number), data in self._fetch(archive, wanted).items():
                if got == key:
                    found[number] = data
        return b"".join(found[number] or b"" for number in numbers)

    def _fetch(self, archive: Archive, wanted: list[_Part]) -> dict[_Part, bytes]:
        """Pieces, and neighbours that will be asked for next; these too are kept."""
        more = wanted + self._neighbours(archive, *wanted[0], wanted[-1][1])
        try:
            got = dict(zip(more, self._extract(archive, more), strict=True))
        except ObjectDamaged:
            if more == wanted:
                raise
            got = dict(zip(wanted, self._extract(archive, wanted), strict=True))  # perhaps only a neighbour is damaged
        for (key, number), data in got.items():
            self._keep(archive, key, number, data)
        return got

    def _neighbours(self, archive: Archive, key: str, first: int, last: int) -> list[_Part]:
        size = archive.objects[key]
        if size > SMALL:
            end = min(last + 1 + _AHEAD, len(pieces_of(size)))
            sequential = first > 0 and self._look(archive, key, first - 1) is not None
            return [(key, number) for number in range(last + 1, end)] if sequential else []
        found: list[_Part] = []
        total = 0
        for other, bytes_ in _from(archive.objects, key):
            if bytes_ <= SMALL and other not in archive.small:
                total += bytes_
                if total > _SMALL_BYTES or len(found) == _SMALL_COUNT:
                    break
                found.append((other, 0))
        return found

    def _extract(self, archive: Archive, parts: list[_Part]) -> list[bytes]:
        """Pieces in the order of `parts`, which is the order in which they lie in the archive."""
        sizes = [pieces_of(archive.objects[key])[number] for key, number in parts]
        paths = tuple("pf:" + piece_path(*part) for part in parts)
        with self._gate.reading():
            data = self._borg.run("extract", "--stdout", archive=archive.name, paths=paths, expected=(ARCHIVE_MISSING,), limit=sum(sizes))
        if len(data) != sum(sizes):
            raise ObjectDamaged(f"archive {archive.name} does not hold all of {parts[0][0]}")
        found = []
        start = 0
        for size in sizes:
            found.append(data[start : start + size])
            start += size
        return found

    def _look(self, archive: Archive, key: str, number: int) -> bytes | None:
        with self._lock:
            data = self._kept.get((archive.id, key, number))
            if data is not None:
                self._kept.move_to_end((archive.id, key, number))
            return data

    def _keep(self, archive: Archive, key: str, number: int, data: bytes) -> None:
        with self._lock:
            self._size += len(data) - len(self._kept.pop((archive.id, key, number), b""))
            self._kept[archive.id, key, number] = data
            while self._size > KEPT:
                _, dropped = self._kept.popitem(last=False)
                self._size -= len(dropped)


def _from(objects: dict[str, int], key: str) -> Iterator[tuple[str, int]]:
    """The objects that come after `key` in an archive."""
    rest = iter(objects.items())
    for found, _ in rest:
        if found == key:
            break
    yield from rest
