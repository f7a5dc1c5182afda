"""The writing side of a vault: deduplication, reference counts, checkpoints and the commit of a snapshot (design section 4.5).

Bodies, then segments, then mailbox trees, then the table, then the snapshot: each is stored when the places of what it refers to are known.
The caller reads sources; it gets `Piece`s back at once and calls `settle` when it needs their places.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mailbackup.content.block import Block, Piece, seal_block
from mailbackup.content.ports import KeyMaker, Sealer
from mailbackup.content.writer import FinishedPack, PackWriter
from mailbackup.content.zstd import compress, fitting_level
from mailbackup.crypto.signing import SigningKey, seal_line
from mailbackup.errors import ConflictError, MailbackupError, StateUnusable
from mailbackup.host import stamp, utc_now
from mailbackup.model import codec
from mailbackup.model.finding import Finding
from mailbackup.model.ids import LEDGER_PAGE, ObjectKey, PackId, blob_id, digest, entry_key, epoch_key, list_key, snapshot_key
from mailbackup.model.ledger import (
    Anchors,
    BlockList,
    EpochRow,
    LedgerEntry,
    Lists,
    LiveList,
    LivePack,
    ObjectRow,
    PackRow,
    StopList,
    to_ranges,
)
from mailbackup.model.tree import SMALL_BLOB, Outcome, Root, Snapshot, SourceCount
from mailbackup.vault.commit import LEFT_OVER_SECONDS, fix, put_pending
from mailbackup.vault.gather import FRAGMENT
from mailbackup.vault.heal import refuse_dead
from mailbackup.vault.replay import FREEZE_NEXT, HEAL_NEXT, STATE_IS_NEW, TRUST_LINES
from mailbackup.vault.replicas import Replicas
from mailbackup.vault.state import State
from mailbackup.vault.trees import Place
from mailbackup.vault.units import LaneKind, Unit

Bytes = bytes | memoryview  # of bytes that do not change afterwards

CHECKPOINT_BYTES = 2 << 30
CHECKPOINT_SECONDS = 300
_PACKS_AT_ONCE = 4  # on their way to a distant store; each waits in a file of about 70 MiB meanwhile
_INLINE_STOPS = 8 * 1024  # bytes of stops that stay in the entry's line
_MANY_EPOCHS = 10_000


@dataclass(frozen=True, slots=True)
class WriterKeys:
    """What a host holds: its signing key, the trust anchors, the recipients of the vault and something that makes epoch keys."""

    signer: SigningKey
    anchors: Anchors
    recipients: tuple[str, ...]
    key_maker: KeyMaker


def ensure_epoch(replicas: Replicas, state: State, keys: WriterKeys) -> EpochRow:
    """The epoch to seal to. A new one when there is none or the recipients changed; its key object is in the stores when this returns.

    Bytes are saved in the state before the put, so that a kill between the two does not make a second, other object under the same key.
    """
    recipients = "\n".join(sorted(keys.recipients))
    newest = state.newest_epoch()
    number = 1 if newest is None else newest[0].epoch + 1
    if newest is not None and newest[2] == recipients:
        row, sealed, _, registered = newest
        if registered:
            return row
        if _put_key(replicas, row, sealed):
            return row
    for epoch in range(number, number + _MANY_EPOCHS):
        made = keys.key_maker.new_epoch(f"mailbackup vault {keys.anchors.vault} epoch {epoch}")
        row = EpochRow(epoch=epoch, recipient=made.recipient, key=epoch_key(epoch), sha256=digest(made.sealed))
        state.begin()
        state.add_epoch(row, made.sealed, recipients)
        state.commit()
        if _put_key(replicas, row, made.sealed):
            return row
        state.execute("DELETE FROM epoch WHERE epoch = ?", (epoch,))
    raise MailbackupError("no free epoch number was found in the store")


def _put_key(replicas: Replicas, row: EpochRow, sealed: bytes) -> bool:
    """Whether the stores hold these bytes under the key now. Other bytes there belong to a lost state: their number is passed over."""
    try:
        replicas.put_same(row.key, sealed)
        replicas.each(lambda store: store.flush())
    except ConflictError:
        return False
    return True


class VaultWriter:
    """One run's writing. Between its creation and `close`, the state is in a transaction that a checkpoint or the commit makes durable."""

    def __init__(
        self, replicas: Replicas, state: State, keys: WriterKeys, sealer: Sealer, epoch: EpochRow, *, level: int = 3, threads: int = 2
    ) -> None:
        self._replicas = replicas
        self._state = state
        self._keys = keys
        self._sealer = sealer
        self._epoch = epoch
        self._level = level
        self._packs = PackWriter(sealer, replicas.create, level=level, threads=threads, closing=min(replicas.parallel, _PACKS_AT_ONCE))
        self._changes: Counter[tuple[PackId, int]] = Counter()
        self._in_flight: dict[str, Block] = {}  # large blobs of this run that are not in the state yet
        self._new_large: list[Piece] = []
        self._checkpoint_at = (time.monotonic(), 0)
        self._registered_at = (time.time(), time.clock_gettime(time.CLOCK_BOOTTIME))
        state.begin()

    @property
    def bytes_stored(self) -> int:
        """Bytes appended to packs so far."""
        return self._packs.stored

    # -- blobs

    def add(self, unit: Unit, kind: LaneKind, data: Bytes) -> Piece:
        """Store a blob, unless the vault has it within the reach of the locality rule. The data must not change afterwards."""
        if len(data) >= SMALL_BLOB:
            return self._add_large(data, adaptive=kind == "bodies")
        blob = blob_id(data)
        piece = unit.find(blob)
        if piece is None:
            piece = unit.known[blob] = self._packs.add_small(unit.lane(kind), data, blob)
        return piece

    def _add_large(self, data: Bytes, *, adaptive: bool) -> Piece:
        piece = Piece(None, 0, len(data), None)
        self._packs.submit(len(data), lambda: self._store_large(piece, data, adaptive))
        return piece

    def _store_large(self, piece: Piece, data: Bytes, adaptive: bool) -> None:
        """Runs in a sealing thread: hash, decide, seal."""
        piece.blob = blob_id(data)
        with self._state.lock:  # the lock under which every decision about duplicates is made
            block = self._in_flight.get(piece.blob)
            if block is None:
                known = self._state.find_large(piece.blob)
                if known is not None:
                    piece.block = Piece.of(known).block
                    return
                block = piece.block = self._in_flight[piece.blob] = Block()
                self._new_large.append(piece)
            else:
                piece.block = block
                return
        self._packs.seal_into(block, data, fitting_level(data, self._level) if adaptive else self._level)

    def flush(self, unit: Unit, *kinds: LaneKind) -> None:
        """Send off the open blocks of these kinds."""
        for kind in kinds:
            lane = unit.lanes.get(kind)
            if lane is not None:
                unit.fragments += kind in ("headers", "bodies") and 0 < len(lane.buffer) < FRAGMENT
                self._packs.flush(lane)

    def settle(self, pieces: Iterable[Piece]) -> None:
        """Wait until the places of these blobs are known."""
        self._packs.settle(pieces)

    # -- reference counts

    def count(self, places: Iterable[Place], change: int) -> None:
        """The new trees refer to these blobs once more (+1) or once less (-1)."""
        for place in places:
            if isinstance(place, Piece):
                block = place.block
                assert block is not None, "counted before it was settled"
                assert block.pack is not None, "counted before it was settled"
                self._changes[block.pack, block.number] += change
            else:
                self._changes[place.pack, place.number] += change

    # -- entries

    def checkpoint_due(self) -> bool:
        """Whether enough was shipped, or enough time went by, to register it."""
        since, stored = self._checkpoint_at
        shipped = self._packs.stored - stored
        return shipped > CHECKPOINT_BYTES or (shipped > 0 and time.monotonic() - since > CHECKPOINT_SECONDS)

    def checkpoint(self) -> None:
        """Register what was shipped so far: after a kill the next run uses it instead of sending it again."""
        packs = self._register_packs()
        if packs:
            self._put_entry(LedgerEntryDraft(type="packs", packs=packs))
            self._state.begin()
        self._checkpoint_at = (time.monotonic(), self._packs.stored)

    def commit(self, draft: SnapshotDraft) -> tuple[int, Outcome]:
        """Make the snapshot. Everything it refers to must be settled. Returns its seq and outcome."""
        packs = self._register_packs()
        seq = self._next_seq()
        when = stamp(utc_now())
        sealed = self._seal_snapshot(seq, when, draft)
        row = ObjectRow(key=snapshot_key(seq, digest(sealed)), sha256=digest(sealed), size=len(sealed), epoch=self._epoch.epoch)
        stops: BlockList = ()
        if draft.outcome != "incomplete":
            stops = self._stops()
            self._state.put(STATE_IS_NEW, None)
        refuse_dead(self._state)
        self._state.set_sources(draft.sources)
        messages = sum(source.messages for source in draft.sources if source.kind == "mail")
        self._state.add_snapshot(seq, when, messages, sum(source.bytes for source in draft.sources), draft.outcome)
        freeze = self._state.get(FREEZE_NEXT)
        self._state.put(FREEZE_NEXT, None)
        self._state.put(HEAL_NEXT, None)
        entry = LedgerEntryDraft(type="snapshot", packs=packs, snapshot=row, outcome=draft.outcome, freeze=freeze, stops=stops, time=when)
        self._put_entry(entry, [(row.key, sealed)])
        return seq, draft.outcome

    def close(self) -> None:
        """Stop; what was not committed is rolled back. Never raises."""
        self._packs.close()
        self._state.rollback()

    def _next_seq(self) -> int:
        head = self._state.head
        assert head is not None, "a writer without a replayed state"
        return head[0] + 1

    def _seal_snapshot(self, seq: int, when: str, draft: SnapshotDraft) -> bytes:
        snapshot = Snapshot(
            format=1,
            vault=self._keys.anchors.vault,
            seq=seq,
            time=when,
            host=draft.host,
            tool=draft.tool,
            outcome=draft.outcome,
            root=draft.root,
            sources=tuple(draft.sources),
            findings=tuple(draft.findings),
            facts=draft.facts,
        )
        return seal_block(self._sealer, codec.encode(snapshot), self._level)

    def _register_packs(self) -> tuple[PackRow, ...]:
        """Finish the packs, and bring blocks, large blobs and reference counts into the state."""
        finished = self._packs.finish_packs()
        numbers = {pack.id: self._state.add_pack(_row(pack, self._epoch.epoch)) for pack in finished}
        with self._state.lock:
            placed = [piece for piece in self._new_large if piece.placed]
            self._new_large = [piece for piece in self._new_large if not piece.placed]
        self._state.add_large((piece.ref() for piece in placed), numbers)
        for piece in placed:
            if piece.blob is not None:
                self._in_flight.pop(piece.blob, None)
        missing = self._state.change_refs(self._changes)
        if missing:
            raise StateUnusable(f"the state is unusable: it refers to {len(missing)} blocks that are not live, first {missing[0]}")
        self._changes.clear()
        return tuple(_row(pack, self._epoch.epoch) for pack in finished)

    def _refuse_old(self) -> None:
        """What nobody registered for a week may be pruned as the left-over of a dead run. Raises ConflictError when this run was paused for so long that
        what it sent may be gone by now: by the clock of the day, or by the one that also counts while the machine sleeps."""
        wall, boot = self._registered_at
        paused = max(time.time() - wall, time.clock_gettime(time.CLOCK_BOOTTIME) - boot)
        if paused > LEFT_OVER_SECONDS and self._packs.stored > 0:
            raise ConflictError(
                f"this run was paused for {paused / 86400:.0f} days: what it sent may have been removed since",
                hint="Run it again; what was registered before is used.",
            )

    def _stops(self) -> BlockList:
        unused = self._state.unused_blocks()
        self._state.drop_blocks(unused.items())
        return tuple((pack, to_ranges(numbers)) for pack, numbers in unused.items())

    def _put_entry(self, draft: LedgerEntryDraft, objects: list[tuple[ObjectKey, bytes]] | None = None) -> None:
        """Sign, fix, put and pin an entry."""
        head = self._state.head
        assert head is not None, "a writer without a replayed state"
        seq = head[0] + 1
        lists, stops, list_objects = self._lists(seq, draft.stops)
        newest = self._state.newest_epoch()
        entry = LedgerEntry(
            format=1,
            vault=self._keys.anchors.vault,
            seq=seq,
            prev=head[1],
            type=draft.type,
            time=draft.time or stamp(utc_now()),
            signer=self._keys.signer.public,
            packs=draft.packs,
            epochs=(newest[0],) if newest is not None and not newest[3] else (),
            snapshot=draft.snapshot,
            outcome=draft.outcome,
            freeze=draft.freeze,
            stops=stops,
            lists=lists,
            trust=tuple(codec.decode(self._state.get(TRUST_LINES), list, TRUST_LINES)) if seq % LEDGER_PAGE == 0 else (),
        )
        raw = seal_line(codec.encode(entry), self._keys.signer)
        if entry.packs:
            self._refuse_old()
        fix(self._state, [*list_objects, *(objects or []), (entry_key(seq), raw)])
        put_pending(self._replicas, self._state, self._keys.anchors)
        self._registered_at = (time.time(), time.clock_gettime(time.CLOCK_BOOTTIME))

    def _lists(self, seq: int, stops: BlockList) -> tuple[Lists | None, BlockList, list[tuple[ObjectKey, bytes]]]:
        """Lists that are objects of their own: long stops, and the live set of every 256th entry."""
        rows: dict[str, ObjectRow] = {}
        objects = []
        if len(codec.encode(stops)) > _INLINE_STOPS:
            rows["stops"], data = _list_object(seq, codec.encode(StopList(vault=self._keys.anchors.vault, seq=seq, blocks=stops)))
            objects.append((rows["stops"].key, data))
            stops = ()
        if seq % LEDGER_PAGE == 0:
            rows["live"], data = _list_object(seq, codec.encode(self._live_list(seq)))
            objects.append((rows["live"].key, data))
        return (Lists(**rows) if rows else None), stops, objects

    def _live_list(self, seq: int) -> LiveList:
        packs = tuple(
            LivePack(
                id=row.id, size=row.size, sha256=row.sha256, blocks=row.blocks, footer=row.footer, epoch=row.epoch,
                live=to_ranges(self._state.live_blocks(number)),
            )
            for number, row in self._state.pack_rows()
        )  # fmt: skip
        rows = self._state.execute("SELECT epoch, recipient, key, sha256 FROM epoch ORDER BY epoch")
        epochs = tuple(EpochRow(epoch=r[0], recipient=r[1], key=r[2], sha256=r[3]) for r in rows)
        return LiveList(vault=self._keys.anchors.vault, seq=seq, packs=packs, epochs=epochs)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDraft:
    """What capture knows of a snapshot; the writer adds number, time, keys and stops."""

    host: str
    tool: str
    outcome: Outcome
    root: Root
    sources: list[SourceCount]
    findings: list[Finding]
    facts: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntryDraft:
    """What differs between the entries that a writer makes."""

    type: Literal["packs", "snapshot"]
    packs: tuple[PackRow, ...] = ()
    snapshot: ObjectRow | None = None
    outcome: Outcome | None = None
    freeze: str | None = None
    stops: BlockList = ()
    time: str | None = None


def _row(pack: FinishedPack, epoch: int) -> PackRow:
    return PackRow(id=pack.id, size=pack.size, sha256=pack.sha256, blocks=len(pack.lengths), footer=pack.footer, epoch=epoch)


def _list_object(seq: int, data: bytes) -> tuple[ObjectRow, bytes]:
    packed = compress(data)
    return ObjectRow(key=list_key(seq, digest(packed)), sha256=digest(packed), size=len(packed)), packed
