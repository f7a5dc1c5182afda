"""The rolling scrub: each night a share of the packs is read and hashed, so that after some nights every one was.

It goes round in the order of pack ids, which are random: a new pack is met wherever it falls, and where the last night ended is one id. Other objects have
a place in the same order by their hashes, which are random as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from mailbackup.errors import ChainBroken, DamageError, RecordInvalid
from mailbackup.model.events import OnEvent, Phase, Progress, Stop
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import Digest, ObjectKey, PackId, pack_key
from mailbackup.model.ledger import Anchors
from mailbackup.stores.base import Store
from mailbackup.upkeep.needs import needed_packs
from mailbackup.upkeep.page import live_registry
from mailbackup.upkeep.parallel import in_order, threads_for
from mailbackup.upkeep.registry import PackLife
from mailbackup.upkeep.scrub import (
    Problem,
    Scrubbed,
    check_object,
    check_pack,
    present_objects,
    present_packs,
    read_chains,
    tell_access,
    tell_names,
    tell_old_damage,
)

_EACH_TIME = ("keys/", "vault.json")  # small, and without them nothing can be read


@dataclass(frozen=True, slots=True)
class Budget:
    """How much of a round one run reads: bytes, or a share of all, or for how many seconds."""

    bytes: int | None = None
    share: float | None = None
    seconds: float | None = None


@dataclass(slots=True)
class Rolled:
    """What a night of the rolling scrub read, and the place behind which the next one goes on. `live` are all bytes that a whole round reads.

    `damaged` as in `Scrubbed`.
    """

    after: str
    packs: int = 0
    objects: int = 0  # others than packs
    bytes: int = 0
    live: int = 0
    wrapped: bool = False  # a round ended in this run
    findings: list[Finding] = field(default_factory=list)
    damaged: dict[PackId, str | None] = field(default_factory=dict)

    @property
    def runs(self) -> int | None:
        """How many runs like this one a whole round takes; None when nothing was read."""
        return -(-self.live // self.bytes) if self.bytes else None


@dataclass(frozen=True, slots=True)
class _Item:
    """What a round reads: a pack, or another object of the ledger. `place` is where it stands in the round."""

    place: str
    size: int
    what: PackLife | tuple[ObjectKey, Digest]


def rolling_scrub(store: Store, anchors: Anchors, *, after: str, budget: int, stop: Stop, on_event: OnEvent) -> Rolled:
    """Check live packs behind `after`, going round, until `budget` bytes were read or each was (at least one is).

    Packs that are missing or have another size are found at once wherever they stand: that costs a listing. Raises what an unreachable store raises;
    `stop` is asked between packs.
    """
    result = Rolled(after)
    try:
        registry = live_registry(store, anchors)
    except (ChainBroken, RecordInvalid, DamageError, ValueError) as error:
        result.findings.append(Finding(FindingKind.CHAIN_BROKEN, "ledger", str(error)))
        return result
    told = Scrubbed(registry)
    each = [row for row in registry.objects.items() if row[0].startswith("keys/")]
    _each_time(store, each, told, result)
    sizes = {key: stat.size for key, stat in store.list("packs/")}
    items = _pack_items(sizes, registry.packs, told)
    _roll(store, items, budget, stop, on_event, told, result)
    return _told(told, result)


def rolling_verify(store: Store, anchors: Anchors, *, after: str, budget: Budget, stop: Stop, on_event: OnEvent) -> Rolled:
    """All of a keyless verification, but of objects only what stands behind `after` in the round, as far as the budget goes (one at least).

    A round covers whatever snapshots need that can be restored, not only what is live. Raises as `scrub` does; `stop` is asked between objects.
    """
    result, told = Rolled(after), read_chains(store, anchors)
    listing = {key: stat.size for key, stat in store.list("")}
    told.book.see(listing)
    tell_names(listing, told)
    objects = list(present_objects(listing, told))
    _each_time(store, (row for row in objects if row[0].startswith(_EACH_TIME)), told, result)
    items = _pack_items(listing, needed_packs(told.registry, told.book), told)
    items += [_Item(sha256[:32], listing[key], (key, sha256)) for key, sha256 in objects if not key.startswith(_EACH_TIME)]
    limit = budget.bytes if budget.share is None else round(budget.share * sum(item.size for item in items))
    _roll(store, items, limit, _within(budget.seconds, stop), on_event, told, result)
    tell_old_damage(told)
    tell_access(store, told)
    result.objects += told.objects
    return _told(told, result)


def _within(seconds: float | None, stop: Stop) -> Stop:
    """`stop`, and also when the time is over; the first time it is asked there is time, or a round would never end."""
    end, first = math.inf if seconds is None else time.monotonic() + seconds, iter([True])
    return lambda: stop() or (not next(first, False) and time.monotonic() >= end)


def _told(told: Scrubbed, result: Rolled) -> Rolled:
    result.findings, result.damaged = told.findings, told.damaged
    return result


def _each_time(store: Store, rows: Iterable[tuple[ObjectKey, Digest]], told: Scrubbed, result: Rolled) -> None:
    """The sealed keys of all epochs and the like."""
    for _, finding in in_order(lambda row: check_object(store, *row), rows, threads_for(store)):
        result.objects += 1
        told.findings += [finding] if finding is not None else []


def _pack_items(listing: dict[str, int], needed: dict[PackId, PackLife], told: Scrubbed) -> list[_Item]:
    """The packs that a listing shows with their registered size. What else is wrong with any pack is told."""
    present = present_packs(listing, needed, told, sizes=True)
    return [_Item(life.row.id, listing[pack_key(life.row.id)], life) for life in present if life.row.id in needed]


def _roll(store: Store, items: list[_Item], budget: int | None, stop: Stop, on_event: OnEvent, told: Scrubbed, result: Rolled) -> None:
    items.sort(key=lambda item: item.place)
    result.live = sum(item.size for item in items)
    chosen = _chosen(items, result.after, budget)
    on_event(Phase("scrubbing", len(chosen), "objects"))
    for count, (item, size, problem) in enumerate(_checked(store, chosen, stop), 1):
        result.packs += isinstance(item.what, PackLife)
        result.objects += not isinstance(item.what, PackLife)
        result.bytes += size
        result.wrapped |= item is items[-1]
        result.after = item.place
        if isinstance(problem, Finding):
            told.findings.append(problem)
        elif problem is not None and isinstance(item.what, PackLife):
            told.tell(item.what, problem)
        on_event(Progress(count, result.bytes, item.place[:12]))


def _chosen(items: list[_Item], after: str, budget: int | None) -> list[_Item]:
    """As many behind `after`, going round, as the budget allows."""
    turned = [item for item in items if item.place > after] + [item for item in items if item.place <= after]
    if budget is None:
        return turned
    chosen: list[_Item] = []
    for item in turned:
        budget -= item.size
        if chosen and budget < 0:
            break
        chosen.append(item)
    return chosen


def _checked(store: Store, items: list[_Item], stop: Stop) -> Iterator[tuple[_Item, int, Problem | Finding | None]]:
    return in_order(lambda item: _check(store, item), items, threads_for(store), stop)


def _check(store: Store, item: _Item) -> tuple[_Item, int, Problem | Finding | None]:
    if isinstance(item.what, PackLife):
        _, size, problem = check_pack(store, item.what)
        return item, size, problem
    read, finding = check_object(store, *item.what)
    return item, read or 0, finding
