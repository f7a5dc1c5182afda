"""Which snapshots stay: one pure function of a policy and a list of times, with a reason for every answer.

Snapshots are ordered by their number in the ledger, never by time, and each has one *counted* time (`effective_times`):

- the time that the writer claims, if it is not before the previous counted time and at most 15 minutes after the limit, the time at
  which the store (or the prune host) first had it;
- else the limit, if that is not before the previous counted time;
- else the previous counted time.

So counted times never run backwards and never run ahead of the clock that the writer does not own. Someone who has stolen the mail server
can add as many snapshots as he likes, with any times he likes: they cannot open buckets in the future, which would push the honest ones
out of "the newest 14 days", and cannot stand for days that lie before the last honest snapshot. What he can do is what the mere passing of
time does: open one bucket for each day that really passes, stand for the bucket of the last honest snapshot, and fill the rule `last`,
which counts snapshots and not time. (Tools that sort by claimed time and count from there lose the honest ones to one forged year 2030.)

Counted times need every snapshot of the ledger: those that were dropped before take part with `dropped=True`, or the time
of a later one could move when an earlier one goes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Literal
from zoneinfo import ZoneInfo

from mailbackup.errors import UsageError
from mailbackup.model.codec import Record

TOLERANCE = timedelta(minutes=15)
"""How far a claimed time may lie after the limit: clocks differ, and a store may round."""

# One day inside what datetime can hold, so that no claimed time overflows when a zone is added.
_EARLIEST, _LATEST = datetime(1, 1, 3, tzinfo=UTC), datetime(9999, 12, 29, tzinfo=UTC)
_WITHIN = re.compile(r"([1-9][0-9]{0,5})([hdwy])")
_HINT = "Correct [retention], for example: daily = 14, weekly = 8, monthly = 36. See docs/guides/retention.md."


class Policy(Record, frozen=True, kw_only=True, omit_defaults=True):
    """`[retention]`: what to keep. A snapshot that any rule keeps stays.

    `last` counts snapshots; `hourly` to `yearly` count the newest hours, days, ISO weeks, months and years that have one, so a silence drops
    nothing. `within` ("12h", "30d", "8w", "1y") keeps everything that is not older, counted back from the newest snapshot. `timezone` is an
    IANA name, "" = UTC: hours to years begin there.
    """

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within: str = ""
    timezone: str = ""

    def keeps_nothing(self) -> bool:
        """No rule is set."""
        return not (self.within or self.last or any(getattr(self, rule) for rule in _BUCKETS))


@dataclass(frozen=True, slots=True)
class Moment:
    """One snapshot as the policy sees it.

    `time` is what the writer claims, `limit` when the store or the prune host first had it (None = nobody knows: then the claim has no upper
    bound); both with a zone. `pin` is the reason of a pin. `dropped`: an earlier prune dropped it, so it counts for the times only.
    """

    seq: int
    time: datetime
    limit: datetime | None
    outcome: Literal["complete", "explained", "incomplete"] = "complete"
    pin: str | None = None
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one snapshot, and why: at least one reason, in words for people."""

    seq: int
    keep: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Counted:
    """A snapshot with its counted time, in UTC and in the policy's zone."""

    moment: Moment
    time: datetime
    local: datetime

    @property
    def whole(self) -> bool:
        return self.moment.outcome != "incomplete"


def _week(local: datetime) -> str:
    year, week, _ = local.isocalendar()
    return f"{year:04}-W{week:02}"


_BUCKETS: dict[str, Callable[[datetime], str]] = {
    # with the offset: when clocks go back, 02:30 comes twice, in two different hours
    "hourly": lambda local: local.isoformat(timespec="hours"),
    "daily": lambda local: local.isoformat()[:10],
    "weekly": _week,
    "monthly": lambda local: local.isoformat()[:7],
    "yearly": lambda local: local.isoformat()[:4],
}
_UNITS = {"hourly": "hour", "daily": "day", "weekly": "week", "monthly": "month", "yearly": "year"}


def decide(policy: Policy, snapshots: Sequence[Moment], now: datetime, *, remove_last: bool = False) -> list[Decision]:
    """One decision for each snapshot that is not dropped already, by number ascending. The order of `snapshots` does not matter.

    Each calendar rule keeps the newest snapshot, by number, of its newest buckets. Complete and explained snapshots fill the places;
    an incomplete one stands for a bucket only where there is no other, and then takes no place from the others. Pinned ones always stay.
    The newest, the newest complete one, and incomplete ones after that stay as well, unless `remove_last`. `now` only words the reasons.
    Raises UsageError when the policy is invalid, or keeps nothing without `remove_last`; ValueError for a number given twice or a time without zone.
    """
    _check(policy, remove_last)
    zone = _zone(policy.timezone)
    ordered = sorted(snapshots, key=_by_seq)
    times = effective_times(ordered)
    counted = [_Counted(m, time, time.astimezone(zone)) for m, time in zip(ordered, times, strict=True) if not m.dropped]
    reasons: dict[int, list[str]] = {one.moment.seq: [] for one in counted}
    if not remove_last:
        _keep_newest(counted, now, reasons)
    _keep_pinned(counted, reasons)
    _keep_last(policy.last, counted, reasons)
    _keep_within(policy.within, counted, reasons)
    beaten: dict[int, str] = {}
    for rule in _BUCKETS:  # the finest first: it says who stands for a dropped one
        _keep_buckets(rule, getattr(policy, rule), counted, reasons, beaten)
    return [_decision(one, reasons[one.moment.seq], beaten) for one in counted]


def effective_times(snapshots: Sequence[Moment]) -> list[datetime]:
    """The counted time (UTC) of each snapshot, by number ascending; never one before its predecessor. The rule and its purpose stand above.

    A time thus depends on earlier snapshots only: nothing that is added later changes it.
    """
    counted: list[datetime] = []
    previous = _EARLIEST
    for moment in sorted(snapshots, key=_by_seq):
        previous = _effective(moment, previous)
        counted.append(previous)
    if len({moment.seq for moment in snapshots}) != len(counted):
        raise ValueError("a snapshot number occurs twice")
    return counted


def problems(policy: Policy) -> list[str]:
    """What is wrong with the values, one sentence each; empty = valid. A policy that keeps nothing is valid here: it may just not be set yet."""
    found = [f"{rule} = {getattr(policy, rule)}: must not be negative" for rule in ("last", *_BUCKETS) if getattr(policy, rule) < 0]
    if policy.within and not _WITHIN.fullmatch(policy.within):
        found.append(f'within = "{policy.within}": must be a number with h, d, w or y, such as "30d"')
    try:
        _zone(policy.timezone)
    except (KeyError, ValueError, OSError):  # not known, not a name, a folder of the zone database
        found.append(
            f'timezone = "{policy.timezone}": this host knows no such zone (an IANA name such as "Europe/Berlin"; the package tzdata)'
        )
    return found


def explain_policy(policy: Policy) -> str:
    """The policy in one line of words."""
    parts = [f"the last {policy.last} snapshots"] if policy.last else []
    if policy.within:
        parts.append(f"everything within {policy.within} of the newest")
    counts = [(getattr(policy, rule), unit) for rule, unit in _UNITS.items() if getattr(policy, rule)]
    if counts:
        parts.append("one for each of the newest " + ", ".join(f"{count} {unit}s" for count, unit in counts))
    return f"keep {'; '.join(parts) or 'nothing'} (time zone {policy.timezone or 'UTC'})"


def _check(policy: Policy, remove_last: bool) -> None:
    if found := problems(policy):
        raise UsageError("[retention] " + "; ".join(found), hint=_HINT)
    if policy.keeps_nothing() and not remove_last:
        raise UsageError("the policy keeps nothing", hint=_HINT)


def _zone(name: str) -> tzinfo:
    return UTC if name in ("", "UTC") else ZoneInfo(name)  # UTC works on a host without a zone database


def _by_seq(moment: Moment) -> int:
    return moment.seq


def _effective(moment: Moment, previous: datetime) -> datetime:
    claimed = _utc(moment.time)
    limit = None if moment.limit is None else _utc(moment.limit)
    if claimed >= previous and (limit is None or claimed <= limit + TOLERANCE):
        return claimed
    return previous if limit is None else max(limit, previous)


def _utc(time: datetime) -> datetime:
    """The time in UTC, moved into the years that can be reckoned with: claims come from whoever holds the writer key."""
    if time.utcoffset() is None:
        raise ValueError(f"a time without zone: {time}")
    try:
        moved = time.astimezone(UTC)
    except OverflowError:
        return _EARLIEST if time.year < 5000 else _LATEST
    return min(max(moved, _EARLIEST), _LATEST)


def _keep_newest(counted: list[_Counted], now: datetime, reasons: dict[int, list[str]]) -> None:
    if not counted:
        return
    newest = counted[-1]
    days = (_utc(now) - newest.time).days
    reasons[newest.moment.seq].append(f"newest, {days} days old" if days > 1 else "newest")
    for one in reversed(counted):
        if one.whole:
            if one is not newest:
                reasons[one.moment.seq].append("newest complete one")
            return
        reasons[one.moment.seq].append("incomplete, newer than the newest complete one")


def _keep_pinned(counted: list[_Counted], reasons: dict[int, list[str]]) -> None:
    for one in counted:
        if one.moment.pin is not None:
            reasons[one.moment.seq].append(f"pinned: {one.moment.pin}" if one.moment.pin else "pinned")


def _keep_last(count: int, counted: list[_Counted], reasons: dict[int, list[str]]) -> None:
    candidates = [one for one in counted if one.whole] or counted
    for one in candidates[max(0, len(candidates) - count) :]:
        reasons[one.moment.seq].append(f"last {count}")


def _keep_within(within: str, counted: list[_Counted], reasons: dict[int, list[str]]) -> None:
    if not within or not counted:
        return
    start = _back(counted[-1].local, within)
    for one in counted:
        if one.time >= start:
            reasons[one.moment.seq].append(f"within {within}")


def _back(local: datetime, within: str) -> datetime:
    """The time in UTC that lies `within` before `local`: hours really passed, days to years by the calendar and the clock on the wall."""
    match = _WITHIN.fullmatch(within)
    assert match is not None  # problems() was asked
    number, unit = int(match[1]), match[2]
    try:
        if unit == "h":
            return _utc(local) - timedelta(hours=number)
        if unit == "y":
            wall = _years_back(local, number)
        else:
            wall = local - timedelta(days=number * (7 if unit == "w" else 1))
    except (OverflowError, ValueError):  # before the year 1
        return _EARLIEST
    # a wall time that comes twice, or never, where clocks change: the earlier reading keeps more
    return min(_utc(wall.replace(fold=0)), _utc(wall.replace(fold=1)))


def _years_back(local: datetime, years: int) -> datetime:
    year = local.year - years
    leap_day = (local.month, local.day) == (2, 29)
    return local.replace(year=year, day=28) if leap_day else local.replace(year=year)


def _keep_buckets(rule: str, count: int, counted: list[_Counted], reasons: dict[int, list[str]], beaten: dict[int, str]) -> None:
    """Keep who stands for the newest `count` buckets that have a complete snapshot, and for those between without; note who is beaten by whom."""
    standing: dict[str, _Counted] = {}
    seen: list[tuple[_Counted, str]] = []
    filled = 0
    for one in reversed(counted) if count else ():
        label = _BUCKETS[rule](one.local)
        best = standing.get(label)
        if best is None and filled == count:
            break
        if best is None or (one.whole and not best.whole):
            standing[label] = one
            filled += one.whole
        seen.append((one, label))
    for label, one in standing.items():
        reasons[one.moment.seq].append(f"{rule} {label}")
    for one, label in seen:
        better = "a newer" if standing[label].moment.seq > one.moment.seq else "a complete"
        beaten.setdefault(one.moment.seq, f"{better} snapshot stands for {label}")


def _decision(one: _Counted, reasons: list[str], beaten: dict[int, str]) -> Decision:
    words = reasons or [beaten.get(one.moment.seq, "no rule keeps it")]
    claimed = _utc(one.moment.time)
    if claimed != one.time:
        words = [*words, f"claims {_minutes(claimed)}, counted as {_minutes(one.time)} (UTC)"]
    return Decision(one.moment.seq, bool(reasons), tuple(words))


def _minutes(time: datetime) -> str:
    return time.isoformat(sep=" ", timespec="minutes")[:16]
