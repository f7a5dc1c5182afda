"""Thousands of random histories: whatever happens in whatever order, what is kept restores, and the ledger says what lives."""

from __future__ import annotations

import os
import random
from collections import Counter
from datetime import timedelta

import pytest

from mailbackup.model.ids import Digest, PackId
from mailbackup.model.ledger import LedgerEntry, PackRow
from mailbackup.model.retention import Policy
from mailbackup.upkeep.planning import Rules
from tests.upkeep.simulation import model
from tests.upkeep.simulation.model import SOUND, Breaks, Sim, Steps, Violation

CAMPAIGN = bool(os.environ.get("MAILBACKUP_CAMPAIGN"))
HISTORIES = 10_000
SHARES = 20  # of which CI runs SHARE, and the campaign all
SHARE = 3
EVENTS = 260

_APART = ("prune", "catch_up")

HOUR, DAY = 3600.0, model.DAY


class History:
    """Which actor comes next, what fails, how time goes by."""

    def __init__(self, seed: int, breaks: Breaks = SOUND, *, lies: bool = False, late: bool = False, behind: float = 0.0) -> None:
        rng = self.rng = random.Random(seed)
        self.late = late
        self.sim = Sim(rng, breaks, stores=1 if lies else rng.choice([1, 1, 2]), lies=lies)
        self.actors: dict[str, Steps] = {}
        self.jumps = rng.choice(["none", "none", "writer", "pruner"])
        if behind:
            self.jumps, self.sim.writer_offset = "none", -behind * DAY
            for store in self.sim.stores:
                store.own_time, store.of_writer, store.clock = True, False, lambda: self.sim.now
        self.pause = False
        self.outage = (
            {(start := rng.randint(10, 60)), start + rng.randint(60, 170)} if len(self.sim.stores) > 1 and rng.random() < 0.6 else set()
        )
        if self.jumps == "writer" and any(store.of_writer for store in self.sim.stores):
            self.jumps = "none"  # a store has the times of a host whose clock is wrong, but does not jump
            self.sim.writer_offset = rng.uniform(-40, 40) * DAY
            for store in self.sim.stores:
                self.sim.honest_clock[store.name] = store.own_time
                store.times = [store.clock()]

    def run(self, events: int = EVENTS) -> Counter[str]:
        """Raises Violation with the last lines of what happened."""
        try:
            for number in range(events):
                if number in self.outage:
                    self.sim.stores[-1].up = not self.sim.stores[-1].up
                self._event()
                self.sim.check()
            self._end()
        except Violation as violation:
            raise Violation(f"{violation}\n" + "\n".join(self.sim.log[-60:])) from None
        return self.sim.stats

    def _end(self) -> None:
        """All come to their end, and a last prune and audit find everything in order."""
        for name in list(self.actors):
            while name in self.actors:
                self._step(name)
                self.sim.check()

    def _event(self) -> None:
        rng = self.rng
        self.sim.now += 1
        choice = rng.random()
        if self.actors and choice < 0.7:
            self._step(rng.choice(sorted(self.actors)))
        elif choice < 0.85:
            self._begin()
        elif choice < 0.96:
            self._time()
        else:
            self._mishap()

    def _step(self, name: str) -> None:
        try:
            where = next(self.actors[name], None)
        except model.Abort:
            where = None
        if where is None:
            del self.actors[name]
        if name == "backup":
            self.pause = where != "fixed" or self.late

    def _begin(self) -> None:
        rng, sim = self.rng, self.sim
        store = rng.choice(sim.stores)
        kind = rng.choice(["backup", "backup", "backup", "prune", "prune", "audit", "human", "catch_up"])
        if kind == "catch_up" and len(sim.stores) == 1:
            kind = "backup"
        if any(other.head < store.head and other.up for other in sim.stores) and rng.random() < 0.4:
            kind, store = "catch_up", min(sim.stores, key=lambda store: store.head)
        name = kind if kind == "backup" else f"{kind} {store.name}"
        if name in self.actors or (kind in _APART and any(f"{other} {store.name}" in self.actors for other in _APART)):
            return
        if kind == "backup":
            self._mail_comes()
            self.actors[name] = sim.backup()
        else:
            self.actors[name] = {"prune": model.prune, "audit": model.audit, "human": model.human, "catch_up": model.catch_up}[kind](
                sim, store
            )

    def _mail_comes(self) -> None:
        rng, sim = self.rng, self.sim
        for item in list(sim.source):
            if rng.random() < 0.35:
                sim.contents += 1
                sim.source[item] = sim.contents if rng.random() < 0.7 else rng.choice([*sim.source.values(), 0, 1, 2])
        if rng.random() < 0.1 and len(sim.source) > 1:
            del sim.source[rng.choice(sorted(sim.source))]
        if rng.random() < 0.15:
            sim.source[rng.randint(0, 6)] = rng.choice([1, 2, 3])
        sim.unreadable = set(rng.sample(sorted(sim.source), 1)) if rng.random() < 0.15 else set()

    def _time(self) -> None:
        """Minutes, mostly; nights; and long pauses, in which everybody stands still."""
        rng, choice = self.rng, self.rng.random()
        if choice < 0.4:
            self.sim.now += rng.uniform(60, 2 * HOUR)
        elif choice < 0.75 or ("backup" in self.actors and not self.pause):
            self.sim.now += rng.uniform(0.2, 1.0) * (DAY if self.pause or "backup" not in self.actors else HOUR)
        else:
            self.sim.now += rng.uniform(1, 9) * DAY

    def _mishap(self) -> None:
        rng, sim = self.rng, self.sim
        kind = rng.choice(["kill", "kill", "kill", "lose", "save", "save", "back", "away", "away", "jump"])
        if kind == "kill" and self.actors:
            name = rng.choice(sorted(self.actors))
            del self.actors[name]
            sim.say(f"kill {name}")
        elif kind == "save":
            sim.saved.append(sim.state.copy())
        elif kind in ("lose", "back") and not sim.lies:
            self.actors.pop("backup", None)
            sim.state = rng.choice(sim.saved).copy() if sim.saved and kind == "back" else model.State()
            sim.unsure = True
            sim.stats[kind] += 1
            sim.say(f"state: {kind}")
        elif kind == "away":
            store = rng.choice(sim.stores)
            store.up = not store.up or len(sim.stores) == 1
        elif kind == "jump":
            self._jump()

    def _jump(self) -> None:
        rng, sim = self.rng, self.sim
        by = rng.choice([0.0, rng.uniform(-40, 40) * DAY, rng.uniform(-1, 1) * DAY])
        if self.jumps == "writer":
            sim.writer_offset = by
        elif self.jumps == "pruner":
            sim.pruner_offset = by
        for store in sim.stores:
            if not store.own_time and by:
                sim.honest_clock[store.name] = False
        sim.say(f"clock of {self.jumps} is off by {by / DAY:.2f} days")


@pytest.mark.parametrize("share", range(SHARES if CAMPAIGN else SHARE))
def test_random_histories(share: int):
    stats: Counter[str] = Counter()
    with model.real_code():
        for seed in range(share, HISTORIES, SHARES):
            try:
                stats += History(seed).run()
            except Violation as violation:
                pytest.fail(f"history {seed}: {violation}")
    print(dict(stats))
    for happened in ("entries", "prune", "undelete", "pin", "audit", "deleted", "changed", "lose", "back", "refused"):
        assert stats[happened] > 20, f"the histories say nothing about: {happened} ({stats[happened]})"
    assert stats["received-without"], "no second store was without something"


# ---------------------------------------------------------------- what histories found once, as short as it gets


def _row(pack: str, blocks: int = 1) -> PackRow:
    return PackRow(id=PackId(pack * 16), size=1000, sha256=Digest("0" * 64), blocks=blocks, footer=Digest("0" * 64), epoch=1)


class _Script:
    """A history of one store that is written down; `entry` gives what the newest snapshot's tree refers to."""

    def __init__(self) -> None:
        self.sim = Sim(random.Random(1), SOUND, stores=1)
        self.store = self.sim.stores[0]
        self.store.own_time, self.store.clock = True, lambda: self.sim.now
        self.sim.rules = Rules(policy=Policy(last=2), max_share=1e9)

    def entry(self, packs: list[str], tree: list[str], stops: list[str] | None = None) -> None:
        self.sim.now += HOUR
        last = self.store.entries[-1]
        entry = LedgerEntry(
            format=1, vault=model.VAULT, seq=last.seq + 1, prev=last.sha256, type="snapshot", time=self.sim.stamp(), signer=model.KEY,
            packs=tuple(_row(pack) for pack in packs), outcome="complete", stops=tuple((PackId(pack * 16), "0") for pack in stops or ()),
        )  # fmt: skip
        link = model.Link(last.seq + 1, self.sim.token(), b"", entry)
        self.sim.trees[link.sha256] = frozenset((PackId(pack * 16), 0) for pack in tree)
        self.sim.check_entry(link, last.sha256)
        self.sim.put_entry(self.store, link)

    def send(self, pack: str) -> None:
        self.sim.put_pack(self.store, PackId(pack * 16))

    def prune(self) -> None:
        with model.real_code():
            list(model.prune(self.sim, self.store))
        self.sim.check()

    def wait(self, days: float) -> None:
        self.sim.now += days * DAY

    def holds(self, pack: str) -> bool:
        return PackId(pack * 16) in self.store.packs


def test_what_an_act_named_as_left_over_is_as_any_other_once_the_ledger_names_it():
    """A store was away when a run committed, lost what it had of that run to a prune, and then got it from another store."""
    script = _Script()
    script.send("aa")
    script.send("bb")
    script.entry(["bb"], ["bb"])
    script.wait(8)
    script.entry([], ["bb"])
    script.prune()
    assert not script.holds("aa")
    script.send("aa")
    script.entry(["aa"], ["aa", "bb"])
    script.entry([], ["bb"], stops=["aa"])
    script.prune()
    assert script.holds("aa"), "a kept snapshot needs it"
    for _ in range(3):
        script.wait(8)
        script.entry([], ["bb"])
        script.prune()
        list(model.audit(script.sim, script.store))
    script.wait(8)
    script.entry([], ["bb"])
    script.prune()
    assert not script.holds("aa"), "now it may go, by the rules for all"


def test_what_comes_back_after_an_act_named_it_has_its_grace_period():
    """The copy of a pack that was pruned as a left-over is on its way, and not registered yet."""
    script = _Script()
    script.send("aa")
    script.send("bb")
    script.entry(["bb"], ["bb"])
    script.wait(8)
    script.entry([], ["bb"])
    script.prune()
    script.send("aa")
    script.prune()
    assert script.holds("aa")


def test_a_run_that_was_paused_for_longer_than_anybody_waits_loses_nothing():
    """The machine slept between the last look at the clock and the put of the entry."""
    script = _Script()
    script.send("bb")
    script.entry(["bb"], ["bb"])
    script.wait(1)
    script.send("aa")
    script.wait(6.9)
    script.wait(0.2)
    script.sim.rules = Rules(policy=Policy(last=2), max_share=1e9, silence=timedelta(days=60))
    script.prune()
    script.entry(["aa"], ["aa", "bb"])
    script.sim.check()
