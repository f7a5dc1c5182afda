"""Listings to segments and back (format section 8)."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from mailbackup.content.block import Piece
from mailbackup.errors import RecordInvalid
from mailbackup.host import group_name, user_name
from mailbackup.model import codec
from mailbackup.model.ids import Name, from_name, to_name
from mailbackup.model.tree import BlobRef, BlockRow, Entry, Flags, Mtime, Owner, Ref, Segment

_MIN, _AVERAGE_MODULUS, _MAX = 128, 384, 2048  # entries of a segment; about 512 on average
_HEAVY = 4 << 20  # bytes of JSON, about

Place = Piece | BlobRef


class Item:
    """An entry of a listing being made: what goes into the vault, and the inode and ctime that only the state keeps."""

    __slots__ = (
        "ctime", "device", "flag", "hard", "head", "headers", "inode", "mtime", "name", "owner", "places", "size", "target", "type", "xattrs",
    )  # fmt: skip

    def __init__(
        self,
        name: bytes,
        kind: Literal["f", "d", "l", "p", "c", "b", "m"],
        owner: Owner,
        mtime: Mtime,
        size: int = 0,
        places: Sequence[Place] = (),
        *,
        headers: int = 0,
        inode: int = 0,
        ctime: int = 0,
    ) -> None:
        self.name = name
        self.type = kind
        self.owner = owner
        self.mtime = mtime
        self.size = size
        self.places = places
        self.headers = headers
        self.inode = inode
        self.ctime = ctime
        self.head: Place | None = None
        self.target: bytes | None = None
        self.hard: bytes | None = None
        self.device: tuple[int, int] | None = None
        self.xattrs: dict[str, str] | None = None
        self.flag: Name | None = None

    @classmethod
    def of(cls, segment: Segment, entry: Entry, inode: int = 0, ctime: int = 0, flag: Name | None = None) -> Item:
        """The item that an entry of a segment came from."""
        item = cls(
            from_name(entry.name),
            entry.type,
            owner_of(segment, entry),
            entry.mtime,
            entry.size,
            [resolve(segment.blocks, ref) for ref in entry.refs],
            headers=entry.headers,
            inode=inode,
            ctime=ctime,
        )
        item.head = None if entry.head is None else resolve(segment.blocks, entry.head)
        item.target = None if entry.target is None else from_name(entry.target)
        item.hard = None if entry.hard is None else from_name(entry.hard)
        item.device, item.xattrs, item.flag = entry.device, entry.xattrs, flag
        return item

    @property
    def pieces(self) -> Iterator[Piece]:
        """Its blobs that are new in this run."""
        if isinstance(self.head, Piece):
            yield self.head
        for place in self.places:
            if isinstance(place, Piece):
                yield place

    @property
    def weight(self) -> int:
        """About how many bytes its JSON takes, if that is much."""
        attributes = sum(map(len, self.xattrs.values())) if self.xattrs else 0
        return attributes + 100 * len(self.places)

    def sort_key(self) -> tuple[bytes, int, Mtime]:
        """Order in a listing: never by flags."""
        return (self.name, self.size, self.mtime)


def owner_now(mode: int, uid: int, gid: int) -> Owner:
    """Mode bits and owner with the names that this host knows."""
    return Owner(mode & 0o7777, uid, user_name(uid), gid, group_name(gid))


def owner_of(segment: Segment, entry: Entry) -> Owner:
    """The owner row of an entry. Raises RecordInvalid when it points outside its table."""
    if not 0 <= entry.owner < len(segment.owners):
        raise RecordInvalid(f"entry {entry.name!r}: owner {entry.owner} is not in the table")
    return segment.owners[entry.owner]


def resolve(blocks: Sequence[BlockRow], ref: Ref) -> BlobRef:
    """A ref with its block. Raises RecordInvalid when it points outside its table."""
    if not 0 <= ref.block < len(blocks) or ref.start < 0 or ref.length < 0:
        raise RecordInvalid(f"blob {ref.blob[:16]}: its ref points outside the table of blocks")
    row = blocks[ref.block]
    return BlobRef(row.pack, row.number, row.offset, row.length, ref.start, ref.length, ref.blob)


class RefTable:
    """The `blocks` of a record being made."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int], int] = {}
        self._blocks: list[BlockRow] = []

    def add(self, place: Place) -> Ref:
        """The ref for a placed blob."""
        ref = place if isinstance(place, BlobRef) else place.ref()
        key = (ref.pack, ref.number)
        row = self._rows.get(key)
        if row is None:
            row = self._rows[key] = len(self._blocks)
            self._blocks.append(BlockRow(ref.pack, ref.number, ref.offset, ref.length))
        return Ref(row, ref.start, ref.size, ref.blob)

    def rows(self) -> tuple[BlockRow, ...]:
        """All blocks referred to so far."""
        return tuple(self._blocks)


def encode_segment(kind: Literal["files", "facts"], items: Sequence[Item]) -> bytes:
    """The segment of these items, all of whose pieces must be placed."""
    table = RefTable()
    owners: dict[Owner, int] = {}
    rows: dict[tuple[int, int, str | None, int, str | None], int] = {}
    entries = []
    for item in items:
        owner = item.owner
        key = (owner.mode, owner.uid, owner.user, owner.gid, owner.group)
        row = rows.get(key)
        if row is None:
            row = rows[key] = len(rows)
            owners[owner] = row
        entries.append(
            Entry(
                name=to_name(item.name),
                type=item.type,
                owner=row,
                mtime=item.mtime,
                size=item.size,
                refs=tuple([table.add(place) for place in item.places]),
                headers=item.headers,
                head=None if item.head is None else table.add(item.head),
                target=None if item.target is None else to_name(item.target),
                hard=None if item.hard is None else to_name(item.hard),
                device=item.device,
                xattrs=item.xattrs,
            )
        )
    return codec.encode(Segment(kind=kind, blocks=table.rows(), owners=tuple(owners), entries=tuple(entries)))


def decode_segment(data: bytes, what: str, kind: Literal["files", "facts"]) -> Segment:
    """The segment in a blob. Raises RecordInvalid."""
    segment = codec.decode(data, Segment, what)
    if segment.kind != kind:
        raise RecordInvalid(f"{what}: is a {segment.kind} segment, expected {kind}")
    if len(segment.entries) > _MAX:
        raise RecordInvalid(f"{what}: has more than {_MAX} entries")
    return segment


def decode_flags(data: bytes, count: int, what: str) -> tuple[Name | None, ...]:
    """The flags in a blob, exactly `count`. Raises RecordInvalid: unequal lengths are damage."""
    flags = codec.decode(data, Flags, what).flags
    if len(flags) != count:
        raise RecordInvalid(f"{what}: {len(flags)} flags for {count} messages")
    return flags


def encode_flags(flags: Iterable[Name | None]) -> bytes:
    """The flags blob."""
    return codec.encode(Flags(flags=tuple(flags)))


def cut(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Ordered items in runs of about 512, cut where the names say so: a change moves no cut but its own.

    Entries that are heavy (huge files, large attributes) end a run early, so that a segment stays far below the limit of a record.
    """
    runs: list[Sequence[Item]] = []
    start, weight = 0, 0
    for index, item in enumerate(items):
        count = index + 1 - start
        weight += item.weight
        if (count >= _MIN and (count >= _MAX or zlib.crc32(item.name) % _AVERAGE_MODULUS == 0)) or weight > _HEAVY:
            runs.append(items[start : index + 1])
            start, weight = index + 1, 0
    if start < len(items):
        runs.append(items[start:])
    return runs


def live_refs(segment: Segment, flags: Sequence[Name | None] | None) -> Iterator[Ref]:
    """The refs of all entries that are in the snapshot (flags None = all of them)."""
    for index, entry in enumerate(segment.entries):
        if flags is None or flags[index] is not None:
            yield from entry.refs
            if entry.head is not None:
                yield entry.head
