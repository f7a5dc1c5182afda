"""Entries of a store that is far away are fetched ahead, and judged as if they had been read one after another."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import ChainBroken, ObjectMissing
from mailbackup.model.ids import ObjectKey, entry_key
from mailbackup.model.ledger import Anchors
from mailbackup.stores.local import LocalStore
from mailbackup.testing.wrapper import Wrapper
from mailbackup.upkeep.ahead import learning
from mailbackup.upkeep.registry import Registry
from mailbackup.vault.chain import Link, Trust, find_head, trust_within, walk
from tests.bench.upkeep_plan import VAULT, Life, Made

ADMIN, WRITER = SigningKey.generate(), SigningKey.generate()
NIGHTS = 40
ANCHORS = Anchors(vault=VAULT, admin=ADMIN.public)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A ledger of forty nights, most with a list of stops."""
    place = str(tmp_path_factory.mktemp("ledger") / "vault")
    made = Made(place, ADMIN, WRITER)
    for night in Life(NIGHTS):
        made.add(night)
    return place


class Far(Wrapper):
    """Answers after a while; counts what is asked, and how much at once."""

    def __init__(self, place: str, parallel: int = 4, hidden: dict[str, bytes] | None = None) -> None:
        super().__init__(LocalStore(place, "far"))
        self.traits = replace(self.inner.traits, parallel=parallel)
        self.asked: Counter[str] = Counter()
        self.most = self._now = 0
        self._lock = threading.Lock()
        self.hidden = hidden or {}  # what somebody put in front of objects
        self.away: set[str] = set()

    @contextlib.contextmanager
    def around(self, verb: str, key: str) -> Iterator[None]:  # type: ignore[override]
        with self._lock:
            self.asked[f"{verb} {key}"] += 1
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.002)
        yield
        with self._lock:
            self._now -= 1

    def get(self, key: ObjectKey, limit: int) -> bytes:
        found = super().get(key, limit)
        if key in self.away:
            raise ObjectMissing(f"{key}: is missing")
        return self.hidden.get(key, found)

    def uncover(self, key: ObjectKey) -> bool:
        return self.hidden.pop(key, None) is not None


def walked(store: Far, last: int | None = None) -> list[Link]:
    return list(walk(store, ANCHORS, Trust(ADMIN.public), last=last or find_head(store)))


def test_the_same_as_one_after_another(written: str):
    near, far = Far(written, parallel=1), Far(written, parallel=4)
    assert walked(near) == walked(far)
    assert [link.seq for link in walked(far)] == list(range(1, NIGHTS + 2))
    assert (near.most, far.most) == (1, 4)


def test_each_entry_is_asked_for_once(written: str):
    far = Far(written)
    walked(far)
    assert {key: count for key, count in far.asked.items() if key.startswith("get")} == {
        f"get {entry_key(n)}": 1 for n in range(1, NIGHTS + 2)
    }


def test_a_broken_entry_breaks_at_its_place(written: str):
    far, seen = Far(written), []
    far.away.add(entry_key(20))
    with pytest.raises(ChainBroken, match="0000000020"):
        for link in walk(far, ANCHORS, Trust(ADMIN.public), last=NIGHTS + 1):
            seen.append(link.seq)
    assert seen == list(range(1, 20))


def test_what_was_put_in_front_is_uncovered(written: str):
    """What was fetched ahead is not judged twice: the second look is at the version behind."""
    far = Far(written, hidden={entry_key(7): b"{}\n{}\n", entry_key(30): b""})
    assert walked(far) == walked(Far(written))
    assert far.asked[f"get {entry_key(7)}"] == 2


def test_whoever_stops_early_fetches_little(written: str):
    far = Far(written)
    links = walk(far, ANCHORS, Trust(ADMIN.public), last=NIGHTS + 1)
    next(links)
    time.sleep(0.2)  # time enough to fetch them all
    links.close()  # type: ignore[attr-defined]
    assert sum(far.asked.values()) <= 2 * 4
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ledger")]


def test_trust_of_a_page_is_read_at_once(written: str):
    far = Far(written)
    assert trust_within(far, NIGHTS + 1, ANCHORS).roles == {WRITER.public: {"writer"}}
    assert far.most == 4


# ---------------------------------------------------------------- with their lists


def learned(store: Far) -> Registry:
    registry = Registry()
    for link in learning(registry, store, walk(store, ANCHORS, Trust(ADMIN.public), last=NIGHTS + 1)):
        assert registry.snapshots[-1:] == ([link.seq] if link.seq > 1 else [])
    return registry


def lists_in(place: str) -> list[str]:
    return [f"lists/{name}" for name in sorted(os.listdir(f"{place}/lists"))]


def test_lists_are_learned_the_same(written: str):
    near, far = learned(Far(written, parallel=1)), learned(Far(written, parallel=4))
    assert (near.packs, near.objects, near.snapshots) == (far.packs, far.objects, far.snapshots)
    assert set(lists_in(written)) <= set(far.objects)
    assert sum(life.dead for life in far.packs.values()) > 1000
    assert not far.unreadable


def test_a_list_that_is_missing_is_told(written: str):
    for parallel in (1, 4):
        far = Far(written, parallel)
        far.away.add(lists_in(written)[3])
        registry = learned(far)
        assert len(registry.unreadable) == 1
        assert set(lists_in(written)) <= set(registry.objects)


def test_what_stands_before_a_break_is_learned(written: str, tmp_path: Path):
    for parallel in (1, 4):
        far, registry = Far(written, parallel), Registry()
        far.away.add(entry_key(20))
        with pytest.raises(ChainBroken):
            for _ in learning(registry, far, walk(far, ANCHORS, Trust(ADMIN.public), last=NIGHTS + 1)):
                pass
        assert registry.snapshots == list(range(2, 20))
