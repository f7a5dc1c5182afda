"""Making a state anew from the newest snapshot, so that a lost state need not cost a full upload. Needs an identity."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from mailbackup.errors import NotFound
from mailbackup.model import codec
from mailbackup.model.events import OnEvent, Phase, Progress
from mailbackup.model.ids import PublicKey, from_name
from mailbackup.model.tree import BlockRow, DirectoryRoot, MailboxTree, Root, SegmentRow, Snapshot
from mailbackup.stores.base import Store
from mailbackup.vault.cached import CachedSegment, CachedUnit
from mailbackup.vault.heal import FILES, recount
from mailbackup.vault.reader import VaultReader
from mailbackup.vault.replay import FREEZE_NEXT, STATE_IS_NEW, start
from mailbackup.vault.replicas import Replicas
from mailbackup.vault.state import State
from mailbackup.vault.trees import RefTable, resolve


def rebuild(store: Store, state: State, reader: VaultReader, writer: PublicKey, on_event: OnEvent) -> tuple[int, int, int]:
    """Fill a fresh state from the newest complete snapshot: its seq, mailboxes and messages. Inodes are not in a vault: the next run reads
    every message once, and sends none that it finds again."""
    on_event(Phase("reading the ledger"))
    start(Replicas.of(store), state, reader.anchors, writer)
    link = next((link for link in reader.snapshots() if link.entry.outcome != "incomplete"), None)
    if link is None:
        raise NotFound("the vault has no complete snapshot to rebuild from", hint="Run 'mailbackup backup': it makes a new state.")
    snapshot = reader.snapshot(link)
    state.begin()
    on_event(Phase("reading trees", sum(source.messages for source in snapshot.sources)))
    boxes = messages = 0
    for row, ref in reader.table(snapshot):  # also of an erased mailbox: its blocks are counted
        tree = reader.record(ref, MailboxTree, f"tree of {row.address}")
        unit = CachedUnit(
            0,
            "mail",
            row.key,
            row.location,
            row.address,
            from_name(tree.path),
            row.messages,
            row.bytes,
            row.stale,
            False,
            codec.encode(tree),
            ref,
        )
        _mailbox(state, reader, state.put_unit(unit), tree)
        boxes, messages = boxes + 1, messages + row.messages
        on_event(Progress(messages, 0, row.address))
    for directory in snapshot.root.directories:
        _directory(state, reader, snapshot, directory)
    recount(state)
    state.set_sources(snapshot.sources)
    for key in (FREEZE_NEXT, STATE_IS_NEW):  # the trees are known again: nothing has to be taken on trust
        state.put(key, None)
    state.commit()
    return link.seq, boxes, messages


def _mailbox(state: State, reader: VaultReader, unit: int, tree: MailboxTree) -> None:
    for row in tree.files:
        _segment(state, reader, unit, FILES, tree.blocks, row, None)
    for folder in tree.folders:
        for pair in folder.segments:
            flags = reader.blocks.blob(resolve(tree.blocks, pair.flags))
            _segment(state, reader, unit, from_name(folder.name), tree.blocks, SegmentRow(pair.facts, pair.first, pair.count), flags)


def _directory(state: State, reader: VaultReader, snapshot: Snapshot, directory: DirectoryRoot) -> None:
    table = RefTable()
    rows = tuple(SegmentRow(table.add(resolve(snapshot.root.blocks, row.ref)), row.first, row.count) for row in directory.segments)
    name = directory.name
    kept = DirectoryRoot(name=name, path=directory.path, segments=rows, files=directory.files, bytes=directory.bytes)
    plain = codec.encode(Root(blocks=table.rows(), directories=(kept,), mailboxes=()))
    path = from_name(directory.path)
    unit = state.put_unit(CachedUnit(0, "directory", name, name, "", path, kept.files, kept.bytes, directory.stale, False, plain, None))
    for row in directory.segments:
        _segment(state, reader, unit, FILES, snapshot.root.blocks, row, None)


def _segment(
    state: State, reader: VaultReader, unit: int, folder: bytes, blocks: Sequence[BlockRow], row: SegmentRow, flags: bytes | None
) -> None:
    data = reader.blocks.blob(resolve(blocks, row.ref))
    zeros = array("Q", bytes(8 * row.count))
    state.put_segment(
        unit, folder, CachedSegment(row.ref.blob, data, zeros, zeros if flags is None else array("Q"), flags or b"", dirty=False)
    )
