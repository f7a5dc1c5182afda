"""The start of a run: bring the state to the store's head, and forget what the store no longer holds (design section 4.5, step 1)."""

from __future__ import annotations

from collections.abc import Iterable

from mailbackup.errors import ChainBroken, ConflictError, RecordInvalid
from mailbackup.model import codec
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import LEDGER_PAGE, Digest, PackId, PublicKey, digest, pack_key
from mailbackup.model.ledger import Anchors, LedgerEntry, PackRow, from_ranges
from mailbackup.stores.base import Store
from mailbackup.vault.chain import (
    Link,
    Trust,
    check_entry,
    check_head,
    find_head,
    live_list_of,
    page_trust,
    parse_entry,
    read_acts,
    read_raw,
    stops_of,
    trust_of,
    walk,
)
from mailbackup.vault.commit import OtherEntry, put_pending
from mailbackup.vault.heal import heal, recount
from mailbackup.vault.state import State

TRUST_LINES = "trust_lines"
STATE_IS_NEW = "state_is_new"  # made since the last complete snapshot: nothing tells whether a source lost something
FREEZE_NEXT = "freeze_next"  # the reason why the next snapshot freezes pruning
HEAL_NEXT = "heal_next"  # lost packs that the next snapshot has to name

_NO_STATE = "there was no state for this vault; everything is sent once more, and pruning waits for a human"


def start(store: Store, state: State, anchors: Anchors, writer: PublicKey) -> list[Finding]:
    """Put what an earlier run left pending, then bring the state to the head of the store, in one transaction, and make it forget what is
    missing or damaged there. Raises ConflictError when someone else wrote to this vault or this writer was replaced, ChainBroken when the chain is not sound.
    """
    rewound = False
    try:
        put_pending(store, state, anchors)
    except OtherEntry:
        rewound = True
    state.begin()
    try:
        findings = (_rewind if rewound else _follow)(store, state, anchors, writer)
        findings += _forget_lost(store, state, anchors, changed=bool(findings))
        if state.get(STATE_IS_NEW):
            findings.append(Finding(FindingKind.STATE_NEW, "state", _NO_STATE))
    except BaseException:
        state.rollback()
        raise
    state.commit()
    return findings


def _rewind(store: Store, state: State, anchors: Anchors, writer: PublicKey) -> list[Finding]:
    """The state already counts on an entry that never came to be: its live set is read from the ledger anew. The trees stay."""
    pinned, kept = state.head, {key: state.get(key) for key in (FREEZE_NEXT, STATE_IS_NEW)}
    state.set_pending([])
    for table in ("blob", "block", "pack", "snapshot"):
        state.execute(f"DELETE FROM {table}")  # noqa: S608 - names from this line
    state.execute("DELETE FROM meta WHERE key IN ('head_seq', 'head_hash', ?)", (TRUST_LINES,))
    _follow(store, state, Anchors(vault=anchors.vault, admin=anchors.admin, head=pinned), writer)
    recount(state)
    for key, value in kept.items():
        state.put(key, value)
    return [_behind(0 if pinned is None else pinned[0], state)]


def _behind(pinned: int, state: State) -> Finding:
    head = state.head
    assert head is not None, "the ledger was followed"
    return Finding(
        FindingKind.STATE_OLD, f"entries {pinned + 1} to {head[0]}", "the state was older than the vault; it was brought up to date"
    )


def _follow(store: Store, state: State, anchors: Anchors, writer: PublicKey) -> list[Finding]:
    pinned = state.head
    head = find_head(store)
    check_head(head, Anchors(vault=anchors.vault, admin=anchors.admin, head=pinned or anchors.head))
    if head == 0:
        raise ChainBroken(f"store {store.name}: the vault has no ledger")
    if pinned is None:
        return _from_scratch(store, state, anchors, writer, head)
    if digest(read_raw(store, pinned[0])) != pinned[1]:
        raise ChainBroken(f"entry {pinned[0]} of store {store.name} is not the one that was written: the ledger was replaced")
    if head == pinned[0]:
        return []
    for link in walk(store, anchors, _known_trust(state, anchors), last=head, after=pinned):
        _apply(store, state, link, writer)
    return [_behind(pinned[0], state)]


def _known_trust(state: State, anchors: Anchors) -> Trust:
    """Who is trusted at the pinned head, by all trust entries up to it."""
    return trust_of(codec.decode(state.get(TRUST_LINES), list[str], TRUST_LINES), anchors)


def _from_scratch(store: Store, state: State, anchors: Anchors, writer: PublicKey, head: int) -> list[Finding]:
    trust = Trust(anchors.admin)
    after: tuple[int, Digest] | None = None
    first = head - head % LEDGER_PAGE
    if first:
        after = _from_page(store, state, anchors, writer, first)
        trust = page_trust(store, first, anchors)
    for link in walk(store, anchors, trust, last=head, after=after):
        _apply(store, state, link, writer)
    if not state.snapshot_counts() and not first:
        return []
    state.put(FREEZE_NEXT, "the first snapshot after the state was lost")
    state.put(STATE_IS_NEW, 1)
    return []


def _from_page(store: Store, state: State, anchors: Anchors, writer: PublicKey, first: int) -> tuple[int, Digest]:
    """The live set as the first entry of the last page carries it."""
    trust = page_trust(store, first, anchors)
    raw = read_raw(store, first)
    entry, _, _ = parse_entry(raw, f"ledger/{first // LEDGER_PAGE:010d}/{first:010d}.json", anchors)
    link = check_entry(raw, first, entry.prev, trust, anchors)
    _check_writer(link, writer)
    live = live_list_of(store, link.entry)
    if live is None:
        raise ChainBroken(f"entry {first} carries no live set")
    for pack in live.packs:
        row = PackRow(id=pack.id, size=pack.size, sha256=pack.sha256, blocks=pack.blocks, footer=pack.footer, epoch=pack.epoch)
        state.add_pack(row)
        gone = set(range(pack.blocks)) - set(_numbers(pack.live, pack.blocks, link.entry))
        state.drop_blocks([(pack.id, gone)])
    state.register_epochs(live.epochs)
    state.put(TRUST_LINES, codec.encode(trust.lines).decode())
    state.set_head(link.seq, link.sha256)
    return link.seq, link.sha256


def _apply(store: Store, state: State, link: Link, writer: PublicKey) -> None:
    """What one entry changes: its packs live, its stops do not."""
    entry = link.entry
    _check_writer(link, writer)
    for pack in entry.packs:
        state.add_pack(pack)
    state.register_epochs(entry.epochs)
    if entry.type == "trust":
        lines = codec.decode(state.get(TRUST_LINES) or "[]", list, TRUST_LINES)
        state.put(TRUST_LINES, codec.encode([*lines, link.raw.decode("utf-8")]).decode())
    if entry.type == "snapshot" and entry.outcome is not None:
        packs = state.packs()
        for pack_id, ranges in stops_of(store, entry):
            known_pack = packs.get(PackId(pack_id))
            if known_pack is not None:
                state.drop_blocks([(PackId(pack_id), _numbers(ranges, known_pack[2], entry))])
        state.add_snapshot(link.seq, entry.time, None, None, entry.outcome)
    state.set_head(link.seq, link.sha256)


def _numbers(ranges: str, blocks: int, entry: LedgerEntry) -> list[int]:
    try:
        return from_ranges(ranges, blocks)
    except ValueError as error:
        raise RecordInvalid(f"entry {entry.seq}: {error}") from None


def _check_writer(link: Link, writer: PublicKey) -> None:
    entry = link.entry
    if entry.type != "trust":
        if entry.signer != writer:
            raise ConflictError(f"entry {entry.seq} was written by {entry.signer[:16]}…, another writer than this host")
        return
    if any(grant.role == "writer" and grant.key == writer for grant in entry.revoke):
        raise ConflictError(f"entry {entry.seq}: this host is no longer the writer of this vault")
    if any(grant.role == "writer" and grant.key != writer for grant in entry.grant):
        raise ConflictError(f"entry {entry.seq}: the vault was handed to another writer; this host may not add to it")


def _forget_lost(store: Store, state: State, anchors: Anchors, *, changed: bool) -> list[Finding]:
    """Packs that are missing, have another size, or that an act calls damaged: what lies there is sent again by this run."""
    sizes = {key: stat.size for key, stat in store.list("packs/")}
    known = state.packs()
    lost = {pack: row[0] for pack, row in known.items() if not row[3] and sizes.get(pack_key(pack)) != row[1]}
    for act in read_acts(store, anchors, _known_trust(state, anchors)):
        if act.type == "damage":
            lost |= {damaged.id: known[damaged.id][0] for damaged in act.packs if damaged.id in known and not known[damaged.id][3]}
    untold = codec.decode(state.get(HEAL_NEXT) or "[]", list[str], HEAL_NEXT)  # an earlier run met them, and made no snapshot that says so
    if not lost and not changed and not untold:
        return []
    state.mark_broken(lost.values())
    packs = sorted({*untold, *lost})
    state.put(HEAL_NEXT, codec.encode(packs).decode())
    entries = heal(state)
    if not packs:
        return []
    detail = f"{len(packs)} packs are missing or damaged in store {store.name}; {entries} entries are read and sent again"
    return [Finding(FindingKind.HEALED, ", ".join(pack[:12] for pack in packs[:5]) + (" …" if len(packs) > 5 else ""), detail)]


def forget_packs(state: State, packs: Iterable[PackId]) -> None:
    """A check found these packs missing or damaged: nothing refers to them any more, and the next run sends again what lies there."""
    known = state.packs()
    lost = [pack for pack in packs if pack in known]
    state.begin()
    state.mark_broken(known[pack][0] for pack in lost)
    untold = codec.decode(state.get(HEAL_NEXT) or "[]", list[str], HEAL_NEXT)
    state.put(HEAL_NEXT, codec.encode(sorted({*untold, *lost})).decode())
    state.commit()
