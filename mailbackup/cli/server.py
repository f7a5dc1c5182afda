"""`restore server`."""

from __future__ import annotations

from typing import Annotated

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.browse import At
from mailbackup.cli.command import Run, command
from mailbackup.cli.text import duration, number, table
from mailbackup.errors import DamageError, UsageError
from mailbackup.model.drill import ServerResult


def register(restore: typer.Typer) -> None:
    """Add the command to the group `restore`."""
    command(restore, "server", example="mailbackup restore server --target / --identity kit.txt")(server)


def server(
    run: Run,
    *,
    plan: Annotated[bool, typer.Option("--plan", help="Only print the ordered steps, and what each needs.")] = False,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="ROOT", help="Root directory of the new system; / is this machine.", show_default=False),
    ] = None,
    at: At = "latest",
) -> Answer:
    """Rebuild a whole server: accounts, configuration, keys, mail; its queue on hold, nothing started. Run it again to continue."""
    from mailbackup.server.rebuild import restore_server

    if plan == (target is not None):
        raise UsageError("say either --plan or --target ROOT", hint="--plan shows the steps, --target carries them out.")
    result = restore_server(run.context(), target=target, at=at)
    incomplete = result.outcome == "incomplete"
    return Answer(
        outcome=result.outcome,
        exit_status=DamageError.exit_status if incomplete else 0,
        fields=fields_of(result),
        text=_plan(result) if target is None else _summary(result),
        report=target is not None,
        findings=result.findings,
    )


def _plan(result: ServerResult) -> list[str]:
    rows = [(f"{place:2}.", step.system, step.name, step.detail) for place, step in enumerate(result.steps, 1)]
    return [*table(rows), f"snapshot {result.seq}; nothing was changed"]


def _summary(result: ServerResult) -> list[str]:
    marks = {"done": "ok", "failed": "FAILED", "planned": "to do", "skipped": "-"}
    rows = [(marks[step.outcome], step.system, step.name, step.detail) for step in result.steps]
    held = f"{number(result.messages, 'message')}, {number(result.files, 'file')}"
    return [*table(rows), f"restored {held} from snapshot {result.seq} to {result.target} in {duration(result.seconds)}: {result.outcome}"]
