"""What the ledger says a store must hold: every object with its hash, and how long each block lived."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

from mailbackup.content.pack import footer_size
from mailbackup.errors import DamageError, RecordInvalid
from mailbackup.model.ids import Digest, ObjectKey, PackId
from mailbackup.model.ledger import LedgerEntry, PackRow, from_ranges
from mailbackup.stores.base import Store
from mailbackup.vault.chain import Link, stops_of

MOST_BLOCKS = 1 << 20  # of a pack: a table of 4 MiB


@dataclass(slots=True)
class PackLife:
    """A registered pack: its row, the entry that registered it, and the entry that stopped each of its blocks (0 = it lives).

    The table is made with the first stop: a hundred thousand packs have some six million blocks.
    """

    row: PackRow
    since: int
    stopped: array[int] | None = None
    dead: int = 0  # blocks that were stopped
    last: int = 0  # the entry that stopped one last

    def stop(self, numbers: Iterable[int], seq: int) -> None:
        """Entry `seq` stops these blocks. Those that were stopped before stay as they are."""
        if self.stopped is None:
            self.stopped = array("I", bytes(4 * self.row.blocks))
        for number in numbers:
            if not self.stopped[number]:
                self.stopped[number] = seq
                self.dead += 1
                self.last = max(self.last, seq)

    @property
    def is_dead(self) -> bool:
        """Whether no block of it lives."""
        return 0 < self.row.blocks == self.dead

    def until(self, number: int) -> int | None:
        """The entry that stopped a block; None while it lives."""
        return None if self.stopped is None else self.stopped[number] or None

    def lives(self, number: int, seq: int) -> bool:
        """Whether a block was live at an entry."""
        if not 0 <= number < self.row.blocks or seq < self.since:
            return False
        until = self.until(number)
        return until is None or seq < until


@dataclass(slots=True)
class Registry:
    """Everything that the ledger names."""

    packs: dict[PackId, PackLife] = field(default_factory=dict)
    objects: dict[ObjectKey, Digest] = field(default_factory=dict)  # all but packs and ledger entries
    snapshots: list[int] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # lists that could not be read: (key, why)

    def learn(self, store: Store, link: Link) -> None:
        """Take over an entry."""
        entry = link.entry
        for pack in entry.packs:
            self._register(pack, link.seq)
        self.objects.update({row.key: row.sha256 for row in entry.epochs})
        self.objects.update({row.key: row.sha256 for row in entry.rewrapped})
        self.objects.update({ObjectKey(key): sha256 for key, sha256 in entry.files.items()})
        if entry.snapshot is not None:
            self.objects[entry.snapshot.key] = entry.snapshot.sha256
            self.snapshots.append(link.seq)
        if entry.lists is not None:
            self.objects.update({row.key: row.sha256 for row in (entry.lists.stops, entry.lists.live) if row is not None})
        self._stop(store, entry)

    def _register(self, pack: PackRow, seq: int) -> None:
        """A pack is registered once, with blocks, and no smaller than their table: else a writer could call one dead that lives."""
        if pack.id in self.packs:
            self.unreadable.append((f"packs of entry {seq}", f"pack {pack.id} was registered before, by entry {self.packs[pack.id].since}"))
        elif not 1 <= pack.blocks <= MOST_BLOCKS or pack.size < footer_size(pack.blocks):
            self.unreadable.append((f"packs of entry {seq}", f"pack {pack.id} has {pack.blocks} blocks in {pack.size} bytes"))
        else:
            self.packs[pack.id] = PackLife(pack, seq)

    def _stop(self, store: Store, entry: LedgerEntry) -> None:
        try:
            for pack, ranges in stops_of(store, entry):
                life = self.packs.get(PackId(pack))
                if life is None:
                    raise RecordInvalid(f"entry {entry.seq} stops blocks of a pack that was never registered")
                life.stop(from_ranges(ranges, life.row.blocks), entry.seq)
        except (DamageError, ValueError) as error:
            self.unreadable.append((f"stops of entry {entry.seq}", str(error)))

    def affected(self, pack: PackId, blocks: list[int] | None = None) -> tuple[int, ...]:
        """The snapshots that may refer to these blocks of a pack (None = any of them), by their lives."""
        life = self.packs.get(pack)
        if life is None:
            return ()
        numbers = range(life.row.blocks) if blocks is None else blocks
        until = max((life.until(number) or 1 << 62 for number in numbers), default=0)
        return tuple(seq for seq in self.snapshots if life.since <= seq < until)
