"""The end of the ledger: entries from the beginning of a page on, each checked, and the packs that are live after the last.

Every page begins with the live set and the trust entries (format section 10), so neither costs more on a vault that is ten years old.
"""

from __future__ import annotations

from collections.abc import Iterator

from mailbackup.errors import ChainBroken
from mailbackup.model.ids import LEDGER_PAGE, PackId
from mailbackup.model.ledger import Anchors, LivePack, PackRow, from_ranges
from mailbackup.stores.base import Store
from mailbackup.upkeep.ahead import learning
from mailbackup.upkeep.registry import PackLife, Registry
from mailbackup.vault.chain import Link, Trust, check_head, entry_at, find_head, live_list_of, page_trust, walk


def from_page(store: Store, anchors: Anchors, seq: int) -> Iterator[Link]:
    """The checked entries from the beginning of the page of entry `seq` (or of the last one, if that is earlier) to the head.

    Raises ChainBroken, also when the ledger ends before the pinned entry.
    """
    head = find_head(store)
    check_head(head, anchors)
    if head == 0:
        raise ChainBroken("the vault has no ledger")
    first = min(seq, head) - min(seq, head) % LEDGER_PAGE
    trust, after = Trust(anchors.admin), None
    if first:
        link = entry_at(store, anchors, first)
        trust = page_trust(store, first, anchors)
        if link.entry.type == "trust":
            trust.learn(link.entry, link.raw)
        yield link
        after = (link.seq, link.sha256)
    yield from walk(store, anchors, trust, last=head, after=after)


def live_registry(store: Store, anchors: Anchors) -> Registry:
    """The packs with live blocks at the head, and the objects that the last page names. Raises ChainBroken and what a store raises."""
    registry = Registry()
    links = from_page(store, anchors, find_head(store))
    first = next(links)
    if first.seq % LEDGER_PAGE == 0:
        live = live_list_of(store, first.entry)
        if live is None:
            raise ChainBroken(f"entry {first.seq} carries no live set")
        registry.packs = {pack.id: _life(pack, first.seq) for pack in live.packs}  # its packs and stops are in the live set already
        registry.objects = {row.key: row.sha256 for row in live.epochs}
    else:
        registry.learn(store, first)
    for _ in learning(registry, store, links):
        pass
    if registry.unreadable:
        raise ChainBroken(": ".join(registry.unreadable[0]))
    registry.packs = {pack: life for pack, life in registry.packs.items() if not life.is_dead}
    return registry


def _life(pack: LivePack, seq: int) -> PackLife:
    row = PackRow(id=PackId(pack.id), size=pack.size, sha256=pack.sha256, blocks=pack.blocks, footer=pack.footer, epoch=pack.epoch)
    life, live = PackLife(row, seq), from_ranges(pack.live, pack.blocks)
    if len(live) < pack.blocks:
        life.stop(sorted(set(range(pack.blocks)).difference(live)), seq)
    return life
