"""Units: what shares small blocks. A mailbox is one, a first-level folder of a directory source is one (locality rule)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from mailbackup.content.block import Piece
from mailbackup.content.writer import Lane
from mailbackup.model.ids import BlobId, Name, PackId
from mailbackup.model.tree import BlockRow, Ref, Segment
from mailbackup.vault.trees import live_refs, resolve

LaneKind = Literal["trees", "headers", "bodies", "files"]


class Unit:
    """The open blocks of one unit, the small blobs that it got in this run, and those that it had before (`add_old`), unless they lie in blocks that it is
    to `leave` (`vault.gather`). `fragments` counts the small blocks of headers and bodies that it sent."""

    __slots__ = ("_old", "fragments", "known", "lanes", "leave", "name")

    def __init__(self, name: str, leave: frozenset[tuple[PackId, int]] = frozenset()) -> None:
        self.name = name
        self.leave = leave
        self.fragments = 0
        self.lanes: dict[LaneKind, Lane] = {}
        self.known: dict[BlobId, Piece] = {}
        self._old: dict[BlobId, tuple[Sequence[BlockRow], Ref]] = {}

    def lane(self, kind: LaneKind) -> Lane:
        """The open block for blobs of one kind."""
        lane = self.lanes.get(kind)
        if lane is None:
            lane = self.lanes[kind] = Lane()
        return lane

    def add_old(self, segment: Segment, flags: Sequence[Name | None] | None) -> None:
        """The small blobs of a cached segment may be referred to again."""
        self.add_refs(segment.blocks, live_refs(segment, flags))

    def add_refs(self, blocks: Sequence[BlockRow], refs: Iterable[Ref]) -> None:
        """These blobs, whose blocks stand in `blocks`, may be referred to again."""
        left = {index for index, row in enumerate(blocks) if (row.pack, row.number) in self.leave} if self.leave else ()
        for ref in refs:
            if ref.block not in left:
                self._old[ref.blob] = (blocks, ref)

    def find(self, blob: BlobId) -> Piece | None:
        """A small blob that this unit has already."""
        piece = self.known.get(blob)
        if piece is None and blob in self._old:
            piece = self.known[blob] = Piece.of(resolve(*self._old[blob]))
        return piece
