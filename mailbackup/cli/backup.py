"""`backup`."""

from __future__ import annotations

from typing import Annotated

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command
from mailbackup.cli.text import duration, number, size
from mailbackup.errors import SourceError
from mailbackup.model.results import BackupResult


def register(root: typer.Typer) -> None:
    """Add the command to the program."""
    command(root, "backup", example="mailbackup backup --json")(backup)


def backup(
    run: Run,
    *,
    rescan: Annotated[bool, typer.Option("--rescan", help="Look at every file again, also where nothing seems to have changed.")] = False,
    accept_shrink: Annotated[bool, typer.Option("--accept-shrink", help="Accept that much of a source has vanished.")] = False,
) -> Answer:
    """Take a snapshot of everything that is configured."""
    from mailbackup import app

    result = app.backup(run.context(), rescan=rescan, accept_shrink=accept_shrink)
    return Answer(
        outcome=result.outcome,
        exit_status=SourceError.exit_status if result.outcome == "incomplete" else 0,
        fields=fields_of(result),
        text=summary(result),
        findings=result.findings,
    )


def summary(result: BackupResult) -> list[str]:
    """A backup in two lines."""
    held = [f"{number(result.messages, 'message')} in {number(result.mailboxes, 'mailbox', 'mailboxes')} ({result.new_messages:,} new)"]
    if result.files:
        held.append(number(result.files, "file"))
    stored = f"{size(result.bytes_stored)} in {number(result.requests, 'request')}"
    return [
        f"snapshot {result.seq} is {result.outcome}: {', '.join(held)}",
        f"read {size(result.bytes_read)}, stored {stored}, {duration(result.seconds)}",
    ]
