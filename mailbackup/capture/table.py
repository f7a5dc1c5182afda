"""The mailbox table of a snapshot (format section 8.4): kept between runs, so that only segments with a changed row are written."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from mailbackup.capture.mailbox import FoundMailbox
from mailbackup.content.block import Piece
from mailbackup.model import codec
from mailbackup.model.ids import BlobId, blob_id
from mailbackup.model.tree import BlobRef, MailboxRow, MailboxTable, SegmentRow
from mailbackup.vault.cached import CachedUnit
from mailbackup.vault.heal import TABLE, unit_refs
from mailbackup.vault.state import State
from mailbackup.vault.trees import Place, RefTable
from mailbackup.vault.units import Unit
from mailbackup.vault.writer import VaultWriter

_MIN, _MODULUS, _MAX = 128, 384, 2048  # rows of a segment, as for entries


@dataclass(frozen=True, slots=True)
class Row:
    """A mailbox of this snapshot."""

    key: str
    location: str
    address: str
    messages: int
    size: int
    tree: BlobRef
    stale: bool


class Table:
    """The mailboxes of this snapshot."""

    def __init__(self, state: State, writer: VaultWriter) -> None:
        self.rows: dict[str, Row] = {}
        self._state = state
        self._writer = writer

    def add(self, found: FoundMailbox, tree: BlobRef, messages: int, size: int, *, stale: bool) -> None:
        """A mailbox that was captured."""
        self.rows[found.key] = Row(found.key, found.location, found.address, messages, size, tree, stale)

    def keep_stale(self, unit: CachedUnit) -> None:
        """A mailbox that could not be read: its previous tree stays."""
        if unit.ref is None:
            return
        self._state.execute("UPDATE unit SET stale = 1 WHERE no = ?", (unit.no,))
        self.rows[unit.key] = Row(unit.key, unit.location, unit.address, unit.messages, unit.size, unit.ref, stale=True)

    def drop(self, unit: CachedUnit) -> None:
        """A mailbox or directory that is gone: everything below it is referred to once less."""
        unit.tree = self._state.tree_of(unit.no)
        self._writer.count(unit_refs(self._state, unit), -1)
        self._state.drop_unit(unit.no)

    def store(self, table: RefTable) -> tuple[SegmentRow, ...]:
        """Store the segments that differ from the last run's, and return the rows for the root."""
        known = self._cached()
        unit = Unit("mailbox table")
        segments: list[tuple[str, int, Place]] = []
        for run in self._cut():
            plain = _encode(run)
            place = known.get(blob_id(plain)) or self._writer.add(unit, "trees", plain)
            segments.append((run[0].key, len(run), place))
        self._writer.flush(unit, "trees")
        self._writer.settle(place for _, _, place in segments if isinstance(place, Piece))
        placed = [(first, count, place if isinstance(place, BlobRef) else place.ref()) for first, count, place in segments]
        self._writer.count(known.values(), -1)
        self._writer.count([place for _, _, place in placed], 1)
        self._state.put(TABLE, codec.encode(placed).decode())
        return tuple(SegmentRow(table.add(place), first, count) for first, count, place in placed)

    def _cached(self) -> dict[BlobId, BlobRef]:
        cached = self._state.get(TABLE)
        if cached is None:
            return {}
        return {row[2].blob: row[2] for row in codec.decode(cached, list[tuple[str, int, BlobRef]], "cached table")}

    def _cut(self) -> Iterator[list[Row]]:
        run: list[Row] = []
        for key in sorted(self.rows):
            run.append(self.rows[key])
            if len(run) >= _MIN and (len(run) >= _MAX or zlib.crc32(key.encode()) % _MODULUS == 0):
                yield run
                run = []
        if run:
            yield run


def _encode(rows: list[Row]) -> bytes:
    table = RefTable()
    mailboxes = tuple(
        MailboxRow(
            key=row.key, location=row.location, address=row.address, messages=row.messages, bytes=row.size, tree=table.add(row.tree), stale=row.stale
        )
        for row in rows
    )  # fmt: skip
    return codec.encode(MailboxTable(blocks=table.rows(), mailboxes=mailboxes))
