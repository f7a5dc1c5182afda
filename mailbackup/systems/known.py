"""The adapters that there are, and looking for all of them at once."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from mailbackup.model import codec
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import show
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


def names(use: Literal["auto"] | tuple[str, ...]) -> tuple[str, ...]:
    """The adapters that `[systems] use` means."""
    return NAMES if use == "auto" else use


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
            found.inventories.append(_sound(inventory))
    return found


def _sound(inventory: Inventory) -> Inventory:
    """The inventory without what cannot stand in a record: names that are not UTF-8. They are told, since they are not saved."""
    try:
        codec.encode(inventory)
        return inventory
    except UnicodeEncodeError:
        odd = [row.path for row in inventory.paths if not _is_text(row.path)]
    detail = "its name is not UTF-8, so it is not saved here; name its directory as [[directory]]"
    told = [Finding(row.kind, _readable(row.subject), _readable(row.detail)) for row in inventory.findings]
    return Inventory(
        system=inventory.system,
        version=_readable(inventory.version),
        paths=tuple(row for row in inventory.paths if _is_text(row.path)),
        dumps=inventory.dumps,
        facts={name: tuple(filter(_is_text, values)) for name, values in inventory.facts.items()},
        findings=(*told, *(Finding(FindingKind.UNREADABLE, _readable(path), detail) for path in odd)),
    )


def _readable(text: str) -> str:
    return show(os.fsencode(text))


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
