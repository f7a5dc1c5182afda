"""`systems list` and `systems show`: what the adapters find on this host, and what comes of it. Needs no identity, and no configuration either."""

from __future__ import annotations

from mailbackup.config import Config
from mailbackup.errors import NotFound, SourceError
from mailbackup.model.results import SystemResult, SystemRow, SystemsResult
from mailbackup.systems.ask import Ask
from mailbackup.systems.known import NAMES, Survey, names, survey
from mailbackup.systems.known import system as adapter


def used(config: Config | None) -> tuple[str, ...]:
    """Names of the systems that the configuration saves."""
    if config is None:
        return ()
    return names(config.systems.use)


def asking(config: Config | None) -> Ask:
    """The host, as the configuration makes the adapters see it."""
    return Ask(tuple(directory.path for directory in config.directories) if config is not None else ())


def look(config: Config | None, ask: Ask | None = None) -> Survey:
    """All systems that there are, also those that the configuration does not save."""
    return survey(ask or asking(config))


def list_systems(config: Config | None) -> SystemsResult:
    """All systems that were found."""
    found, wanted = look(config), used(config)
    rows = [
        SystemRow(
            name=row.system, version=row.version, used=row.system in wanted, paths=len(row.paths), dumps=len(row.dumps), findings=len(row.findings)
        )
        for row in found.inventories
    ]  # fmt: skip
    rows += [
        SystemRow(name=name, version="", used=name in wanted, paths=0, dumps=0, findings=0, error=why) for name, why in found.failed.items()
    ]
    findings = tuple(finding for row in found.inventories for finding in row.findings)
    return SystemsResult(configured=bool(wanted), systems=tuple(rows), findings=findings)


def show_system(config: Config | None, name: str) -> SystemResult:
    """One system. Raises NotFound when there is none of that name here, SourceError when it cannot be asked."""
    known = adapter(name)
    if known is None:
        raise NotFound(f"there is no system {name}", hint=f"Known: {', '.join(NAMES)}.")
    found = survey(asking(config), (name,))
    if name in found.failed:
        raise SourceError(f"{name}: {found.failed[name]}", hint="Run as root, and check that the program works.")
    if not found.inventories:
        raise NotFound(f"{name} was not found on this host", hint="'mailbackup systems list' names what was.")
    inventory = found.inventories[0]
    return SystemResult(inventory=inventory, steps=known.steps(inventory), probes=known.probes(inventory))
