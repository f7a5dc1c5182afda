"""What the ledger says a store must hold: every object with its hash, and how long each block lived."""

from __future__ import annotations

from dataclasses import dataclass, field

from mailbackup.errors import DamageError, RecordInvalid
from mailbackup.model.ids import Digest, ObjectKey, PackId
from mailbackup.model.ledger import LedgerEntry, PackRow, from_ranges
from mailbackup.stores.base import Store
from mailbackup.vault.chain import Link, stops_of


@dataclass(slots=True)
class PackLife:
    """A registered pack: its row, the entry that registered it, and the entries that stopped its blocks (number → seq)."""

    row: PackRow
    since: int
    stopped: dict[int, int] = field(default_factory=dict)

    def lives(self, number: int, seq: int) -> bool:
        """Whether a block was live at an entry."""
        return 0 <= number < self.row.blocks and self.since <= seq < self.stopped.get(number, seq + 1)


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
            self.packs[pack.id] = PackLife(pack, link.seq)
        self.objects.update({row.key: row.sha256 for row in entry.epochs})
        self.objects.update({row.key: row.sha256 for row in entry.rewrapped})
        self.objects.update({ObjectKey(key): sha256 for key, sha256 in entry.files.items()})
        if entry.snapshot is not None:
            self.objects[entry.snapshot.key] = entry.snapshot.sha256
            self.snapshots.append(link.seq)
        if entry.lists is not None:
            self.objects.update({row.key: row.sha256 for row in (entry.lists.stops, entry.lists.live) if row is not None})
        self._stop(store, entry)

    def _stop(self, store: Store, entry: LedgerEntry) -> None:
        try:
            for pack, ranges in stops_of(store, entry):
                life = self.packs.get(PackId(pack))
                if life is None:
                    raise RecordInvalid(f"entry {entry.seq} stops blocks of a pack that was never registered")
                for number in from_ranges(ranges, life.row.blocks):
                    life.stopped.setdefault(number, entry.seq)
        except (DamageError, ValueError) as error:
            self.unreadable.append((f"stops of entry {entry.seq}", str(error)))

    def affected(self, pack: PackId, blocks: list[int] | None = None) -> tuple[int, ...]:
        """The snapshots that may refer to these blocks of a pack (None = any of them), by their lives."""
        life = self.packs.get(pack)
        if life is None:
            return ()
        numbers = range(life.row.blocks) if blocks is None else blocks
        until = max((life.stopped.get(number, 1 << 62) for number in numbers), default=0)
        return tuple(seq for seq in self.snapshots if life.since <= seq < until)
