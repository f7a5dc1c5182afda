"""`status`."""

from __future__ import annotations

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command
from mailbackup.cli.text import table
from mailbackup.errors import DamageError
from mailbackup.model.results import StatusResult


def register(root: typer.Typer) -> None:
    """Add the command to the program."""
    command(root, "status", example="mailbackup status --json")(status)


def status(run: Run) -> Answer:
    """Say how old the newest good snapshot is, what was proven of it, and how the jobs ended last. Asks nothing of the store."""
    from mailbackup.jobs.status import status as judged

    result = judged(run.context())
    late = result.outcome == "late"
    return Answer(
        outcome=result.outcome,
        exit_status=DamageError.exit_status if late else 0,
        fields=fields_of(result),
        text=summary(result),
        report=False,
    )


def summary(result: StatusResult) -> list[str]:
    """The facts, those first that somebody should look at, and what to do when it is late."""
    ordered = sorted(result.facts, key=lambda fact: fact.good)
    rows = [["" if fact.good else "!", fact.name, fact.text] for fact in ordered]
    advice = ["Run 'mailbackup job run nightly' and look at what fails; 'mailbackup schedule show' tells what starts it by itself."]
    return [result.outcome, *table(rows), *(advice if result.outcome == "late" else [])]
