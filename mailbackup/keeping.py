"""Which snapshots stay: `prune`, `pin`, `undelete` and `ack` on the configured stores, by whoever holds a signing key that the admin named for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any, Literal

from mailbackup.access import Context, chosen_stores, open_place, store_dir
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import (
    ConflictError,
    DamageError,
    IdentityMissing,
    KeyProblem,
    MailbackupError,
    NotFound,
    SafetyRefusal,
    StoreError,
    UsageError,
)
from mailbackup.host import stamp
from mailbackup.kit import load_signing_key
from mailbackup.model import codec
from mailbackup.model.events import Phase, Stop, never
from mailbackup.model.ids import act_key
from mailbackup.model.ledger import Act, ActType, Anchors, Head
from mailbackup.model.options import StoreConfig
from mailbackup.model.results import ActResult, PrunedStore, PruneResult, SnapshotReason
from mailbackup.model.tree import RECORD_LIMIT
from mailbackup.stores.base import Store
from mailbackup.upkeep import locks
from mailbackup.upkeep.acts import Book, add_act, read_book
from mailbackup.upkeep.planning import Rules
from mailbackup.upkeep.prune import Looked, Pruned, dry_run, look, prune
from mailbackup.upkeep.witness import check_seen, remember_seen
from mailbackup.vault.chain import Trust, find_head, trust_within

ACKABLE = ("freeze", "share", "silence")


def prune_stores(
    context: Context, *, planned: bool = False, remove_last: bool = False, key_file: str | None = None, stop: Stop = never
) -> PruneResult:
    """Apply the retention of each chosen store to it. With `planned` nothing is changed, and no key is needed.

    A store that refuses or fails does not keep the others from being pruned; when it is the only one, its error is raised. Raises UsageError when
    no retention is set, KeyProblem for a key that nobody named.
    """
    began = time.monotonic()
    places = chosen_stores(context)
    rules = {place.name: _rules(context, place, remove_last) for place in places}
    signer = None if planned else _signer(context, key_file)
    stores: list[PrunedStore] = []
    reasons: list[SnapshotReason] = []
    for place in places:
        try:
            done = _one(context, place, rules[place.name], signer, remove_last, stop)
        except (StoreError, SafetyRefusal, DamageError, ConflictError, KeyProblem) as error:
            if len(places) == 1:
                raise
            stores.append(_not_pruned(place.name, error))
        else:
            stores.append(_told(place.name, done, planned=planned))
            reasons += _reasons(place.name, done)
    worst = min((store.outcome for store in stores), key=("failed", "refused", "planned", "pruned").index)
    return PruneResult(
        outcome=worst, kept=max((store.kept for store in stores), default=0), removed=len({seq for store in stores for seq in store.dropped}),
        freed_bytes=sum(store.freed_bytes for store in stores), seconds=round(time.monotonic() - began, 3), reasons=tuple(reasons),
        stores=tuple(stores),
    )  # fmt: skip


def _not_pruned(name: str, error: MailbackupError) -> PrunedStore:
    outcome: Literal["refused", "failed"] = "refused" if isinstance(error, SafetyRefusal) else "failed"
    return PrunedStore(name=name, outcome=outcome, exit_status=error.exit_status, detail=error.message, hint=error.hint)


def _one(context: Context, place: StoreConfig, rules: Rules, signer: SigningKey | None, remove_last: bool, stop: Stop) -> Pruned:
    with closing(open_place(context, place)) as store:
        anchors = context.anchors_of(place.name)
        if signer is None:
            return dry_run(store, anchors, rules, remove_last=remove_last)
        _check_role(store, anchors, signer)
        locked = locks.Extended()

        def care(looked: Looked) -> None:
            _check_acts(context, place, looked.history.book)
            _extend_locks(context, place, store, locked, looked)

        done = prune(store, anchors, signer, rules, remove_last=remove_last, care=care, stop=stop, on_event=context.on_event)
        done.extended, done.unlocked, done.untried = locked.extended, locked.failed, locked.left
        remember_seen(context.state_dir, place.name, read_book(store, anchors))
        return done


def _check_acts(context: Context, place: StoreConfig, book: Book) -> None:
    """Raises ChainBroken when the acts of a store are not those that were seen in it, or are those of another configured store."""
    names = [store.name for store in context.config.stores]
    check_seen(context.state_dir, place.name, book, names)
    for other in context.config.stores:
        if other.name == place.name or book.chain is None:
            continue
        with suppress(StoreError, KeyProblem), closing(open_place(context, other)) as store, suppress(DamageError):
            if _first_chain(store) == book.chain:
                raise SafetyRefusal(
                    f"stores {place.name} and {other.name} have the same acts",
                    hint="One of the two was copied, by hand or by somebody who meant harm: nothing is pruned in either."
                    " If they are the same place, configure it once.",
                )


def _first_chain(store: Store) -> str:
    """The chain that act 1 of a store says it begins; nothing of it is believed."""
    line, _, _ = store.get(act_key(1), RECORD_LIMIT).partition(b"\n")
    return codec.decode(line, Act, act_key(1)).chain


def _extend_locks(context: Context, place: StoreConfig, store: Store, result: locks.Extended, looked: Looked) -> None:
    """What must stay is kept locked: from here, since whoever holds the mail server could let the locks run out."""
    if not store.traits.object_lock or place.lock_days <= 0:
        return
    context.on_event(Phase(f"extending locks in {place.name}"))
    keys = locks.to_keep(looked.history.registry, looked.history.book, looked.history.head[0])
    folder = store_dir(context, place.name)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with locks.remembered(os.path.join(folder, locks.FILE_NAME), place.url) as remembered:
        done = locks.extend(store, keys, store.now(), place.lock_days, remembered)
    result.extended, result.failed, result.left = result.extended + done.extended, done.failed, done.left


def _rules(context: Context, place: StoreConfig, remove_last: bool) -> Rules:
    rules = context.config.retention
    policy = place.retention or rules
    if policy.keeps_nothing() and not remove_last:
        raise UsageError(
            f"no retention is set for store {place.name}, so nothing is to go",
            hint="Set one, for example:  [retention]  daily = 14  weekly = 8  monthly = 12. See docs/guides/retention.md.",
        )
    return Rules(
        policy=policy, grace=timedelta(days=rules.grace_days), max_share=rules.max_share, audit_age=timedelta(days=rules.audit_days),
        silence=timedelta(days=rules.silence_days),
    )  # fmt: skip


def _signer(context: Context, key_file: str | None) -> SigningKey:
    path = key_file or context.config.retention.key_file
    if path is None:
        raise IdentityMissing(
            "acts are signed, and no signing key was named",
            hint="Make one with 'mailbackup key new', let the admin name it ('mailbackup vault trust add prune KEY'), and set retention.key_file.",
        )
    return load_signing_key(path)


def _check_role(store: Store, anchors: Anchors, signer: SigningKey) -> None:
    """Raises KeyProblem when nobody named this key for pruning."""
    trust = trust_within(store, find_head(store), anchors)
    if not may_prune(trust, signer):
        raise KeyProblem(
            f"store {store.name}: the signing key {signer.public[:16]}… is not named for pruning",
            hint=f"Where the recovery kit is: mailbackup vault trust add prune {signer.public} --identity KIT",
        )


def may_prune(trust: Trust, signer: SigningKey) -> bool:
    """Whether a key may sign what makes snapshots go."""
    return signer.public == trust.admin or "prune" in trust.roles.get(signer.public, ())


def _told(name: str, done: Pruned, *, planned: bool) -> PrunedStore:
    plan = done.plan
    details = [guard.detail for guard in plan.guards] + [f"cannot lock {key}: {why}" for key, why in done.unlocked[:1]]
    outcome: Literal["planned", "failed", "pruned"] = "planned" if planned else "failed" if done.unlocked else "pruned"
    status = StoreError.exit_status if done.unlocked and not planned else 0
    return PrunedStore(
        name=name, outcome=outcome, exit_status=status, kept=sum(decision.keep for decision in plan.decisions), dropped=tuple(plan.drop), gone=tuple(plan.gone),
        packs=len(plan.packs) + len(plan.stray), deleted=done.deleted, freed_bytes=plan.bytes if planned else done.bytes, locked=done.locked,
        extended=done.extended, unlocked=len(done.unlocked) + done.untried, waiting=plan.waiting, held=plan.held, live=plan.live,
        guards=tuple(guard.name for guard in plan.guards), detail="; ".join(details), hint=" ".join(guard.hint for guard in plan.guards),
    )  # fmt: skip


def _reasons(name: str, done: Pruned) -> Iterator[SnapshotReason]:
    for row in done.plan.decisions:
        yield SnapshotReason(store=name, seq=row.seq, time=stamp(done.entries[row.seq].time), keep=row.keep, reasons=row.reasons)


# ---------------------------------------------------------------- pins and acks


def pin(context: Context, seqs: tuple[int, ...], *, note: str, release: bool, key_file: str | None = None) -> ActResult:
    """Keep snapshots whatever the retention says, or no longer. Raises NotFound, UsageError."""

    def make(book: Book, known: set[int], head: Head) -> dict[str, Any]:
        _check_known(seqs, book, known)
        absent = [seq for seq in seqs if seq not in book.pinned]
        if release and absent:
            raise NotFound(f"snapshot {absent[0]} is not pinned")
        return {"snapshots": seqs, "note": note, "release": release}

    acts, without = _act_everywhere(context, "pin", make, key_file)
    return ActResult(acts=acts, without=without, snapshots=seqs)


def undelete(context: Context, seqs: tuple[int, ...], *, key_file: str | None = None) -> ActResult:
    """Take back that snapshots were dropped, while their grace period lasts; they are pinned then. Raises NotFound, SafetyRefusal."""

    def make(book: Book, known: set[int], head: Head) -> dict[str, Any]:
        _check_known(seqs, book, known)
        there = [seq for seq in seqs if seq not in book.dropped]
        if there:
            raise NotFound(f"snapshot {there[0]} was not dropped", hint="'mailbackup snapshots' lists what is kept.")
        return {"snapshots": seqs, "note": "taken back"}

    acts, without = _act_everywhere(context, "undelete", make, key_file)
    return ActResult(acts=acts, without=without, snapshots=seqs)


def _check_known(seqs: tuple[int, ...], book: Book, known: set[int]) -> None:
    for seq in seqs:
        if seq not in known:
            raise NotFound(f"there is no snapshot {seq}")
        if seq in book.gone:
            raise NotFound(f"snapshot {seq} was deleted: its grace period is over", hint="Another store may still have it (--store NAME).")


def ack(context: Context, guards: tuple[str, ...], *, size: int = 0, note: str = "", key_file: str | None = None) -> ActResult:
    """A human has looked at what these guard rails are about, up to the newest entry. Raises UsageError."""
    unknown = [guard for guard in guards if guard not in ACKABLE]
    if unknown or not guards:
        raise UsageError(
            f"there is no guard rail '{unknown[0]}' to acknowledge" if unknown else "name a guard rail",
            hint=f"Known: {', '.join(ACKABLE)}.",
        )
    if ("share" in guards) != (size > 0):
        raise UsageError(
            "--bytes says how much may go, and belongs to share", hint="'mailbackup prune --dry-run' says how much it would be."
        )

    def make(book: Book, known: set[int], head: Head) -> dict[str, Any]:
        return {"guards": guards, "bytes": size, "note": note, "head": head}

    acts, without = _act_everywhere(context, "ack", make, key_file)
    return ActResult(acts=acts, without=without, guards=guards)


_Make = Callable[[Book, set[int], Head], dict[str, Any]]


def _act_everywhere(context: Context, kind: ActType, make: _Make, key_file: str | None) -> tuple[dict[str, int], dict[str, str]]:
    """Add an act to each chosen store that can take it: its number in each, and why the others have none. Raises the first error when none could."""
    signer = _signer(context, key_file)
    acts: dict[str, int] = {}
    without: dict[str, str] = {}
    first: MailbackupError | None = None
    for place in chosen_stores(context):
        try:
            acts[place.name] = _act(context, place, kind, make, signer)
        except (StoreError, NotFound, DamageError, KeyProblem, ConflictError, SafetyRefusal) as error:
            first, without[place.name] = first or error, error.message
    if first is not None and not acts:
        raise first
    return acts, without


def _act(context: Context, place: StoreConfig, kind: ActType, make: _Make, signer: SigningKey) -> int:
    with closing(open_place(context, place)) as store:
        anchors = context.anchors_of(place.name)
        _check_role(store, anchors, signer)
        history = look(store, anchors).history
        known = {entry.seq for entry in history.entries if entry.outcome is not None}
        head = Head(seq=history.head[0], sha256=history.head[1])
        _check_acts(context, place, history.book)
        act = add_act(store, anchors, signer, kind, lambda book: make(book, known, head))
        if act is None:
            raise ConflictError(f"store {place.name}: nothing was recorded")
        remember_seen(context.state_dir, place.name, read_book(store, anchors))
        return act.seq
