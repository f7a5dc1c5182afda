"""The adapters that there are, and looking for all of them at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from mailbackup.model.system import Inventory, Probe, ServerStep
from mailbackup.systems.ask import Ask, CannotAsk
from mailbackup.systems.base import System
from mailbackup.systems.directories import Directories
from mailbackup.systems.dovecot import Dovecot
from mailbackup.systems.host import Host
from mailbackup.systems.opendkim import Opendkim
from mailbackup.systems.postfix import Postfix
from mailbackup.systems.tls import Tls

SYSTEMS: tuple[System, ...] = (Host(), Directories(), Tls(), Opendkim(), Dovecot(), Postfix())
"""In the order in which their daemons start: the mail transfer agent is the last."""

NAMES = tuple(system.name for system in SYSTEMS)


@dataclass(slots=True)
class Survey:
    """What was found on a host; `failed`: systems that are there but could not be asked, with the reason."""

    inventories: list[Inventory] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def system(name: str) -> System | None:
    """The adapter of that name."""
    return next((known for known in SYSTEMS if known.name == name), None)


def survey(ask: Ask, use: tuple[str, ...] = NAMES) -> Survey:
    """Look for all systems in `use`."""
    found = Survey()
    for known in SYSTEMS:
        if known.name not in use:
            continue
        try:
            inventory = known.find(ask)
        except CannotAsk as error:
            found.failed[known.name] = str(error)
            continue
        if inventory is not None:
            found.inventories.append(inventory)
    return found


def steps(inventories: tuple[Inventory, ...]) -> tuple[ServerStep, ...]:
    """All steps of a rebuild, in their order."""
    order = {name: place for place, name in enumerate(NAMES)}
    known = [(inventory, found) for inventory in inventories if (found := system(inventory.system)) is not None]
    rows = [step for inventory, found in known for step in found.steps(inventory)]
    return tuple(sorted(rows, key=lambda step: (step.rank, order[step.system])))


def probes(inventories: tuple[Inventory, ...]) -> tuple[Probe, ...]:
    """All probes, in the order of the systems."""
    known = [(inventory, found) for inventory in inventories if (found := system(inventory.system)) is not None]
    return tuple(probe for inventory, found in known for probe in found.probes(inventory))
