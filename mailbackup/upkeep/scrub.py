"""Keyless verification: everything that can be checked with the ledger, the acts, the anchors and hashes of ciphertext.

Nothing here can read mail: the package cannot even import decryption (a test and import-linter see to it), so it may run on any machine.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mailbackup.content.pack import check_footer, footer_size, parse_footer
from mailbackup.crypto.signing import SigningKey, split_signed, verify
from mailbackup.errors import AnchorMismatch, ChainBroken, DamageError, KeyProblem, ObjectMissing, RecordInvalid
from mailbackup.model import codec
from mailbackup.model.events import OnEvent, Phase, Progress
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import Digest, ObjectKey, PackId, act_key, entry_key, is_object_key, pack_key
from mailbackup.model.ledger import Act, Anchors, LedgerEntry, PackPart, to_ranges
from mailbackup.stores.base import Store
from mailbackup.upkeep import locks, shadows
from mailbackup.upkeep.acts import Book, add_act
from mailbackup.upkeep.ahead import learning
from mailbackup.upkeep.needs import needed_packs, numbers_of
from mailbackup.upkeep.parallel import in_order, threads_for
from mailbackup.upkeep.registry import PackLife, Registry
from mailbackup.vault.chain import Trust, check_head, find_head, read_acts, read_raw, trust_within, walk

_PER_ACT = 20_000  # packs that one act names: some 1 MB


@dataclass(slots=True)
class Scrubbed:
    """The result of a scrub: objects and bytes that were read and hashed, and what was found.

    `damaged` are packs that something still needs, with the blocks that are not whole (None = all of it), for `record_damage`.
    """

    registry: Registry = field(default_factory=Registry)
    book: Book = field(default_factory=Book)
    objects: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    head: tuple[int, Digest] | None = None
    damaged: dict[PackId, str | None] = field(default_factory=dict)
    hashes: dict[int, Digest] = field(default_factory=dict)  # of the entries

    def about(self, life: PackLife, problem: Problem) -> Finding:
        """The finding for a pack: it names the snapshots that can still be restored and may need it."""
        affected = self.registry.affected(life.row.id, problem.blocks)
        return Finding(problem.kind, pack_key(life.row.id), problem.detail, tuple(seq for seq in affected if seq not in self.book.not_here))

    def tell(self, life: PackLife, problem: Problem, *, needed: bool = True) -> None:
        """Take over what is wrong with a pack; what nothing needs any more has not to be sent again."""
        self.findings.append(self.about(life, problem))
        if needed:
            self.damaged[life.row.id] = None if problem.blocks is None else to_ranges(problem.blocks)


class Problem(NamedTuple):
    """What is wrong with a pack, and with which of its blocks; None = all of it."""

    kind: FindingKind
    detail: str
    blocks: list[int] | None = None


def scrub(store: Store, anchors: Anchors, *, sample: float | None = None, on_event: OnEvent) -> Scrubbed:
    """Check the chain, every object that it names, that nothing else lies about, and that nobody hid, replaced or can remove anything.

    `sample` is the share of packs that are read (0 to 1); everything else is always read. Raises AnchorMismatch when the store holds another
    vault, and what the store raises when it cannot be reached.
    """
    result = read_chains(store, anchors)
    listing = {key: stat.size for key, stat in store.list("")}
    result.book.see(listing)
    tell_names(listing, result)
    _objects(store, listing, result)
    _packs(store, listing, result, sample, on_event)
    tell_old_damage(result)
    tell_access(store, result)
    return result


# ---------------------------------------------------------------- ledger and acts


def read_chains(store: Store, anchors: Anchors) -> Scrubbed:
    """The whole ledger and all acts, with what is wrong with them. Raises as `scrub` does."""
    result = Scrubbed()
    trust = _ledger(store, anchors, result)
    _acts(store, anchors, trust, result)
    for key, why in result.registry.unreadable:
        result.findings.append(Finding(FindingKind.RECORD_INVALID, key, why))
    return result


def _ledger(store: Store, anchors: Anchors, result: Scrubbed) -> Trust:
    """Walk the whole ledger. What stands behind a break is not believed, so it is not checked."""
    trust = Trust(anchors.admin)
    head = find_head(store)
    _refuse_foreign(store, anchors, head)
    try:
        for link in learning(result.registry, store, walk(store, anchors, trust, last=head)):
            result.objects += 1
            result.bytes += len(link.raw)
            result.head = (link.seq, link.sha256)
            result.hashes[link.seq] = link.sha256
        check_head(head, anchors)
        if head == 0:
            raise ChainBroken("the vault has no ledger")
    except ChainBroken as error:
        first_bad = entry_key(result.head[0] + 1 if result.head else 1)
        result.findings.append(Finding(FindingKind.CHAIN_BROKEN, first_bad, str(error)))
    return trust


def _refuse_foreign(store: Store, anchors: Anchors, head: int) -> None:
    """A store with another vault in it is not a damaged one. Only a valid signature tells the two apart."""
    if head == 0:
        return
    try:
        raw = read_raw(store, 1)
        line, signature = split_signed(raw)
        entry = codec.decode(line, LedgerEntry, entry_key(1))
    except (ChainBroken, RecordInvalid):
        return
    if not verify(entry.signer, line, signature):
        return
    if entry.vault != anchors.vault:
        raise AnchorMismatch(f"store {store.name} holds another vault than {anchors.vault[:12]}…")
    if entry.signer != anchors.admin:
        raise AnchorMismatch(f"store {store.name}: the ledger begins with another admin key than the anchors name")


def _acts(store: Store, anchors: Anchors, trust: Trust, result: Scrubbed) -> None:
    """The acts, by everything that the ledger says of their signers. What stands behind a break excuses nothing."""
    try:
        for link in read_acts(store, anchors, trust):
            head = link.act.head
            if head is not None and result.head is not None and head.seq > result.head[0]:
                raise ChainBroken(f"{act_key(link.act.seq)}: rests on entry {head.seq}, and the ledger ends before it")
            if head is not None and result.hashes.get(head.seq, head.sha256) != head.sha256:
                raise ChainBroken(f"{act_key(link.act.seq)}: rests on another entry {head.seq} than the one in the ledger")
            result.book.learn(link)
            result.objects += 1
    except ChainBroken as error:
        result.findings.append(Finding(FindingKind.CHAIN_BROKEN, "acts", str(error)))


def tell_old_damage(result: Scrubbed) -> None:
    """What acts say of packs that were not found damaged now, as long as a snapshot that can be restored may need the blocks."""
    said = {part.id: (link.act.seq, part.blocks) for link in result.book.acts if link.act.type == "damage" for part in link.act.packs}
    found = {finding.subject for finding in result.findings}
    for pack, (seq, blocks) in said.items():
        life = result.registry.packs.get(pack)
        if pack_key(pack) in found or (life is None and pack in result.book.missing):
            continue
        detail = f"act {seq} says so" + (f" of blocks {blocks}" if blocks else "")
        numbers = None if blocks is None or life is None else sorted(numbers_of([blocks], life.row.blocks))
        affected = tuple(seq for seq in result.registry.affected(pack, numbers) if seq not in result.book.not_here)
        if affected or life is None or not life.is_dead:
            result.findings.append(Finding(FindingKind.OBJECT_DAMAGED, pack_key(pack), detail, affected))


def tell_access(store: Store, result: Scrubbed) -> None:
    """What others did to objects, or will be able to do. Raises what the store raises."""
    result.findings += shadows.look(store)
    if result.head is not None:
        result.findings += locks.look(store, locks.to_keep(result.registry, result.book, result.head[0]))


# ---------------------------------------------------------------- objects


_STRAY = "no entry names it (an interrupted run left it)"
_LEFT = "an act gave it up: the next prune removes it"


def tell_names(listing: dict[str, int], result: Scrubbed) -> None:
    """Keys that no vault has, and objects that nothing names."""
    registry = result.registry
    last = result.head[0] if result.head else 0
    for key in listing:
        if not is_object_key(key):
            result.findings.append(Finding(FindingKind.OBJECT_MALFORMED, key, "is no key of a vault"))
        elif key.startswith("packs/"):
            if PackId(key[-32:]) in registry.packs:
                continue
            kind, detail = (FindingKind.OBJECT_UNKNOWN, _STRAY) if PackId(key[-32:]) not in result.book.missing else (_UNFINISHED, _LEFT)
            result.findings.append(Finding(kind, key, detail))
        elif key.startswith("ledger/"):
            if int(key[-15:-5]) <= last and key != entry_key(int(key[-15:-5])):
                result.findings.append(Finding(FindingKind.OBJECT_MALFORMED, key, "an entry in another page than its own"))
        elif not key.startswith(("acts/", "drills/")) and ObjectKey(key) not in registry.objects:
            result.findings.append(Finding(FindingKind.OBJECT_UNKNOWN, key, _STRAY))


_UNFINISHED = FindingKind.PRUNE_UNFINISHED


def _objects(store: Store, listing: dict[str, int], result: Scrubbed) -> None:
    wanted = list(present_objects(listing, result))
    for size, finding in in_order(lambda row: check_object(store, *row), wanted, threads_for(store)):
        result.objects += size is not None
        result.bytes += size or 0
        result.findings += [finding] if finding is not None else []


def present_objects(listing: dict[str, int], result: Scrubbed) -> Iterator[tuple[ObjectKey, Digest]]:
    """The objects that are there to be read, with their hashes; what is missing, or there still, is told."""
    for key, expected in result.registry.objects.items():
        if key.startswith("snapshots/") and int(key[10:20]) in result.book.not_here:
            result.findings += [Finding(_UNFINISHED, key, _LEFT)] if key in listing else []
        elif key not in listing:
            result.findings.append(Finding(FindingKind.OBJECT_MISSING, key, "the ledger names it", _snapshot_of(key)))
        else:
            yield key, expected


def check_object(store: Store, key: ObjectKey, expected: Digest) -> tuple[int | None, Finding | None]:
    """Read an object of the ledger whole. Returns the bytes that were read, None when it could not be, and what is wrong with it."""
    try:
        size, sha256 = hash_object(store, key)
    except ObjectMissing:
        return None, Finding(FindingKind.OBJECT_MISSING, key, "the ledger names it", _snapshot_of(key))
    except DamageError as error:
        return None, Finding(FindingKind.OBJECT_DAMAGED, key, str(error), _snapshot_of(key))
    if sha256 != expected:
        return size, Finding(FindingKind.OBJECT_DAMAGED, key, "its hash is not the registered one", _snapshot_of(key))
    return size, None


def _snapshot_of(key: ObjectKey) -> tuple[int, ...]:
    return (int(key[10:20]),) if key.startswith("snapshots/") else ()


# ---------------------------------------------------------------- packs


def _packs(store: Store, listing: dict[str, int], result: Scrubbed, sample: float | None, on_event: OnEvent) -> None:
    needed = needed_packs(result.registry, result.book)
    present = list(present_packs(listing, needed, result, sizes=sample is not None))
    chosen = present if sample is None else random.sample(present, max(1, round(len(present) * sample))) if present else []
    on_event(Phase("checking packs", len(chosen), "packs"))
    checked = in_order(lambda life: check_pack(store, life), chosen, threads_for(store))
    for count, (life, size, problem) in enumerate(checked, 1):
        result.objects += 1
        result.bytes += size
        if problem is not None:
            result.tell(life, problem, needed=life.row.id in needed)
        on_event(Progress(count, result.bytes, life.row.id[:12]))


def present_packs(listing: dict[str, int], needed: dict[PackId, PackLife], result: Scrubbed, *, sizes: bool) -> Iterator[PackLife]:
    """The packs that are there to be read. `sizes`: those of a wrong size are told now, since not all will be read."""
    for pack, life in result.registry.packs.items():
        size = listing.get(pack_key(pack))
        if pack in result.book.missing and pack not in needed:
            result.findings += [] if size is None else [Finding(_UNFINISHED, pack_key(pack), _LEFT)]
            continue
        if pack in result.book.missing:
            result.findings.append(_wrongly_given_up(result, life))
        if size is None:
            result.tell(life, Problem(FindingKind.OBJECT_MISSING, "the pack is missing"), needed=pack in needed)
        elif size != life.row.size and sizes:
            result.tell(life, Problem(FindingKind.OBJECT_DAMAGED, _other_size(size, life)), needed=pack in needed)
        else:
            yield life


def _wrongly_given_up(result: Scrubbed, life: PackLife) -> Finding:
    """What is said of a pack that an act deletes, or calls absent, although something needs it."""
    acts = [link.act.seq for link in result.book.acts if life.row.id in _given_up(link.act)]
    why = "although it is live" if not life.is_dead else "although snapshots need it"
    return result.about(life, Problem(FindingKind.ACT_WRONG, f"act {', '.join(map(str, acts))} gives it up {why}"))


def _given_up(act: Act) -> Iterable[PackId]:
    return (part.id for part in act.packs) if act.type in ("prune", "received-without") else ()


def _other_size(size: int, life: PackLife) -> str:
    return f"has {size} bytes instead of {life.row.size}"


def check_pack(store: Store, life: PackLife) -> tuple[PackLife, int, Problem | None]:
    """Read a pack whole. Returns it with the bytes that were read, and the problem if there is one."""
    key = pack_key(life.row.id)
    try:
        size, sha256 = hash_object(store, key)
    except ObjectMissing:
        return life, 0, Problem(FindingKind.OBJECT_MISSING, "the pack is missing")
    except DamageError as error:
        return life, 0, Problem(FindingKind.OBJECT_DAMAGED, str(error))
    if sha256 == life.row.sha256:
        return life, size, None
    bad = _bad_blocks(store, life)
    if bad:
        return life, size, Problem(FindingKind.BLOCK_DAMAGED, f"blocks {', '.join(map(str, bad))}", bad)
    detail = f"its hash is not the registered one ({size} bytes, expected {life.row.size}), and its footer is unusable"
    if bad is not None:
        detail = f"its hash is not the registered one ({size} bytes, expected {life.row.size}), but each of its blocks was read whole"
    return life, size, Problem(FindingKind.OBJECT_DAMAGED, detail)


def _bad_blocks(store: Store, life: PackLife) -> list[int] | None:
    """Numbers of the blocks that are not what the footer says; None when the footer itself is not the registered one."""
    row, key = life.row, pack_key(life.row.id)
    if row.size < footer_size(row.blocks):
        return None
    try:
        footer = store.get_range(key, row.size - footer_size(row.blocks), footer_size(row.blocks))
        check_footer(footer, row.footer, key)
        rows = parse_footer(footer, row.blocks, row.size, key)
    except DamageError:
        return None
    bad = []
    for number, block in enumerate(rows):
        try:
            data = store.get_range(key, block.offset, block.length)
        except DamageError:
            data = b""
        if hashlib.sha256(data).digest() != block.sha256:
            bad.append(number)
    return bad


def hash_object(store: Store, key: ObjectKey) -> tuple[int, Digest]:
    """Size and hash of an object as the store has it now. Raises ObjectMissing, ObjectDamaged, and what an unreachable store raises."""
    sha256, size = hashlib.sha256(), 0
    for part in store.stream(key):
        sha256.update(part)
        size += len(part)
    return size, Digest(sha256.hexdigest())


# ---------------------------------------------------------------- acts of damage


def check_signer(store: Store, anchors: Anchors, signer: SigningKey) -> None:
    """Raises KeyProblem when the admin did not name this key for acts of damage, ChainBroken when the ledger cannot tell."""
    trust = trust_within(store, find_head(store), anchors)
    if signer.public != anchors.admin and "prune" not in trust.roles.get(signer.public, ()):
        raise KeyProblem(
            f"store {store.name}: nobody named the key {signer.public[:16]}… for what it is to sign",
            hint=f"With the admin key: mailbackup vault trust add prune {signer.public}",
        )


def record_damage(store: Store, anchors: Anchors, signer: SigningKey, damaged: dict[PackId, str | None]) -> Act | None:
    """Sign that these packs are missing or damaged, so that the next backup sends again what they held. Packs that an act named are left out.

    Returns the act, None when there is nothing new to say. Raises as `check_signer` and `add_act` do.
    """
    if not damaged:
        return None
    check_signer(store, anchors, signer)
    return add_act(store, anchors, signer, "damage", lambda book: _new_damage(book, damaged))


def _new_damage(book: Book, damaged: dict[PackId, str | None]) -> dict[str, Any] | None:
    packs = [PackPart(id=pack, blocks=blocks) for pack, blocks in sorted(damaged.items()) if pack not in book.damaged]
    return {"packs": tuple(packs[:_PER_ACT])} if packs else None
