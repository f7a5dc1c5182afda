"""Counting what goes to and comes from a store."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from mailbackup.model.ids import ObjectKey
from mailbackup.stores.base import ObjectStat, ObjectWriter, Shadow, Store, StoreTraits


class CountedStore:
    """A store that counts requests and the bytes that went both ways. Otherwise as the inner one."""

    def __init__(self, inner: Store) -> None:
        self.name = inner.name
        self.requests = 0
        self.bytes_read = 0
        self.bytes_written = 0
        self._inner = inner
        self._lock = threading.Lock()

    @property
    def traits(self) -> StoreTraits:
        """As the inner one's; some are found out when they matter."""
        return self._inner.traits

    def put(self, key: ObjectKey, data: bytes) -> None:
        """One request and the bytes of the object."""
        self._count(written=len(data))
        self._inner.put(key, data)

    def create(self, key: ObjectKey) -> AbstractContextManager[ObjectWriter]:
        """One request and the bytes that are written."""
        self._count()
        return self._writing(self._inner.create(key))

    @contextmanager
    def _writing(self, inside: AbstractContextManager[ObjectWriter]) -> Iterator[ObjectWriter]:
        with inside as writer:
            yield _Counting(writer, self)

    def wrote(self, size: int) -> None:
        """So many bytes went to the store."""
        self._count(requests=0, written=size)

    def get(self, key: ObjectKey, limit: int) -> bytes:
        """One request and the bytes of the object."""
        data = self._inner.get(key, limit)
        self._count(len(data))
        return data

    def get_range(self, key: ObjectKey, offset: int, length: int) -> bytes:
        """One request and the bytes asked for."""
        data = self._inner.get_range(key, offset, length)
        self._count(len(data))
        return data

    def stream(self, key: ObjectKey, chunk: int = 1 << 20) -> Iterator[bytes]:
        """One request and the bytes of the object."""
        self._count()
        for data in self._inner.stream(key, chunk):
            with self._lock:
                self.bytes_read += len(data)
            yield data

    def stat(self, key: ObjectKey) -> ObjectStat:
        """One request."""
        self._count()
        return self._inner.stat(key)

    def list(self, prefix: str = "") -> Iterator[tuple[str, ObjectStat]]:
        """One request, however many pages it takes."""
        self._count()
        return self._inner.list(prefix)

    def prefixes(self, prefix: str) -> tuple[str, ...]:
        """One request."""
        self._count()
        return self._inner.prefixes(prefix)

    def flush(self) -> None:
        """No request of its own: it was counted when it was put."""
        self._inner.flush()

    def now(self) -> float:
        """As the inner one's."""
        return self._inner.now()

    def uncover(self, key: ObjectKey) -> bool:
        """One request."""
        self._count()
        return self._inner.uncover(key)

    def shadows(self, prefix: str = "") -> Iterator[tuple[str, Shadow]]:
        """One request."""
        self._count()
        yield from self._inner.shadows(prefix)

    def locked_until(self, key: ObjectKey) -> float | None:
        """One request."""
        self._count()
        return self._inner.locked_until(key)

    def lock_until(self, key: ObjectKey, time: float) -> None:
        """One request."""
        self._count()
        self._inner.lock_until(key, time)

    def delete(self, key: ObjectKey) -> None:
        """One request."""
        self._count()
        self._inner.delete(key)

    def close(self) -> None:
        """Close the inner store."""
        self._inner.close()

    def _count(self, read: int = 0, *, requests: int = 1, written: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.bytes_read += read
            self.bytes_written += written


class _Counting:
    """A writer whose bytes are counted when they are committed."""

    def __init__(self, inner: ObjectWriter, store: CountedStore) -> None:
        self._inner = inner
        self._store = store
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        self._inner.write(data)
        self._size += len(data)

    def commit(self) -> None:
        self._inner.commit()
        self._store.wrote(self._size)

    def abort(self) -> None:
        self._inner.abort()
