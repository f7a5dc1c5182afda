"""`snapshots`, `ls`, `diff`, `show`: look into the vault without changing anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command
from mailbackup.cli.text import number, size, table
from mailbackup.model.codec import plain
from mailbackup.model.ids import to_name
from mailbackup.model.results import DiffMailbox, DiffResult, MailboxLine, MessageLine, SnapshotRow
from mailbackup.model.tree import Snapshot

At = Annotated[str, typer.Option("--at", metavar="WHEN", help="A snapshot: its number, a date, 'yesterday 18:00', or 'latest'.")]
Location = Annotated[str | None, typer.Option("--location", metavar="NAME", help="The [[mail]] section, where two have the same address.")]


def register(root: typer.Typer) -> None:
    """Add the commands to the program."""
    command(root, "snapshots", example="mailbackup snapshots")(snapshots)
    command(root, "ls", example="mailbackup ls user@example.org --identity kit.txt")(ls)
    command(root, "diff", example="mailbackup diff 41 latest user@example.org --identity kit.txt")(diff)
    command(root, "show", example="mailbackup show user@example.org 3f2a9c --identity kit.txt > message.eml")(show)


def snapshots(run: Run) -> Answer:
    """List the snapshots of the vault, oldest first. Needs no key."""
    from mailbackup import app

    rows = app.snapshots(run.context())
    return Answer(fields={"snapshots": plain(rows)}, text=_snapshot_table(rows), report=False)


def _snapshot_table(rows: list[SnapshotRow]) -> list[str]:
    if not rows:
        return ["no snapshots yet"]
    head = ("seq", "time", "messages", "size", "outcome", "stores")
    cells = [(str(row.seq), row.time, *_counts(row), row.outcome, _places(row)) for row in rows]
    return table([head, *cells], right=frozenset({0, 2, 3}))


def _places(row: SnapshotRow) -> str:
    """The stores of a snapshot; those that let it go soon are marked, and so are pins."""
    places = [f"{name} (dropped)" if name in row.dropped else name for name in row.stores]
    return " ".join([*places, *([f"pinned: {row.pinned}"] if row.pinned is not None else [])])


def _counts(row: SnapshotRow) -> tuple[str, str]:
    return "-" if row.messages is None else f"{row.messages:,}", "-" if row.bytes is None else size(row.bytes)


def ls(
    run: Run,
    *,
    what: Annotated[str | None, typer.Argument(metavar="ADDRESS[/FOLDER]", help="A mailbox or folder.", show_default=False)] = None,
    at: At = "latest",
    location: Location = None,
) -> Answer:
    """List the mailboxes of a snapshot, or the messages of one mailbox."""
    from mailbackup import app

    if what is None:
        mailboxes = [line for line in app.mailboxes(run.context(), at=at) if location in (None, line.location)]
        return Answer(fields={"mailboxes": plain(mailboxes)}, text=_mailbox_table(mailboxes), report=False)
    address, slash, folder = what.partition("/")
    messages = app.messages(run.context(), address, folder=folder if slash else None, at=at, location=location)
    return Answer(fields={"messages": [message_fields(line) for line in messages]}, text=_message_table(messages), report=False)


def message_fields(line: MessageLine) -> dict[str, Any]:
    """A message as JSON. `from` is a word of Python, hence `from_` in the record."""
    return {name.rstrip("_"): value for name, value in plain(line).items()}


def _mailbox_table(lines: list[MailboxLine]) -> list[str]:
    head = ("address", "messages", "size", "location", "")
    cells = [(line.address, f"{line.messages:,}", size(line.bytes), line.location, "stale" if line.stale else "") for line in lines]
    return table([head, *cells], right=frozenset({1, 2}))


def _message_table(lines: list[MessageLine]) -> list[str]:
    head = ("id", "folder", "date", "size", "flags", "from", "subject")
    cells = [(m.id[:16], m.folder or "INBOX", m.date or "-", size(m.size), m.flags or "-", m.from_[:40], m.subject) for m in lines]
    return table([head, *cells], right=frozenset({3}))


def show(
    run: Run,
    *,
    what: Annotated[str, typer.Argument(metavar="SEQ|ADDRESS", help="The number of a snapshot, or the address of a mailbox.")],
    message: Annotated[str | None, typer.Argument(metavar="ID", help="A message, as 'ls' names it.", show_default=False)] = None,
    at: At = "latest",
    location: Location = None,
) -> Answer:
    """Print a snapshot's facts, or one message byte for byte."""
    from mailbackup import app

    if message is None:
        snapshot = app.show_snapshot(run.context(), what)
        return Answer(fields={"snapshot": plain(snapshot)}, text=_snapshot_facts(snapshot), report=False, findings=snapshot.findings)
    raw = app.show_message(run.context(), what, message, at=at, location=location)
    return Answer(fields={"message": plain(to_name(raw))}, raw=raw)


def _snapshot_facts(snapshot: Snapshot) -> Iterator[str]:
    yield from table(
        [
            ("snapshot", str(snapshot.seq)),
            ("time", snapshot.time),
            ("host", snapshot.host),
            ("tool", snapshot.tool),
            ("vault", snapshot.vault),
            ("outcome", snapshot.outcome),
        ]
    )
    for source in snapshot.sources:
        held = [number(source.messages, "message"), number(source.mailboxes, "mailbox", "mailboxes")] if source.kind == "mail" else []
        yield f"source {source.name} ({source.kind}): {', '.join([*held, size(source.bytes)])}"


_When = typer.Argument(metavar="A", help="The earlier snapshot: its number, a date, 'yesterday 18:00', or 'latest'.")


def diff(
    run: Run,
    *,
    first: Annotated[str, _When],
    second: Annotated[str, typer.Argument(metavar="B", help="The later snapshot.")],
    what: Annotated[
        str | None, typer.Argument(metavar="ADDRESS|PATH", help="One mailbox, or files at and below a path.", show_default=False)
    ] = None,
) -> Answer:
    """Say what differs between two snapshots: mailboxes and messages, files, and what programs said."""
    from mailbackup.server.compare import compare

    result = compare(run.context(), first, second, what)
    return Answer(outcome=result.outcome, fields=fields_of(result), text=_differences(result), report=False)


def _differences(result: DiffResult) -> Iterator[str]:
    if result.outcome == "equal":
        yield f"snapshots {result.first} and {result.second} do not differ"
        return
    yield f"from snapshot {result.first} to {result.second}:"
    yield from table([[_mark(row.change), row.address, _counted(row)] for row in result.mailboxes])
    yield from table([[_mark(m.change), m.id, m.folder, m.subject, m.detail] for m in result.messages])
    yield from table([["~", row.name, f"{row.added} added, {row.removed} removed, {row.changed} changed"] for row in result.sources])
    yield from table([[_mark(row.change), row.path, ", ".join(row.what)] for row in result.files])


def _mark(change: str) -> str:
    return {"added": "+", "removed": "-", "moved": ">"}.get(change, "~")


def _counted(row: DiffMailbox) -> str:
    counts = ((row.added, "added"), (row.removed, "removed"), (row.moved, "moved"), (row.flags, "with other flags"))
    return ", ".join(f"{count:,} {word}" for count, word in counts if count) or "no messages"
