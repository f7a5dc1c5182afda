"""What a store must still hold, by its ledger and its acts together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from mailbackup.model.ids import PackId
from mailbackup.model.ledger import from_ranges
from mailbackup.upkeep.acts import Book
from mailbackup.upkeep.registry import PackLife, Registry


class Needs:
    """Which packs something still needs: what lives at the head, and snapshots that can be restored, also those in their grace period.

    With `kept_only` the latter do not count. The registry must be that of a whole ledger.
    """

    def __init__(self, registry: Registry, book: Book, *, kept_only: bool = False) -> None:
        let_go = book.not_here | set(book.dropped) if kept_only else book.not_here
        self.snapshots = [seq for seq in registry.snapshots if seq not in let_go]  # in order, as the ledger names them
        self._erased = book.erased

    def needs(self, life: PackLife) -> bool:
        """Whether a block of the pack is needed. Those of an erased mailbox are not, but what lives at the head is."""
        if not life.is_dead:
            return True
        return holds(self.snapshots, life, self._erased.get(life.row.id, ()))


def holds(snapshots: Sequence[int], life: PackLife, erased: Iterable[str | None] = ()) -> bool:
    """Whether one of these snapshots, in order, is of the time when a block of a dead pack lived. Blocks that are `erased` (ranges) are needed by none."""
    at = bisect_left(snapshots, life.since)
    return at < len(snapshots) and snapshots[at] < _until(life, erased)


def _until(life: PackLife, erased: Iterable[str | None]) -> int:
    """The entry from which on nothing refers to any block of a dead pack."""
    gone = numbers_of(erased, life.row.blocks)
    if life.stopped is None or not gone:
        return life.last
    return max((seq for number, seq in enumerate(life.stopped) if number not in gone), default=0)


def numbers_of(ranges: Iterable[str | None], blocks: int) -> set[int]:
    """The numbers of blocks of a pack that acts name; None = all of them. Ranges that make no sense name none."""
    found: set[int] = set()
    for text in ranges:
        try:
            found.update(range(blocks) if text is None else from_ranges(text, blocks))
        except ValueError:
            continue
    return found


def needed_packs(registry: Registry, book: Book, *, kept_only: bool = False) -> dict[PackId, PackLife]:
    """The packs that something needs, see `Needs`."""
    needs = Needs(registry, book, kept_only=kept_only)
    return {pack: life for pack, life in registry.packs.items() if needs.needs(life)}
