"""Pruning a store: read, decide, sign, and only then delete (design section 4.5, rule 6). It needs a signing key, and none that opens anything.

An act that says what goes is committed before the first deletion, so that a killed run never looks like damage and the next one ends its work. `undelete`
takes the next number of the same chain, so that the two cannot cross.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import ChainBroken, Interrupted, ObjectMissing, PruneRefused, RecordInvalid, StoreRefused
from mailbackup.host import parse_stamp, stamp
from mailbackup.model.events import OnEvent, Phase, Progress, Stop
from mailbackup.model.ids import Digest, ObjectKey, PackId, is_object_key, pack_key
from mailbackup.model.ledger import Anchors, Head, PackPart
from mailbackup.stores.base import ObjectStat, Store
from mailbackup.upkeep.acts import Book, add_act
from mailbackup.upkeep.ahead import learning
from mailbackup.upkeep.planning import EntryFacts, History, Plan, Rules, given_up, plan
from mailbackup.upkeep.registry import Registry
from mailbackup.vault.chain import Link, Trust, check_head, find_head, read_acts, walk

_PER_ACT = 20_000  # packs that one act names: some 1 MB
_TRIES = 5


@dataclass(slots=True)
class Pruned:
    """What a run did to a store. `deleted` objects freed `bytes`; `locked` ones could not be deleted yet and are tried again each time."""

    plan: Plan
    act: int | None = None
    deleted: int = 0
    bytes: int = 0
    locked: int = 0
    extended: int = 0  # locks of what must stay that were made longer
    unlocked: list[tuple[ObjectKey, str]] = field(default_factory=list)  # objects that must stay and could not be locked, with the reason
    untried: int = 0  # objects that must stay, and were not even tried: the store had refused all before
    entries: dict[int, EntryFacts] = field(default_factory=dict)


@dataclass(slots=True)
class Looked:
    """A store as it was read: its history, and the objects in it that are about to be, or should be, gone."""

    history: History
    packs: dict[str, ObjectStat]
    snapshots: dict[int, list[ObjectKey]]
    trust: Trust
    last: Link


def look(store: Store, anchors: Anchors) -> Looked:
    """Read ledger, acts and listings of a store, everything checked. Raises ChainBroken, DamageError and what the store raises."""
    trust, registry, entries = Trust(anchors.admin), Registry(), []
    head = find_head(store)
    check_head(head, anchors)
    if head == 0:
        raise ChainBroken(f"store {store.name}: the vault has no ledger")
    times = _entry_times(store)
    hashes: dict[int, Digest] = {}
    last: Link | None = None
    for link in learning(registry, store, walk(store, anchors, trust, last=head)):
        entries.append(_facts(link, datetime.fromtimestamp(times[link.seq], UTC) if link.seq in times else None))
        hashes[link.seq] = link.sha256
        last = link
    if registry.unreadable:
        raise ChainBroken(": ".join(registry.unreadable[0]))
    assert last is not None, "a ledger with a head has entries"
    book = _book(store, anchors, trust, hashes)
    if not store.traits.trusted_time:
        for entry in entries:
            entry.seen = book.first_seen(entry.seq)
    packs = {key: stat for key, stat in store.list("packs/") if is_object_key(key)}
    stray = {
        PackId(key[-32:]): datetime.fromtimestamp(stat.time, UTC)
        for key, stat in packs.items()
        if PackId(key[-32:]) not in registry.packs and _passed_over(stat, times)
    }
    objects = _snapshot_objects(store)
    book.without -= set(objects)
    history = History(
        registry, book, entries, (last.seq, last.sha256), stray, sizes={PackId(key[-32:]): stat.size for key, stat in packs.items()},
        absent={seq for seq in registry.snapshots if seq not in objects},
    )  # fmt: skip
    return Looked(history, packs, objects, trust, last)


def _passed_over(stat: ObjectStat, times: dict[int, float]) -> bool:
    """Whether an entry came to the store after this pack, and does not name it: then no later one will. A run that was paused, or whose host's clock is
    behind, sent what looks old and is not."""
    return stat.time < max(times.values(), default=0.0)


def _entry_times(store: Store) -> dict[int, float]:
    """When the store got each entry, as its objects say."""
    return {int(key[-15:-5]): stat.time for key, stat in store.list("ledger/") if is_object_key(key)}


def _facts(link: Link, seen: datetime | None) -> EntryFacts:
    entry = link.entry
    outcome = (entry.outcome or "incomplete") if entry.type == "snapshot" else None
    return EntryFacts(link.seq, _claimed(entry.time), seen, outcome, entry.freeze)


def _claimed(text: str) -> datetime:
    """What a writer says of the time. What is none is taken as one that cannot be believed."""
    try:
        return parse_stamp(text)
    except RecordInvalid:
        return datetime.max.replace(tzinfo=UTC)


def _book(store: Store, anchors: Anchors, trust: Trust, hashes: dict[int, Digest]) -> Book:
    """The acts; one that rests on another ledger than this one is no act of this store."""
    book = Book()
    for link in read_acts(store, anchors, trust):
        head = link.act.head
        if head is not None and head.seq > max(hashes):
            raise ChainBroken(
                f"the ledger ends at entry {max(hashes)}, but act {link.act.seq} rests on entry {head.seq}: newer entries are missing"
            )
        if head is not None and hashes.get(head.seq) != head.sha256:
            raise ChainBroken(f"act {link.act.seq} rests on another entry {head.seq} than the one in the ledger")
        book.learn(link)
    return book


def _snapshot_objects(store: Store) -> dict[int, list[ObjectKey]]:
    found: dict[int, list[ObjectKey]] = {}
    for key, _ in store.list("snapshots/"):
        if is_object_key(key):
            found.setdefault(int(key[10:20]), []).append(ObjectKey(key))
    return found


# ---------------------------------------------------------------- the run


class _Changed(Exception):
    """Another act came first: everything is read and decided again."""


def dry_run(store: Store, anchors: Anchors, rules: Rules, *, remove_last: bool = False) -> Pruned:
    """What a run would do now, and what stands in its way."""
    looked = look(store, anchors)
    decided = plan(looked.history, rules, _now(store), remove_last=remove_last)
    return Pruned(decided, entries={entry.seq: entry for entry in looked.history.entries})


def prune(
    store: Store, anchors: Anchors, signer: SigningKey, rules: Rules, *, remove_last: bool = False, care: Callable[[Looked], None] | None = None,
    stop: Stop, on_event: OnEvent,
) -> Pruned:  # fmt: skip
    """Drop what the policy does not keep, and delete what nothing has needed for the grace period. Idempotent: a killed run is ended by the next.

    `care` is called with the store as it was read, before anything is decided: for what must be done also when a guard rail holds.

    Raises PruneRefused where a guard rail holds (nothing was changed), ChainBroken when ledger or acts are not sound, ConflictError when others keep adding
    acts, Interrupted when `stop` says so (the act stands; the next run deletes the rest), and what the store raises.
    """
    for _ in range(_TRIES):
        on_event(Phase(f"reading the ledger of {store.name}"))
        looked = look(store, anchors)
        if care is not None:
            care(looked)
        now = _now(store)
        decided = plan(looked.history, rules, now, remove_last=remove_last)
        if decided.guards:
            raise PruneRefused(
                f"store {store.name}: " + "; ".join(guard.detail for guard in decided.guards), hint=" ".join(g.hint for g in decided.guards)
            )
        try:
            acts = list(_commit(store, anchors, signer, looked, decided, now))
        except _Changed:
            continue
        return _delete(store, anchors, looked, decided, acts[-1] if acts else None, stop, on_event)
    raise PruneRefused(f"store {store.name}: others keep adding acts", hint="Run it again when they are done.")


def _now(store: Store) -> datetime:
    return datetime.fromtimestamp(store.now(), UTC)


def _commit(store: Store, anchors: Anchors, signer: SigningKey, looked: Looked, decided: Plan, now: datetime) -> Iterator[int]:
    """Sign what was decided; large decisions in several acts. Also a head that no act has named yet is signed: for stores without a clock of their own
    that is the time from which on the grace period of what its entries stopped is counted."""
    history = looked.history
    count, packs = len(history.book.acts), [*decided.packs, *(pack for pack in decided.stray if pack not in history.book.deleted)]
    seen = max((seq for seq, _ in history.book.seen), default=0)
    if not (decided.drop or decided.gone or packs) and seen >= history.head[0]:
        return
    for start in range(0, max(1, len(packs)), _PER_ACT):
        part = packs[start : start + _PER_ACT]
        members: dict[str, Any] = {"time": stamp(now), "packs": tuple(PackPart(id=pack) for pack in part)}
        members["head"] = Head(seq=history.head[0], sha256=history.head[1])
        if start == 0:
            members |= {"snapshots": tuple(decided.drop), "gone": tuple(decided.gone)}
        act = add_act(store, anchors, signer, "prune", _if_still(count, members))
        assert act is not None
        count = act.seq
        yield act.seq


def _if_still(count: int, members: dict[str, Any]) -> Callable[[Book], dict[str, Any]]:
    def make(book: Book) -> dict[str, Any]:
        if len(book.acts) != count:
            raise _Changed
        return dict(members)

    return make


# ---------------------------------------------------------------- deleting


def _delete(store: Store, anchors: Anchors, looked: Looked, decided: Plan, act: int | None, stop: Stop, on_event: OnEvent) -> Pruned:
    """Delete what acts name, this run's and earlier ones', as far as it is still there."""
    done = Pruned(decided, act, entries={entry.seq: entry for entry in looked.history.entries})
    doomed = _doomed(store, anchors, looked, decided)
    on_event(Phase(f"deleting from {store.name}", len(doomed), "objects"))
    with ThreadPoolExecutor(store.traits.parallel, "prune") as pool:
        for count, (size, locked) in enumerate(pool.map(lambda row: _remove(store, row[0], row[1], stop), doomed), 1):
            done.deleted += size is not None and not locked
            done.bytes += 0 if locked or size is None else size
            done.locked += locked
            on_event(Progress(count, done.bytes, ""))
    store.flush()
    if stop():
        raise Interrupted(
            f"stopped while deleting from store {store.name}", hint="What goes is signed; the next 'mailbackup prune' deletes the rest."
        )
    return done


def _remove(store: Store, key: ObjectKey, size: int, stop: Stop) -> tuple[int | None, bool]:
    """Size of what was deleted (None = it was let be), and whether a lock protects it still."""
    if stop():
        return None, False
    try:
        store.delete(key)
    except ObjectMissing:
        return None, False
    except StoreRefused as error:
        if "locked" not in error.message:
            raise
        return size, True
    return size, False


def _doomed(store: Store, anchors: Anchors, looked: Looked, decided: Plan) -> Sequence[tuple[ObjectKey, int]]:
    """The objects that acts name and that are there. Packs that an entry names by now, and any with a live block, are never among them: an act may name
    what was left over, and what it names may come to the ledger later all the same (a store that was away gets it from another one)."""
    history = looked.history
    if decided.stray:
        _learn_new(store, anchors, looked)
    stray = {pack for pack in decided.stray if pack not in history.registry.packs}
    keys = []
    for seq in sorted(
        {*history.book.gone, *decided.gone}
    ):  # these first: else a copy that is made meanwhile has snapshots without their packs
        keys += [(key, 0) for key in looked.snapshots.get(seq, ())]
    for pack in sorted({*given_up(history, "prune"), *decided.packs, *stray}):
        stat = looked.packs.get(pack_key(pack))
        if stat is not None:
            keys.append((pack_key(pack), stat.size))
    return keys


def _learn_new(store: Store, anchors: Anchors, looked: Looked) -> None:
    """A run that was paused for days may have registered, just now, a pack that was about to go."""
    head = find_head(store)
    for link in walk(store, anchors, looked.trust, last=head, after=(looked.last.seq, looked.last.sha256)):
        looked.history.registry.learn(store, link)
        looked.last = link
