"""Erased mailboxes: what acts say, for those who read (format section 11)."""

from __future__ import annotations

import contextlib

from mailbackup.errors import DamageError
from mailbackup.model.ids import Digest
from mailbackup.model.ledger import Act, Anchors, tombstone
from mailbackup.stores.base import Store
from mailbackup.vault.chain import find_head, read_acts, trust_within


class Tombstones:
    """The mailboxes that acts erase. One that came back later is another one: an act is about the snapshots up to its head."""

    def __init__(self) -> None:
        self._acts: dict[Digest, Act] = {}

    def learn(self, store: Store, anchors: Anchors) -> None:
        """Take over the acts of a store: one listing when it has none. Raises what the store raises.

        Acts that are damaged keep nobody from a restore: those before the damage count, and `verify` reports it.
        """
        if next(iter(store.list("acts/")), None) is None:
            return
        with contextlib.suppress(DamageError):
            for act, _ in read_acts(store, anchors, trust_within(store, find_head(store), anchors)):
                self.add(act)

    def add(self, act: Act) -> None:
        """Take over an act, whatever it says."""
        if act.type == "erase" and act.mailbox is not None and act.head is not None:
            known = self._acts.get(act.mailbox)
            if known is None or known.head is None or known.head.seq < act.head.seq:
                self._acts[act.mailbox] = act

    def of(self, anchors: Anchors, mailbox: str, seq: int) -> Act | None:
        """The act that erased a mailbox (its key) from a snapshot."""
        act = self._acts.get(tombstone(anchors.vault, mailbox)) if self._acts else None
        return act if act is not None and act.head is not None and seq <= act.head.seq else None
