"""The histories can fail: each rule that is broken lets some of them lose something. Without this, that none fails would say nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from unittest.mock import patch

import pytest

from mailbackup.upkeep import planning
from mailbackup.upkeep import prune as real
from mailbackup.upkeep.planning import EntryFacts, History, Plan
from mailbackup.upkeep.registry import PackLife
from tests.upkeep.simulation import model
from tests.upkeep.simulation.model import SOUND, Breaks, Violation
from tests.upkeep.simulation.test_histories import History as Random

SEEDS = 1200

Patch = AbstractContextManager[object]


def _facts(link: model.Link, seen: object) -> EntryFacts:
    entry = link.entry
    time = datetime.fromisoformat(entry.time)
    return EntryFacts(link.seq, time, time, entry.outcome if entry.type == "snapshot" else None, entry.freeze)


def _no_recent(history: History, rules: planning.Rules, now: datetime, hold: list[int], result: Plan) -> None:
    kept = {decision.seq for decision in result.decisions if decision.keep}
    _choose(history, rules, now, sorted(kept), result)


_choose = planning._choose_packs


def _look_all(store: model.Store, anchors: object) -> real.Looked:
    """Every pack that no entry names is old enough."""
    looked = _look(store, anchors)  # type: ignore[arg-type]
    known = looked.history.registry.packs
    looked.history.stray = {pack: datetime.fromtimestamp(0, UTC) for pack in store.packs if pack not in known}
    return looked


_look = real.look


def _never_changed(count: int, members: dict[str, object]) -> Callable[[object], dict[str, object]]:
    return lambda book: dict(members)


def _off(target: object, name: str, value: object) -> Patch:
    return patch.object(target, name, value)


@dataclass(frozen=True)
class Case:
    """A broken rule. `finds` is what the histories must run into."""

    name: str
    patches: Callable[[], list[Patch]] = list
    breaks: Breaks = SOUND
    lies: bool = False
    late: bool = False
    behind: float = 0.0  # days that the writer's clock is behind
    finds: str = "("


CASES = [
    Case("grace ignored", lambda: [_off(planning, "_passed", lambda since, grace, now: since is not None)], finds="(e)"),
    Case("grace from the claimed time", lambda: [_off(real, "_facts", _facts)], behind=6, finds="(e)"),
    Case("stops not audited", lambda: [_off(History, "audited", lambda self: self.head[0])], lies=True, finds="(a)"),
    Case("dropped snapshots hold nothing", lambda: [_off(planning, "_choose_packs", _no_recent)], finds="(a)"),
    Case("dead test ignored", lambda: [_off(PackLife, "is_dead", property(lambda self: self.dead > 0))], finds="("),
    Case("stray packs removed at once", lambda: [_off(real, "look", _look_all)], finds="("),
    Case("stray packs by age alone", lambda: [_off(real, "_passed_over", lambda stat, times: True)], late=True, finds="("),
    Case(
        "stray packs by age alone, and the ledger not read again",
        lambda: [_off(real, "_passed_over", lambda stat, times: True), _off(real, "_learn_new", lambda *_: None)],
        finds="(",
    ),
    Case("acts not create-only", breaks=Breaks(overwrite=True), finds="(e)"),
    Case("undelete not serialised", lambda: [_off(real, "_if_still", _never_changed)], finds="(e)"),
    Case("deduplication against dead blocks", breaks=Breaks(dead_index=True), finds="(b)"),
    Case("incomplete runs stop", breaks=Breaks(incomplete_stops=True), finds="(b)"),
    Case(
        "no five days for the writer, and stray packs by age alone",
        lambda: [_off(real, "_passed_over", lambda stat, times: True)],
        breaks=Breaks(five_days=True),
        finds="(",
    ),
    Case("pending promoted without its packs", breaks=Breaks(promote=True), finds="("),
]


def first_violation(case: Case, seeds: int = SEEDS) -> tuple[int, str] | None:
    """The first history that the broken rule spoils."""
    with model.real_code(), ExitStack() as stack:
        for one in case.patches():
            stack.enter_context(one)
        for seed in range(seeds):
            try:
                Random(seed, case.breaks, lies=case.lies, late=case.late, behind=case.behind).run()
            except Violation as violation:
                return seed, str(violation)
    return None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_broken_rule_is_found(case: Case):
    found = first_violation(case)
    assert found is not None, f"{SEEDS} histories found nothing"
    assert found[1].startswith(case.finds), found[1]


def test_a_writer_that_lies_gets_nothing_deleted():
    """It says that blocks are dead which its newest tree needs. The audit finds it, so nothing of that ever goes."""
    found = 0
    with model.real_code():
        for seed in range(150):
            found += Random(seed, lies=True).run()["audit failed"]
    assert found > 100
