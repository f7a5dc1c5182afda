"""How a store grows, from what is public: ledger and acts. No key is needed, and nothing is counted in the store itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from mailbackup.model.ids import PackId
from mailbackup.model.ledger import Act, Anchors, LedgerEntry
from mailbackup.model.results import Gains, GrowthRow, StoreStats
from mailbackup.stores.base import Store
from mailbackup.upkeep.acts import Book
from mailbackup.upkeep.page import live_registry
from mailbackup.vault.chain import Link, Trust, check_head, find_head, read_acts, walk

Period = Literal["day", "week", "month"]


@dataclass(slots=True)
class _Grown:
    """What one period brought."""

    snapshots: int = 0
    packs: int = 0
    added: int = 0
    freed: int = 0


class _Came(NamedTuple):
    """A pack: its entry, its size, and when it came."""

    seq: int
    size: int
    period: str


@dataclass(slots=True)
class _Life:
    """What all entries come to."""

    by: Period
    packs: dict[PackId, _Came] = field(default_factory=dict)
    snapshots: int = 0
    records: int = 0
    periods: defaultdict[str, _Grown] = field(default_factory=lambda: defaultdict(_Grown))

    def learn(self, link: Link) -> None:
        """Take over an entry."""
        entry, period = link.entry, period_of(link.entry.time, self.by)
        is_snapshot = entry.type == "snapshot"
        self.snapshots += is_snapshot
        self.periods[period].snapshots += is_snapshot
        self.records += len(link.raw) + _objects(entry)
        self.packs |= {pack.id: _Came(link.seq, pack.size, period) for pack in entry.packs}

    def sum(self, packs: Iterable[PackId]) -> int:
        """Bytes of packs; one that no entry names (an interrupted run's) has no known size, and never counted as added."""
        return sum(self.packs[pack].size for pack in packs if pack in self.packs)

    def freed_by(self, act: Act) -> set[PackId]:
        """The packs that an act deletes. One that it named as a left-over, and that came to the ledger afterwards, is there all the same."""
        if act.type != "prune":
            return set()
        seen = act.head.seq if act.head is not None else 0
        return {part.id for part in act.packs if part.id in self.packs and self.packs[part.id].seq <= seen}


def store_stats(store: Store, anchors: Anchors, by: Period = "month") -> StoreStats:
    """Size and growth of a store. Reads the whole ledger, the last live set and the acts; periods in which nothing happened have no row.

    Raises ChainBroken, DamageError and what the store raises.
    """
    live = live_registry(store, anchors)  # first: whatever comes after it lives
    life, trust, head = _Life(by), Trust(anchors.admin), find_head(store)
    check_head(head, anchors)
    for link in walk(store, anchors, trust, last=head):
        life.learn(link)
    book = Book()
    for act in read_acts(store, anchors, trust):
        book.learn(act)
    freed = {pack for link in book.acts for pack in life.freed_by(link.act)} - book.absent
    gone = freed | book.absent
    here = {pack: came.size for pack, came in life.packs.items() if pack not in gone}
    alive = [row for pack, row in live.packs.items() if pack in here]
    living = sum(row.row.size for row in alive)
    return StoreStats(
        name=store.name, head=head, snapshots=life.snapshots, dropped=len(book.dropped), pinned=len(book.pinned), acts=len(book.acts),
        packs=len(here), bytes=life.sum(here), live=living, blocks=sum(row.row.blocks for row in alive),
        stopped=sum(row.dead for row in alive), dead=life.sum(here) - living,
        freed=life.sum(freed), absent=life.sum(book.absent), records=life.records, growth=_growth(life, book),
    )  # fmt: skip


def gains(seq: int, logical: int, stats: StoreStats) -> Gains:
    """What the newest snapshot's `logical` bytes take in a store. The ratio is None while nothing lives there."""
    return Gains(seq=seq, bytes=logical, live=stats.live, ratio=round(logical / stats.live, 3) if stats.live else None)


def period_of(time: str, by: Period) -> str:
    """The period of a moment: `2026-11-24`, `2026-W48` or `2026-11`. They sort as they follow one another."""
    moment = datetime.fromisoformat(time).astimezone(UTC)
    if by == "week":
        year, week, _ = moment.isocalendar()
        return f"{year:04d}-W{week:02d}"
    return f"{moment:%Y-%m-%d}" if by == "day" else f"{moment:%Y-%m}"


def _objects(entry: LedgerEntry) -> int:
    """Bytes of the snapshot object and the lists of an entry."""
    lists = () if entry.lists is None else (entry.lists.stops, entry.lists.live)
    return sum(row.size for row in (entry.snapshot, *lists) if row is not None)


def _growth(life: _Life, book: Book) -> tuple[GrowthRow, ...]:
    for pack, came in life.packs.items():
        if pack not in book.absent:  # what never came did not grow this store
            life.periods[came.period].packs += 1
            life.periods[came.period].added += came.size
    _learn_freed(life, book)
    rows, total = [], 0
    for period, grown in sorted(life.periods.items()):
        total += grown.added - grown.freed
        rows.append(
            GrowthRow(period=period, snapshots=grown.snapshots, packs=grown.packs, added=grown.added, freed=grown.freed, total=total)
        )
    return tuple(rows)


def _learn_freed(life: _Life, book: Book) -> None:
    """Packs went with the first act that named them."""
    done = set(book.absent)
    for act, _ in book.acts:
        packs = life.freed_by(act) - done
        done |= packs
        if packs:
            life.periods[period_of(act.time, life.by)].freed += life.sum(packs)
