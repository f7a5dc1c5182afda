"""`backup`."""

from __future__ import annotations

from typing import Annotated

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command
from mailbackup.cli.text import duration, number, size
from mailbackup.errors import SourceError, StoreError
from mailbackup.model.results import BackupResult, StoreOutcome


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
        exit_status=status_of(result),
        fields=fields_of(result),
        text=summary(result),
        findings=result.findings,
    )


def status_of(result: BackupResult) -> int:
    """A snapshot that is not in every store weighs more than one that is incomplete."""
    if any(store.outcome != "current" for store in result.stores):
        return StoreError.exit_status
    return SourceError.exit_status if result.outcome == "incomplete" else 0


def summary(result: BackupResult) -> list[str]:
    """A backup in two lines."""
    held = [f"{number(result.messages, 'message')} in {number(result.mailboxes, 'mailbox', 'mailboxes')} ({result.new_messages:,} new)"]
    if result.files:
        held.append(number(result.files, "file"))
    stored = f"{size(result.bytes_stored)} in {number(result.requests, 'request')}"
    lines = [
        f"snapshot {result.seq} is {result.outcome}: {', '.join(held)}",
        f"read {size(result.bytes_read)}, stored {stored}, {duration(result.seconds)}",
    ]
    if len(result.stores) > 1:
        lines += [f"store {store.name}: {_store(store)}" for store in result.stores]
    return lines


def _store(store: StoreOutcome) -> str:
    """Where a store stands, and what went there."""
    if store.outcome != "current":
        return f"{store.outcome}, lacks {number(store.missing, 'entry', 'entries')}" if store.missing else store.outcome
    caught = f", caught up from entry {store.before}" if store.before < store.head - 1 else ""
    return f"current, {size(store.bytes_written)} in {number(store.requests, 'request')}{caught}"
