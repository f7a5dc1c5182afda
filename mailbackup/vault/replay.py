"""The start of a run: bring the state to the store's head, and forget what the store no longer holds (design section 4.5, step 1)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from mailbackup.errors import ChainBroken, ConflictError, DamageError, RecordInvalid
from mailbackup.model import codec
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import LEDGER_PAGE, Digest, PackId, PublicKey, pack_key
from mailbackup.model.ledger import Anchors, LedgerEntry, PackRow, from_ranges
from mailbackup.stores.base import Store
from mailbackup.vault.chain import (
    Link,
    Trust,
    check_entry,
    check_head,
    live_list_of,
    page_trust,
    parse_entry,
    read_acts,
    read_raw,
    stops_of,
    trust_of,
    walk,
)
from mailbackup.vault.commit import OtherEntry, Unplaceable, put_left_over
from mailbackup.vault.heal import heal, recount
from mailbackup.vault.replicas import OWN_FAULT, Replicas, copy_object
from mailbackup.vault.state import State

TRUST_LINES = "trust_lines"
STATE_IS_NEW = "state_is_new"  # made since the last complete snapshot: nothing tells whether a source lost something
FREEZE_NEXT = "freeze_next"  # the reason why the next snapshot freezes pruning
HEAL_NEXT = "heal_next"  # lost packs that the next snapshot has to name

KnownPacks = dict[PackId, tuple[int, int, int, bool]]  # pack → its number in the state, size, blocks, whether it is known to be lost

_NO_STATE = "there was no state for this vault; everything is sent once more, and pruning waits for a human"


def start(replicas: Replicas, state: State, anchors: Anchors, writer: PublicKey) -> list[Finding]:
    """See which stores can be written to, put what an earlier run left pending, then bring the state to their head, in one transaction, and make it forget
    what is missing or damaged there. Raises ConflictError when someone else wrote to this vault or this writer was replaced, ChainBroken when the
    chain is not sound, and what keeps the first store away when there is none to write to.
    """
    rewound = False
    replicas.align(state, anchors)
    try:
        put_left_over(replicas, state, anchors)
    except (OtherEntry, Unplaceable):
        rewound = True
    while True:
        store, head = replicas.settle_heads()
        state.begin()
        try:
            findings = (_rewind if rewound else _follow)(store, head, state, anchors, writer)
            findings += _forget_lost(replicas, state, anchors, changed=bool(findings))
            for current in replicas.current:
                state.set_store_head(current.name, *(state.head or (0, Digest(""))))
            if state.get(STATE_IS_NEW):
                findings.append(Finding(FindingKind.STATE_NEW, "state", _NO_STATE))
        except OWN_FAULT as error:
            state.rollback()
            replicas.leave_out(store, error)  # the next one is followed; raises when there is none
            continue
        except BaseException:
            state.rollback()
            raise
        state.commit()
        return findings


def _rewind(store: Store, head: int, state: State, anchors: Anchors, writer: PublicKey) -> list[Finding]:
    """The state already counts on an entry that never came to be: its live set is read from the ledger anew. The trees stay."""
    pinned, kept = state.head, {key: state.get(key) for key in (FREEZE_NEXT, STATE_IS_NEW)}
    state.set_pending([])
    for table in ("blob", "block", "pack", "snapshot"):
        state.execute(f"DELETE FROM {table}")  # noqa: S608 - names from this line
    state.execute("DELETE FROM meta WHERE key IN ('head_seq', 'head_hash', ?)", (TRUST_LINES,))
    _follow(store, head, state, Anchors(vault=anchors.vault, admin=anchors.admin, head=pinned), writer)
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


def _follow(store: Store, head: int, state: State, anchors: Anchors, writer: PublicKey) -> list[Finding]:
    """Take over the entries behind the pinned one, which was found in the store, up to its head."""
    pinned = state.head
    if pinned is None:
        check_head(head, anchors)
        return _from_scratch(store, state, anchors, writer, head)
    if head == pinned[0]:
        return []
    trust = _known_trust(state, anchors)
    with _dismissal_first(trust, head, writer):
        for link in walk(store, anchors, trust, last=head, after=pinned):
            _apply(store, state, link, writer, trust)
    _check_writer(trust, head, writer)
    return [_behind(pinned[0], state)]


def _known_trust(state: State, anchors: Anchors) -> Trust:
    """Who is trusted at the pinned head, by all trust entries up to it."""
    return trust_of(codec.decode(state.get(TRUST_LINES), list[str], TRUST_LINES), anchors)


def _from_scratch(store: Store, state: State, anchors: Anchors, writer: PublicKey, head: int) -> list[Finding]:
    trust = Trust(anchors.admin)
    after: tuple[int, Digest] | None = None
    first = head - head % LEDGER_PAGE
    if first:
        trust = page_trust(store, first, anchors)
        with _dismissal_first(trust, head, writer):
            after = _from_page(store, state, anchors, trust, first)
    with _dismissal_first(trust, head, writer):
        for link in walk(store, anchors, trust, last=head, after=after):
            _apply(store, state, link, writer, trust)
    _check_writer(trust, head, writer)
    if not state.snapshot_counts() and not first:
        return []
    state.put(FREEZE_NEXT, "the first snapshot after the state was lost")
    state.put(STATE_IS_NEW, 1)
    return []


def _from_page(store: Store, state: State, anchors: Anchors, trust: Trust, first: int) -> tuple[int, Digest]:
    """The live set as the first entry of the last page carries it; `trust` learns that entry if it is about trust itself."""
    raw = read_raw(store, first)
    entry, _, _ = parse_entry(raw, f"ledger/{first // LEDGER_PAGE:010d}/{first:010d}.json", anchors)
    link = check_entry(raw, first, entry.prev, trust, anchors)
    if link.entry.type == "trust":
        trust.learn(link.entry, link.raw)
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


def _apply(store: Store, state: State, link: Link, writer: PublicKey, trust: Trust) -> None:
    """What one entry changes: its packs live, its stops do not."""
    entry = link.entry
    _check_signer(link, writer, trust)
    for pack in entry.packs:
        state.add_pack(pack)
    state.register_epochs(entry.epochs)
    if entry.type == "trust":
        state.put(TRUST_LINES, codec.encode(trust.lines).decode())
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


def _check_signer(link: Link, writer: PublicKey, trust: Trust) -> None:
    """Once this host was named the writer, all entries are its own; those before are the history that it goes on from."""
    signer = link.entry.signer
    if link.entry.type != "trust" and signer != writer and "writer" in trust.roles.get(writer, ()):
        raise ConflictError(f"entry {link.seq} was written by {signer[:16]}…, another writer than this host")


@contextlib.contextmanager
def _dismissal_first(trust: Trust, head: int, writer: PublicKey) -> Iterator[None]:
    """To a host that was dismissed that is the first thing to say, whatever else is wrong with what came after."""
    try:
        yield
    except ChainBroken:
        if (writer, "writer") in trust.former and "writer" not in trust.roles.get(writer, ()):
            raise _not_the_writer(trust, head, writer) from None
        raise


def _check_writer(trust: Trust, head: int, writer: PublicKey) -> None:
    """At the head this host is the writer, and the only one."""
    if "writer" not in trust.roles.get(writer, ()) or _others(trust, writer):
        raise _not_the_writer(trust, head, writer)


def _others(trust: Trust, writer: PublicKey) -> list[PublicKey]:
    return [key for key, roles in trust.roles.items() if "writer" in roles and key != writer]


def _not_the_writer(trust: Trust, seq: int, writer: PublicKey) -> ConflictError:
    others = _others(trust, writer)
    now = f": that is {others[0][:16]}… now" if others else ""
    return ConflictError(
        f"entry {seq}: this host is {'no longer' if (writer, 'writer') in trust.former else 'not'} the writer of this vault{now}",
        hint="The vault was handed to another host with 'mailbackup vault adopt'. Stop the backups of this one; or, if it is the one that is to go on,"
        " run 'mailbackup vault adopt' here.",
    )


def _forget_lost(replicas: Replicas, state: State, anchors: Anchors, *, changed: bool) -> list[Finding]:
    """Packs that are missing, have another size, or that an act calls damaged: what another store holds whole is copied from there, and what lies
    in the others is sent again by this run."""
    lost: dict[PackId, int] = {}
    findings: list[Finding] = []
    known = {pack: row for pack, row in state.packs().items() if not row[3]}
    sizes: dict[Store, dict[str, int]] = {}
    replicas.each(lambda store: sizes.update({store: {key: stat.size for key, stat in store.list("packs/")}}))
    for store in replicas.current:
        absent = [pack for pack in known if pack_key(pack) not in sizes[store]]
        copied = _copied_back(replicas, store, [pack for pack in absent if _elsewhere(pack, known, sizes)], state)
        if store not in replicas.current:
            continue
        if copied:
            detail = f"{len(copied)} packs were missing in store {store.name}, and were copied from another store"
            findings.append(Finding(FindingKind.HEALED, _some(sorted(copied)), detail))
        found = {pack: row[0] for pack, row in known.items() if pack not in copied and sizes[store].get(pack_key(pack)) != row[1]}
        lost |= found
    replicas.each(lambda store: lost.update(_said_damaged(store, state, anchors, known)))
    untold = codec.decode(state.get(HEAL_NEXT) or "[]", list[str], HEAL_NEXT)  # an earlier run met them, and made no snapshot that says so
    if not lost and not changed and not untold:
        return findings
    state.mark_broken(lost.values())
    packs = sorted({*untold, *lost})
    state.put(HEAL_NEXT, codec.encode(packs).decode())
    entries = heal(state)
    if not packs:
        return findings
    names = ", ".join(store.name for store in replicas.current)
    detail = f"{len(packs)} packs are missing or damaged in store {names}; {entries} entries are read and sent again"
    return [*findings, Finding(FindingKind.HEALED, _some(packs), detail)]


def _said_damaged(store: Store, state: State, anchors: Anchors, known: KnownPacks) -> dict[PackId, int]:
    """The packs that an act of this store calls damaged. Acts that are broken keep nobody from a backup: those before the break count, and `verify` says so."""
    acts = read_acts(store, anchors, _known_trust(state, anchors))
    found: dict[PackId, int] = {}
    with contextlib.suppress(DamageError):
        for act, _ in acts:
            found |= {part.id: known[part.id][0] for part in act.packs if part.id in known} if act.type == "damage" else {}
    return found


def _some(packs: list[str] | list[PackId]) -> str:
    return ", ".join(pack[:12] for pack in packs[:5]) + (" …" if len(packs) > 5 else "")


def _elsewhere(pack: PackId, known: KnownPacks, sizes: dict[Store, dict[str, int]]) -> bool:
    return any(found.get(pack_key(pack)) == known[pack][1] for found in sizes.values())


def _copied_back(replicas: Replicas, store: Store, packs: list[PackId], state: State) -> set[PackId]:
    """Those of these packs that another store gave, whole."""
    others = [other for other in replicas.current if other is not store]
    copied: set[PackId] = set()
    hashes = {row.id: row.sha256 for _, row in state.pack_rows()} if packs else {}
    for pack in packs:
        try:
            copy_object(others, store, pack_key(pack), hashes[pack])
        except (DamageError, ConflictError, *OWN_FAULT):
            continue
        copied.add(pack)
    try:
        if copied:
            store.flush()
    except OWN_FAULT as error:
        replicas.leave_out(store, error)
        return set()
    return copied


def forget_packs(state: State, packs: Iterable[PackId]) -> None:
    """A check found these packs missing or damaged: nothing refers to them any more, and the next run sends again what lies there."""
    known = state.packs()
    lost = [pack for pack in packs if pack in known]
    state.begin()
    state.mark_broken(known[pack][0] for pack in lost)
    untold = codec.decode(state.get(HEAL_NEXT) or "[]", list[str], HEAL_NEXT)
    state.put(HEAL_NEXT, codec.encode(sorted({*untold, *lost})).decode())
    state.commit()
