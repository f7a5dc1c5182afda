"""The rolling scrub: each night a share of the live packs is read and hashed, so that after some nights every one was.

It goes round in the order of pack ids, which are random: a new pack is met wherever it falls, and where the last night ended is one id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from mailbackup.errors import ChainBroken, DamageError, RecordInvalid
from mailbackup.model.events import OnEvent, Phase, Progress, Stop
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import pack_key
from mailbackup.model.ledger import Anchors
from mailbackup.stores.base import Store
from mailbackup.upkeep.page import live_registry
from mailbackup.upkeep.readback import check_object
from mailbackup.upkeep.registry import PackLife, Registry
from mailbackup.upkeep.scrub import THREADS, Scrubbed, check_pack


@dataclass(slots=True)
class Rolled:
    """What a night of the rolling scrub read, and the pack behind which the next one goes on. `live` are all bytes of live packs."""

    after: str
    packs: int = 0
    bytes: int = 0
    live: int = 0
    wrapped: bool = False  # a round ended in this run
    findings: list[Finding] = field(default_factory=list)


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
    _keys(store, registry, result)
    present = _present(store, registry, result)
    result.live = sum(life.row.size for life in present)
    chosen = _chosen(present, after, budget)
    on_event(Phase("scrubbing", len(chosen), "packs"))
    told = Scrubbed(registry)
    for life, size, problem in _checked(store, chosen, stop):
        result.packs += 1
        result.bytes += size
        result.wrapped |= life.row.id == present[-1].row.id
        result.after = life.row.id
        result.findings += [problem(told)] if problem is not None else []
        on_event(Progress(result.packs, result.bytes, life.row.id[:12]))
    return result


def _keys(store: Store, registry: Registry, result: Rolled) -> None:
    """The sealed keys of all epochs, each time: they are small, and without one nothing of its epoch can be read."""
    for key, sha256 in registry.objects.items():
        if key.startswith("keys/"):
            _, _, finding = check_object(store, key, sha256)
            result.findings += [finding] if finding is not None else []


def _present(store: Store, registry: Registry, result: Rolled) -> list[PackLife]:
    """The live packs that a listing shows with their registered size, in the order of their ids."""
    sizes = {key: stat.size for key, stat in store.list("packs/")}
    found = []
    for pack, life in sorted(registry.packs.items()):
        size = sizes.get(pack_key(pack))
        if size == life.row.size:
            found.append(life)
            continue
        kind = FindingKind.OBJECT_MISSING if size is None else FindingKind.OBJECT_DAMAGED
        detail = "the pack is missing" if size is None else f"has {size} bytes instead of {life.row.size}"
        result.findings.append(Finding(kind, pack_key(pack), detail, registry.affected(pack)))
    return found


def _chosen(packs: list[PackLife], after: str, budget: int) -> list[PackLife]:
    """As many packs behind `after`, going round, as the budget allows."""
    turned = [life for life in packs if life.row.id > after] + [life for life in packs if life.row.id <= after]
    chosen: list[PackLife] = []
    for life in turned:
        budget -= life.row.size
        if chosen and budget < 0:
            break
        chosen.append(life)
    return chosen


def _checked(store: Store, packs: list[PackLife], stop: Stop) -> Iterator[tuple[PackLife, int, Callable[[Scrubbed], Finding] | None]]:
    with ThreadPoolExecutor(THREADS, "scrub") as pool:
        for start in range(0, len(packs), THREADS):
            if stop():
                return
            yield from pool.map(lambda life: check_pack(store, life), packs[start : start + THREADS])
