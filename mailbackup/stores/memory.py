"""A store in memory, for tests: the same contract in microseconds, gone with the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from mailbackup.model.ids import ObjectKey
from mailbackup.stores.base import ObjectStat, ObjectWriter, Shadow, StoreTraits
from mailbackup.stores.checks import checked_key, checked_range, key_exists, missing, next_component, too_long, too_short


class MemoryStore:
    """A store whose objects are a dict. `durable_after_put` holds as long as the process does."""

    traits = StoreTraits(range_reads=True, create_only=True, durable_after_put=True)

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self._objects: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()

    def put(self, key: ObjectKey, data: bytes) -> None:
        """See `Store.put`."""
        checked_key(key)
        with self._lock:
            if key in self._objects:
                raise key_exists(key, self.name)
            self._objects[key] = (bytes(data), time.time())

    def create(self, key: ObjectKey) -> AbstractContextManager[ObjectWriter]:
        """See `Store.create`."""
        checked_key(key)
        return self._writing(key)

    @contextmanager
    def _writing(self, key: ObjectKey) -> Iterator[ObjectWriter]:
        writer = _Writer(self, key)
        try:
            yield writer
        finally:
            writer.abort()

    def get(self, key: ObjectKey, limit: int) -> bytes:
        """See `Store.get`."""
        data, _ = self._object(key)
        if len(data) > limit:
            raise too_long(key, self.name, limit)
        return data

    def get_range(self, key: ObjectKey, offset: int, length: int) -> bytes:
        """See `Store.get_range`."""
        checked_range(offset, length)
        data, _ = self._object(key)
        if offset + length > len(data):
            raise too_short(key, self.name, offset, length)
        return data[offset : offset + length]

    def stream(self, key: ObjectKey, chunk: int = 1 << 20) -> Iterator[bytes]:
        """See `Store.stream`."""
        data, _ = self._object(key)
        for start in range(0, len(data), chunk):
            yield data[start : start + chunk]

    def stat(self, key: ObjectKey) -> ObjectStat:
        """See `Store.stat`."""
        data, when = self._object(key)
        return ObjectStat(len(data), when)

    def list(self, prefix: str = "") -> Iterator[tuple[str, ObjectStat]]:
        """See `Store.list`: what is there when the listing begins."""
        with self._lock:
            found = sorted((key, ObjectStat(len(data), when)) for key, (data, when) in self._objects.items() if key.startswith(prefix))
        yield from found

    def prefixes(self, prefix: str) -> tuple[str, ...]:
        """See `Store.prefixes`."""
        with self._lock:
            found = {next_component(key, prefix) for key in self._objects}
        return tuple(sorted(component for component in found if component is not None))

    def flush(self) -> None:
        """See `Store.flush`: every put was durable."""

    def now(self) -> float:
        """The clock of this host."""
        return time.time()

    def uncover(self, key: ObjectKey) -> bool:
        """See `Store.uncover`: there are no versions."""
        return False

    def shadows(self, prefix: str = "") -> Iterator[tuple[str, Shadow]]:
        """See `Store.shadows`: there are no versions."""
        return iter(())

    def locked_until(self, key: ObjectKey) -> float | None:
        """See `Store.locked_until`: there are no locks."""
        return None

    def lock_until(self, key: ObjectKey, time: float) -> None:
        """See `Store.lock_until`: there are no locks."""

    def delete(self, key: ObjectKey) -> None:
        """See `Store.delete`."""
        checked_key(key)
        with self._lock:
            self._objects.pop(key, None)

    def close(self) -> None:
        """Nothing to release; the objects stay."""

    def plant(self, key: str, data: bytes, when: float | None = None) -> None:
        """Set an object against all rules (any key, over an existing one, with any time): what others with access to a store can do."""
        with self._lock:
            self._objects[key] = (bytes(data), time.time() if when is None else when)

    def _object(self, key: ObjectKey) -> tuple[bytes, float]:
        checked_key(key)
        with self._lock:
            found = self._objects.get(key)
        if found is None:
            raise missing(key, self.name)
        return found


class _Writer:
    """Collects the bytes of one object. For one thread."""

    def __init__(self, store: MemoryStore, key: ObjectKey) -> None:
        self._store = store
        self._key = key
        self._data: bytearray | None = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        """See `ObjectWriter.write`."""
        self._open().extend(data)

    def commit(self) -> None:
        """See `ObjectWriter.commit`."""
        data = bytes(self._open())
        self._data = None
        self._store.put(self._key, data)

    def abort(self) -> None:
        """See `ObjectWriter.abort`."""
        self._data = None

    def _open(self) -> bytearray:
        if self._data is None:
            raise ValueError(f"the writer of {self._key} was committed or aborted before")
        return self._data
