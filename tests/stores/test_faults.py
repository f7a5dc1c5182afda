"""The faults do what their names say: a test that meets a fault which does nothing would prove nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import pytest

from mailbackup.errors import KeyExists, NoSpace, ObjectDamaged, ObjectMissing, StoreRefused, StoreUnavailable
from mailbackup.model.ids import entry_key
from mailbackup.stores.base import Store
from mailbackup.stores.local import LocalStore
from mailbackup.stores.memory import MemoryStore
from mailbackup.testing import faults
from mailbackup.testing.crashpoints import Crash, CrashingStore, CrashPoint, count_operations, crash_points
from mailbackup.testing.faults import FailOnce, FlipBit, Full, Grow, ReadOnly, Stale, Swap, Truncate, Vanish
from mailbackup.testing.store_contract import KEY, LIMIT, OTHER, READS, USES, VAULT, keys

DATA = b"0123456789"


@pytest.fixture
def inner() -> MemoryStore:
    store = MemoryStore()
    store.put(KEY, DATA)
    store.put(OTHER, b"neighbour")
    return store


ALTERED: list[tuple[Callable[[Store], Store], bytes]] = [
    (lambda store: FlipBit(store, KEY, 0), b"1123456789"),
    (lambda store: FlipBit(store, "packs/ab/*", -1, 7), b"012345678\xb9"),
    (lambda store: FlipBit(store, KEY, 10), DATA),
    (lambda store: Truncate(store, KEY, 3), b"012"),
    (lambda store: Truncate(store, KEY, -1), b"012345678"),
    (lambda store: Grow(store, KEY, b"!"), b"0123456789!"),
    (lambda store: Swap(store, KEY, OTHER), b"neighbour"),
    (lambda store: Stale(store, KEY, b"old"), b"old"),
]


@pytest.mark.parametrize(("alter", "seen"), ALTERED)
def test_every_verb_sees_the_altered_bytes_and_no_others(inner: MemoryStore, alter: Callable[[Store], Store], seen: bytes) -> None:
    store = alter(inner)
    assert store.get(KEY, LIMIT) == seen
    assert b"".join(store.stream(KEY, 2)) == seen
    assert store.get_range(KEY, 1, 1) == seen[1:2]
    with pytest.raises(ObjectDamaged):
        store.get_range(KEY, 0, len(seen) + 1)
    with pytest.raises(ObjectDamaged):
        store.get(KEY, len(seen) - 1)
    assert store.stat(KEY).size == dict(store.list())[KEY].size == len(seen)
    assert store.get(OTHER, LIMIT) == (DATA if isinstance(store, Swap) else b"neighbour")
    assert inner.get(KEY, LIMIT) == DATA


@pytest.mark.parametrize("hide", [lambda store: Vanish(store, "packs/ab/*"), lambda store: Stale(store, KEY, None)])
def test_a_vanished_object_is_seen_by_no_verb(inner: MemoryStore, hide: Callable[[Store], Store]) -> None:
    store = hide(inner)
    for use in READS.values():
        with pytest.raises(ObjectMissing):
            use(store, KEY)
    assert keys(store) == [OTHER]
    assert store.prefixes("packs/") == ("packs/cd/",)
    with pytest.raises(KeyExists):
        store.put(KEY, b"")


FRESH = entry_key(1)


def write_one(store: Store, *pieces: bytes) -> None:
    with store.create(FRESH) as writer:
        for piece in pieces or [b"x"]:
            writer.write(piece)
        writer.commit()


VERBS: dict[str, Callable[[Store], object]] = {
    **{verb: lambda store, use=use: use(store, KEY) for verb, use in USES.items() if verb != "put"},  # type: ignore[misc]
    "put": lambda store: store.put(FRESH, b"x"),
    "write": write_one,
    "commit": write_one,
    "list": lambda store: list(store.list("packs/")),
    "prefixes": lambda store: store.prefixes("packs/"),
}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("verb", VERBS)
def test_fail_once_fails_that_verb_once(inner: MemoryStore, verb: str, after: bool) -> None:
    store = FailOnce(inner, verb, "*", StoreUnavailable("the cable"), after=after)
    for other in ("stat", "list"):
        if other != verb:
            VERBS[other](store)
    with pytest.raises(StoreUnavailable, match="cable"):
        VERBS[verb](store)
    took_effect = {"put": FRESH in keys(inner), "commit": FRESH in keys(inner), "delete": KEY not in keys(inner)}
    assert took_effect.get(verb, after) is after
    if not after:
        VERBS[verb](store)


def test_fail_once_leaves_other_keys_alone(inner: MemoryStore) -> None:
    store = FailOnce(inner, "get", "ledger/*", StoreUnavailable("the cable"))
    assert store.get(KEY, LIMIT) == DATA
    assert not store.failed


def test_full_counts_bytes_and_keeps_nothing_of_what_did_not_fit(inner: MemoryStore) -> None:
    store = Full(inner, 10)
    store.put(entry_key(3), b"12345")
    with pytest.raises(NoSpace):
        store.put(entry_key(2), b"123456")
    with pytest.raises(NoSpace):
        write_one(store, b"1234", b"12")
    assert keys(inner, "ledger/") == [entry_key(3)]


def test_read_only_refuses_to_change_and_reads(inner: MemoryStore) -> None:
    store = ReadOnly(inner)
    for change in (lambda: store.put(VAULT, b""), lambda: store.create(VAULT), lambda: store.delete(KEY)):
        with pytest.raises(StoreRefused):
            change()
    assert store.get(KEY, LIMIT) == DATA
    assert keys(inner) == [KEY, OTHER]


def test_damage_in_place_changes_bytes_and_not_times(store: LocalStore) -> None:
    for key in (KEY, OTHER):
        store.put(key, DATA)
    path, other = (os.path.join(store.path, key) for key in (KEY, OTHER))
    os.utime(path, (1000, 1000))
    for damage, seen in (
        (lambda: faults.flip_bit(path, 0), b"1123456789"),
        (lambda: faults.flip_bit(path, -1, 3), b"1123456781"),
        (lambda: faults.truncate(path, -1), b"112345678"),
        (lambda: faults.truncate(path, 2), b"11"),
        (lambda: faults.grow(path, b"!"), b"11!"),
        (lambda: faults.swap(path, other), DATA),
    ):
        damage()
        assert store.get(KEY, LIMIT) == seen
    assert store.get(OTHER, LIMIT) == b"11!"
    assert os.stat(other).st_mtime == 1000
    faults.remove(path)
    assert keys(store) == [OTHER]


# ---------------------------------------------------------------- crash points


def two_puts(store: Store) -> Callable[[CrashPoint], None]:
    def run(point: CrashPoint) -> None:
        crashing = CrashingStore(store, point)
        try:
            crashing.put(entry_key(1), b"1")
            with crashing.create(entry_key(2)) as writer:
                writer.write(b"2")
                writer.commit()
        finally:
            with contextlib.suppress(Exception):
                crashing.delete(entry_key(1))  # a clean-up handler, which a dead process does not run

    return run


def test_operations_are_counted() -> None:
    assert count_operations(two_puts(MemoryStore())) == 4  # put, create, commit, delete


def test_dying_at_each_step_leaves_what_had_taken_effect_then() -> None:
    left: list[int] = []
    for point in crash_points(4):
        store = MemoryStore()
        with pytest.raises(Crash):
            two_puts(store)(point)
        left.append(sum(int(key[-6]) for key in keys(store)))  # 1: the first object, 2: the second, 3: both
    assert left == [0, 1, 1, 1, 1, 3, 3, 2]


def test_a_dead_process_does_nothing_more() -> None:
    store = CrashingStore(MemoryStore(), 2)
    store.put(KEY, DATA)
    for use in (*USES.values(), lambda store, key: list(store.list()), lambda store, key: store.prefixes("")):
        with pytest.raises(Crash):
            use(store, KEY)
    assert keys(store.inner) == [KEY]


def test_stores_can_share_one_process() -> None:
    point = CrashPoint(2, after=True)
    first, second = CrashingStore(MemoryStore(), point), CrashingStore(MemoryStore(), point)
    first.put(KEY, DATA)
    with pytest.raises(Crash):
        second.put(KEY, DATA)
    with pytest.raises(Crash):
        first.put(OTHER, DATA)
    assert (keys(first.inner), keys(second.inner)) == ([KEY], [KEY])
