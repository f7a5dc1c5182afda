"""Putting entries into the store, so that a kill at any moment leaves either the old head or the new one (design section 4.5, steps 3 and 4).

*Fix*: the bytes of everything that an entry needs, the entry itself and the state that follows from it are committed to the state database in one
transaction, before the store sees any of them. age output is random: making "the same" entry again would give other bytes under
the same number, and the two would block the chain for ever. *Put*: the objects go out in order, the entry last and create-only. Whoever
finds something pending at the next start does the same put again with the same bytes.
"""

from __future__ import annotations

from mailbackup.errors import ChainBroken, ConflictError, KeyExists
from mailbackup.model.ids import Digest, ObjectKey, digest
from mailbackup.model.ledger import Anchors, LedgerEntry
from mailbackup.model.tree import RECORD_LIMIT
from mailbackup.stores.base import Store
from mailbackup.vault.chain import check_head, find_head, parse_entry, read_raw
from mailbackup.vault.state import State


class OtherEntry(ConflictError):
    """The store holds another entry, signed by this writer, where the pending one would go: the state was rolled back."""


def fix(state: State, objects: list[tuple[ObjectKey, bytes]]) -> None:
    """Commit the running transaction together with what it is about to put."""
    state.set_pending(objects)
    state.commit()


def put_pending(store: Store, state: State, anchors: Anchors) -> None:
    """Put what is pending, pin it as the new head and forget it. Does nothing when nothing is pending.

    Raises ConflictError when another writer has taken the place, OtherEntry when this writer has (an older state), ChainBroken when the store's
    ledger is shorter than the pinned head.
    """
    objects = state.pending()
    if not objects:
        return
    key, raw = objects[-1]
    entry, _, _ = parse_entry(raw, key, anchors)
    head = find_head(store)
    check_head(head, Anchors(vault=anchors.vault, admin=anchors.admin, head=state.head))
    if head >= entry.seq:
        _check_same(store, entry, raw)
    else:
        if head != entry.seq - 1 or digest(read_raw(store, head)) != entry.prev:
            raise ChainBroken(f"the ledger ends at entry {head}, which entry {entry.seq} (waiting to be written) does not follow")
        for object_key, data in objects:
            put_same(store, object_key, data)
    promote(state, entry, digest(raw))


def promote(state: State, entry: LedgerEntry, sha256: Digest) -> None:
    """The pending entry is in the store: it is the pinned head now."""
    state.begin()
    state.set_pending([])
    state.set_head(entry.seq, sha256)
    state.register_epochs(entry.epochs)
    state.commit()


def put_same(store: Store, key: ObjectKey, data: bytes) -> None:
    """Create an object; one with the same bytes is success (an answer was lost). Raises ConflictError for other bytes."""
    try:
        store.put(key, data)
    except KeyExists:
        if store.get(key, max(RECORD_LIMIT, len(data))) != data:
            raise ConflictError(f"{key}: the store {store.name} already holds another object under this key") from None


def _check_same(store: Store, entry: LedgerEntry, raw: bytes) -> None:
    theirs = read_raw(store, entry.seq)
    if theirs == raw:
        return
    other, _, _ = parse_entry(
        theirs, f"ledger/{entry.seq // 256:010d}/{entry.seq:010d}.json", Anchors(vault=entry.vault, admin=entry.signer)
    )
    if other.signer == entry.signer:
        raise OtherEntry(f"entry {entry.seq} of the store is not the one that was about to be written: the state is older than the vault")
    raise ConflictError(f"entry {entry.seq} was written by {other.signer[:16]}…, another writer than this host")
