"""Units: what shares small blocks. A mailbox is one, a first-level folder of a directory source is one (locality rule)."""

from __future__ import annotations

from typing import Literal

from mailbackup.content.block import Piece
from mailbackup.content.writer import Lane
from mailbackup.model.ids import BlobId

LaneKind = Literal["trees", "headers", "bodies", "files"]


class Unit:
    """The open blocks of one unit, and the small blobs that it already has in this run."""

    __slots__ = ("known", "lanes", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.lanes: dict[LaneKind, Lane] = {}
        self.known: dict[BlobId, Piece] = {}

    def lane(self, kind: LaneKind) -> Lane:
        """The open block for blobs of one kind."""
        lane = self.lanes.get(kind)
        if lane is None:
            lane = self.lanes[kind] = Lane()
        return lane
