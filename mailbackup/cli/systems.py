"""`systems list`, `systems show`, `systems explain`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command, group
from mailbackup.cli.text import number, table
from mailbackup.errors import ConfigMissing
from mailbackup.model.results import ExplainResult, SystemResult, SystemRow, SystemsResult
from mailbackup.model.system import Chosen

if TYPE_CHECKING:
    from mailbackup.config import Config

Name = Annotated[str, typer.Argument(metavar="NAME", help="A system, as 'systems list' names it.")]
Path = Annotated[str, typer.Argument(metavar="PATH", help="A file or directory of this host; it need not exist.")]


def register(root: typer.Typer) -> None:
    """Add the commands to the program."""
    parent = group(root, "systems", "Mail programs of this host, and what is saved of them.")
    command(parent, "list", example="mailbackup systems list")(list_all)
    command(parent, "show", example="mailbackup systems show postfix")(show)
    command(parent, "explain", example="mailbackup systems explain /etc/postfix/main.cf")(explain)


def list_all(run: Run) -> Answer:
    """List the mail programs that were found, and how much of each is saved. Needs no configuration."""
    from mailbackup.server.survey import list_systems

    result = list_systems(_config(run))
    return Answer(fields=fields_of(result), text=_systems(result), report=False, findings=result.findings)


def _config(run: Run) -> Config | None:
    """The configuration; None when there is none yet."""
    try:
        return run.loaded[0]
    except ConfigMissing:
        if run.settings.config is not None:
            raise
        return None


def _systems(result: SystemsResult) -> Iterator[str]:
    if not result.systems:
        yield "no mail program was found on this host"
        return
    yield from table(
        [["system", "version", "", "what"], *([row.name, row.version or "-", _use(row), _amount(row)] for row in result.systems)]
    )
    if not result.configured:
        yield 'None of them is saved: [systems] use = "auto" in the configuration saves all that are found.'


def _use(row: SystemRow) -> str:
    return "saved" if row.used and not row.error else "not saved"


def _amount(row: SystemRow) -> str:
    if row.error:
        return f"cannot be asked: {row.error}"
    held = [number(row.paths, "path"), *([number(row.dumps, "dump")] if row.dumps else [])]
    return ", ".join([*held, *([number(row.findings, "finding")] if row.findings else [])])


def show(run: Run, *, name: Name) -> Answer:
    """Show what is saved of a system and why, what is left out, how it comes back, and what a drill proves of it."""
    from mailbackup.server.survey import show_system

    result = show_system(_config(run), name)
    return Answer(fields=fields_of(result), text=_system(result), report=False, findings=result.inventory.findings)


def _system(result: SystemResult) -> Iterator[str]:
    found = result.inventory
    yield f"{found.system} {found.version}".rstrip()
    yield from _part("saved", [line for row in found.paths for line in _chosen(row)])
    yield from _part("asked for", [[dump.name, dump.why] for dump in found.dumps])
    yield from _part("comes back", [[str(step.rank), step.name, step.action] for step in sorted(result.steps, key=lambda step: step.rank)])
    yield from _part("proven by", [[probe.name, probe.tier] for probe in result.probes])


def _chosen(row: Chosen) -> Iterator[list[str]]:
    yield [row.path, row.why + (" (a restore puts it on hold)" if row.queue else "")]
    for left in row.left_out:
        yield [f"- {left.pattern}", left.why]


def _part(title: str, rows: list[list[str]]) -> Iterator[str]:
    if rows:
        yield from ("", f"{title}:")
        yield from (f"  {line}" for line in table(rows))


def explain(run: Run, *, path: Path) -> Answer:
    """Say whether a file is in the backup, and why or why not."""
    from mailbackup.server.explain import explain as explained

    result = explained(run.loaded[0], path)
    return Answer(outcome=result.outcome, fields=fields_of(result), text=_explained(result), report=False)


_WORDS = {
    "saved": "is saved",
    "partly": "is not saved as a whole",
    "left-out": "is not saved: it is left out",
    "not-covered": "is not saved: no source of the configuration covers it",
}


def _explained(result: ExplainResult) -> Iterator[str]:
    yield f"{result.path} {_WORDS[result.outcome]}" + ("" if result.exists else " (it does not exist now)")
    yield from (f"  {line}" for line in table([[row.source, row.why] for row in result.rows]))
    yield from result.advice.splitlines()
