"""`key kit`, `key new`, `key rewrap`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command, group
from mailbackup.cli.text import number

Out = Annotated[str, typer.Option("--out", metavar="FILE", help="Where to write the kit.", show_default=False)]
NoPassphrase = Annotated[bool, typer.Option("--no-passphrase", help="Leave the kit unprotected: who has the file can read everything.")]


def register(root: typer.Typer) -> None:
    """Add the commands to the program."""
    parent = group(root, "key", "Keys and the recovery kit.")
    command(parent, "kit", example="mailbackup key kit --out new-kit.txt --page new-kit.html --identity kit.txt")(kit)
    command(parent, "new", example="mailbackup key new --out /etc/mailbackup/prune.key")(new)
    command(parent, "rewrap", example="mailbackup key rewrap --identity kit.txt")(rewrap)


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


def new(
    _run: Run, *, out: Annotated[str, typer.Option("--out", metavar="FILE", help="Where to write the key.", show_default=False)]
) -> Answer:
    """Make a signing key for a machine that prunes or drills. It opens no mail, and counts when the admin has named it."""
    from mailbackup import trust

    path = os.path.abspath(out)
    public = trust.new_signing_key(path)
    told = ["Where the recovery kit is:", f"  mailbackup vault trust add prune {public} --identity KIT"]
    return Answer(fields={"out": path, "public": public}, text=[f"signing key written to {path}", f"its public half: {public}", *told])


def rewrap(run: Run) -> Answer:
    """Let today's recipients also open what is older than they are: after a [[recipient]] was added. Needs the recovery kit.

    Nothing is taken from recipients that were removed: what they could open, they can open.
    """
    from mailbackup import trust
    from mailbackup.errors import WrongIdentity

    result = trust.rewrap(run.context())
    lines = [f"{number(len(result.rewrapped), 'epoch')} sealed to today's recipients, {len(result.already)} that were already"]
    lines += [f"store {name} lacks this, and gets it with the next backup: {why}" for name, why in result.without.items()]
    if result.unopened:
        lines.append(f"not opened by this kit: {', '.join(map(str, result.unopened))}")
    return Answer(exit_status=WrongIdentity.exit_status if result.unopened else 0, fields=fields_of(result), text=lines)
