"""`copy`."""

from __future__ import annotations

from typing import Annotated

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command
from mailbackup.cli.text import duration, number, size


def register(root: typer.Typer) -> None:
    """Add the command to the program."""
    command(root, "copy", example="mailbackup copy --from cellar --to offsite")(copy)


def copy(
    run: Run,
    *,
    to: Annotated[str, typer.Option("--to", metavar="NAME", help="The store that gets what it lacks.", show_default=False)],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="NAME", help="Read from this store only; else from whichever has it.", show_default=False),
    ] = None,
) -> Answer:
    """Fill a new store from the others, or bring up one that was away. Needs no key; run it again when it was interrupted."""
    from mailbackup import replication

    result = replication.copy_store(run.context(), source=source, target=to)
    lines = [
        f"store {result.target} holds everything up to entry {result.head}: {number(result.copied_objects, 'object')},"
        f" {size(result.copied_bytes)} copied in {number(result.requests, 'request')}, {duration(result.seconds)}"
    ]
    if result.left_out:
        lines.append(f"{number(result.left_out, 'pack')} left out: no store has them any more, and no snapshot needs them")
    return Answer(fields=fields_of(result), text=lines)
