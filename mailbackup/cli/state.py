"""`state rebuild`."""

from __future__ import annotations

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command, group
from mailbackup.cli.text import duration, number


def register(root: typer.Typer) -> None:
    """Add the commands to the program."""
    parent = group(root, "state", "The local state: what this host remembers of its vault.")
    command(parent, "rebuild", example="mailbackup state rebuild --identity kit.txt")(rebuild)


def rebuild(run: Run) -> Answer:
    """Make the local state anew from the latest snapshot, so that the next backup need not send everything again."""
    from mailbackup import app

    result = app.state_rebuild(run.context())
    held = f"{number(result.messages, 'message')} in {number(result.mailboxes, 'mailbox', 'mailboxes')}"
    return Answer(fields=fields_of(result), text=[f"state made anew from snapshot {result.seq}: {held}, {duration(result.seconds)}"])
