"""`erase`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from mailbackup.cli.answer import Answer, fields_of, lines, write
from mailbackup.cli.command import Run, command
from mailbackup.cli.text import duration, number, size
from mailbackup.errors import StoreError, UsageError
from mailbackup.model.erasure import ErasedStore, EraseResult


def register(root: typer.Typer) -> None:
    """Add the command to the program."""
    command(root, "erase", example="mailbackup erase alice@example.org --dry-run --identity kit.txt")(erase)


def erase(
    run: Run,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="The mailbox.", show_default=False)],
    *,
    location: Annotated[
        str | None, typer.Option("--location", metavar="NAME", help="Only the mailbox in this location.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and what would stay.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. It cannot be taken back.")] = False,
) -> Answer:
    """Erase a mailbox from all snapshots, for good. It must be gone from the mail server, and from the newest snapshot. Needs the recovery kit."""
    from mailbackup import erasure

    if not (dry_run or yes):
        raise UsageError("nothing was done: erasing cannot be taken back", hint="Look at it with --dry-run first; then say --yes.")
    context = run.context()
    result = erasure.erase(context, address, location=location, planned=dry_run, on_plan=None if run.settings.json else _show)
    status = StoreError.exit_status if result.outcome == "partial" else 0
    return Answer(
        outcome=result.outcome,
        exit_status=status,
        fields=fields_of(result),
        text=list(told(result) if dry_run else _done(result)),
        report=not dry_run,
    )


def _show(plan: EraseResult) -> None:
    """The plan, before it is done."""
    write(lines(told(plan)))


def _done(result: EraseResult) -> Iterator[str]:
    for store in result.stores:
        yield f"store {store.name}: " + (f"erased by act {store.act}" if store.act is not None else store.detail)
    yield "The next prunes delete what nothing else needs; no restore brings the mailbox back."
    yield duration(result.seconds)


def told(result: EraseResult) -> Iterator[str]:
    """What goes and what stays."""
    for store in result.stores:
        yield from _of_store(store, result)
    if result.others:
        yield f"not chosen, and left as they are: {', '.join(result.others)}"
    yield "What was restored, exported or forwarded before is out of reach, and so is mail that others have of it."
    yield duration(result.seconds)


def _of_store(store: ErasedStore, result: EraseResult) -> Iterator[str]:
    if store.outcome == "unreachable":
        yield f"store {store.name}: not reached, everything stays there: {store.detail}"
        return
    yield (
        f"store {store.name}: {result.address} would be erased from {number(store.snapshots, 'snapshot')}"
        f" ({number(store.messages, 'message')} in the newest of them)"
    )
    yield f"  goes with the next prune: {size(store.free)}"
    yield f"  goes when nothing else in the same packs is needed any more: {size(store.bytes - store.free)}"
    yield f"  stays, since others refer to it as well: {number(store.shared_blocks, 'block')}, {size(store.shared)}"
    if store.locked:
        yield f"  stays until the lock of the store ends: {number(store.locked, 'pack')}"
    yield "  stays until those snapshots go: the address, and how many messages it had, in their lists of mailboxes"
