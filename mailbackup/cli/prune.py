"""`prune`, `pin`, `undelete` and `ack`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command
from mailbackup.cli.text import duration, number, size
from mailbackup.errors import StoreError, UsageError

KeyFile = Annotated[
    str | None, typer.Option("--key", metavar="FILE", help="The signing key; the default is retention.key_file.", show_default=False)
]
Seqs = Annotated[list[int], typer.Argument(metavar="SEQ…", help="Numbers of snapshots ('mailbackup snapshots').", show_default=False)]


def register(root: typer.Typer) -> None:
    """Add the commands to the program."""
    command(root, "prune", example="mailbackup prune --dry-run")(prune)
    command(root, "pin", example="mailbackup pin 214 --note 'before the migration'")(pin)
    command(root, "undelete", example="mailbackup undelete 214")(undelete)
    command(root, "ack", example="mailbackup ack freeze --note 'the archive was moved on purpose'")(ack)


def prune(
    run: Run,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and why; needs no key.")] = False,
    yes_remove_last: Annotated[
        bool, typer.Option("--yes-remove-last", help="Let also the newest snapshots go when the retention does not keep them.")
    ] = False,
    key_file: KeyFile = None,
) -> Answer:
    """Let old snapshots go, as the retention says. What goes can be taken back for a week; needs a signing key, and none that opens mail."""
    from mailbackup import keeping

    result = keeping.prune_stores(run.context(), planned=dry_run, remove_last=yes_remove_last, key_file=key_file)
    return Answer(outcome=result.outcome, exit_status=result.exit_status, fields=fields_of(result), text=_summary(result, dry_run))


def _summary(result: Any, planned: bool) -> list[str]:
    lines = []
    for row in result.reasons if planned else ():
        lines.append(f"{row.store}  {row.seq:>6}  {row.time}  {'keep' if row.keep else 'drop'}  {', '.join(row.reasons)}")
    for store in result.stores:
        if store.outcome in ("refused", "failed"):
            lines += [f"store {store.name}: {store.outcome}: {store.detail}", f"  {store.hint}"]
            continue
        would = "would keep" if planned else "keeps"
        lines.append(
            f"store {store.name} {would} {number(store.kept, 'snapshot')}; {len(store.dropped)} dropped, {len(store.gone)} deleted for good,"
            f" {size(store.freed_bytes)} freed"
        )
        if store.held or store.waiting:
            lines.append(
                f"  still there: {size(store.held)} that wait out their grace period or are needed, {size(store.waiting)} that wait for an audit"
            )
        if store.locked:
            lines.append(f"  still locked: {number(store.locked, 'object')}; each run tries again")
        if store.extended:
            lines.append(f"  locked for longer: {number(store.extended, 'object')} that must stay")
        if store.unlocked:
            lines.append(f"  {number(store.unlocked, 'object')} that must stay could not be locked: {store.detail}")
        if store.guards:
            lines += [f"  a run would refuse: {store.detail}", f"  {store.hint}"]
    return [*lines, *([] if planned else [duration(result.seconds)])]


def pin(
    run: Run,
    seqs: Seqs,
    *,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="Why, in words; everybody who sees the store can read it.")] = "",
    release: Annotated[bool, typer.Option("--release", help="Let go again.")] = False,
    key_file: KeyFile = None,
) -> Answer:
    """Keep snapshots whatever the retention says."""
    from mailbackup import keeping

    result = keeping.pin(run.context(), tuple(seqs), note=note, release=release, key_file=key_file)
    return _told(result, "let go of" if release else "pinned")


def undelete(run: Run, seqs: Seqs, *, key_file: KeyFile = None) -> Answer:
    """Take back that snapshots were dropped, while their grace period lasts. They stay pinned until 'mailbackup pin --release'."""
    from mailbackup import keeping

    return _told(keeping.undelete(run.context(), tuple(seqs), key_file=key_file), "taken back and pinned")


def _told(result: Any, what: str) -> Answer:
    names = ", ".join(f"snapshot {seq}" for seq in result.snapshots)
    return _acted(result, f"{names} {what}")


def _acted(result: Any, what: str) -> Answer:
    """Done in some stores; a store that could not be reached still has it as it was, which is not what was asked for."""
    lines = [f"{what} in {', '.join(result.acts)}", *(f"NOT in {name}: {why}" for name, why in result.without.items())]
    return Answer(
        outcome="partial" if result.without else "done",
        exit_status=StoreError.exit_status if result.without else 0,
        fields=fields_of(result),
        text=lines,
    )


def ack(
    run: Run,
    guards: Annotated[list[str], typer.Argument(metavar="GUARD…", help="freeze, share or silence.", show_default=False)],
    *,
    size_: Annotated[int, typer.Option("--bytes", metavar="N", help="For share: how many bytes may go.")] = 0,
    note: Annotated[str, typer.Option("--note", metavar="TEXT", help="What you found, in words.")] = "",
    key_file: KeyFile = None,
) -> Answer:
    """Say that you have looked at what 'mailbackup prune' refused for, and that all is well."""
    from mailbackup import keeping

    if not note.strip():
        raise UsageError("say what you found with --note", hint="Whoever looks at this vault in a year will want to know.")
    result = keeping.ack(run.context(), tuple(guards), size=size_, note=note, key_file=key_file)
    return _acted(result, f"{', '.join(result.guards)} acknowledged")
