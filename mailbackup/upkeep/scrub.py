"""Keyless verification: everything that can be checked with the ledger, the anchors and hashes of ciphertext.

Nothing here can read mail: the package cannot even import decryption (a test and import-linter see to it), so it may run on any machine.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mailbackup.content.pack import check_footer, footer_size, parse_footer
from mailbackup.crypto.signing import split_signed, verify
from mailbackup.errors import AnchorMismatch, ChainBroken, DamageError, ObjectMissing, RecordInvalid
from mailbackup.model import codec
from mailbackup.model.events import OnEvent, Phase, Progress
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import Digest, ObjectKey, PackId, entry_key, is_object_key, pack_key
from mailbackup.model.ledger import Anchors, LedgerEntry
from mailbackup.stores.base import Store
from mailbackup.upkeep.registry import PackLife, Registry
from mailbackup.vault.chain import Trust, check_head, find_head, read_acts, read_raw, walk

THREADS = 4  # hashing releases the interpreter; more do not help a disk


@dataclass(slots=True)
class Scrubbed:
    """The result of a scrub: objects and bytes that were read and hashed, and what was found."""

    registry: Registry
    objects: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    head: tuple[int, Digest] | None = None


def scrub(store: Store, anchors: Anchors, *, sample: float | None = None, on_event: OnEvent) -> Scrubbed:
    """Check the chain, every object that it names, and that nothing else lies about.

    `sample` is the share of packs that are read (0 to 1); everything else is always read. Raises AnchorMismatch when the store holds another
    vault, and what the store raises when it cannot be reached.
    """
    result = Scrubbed(Registry())
    trust = _chain(store, anchors, result)
    _acts(store, anchors, trust, result)
    listing = {key: stat.size for key, stat in store.list("")}
    _names(listing, result)
    for key, why in result.registry.unreadable:
        result.findings.append(Finding(FindingKind.RECORD_INVALID, key, why))
    _objects(store, listing, result)
    _packs(store, listing, result, sample, on_event)
    return result


def _chain(store: Store, anchors: Anchors, result: Scrubbed) -> Trust:
    """Walk the whole ledger. What stands behind a break is not believed, so it is not checked."""
    trust = Trust(anchors.admin)
    head = find_head(store)
    _refuse_foreign(store, anchors, head)
    try:
        for link in walk(store, anchors, trust, last=head):
            result.registry.learn(store, link)
            result.objects += 1
            result.bytes += len(link.raw)
            result.head = (link.seq, link.sha256)
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
    try:
        for act, _ in read_acts(store, anchors, trust):
            result.objects += 1
            for damaged in act.packs if act.type == "damage" else ():
                detail = f"act {act.seq} says so" + (f" of blocks {damaged.blocks}" if damaged.blocks else "")
                affected = result.registry.affected(damaged.id)
                result.findings.append(Finding(FindingKind.OBJECT_DAMAGED, pack_key(damaged.id), detail, affected))
    except ChainBroken as error:
        result.findings.append(Finding(FindingKind.CHAIN_BROKEN, "acts", str(error)))


def _names(listing: dict[str, int], result: Scrubbed) -> None:
    registry = result.registry
    last = result.head[0] if result.head else 0
    for key in listing:
        if not is_object_key(key):
            result.findings.append(Finding(FindingKind.OBJECT_MALFORMED, key, "is no key of a vault"))
        elif key.startswith("packs/"):
            if PackId(key[-32:]) not in registry.packs:
                result.findings.append(Finding(FindingKind.OBJECT_UNKNOWN, key, "no entry names it (an interrupted run left it)"))
        elif key.startswith("ledger/"):
            if int(key[-15:-5]) <= last and key != entry_key(int(key[-15:-5])):
                result.findings.append(Finding(FindingKind.OBJECT_MALFORMED, key, "an entry in another page than its own"))
        elif not key.startswith(("acts/", "drills/")) and ObjectKey(key) not in registry.objects:
            result.findings.append(Finding(FindingKind.OBJECT_UNKNOWN, key, "no entry names it (an interrupted run left it)"))


def _objects(store: Store, listing: dict[str, int], result: Scrubbed) -> None:
    for key, expected in result.registry.objects.items():
        affected = (int(key[10:20]),) if key.startswith("snapshots/") else ()
        if key not in listing:
            result.findings.append(Finding(FindingKind.OBJECT_MISSING, key, "the ledger names it", affected))
            continue
        try:
            size, sha256 = hash_object(store, key)
        except ObjectMissing:
            result.findings.append(Finding(FindingKind.OBJECT_MISSING, key, "the ledger names it", affected))
            continue
        except DamageError as error:
            result.findings.append(Finding(FindingKind.OBJECT_DAMAGED, key, str(error), affected))
            continue
        result.objects += 1
        result.bytes += size
        if sha256 != expected:
            result.findings.append(Finding(FindingKind.OBJECT_DAMAGED, key, "its hash is not the registered one", affected))


def _packs(store: Store, listing: dict[str, int], result: Scrubbed, sample: float | None, on_event: OnEvent) -> None:
    lives = result.registry.packs
    present: list[PackLife] = []
    for pack, life in lives.items():
        size = listing.get(pack_key(pack))
        if size is None:
            result.findings.append(_about(result, life, FindingKind.OBJECT_MISSING, "the pack is missing"))
        elif size != life.row.size and sample is not None:
            result.findings.append(_about(result, life, FindingKind.OBJECT_DAMAGED, f"has {size} bytes instead of {life.row.size}"))
        else:
            present.append(life)
    chosen = present if sample is None else random.sample(present, max(1, round(len(present) * sample))) if present else []
    on_event(Phase("checking packs", len(chosen), "packs"))
    for count, (life, size, problem) in enumerate(_hashed(store, chosen), 1):
        result.objects += 1
        result.bytes += size
        if problem is not None:
            result.findings.append(problem(result))
        on_event(Progress(count, result.bytes, life.row.id[:12]))


Problem = Callable[[Scrubbed], Finding]


def _hashed(store: Store, packs: Iterable[PackLife]) -> Iterator[tuple[PackLife, int, Problem | None]]:
    with ThreadPoolExecutor(THREADS, "scrub") as pool:
        yield from pool.map(lambda life: check_pack(store, life), packs)


def check_pack(store: Store, life: PackLife) -> tuple[PackLife, int, Problem | None]:
    """Read a pack whole. Returns it with the bytes that were read, and the problem if there is one."""
    key = pack_key(life.row.id)
    try:
        size, sha256 = hash_object(store, key)
    except ObjectMissing:
        return life, 0, lambda result: _about(result, life, FindingKind.OBJECT_MISSING, "the pack is missing")
    except DamageError as error:
        text = str(error)
        return life, 0, lambda result: _about(result, life, FindingKind.OBJECT_DAMAGED, text)
    if sha256 == life.row.sha256:
        return life, size, None
    bad = _bad_blocks(store, life)
    if bad:
        return life, size, lambda result: _about(result, life, FindingKind.BLOCK_DAMAGED, f"blocks {', '.join(map(str, bad))}", bad)
    detail = f"its hash is not the registered one ({size} bytes, expected {life.row.size}), and its footer is unusable"
    if bad is not None:
        detail = f"its hash is not the registered one ({size} bytes, expected {life.row.size}), but each of its blocks was read whole"
    return life, size, lambda result: _about(result, life, FindingKind.OBJECT_DAMAGED, detail)


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


def _about(result: Scrubbed, life: PackLife, kind: FindingKind, detail: str, blocks: list[int] | None = None) -> Finding:
    return Finding(kind, pack_key(life.row.id), detail, result.registry.affected(life.row.id, blocks))


def hash_object(store: Store, key: ObjectKey) -> tuple[int, Digest]:
    """Size and hash of an object as the store has it now. Raises ObjectMissing, ObjectDamaged, and what an unreachable store raises."""
    sha256, size = hashlib.sha256(), 0
    for part in store.stream(key):
        sha256.update(part)
        size += len(part)
    return size, Digest(sha256.hexdigest())
