"""Bringing a store up to the others: the next run does it for one that was away, `mailbackup copy` for a new one.

Entry by entry in commit order: what an entry names first, the entry last, so that the target is a whole vault with an older head at any moment and an
interrupted copy goes on where it ended. Nothing is opened: every object is compared with the hash that a signed entry gives.

What the sources pruned is not there to be copied. The target gets an act that names it, so that nobody takes it for damage; what is missing for another
reason, or has a live block, is never excused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import AlreadyExists, ChainBroken, ConflictError, DamageError, Interrupted, MailbackupError, ObjectMissing
from mailbackup.model.events import OnEvent, Phase, Progress, Stop
from mailbackup.model.ids import VAULT_KEY, Digest, ObjectKey, PackId, digest, entry_key, is_object_key, pack_key
from mailbackup.model.ledger import Anchors, Head, PackPart, PackRow
from mailbackup.stores.base import Store
from mailbackup.upkeep.acts import Book, add_act, read_book
from mailbackup.upkeep.page import live_registry
from mailbackup.upkeep.readback import named_by
from mailbackup.upkeep.registry import Registry
from mailbackup.vault.chain import (
    Link,
    Trust,
    check_entry,
    check_vault_info,
    find_head,
    page_trust,
    parse_entry,
    read_raw,
    trust_within,
    walk,
)
from mailbackup.vault.replicas import OWN_FAULT, copy_object, put_same

_PER_ACT = 20_000  # packs that one act names: some 1 MB
_PACKS = 2  # the place of packs in the order of what an entry names


@dataclass(slots=True)
class Copied:
    """What a copy did: objects and bytes that were sent, the target's head now, and what no source has any more and nothing needs.

    `recorded` is the act of the target that names what was left out for good, None when there was nothing to say or nobody to sign it.
    """

    objects: int = 0
    bytes: int = 0
    head: int = 0
    left_out: list[PackId] = field(default_factory=list)
    without: list[int] = field(default_factory=list)  # snapshots whose objects were pruned
    recorded: int | None = None


def copy(
    sources: Sequence[Store],
    target: Store,
    anchors: Anchors,
    *,
    stop: Stop,
    on_event: OnEvent,
    signer: SigningKey | None = None,
) -> Copied:
    """Bring `target` up to the longest ledger among `sources`; `signer` says in an act of the target what the sources had pruned
    already. Acts stay where they are: one chain in two stores would let whoever can write to one of them repeat in it what was signed for the other.

    Raises ConflictError when the target holds another ledger, AnchorMismatch or AlreadyExists when it holds something else, DamageError when something that is
    needed is whole in no source, Interrupted when `stop` says so, and what the target raises. What was copied by then stays valid.
    """
    return _Copy(sources, target, anchors, stop, on_event).run(signer)


class _Copy:
    def __init__(self, sources: Sequence[Store], target: Store, anchors: Anchors, stop: Stop, on_event: OnEvent) -> None:
        self._sources = sources
        self._target = target
        self._anchors = anchors
        self._stop = stop
        self._on_event = on_event
        self._done = Copied()
        self._there: dict[str, int] = {}
        self._live: set[PackId] | None = None
        self._relied: list[PackRow] = []  # packs that were in the target already, and that no entry there named

    def run(self, signer: SigningKey | None) -> Copied:
        _, last = self._longest()
        head = find_head(self._target)
        self._check_target(head, last)
        self._done.head = head
        self._there = {key: stat.size for key, stat in self._target.list("packs/")}
        self._on_event(Phase(f"copying to {self._target.name}", max(0, last - head), "entries"))
        for link in self._links(head, last):
            self._entry(link)
            if self._stop():
                raise Interrupted(f"stopped after entry {link.seq} of {last}", hint="Run it again: it goes on from there.")
        self._send_again()
        if signer is not None:
            with contextlib.suppress(DamageError, ConflictError):  # everything was copied; `verify` tells what is wrong with the acts
                self._done.recorded = record_without(self._target, self._anchors, signer, self._pruned)
        return self._done

    def _longest(self) -> tuple[Store, int]:
        """The source with the longest ledger, and its head; one that holds all of it before one that holds only the end (an outbox)."""
        heads: list[tuple[int, bool, Store]] = []
        first: MailbackupError | None = None
        for source in self._sources:
            try:
                heads.append((find_head(source), entry_key(1) in dict(source.list(entry_key(1))), source))
            except (*OWN_FAULT, DamageError) as error:
                first = first or error
        if not heads and first is not None:
            raise first
        last, _, ledger = max(heads, key=lambda row: row[:2], default=(0, False, None))
        if ledger is None or last == 0:
            raise ChainBroken("no source holds a ledger")
        return ledger, last

    def _check_target(self, head: int, last: int) -> None:
        """The target must be empty, or hold the beginning of this ledger (whose next entry must follow: see `_links`)."""
        if head:
            check_vault_info(self._target, self._anchors)
            if head >= last and read_raw(self._target, last) != self._raw(last):
                raise self._foreign(last)
            return
        try:
            check_vault_info(self._target, self._anchors)
        except ObjectMissing:
            for key, _ in self._target.list(""):
                if not key.startswith(("keys/", "FORMAT", "rescue")):
                    raise AlreadyExists(
                        f"store {self._target.name} is not empty: it holds {key}", hint="Copy into an empty place. Nothing was copied."
                    ) from None

    def _foreign(self, seq: int) -> ConflictError:
        return ConflictError(
            f"entry {seq} of store {self._target.name} is another one: it was written to from two sides",
            hint="Nothing was copied. Keep both stores and find out which one counts.",
        )

    # ------------------------------------------------------------ the ledger

    def _raw(self, seq: int) -> bytes:
        """The bytes of an entry from the first source that has it."""
        error: ChainBroken | None = None
        for source in self._sources:
            try:
                return read_raw(source, seq)
            except (ChainBroken, *OWN_FAULT) as failed:
                error = error or (failed if isinstance(failed, ChainBroken) else None)
        raise error or ChainBroken(f"{entry_key(seq)}: is in no store that can be read")

    def _links(self, head: int, last: int) -> Iterator[Link]:
        """The entries behind `head`, each checked. Who is trusted at the head is read from the target, which holds all entries up to there."""
        trust = page_trust(self._target, head, self._anchors) if head else Trust(self._anchors.admin)
        prev: Digest | None = digest(read_raw(self._target, head)) if head else None
        for seq in range(head + 1, last + 1):
            raw = self._raw(seq)
            if seq == head + 1 and head:
                first, _, _ = parse_entry(raw, entry_key(seq), self._anchors)
                if first.prev != prev:
                    raise self._foreign(head)
                if not trust.may_sign(first):  # its signer was named within this page: costs a request for each entry
                    trust = trust_within(self._target, head, self._anchors)
            link = check_entry(raw, seq, prev, trust, self._anchors)
            if link.entry.type == "trust":
                trust.learn(link.entry, link.raw)
            prev = link.sha256
            yield link

    def _entry(self, link: Link) -> None:
        """What an entry names, in commit order, then the entry."""
        packs = {pack_key(pack.id): pack for pack in link.entry.packs}
        named = sorted(((_commit_order(key), key, sha256) for key, sha256 in named_by(link.entry).items() if key not in packs))
        for order, key, sha256 in named:
            if order < _PACKS:
                self._count(copy_object(self._sources, self._target, key, sha256))
        self._packs([pack for key, pack in packs.items() if self._there.get(key) != pack.size])
        self._relied += [pack for key, pack in packs.items() if self._there.get(key) == pack.size]
        for order, key, sha256 in named:
            if order > _PACKS:
                self._late(link.seq, key, sha256)
        put_same(self._target, entry_key(link.seq), link.raw)
        self._count(len(link.raw))
        self._done.head = link.seq
        self._on_event(Progress(link.seq, self._done.bytes, f"entry {link.seq}"))

    def _send_again(self) -> None:
        """A prune of the target may have taken for left-overs, and deleted, what was relied on before its entry came."""
        if self._relied:
            there = {key: stat.size for key, stat in self._target.list("packs/")}
            self._packs([pack for pack in self._relied if there.get(pack_key(pack.id)) != pack.size])

    def _late(self, seq: int, key: ObjectKey, sha256: Digest) -> None:
        """A list, or the snapshot: from a source that has not let it go, since its packs may be deleted before it is."""
        keep = self._sources
        if key.startswith("snapshots/"):
            keep = [source for source in self._sources if seq not in self._gone.get(source.name, ())]
        try:
            if keep:
                self._count(copy_object(keep, self._target, key, sha256))
        except ObjectMissing:
            if not key.startswith("snapshots/") or seq not in self._pruned.snapshots:
                raise
            keep = []
        if not keep:
            self._done.without.append(seq)

    @cached_property
    def _gone(self) -> dict[str, frozenset[int]]:
        """The snapshots that the acts of each source have let go for good. Of one whose acts are not sound nothing is believed."""
        return {source.name: pruned_by([source], self._anchors).snapshots for source in self._sources}

    @cached_property
    def _pruned(self) -> Pruned:
        return pruned_by(self._sources, self._anchors)

    def _packs(self, packs: list[PackRow]) -> None:
        if not packs:
            return
        threads = min(self._target.traits.parallel, 4, len(packs))
        with ThreadPoolExecutor(threads, "copy") as pool:
            for size in pool.map(self._pack, packs):
                self._count(size)

    def _pack(self, pack: PackRow) -> int:
        try:
            return copy_object(self._sources, self._target, pack_key(pack.id), pack.sha256)
        except ObjectMissing:
            if pack.id in self._live_packs():
                raise
            self._done.left_out.append(pack.id)
            return 0

    def _live_packs(self) -> set[PackId]:
        """Packs with live blocks at the head: only these are needed."""
        if self._live is None:
            ledger, _ = self._longest()
            self._live = set(live_registry(ledger, self._anchors).packs)
        return self._live

    def _count(self, size: int) -> None:
        self._done.objects += size > 0
        self._done.bytes += size


# ---------------------------------------------------------------- what was pruned


class Pruned(NamedTuple):
    """What acts say is not there any more: packs, and snapshots whose objects are gone."""

    packs: frozenset[PackId]
    snapshots: frozenset[int]


def pruned_by(stores: Sequence[Store], anchors: Anchors) -> Pruned:
    """What the acts of these stores excuse. A store that does not answer, or whose acts are not sound, excuses nothing."""
    packs: set[PackId] = set()
    snapshots: set[int] = set()
    for store in stores:
        with contextlib.suppress(*OWN_FAULT, DamageError):
            book = read_book(store, anchors)
            packs |= book.missing
            snapshots |= absent_snapshots(book)
    return Pruned(frozenset(packs), frozenset(snapshots))


def absent_snapshots(book: Book) -> set[int]:
    """The snapshots whose objects were deleted here, or never came here."""
    named = [link.act.gone if link.act.type == "prune" else link.act.snapshots for link in book.acts if link.act.type in _ABSENCE]
    return {seq for snapshots in named for seq in snapshots}


_ABSENCE = ("prune", "received-without")


def record_without(store: Store, anchors: Anchors, signer: SigningKey, pruned: Pruned) -> int | None:
    """Say in an act of `store` which of the pruned packs and snapshots it never got. The last act's number; None when there is nothing new to say.

    Packs with a live block, and those that no entry names, are never among them. Raises ChainBroken, ConflictError and what the store raises.
    """
    packs = pruned.packs - {PackId(key[-32:]) for key, _ in store.list("packs/")}
    snapshots = pruned.snapshots - {int(key[10:20]) for key, _ in store.list("snapshots/") if is_object_key(key)}
    if not (packs or snapshots):
        return None
    registry, trust, head = Registry(), Trust(anchors.admin), None
    for link in walk(store, anchors, trust, last=find_head(store)):
        registry.learn(store, link)
        head = Head(seq=link.seq, sha256=link.sha256)
    if registry.unreadable or not _may_say(trust, signer):
        return None
    dead = sorted(pack for pack in packs if pack in registry.packs and registry.packs[pack].is_dead)
    gone = sorted(snapshots.intersection(registry.snapshots))
    last = None
    for start in range(0, max(1, len(dead)), _PER_ACT):
        make = partial(_still_unsaid, head, dead[start : start + _PER_ACT], gone)
        act = add_act(store, anchors, signer, "received-without", make)
        last = last if act is None else act.seq
    return last


def _may_say(trust: Trust, signer: SigningKey) -> bool:
    """Whether such an act by this key counts: one by another would break the chain."""
    return signer.public == trust.admin or not {"writer", "prune"}.isdisjoint(trust.roles.get(signer.public, ()))


def _still_unsaid(head: Head | None, packs: list[PackId], snapshots: list[int], book: Book) -> dict[str, Any] | None:
    packs = [pack for pack in packs if pack not in book.missing]
    snapshots = sorted(set(snapshots) - absent_snapshots(book))
    if not (packs or snapshots):
        return None
    return {"head": head, "packs": tuple(PackPart(id=pack) for pack in packs), "snapshots": tuple(snapshots)}


def _commit_order(key: ObjectKey) -> int:
    """vault.json first, so that a store says from the beginning whose it is; snapshots last, so that none is visible before its packs."""
    if key == VAULT_KEY:
        return 0
    if key.startswith("snapshots/"):
        return _PACKS + 2
    return _PACKS + 1 if key.startswith("lists/") else 1
