"""Thousands of random histories: whatever happens in whatever order, what is kept restores, and the ledger says what lives."""

from __future__ import annotations

import os
import random
from collections import Counter

import pytest

from tests.upkeep.simulation import model
from tests.upkeep.simulation.model import Breaks, Sim, Steps, Violation

CAMPAIGN = bool(os.environ.get("MAILBACKUP_CAMPAIGN"))
HISTORIES = 10_000
SHARES = 20  # of which CI runs SHARE, and the campaign all
SHARE = 3
EVENTS = 260

_APART = ("prune", "catch_up")

HOUR, DAY = 3600.0, model.DAY


class History:
    """Which actor comes next, what fails, how time goes by."""

    def __init__(self, seed: int, breaks: Breaks = Breaks(), *, lies: bool = False, late: bool = False) -> None:
        rng = self.rng = random.Random(seed)
        self.late = late
        self.sim = Sim(rng, breaks, stores=1 if lies else rng.choice([1, 1, 2]), lies=lies)
        self.actors: dict[str, Steps] = {}
        self.jumps = rng.choice(["none", "none", "writer", "pruner"])
        self.pause = False
        self.outage = {(start := rng.randint(10, 60)), start + rng.randint(60, 170)} if len(self.sim.stores) > 1 and rng.random() < 0.6 else set()
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
            self.actors[name] = {"prune": model.prune, "audit": model.audit, "human": model.human, "catch_up": model.catch_up}[kind](sim, store)

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
    for happened in ("entries", "prune", "undelete", "pin", "audit", "deleted", "changed", "lose", "back", "refused", "received-without"):
        assert stats[happened] > 20, f"the histories say nothing about: {happened} ({stats[happened]})"
