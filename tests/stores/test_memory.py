"""The memory store keeps the contract; so does every wrapper that alters nothing."""

from __future__ import annotations

from mailbackup.errors import StoreUnavailable
from mailbackup.stores.base import Store
from mailbackup.stores.memory import MemoryStore
from mailbackup.testing.crashpoints import CrashingStore, CrashPoint
from mailbackup.testing.faults import FailOnce, Full, Vanish
from mailbackup.testing.store_contract import StoreContract


class TestMemoryStore(StoreContract):
    def make_store(self) -> Store:
        return MemoryStore()

    def plant(self, store: Store, key: str, data: bytes) -> None:
        assert isinstance(store, MemoryStore)
        store.plant(key, data)


class TestWrappersThatAlterNothing(StoreContract):
    """Else a test with a fault would test the wrapper."""

    def make_store(self) -> Store:
        idle = FailOnce(Vanish(MemoryStore(), "no such key"), "put", "no such key", StoreUnavailable("never"))
        return CrashingStore(Full(idle, 1 << 40), CrashPoint(None))

    def plant(self, store: Store, key: str, data: bytes) -> None:
        while not isinstance(store, MemoryStore):
            store = store.inner  # type: ignore[attr-defined]
        store.plant(key, data)
