"""`restore mailbox`, `restore files`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.browse import At, Location
from mailbackup.cli.command import Run, command, group
from mailbackup.cli.text import duration, number, size, table
from mailbackup.errors import DamageError, NotFound, UsageError
from mailbackup.model.ids import safe_path
from mailbackup.model.results import Fetched, MailboxLine, RestoreResult

To = Annotated[str, typer.Option("--to", metavar="DIR", help="Where to put it.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist and differ.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


def register(root: typer.Typer) -> None:
    """Add the commands to the program."""
    parent = group(root, "restore", "Put back mailboxes or files.")
    command(parent, "mailbox", example="mailbackup restore mailbox user@example.org --to /tmp/user --identity kit.txt")(mailbox)
    command(parent, "files", example="mailbackup restore files /etc/postfix --to /tmp/files --identity kit.txt")(files)


def mailbox(
    run: Run,
    *,
    to: To,
    addresses: Annotated[list[str] | None, typer.Argument(metavar="ADDRESS", help="Mailboxes.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every mailbox, each in a folder named by its address.")] = False,
    folder: Annotated[str | None, typer.Option("--folder", metavar="NAME", help="Only this folder.", show_default=False)] = None,
    at: At = "latest",
    location: Location = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> Answer:
    """Put a mailbox into a directory, which then is its Maildir. Several mailboxes get a folder each, named by their address."""
    from mailbackup import app

    names = addresses or []
    if bool(names) == everything:
        raise UsageError("name the mailboxes to restore, or say --all", hint="'mailbackup ls' lists the mailboxes.")
    context, target = run.context(), os.path.abspath(to)

    def one(name: str | None, place: str) -> RestoreResult:
        return app.restore_mailbox(context, name, to=place, folder=folder, at=at, location=location, overwrite=overwrite, dry_run=dry_run)

    if everything or len(names) == 1:
        return _answer(one(None if everything else names[0], target), target)
    _must_exist(names, app.mailboxes(context, at=at))
    places = [os.path.join(target, os.fsdecode(safe_path(name, single=True))) for name in names]
    return _answer(_sum([one(name, place) for name, place in zip(names, places, strict=True)]), target)


def _must_exist(names: list[str], mailboxes: list[MailboxLine]) -> None:
    """Before anything is restored: a misspelt third address should not leave two mailboxes restored."""
    missing = sorted({name.lower() for name in names} - {line.address.lower() for line in mailboxes})
    if missing:
        raise NotFound(f"no mailbox {', '.join(missing)} in the snapshot", hint="'mailbackup ls' lists the mailboxes.")


def files(
    run: Run,
    *,
    paths: Annotated[list[str], typer.Argument(metavar="PATH", help="Files or directories, as they were called on the server.")],
    to: To,
    at: At = "latest",
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
) -> Answer:
    """Put files and directories below a directory, with their whole paths."""
    from mailbackup import app

    target = os.path.abspath(to)
    return _answer(app.restore_files(run.context(), paths, to=target, at=at, overwrite=overwrite, dry_run=dry_run), target)


def _sum(results: list[RestoreResult]) -> RestoreResult:
    """Several restores as one."""
    first = results[0]
    outcomes = {result.outcome for result in results}
    return RestoreResult(
        outcome="incomplete" if "incomplete" in outcomes else first.outcome,
        seq=first.seq,
        messages=sum(result.messages for result in results),
        files=sum(result.files for result in results),
        bytes=sum(result.bytes for result in results),
        kept=sum(result.kept for result in results),
        fetched=Fetched(sum(result.fetched.requests for result in results), sum(result.fetched.bytes for result in results)),
        seconds=sum(result.seconds for result in results),
        findings=tuple(finding for result in results for finding in result.findings),
        plan=tuple(line for result in results for line in result.plan),
    )


def _answer(result: RestoreResult, target: str) -> Answer:
    incomplete = result.outcome == "incomplete"
    return Answer(
        outcome=result.outcome,
        exit_status=DamageError.exit_status if incomplete else 0,
        fields=fields_of(result),
        text=_plan(result, target) if result.outcome == "planned" else _summary(result, target),
        report=result.outcome != "planned",
        findings=result.findings,
    )


def _plan(result: RestoreResult, target: str) -> list[str]:
    steps = table([(line.action, line.path, line.detail) for line in result.plan])
    held = f"{number(result.messages, 'message')}, {number(result.files, 'file')}, {size(result.bytes)}"
    return [*steps, f"snapshot {result.seq} would put {held} into {target}; nothing was changed"]


def _summary(result: RestoreResult, target: str) -> list[str]:
    held = f"{number(result.messages, 'message')}, {number(result.files, 'file')}, {size(result.bytes)}"
    kept = f" ({result.kept:,} were there already)" if result.kept else ""
    fetched = f"{size(result.fetched.bytes)} in {number(result.fetched.requests, 'request')}"
    return [f"restored {held} from snapshot {result.seq} to {target}{kept}", f"fetched {fetched}, {duration(result.seconds)}"]
