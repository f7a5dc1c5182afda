"""One mail folder: what is cached of it compared with what lies there now, and the segments that follow from that.

A segment whose messages are all still there stays as it is; only its flags list is written anew when a flag changed. A message that was deleted
leaves a null in the flags (docs/decisions/001), until a quarter of its segment is gone or new messages come into its range: then the segments
concerned are cut anew, where the names say so.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mailbackup.capture.scan import ABSENT, FolderScan, Seen
from mailbackup.content.block import Piece
from mailbackup.model import codec
from mailbackup.model.codec import Record
from mailbackup.model.ids import Name, PackId, blob_id, from_name, to_name
from mailbackup.model.tree import SMALL_BLOB, BlobRef, BlockRow, Folder, PairRow, Segment
from mailbackup.vault.cached import CachedSegment
from mailbackup.vault.trees import Item, Place, RefTable, cut, decode_flags, decode_segment, encode_flags, encode_segment, owner_of, resolve
from mailbackup.vault.units import Unit
from mailbackup.vault.writer import VaultWriter

_REWRITE_SHARE = 4  # a segment is written anew when more than 1/4 of its entries are gone
_SHORT = 128  # entries; a shorter rest is cut together with the segment behind it


class _Named(Record, frozen=True, gc=False):
    name: Name


class _Names(Record, frozen=True, gc=False):
    entries: tuple[_Named, ...]


class OldPair:
    """A cached facts segment with its flags. `flags` become the new ones by `compare`; `gone` are places of messages that left."""

    def __init__(self, cached: CachedSegment, facts: BlobRef, flags: BlobRef, first: bytes) -> None:
        self.cached = cached
        self.facts = facts
        self.flags_ref = flags
        self.first = first
        self.names = [from_name(entry.name) for entry in codec.decode(cached.data, _Names, "cached segment").entries]
        self.old_flags = decode_flags(cached.flags, len(self.names), "cached flags")
        self.flags: list[Name | None] = list(self.old_flags)
        self.gone: list[int] = []
        self._segment: Segment | None = None

    @property
    def segment(self) -> Segment:
        """Its entries, decoded when first needed."""
        if self._segment is None:
            self._segment = decode_segment(self.cached.data, "cached segment", "facts")
        return self._segment

    def offer(self, unit: Unit) -> None:
        """Let new messages refer to its blobs, except those that the vault has lost: `heal` makes their segment dirty and takes their inodes."""
        known = zip(self.old_flags, self.cached.inodes, strict=True)
        unit.add_old(self.segment, [flag if inode or not self.cached.dirty else None for flag, inode in known])

    def live_names(self) -> Iterator[bytes]:
        """Base names of the messages that the last snapshot holds."""
        return (name for name, flag in zip(self.names, self.old_flags, strict=True) if flag is not None)

    def compare(self, present: dict[bytes, Seen]) -> None:
        """Take the messages of this segment out of `present`; those with another inode stay there, to be read, and count as gone here."""
        flags: list[Name | None] = []
        for index, (name, inode, old) in enumerate(zip(self.names, self.cached.inodes, self.old_flags, strict=True)):
            seen = present.get(name) if old is not None else None
            if seen is not None and seen.inode == inode:
                flags.append(seen.flag)
                del present[name]
                continue
            flags.append(None)
            if old is not None:
                self.gone.append(index)
        self.flags = flags

    def describes(self, index: int, status: os.stat_result) -> bool:
        """Whether what the vault has of a message agrees with its file's status."""
        entry = self.segment.entries[index]
        owner = owner_of(self.segment, entry)
        known = (entry.size, tuple(entry.mtime), owner.mode, owner.uid, owner.gid)
        return known == (status.st_size, divmod(status.st_mtime_ns, 1_000_000_000), status.st_mode & 0o7777, status.st_uid, status.st_gid)

    def lying_in(self, blocks: Container[tuple[PackId, int]]) -> Iterator[int]:
        """The entries, of those that are still there, with a blob in one of these blocks."""
        rows = {index for index, row in enumerate(self.segment.blocks) if (row.pack, row.number) in blocks}
        for index, entry in enumerate(self.segment.entries if rows else ()):
            refs = entry.refs if entry.head is None else (*entry.refs, entry.head)
            if self.flags[index] is not None and any(ref.block in rows for ref in refs):
                yield index

    def match(self, base: bytes, seen: Seen) -> None:
        """A file with the base name of another one, which `compare` did not find under its name."""
        for index in self.gone:
            if self.names[index] == base and self.cached.inodes[index] == seen.inode:
                self.flags[index] = seen.flag
                self.gone.remove(index)
                return

    def drop(self, index: int) -> None:
        """A message that is to be read again."""
        self.flags[index] = None
        self.gone.append(index)

    def keep(self, index: int) -> None:
        """A message that could not be read keeps its place."""
        self.flags[index] = self.old_flags[index]
        self.gone.remove(index)

    @property
    def worn(self) -> bool:
        """Whether it is time to write it anew."""
        return self.cached.dirty or self.flags.count(None) * _REWRITE_SHARE > len(self.flags)

    def items(self) -> Iterator[Item]:
        """What is left of it."""
        segment = self.segment
        for index, entry in enumerate(segment.entries):
            flag = self.flags[index]
            if flag is not None:
                yield Item.of(segment, entry, self.cached.inodes[index], 0, flag)

    def places(self, indexes: Iterable[int]) -> Iterator[BlobRef]:
        """The blobs of these entries."""
        segment = self.segment
        for index in indexes:
            entry = segment.entries[index]
            yield from (resolve(segment.blocks, ref) for ref in entry.refs)
            if entry.head is not None:
                yield resolve(segment.blocks, entry.head)


@dataclass(slots=True)
class Pair:
    """A facts segment and its flags as the folder's new tree lists them. `cached` is None where the state has them as they are."""

    facts: Place
    flags: Place
    first: bytes
    count: int
    cached: CachedSegment | None = None
    facts_kept: bool = False


@dataclass(slots=True)
class FolderWork:
    """A folder in this run. `untouched`: its directories' stamps prove that nothing changed. `stale`: it could not be read."""

    name: bytes
    scan: FolderScan
    cached: Folder | None
    old: list[OldPair] = field(default_factory=list)
    untouched: bool = False
    stale: bool = False
    flawed: bool = False  # has a finding: keeps no directory facts, so that the finding comes back until it is settled
    items: list[Item] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    removed: list[BlobRef] = field(default_factory=list)  # blobs that its tree refers to once less than before
    added: list[Place] = field(default_factory=list)  # and once more

    @property
    def vanished(self) -> bool:
        """Whether its directories were not there any more when it was listed."""
        return not self.stale and self.scan.stamps == (ABSENT, ABSENT)

    @property
    def changed(self) -> bool:
        """Whether anything has to be written for it."""
        if self.untouched:
            return False
        if self.cached is None or self.items or self.cached.stale != self.stale:
            return True
        return any(pair.worn or tuple(pair.flags) != pair.old_flags for pair in self.old)

    def keep(self, base: bytes) -> None:
        """A message that is there but could not be read keeps what the last snapshot had of it."""
        for pair in self.old:
            for index in pair.gone:
                if pair.names[index] == base:
                    pair.keep(index)
                    return

    def kept_names(self) -> Iterator[bytes]:
        """Base names of the messages of the last snapshot that are still there."""
        return (name for name, _ in self.kept_inodes())

    def kept_inodes(self) -> Iterator[tuple[bytes, int]]:
        """The same with their inodes."""
        for pair in self.old:
            for name, inode, flag in zip(pair.names, pair.cached.inodes, pair.flags, strict=True):
                if flag is not None:
                    yield name, inode

    def counts(self) -> tuple[int, int]:
        """Messages and their bytes."""
        if self.untouched or self.stale:
            return (self.cached.messages, self.cached.bytes) if self.cached else (0, 0)
        gone = sum(pair.segment.entries[index].size for pair in self.old for index in pair.gone)
        size = (self.cached.bytes if self.cached else 0) - gone + sum(item.size for item in self.items)
        return sum(len(pair.flags) - pair.flags.count(None) for pair in self.old) + len(self.items), size

    def shift(self) -> tuple[int, int]:
        """Bytes of small blobs of messages that its tree refers to once more, and once less."""
        added = sum(small_bytes([*item.places, *([] if item.head is None else [item.head])]) for item in self.items)
        return added, sum(small_bytes(pair.places(pair.gone)) for pair in self.old)

    def build(self, writer: VaultWriter, unit: Unit) -> None:
        """Store its segments. All pieces of its items must be settled.

        What a segment that is cut anew takes over from an old one is referred to as often as before: only new items and gone ones count.
        """
        for item in self.items:
            self.added += item.places
            if item.head is not None:
                self.added.append(item.head)
        for part in self._parts():
            if isinstance(part, OldPair):
                self._keep_pair(writer, unit, part)
            else:
                for items in cut(sorted(part, key=Item.sort_key)):
                    self._new_pair(writer, unit, items)

    def _parts(self) -> Iterator[OldPair | list[Item]]:
        """In the order of names: pairs whose facts stay, and lists of items that are cut anew."""
        arrivals = self._arrivals()
        pool = arrivals.pop(-1, [])
        for index, pair in enumerate(self.old):
            if pair.worn or index in arrivals or (pool and _rest(pool) < _SHORT):
                pool += [*pair.items(), *arrivals.get(index, ())]
                self.removed += [pair.facts, pair.flags_ref, *pair.places(pair.gone)]
                continue
            if pool:
                yield pool
                pool = []
            yield pair
        if pool:
            yield pool

    def _arrivals(self) -> dict[int, list[Item]]:
        """New items by the old pair into whose range they fall; -1 when there is none."""
        firsts = [pair.first for pair in self.old]
        arrivals: dict[int, list[Item]] = {}
        for item in self.items:
            index = bisect_right(firsts, item.name) - 1
            arrivals.setdefault(max(0, index) if firsts else -1, []).append(item)
        return arrivals

    def _keep_pair(self, writer: VaultWriter, unit: Unit, pair: OldPair) -> None:
        if tuple(pair.flags) == pair.old_flags:
            self.pairs.append(Pair(pair.facts, pair.flags_ref, pair.first, len(pair.flags), facts_kept=True))
            return
        plain = encode_flags(pair.flags)
        flags = writer.add(unit, "trees", plain)
        self.removed += [pair.flags_ref, *pair.places(pair.gone)]
        self.added.append(flags)
        cached = CachedSegment(pair.cached.id, b"", pair.cached.inodes, pair.cached.ctimes, plain, dirty=False)
        self.pairs.append(Pair(pair.facts, flags, pair.first, len(pair.flags), cached, facts_kept=True))

    def _new_pair(self, writer: VaultWriter, unit: Unit, items: Sequence[Item]) -> None:
        facts_plain, flags_plain = encode_segment("facts", items), encode_flags(item.flag for item in items)
        facts, flags = writer.add(unit, "trees", facts_plain), writer.add(unit, "trees", flags_plain)
        self.added += [facts, flags]
        inodes = array("Q", (item.inode for item in items))
        cached = CachedSegment(blob_id(facts_plain), facts_plain, inodes, array("Q"), flags_plain, dirty=False)
        self.pairs.append(Pair(facts, flags, items[0].name, len(items), cached))

    def pieces(self) -> Iterator[Piece]:
        """The new blobs that its segments refer to."""
        for item in self.items:
            yield from item.pieces

    def row(self, table: RefTable) -> Folder:
        """Its row in the mailbox tree. All its segments must be settled."""
        messages, size = self.counts()
        rows = tuple(PairRow(table.add(p.facts), table.add(p.flags), to_name(p.first), p.count) for p in self.pairs)
        return Folder(name=to_name(self.name), messages=messages, bytes=size, segments=rows, stale=self.stale)


def kept_pairs(blocks: Sequence[BlockRow], folder: Folder) -> list[Pair]:
    """The pairs of a folder that stays as it was."""
    return [
        Pair(resolve(blocks, row.facts), resolve(blocks, row.flags), from_name(row.first), row.count, facts_kept=True)
        for row in folder.segments
    ]


def small_bytes(places: Iterable[Place]) -> int:
    """Bytes of those blobs that share blocks."""
    return sum(place.size for place in places if place.size < SMALL_BLOB)


def _rest(pool: list[Item]) -> int:
    """Length of what the last cut leaves over; a whole segment is never shorter than `_SHORT`."""
    return len(cut(sorted(pool, key=Item.sort_key))[-1])
