"""`receive`: the far end of `restore mailbox … --via ssh://HOST`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mailbackup.cli.answer import Answer
from mailbackup.cli.command import Run, command
from mailbackup.cli.restore import LIVE, DryRun, Mode, ToMailbox, answer, check_mode, live_answer
from mailbackup.errors import UsageError

User = Annotated[str | None, typer.Option("--user", metavar="ADDRESS", help="With --to live: the account in Dovecot.", show_default=False)]


def register(root: typer.Typer) -> None:
    """Add the command to the program."""
    command(root, "receive", example="mailbackup receive --to live --user user@example.org")(receive)


def receive(run: Run, *, to: ToMailbox, user: User = None, mode: Mode = None, dry_run: DryRun = False) -> Answer:
    """Take a mailbox from standard input, as 'restore mailbox … --via' sends it, and put it in place when it has come whole."""
    from mailbackup.server import receive as engine

    check_mode(to, mode, overwrite=False)
    if sys.stdin.isatty():
        raise UsageError(
            "nothing is sent on standard input", hint="'mailbackup restore mailbox … --via ssh://HOST' runs this command there."
        )
    if to != LIVE:
        return answer(engine.receive_directory(sys.stdin.buffer, to, run.progress, dry_run=dry_run), to)
    if user is None:
        raise UsageError("--to live needs --user ADDRESS", hint="The account as Dovecot knows it.")
    return live_answer(engine.receive_live(sys.stdin.buffer, user, run.progress, dry_run=dry_run))
