"""Everything that can happen in a small vault: each order of the steps of writer, pruner, auditor and human, with kills and pauses everywhere.

Three snapshots of two blocks (the third needs the first block no more), one kill, one `undelete`, one audit, two pauses of four days each. What random
histories may miss by bad luck is met here; what is decided is decided by the same code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import NamedTuple

from mailbackup.host import stamp
from mailbackup.model.ids import Digest, PackId
from mailbackup.model.ledger import Act, Head, LedgerEntry, PackPart, PackRow
from mailbackup.model.retention import Policy
from mailbackup.upkeep import planning
from mailbackup.upkeep import prune as real
from mailbackup.upkeep.planning import Plan, Rules
from mailbackup.vault.chain import ActLink, Link
from mailbackup.vault.commit import LEFT_OVER_SECONDS
from tests.upkeep.simulation import model
from tests.upkeep.simulation.model import DAY, START

_RULES = Rules(policy=Policy(last=1), max_share=1e9, silence=timedelta(days=99))
_RUNS = 3
_PAUSE = 4 * DAY
_KILLS, _PAUSES, _AUDITS, _UNDELETES, _ACTS = 1, 2, 1, 1, 4


class Entry(NamedTuple):
    """A snapshot: the pack that it registers, what its tree needs, what it stops."""

    pack: str
    tree: tuple[str, ...]
    stops: tuple[str, ...]
    time: float


class Deed(NamedTuple):
    """An act."""

    kind: str
    time: float
    head: int
    snapshots: tuple[int, ...] = ()
    gone: tuple[int, ...] = ()
    packs: tuple[str, ...] = ()


class View(NamedTuple):
    """A store at one moment."""

    entries: tuple[Entry, ...] = ()
    acts: tuple[Deed, ...] = ()
    packs: frozenset[tuple[str, float]] = frozenset()


class Writer(NamedTuple):
    """Where a run stands (idle, sent, fixed, put), and what the host remembers."""

    at: str = "idle"
    attempt: int = 0
    sent: float = 0.0
    pending: str | None = None


class Pruner(NamedTuple):
    """What it read, and when; then what it still deletes."""

    view: View
    now: float
    signed: bool = False
    doomed: tuple[str, ...] | None = None


class World(NamedTuple):
    store: View = View()
    writer: Writer = Writer()
    pruner: Pruner | None = None
    now: float = START
    kills: int = _KILLS
    pauses: int = _PAUSES
    audits: int = _AUDITS
    undeletes: int = _UNDELETES
    kept: tuple[int, ...] = ()  # taken back


def _id(pack: str) -> PackId:
    return PackId(pack.encode().hex().ljust(32, "0"))


def _name(pack: PackId) -> str:
    return bytes.fromhex(pack).rstrip(b"\0").decode()


def _hash(seq: int) -> Digest:
    return Digest(f"{seq:064x}")


@cache
def _store(view: View) -> model.Store:
    store = model.Store("small", True, lambda: START, lambda: START)
    for seq, entry in enumerate(view.entries, 1):
        rows = [PackRow(id=_id(entry.pack), size=1000, sha256=_hash(0), blocks=1, footer=_hash(0), epoch=1)] if entry.pack else []
        record = LedgerEntry(
            format=1, vault=model.VAULT, seq=seq, prev=None, type="snapshot", time=_stamp(entry.time), signer=model.KEY, packs=tuple(rows),
            outcome="complete", stops=tuple((_id(pack), "0") for pack in entry.stops),
        )  # fmt: skip
        store.entries.append(Link(seq, _hash(seq), b"", record))
        store.times.append(entry.time)
    for seq, deed in enumerate(view.acts, 1):
        act = Act(
            format=1, vault=model.VAULT, chain="c", seq=seq, prev=None, type=deed.kind, time=_stamp(deed.time), signer=model.KEY,
            head=Head(seq=deed.head, sha256=_hash(deed.head)), snapshots=deed.snapshots, gone=deed.gone,
            packs=tuple(PackPart(id=_id(pack)) for pack in deed.packs),
        )  # type: ignore[arg-type]  # fmt: skip
        store.acts.append(ActLink(act, _hash(0)))
    store.packs = {_id(pack): time for pack, time in view.packs}
    store.snapshots = set(range(1, len(view.entries) + 1))
    return store


def _stamp(time: float) -> str:
    return stamp(datetime.fromtimestamp(time, UTC))


@cache
def _plan(view: View, now: float) -> Plan:
    return planning.plan(real.look(_store(view), model.ANCHORS).history, _RULES, datetime.fromtimestamp(now, UTC))  # type: ignore[arg-type]


@cache
def _doomed(view: View, now: float, later: tuple[Entry, ...]) -> tuple[str, ...]:
    looked = real.look(_store(view), model.ANCHORS)  # type: ignore[arg-type]
    keys = real._doomed(_store(view._replace(entries=later)), model.ANCHORS, looked, _plan(view, now))  # type: ignore[arg-type]
    return tuple(_name(PackId(key[-32:])) for key, _ in keys if key.startswith("packs/"))


@cache
def _book(acts: tuple[Deed, ...]) -> tuple[frozenset[int], frozenset[int]]:
    """Dropped, and gone."""
    book = _store(View(acts=acts)).book()
    return frozenset(book.dropped), frozenset(book.gone)


# ---------------------------------------------------------------- who can do what


def _writer(world: World) -> Iterator[World]:
    writer, store = world.writer, world.store
    done = len(store.entries)
    if writer.at == "idle" and writer.pending is not None:
        yield world._replace(writer=_left_over(world))
    elif writer.at == "idle" and done < _RUNS:
        if done == _RUNS - 1:
            yield world._replace(writer=writer._replace(at="fixed", pending=""))
        else:
            pack = f"{'AB'[done]}{writer.attempt}"
            sent = store._replace(packs=store.packs | {(pack, world.now)})
            yield world._replace(store=sent, writer=writer._replace(at="sent", sent=world.now))
    elif writer.at == "sent":
        if world.now - writer.sent > LEFT_OVER_SECONDS:
            yield world._replace(writer=Writer(attempt=writer.attempt + 1))
        else:
            yield world._replace(writer=writer._replace(at="fixed", pending=f"{'AB'[done]}{writer.attempt}"))
    elif writer.at == "fixed":
        after = writer._replace(at="put") if world.kills else Writer(attempt=writer.attempt)
        yield world._replace(store=_put(store, writer.pending or "", world.now), writer=after)
    elif writer.at == "put":
        yield world._replace(writer=Writer(attempt=writer.attempt))
    if writer.at != "idle" and world.kills:
        attempt = writer.attempt + (writer.at == "sent")
        yield world._replace(writer=writer._replace(at="idle", attempt=attempt, sent=0.0), kills=world.kills - 1)


def _left_over(world: World) -> Writer:
    """The next run: what is pending is there, or is put, or is forgotten."""
    pack = world.writer.pending or ""
    if any(entry.pack == pack for entry in world.store.entries) if pack else len(world.store.entries) == _RUNS:
        return Writer(attempt=world.writer.attempt)
    there = not pack or any(name == pack and time > world.now - LEFT_OVER_SECONDS for name, time in world.store.packs)
    return world.writer._replace(at="fixed") if there else Writer(attempt=world.writer.attempt + 1)


def _put(store: View, pack: str, now: float) -> View:
    trees = [entry.tree for entry in store.entries]
    if not trees:
        entry = Entry(pack, (pack,), (), now)
    elif len(trees) == 1:
        entry = Entry(pack, (*trees[-1], pack), (), now)
    else:
        entry = Entry("", trees[-1][1:], trees[-1][:1], now)
    return store._replace(entries=(*store.entries, entry))


def _pruner(world: World, serialised: bool) -> Iterator[World]:
    pruner, store = world.pruner, world.store
    if pruner is None:
        if store.entries and len(store.acts) < _ACTS and _acts(_plan(store, world.now)):
            yield world._replace(pruner=Pruner(store, world.now))
        return
    if world.kills:
        yield world._replace(pruner=None, kills=world.kills - 1)
    if not pruner.signed:
        yield _sign(world, pruner, serialised)
    elif pruner.doomed is None:
        yield world._replace(pruner=pruner._replace(doomed=_doomed(pruner.view, pruner.now, store.entries)))
    elif pruner.doomed:
        first, *rest = pruner.doomed
        packs = frozenset(row for row in store.packs if row[0] != first)
        yield world._replace(store=store._replace(packs=packs), pruner=pruner._replace(doomed=tuple(rest)))
    else:
        yield world._replace(pruner=None)


def _acts(decided: Plan) -> bool:
    """Whether it comes to anything; reading alone changes nothing."""
    return bool(decided.drop or decided.deletes) and not decided.guards


def _sign(world: World, pruner: Pruner, serialised: bool) -> World:
    decided, store = _plan(pruner.view, pruner.now), world.store
    if decided.guards or (serialised and len(store.acts) != len(pruner.view.acts)):
        return world._replace(pruner=None)
    packs = tuple(_name(pack) for pack in (*decided.packs, *decided.stray))
    if decided.drop or decided.gone or packs:
        deed = Deed("prune", pruner.now, len(pruner.view.entries), tuple(decided.drop), tuple(decided.gone), packs)
        store = store._replace(acts=(*store.acts, deed))
    return world._replace(store=store, pruner=pruner._replace(signed=True))


def _others(world: World) -> Iterator[World]:
    store, head = world.store, len(world.store.entries)
    dropped, gone = _book(store.acts)
    if world.audits and head and not any(deed.kind == "audit" and deed.head == head for deed in store.acts):
        acts = (*store.acts, Deed("audit", world.now, head))
        yield world._replace(store=store._replace(acts=acts), audits=world.audits - 1)
    if world.undeletes:
        for seq in sorted(dropped - gone):
            acts = (*store.acts, Deed("undelete", world.now, head, (seq,)))
            yield world._replace(store=store._replace(acts=acts), undeletes=world.undeletes - 1, kept=(*world.kept, seq))
    if world.pauses:
        yield world._replace(now=world.now + _PAUSE, pauses=world.pauses - 1)


def _wrong(world: World) -> str | None:
    """What must never be."""
    there = {pack for pack, _ in world.store.packs}
    gone = _book(world.store.acts)[1]
    for seq, entry in enumerate(world.store.entries, 1):
        if seq not in gone and not there.issuperset(entry.tree):
            return f"snapshot {seq} is not gone, and its packs are"
    if world.store.entries and not there.issuperset(world.store.entries[-1].tree):
        return "a pack that lives is gone"
    if gone.intersection(world.kept):
        return "what was taken back is gone"
    return None


def explore(*, serialised: bool = True, first_wrong: bool = False) -> tuple[int, int, list[str]]:
    """All worlds that can be reached: how many, in how many of them something was deleted for good, and what is wrong in any (with `first_wrong` in one)."""
    for cached in (_store, _plan, _doomed, _book):
        cached.cache_clear()
    first = World()
    seen, queue, wrong, deleted = {first}, deque([first]), [], 0
    while queue and not (first_wrong and wrong):
        world = queue.popleft()
        found = _wrong(world)
        if found is not None:
            wrong.append(found)
            continue
        deleted += any(deed.gone or deed.packs for deed in world.store.acts)
        for following in (*_writer(world), *_pruner(world, serialised), *_others(world)):
            if following not in seen:
                seen.add(following)
                queue.append(following)
    return len(seen), deleted, wrong


def test_all_orders_of_a_small_vault():
    with model.real_code():
        worlds, deleted, wrong = explore()
    print(f"{worlds} worlds, {deleted} with something deleted")
    assert not wrong, wrong[0]
    assert worlds > 20_000
    assert deleted > 1_000


def test_an_undelete_that_crosses_a_prune_is_found():
    with model.real_code():
        _, _, wrong = explore(serialised=False, first_wrong=True)
    assert "what was taken back is gone" in wrong
