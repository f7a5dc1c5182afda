"""Ledgers that say other things than their writer did, with its key."""

from __future__ import annotations

from msgspec.structs import replace

from mailbackup.model.ids import PackId, digest, entry_key
from tests import craft
from tests.vault.past import Past


def lie(past: Past, seq: int, *blocks: tuple[str, int]) -> None:
    """The writer's key in the wrong hands: entry `seq` stops these blocks as well. What follows is signed anew; no host has seen it before."""
    prev = None
    for number in range(seq, craft.head_of(past) + 1):
        entry = craft.parsed(craft.raw_entry(past, number))
        if number == seq:
            entry = replace(entry, stops=(*entry.stops, *((PackId(pack), str(block)) for pack, block in blocks)))
        raw = craft.signed(replace(entry, prev=prev or entry.prev), craft.writer_key(past))
        craft.put_raw(past, entry_key(number), raw)
        prev = digest(raw)
    past.lose_state()
