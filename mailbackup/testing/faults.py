"""Stores that misbehave in a named way, and damage done to a directory: what proves that a check can fail.

Two kinds of wrapper stand around a healthy store: those that *alter* what is read (`FlipBit`, `Truncate`, `Grow`, `Vanish`, `Swap`,
`Stale`) and those that *refuse* (`FailOnce`, `Full`, `ReadOnly`). `pattern` is an object key or a pattern of `fnmatch`, in which `*` also
matches slashes: "packs/*".
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase

from mailbackup.errors import NoSpace, StoreRefused
from mailbackup.model.ids import ObjectKey, is_object_key
from mailbackup.stores.base import ObjectStat, ObjectWriter, Store
from mailbackup.stores.checks import checked_range, missing, next_component, too_long, too_short
from mailbackup.testing.wrapper import Wrapper, WriterWrapper

WHOLE = 1 << 40  # no object of a test is longer


class Altered(Wrapper):
    """A store in which some objects read differently, the same through every verb."""

    def __init__(self, inner: Store, pattern: str) -> None:
        super().__init__(inner)
        self.pattern = pattern

    def alter(self, key: str, data: bytes) -> bytes | None:
        """What is seen instead of `data`; None for an object that is not there."""
        raise NotImplementedError

    def get(self, key: ObjectKey, limit: int) -> bytes:
        """See `Store.get`."""
        data = self._seen(key)
        if len(data) > limit:
            raise too_long(key, self.name, limit)
        return data

    def get_range(self, key: ObjectKey, offset: int, length: int) -> bytes:
        """See `Store.get_range`."""
        checked_range(offset, length)
        data = self._seen(key)
        if offset + length > len(data):
            raise too_short(key, self.name, offset, length)
        return data[offset : offset + length]

    def stream(self, key: ObjectKey, chunk: int = 1 << 20) -> Iterator[bytes]:
        """See `Store.stream`."""
        data = self._seen(key)
        for start in range(0, len(data), chunk):
            yield data[start : start + chunk]

    def stat(self, key: ObjectKey) -> ObjectStat:
        """See `Store.stat`."""
        return ObjectStat(len(self._seen(key)), self.inner.stat(key).time)

    def list(self, prefix: str = "") -> Iterator[tuple[str, ObjectStat]]:
        """See `Store.list`."""
        for key, found in self.inner.list(prefix):
            if not self._concerns(key):
                yield key, found
            elif (data := self.alter(key, self._real(key))) is not None:
                yield key, ObjectStat(len(data), found.time)

    def prefixes(self, prefix: str) -> tuple[str, ...]:
        """See `Store.prefixes`."""
        found = {next_component(key, prefix) for key, _ in self.list(prefix)}
        return tuple(sorted(component for component in found if component is not None))

    def _real(self, key: str) -> bytes:
        return self.inner.get(ObjectKey(key), WHOLE)

    def _seen(self, key: ObjectKey) -> bytes:
        data: bytes | None = self._real(key)
        if data is not None and self._concerns(key):
            data = self.alter(key, data)
        if data is None:
            raise missing(key, self.name)
        return data

    def _concerns(self, key: str) -> bool:
        return fnmatchcase(key, self.pattern) and is_object_key(key)


class FlipBit(Altered):
    """One bit is wrong: bit `bit` (0 = lowest) of byte `offset`, counted from the end when negative. Shorter objects are left alone."""

    def __init__(self, inner: Store, pattern: str, offset: int, bit: int = 0) -> None:
        super().__init__(inner, pattern)
        self.offset, self.bit = offset, bit

    def alter(self, key: str, data: bytes) -> bytes:
        """`data` with the bit flipped."""
        if not -len(data) <= self.offset < len(data):
            return data
        changed = bytearray(data)
        changed[self.offset] ^= 1 << self.bit
        return bytes(changed)


class Truncate(Altered):
    """The objects end after `size` bytes; a negative size cuts that many off."""

    def __init__(self, inner: Store, pattern: str, size: int) -> None:
        super().__init__(inner, pattern)
        self.size = size

    def alter(self, key: str, data: bytes) -> bytes:
        """The beginning of `data`."""
        return data[: self.size]


class Grow(Altered):
    """Bytes were added at the end of the objects."""

    def __init__(self, inner: Store, pattern: str, extra: bytes = b"\0") -> None:
        super().__init__(inner, pattern)
        self.extra = extra

    def alter(self, key: str, data: bytes) -> bytes:
        """`data` and what was added."""
        return data + self.extra


class Vanish(Altered):
    """The objects are gone, and not listed either."""

    def alter(self, key: str, data: bytes) -> None:
        """Nothing."""


class Swap(Altered):
    """Two objects hold each other's bytes."""

    def __init__(self, inner: Store, first: str, second: str) -> None:
        super().__init__(inner, "*")
        self._other = {first: second, second: first}

    def alter(self, key: str, data: bytes) -> bytes:
        """The bytes of the other object."""
        return self._real(self._other[key]) if key in self._other else data


class Stale(Altered):
    """The store still shows older bytes of the objects; None: it does not show them yet."""

    def __init__(self, inner: Store, pattern: str, old: bytes | None) -> None:
        super().__init__(inner, pattern)
        self.old = old

    def alter(self, key: str, data: bytes) -> bytes | None:
        """The older bytes."""
        return self.old


class FailOnce(Wrapper):
    """`error` is raised by the first call of `verb` for an object that fits `pattern`, and never again.

    Verbs: those of Store, and `write` and `commit` of its writers. With `after` the call takes effect first: a lost answer. (`list` and
    `prefixes` are matched by their prefix; a stream or listing fails before its first item.)
    """

    def __init__(self, inner: Store, verb: str, pattern: str, error: Exception, *, after: bool = False) -> None:
        super().__init__(inner)
        self.verb, self.pattern, self.error, self.after = verb, pattern, error, after
        self.failed = False
        self._lock = threading.Lock()

    @contextmanager
    def around(self, verb: str, key: str) -> Iterator[None]:
        """Fails before or after the body, once."""
        with self._lock:
            fails = not self.failed and verb == self.verb and fnmatchcase(key, self.pattern)
            self.failed = self.failed or fails
        if fails and not self.after:
            raise self.error
        yield
        if fails:
            raise self.error


class Full(Wrapper):
    """The file system is full once `after_bytes` were written through this wrapper: NoSpace, and nothing of that object is kept."""

    def __init__(self, inner: Store, after_bytes: int) -> None:
        super().__init__(inner)
        self._left = after_bytes
        self._lock = threading.Lock()

    def put(self, key: ObjectKey, data: bytes) -> None:
        """See `Store.put`."""
        self._take(key, len(data))
        self.inner.put(key, data)

    def create(self, key: ObjectKey) -> AbstractContextManager[ObjectWriter]:
        """See `Store.create`."""
        return self._filling(key, self.inner.create(key))

    @contextmanager
    def _filling(self, key: ObjectKey, inside: AbstractContextManager[ObjectWriter]) -> Iterator[ObjectWriter]:
        with inside as writer:
            yield _FullWriter(writer, lambda size: self._take(key, size))

    def _take(self, key: str, size: int) -> None:
        with self._lock:
            if size > self._left:
                raise NoSpace(f"{key} in store {self.name}: no space left on device")
            self._left -= size


class _FullWriter(WriterWrapper):
    def __init__(self, inner: ObjectWriter, take: Callable[[int], None]) -> None:
        super().__init__(inner)
        self._take = take

    def write(self, data: bytes | memoryview) -> None:
        """See `ObjectWriter.write`."""
        try:
            self._take(memoryview(data).nbytes)
        except NoSpace:
            self.inner.abort()
            raise
        self.inner.write(data)


class ReadOnly(Wrapper):
    """Nothing can be written or removed: StoreRefused."""

    def put(self, key: ObjectKey, data: bytes) -> None:
        """Refused."""
        raise self._refusal("write", key)

    def create(self, key: ObjectKey) -> AbstractContextManager[ObjectWriter]:
        """Refused."""
        raise self._refusal("write", key)

    def delete(self, key: ObjectKey) -> None:
        """Refused."""
        raise self._refusal("delete", key)

    def _refusal(self, verb: str, key: str) -> StoreRefused:
        return StoreRefused(f"cannot {verb} {key} in store {self.name}: read-only file system")


# ---------------------------------------------------------------- damage to a directory

# Sizes and times stay as they were wherever that is possible: rotten disks do not touch them either.


def flip_bit(path: str, offset: int, bit: int = 0) -> None:
    """Flip one bit of byte `offset` (from the end when negative) of a file; its times stay."""
    with _same_times(path), open(path, "r+b") as file:
        file.seek(offset, os.SEEK_END if offset < 0 else os.SEEK_SET)
        place = file.tell()
        value = file.read(1)[0]
        file.seek(place)
        file.write(bytes([value ^ (1 << bit)]))


def truncate(path: str, size: int) -> None:
    """Cut a file after `size` bytes (a negative size cuts that many off); its times stay."""
    with _same_times(path):
        os.truncate(path, size if size >= 0 else os.path.getsize(path) + size)


def grow(path: str, extra: bytes = b"\0") -> None:
    """Add bytes at the end of a file; its times stay."""
    with _same_times(path), open(path, "ab") as file:
        file.write(extra)


def swap(first: str, second: str) -> None:
    """Exchange the names of two files."""
    spare = first + ".swap"
    os.rename(first, spare)
    os.rename(second, first)
    os.rename(spare, second)


def remove(path: str) -> None:
    """Remove a file."""
    os.unlink(path)


@contextmanager
def _same_times(path: str) -> Iterator[None]:
    before = os.stat(path)
    yield
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
