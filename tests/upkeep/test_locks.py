"""Object Lock care: what must stay is locked again in time, what was dropped is left alone, and a check tells when nobody does it."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest

from mailbackup.errors import ObjectMissing, StoreRefused, StoreUnavailable
from mailbackup.model.events import ignore
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import ObjectKey, PackId, pack_key
from mailbackup.stores.base import Store, StoreTraits
from mailbackup.stores.memory import MemoryStore
from mailbackup.testing.wrapper import Wrapper
from mailbackup.upkeep.locks import Remembered, extend, look, remembered, to_keep
from mailbackup.upkeep.scrub import read_chains, scrub
from tests.upkeep.keeper import DAY, Keeper, clock, keeper

__all__ = ["clock", "keeper"]

NOW = 1_800_000_000.0
DAYS = 40


class Locking(Wrapper):
    """A store with Object Lock whose clock stands still."""

    def __init__(self, inner: Store, days: int = DAYS) -> None:
        super().__init__(inner)
        self.traits = StoreTraits(
            range_reads=True, create_only=True, durable_after_put=True, versions=True, object_lock=True, lock_days=days, parallel=4
        )
        self.time = NOW
        self.held: dict[str, float] = {}
        self.asked: list[str] = []
        self.refused: set[str] = set()
        self.away_after = 1 << 30

    def now(self) -> float:
        return self.time

    def locked_until(self, key: ObjectKey) -> float | None:
        self.asked.append(key)
        if len(self.asked) > self.away_after:
            raise StoreUnavailable("gone")
        self._check(key)
        return self.held.get(key)

    def lock_until(self, key: ObjectKey, time: float) -> None:
        self._check(key)
        self.held[key] = max(time, self.held.get(key, 0.0))

    def _check(self, key: ObjectKey) -> None:
        self.inner.stat(key)
        if key in self.refused:
            raise StoreRefused(f"may not: {key}")


def pack(number: int) -> ObjectKey:
    return pack_key(PackId(f"{number:032x}"))


@pytest.fixture
def store() -> Locking:
    """Ten objects, locked for 1, 5, 9 … 37 days more."""
    made = Locking(MemoryStore())
    for number in range(10):
        made.inner.put(pack(number), b"x")
        made.held[pack(number)] = NOW + (1 + 4 * number) * DAY
    return made


KEYS = [pack(number) for number in range(10)]


def test_locks_that_end_within_half_the_time_are_made_longer(store: Locking, tmp_path: Path):
    before = dict(store.held)
    with remembered(f"{tmp_path}/locks", "here") as memory:
        done = extend(store, KEYS, NOW, DAYS, memory)
    assert (done.extended, done.still, done.failed, done.left) == (5, 5, [], 0)
    for key in KEYS:
        assert store.held[key] == (before[key] if before[key] >= NOW + DAYS / 2 * DAY else NOW + DAYS * DAY)


def test_what_was_learned_is_not_asked_again(store: Locking, tmp_path: Path):
    nights = []
    for night in range(41):
        store.time = NOW + night * DAY
        store.asked.clear()
        with remembered(f"{tmp_path}/locks", "here") as memory:
            extend(store, KEYS, store.time, DAYS, memory)
        nights.append(len(store.asked))
        assert min(store.held.values()) >= store.time + DAYS / 2 * DAY, "nothing ever comes near its end"
    assert nights[0] == 10
    assert sum(nights) < 40, "each object is asked for every twenty days or so"


@pytest.mark.parametrize("change", ["another place", "lost", "rubbish"])
def test_a_memory_of_something_else_counts_for_nothing(change: str, store: Locking, tmp_path: Path):
    path = tmp_path / "locks"
    with remembered(str(path), "here") as memory:
        extend(store, KEYS, NOW, DAYS, memory)
    store.held.clear()
    store.asked.clear()
    path.unlink() if change == "lost" else path.write_bytes(b"no database at all " * 100) if change == "rubbish" else None
    with remembered(str(path), "there" if change == "another place" else "here") as memory:
        assert extend(store, KEYS, NOW, DAYS, memory).extended == 10
    assert len(store.held) == 10


def test_what_is_gone_is_forgotten(store: Locking, tmp_path: Path):
    with remembered(f"{tmp_path}/locks", "here") as memory:
        extend(store, KEYS, NOW, DAYS, memory)
        extend(store, KEYS[:3], NOW, DAYS, memory)
        assert set(memory.known()) == set(KEYS[:3])


def test_one_that_is_missing_or_refused_does_not_hold_up_the_others(store: Locking, tmp_path: Path):
    store.refused.add(KEYS[0])
    store.inner.delete(KEYS[1])
    with remembered(f"{tmp_path}/locks", "here") as memory:
        done = extend(store, KEYS, NOW, DAYS, memory)
        assert (done.extended, done.still) == (3, 5)
        assert [key for key, _ in done.failed] == KEYS[:2]
        store.asked.clear()
        extend(store, KEYS, NOW, DAYS, memory)
        assert set(store.asked) == set(KEYS[:2]), "they are tried again each time"


def test_credentials_that_may_nothing_are_not_asked_a_hundred_thousand_times(tmp_path: Path):
    store = Locking(MemoryStore())
    keys = [pack(number) for number in range(2000)]
    for key in keys:
        store.inner.put(key, b"x")
    store.refused.update(keys)
    with remembered(f"{tmp_path}/locks", "here") as memory:
        done = extend(store, keys, NOW, DAYS, memory)
    assert (len(done.failed), done.left) == (500, 1500)


def test_what_was_done_before_the_store_went_away_is_remembered(tmp_path: Path):
    store = Locking(MemoryStore())
    keys = [pack(number) for number in range(300)]
    for key in keys:
        store.inner.put(key, b"x")
    store.away_after = 200
    with remembered(f"{tmp_path}/locks", "here") as memory:
        with pytest.raises(StoreUnavailable):
            extend(store, keys, NOW, DAYS, memory)
        assert 150 < len(memory.known()) <= 200
        store.away_after = 1 << 30
        assert extend(store, keys, NOW, DAYS, memory).still >= 150


# ---------------------------------------------------------------- what must stay


def test_everything_but_what_was_dropped_is_kept(keeper: Keeper):
    keeper.night("1")
    keeper.night("2")
    keeper.prune()
    with contextlib.closing(keeper.store()) as store:
        told = read_chains(store, keeper.anchors)
        assert told.head is not None
        kept = to_keep(told.registry, told.book, told.head[0])
        every = {key for key, _ in store.list("")}
    assert len(set(kept)) == len(kept)
    left = every - set(kept)
    dropped = {f"snapshots/{seq:010d}" for seq in told.book.dropped}
    dead = {pack_key(pack) for pack, life in told.registry.packs.items() if life.is_dead}
    assert dead
    assert {key[:20] for key in left if key.startswith("snapshots/")} == dropped
    assert {key for key in left if key.startswith("packs/")} == dead
    assert all(key.startswith(("snapshots/", "packs/")) for key in left)
    assert set(kept) <= every


def test_a_dead_pack_of_a_kept_snapshot_is_kept(keeper: Keeper):
    keeper.night("1")
    keeper.night("2")
    with contextlib.closing(keeper.store()) as store:
        told = read_chains(store, keeper.anchors)
        assert any(life.is_dead for life in told.registry.packs.values())
        assert told.head is not None
        assert set(to_keep(told.registry, told.book, told.head[0])) == {key for key, _ in store.list("")}


# ---------------------------------------------------------------- looking


def test_verify_tells_of_locks_that_end(keeper: Keeper):
    with contextlib.closing(keeper.store()) as inner:
        store = Locking(inner)
        keys = [ObjectKey(key) for key, _ in inner.list("")]
        store.held = dict.fromkeys(keys, NOW + DAYS * DAY)
        assert scrub(store, keeper.anchors, on_event=ignore).findings == []
        store.held[keys[0]] = NOW + DAYS / 4 * DAY - 1
        (finding,) = scrub(store, keeper.anchors, on_event=ignore).findings
        assert (finding.kind, finding.subject) == (FindingKind.LOCK_ENDS, keys[0])
        assert finding.detail.startswith("its lock ends 2027-")
        assert not finding.harmless
        store.held[keys[1]] = NOW - 1
        del store.held[keys[2]]
        (finding,) = look(store, keys)
        assert (finding.subject, finding.detail.split(";")[0]) == (keys[2], "is not locked")
        assert f"2 more of {len(keys)}" in finding.detail


def test_a_sample_of_many_is_asked_for_and_the_keys_always(keeper: Keeper):
    store = Locking(MemoryStore())
    key = ObjectKey("keys/0000000001-0000000001.age")
    many = [pack(number) for number in range(3000)]
    for one in (key, *many):
        store.inner.put(one, b"x")
        store.held[one] = NOW + DAYS * DAY
    random.seed(os.urandom(8))
    assert look(store, [*many, key]) == []
    assert len(store.asked) <= 201
    assert key in store.asked


def test_what_may_not_be_asked_is_no_damage(store: Locking):
    store.refused.update(KEYS)
    (finding,) = look(store, KEYS)
    assert finding.kind is FindingKind.LOCK_UNKNOWN
    assert finding.harmless


def test_a_store_without_locks_is_not_asked() -> None:
    store = MemoryStore()
    assert look(store, KEYS) == []
    assert store.locked_until(KEYS[0]) is None


def test_the_memory_is_a_file_of_its_own(tmp_path: Path):
    with contextlib.closing(Remembered(f"{tmp_path}/locks", "here")) as memory:
        memory.learn([("a", 1.0), ("b", 2.0)])
        memory.learn([("a", 3.0)])
        memory.forget(["b"])
    with contextlib.closing(Remembered(f"{tmp_path}/locks", "here")) as memory:
        assert memory.known() == {"a": 3.0}
    with pytest.raises(ObjectMissing):
        MemoryStore().stat(KEYS[0])
