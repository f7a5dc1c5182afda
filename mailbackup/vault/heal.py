"""Making the state forget every reference to a block that is not live, missing or damaged, so that the run sends the content again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping

from mailbackup.errors import StateUnusable
from mailbackup.model import codec
from mailbackup.model.ids import BlobId, PackId, from_name
from mailbackup.model.tree import SMALL_BLOB, BlobRef, BlockRow, MailboxTree, Root
from mailbackup.vault.cached import CachedSegment, CachedUnit
from mailbackup.vault.state import State
from mailbackup.vault.trees import decode_flags, decode_segment, live_refs, resolve

FILES = b"\0files"  # in place of a folder: the segments of everything that is not a message

TABLE = "table"  # cached mailbox table: JSON rows of first key, count, ref

DEAD_SEEN = "dead_seen"  # heal met refs to blocks that the vault gave up: before the next snapshot they must be gone from the trees

Good = Mapping[PackId, Container[int]]  # pack → numbers of the blocks in it that may be used


def heal(state: State) -> int:
    """Scan all cached segments once. Entries whose content is gone lose their inode, so that capture reads them again; segments and
    trees whose own blob is gone are marked dirty, so that capture stores them again. Returns the number of entries."""
    good = _good_blocks(state)
    forget_table(state)
    if not check_live(state):
        state.put(DEAD_SEEN, 1)
    return sum(_heal_unit(state, unit, good) for unit in _units(state))


def check_live(state: State) -> bool:
    """Whether every block that the cached trees refer to is live, whole or not."""
    live = _blocks(state, "")
    return not any(_lost(ref, live) for unit in _units(state) for ref in unit_refs(state, unit))


def refuse_dead(state: State) -> None:
    """The end of a run in whose beginning `heal` met what is live no more. What was read again is fine; what could not be read and was kept is not:
    a snapshot must not refer to it, and nobody can send it. Raises StateUnusable, so that the run begins once more without a state."""
    if state.get(DEAD_SEEN) and not check_live(state):
        raise StateUnusable("the state is older than the vault, and remembers content that cannot be read now and is in the vault no more")
    state.put(DEAD_SEEN, None)


def recount(state: State) -> None:
    """Set the reference counts, and the large blobs that can be found, to what the cached trees refer to."""
    changes: Counter[tuple[PackId, int]] = Counter()
    large: dict[BlobId, BlobRef] = {}
    forget_table(state)
    state.execute("UPDATE block SET refs = 0")
    for unit in _units(state):
        for ref in unit_refs(state, unit):
            changes[ref.pack, ref.number] += 1
            if ref.size >= SMALL_BLOB:
                large[ref.blob] = ref
    state.change_refs(changes)
    good = _good_blocks(state)
    packs = {pack: row[0] for pack, row in state.packs().items()}
    state.add_large((ref for ref in large.values() if not _lost(ref, good)), packs)


def forget_table(state: State) -> None:
    """Forget the cached mailbox table, so that it is written anew; its blobs are referred to once less."""
    cached = state.get(TABLE)
    if cached is not None:
        state.change_refs({block: -times for block, times in Counter(table_blocks(cached)).items()})
        state.put(TABLE, None)


def table_blocks(cached: str) -> list[tuple[PackId, int]]:
    """The blocks of the cached table's segments."""
    return [(row[2].pack, row[2].number) for row in codec.decode(cached, list[tuple[str, int, BlobRef]], "cached table")]


def unit_refs(state: State, unit: CachedUnit) -> Iterator[BlobRef]:
    """Everything that a unit's tree refers to, as often as it does."""
    if unit.ref is not None:
        yield unit.ref
    own = _segment_refs(unit)
    for folder, segment in state.segments(unit.no):
        yield from own.get((folder, segment.id), ())
        messages = folder != FILES
        decoded = decode_segment(segment.data, "cached segment", "facts" if messages else "files")
        flags = decode_flags(segment.flags, len(decoded.entries), "cached flags") if messages else None
        for ref in live_refs(decoded, flags):
            yield resolve(decoded.blocks, ref)


def _units(state: State) -> Iterator[CachedUnit]:
    for kind in ("mail", "directory"):
        for unit in state.units(kind).values():
            unit.tree = state.tree_of(unit.no)
            yield unit


def _good_blocks(state: State) -> Good:
    return _blocks(state, "WHERE broken = 0")


def _blocks(state: State, condition: str) -> Good:
    found: dict[PackId, set[int]] = {}
    for pack, number in state.execute(f"SELECT pack.id, number FROM block JOIN pack ON pack.no = block.pack {condition}"):  # noqa: S608
        found.setdefault(PackId(pack), set()).add(number)
    return found


def _lost(ref: BlobRef | BlockRow, good: Good) -> bool:
    return ref.number not in good.get(ref.pack, ())


def _heal_unit(state: State, unit: CachedUnit, good: Good) -> int:
    tree_refs = _segment_refs(unit)
    count, dirty = 0, unit.ref is not None and _lost(unit.ref, good)
    for folder, segment in state.segments(unit.no):
        own_lost = any(_lost(ref, good) for ref in tree_refs.get((folder, segment.id), ()))
        entries = _heal_entries(segment, good, messages=folder != FILES)
        if own_lost or entries:
            segment.dirty = True
            state.put_segment(unit.no, folder, segment)
            state.execute("DELETE FROM dirfact WHERE unit = ?", (unit.no,))
            dirty = True
        count += entries
    if dirty:
        state.execute("UPDATE unit SET dirty = 1 WHERE no = ?", (unit.no,))
    return count


def _heal_entries(segment: CachedSegment, good: Good, *, messages: bool) -> int:
    decoded = decode_segment(segment.data, "cached segment", "facts" if messages else "files")
    flags = decode_flags(segment.flags, len(decoded.entries), "cached flags") if messages else None
    rows = [not _lost(row, good) for row in decoded.blocks]
    count = 0
    for index, entry in enumerate(decoded.entries):
        refs = entry.refs if entry.head is None else (*entry.refs, entry.head)
        if (flags is None or flags[index] is not None) and not all(rows[ref.block] for ref in refs):
            segment.inodes[index] = 0
            count += 1
    return count


def _segment_refs(unit: CachedUnit) -> dict[tuple[bytes, str], tuple[BlobRef, ...]]:
    """(folder, segment id) → the blobs of the segment itself and of its flags."""
    refs: dict[tuple[bytes, str], tuple[BlobRef, ...]] = {}
    if unit.kind == "directory":
        root = codec.decode(unit.tree, Root, "cached tree")
        for row in root.directories[0].segments:
            refs[FILES, row.ref.blob] = (resolve(root.blocks, row.ref),)
        return refs
    tree = codec.decode(unit.tree, MailboxTree, "cached tree")
    for row in tree.files:
        refs[FILES, row.ref.blob] = (resolve(tree.blocks, row.ref),)
    for folder in tree.folders:
        for pair in folder.segments:
            refs[from_name(folder.name), pair.facts.blob] = (resolve(tree.blocks, pair.facts), resolve(tree.blocks, pair.flags))
    return refs
