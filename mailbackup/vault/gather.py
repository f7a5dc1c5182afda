"""Re-gathering: each night leaves small blocks of its own in a mailbox, so from time to time their messages are read and sent again, into full ones.

The host cannot read its vault, so the live mailbox is the source, and the old blocks stop with the snapshot that needs them no longer. A mailbox is due when
it refers to more than `MANY` fragments, or when less than half of the small-blob bytes in its blocks are live. Headers and bodies count; trees and
state files do not. What a mailbox comes to is estimated at its capture (a `Note`), as an upper bound, and only those that may be due are looked at: a
night without them costs one query. Nothing is remembered of a choice, so a run that dies in the middle chooses anew.

A fragment is a block with less than `FRAGMENT` live bytes of plaintext, not of sealed bytes: headers shrink so well that a full block of them is
smaller than that, and would be gathered for ever.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from mailbackup.model import codec
from mailbackup.model.ids import PackId, from_name
from mailbackup.model.tree import SMALL_BLOB, BlockRow, MailboxTree
from mailbackup.vault.state import State
from mailbackup.vault.trees import decode_flags, decode_segment

MANY = 64  # fragments that a mailbox may have
FRAGMENT = 256 * 1024  # bytes; a block with fewer live ones is a fragment
BUDGET = 1 << 30  # bytes of messages that are read again in one night

_UNKNOWN_A_NIGHT = 200  # mailboxes without a note that are looked at
_OVERHEAD = 512  # bytes by which a sealed block may be longer than its plaintext, generously

BlockName = tuple[PackId, int]


class Note(NamedTuple):
    """What is known of a mailbox without looking: at most so many fragments, and about so many live and dead bytes of small blobs."""

    fragments: int
    live: int
    dead: int

    @property
    def due(self) -> bool:
        """Whether a look is worth it."""
        return self.fragments > MANY or self.dead > self.live

    def plus(self, fragments: int, added: int, removed: int) -> Note:
        """The note after a run that sent so many fragments, and whose tree refers to so many bytes more and so many less."""
        return Note(self.fragments + fragments, max(0, self.live + added - removed), self.dead + removed)


@dataclass(slots=True)
class _Shared:
    """A block of a mailbox. `live` bytes are referred to, it has at least `whole`, and `cost` bytes are read to send the live ones again."""

    live: int = 0
    whole: int = 0
    cost: int = 0

    @property
    def fragment(self) -> bool:
        return self.live < FRAGMENT

    @property
    def hollow(self) -> bool:
        return self.live * 2 < self.whole


def choose(state: State, budget: int) -> dict[int, frozenset[BlockName]]:
    """Mailboxes (by number in the state) with the blocks whose messages this run is to send again, the worst first, until `budget` bytes are to be
    read. Notes of those that turn out to be in order are put right."""
    chosen: dict[int, frozenset[BlockName]] = {}
    if budget <= 0:
        return chosen
    for unit in _doubtful(state):
        blocks = _blocks(state, unit)
        due = _due(blocks)
        if len(due) < 2:
            put_note(state, unit, _note_of(blocks))
            continue
        taken, cost = _affordable(blocks, due, budget)
        if len(taken) > 1:
            chosen[unit] = taken
            budget -= cost
        if len(taken) < len(due):
            break
    return chosen


def note_of(state: State, unit: int) -> Note | None:
    """What is known of a mailbox; None when somebody has to look first."""
    row = state.execute("SELECT fragments, live, dead FROM gather WHERE unit = ?", (unit,)).fetchone()
    return None if row is None else Note(*row)


def put_note(state: State, unit: int, note: Note | None) -> None:
    """Remember what is known of a mailbox; None: the next run looks."""
    if note is None:
        state.execute("DELETE FROM gather WHERE unit = ?", (unit,))
    else:
        state.execute("INSERT OR REPLACE INTO gather VALUES (?, ?, ?, ?)", (unit, *note))


def _doubtful(state: State) -> Iterator[int]:
    rows = state.execute(
        "SELECT unit, fragments, live, dead FROM gather WHERE fragments > ? OR dead > live ORDER BY fragments DESC, dead DESC", (MANY,)
    )
    for row in rows.fetchall():
        yield row[0]
    unknown = "SELECT no FROM unit WHERE kind = 'mail' AND NOT EXISTS (SELECT 1 FROM gather WHERE unit = unit.no) ORDER BY no LIMIT ?"
    for row in state.execute(unknown, (_UNKNOWN_A_NIGHT,)).fetchall():
        yield row[0]


def _blocks(state: State, unit: int) -> dict[BlockName, _Shared]:
    """The blocks that the small blobs of a mailbox's messages lie in."""
    found: dict[BlockName, _Shared] = {}
    tree = codec.decode(state.tree_of(unit), MailboxTree, "cached tree")
    for folder in tree.folders:
        for row in folder.segments:
            cached = state.segment(unit, from_name(folder.name), row.facts.blob)
            if cached is None:
                continue
            segment = decode_segment(cached.data, "cached segment", "facts")
            flags = decode_flags(cached.flags, len(segment.entries), "cached flags")
            for entry, flag in zip(segment.entries, flags, strict=True):
                refs = entry.refs if entry.head is None else (*entry.refs, entry.head)
                small = {ref.block: 0 for ref in refs if ref.length < SMALL_BLOB}
                for ref in refs:
                    if ref.block in small and ref.length < SMALL_BLOB:
                        small[ref.block] += ref.length
                        _see(found, segment.blocks[ref.block], ref.start + ref.length)
                if flag is None:
                    continue
                for number, size in small.items():
                    shared = found[_name(segment.blocks[number])]
                    shared.live += size
                    shared.cost += entry.size
    return {name: shared for name, shared in found.items() if shared.live}


def _see(found: dict[BlockName, _Shared], row: BlockRow, end: int) -> None:
    shared = found.setdefault(_name(row), _Shared(whole=row.length - _OVERHEAD))
    shared.whole = max(shared.whole, end)


def _name(row: BlockRow) -> BlockName:
    return row.pack, row.number


def _due(blocks: dict[BlockName, _Shared]) -> list[BlockName]:
    """The blocks to be sent again, if there is reason to do so at all."""
    note = _note_of(blocks)
    if not note.due:
        return []
    hollow = {name for name, shared in blocks.items() if note.dead > note.live and shared.hollow}
    return [*hollow, *_worthwhile({name: shared.cost for name, shared in blocks.items() if shared.fragment and name not in hollow})]


def _worthwhile(costs: dict[BlockName, int]) -> list[BlockName]:
    """Of the fragments those that cost no more than all cheaper ones together. So what was gathered is gathered again when as much came to it, and no
    message is read again more often than its fragment can double; those that stay each cost more than all before them, so they are few."""
    order = sorted(costs, key=lambda name: costs[name])
    cheaper = last = 0
    for index, name in enumerate(order):
        if costs[name] <= cheaper:
            last = index + 1
        cheaper += costs[name]
    return order[:last]


def _note_of(blocks: dict[BlockName, _Shared]) -> Note:
    live = sum(shared.live for shared in blocks.values())
    dead = sum(max(0, shared.whole - shared.live) for shared in blocks.values())
    return Note(sum(shared.fragment for shared in blocks.values()), live, dead)


def _affordable(blocks: dict[BlockName, _Shared], due: list[BlockName], budget: int) -> tuple[frozenset[BlockName], int]:
    """As many of them as the budget allows, the cheapest first, and what they cost."""
    taken, cost = set(), 0
    for name in sorted(due, key=lambda name: blocks[name].cost):
        if cost + blocks[name].cost > budget:
            break
        cost += blocks[name].cost
        taken.add(name)
    return frozenset(taken), cost
