"""`stats`."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command
from mailbackup.cli.text import number, size, table
from mailbackup.model.results import Gains, GrowthRow, MailboxLine, StatsResult, StoreStats


class By(StrEnum):
    """How long a row of the growth is."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"


def register(root: typer.Typer) -> None:
    """Add the command to the program."""
    command(root, "stats", example="mailbackup stats --by week")(stats)


def stats(
    run: Run,
    *,
    by: Annotated[By, typer.Option("--by", help="Show the growth by day, week or month.")] = By.MONTH,
    mailboxes: Annotated[
        bool, typer.Option("--mailboxes", help="Also list mailboxes by size, and what deduplication gains; needs --identity.")
    ] = False,
) -> Answer:
    """Say how large each store is and how it grows. Needs no key: it reads what is public, and counts nothing in the store itself."""
    from mailbackup import growth

    result = growth.stats(run.context(), by=by.value, mailboxes=mailboxes)
    return Answer(fields=fields_of(result), text=summary(result), report=False, findings=result.findings)


def summary(result: StatsResult) -> Iterator[str]:
    """Each store with its growth, then the mailboxes."""
    for store in result.stores:
        yield f"store {store.name}:"
        yield from table(_facts(store), right=frozenset({1}))
        yield from _growth(store.growth)
    if result.gains is not None:
        yield _gained(result.gains)
        yield from _mailboxes(result.mailboxes)


def _facts(store: StoreStats) -> list[tuple[str, str, str]]:
    kept = f"of {store.snapshots:,}, {store.pinned:,} pinned" if store.pinned else f"of {store.snapshots:,}"
    rows = [
        ("packs", size(store.bytes), number(store.packs, "pack")),
        ("live", size(store.live), f"{store.stopped:,} of {number(store.blocks, 'block')} are needed by older snapshots at most"),
        ("dead", size(store.dead), "older snapshots need it, or it waits for 'mailbackup prune'"),
        ("ledger", size(store.records), f"{number(store.head, 'entry', 'entries')}, {number(store.acts, 'act')}"),
        ("freed", size(store.freed), "by prune so far"),
        ("snapshots", f"{store.snapshots - store.dropped:,}", kept),
    ]
    return rows + ([("absent", size(store.absent), "never came here, and nothing needs it")] if store.absent else [])


def _growth(rows: tuple[GrowthRow, ...]) -> list[str]:
    head = ("period", "snapshots", "packs", "added", "freed", "total")
    cells = [(row.period, f"{row.snapshots:,}", f"{row.packs:,}", size(row.added), size(row.freed), size(row.total)) for row in rows]
    return table([head, *cells], right=frozenset(range(1, 6)))


def _gained(gains: Gains) -> str:
    ratio = "" if gains.ratio is None else f": {gains.ratio:.2f} to 1"
    return f"snapshot {gains.seq} holds {size(gains.bytes)}, {size(gains.live)} live in the store{ratio}"


def _mailboxes(lines: tuple[MailboxLine, ...]) -> list[str]:
    head = ("mailbox", "messages", "size", "location")
    return table(
        [head, *((line.address, f"{line.messages:,}", size(line.bytes), line.location) for line in lines)], right=frozenset({1, 2})
    )
