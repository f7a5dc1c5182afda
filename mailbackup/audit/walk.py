"""Keyed verification: open what the snapshots refer to, check that every blob is what its id says, and that the ledger holds live what the trees reach.

The last is what deletion rests on: whoever prunes cannot open a tree, so a stop of a block that a tree still needs is found here or nowhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from mailbackup.errors import DamageError, MailbackupError, ObjectMissing, StoreError, WrongIdentity
from mailbackup.model.events import OnEvent, Phase, Progress
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import PackId, from_name, safe_path, show
from mailbackup.model.tree import BlobRef, BlockRow, MailboxRow, MailboxTree, Ref, Segment, Snapshot
from mailbackup.upkeep.acts import Book
from mailbackup.upkeep.registry import PackLife, Registry
from mailbackup.vault.chain import Link
from mailbackup.vault.reader import VaultReader
from mailbackup.vault.tombstones import Tombstones
from mailbackup.vault.trees import decode_flags, decode_segment, owner_of, resolve

_FINDINGS_AT_MOST = 1000  # one lost block can concern a million messages


@dataclass(slots=True)
class Audited:
    """The result of an audit. `snapshots` were opened, and are the ones of the ledger that the registry was read from; `whole` = all contents were."""

    blobs: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    left_out: int = 0
    reached: set[tuple[PackId, int]] = field(default_factory=set)  # blocks that the audited trees refer to
    snapshots: set[int] = field(default_factory=set)
    passed: set[int] = field(default_factory=set)  # snapshots that need not be here, and were not opened
    whole: bool = True
    waste: int = 0  # blocks that are live at the newest complete snapshot, and that its trees do not refer to


class _Part(NamedTuple):
    """A segment that was audited: its entries that are in the snapshot, their bytes, and the blocks that they use. Unreadable: -1 entries."""

    entries: int
    bytes: int
    blocks: frozenset[tuple[PackId, int]]


_UNREADABLE = _Part(-1, 0, frozenset())


class Auditor:
    """Audits snapshots of one vault. What two snapshots share is opened once."""

    def __init__(
        self, reader: VaultReader, registry: Registry, on_event: OnEvent, sample: float | None = None, book: Book | None = None
    ) -> None:
        """`book`: the acts of the store, which say what need not be there any more."""
        self._reader = reader
        self._registry = registry
        self._deleted: set[int] = set()  # snapshots that a prune act gave up
        self._absent: set[int] = (
            set()
        )  # snapshots that never came to this store, as its writer says: those that are here are audited all the same
        self._erased = Tombstones()
        for link in book.acts if book is not None else ():
            self._erased.add(link.act)
            self._deleted |= set(link.act.gone) if link.act.type == "prune" else set()
            self._absent |= set(link.act.snapshots) if link.act.type == "received-without" else set()
        self._on_event = on_event
        self._sample = sample
        self._checked: set[BlobRef] = set()
        self._segments: dict[tuple[str, str], _Part] = {}  # by their ids
        self._walked = frozenset(registry.snapshots)
        self._seq = 0
        self._now: set[tuple[PackId, int]] = set()  # blocks that the trees of this snapshot refer to
        self._newest = 0  # the newest complete snapshot so far
        self.result = Audited(whole=sample is None)
        self.result.passed |= self._deleted

    def run(self, links: Iterable[Link]) -> Audited:
        """Audit the snapshots that these entries name, but those that a prune act gave up. Raises WrongIdentity when the identity opens none of them."""
        chosen = [link for link in links if link.seq not in self._deleted]
        not_ours: list[WrongIdentity] = []
        self._on_event(Phase("opening snapshots", len(chosen), "snapshots"))
        for count, link in enumerate(chosen, 1):
            self._seq = link.seq
            try:
                snapshot = self._reader.snapshot(link)
            except WrongIdentity as error:
                not_ours.append(error)
                self._find(FindingKind.UNREADABLE, f"snapshot {link.seq}", error)
            except DamageError as error:
                if isinstance(error, ObjectMissing) and link.seq in self._absent:
                    self.result.passed.add(link.seq)
                else:
                    self._find(FindingKind.OBJECT_DAMAGED, f"snapshot {link.seq}", error)
            else:
                self._now = set()
                self._same_ledger(link)
                self._guarded(snapshot)
                self._weigh(snapshot)
                self.result.reached |= self._now
            self._on_event(Progress(count, self.result.bytes, f"snapshot {link.seq}"))
        if not_ours and len(not_ours) == len(chosen):
            raise not_ours[0]  # says nothing about the vault
        if self.result.left_out:
            detail = f"{self.result.left_out} further findings are not listed"
            self.result.findings.append(Finding(FindingKind.BLOB_MISMATCH, "more", detail))
        return self.result

    def _same_ledger(self, link: Link) -> None:
        """A store may answer differently each time: the snapshot must be the one that the walk over the ledger met."""
        row = link.entry.snapshot
        if link.seq not in self._walked or row is None:
            return
        if self._registry.objects.get(row.key) == row.sha256:
            self.result.snapshots.add(link.seq)
        else:
            self._find(FindingKind.CHAIN_BROKEN, f"snapshot {link.seq}", "its entry is another one than the one that was checked")

    def _weigh(self, snapshot: Snapshot) -> None:
        """What lives at the newest complete snapshot for nothing. That costs room, and is no fault: a run that was cut short leaves some."""
        seq = snapshot.seq
        if snapshot.outcome == "incomplete" or seq not in self._walked or seq < self._newest:
            return
        self._newest = seq
        lives = self._registry.packs
        reached = sum(pack in lives and lives[pack].lives(number, seq) for pack, number in self._now)
        self.result.waste = sum(_living(life, seq) for life in lives.values()) - reached

    def _guarded(self, snapshot: Snapshot) -> None:
        try:
            self._snapshot(snapshot)
        except (DamageError, WrongIdentity) as error:
            self._find(FindingKind.RECORD_INVALID, f"snapshot {snapshot.seq}", error)

    def _snapshot(self, snapshot: Snapshot) -> None:
        root = snapshot.root
        for row in root.mailboxes:
            self._live(root.blocks, [row.ref], "mailbox table")
        for mailbox, ref in self._table(snapshot):
            if self._erased.of(self._reader.anchors, mailbox.key, snapshot.seq) is not None:
                continue
            self._live_refs([ref], mailbox.address)
            try:
                tree = self._reader.record(ref, MailboxTree, f"tree of {mailbox.address}")
            except (DamageError, WrongIdentity) as error:
                self._find(FindingKind.RECORD_INVALID, mailbox.address, error)
                continue
            self._compare(mailbox.address, self._mailbox(tree), (mailbox.messages, mailbox.bytes))
        for directory in root.directories:
            path = show(from_name(directory.path))
            parts = [self._segment(root.blocks, row.ref, None, path, row.count) for row in directory.segments]
            if _UNREADABLE not in parts:
                self._compare(path, (sum(part.bytes for part in parts),), (directory.bytes,))

    def _table(self, snapshot: Snapshot) -> list[tuple[MailboxRow, BlobRef]]:
        """The rows of the mailbox table as far as it can be read, compared with what the snapshot says of its sources."""
        rows: list[tuple[MailboxRow, BlobRef]] = []
        try:
            for row in self._reader.table(snapshot):
                rows.append(row)  # not a comprehension: those before the damage count
        except (DamageError, WrongIdentity) as error:
            self._find(FindingKind.RECORD_INVALID, "mailbox table", error)
            return rows
        found = (len(rows), sum(row.messages for row, _ in rows), sum(row.bytes for row, _ in rows))
        sources = [source for source in snapshot.sources if source.kind == "mail"]
        said = (sum(s.mailboxes for s in sources), sum(s.messages for s in sources), sum(s.bytes for s in sources))
        self._compare(f"snapshot {snapshot.seq}", found, said)
        return rows

    def _mailbox(self, tree: MailboxTree) -> tuple[int, int]:
        """Messages and bytes as its folders say; that they say what is there is checked here."""
        for row in tree.files:
            self._segment(tree.blocks, row.ref, None, tree.address, row.count)
        for folder in tree.folders:
            name = f"{tree.address}/{show(from_name(folder.name))}"
            parts = [self._segment(tree.blocks, pair.facts, pair.flags, name, pair.count) for pair in folder.segments]
            if _UNREADABLE not in parts:
                self._compare(
                    name, (sum(part.entries for part in parts), sum(part.bytes for part in parts)), (folder.messages, folder.bytes)
                )
        return sum(folder.messages for folder in tree.folders), sum(folder.bytes for folder in tree.folders)

    def _compare(self, subject: str, found: tuple[int, ...], said: tuple[int, ...]) -> None:
        if found != said:
            self._find(FindingKind.COUNT_MISMATCH, subject, f"holds {', '.join(map(str, found))}; its row says {', '.join(map(str, said))}")

    def _segment(self, blocks: tuple[BlockRow, ...], ref: Ref, flags_ref: Ref | None, what: str, count: int) -> _Part:
        """Check a segment, which should have `count` entries, and everything it refers to."""
        refs = [ref] if flags_ref is None else [ref, flags_ref]
        self._live(blocks, refs, what)
        name = (ref.blob, "" if flags_ref is None else flags_ref.blob)
        known = self._segments.get(name)
        if known is not None:
            self._live_blocks(known.blocks, what)
            return known
        try:
            segment = decode_segment(self._blob(resolve(blocks, ref)), what, "files" if flags_ref is None else "facts")
            flags = None
            if flags_ref is not None:
                flags = decode_flags(self._blob(resolve(blocks, flags_ref)), len(segment.entries), what)
        except (DamageError, WrongIdentity) as error:
            self._find(FindingKind.RECORD_INVALID, what, error)
            return _UNREADABLE
        self._compare(f"{what}: a segment", (len(segment.entries),), (count,))
        present = [index for index in range(len(segment.entries)) if flags is None or flags[index] is not None]
        self._entries(segment, present, what, single=flags is not None)
        size = sum(segment.entries[index].size for index in present)
        part = self._segments[name] = _Part(len(present), size, frozenset((row.pack, row.number) for row in used(segment, present)))
        return part

    def _entries(self, segment: Segment, present: list[int], what: str, *, single: bool) -> None:
        for index in present:
            entry = segment.entries[index]
            refs = entry.refs if entry.head is None else (*entry.refs, entry.head)
            subject = what
            try:
                subject = f"{what}: {show(from_name(entry.name))}"
                owner_of(segment, entry)
                safe_path(entry.name, single=single)
                if entry.type == "f" and entry.size != sum(ref.length for ref in entry.refs):
                    self._find(FindingKind.COUNT_MISMATCH, subject, "its size is not the sum of its blobs")
                self._live(segment.blocks, refs, subject)
                self._content(segment.blocks, refs, subject)
            except MailbackupError as error:
                if isinstance(error, StoreError):
                    raise
                self._find(FindingKind.RECORD_INVALID, subject, error)

    def _content(self, blocks: tuple[BlockRow, ...], refs: tuple[Ref, ...], subject: str) -> None:
        for ref in refs:
            place = resolve(blocks, ref)
            if place in self._checked or not self._chosen(place):
                continue
            self._checked.add(place)
            try:
                self._blob(place)
            except (DamageError, WrongIdentity) as error:
                self._find(FindingKind.BLOB_MISMATCH, subject, error)

    def _blob(self, ref: BlobRef) -> bytes:
        data = self._reader.blocks.blob(ref)
        self.result.blobs += 1
        self.result.bytes += len(data)
        return data

    def _chosen(self, ref: BlobRef) -> bool:
        """With a sample, whole blocks are chosen, at random anew for each audit."""
        if self._sample is None:
            return True
        return random.Random(f"{id(self)}{ref.pack}{ref.number}").random() < self._sample  # noqa: S311 - no secret

    def _live(self, blocks: tuple[BlockRow, ...], refs: Iterable[Ref], subject: str) -> None:
        self._live_refs((resolve(blocks, ref) for ref in refs), subject)

    def _live_refs(self, refs: Iterable[BlobRef], subject: str) -> None:
        """Everything that a snapshot refers to was live at its entry: else prune could take it away."""
        self._live_blocks({(ref.pack, ref.number) for ref in refs}, subject)

    def _live_blocks(self, blocks: Iterable[tuple[PackId, int]], subject: str) -> None:
        for pack, number in blocks:
            self._now.add((pack, number))
            if self._seq not in self._walked:
                continue  # it stands behind a break of the chain, which was reported: what lives there is not known
            life = self._registry.packs.get(pack)
            if life is None or not life.lives(number, self._seq):
                self._find(FindingKind.NOT_LIVE, subject, f"block {number} of pack {pack} was not live at entry {self._seq}")

    def _find(self, kind: FindingKind, subject: str, detail: object) -> None:
        if len(self.result.findings) >= _FINDINGS_AT_MOST:
            self.result.left_out += 1
            return
        self.result.findings.append(Finding(kind, subject, str(detail), (self._seq,)))


def _living(life: PackLife, seq: int) -> int:
    """Blocks of a pack that were live at an entry."""
    if seq < life.since:
        return 0
    return life.row.blocks - (0 if life.stopped is None else sum(0 < until <= seq for until in life.stopped))


def used(segment: Segment, present: list[int]) -> Iterator[BlockRow]:
    """The blocks that these entries of a segment refer to; refs outside the table were reported already."""
    for index in present:
        entry = segment.entries[index]
        for ref in entry.refs if entry.head is None else (*entry.refs, entry.head):
            if 0 <= ref.block < len(segment.blocks):
                yield segment.blocks[ref.block]
