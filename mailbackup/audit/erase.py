"""Which blocks only one mailbox uses: keyed, since whoever cannot open a tree cannot know. Nothing here changes a store.

What others refer to as well stays, and so does everything where that cannot be told: a tree that cannot be read ends the plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from mailbackup.audit.walk import used
from mailbackup.errors import NotFound, ObjectMissing, SafetyRefusal
from mailbackup.model.events import OnEvent, Phase, Progress
from mailbackup.model.ids import Digest, PackId
from mailbackup.model.tree import BlobRef, BlockRow, MailboxRow, MailboxTree, Ref, SegmentRow, Snapshot
from mailbackup.upkeep.registry import PackLife, Registry
from mailbackup.vault.chain import Link
from mailbackup.vault.reader import VaultReader, means
from mailbackup.vault.tombstones import Tombstones
from mailbackup.vault.trees import decode_flags, decode_segment, resolve

Block = tuple[PackId, int]


@dataclass(slots=True)
class Erasure:
    """What erasing a mailbox comes to in one store. `goes` are the blocks that nothing else needs; all were dead at `head`."""

    address: str
    head: tuple[int, Digest]
    mailboxes: set[str] = field(default_factory=set)  # keys
    snapshots: list[int] = field(default_factory=list)  # that hold it
    messages: int = 0  # in the newest of them
    goes: dict[PackId, list[int]] = field(default_factory=dict)
    blocks: int = 0
    bytes: int = 0
    free: int = 0  # bytes of it in packs that nothing needs then
    shared_blocks: int = 0
    shared: int = 0  # bytes of blocks that others refer to as well


def plan_erasure(
    reader: VaultReader, registry: Registry, head: tuple[int, Digest], links: Iterable[Link], erased: Tombstones, *, address: str,
    location: str | None, missing: Collection[PackId], on_event: OnEvent,
) -> Erasure:  # fmt: skip
    """Plan the erasure of all mailboxes of an address. `links` are the snapshots whose objects are still there, newest first; `erased` went before, and
    `missing` packs need not be there any more.

    Raises NotFound when no snapshot holds one, SafetyRefusal when the newest snapshot does, or what it alone needs is counted as live, and DamageError
    when a tree cannot be read.
    """
    chosen = list(links)
    plan, reach = Erasure(address, head), _Reach(reader)
    own: set[Block] = set()
    others: set[Block] = set()
    on_event(Phase("looking for what others refer to", len(chosen), "snapshots"))
    for count, link in enumerate(chosen, 1):
        snapshot = reader.snapshot(link)
        others |= reach.root(snapshot)
        for row, ref in reader.table(snapshot):
            if erased.of(reader.anchors, row.key, snapshot.seq) is not None:
                continue  # it needs nothing any more
            if means(row, address) and location in (None, row.location):
                _meet(plan, row, snapshot, reader.store.name, newest=count == 1)
                own.update(_own(reach, ref, row.address, missing))
            else:
                others |= reach.mailbox(ref, row.address)
        on_event(Progress(count, 0, f"snapshot {link.seq}"))
    if not plan.snapshots:
        raise NotFound(f"no snapshot has a mailbox {address}", hint="'mailbackup ls --at SNAPSHOT' lists the mailboxes of an older one.")
    _refuse_live(registry, head[0], own - others, address)
    _choose(plan, own, others, reach.lengths)
    plan.free = sum(
        sum(reach.lengths[pack, number] for number in numbers)
        for pack, numbers in plan.goes.items()
        if _is_free(registry.packs[pack], numbers, [link.seq for link in chosen])
    )
    return plan


def _own(reach: _Reach, ref: BlobRef, address: str, missing: Collection[PackId]) -> Collection[Block]:
    """What the mailbox refers to. An act that was cut off before it could name the mailbox may have let its trees go."""
    try:
        return reach.mailbox(ref, address)
    except ObjectMissing:
        if not missing:
            raise
        return ()


def _meet(plan: Erasure, row: MailboxRow, snapshot: Snapshot, store: str, *, newest: bool) -> None:
    if newest:
        raise SafetyRefusal(
            f"{row.address} is in the newest snapshot {snapshot.seq} of store {store}",
            hint="Remove the mailbox on the mail server and make a backup; then erase it. Nothing was changed.",
        )
    if snapshot.seq not in plan.snapshots:
        plan.snapshots.append(snapshot.seq)
    plan.mailboxes.add(row.key)
    if plan.snapshots[0] == snapshot.seq:
        plan.messages += row.messages


def _refuse_live(registry: Registry, head: int, blocks: set[Block], address: str) -> None:
    """A live block may be referred to by the next snapshot."""
    live = sum(pack not in registry.packs or registry.packs[pack].lives(number, head) for pack, number in blocks)
    if live:
        raise SafetyRefusal(
            f"{live} blocks of {address} are counted as live still",
            hint="Only a complete snapshot lets go of what it does not hold. Make a backup that ends complete, then erase. Nothing was changed.",
        )


def _choose(plan: Erasure, own: set[Block], others: set[Block], lengths: dict[Block, int]) -> None:
    for pack, number in sorted(own - others):
        plan.goes.setdefault(pack, []).append(number)
        plan.blocks += 1
        plan.bytes += lengths[pack, number]
    plan.shared_blocks = len(own & others)
    plan.shared = sum(lengths[block] for block in own & others)


def _is_free(life: PackLife, erased: Collection[int], snapshots: Collection[int]) -> bool:
    """Whether no snapshot needs a pack once these blocks of it are erased."""
    if not life.is_dead:
        return False
    gone = set(erased)
    until = max((life.until(number) or 0 for number in range(life.row.blocks) if number not in gone), default=0)
    return not any(life.since <= seq < until for seq in snapshots)


class _Reach:
    """The blocks that trees refer to. What two snapshots share is opened once. Raises what reading a tree raises."""

    def __init__(self, reader: VaultReader) -> None:
        self._reader = reader
        self._trees: dict[str, frozenset[Block]] = {}  # by their ids
        self._segments: dict[tuple[str, str], frozenset[Block]] = {}
        self.lengths: dict[Block, int] = {}

    def root(self, snapshot: Snapshot) -> set[Block]:
        """What a snapshot refers to besides its mailboxes."""
        root = snapshot.root
        found = self._blocks(root.blocks)
        for directory in root.directories:
            found |= self._files(root.blocks, directory.segments, str(directory.path))
        return found

    def mailbox(self, ref: BlobRef, what: str) -> frozenset[Block]:
        """What a mailbox refers to, with the block of its tree."""
        if ref.blob not in self._trees:
            tree = self._reader.record(ref, MailboxTree, f"tree of {what}")
            self._reader.prefetch(tree)
            found = self._blocks(tree.blocks) | self._files(tree.blocks, tree.files, what)
            for folder in tree.folders:
                for pair in folder.segments:
                    found |= self._segment(tree.blocks, pair.facts, pair.flags, what)
            self._trees[ref.blob] = frozenset(found)
        self.lengths[ref.pack, ref.number] = ref.length
        return self._trees[ref.blob] | {(ref.pack, ref.number)}

    def _files(self, blocks: tuple[BlockRow, ...], segments: Iterable[SegmentRow], what: str) -> set[Block]:
        found: set[Block] = set()
        for row in segments:
            found |= self._segment(blocks, row.ref, None, what)
        return found

    def _segment(self, blocks: tuple[BlockRow, ...], ref: Ref, flags_ref: Ref | None, what: str) -> frozenset[Block]:
        name = (ref.blob, "" if flags_ref is None else flags_ref.blob)
        if name not in self._segments:
            blob = self._reader.blocks.blob
            segment = decode_segment(blob(resolve(blocks, ref)), what, "files" if flags_ref is None else "facts")
            present = list(range(len(segment.entries)))
            if flags_ref is not None:
                flags = decode_flags(blob(resolve(blocks, flags_ref)), len(segment.entries), what)
                present = [index for index in present if flags[index] is not None]
            self._segments[name] = frozenset(self._blocks(used(segment, present)))
        return self._segments[name]

    def _blocks(self, rows: Iterable[BlockRow]) -> set[Block]:
        found = {(row.pack, row.number): row.length for row in rows}
        self.lengths.update(found)
        return set(found)
