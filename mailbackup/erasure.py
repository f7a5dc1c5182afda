"""Erasing a mailbox from what was backed up: the plan says what goes and what stays, acts say that it is so, and prune deletes.

It needs the recovery kit: to see what others refer to as well, and to sign.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from mailbackup.access import Admin, Context, admin_of, chosen_stores, open_reader, use_nearest
from mailbackup.audit.erase import Erasure, plan_erasure
from mailbackup.crypto.age import AgeOpener, open_epoch
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import ChainBroken, NotFound, StoreError
from mailbackup.model.erasure import ErasedStore, EraseResult
from mailbackup.model.ids import Digest, PackId, pack_key
from mailbackup.model.ledger import Anchors, Head, PackPart, to_ranges, tombstone
from mailbackup.stores.base import Store
from mailbackup.upkeep.acts import Book, add_act, read_book
from mailbackup.upkeep.registry import Registry
from mailbackup.vault.chain import Link, Trust, check_head, find_head, walk
from mailbackup.vault.epochs import EpochOpener
from mailbackup.vault.reader import VaultReader
from mailbackup.vault.tombstones import Tombstones

_PER_ACT = 5_000  # packs that one act names, with the ranges of their blocks

_Planned = tuple[Store, Anchors, Erasure]


def erase(
    context: Context,
    address: str,
    *,
    location: str | None = None,
    planned: bool = False,
    on_plan: Callable[[EraseResult], None] | None = None,
) -> EraseResult:
    """Erase the mailboxes of an address from the chosen stores; with `planned` only say what would go and what would stay.

    `on_plan` gets that before anything is done, and all stores are planned before the first is changed. Raises IdentityMissing and KeyMalformed without the
    recovery kit, NotFound when no store has the mailbox, SafetyRefusal while the newest snapshot holds it, DamageError when it cannot be told what others
    refer to.
    """
    began = time.monotonic()
    admin = admin_of(context)
    stores: list[ErasedStore] = []
    absent: NotFound | StoreError | None = None
    with contextlib.ExitStack() as stack:
        plans: list[_Planned] = []
        for place in chosen_stores(context):
            try:
                reader = stack.enter_context(_vault(context, place.name, admin))
                plans.append((reader.store, reader.anchors_of(reader.store), _plan(context, reader, address, location)))
            except StoreError as error:
                absent = absent or error
                stores.append(ErasedStore(name=place.name, outcome="unreachable", detail=error.message))
            except NotFound as error:
                absent = absent or error
        if not plans and absent is not None:
            raise absent
        said = _result(context, address, plans, stores, [None] * len(plans), began)
        if planned:
            return said
        if on_plan is not None:
            on_plan(said)
        acts = [_sign(store, anchors, admin.key, plan) for store, anchors, plan in plans]
        return _result(context, address, plans, stores, acts, began)


def _result(
    context: Context, address: str, plans: list[_Planned], away: list[ErasedStore], acts: Sequence[int | None], began: float
) -> EraseResult:
    told = [_told(store, plan, act) for (store, _, plan), act in zip(plans, acts, strict=True)]
    chosen = {place.name for place in chosen_stores(context)}
    done: Literal["planned", "partial", "erased"] = "planned" if None in acts else "partial" if away else "erased"
    return EraseResult(
        outcome=done, address=address, mailboxes=tuple(sorted({key for _, _, plan in plans for key in plan.mailboxes})), stores=(*told, *away),
        others=tuple(place.name for place in context.config.stores if place.name not in chosen), seconds=round(time.monotonic() - began, 3),
    )  # fmt: skip


@contextlib.contextmanager
def _vault(context: Context, name: str, admin: Admin) -> Iterator[VaultReader]:
    """The vault in one store alone."""
    only = replace(context, store=name)
    with use_nearest(only) as (nearest, _):
        opener = EpochOpener(nearest, lambda sealed: AgeOpener([open_epoch(sealed, admin.kit.identities)]))
        yield open_reader(only, nearest, admin.anchors, opener)


def _plan(context: Context, reader: VaultReader, address: str, location: str | None) -> Erasure:
    store = reader.store
    registry, links = _walked(store, reader.anchors_of(store))
    book, erased = read_book(store, reader.anchors_of(store)), Tombstones()
    for link in book.acts:
        erased.add(link.act)
    kept = [link for link in reversed(links) if link.entry.type == "snapshot" and _is_here(book, store, link)]
    head: tuple[int, Digest] = (links[-1].seq, links[-1].sha256)
    return plan_erasure(
        reader, registry, head, kept, erased, address=address, location=location, missing=book.missing, on_event=context.on_event
    )


def _walked(store: Store, anchors: Anchors) -> tuple[Registry, list[Link]]:
    registry, links, last = Registry(), [], find_head(store)
    check_head(last, anchors)
    for link in walk(store, anchors, Trust(anchors.admin), last=last):
        registry.learn(store, link)
        links.append(link)
    if not links or registry.unreadable:
        raise ChainBroken(": ".join(registry.unreadable[0]) if links else "the vault has no ledger")
    return registry, links


def _is_here(book: Book, store: Store, link: Link) -> bool:
    """Whether a snapshot can still be read: one that prune gave up, or that never came to this store, may be missing."""
    row = link.entry.snapshot
    named = any(link.seq in (*act.gone, *act.snapshots) for act, _ in book.acts if act.type in ("prune", "received-without"))
    return row is not None and (not named or next(iter(store.list(row.key)), None) is not None)


def _sign(store: Store, anchors: Anchors, key: SigningKey, plan: Erasure) -> int | None:
    """Acts that name the blocks, and then the mailboxes: when this is cut off, the same command does it again."""
    packs = [PackPart(id=pack, blocks=to_ranges(numbers)) for pack, numbers in plan.goes.items()]
    parts = [packs[start : start + _PER_ACT] for start in range(0, len(packs), _PER_ACT)] or [[]]
    first, *keys = sorted(plan.mailboxes)
    acts: list[tuple[list[PackPart], str | None]] = [
        *((part, None) for part in parts[:-1]),
        (parts[-1], first),
        *(([], key) for key in keys),
    ]
    last = None
    for part, mailbox in acts:
        act = add_act(store, anchors, key, "erase", partial(_members, anchors, plan, mailbox, part))
        last = last if act is None else act.seq
    return last


def _members(anchors: Anchors, plan: Erasure, mailbox: str | None, packs: list[PackPart], _book: Book) -> dict[str, Any]:
    seq, sha256 = plan.head
    named = None if mailbox is None else tombstone(anchors.vault, mailbox)
    return {"head": Head(seq=seq, sha256=sha256), "packs": tuple(packs), "mailbox": named}


def _told(store: Store, plan: Erasure, act: int | None) -> ErasedStore:
    return ErasedStore(
        name=store.name, outcome="planned" if act is None else "erased", snapshots=len(plan.snapshots), messages=plan.messages, blocks=plan.blocks,
        bytes=plan.bytes, free=plan.free, packs=len(plan.goes), shared_blocks=plan.shared_blocks, shared=plan.shared,
        locked=_locked(store, plan.goes), act=act,
    )  # fmt: skip


def _locked(store: Store, packs: dict[PackId, list[int]]) -> int:
    """Packs that a lock protects still, as far as these credentials may ask."""
    now, count = store.now() if store.traits.object_lock else 0.0, 0
    for pack in packs if store.traits.object_lock else ():
        with contextlib.suppress(StoreError):
            count += (store.locked_until(pack_key(pack)) or 0.0) > now
    return count
