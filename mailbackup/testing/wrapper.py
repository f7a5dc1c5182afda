"""A store around a store that passes everything on. Misbehaving stores override `around` or single verbs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from mailbackup.model.ids import ObjectKey
from mailbackup.stores.base import ObjectStat, ObjectWriter, Shadow, Store


class Wrapper:
    """Passes all verbs to `inner`, each within `around(verb, key)`."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.name = inner.name
        self.traits = inner.traits

    def around(self, verb: str, key: str) -> AbstractContextManager[None]:
        """Entered before, left after each call; of a stream or listing: before and after its first item is fetched."""
        return nullcontext()

    def put(self, key: ObjectKey, data: bytes) -> None:
        """See `Store.put`."""
        with self.around("put", key):
            self.inner.put(key, data)

    def create(self, key: ObjectKey) -> AbstractContextManager[ObjectWriter]:
        """See `Store.create`."""
        with self.around("create", key):
            return self._writing(key, self.inner.create(key))

    @contextmanager
    def _writing(self, key: ObjectKey, inside: AbstractContextManager[ObjectWriter]) -> Iterator[ObjectWriter]:
        with inside as writer:
            yield _Around(writer, self, key)

    def get(self, key: ObjectKey, limit: int) -> bytes:
        """See `Store.get`."""
        with self.around("get", key):
            return self.inner.get(key, limit)

    def get_range(self, key: ObjectKey, offset: int, length: int) -> bytes:
        """See `Store.get_range`."""
        with self.around("get_range", key):
            return self.inner.get_range(key, offset, length)

    def stream(self, key: ObjectKey, chunk: int = 1 << 20) -> Iterator[bytes]:
        """See `Store.stream`."""
        pieces = self.inner.stream(key, chunk)
        with self.around("stream", key):
            first = next(pieces, None)
        if first is not None:
            yield first
            yield from pieces

    def stat(self, key: ObjectKey) -> ObjectStat:
        """See `Store.stat`."""
        with self.around("stat", key):
            return self.inner.stat(key)

    def list(self, prefix: str = "") -> Iterator[tuple[str, ObjectStat]]:
        """See `Store.list`."""
        objects = self.inner.list(prefix)
        with self.around("list", prefix):
            first = next(objects, None)
        if first is not None:
            yield first
            yield from objects

    def prefixes(self, prefix: str) -> tuple[str, ...]:
        """See `Store.prefixes`."""
        with self.around("prefixes", prefix):
            return self.inner.prefixes(prefix)

    def flush(self) -> None:
        """See `Store.flush`."""
        with self.around("flush", ""):
            self.inner.flush()

    def now(self) -> float:
        """See `Store.now`."""
        return self.inner.now()

    def uncover(self, key: ObjectKey) -> bool:
        """See `Store.uncover`."""
        with self.around("uncover", key):
            return self.inner.uncover(key)

    def shadows(self, prefix: str = "") -> Iterator[tuple[str, Shadow]]:
        """See `Store.shadows`."""
        with self.around("shadows", prefix):
            found = list(self.inner.shadows(prefix))
        yield from found

    def locked_until(self, key: ObjectKey) -> float | None:
        """See `Store.locked_until`."""
        with self.around("locked_until", key):
            return self.inner.locked_until(key)

    def lock_until(self, key: ObjectKey, time: float) -> None:
        """See `Store.lock_until`."""
        with self.around("lock_until", key):
            self.inner.lock_until(key, time)

    def delete(self, key: ObjectKey) -> None:
        """See `Store.delete`."""
        with self.around("delete", key):
            self.inner.delete(key)

    def close(self) -> None:
        """See `Store.close`."""
        self.inner.close()


class WriterWrapper:
    """Passes all verbs of a writer to `inner`."""

    def __init__(self, inner: ObjectWriter) -> None:
        self.inner = inner

    def write(self, data: bytes | memoryview) -> None:
        """See `ObjectWriter.write`."""
        self.inner.write(data)

    def commit(self) -> None:
        """See `ObjectWriter.commit`."""
        self.inner.commit()

    def abort(self) -> None:
        """See `ObjectWriter.abort`."""
        self.inner.abort()


class _Around(WriterWrapper):
    """A writer whose `write` and `commit` go through `around` of its store."""

    def __init__(self, inner: ObjectWriter, store: Wrapper, key: str) -> None:
        super().__init__(inner)
        self._store = store
        self._key = key

    def write(self, data: bytes | memoryview) -> None:
        with self._store.around("write", self._key):
            self.inner.write(data)

    def commit(self) -> None:
        with self._store.around("commit", self._key):
            self.inner.commit()
