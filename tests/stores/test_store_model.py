"""Whatever is done to a store in whatever order, it reads like a dict that is written once."""

from __future__ import annotations

import contextlib
import tempfile

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mailbackup.errors import KeyExists, ObjectDamaged, ObjectMissing
from mailbackup.model.ids import ObjectKey, PackId, entry_key, is_object_key, pack_key
from mailbackup.stores.base import ObjectWriter, Store
from mailbackup.stores.checks import next_component
from mailbackup.stores.local import LocalStore
from mailbackup.stores.memory import MemoryStore

POOL = [
    ObjectKey("vault.json"),
    ObjectKey("acts/0000000001.json"),
    *map(entry_key, (1, 255, 256, 512)),
    *(pack_key(PackId(f"{n:02x}" + "0" * 30)) for n in (0, 1, 254)),
]
KEYS = st.sampled_from(POOL)
PREFIXES = st.sampled_from(["", "l", "ledger/", "ledger/0000000000/", "ledger/0000000001/0", "packs/", "packs/f", "vault.json", "z", "../"])
DATA = st.binary(max_size=40)


class StoreMachine(RuleBasedStateMachine):
    """A store beside a dict."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.model: dict[ObjectKey, bytes] = {}
        self.writing: tuple[ObjectKey, ObjectWriter, bytes] | None = None
        self.cleanup = contextlib.ExitStack()

    def open(self) -> Store:
        raise NotImplementedError

    @initialize()
    def start(self) -> None:
        self.store = self.open()

    def teardown(self) -> None:
        self.cleanup.close()

    @rule(key=KEYS, data=DATA)
    def put(self, key: ObjectKey, data: bytes) -> None:
        if key in self.model:
            with pytest.raises(KeyExists):
                self.store.put(key, data)
        else:
            self.store.put(key, data)
            self.model[key] = data

    @precondition(lambda self: self.writing is None)
    @rule(key=KEYS)
    def create(self, key: ObjectKey) -> None:
        self.writing = (key, self.cleanup.enter_context(self.store.create(key)), b"")

    @precondition(lambda self: self.writing is not None)
    @rule(data=DATA)
    def write(self, data: bytes) -> None:
        assert self.writing is not None
        key, writer, before = self.writing
        writer.write(data)
        self.writing = (key, writer, before + data)

    @precondition(lambda self: self.writing is not None)
    @rule()
    def commit(self) -> None:
        assert self.writing is not None
        (key, writer, data), self.writing = self.writing, None
        if key in self.model:
            with pytest.raises(KeyExists):
                writer.commit()
        else:
            writer.commit()
            self.model[key] = data

    @precondition(lambda self: self.writing is not None)
    @rule()
    def abort(self) -> None:
        assert self.writing is not None
        self.writing[1].abort()
        self.writing = None

    @rule(key=KEYS)
    def delete(self, key: ObjectKey) -> None:
        self.store.delete(key)
        self.model.pop(key, None)

    @rule(key=KEYS, limit=st.integers(0, 80))
    def get(self, key: ObjectKey, limit: int) -> None:
        data = self.model.get(key)
        if data is None or len(data) > limit:
            with pytest.raises(ObjectMissing if data is None else ObjectDamaged):
                self.store.get(key, limit)
        else:
            assert self.store.get(key, limit) == data

    @rule(key=KEYS, offset=st.integers(0, 50), length=st.integers(0, 50))
    def get_range(self, key: ObjectKey, offset: int, length: int) -> None:
        data = self.model.get(key)
        if data is None or offset + length > len(data):
            with pytest.raises(ObjectMissing if data is None else ObjectDamaged):
                self.store.get_range(key, offset, length)
        else:
            assert self.store.get_range(key, offset, length) == data[offset : offset + length]

    @rule(key=KEYS, chunk=st.integers(1, 50))
    def stream(self, key: ObjectKey, chunk: int) -> None:
        if key in self.model:
            assert b"".join(self.store.stream(key, chunk)) == self.model[key]
            assert self.store.stat(key).size == len(self.model[key])
        else:
            with pytest.raises(ObjectMissing):
                next(self.store.stream(key, chunk))

    @rule(prefix=PREFIXES)
    def below(self, prefix: str) -> None:
        expected = sorted(key for key in self.model if key.startswith(prefix))
        assert [key for key, _ in self.store.list(prefix)] == expected
        components = {next_component(key, prefix) for key in expected} - {None}
        assert self.store.prefixes(prefix) == tuple(sorted(component for component in components if component))

    @invariant()
    def everything_is_listed(self) -> None:
        if hasattr(self, "store"):
            assert [(key, stat.size) for key, stat in self.store.list()] == sorted((key, len(data)) for key, data in self.model.items())


class MemoryMachine(StoreMachine):
    def open(self) -> Store:
        return MemoryStore()


class LocalMachine(StoreMachine):
    root: str

    def open(self) -> Store:
        self.root = self.cleanup.enter_context(tempfile.TemporaryDirectory())
        LocalStore.create_root(self.root)
        return self.cleanup.enter_context(contextlib.closing(LocalStore(self.root, "local")))

    @rule()
    def open_again(self) -> None:
        """Another process would see the same."""
        self.store = self.cleanup.enter_context(contextlib.closing(LocalStore(self.root, "local")))


assert all(map(is_object_key, POOL))
TestMemoryModel = MemoryMachine.TestCase
TestMemoryModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLocalModel = LocalMachine.TestCase
TestLocalModel.settings = settings(max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
