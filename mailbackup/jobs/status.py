"""`status`: what the host remembers, judged. Nothing is asked of the store, so it is quick and works while the store is away."""

from __future__ import annotations

import contextlib
from datetime import datetime

from mailbackup.access import Context
from mailbackup.errors import ConfigInvalid
from mailbackup.host import parse_stamp, utc_now
from mailbackup.jobs.files import load_jobs
from mailbackup.model.job import PartSeen, Proof, Seen, Status
from mailbackup.model.results import Fact, SeenAge, StatusResult
from mailbackup.upkeep.status import GOOD_SECONDS, read_status, replaced

NOTHING_FREED = 14
"""Incomplete snapshots in a row, after which it is said that nothing is being freed."""
_PROOF_DAYS = 8
_ALARM_DAYS = 30


def status(context: Context) -> StatusResult:
    """What is remembered, judged now. Raises UsageError when it may not be read, RecordInvalid when the file is damaged."""
    known = read_status(context.state_dir)
    with contextlib.suppress(ConfigInvalid):  # a job that is no more is of no interest; a broken file of one is told by others
        jobs = load_jobs(context.config_path)
        known = replaced(known, parts=tuple(part for part in known.parts if part.job in jobs))
    return judge(known, utc_now())


def judge(known: Status, now: datetime) -> StatusResult:
    """The status at a moment. `good` when the newest good snapshot is younger than 26 hours."""
    good = _aged(known.good, now)
    young = good is not None and good.age_s < GOOD_SECONDS
    facts = [
        _good(good, young=young),
        *_runs(known),
        *_anomaly(known, now),
        *_proofs(known, now),
        *_scrub(known),
        *(_part(part) for part in known.parts),
    ]
    return StatusResult(outcome="good" if young else "late", newest_good=good, newest_proven=_proven(known, now), facts=tuple(facts))


def _aged(seen: Seen | None, now: datetime, by: str = "") -> SeenAge | None:
    if seen is None:
        return None
    return SeenAge(seq=seen.seq, time=seen.time, age_s=max(0, int((now - parse_stamp(seen.time)).total_seconds())), by=by)


def _proven(known: Status, now: datetime) -> SeenAge | None:
    """The newest proven snapshot; where a drill and a read-back prove the same one, the drill says more."""
    proofs = [proof for proof in (known.drill, known.read_back) if proof is not None]
    best = max(proofs, key=lambda proof: (proof.snapshot.seq, proof.by == "drill"), default=None)
    return None if best is None else _aged(best.snapshot, now, best.by)


def age(seconds: int) -> str:
    """`3 h`, `2 days`: as exactly as somebody wants to know who asks how old a backup is."""
    if seconds < 2 * 3600:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h" if seconds < 72 * 3600 else f"{seconds // 86400} days"


def _good(good: SeenAge | None, *, young: bool) -> Fact:
    if good is None:
        return Fact(name="newest good", good=False, text="there is no complete snapshot that this host remembers")
    return Fact(name="newest good", good=young, text=f"snapshot {good.seq} of {good.time}, {age(good.age_s)} old")


def _runs(known: Status) -> list[Fact]:
    count = known.incomplete_in_a_row
    if count == 0:
        return []
    text = f"the last {count} snapshots were incomplete" if count > 1 else "the last snapshot was incomplete"
    if count >= NOTHING_FREED:
        text += ": nothing that was deleted is being freed in the store until one is complete"
    return [Fact(name="incomplete in a row", good=False, text=text)]


def _anomaly(known: Status, now: datetime) -> list[Fact]:
    """This host does not see whether somebody said that all is well, so it goes on about it for a while."""
    if known.anomaly is None:
        return []
    seen = known.anomaly.snapshot
    seconds = int((now - parse_stamp(seen.time)).total_seconds())
    if seconds > _ALARM_DAYS * 86400:
        return []
    return [Fact(name="anomaly", good=False, text=f"snapshot {seen.seq}, {age(max(0, seconds))} ago: {known.anomaly.detail}")]


def _proofs(known: Status, now: datetime) -> list[Fact]:
    return [_proof("read back", known.read_back, now), _proof("drill", known.drill, now)]


def _proof(name: str, proof: Proof | None, now: datetime) -> Fact:
    if proof is None:
        return Fact(name=name, good=False, text="never")
    seconds = int((now - parse_stamp(proof.time)).total_seconds())
    return Fact(name=name, good=seconds < _PROOF_DAYS * 86400, text=f"snapshot {proof.snapshot.seq}, {age(max(0, seconds))} ago")


def _scrub(known: Status) -> list[Fact]:
    facts = []
    for store, place in known.scrub.items():
        text = f"last whole round ended {place.round}" if place.round else f"first round since {place.since}"
        facts.append(Fact(name="scrub" if len(known.scrub) == 1 else f"scrub of {store}", good=True, text=text))
    return facts


def _part(part: PartSeen) -> Fact:
    detail = f": {part.detail}" if part.detail else ""
    good = part.outcome != "failed" and part.exit_status == 0
    return Fact(name=f"{part.job}, {part.part}", good=good, text=f"{part.outcome} {part.time}{detail}")
