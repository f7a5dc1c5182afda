"""Putting entries into the stores, so that a kill at any moment leaves either the old head or the new one (design section 4.5, steps 3 and 4).

*Fix*: the bytes of everything that an entry needs, the entry itself and the state that follows from it are committed to the state database in
one transaction, before any store sees any of them. age output is random: making "the same" entry again would give other bytes under the same
number, and the two would block the chain for ever, or fork it where there are two stores. *Put*: the objects go out in order, the entry last and
create-only. Whoever finds something pending at the next start does the same put again with the same bytes.
"""

from __future__ import annotations

from mailbackup.errors import ConflictError, DamageError, KeyExists, StoreUnavailable
from mailbackup.model.ids import Digest, ObjectKey, digest, entry_key, pack_key
from mailbackup.model.ledger import Anchors, LedgerEntry
from mailbackup.stores.base import Store
from mailbackup.vault.chain import parse_entry, read_raw
from mailbackup.vault.replicas import OWN_FAULT, Replica, Replicas, put_same
from mailbackup.vault.state import State

LEFT_OVER_SECONDS = 5 * 86400
"""How long what was sent may wait for the entry that registers it. After seven days without one `prune` may remove it: the difference is for clocks, and
for the time that a put takes."""


class OtherEntry(ConflictError):
    """The store holds another entry, signed by this writer or the admin, where the pending one would go: it is not going to be."""


def fix(state: State, objects: list[tuple[ObjectKey, bytes]]) -> None:
    """Commit the running transaction together with what it is about to put."""
    state.set_pending(objects)
    state.commit()


class Unplaceable(ConflictError):
    """No store holds the pending entry or the packs that it names, and none is away that might: it never came to be."""


def put_pending(replicas: Replicas, state: State, anchors: Anchors) -> None:
    """Put what is pending into every store that the run writes to, pin it as the new head and forget it. Does nothing when nothing is pending.

    The stores' heads are known (`Replicas.align`). Raises ConflictError when another writer has taken the place, OtherEntry when this writer has
    (an older state). A store that fails by its own fault is left out; raises when none is left.
    """
    objects = state.pending()
    if not objects:
        return
    key, raw = objects[-1]
    entry, _, _ = parse_entry(raw, key, anchors)
    taken: list[Replica] = []
    ordered = sorted((replica for replica in replicas.replicas if replica.current), key=lambda replica: replica.head < entry.seq)
    if any(replica.head < entry.seq for replica in ordered):
        for object_key, data in objects:
            replicas.keep(object_key, data)
    try:
        for replica in ordered:  # first those that have something there: a conflict shows before anything is written
            _put_all(replicas, replica, entry, objects, taken)
    finally:
        if taken:
            promote(state, entry, digest(raw), taken)


def put_left_over(replicas: Replicas, state: State, anchors: Anchors) -> None:
    """`put_pending` of an entry that an earlier run left. A store that lacks a pack that it names was away during that run: it is behind.

    [Putting the entry there all the same made vaults with entries whose packs were elsewhere, in one of three simulated years.] Raises Unplaceable
    when the entry can be forgotten, StoreUnavailable when a store is away that may hold it, else as `put_pending`.
    """
    objects = state.pending()
    if not objects:
        return
    entry, _, _ = parse_entry(objects[-1][1], objects[-1][0], anchors)
    for replica in replicas.replicas:
        if replica.current and replica.head < entry.seq:
            replica.behind = not _has_packs(replicas, replica, entry)
    if any(replica.current for replica in replicas.replicas):
        put_pending(replicas, state, anchors)
        return
    away = [replica for replica in replicas.replicas if replica.error is not None]
    if away:
        raise away[0].error or StoreUnavailable(away[0].name)
    for replica in replicas.replicas:
        replica.behind = replica.head < entry.seq - 1
    raise Unplaceable(f"entry {entry.seq} was never written, and no store holds its packs")


def _has_packs(replicas: Replicas, replica: Replica, entry: LedgerEntry) -> bool:
    """Whether a store holds all packs that an entry registers, and not for so long that a prune may be removing them.

    By a listing: a host that may not read packs may list them.
    """
    store = replica.store
    assert store is not None, "a current replica without a store"
    try:
        oldest = store.now() - LEFT_OVER_SECONDS
        return all(any(stat.size == pack.size and stat.time > oldest for _, stat in store.list(pack_key(pack.id))) for pack in entry.packs)
    except OWN_FAULT as error:
        replica.error = error
        return False


def _put_all(
    replicas: Replicas, replica: Replica, entry: LedgerEntry, objects: list[tuple[ObjectKey, bytes]], taken: list[Replica]
) -> None:
    store = replica.store
    assert store is not None, "a current replica without a store"
    try:
        if replica.head < entry.seq:
            for key, data in objects[:-1]:
                put_same(store, key, data)
        _put_entry(store, entry, objects[-1][1], exists=replica.head >= entry.seq)
    except (*OWN_FAULT, DamageError) as error:
        replicas.leave_out(store, error)
    else:
        replica.head = max(replica.head, entry.seq)
        taken.append(replica)


def _put_entry(store: Store, entry: LedgerEntry, raw: bytes, *, exists: bool) -> None:
    if not exists:
        try:
            store.put(entry_key(entry.seq), raw)
            return
        except KeyExists:
            pass
    _check_same(store, entry, raw)


def promote(state: State, entry: LedgerEntry, sha256: Digest, taken: list[Replica]) -> None:
    """The pending entry is in these stores: it is the pinned head now."""
    state.begin()
    state.set_pending([])
    state.set_head(entry.seq, sha256)
    for replica in taken:
        state.set_store_head(replica.name, entry.seq, sha256)
    state.register_epochs(entry.epochs)
    state.commit()


def _check_same(store: Store, entry: LedgerEntry, raw: bytes) -> None:
    theirs = read_raw(store, entry.seq)
    if theirs == raw:
        return
    other, _, _ = parse_entry(theirs, entry_key(entry.seq), Anchors(vault=entry.vault, admin=entry.signer))
    if other.type == "trust":  # who follows the ledger from here checks that the admin signed it
        raise OtherEntry(f"entry {entry.seq} was added by the admin at this moment", hint="Run it again: it goes on from there.")
    if other.signer == entry.signer:
        raise OtherEntry(f"entry {entry.seq} of the store is not the one that was about to be written: the state is older than the vault")
    raise ConflictError(f"entry {entry.seq} was written by {other.signer[:16]}…, another writer than this host")
