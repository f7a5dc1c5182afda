"""The contract of an adapter for one mail program."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from mailbackup.model.finding import Finding
from mailbackup.model.system import Dump, Inventory, Probe, ServerStep
from mailbackup.systems.ask import Ask


class System(Protocol):
    """One mail program: what to save of it, how it comes back, and what shows that it works.

    Only `find`, `dump` and `examine` touch the host. `steps` and `probes` are made from an inventory that may be years old and from another machine.
    """

    name: str

    def find(self, ask: Ask) -> Inventory | None:
        """What there is of it on this host, None when there is nothing. Raises CannotAsk when it is there but does not answer."""

    def dump(self, ask: Ask, dump: Dump) -> Iterator[bytes]:
        """The bytes of a dump that has no argv. Raises CannotAsk."""

    def steps(self, inventory: Inventory) -> tuple[ServerStep, ...]:
        """How it comes back, in any order; `rank` orders the steps of all systems."""

    def probes(self, inventory: Inventory) -> tuple[Probe, ...]:
        """What a drill proves of it."""

    def examine(self, ask: Ask, inventory: Inventory) -> list[Finding]:
        """What on this host would keep it, or a rebuilt server, from working: keys, certificates, modes, owners. Changes nothing."""
