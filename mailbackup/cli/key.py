"""`key kit`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mailbackup.cli.answer import Answer
from mailbackup.cli.command import Run, command, group

Out = Annotated[str, typer.Option("--out", metavar="FILE", help="Where to write the kit.", show_default=False)]
NoPassphrase = Annotated[bool, typer.Option("--no-passphrase", help="Leave the kit unprotected: who has the file can read everything.")]


def register(root: typer.Typer) -> None:
    """Add the commands to the program."""
    parent = group(root, "key", "Keys and the recovery kit.")
    command(parent, "kit", example="mailbackup key kit --out new-kit.txt --page new-kit.html --identity kit.txt")(kit)


def kit(
    run: Run,
    *,
    out: Out,
    page: Annotated[str | None, typer.Option("--page", metavar="FILE.html", help="Also as a page to print.", show_default=False)] = None,
    no_passphrase: NoPassphrase = False,
) -> Answer:
    """Write the recovery kit anew, with today's stores and the newest snapshot as its anchor. Needs the old kit."""
    from mailbackup import app
    from mailbackup.cli.secret import new_passphrase

    context, kit_path, page_path = run.context(), os.path.abspath(out), os.path.abspath(page) if page else None
    app.write_kit(context, out=kit_path, page=page_path, passphrase=new_passphrase(none=no_passphrase))
    written = [f"recovery kit written to {kit_path}", *([f"page to print written to {page_path}"] if page_path else [])]
    return Answer(fields={"kit": kit_path, "page": page_path}, text=[*written, "Keep it away from this machine, and try it once."])
