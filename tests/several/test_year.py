"""A year of nights with two or three stores, each away at random, cut off at any operation, with and without a lost answer, runs killed, the state lost.

What must never happen: that stores fork, that one shows a snapshot whose packs it lacks, that something saved cannot be restored.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil

import pytest

from mailbackup import app
from mailbackup.errors import NoSpace, StoreUnavailable
from mailbackup.testing.crashpoints import Crash
from tests.several.outages import Outage
from tests.several.test_several import unreadable
from tests.world import World, messages_in

CAMPAIGN = bool(os.environ.get("MAILBACKUP_CAMPAIGN"))
NIGHTS = 365 if CAMPAIGN else 120
SEEDS = range(40 if CAMPAIGN else 2)


class Killed(Outage):
    """Ends the whole run, as SIGKILL does, after some operations."""

    def around(self, verb: str, key: str):  # type: ignore[no-untyped-def]
        """Dies."""
        self.left -= 1
        if self.left < 0:
            raise Crash
        return contextlib.nullcontext()


class Year:
    """One host and its weather."""

    def __init__(self, root: object, seed: int, stores: int, *, write_only: bool) -> None:
        self.random = random.Random(seed)
        self.world = World(root, stores=stores)
        self.names = [f"local-{n}" if n > 1 else "local" for n in range(1, stores + 1)]
        self.away: dict[str, int] = {}  # nights for which a store stays away
        self.write_only = write_only
        self.made = 0

    def night(self) -> None:
        for _ in range(self.random.randrange(3)):
            self._mail()
        plan = {name: weather for name in self.names if (weather := self._weather(name)) is not None}
        readable = unreadable({}) if self.write_only else lambda store: store
        self.world.store_hook = lambda store: plan.get(store.name, lambda same: same)(readable(store))  # type: ignore[operator]
        with contextlib.suppress(StoreUnavailable, NoSpace, Crash):
            self.world.backup()
        self.world.store_hook = None
        if self.random.random() < 0.01 and not self.away:
            self.world.lose_state()
        self._check()

    def _mail(self) -> None:
        here = self.world.maildir()
        names = os.listdir(f"{here}/cur")
        if len(names) > 30 and self.random.random() < 0.7:
            os.unlink(f"{here}/cur/{self.random.choice(names)}")
            return
        self.made += 1
        size = self.random.choice((50, 500, 40_000))
        self.world.deliver(f"{self.made}.m:2,S", b"Subject: %d\n\n" % self.made + self.random.randbytes(size // 2).hex().encode())

    def _weather(self, name: str):  # type: ignore[no-untyped-def]
        left = self.away.pop(name, 0)
        if left > 1:
            self.away[name] = left - 1
        if left:
            return lambda store: Outage(store, 0)
        luck, after = self.random.random(), self.random.randrange(30)
        if luck < 0.1:
            self.away[name] = self.random.randrange(1, 9)
            return lambda store: Outage(store, 0)
        if luck < 0.3:
            lost = self.random.random() < 0.5
            return lambda store: Outage(store, after, lost_answer=lost)
        if luck < 0.35:
            return lambda store: Outage(store, after, error=NoSpace)
        if luck < 0.4:
            return lambda store: Killed(store, after)
        return None

    def _check(self) -> None:
        """No fork, and no gap: every ledger is the beginning of the longest."""
        ledgers = [_ledger(self.world, number) for number in range(1, len(self.names) + 1)]
        longest = max(ledgers, key=len)
        for ledger in ledgers:
            assert ledger == longest[: len(ledger)]

    def whole(self) -> None:
        """Each store by itself is a sound vault with an older head."""
        for name in self.names:
            target = f"{self.world.root}/whole"
            verified = app.verify(self.world.using(name), decrypt=True)
            assert verified.outcome == "clean", [finding for finding in verified.findings if not finding.harmless]
            assert app.restore_mailbox(self.world.using(name), "alice@example.org", to=target).outcome == "complete"
            shutil.rmtree(target)

    def end(self) -> None:
        """Everything is up again: one more run, and all is everywhere."""
        self.world.store_hook = None
        result = self.world.backup()
        assert [store.outcome for store in result.stores] == ["current"] * len(self.names)
        for number, name in enumerate(self.names, 1):
            target = f"{self.world.root}/end-{number}"
            app.restore_mailbox(self.world.using(name), "alice@example.org", to=target)
            assert messages_in(target) == messages_in(self.world.maildir())
        ledgers = [_ledger(self.world, number) for number in range(1, len(self.names) + 1)]
        assert all(ledger == ledgers[0] for ledger in ledgers)


def _ledger(world: World, number: int) -> list[bytes]:
    with contextlib.closing(world.store(number)) as store:
        return [store.get(key, 1 << 20) for key, _ in store.list("ledger/")]  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("stores", "write_only"), [(2, False), (3, False), (2, True)], ids=["two", "three", "two-write-only"])
def test_a_year_of_outages(tmp_path: object, seed: int, stores: int, write_only: bool):
    year = Year(tmp_path, seed, stores, write_only=write_only)
    while not year.made:
        year._mail()
    year.world.backup()
    for night in range(NIGHTS):
        year.night()
        if night % 40 == 39:
            year.whole()
    year.end()


def test_the_check_would_notice_a_fork(tmp_path: object):
    """Two stores that were written to from one state, each while the other was away."""
    year = Year(tmp_path, 0, 2, write_only=False)
    year._mail()
    year.world.backup()
    shutil.copytree(year.world.state, f"{tmp_path}/old")
    for away in ("local", "local-2"):
        year.world.store_hook = lambda store, away=away: Outage(store, 0) if store.name == away else store  # type: ignore[misc]
        year.world.backup()
        shutil.rmtree(year.world.state)
        shutil.copytree(f"{tmp_path}/old", year.world.state)
    with pytest.raises(AssertionError):
        year._check()
