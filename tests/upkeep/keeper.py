"""A host whose days pass quickly: a clock for everything that asks for the time, and pruning as its administrator does it."""

from __future__ import annotations

import contextlib
import datetime as real
import os
import time
from typing import Any

import pytest
from msgspec.structs import replace as with_other

from mailbackup import host, keeping
from mailbackup.access import Context
from mailbackup.crypto.signing import SigningKey
from mailbackup.model.events import ignore, never
from mailbackup.model.ids import digest, entry_key
from mailbackup.model.options import RetentionConfig
from mailbackup.model.results import PruneResult
from mailbackup.stores.base import Store
from mailbackup.stores.local import LocalStore
from mailbackup.upkeep.acts import Book, add_audit, read_book
from mailbackup.upkeep.planning import Rules
from mailbackup.upkeep.prune import prune
from mailbackup.vault.chain import find_head
from tests.vault.past import Past

DAY = 86400


class Clock:
    """What everybody takes for the time; `ahead` seconds before the real one."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self, tz: real.tzinfo | None = None) -> real.datetime:
        """As `datetime.now`."""
        return real.datetime.now(tz) + real.timedelta(seconds=self.ahead)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of this host and of its stores."""
    made = Clock()

    class Moved(real.datetime):
        @classmethod
        def now(cls, tz: real.tzinfo | None = None) -> real.datetime:  # type: ignore[override]
            return made.now(tz)

    monkeypatch.setattr(host, "datetime", Moved)
    monkeypatch.setattr(LocalStore, "now", lambda _: time.time() + made.ahead)
    return made


class Keeper(Past):
    """A Past that prunes: with the admin's key, which may sign everything."""

    def __init__(self, root: object, clock: Clock, stores: int = 1) -> None:
        super().__init__(root, stores=stores)
        self.clock = clock
        self.retention = RetentionConfig(last=1)
        self.key_file = f"{self.root}/prune.key"
        with open(self.key_file, "w", encoding="ascii") as file:
            file.write(self.admin.seed_hex)

    @property
    def context(self) -> Context:
        """With the retention of this test."""
        made = super().context
        config = with_other(made.config, retention=self.retention)
        return Context(config=config, config_path=made.config_path, state_dir=made.state_dir, identity_file=made.identity_file)

    def night(self, name: str, size: int = 60_000) -> int:
        """A day passes, a large message comes and the one before goes; a snapshot. Returns its number."""
        self.clock.ahead += DAY
        for old in os.listdir(f"{self.maildir()}/cur"):
            if old.endswith(".night:2,"):
                os.unlink(f"{self.maildir()}/cur/{old}")
        self.deliver(f"{name}.night:2,", b"Subject: %b\n\n" % name.encode() + os.urandom(size))
        self.settle()
        return self.backup(accept_shrink=True).seq

    def wait(self, days: float) -> None:
        """Nothing happens for some days, then there is a snapshot (else there would be a silence)."""
        self.clock.ahead += days * DAY
        self.backup()

    def prune(self, **options: Any) -> PruneResult:
        """`mailbackup prune`."""
        with self._hooked():
            return keeping.prune_stores(self.context, **{"key_file": self.key_file, **options})

    def prune_store(self, store: Store, signer: SigningKey | None = None, **rules: Any) -> Any:
        """The engine itself, on a store of the caller's."""
        given = Rules(policy=self.retention, **rules)
        return prune(store, self.anchors, signer or self.admin, given, stop=never, on_event=ignore)

    def audited(self) -> None:
        """A keyed audit found nothing, and said so."""
        with contextlib.closing(self.store()) as store:
            head = find_head(store)
            add_audit(store, self.anchors, self.admin, (head, digest(self.raw(entry_key(head)))))

    def book(self) -> Book:
        """What the acts say."""
        with contextlib.closing(self.store()) as store:
            return read_book(store, self.anchors)


@pytest.fixture
def keeper(tmp_path: Any, clock: Clock) -> Keeper:
    """A host with two mailboxes and one snapshot."""
    made = Keeper(tmp_path, clock)
    made.first_day()
    made.deliver("6.stays:2,S", b"Subject: stays\n\n" + os.urandom(1_500_000))  # so that a night is a small share
    made.settle()
    made.backup()
    return made
