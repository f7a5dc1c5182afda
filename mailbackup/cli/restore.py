"""`restore mailbox`, `restore files`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from mailbackup.cli import server
from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.browse import At, Location
from mailbackup.cli.command import Run, command, group
from mailbackup.cli.text import duration, number, size, table
from mailbackup.errors import DamageError, NotFound, UsageError
from mailbackup.model.ids import safe_path
from mailbackup.model.results import Fetched, MailboxLine, RestoreResult

if TYPE_CHECKING:
    from mailbackup.server.live import LiveMailbox, LiveResult, Wish

To = Annotated[str, typer.Option("--to", metavar="DIR", help="Where to put it.", show_default=False)]
ToMailbox = Annotated[str, typer.Option("--to", metavar="DIR|live", help="A directory, or the running mail server.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist and differ.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Mode = Annotated[
    str | None, typer.Option("--mode", metavar="MODE", help="With --to live: recovered = below a new folder.", show_default=False)
]
Via = Annotated[
    str | None, typer.Option("--via", metavar="URL", help="ssh://[user@]host[:port] of the machine to restore on.", show_default=False)
]

LIVE = "live"
RECOVERED = "recovered"
LATER = ("merge", "flags", "exact")


def register(root: typer.Typer) -> None:
    """Add the commands to the program."""
    parent = group(root, "restore", "Put back mailboxes or files.")
    command(parent, "mailbox", example="mailbackup restore mailbox user@example.org --to /tmp/user --identity kit.txt")(mailbox)
    command(parent, "files", example="mailbackup restore files /etc/postfix --to /tmp/files --identity kit.txt")(files)
    server.register(parent)


def mailbox(
    run: Run,
    *,
    to: ToMailbox,
    addresses: Annotated[list[str] | None, typer.Argument(metavar="ADDRESS", help="Mailboxes.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every mailbox, each in a folder named by its address.")] = False,
    folder: Annotated[str | None, typer.Option("--folder", metavar="NAME", help="Only this folder.", show_default=False)] = None,
    at: At = "latest",
    location: Location = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    mode: Mode = None,
    via: Via = None,
) -> Answer:
    """Put a mailbox into a directory, which then is its Maildir. Several mailboxes get a folder each, named by their address.

    With --to live it goes into the running Dovecot of this machine, below a new folder Recovered/DATE; nothing that is there is changed.
    With --via all this happens on another machine, and the identity stays on this one.
    """
    from mailbackup import app

    names = addresses or []
    if bool(names) == everything:
        raise UsageError("name the mailboxes to restore, or say --all", hint="'mailbackup ls' lists the mailboxes.")
    check_mode(to, mode, overwrite=overwrite and via is None)
    if via is not None and overwrite:
        raise UsageError("over a network nothing is overwritten", hint="Leave --overwrite out, and choose a new or empty directory.")
    if to == LIVE or via is not None:
        from mailbackup.server.live import Wish

        wishes = [
            Wish(name=name, user=user, folder=folder, at=at, location=location, dry_run=dry_run)
            for name, user in _named(run, names, at, location)
        ]
        return _live(run, wishes) if via is None else _via(run, wishes, via, to)
    context, target = run.context(), os.path.abspath(to)

    def one(name: str | None, place: str) -> RestoreResult:
        return app.restore_mailbox(context, name, to=place, folder=folder, at=at, location=location, overwrite=overwrite, dry_run=dry_run)

    if everything or len(names) == 1:
        return answer(one(None if everything else names[0], target), target)
    _must_exist(names, app.mailboxes(context, at=at))
    places = [os.path.join(target, os.fsdecode(safe_path(name, single=True))) for name in names]
    return answer(_sum([one(name, place) for name, place in zip(names, places, strict=True)]), target)


def check_mode(to: str, mode: str | None, *, overwrite: bool) -> None:
    """Raises UsageError for what cannot be combined, or is not there yet."""
    if mode is not None and to != LIVE:
        raise UsageError("--mode belongs to --to live", hint="Into a directory, --overwrite replaces files that differ.")
    if mode in LATER:
        raise UsageError(
            f"--mode {mode} comes with a later version", hint="--mode recovered puts everything below a new folder Recovered/DATE."
        )
    if mode not in (None, RECOVERED):
        raise UsageError(f"there is no mode {mode}", hint="Say --mode recovered, or nothing.")
    if to == LIVE and overwrite:
        raise UsageError("--to live overwrites nothing", hint="Leave --overwrite out.")


def _named(run: Run, names: list[str], at: str, location: str | None) -> list[tuple[str, str | None]]:
    """Mailboxes of the snapshot, each with its account; all of them when none is named. Raises NotFound before anything is restored."""
    from mailbackup import app

    if len(names) == 1:
        return [(names[0], None)]
    lines = app.mailboxes(run.context(), at=at)
    _must_exist(names, lines)
    found: list[tuple[str, str | None]] = [(name, None) for name in names]
    found = found or [(line.key, line.address) for line in lines if location in (None, line.location)]
    if not found:
        raise NotFound("the snapshot has no mailboxes", hint="'mailbackup ls' lists them.")
    return found


def _live(run: Run, wishes: list[Wish]) -> Answer:
    """Into the Dovecot of this machine. All accounts must be known before one is changed."""
    from mailbackup.server import live

    if len(wishes) > 1:
        live.check_accounts([wish.user or wish.name for wish in wishes])
    context = run.context()
    return live_answer(live.summed([live.restore_live(context, wish) for wish in wishes]))


def _via(run: Run, wishes: list[Wish], url: str, to: str) -> Answer:
    """To another machine, one mailbox after the other."""
    from mailbackup.server import live, via

    host, context = via.Host.parse(url), run.context()
    if to == LIVE:
        return live_answer(live.summed([via.live_via(context, host, wish) for wish in wishes]))
    if not to.startswith("/"):
        raise UsageError(f"--to {to}: the path on {host.name} must be absolute", hint="For example: --to /var/tmp/user")
    if len(wishes) == 1:
        return answer(via.directory_via(context, host, wishes[0], to), f"{host.name}:{to}")
    places = [os.path.join(to, os.fsdecode(safe_path(wish.user or wish.name, single=True))) for wish in wishes]
    return answer(
        _sum([via.directory_via(context, host, wish, place) for wish, place in zip(wishes, places, strict=True)]), f"{host.name}:{to}"
    )


def live_answer(result: LiveResult) -> Answer:
    """What is said of a restore into a running server."""
    incomplete = result.outcome == "incomplete"
    return Answer(
        outcome=result.outcome,
        exit_status=DamageError.exit_status if incomplete else 0,
        fields=fields_of(result),
        text=_live_plan(result) if result.outcome == "planned" else _live_summary(result),
        report=result.outcome != "planned",
        findings=result.findings,
    )


def _live_plan(result: LiveResult) -> list[str]:
    quota = table([(line.action, line.path, line.detail) for line in result.plan if line.action == "quota"])
    return [*quota, *(f"would put {_held(box)} below {box.into} of {box.address}" for box in result.mailboxes), "nothing was changed"]


def _live_summary(result: LiveResult) -> list[str]:
    fetched = f"{size(result.fetched.bytes)} in {number(result.fetched.requests, 'request')}"
    done = "restored" if result.outcome == "complete" else "NOT restored as it should be:"
    rows = [f"{done} {_held(box)} from snapshot {result.seq} to {box.into} of {box.address}" for box in result.mailboxes]
    return [*rows, f"fetched {fetched}, {duration(result.seconds)}"]


def _held(box: LiveMailbox) -> str:
    return f"{number(box.messages, 'message')} in {number(box.folders, 'folder')}, {size(box.bytes)},"


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
    return answer(app.restore_files(run.context(), paths, to=target, at=at, overwrite=overwrite, dry_run=dry_run), target)


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


def answer(result: RestoreResult, target: str) -> Answer:
    """What is said of a restore into a directory."""
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
