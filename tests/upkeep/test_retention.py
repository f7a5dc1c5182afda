"""Which snapshots stay: golden tables, and laws for any history."""

from __future__ import annotations

import random
import time as clock
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailbackup.errors import UsageError
from mailbackup.model.codec import changed, convert
from mailbackup.model.retention import TOLERANCE, Decision, Moment, Policy, decide, effective_times, explain_policy, problems

NOW = datetime(2026, 11, 24, 18, tzinfo=UTC)
LAW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def at(text: str, zone: str = "") -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone) if zone else UTC)


def honest(*times: datetime | str, first: int = 1) -> list[Moment]:
    aware = [at(one) if isinstance(one, str) else one for one in times]
    return [Moment(number, one, one) for number, one in enumerate(aware, first)]


def kept(policy: Policy, snapshots: Sequence[Moment], **more: bool) -> list[int]:
    return [one.seq for one in decide(policy, snapshots, NOW, **more) if one.keep]


def reasons(policy: Policy, snapshots: Sequence[Moment], now: datetime = NOW) -> dict[int, tuple[str, ...]]:
    return {one.seq: one.reasons for one in decide(policy, snapshots, now)}


# ---- golden tables


def test_documented_year() -> None:
    """The schedule of docs/guides/retention.md, by date: a backup on each day of 2015 but December 19."""
    days = [at("2015-01-01 03:00") + timedelta(days=n) for n in range(365)]
    year = honest(*(day for day in days if (day.month, day.day) != (12, 19)))
    answer = decide(Policy(daily=14, monthly=6, yearly=1), year, at("2016-01-01"))
    found = {year[one.seq - 1].time.date().isoformat(): one.reasons for one in answer if one.keep}
    daily = [f"2015-12-{day}" for day in (17, 18, *range(20, 31))]
    assert found == {
        **{f"2015-{end}": (f"monthly 2015-{end[:2]}",) for end in ("07-31", "08-31", "09-30", "10-31", "11-30")},
        **{day: (f"daily {day}",) for day in daily},
        "2015-12-31": ("newest", "daily 2015-12-31", "monthly 2015-12", "yearly 2015"),
    }


def test_all_rules_with_reasons() -> None:
    snapshots = honest("2024-05-01", "2025-12-31", "2026-10-31", "2026-11-22", "2026-11-23 01:00", "2026-11-23 02:00", "2026-11-24 02:10")
    snapshots[1] = replace(snapshots[1], pin="before the migration")
    assert reasons(Policy(last=2, hourly=1, daily=2, weekly=2, monthly=2, yearly=2, within="2d"), snapshots) == {
        1: ("no rule keeps it",),
        2: ("pinned: before the migration", "yearly 2025"),
        3: ("monthly 2026-10",),
        4: ("weekly 2026-W47",),
        5: ("within 2d",),
        6: ("last 2", "within 2d", "daily 2026-11-23"),
        7: (
            *("newest", "last 2", "within 2d", "hourly 2026-11-24T02+00:00", "daily 2026-11-24"),
            *("weekly 2026-W48", "monthly 2026-11", "yearly 2026"),
        ),
    }


def test_dropped_say_who_stands_for_them() -> None:
    snapshots = honest("2026-11-22 01:00", "2026-11-23 01:00", "2026-11-23 02:00", "2026-11-24")
    snapshots[2] = replace(snapshots[2], outcome="incomplete")
    snapshots.insert(1, Moment(0, at("2026-11-22"), at("2026-11-22")))
    found = reasons(Policy(daily=3, monthly=3), snapshots)  # the day says more than the month
    assert found[0] == ("a newer snapshot stands for 2026-11-22",)
    assert found[3] == ("a complete snapshot stands for 2026-11-23",)
    assert kept(Policy(daily=3), snapshots) == [1, 2, 4]


def test_same_second() -> None:
    assert kept(Policy(daily=5, hourly=5), honest(*["2026-11-23 02:00:00"] * 4)) == [4]
    assert kept(Policy(last=2), honest(*["2026-11-23 02:00:00"] * 4)) == [3, 4]
    assert kept(Policy(last=6), honest(*["2026-11-23 02:00:00"] * 4)) == [1, 2, 3, 4]


def test_nothing_to_decide() -> None:
    assert decide(Policy(daily=1), [], NOW) == []
    assert decide(Policy(), [], NOW, remove_last=True) == []


def test_keep_nothing_is_refused() -> None:
    snapshots = honest("2026-11-23", "2026-11-24")
    with pytest.raises(UsageError, match="the policy keeps nothing"):
        decide(Policy(timezone="Europe/Berlin"), snapshots, NOW)
    assert kept(Policy(), snapshots, remove_last=True) == []
    assert kept(Policy(), [replace(snapshots[0], pin=""), snapshots[1]], remove_last=True) == [1]


def test_silence_drops_nothing() -> None:
    """Counts are of buckets that have a snapshot, and `within` counts from the newest: not from today."""
    snapshots = honest(*(at("2020-01-01") + timedelta(days=n) for n in range(30)))
    assert kept(Policy(daily=3), snapshots) == [28, 29, 30]
    assert kept(Policy(within="2d"), snapshots) == [28, 29, 30]
    assert reasons(Policy(daily=1), snapshots)[30][0] == "newest, 2490 days old"


def test_week_belongs_to_the_iso_year() -> None:
    snapshots = honest("2026-12-27", "2026-12-28", "2027-01-03", "2027-01-04")
    found = reasons(Policy(weekly=9), snapshots, at("2027-01-04"))
    assert found[1] == ("weekly 2026-W52",)
    assert found[3] == ("weekly 2026-W53",)
    assert found[2] == ("a newer snapshot stands for 2026-W53",)


# ---- outcomes


def outcomes(*words: str) -> list[Moment]:
    return [
        replace(one, outcome=word)
        for one, word in zip(honest(*(f"2026-11-{day:02}" for day in range(1, 1 + len(words)))), words, strict=True)
    ]


def test_incomplete_after_the_newest_complete() -> None:
    found = reasons(Policy(daily=1), outcomes("complete", "incomplete", "explained", "incomplete", "incomplete"), at("2026-11-05"))
    assert found == {
        1: ("no rule keeps it",),
        2: ("no rule keeps it",),
        3: ("newest complete one", "daily 2026-11-03"),
        4: ("incomplete, newer than the newest complete one", "daily 2026-11-04"),
        5: ("newest", "incomplete, newer than the newest complete one", "daily 2026-11-05"),
    }


def test_incomplete_ones_take_no_places() -> None:
    """Weeks of incomplete runs must not push the complete ones out."""
    assert kept(Policy(daily=2), outcomes("complete", "complete", *["incomplete"] * 20)) == [*range(1, 23)]
    assert kept(Policy(daily=2), outcomes("complete", "incomplete", "complete", "incomplete", "complete")) == [3, 4, 5]
    assert kept(Policy(last=2), outcomes("complete", "complete", "incomplete", "complete")) == [2, 4]


def test_complete_one_stands_before_a_newer_incomplete_one() -> None:
    snapshots = honest("2026-11-22 01:00", "2026-11-22 02:00", "2026-11-23")
    snapshots[1] = replace(snapshots[1], outcome="incomplete")
    snapshots.insert(2, replace(snapshots[1], seq=2, time=at("2026-11-22 03:00"), limit=None))
    snapshots = [replace(one, seq=seq) for seq, one in enumerate(snapshots, 1)]
    assert kept(Policy(daily=2), snapshots) == [1, 4]
    assert {reasons(Policy(daily=2), snapshots)[seq] for seq in (2, 3)} == {("a complete snapshot stands for 2026-11-22",)}


def test_only_incomplete_ones() -> None:
    assert kept(Policy(daily=1), outcomes("incomplete", "incomplete")) == [1, 2]
    assert kept(Policy(last=1), outcomes("incomplete", "incomplete"), remove_last=True) == [2]


# ---- zones


def test_days_begin_in_the_zone() -> None:
    snapshots = honest("2026-11-22 22:30", "2026-11-22 23:30", "2026-11-23 22:30")
    assert kept(Policy(daily=9), snapshots) == [2, 3]
    assert kept(Policy(daily=9, timezone="Europe/Berlin"), snapshots) == [1, 3]
    assert kept(Policy(daily=9, timezone="Pacific/Kiritimati"), snapshots) == [2, 3]
    assert kept(Policy(yearly=9, timezone="Asia/Tokyo"), honest("2025-12-31 14:59", "2025-12-31 15:00")) == [1, 2]


def test_zone_of_the_times_does_not_matter() -> None:
    utc = honest("2026-11-22 22:30", "2026-11-22 23:30", "2026-11-23 22:30")
    zones = [timezone(timedelta(hours=13)), ZoneInfo("America/New_York"), timezone(-timedelta(hours=11))]
    other = [replace(one, time=one.time.astimezone(zone)) for one, zone in zip(utc, zones, strict=True)]
    assert decide(Policy(daily=9, within="1d"), utc, NOW) == decide(Policy(daily=9, within="1d"), other, NOW)


def test_day_of_25_hours() -> None:
    half_hours = [at("2026-10-24 21:30") + timedelta(minutes=30 * n) for n in range(54)]
    found = reasons(Policy(hourly=99, daily=99, timezone="Europe/Berlin"), honest(*half_hours), at("2026-10-26"))
    hours = [reason for one in found.values() for reason in one if reason.startswith("hourly 2026-10-25")]
    assert len(hours) == 25
    assert {"hourly 2026-10-25T02+02:00", "hourly 2026-10-25T02+01:00"} < set(hours)
    assert [reason for one in found.values() for reason in one if reason.startswith("daily")] == [
        f"daily 2026-10-{day}" for day in (24, 25, 26)
    ]


def test_day_of_23_hours() -> None:
    half_hours = [at("2026-03-28 23:00") + timedelta(minutes=30 * n) for n in range(46)]
    found = reasons(Policy(hourly=99, daily=99, timezone="Europe/Berlin"), honest(*half_hours), at("2026-03-30"))
    hours = [reason for one in found.values() for reason in one if reason.startswith("hourly")]
    assert len(hours) == 23
    assert not any("T02" in hour for hour in hours)
    assert sum("daily 2026-03-29" in one for one in found.values()) == 1


def test_two_half_past_two() -> None:
    first, second = at("2026-10-25 00:30"), at("2026-10-25 01:30")  # both 02:30 in Berlin
    assert kept(Policy(hourly=2, timezone="Europe/Berlin"), honest(first, second)) == [1, 2]
    assert kept(Policy(daily=2, timezone="Europe/Berlin"), honest(first, second)) == [2]


@pytest.mark.parametrize(
    ("within", "oldest"),
    [
        ("1h", "2026-10-26 00:30"),
        ("25h", "2026-10-25 00:30"),
        ("1d", "2026-10-25 00:30"),  # 02:30 of the day before came twice: the earlier one keeps more
        ("1w", "2026-10-19 00:30"),  # one week ago 02:30 was an hour earlier in UTC
        ("1y", "2025-10-26 00:30"),
    ],
)
def test_within_by_the_clock_on_the_wall(within: str, oldest: str) -> None:
    newest = at("2026-10-26 01:30")  # 02:30 in Berlin
    snapshots = honest(at(oldest) - timedelta(seconds=1), at(oldest), newest)
    assert kept(Policy(within=within, timezone="Europe/Berlin"), snapshots) == [2, 3]


def test_within_odd_dates() -> None:
    assert kept(Policy(within="1y"), honest("2023-02-27 23:59", "2023-02-28", "2024-02-29")) == [2, 3]
    assert kept(Policy(within="1d", timezone="Europe/Berlin"), honest("2026-03-29 00:29", "2026-03-29 00:30", "2026-03-30 00:30")) == [2, 3]
    for far in ("999999y", "999999d", "999999w", "999999h", "2025y"):
        assert kept(Policy(within=far), honest("2000-01-01", "2026-01-01")) == [1, 2]


# ---- times that are not true


def test_effective_times_table() -> None:
    def moment(seq: int, claimed: str, limit: str | None) -> Moment:
        return Moment(seq, at(claimed), None if limit is None else at(limit))

    table = [
        (moment(1, "2026-11-20 02:00", "2026-11-20 02:05"), "2026-11-20 02:00"),
        (moment(2, "2026-11-21 02:20", "2026-11-21 02:05"), "2026-11-21 02:20"),  # exactly 15 minutes: counts
        (moment(3, "2026-11-22 02:21", "2026-11-22 02:05"), "2026-11-22 02:05"),  # from the future
        (moment(4, "2026-11-01 00:00", "2026-11-23 02:05"), "2026-11-23 02:05"),  # from the past
        (moment(5, "2030-01-01 00:00", "2026-11-23 01:00"), "2026-11-23 02:05"),  # the limit lies before the previous one too
        (moment(6, "2026-11-24 02:00", None), "2026-11-24 02:00"),
        (moment(7, "2026-11-01 00:00", None), "2026-11-24 02:00"),
    ]
    snapshots = [one for one, _ in table]
    random.Random(5).shuffle(snapshots)
    assert effective_times(snapshots) == [at(counted) for _, counted in table]


def test_forged_years_do_not_push_honest_days_out() -> None:
    snapshots = honest(*(at("2026-11-01 02:00") + timedelta(days=n) for n in range(20)))
    theft = at("2026-11-21 05:00")
    forged = [Moment(21 + n, at(f"{2030 + n}-01-01"), theft) for n in range(50)]
    assert kept(Policy(daily=14), [*snapshots, *forged]) == [*range(8, 21), 70]
    assert reasons(Policy(daily=14), [*snapshots, *forged])[70][-1] == "claims 2079-01-01 00:00, counted as 2026-11-21 05:00 (UTC)"


def test_forged_past_does_not_take_an_honest_day() -> None:
    snapshots = honest(*(at("2026-11-01 02:00") + timedelta(days=n) for n in range(20)))
    forged = [Moment(21 + n, one.time + timedelta(hours=1), at("2026-11-21 05:00")) for n, one in enumerate(snapshots)]
    assert set(range(1, 20)) < set(kept(Policy(daily=30), [*snapshots, *forged]))


@pytest.mark.parametrize("extreme", [datetime.max, datetime.min])
@pytest.mark.parametrize("offset", [-23, 0, 23])
@pytest.mark.parametrize("zone", ["", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
def test_extreme_claims_do_no_harm(extreme: datetime, offset: int, zone: str) -> None:
    claim = extreme.replace(tzinfo=timezone(timedelta(hours=offset)))
    policy = Policy(hourly=2, daily=2, weekly=2, yearly=2, within="3w", timezone=zone)
    assert 3 in kept(policy, [*honest("2026-11-20", "2026-11-21"), Moment(3, claim, None)])
    assert kept(policy, [*honest("2026-11-20", "2026-11-21"), Moment(3, claim, at("2026-11-22"))]) == [1, 2, 3]
    assert 3 in [one.seq for one in decide(policy, [Moment(3, claim, claim)], claim)]


def test_dropped_ones_count_for_the_times_only() -> None:
    """Number 2 pulled the counted time forward: it must stay there when 2 is gone, and 2 must not stand for the day."""
    snapshots = [
        Moment(1, at("2026-11-20 10:00"), at("2026-11-20 10:00")),
        Moment(2, at("2026-11-22 23:00"), at("2026-11-22 23:00"), dropped=True),
        Moment(3, at("2026-11-21 10:00"), at("2026-11-22 10:00")),
    ]
    assert decide(Policy(daily=3), snapshots, at("2026-11-23")) == [
        Decision(1, True, ("daily 2026-11-20",)),
        Decision(3, True, ("newest", "daily 2026-11-22", "claims 2026-11-21 10:00, counted as 2026-11-22 23:00 (UTC)")),
    ]


# ---- values


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"daily": -1}, "daily = -1"),
        ({"last": -3, "yearly": -1}, "last = -3"),
        *(({"within": bad}, "within") for bad in ("30", "d", "0d", "-3d", "3m", "30 d", "1.5d", "3d4h", "٣d", "30d\n", "9999999d")),
        *(({"timezone": bad}, "timezone") for bad in ("Mars/Olympus", "Europe", "../etc/passwd", "/etc/localtime", "a\0b", "x" * 5000)),
    ],
)
def test_bad_values(section: dict[str, object], words: str) -> None:
    policy = convert(section, Policy)
    assert any(words in one for one in problems(policy))
    with pytest.raises(UsageError, match=words) as caught:
        decide(changed(policy, monthly=3), honest("2026-11-23"), NOW, remove_last=True)
    assert "daily = 14" in caught.value.hint


def test_good_values() -> None:
    for section in ({}, {"within": "12h"}, {"within": "1y", "timezone": "UTC"}, {"daily": 14, "timezone": "America/Sao_Paulo"}):
        assert problems(convert(section, Policy)) == []
    with pytest.raises(ValueError, match="daily"):
        convert({"daily": "14"}, Policy)


def test_every_rule_keeps_something() -> None:
    assert Policy(timezone="UTC").keeps_nothing()
    for section in ({"last": 1}, {"hourly": 1}, {"daily": 1}, {"weekly": 1}, {"monthly": 1}, {"yearly": 1}, {"within": "1h"}):
        assert not convert(section, Policy).keeps_nothing()


def test_explain() -> None:
    assert explain_policy(Policy()) == "keep nothing (time zone UTC)"
    assert explain_policy(Policy(last=3, daily=14, yearly=2, within="30d", timezone="Asia/Tokyo")) == (
        "keep the last 3 snapshots; everything within 30d of the newest; one for each of the newest 14 days, 2 years (time zone Asia/Tokyo)"
    )


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="occurs twice"):
        decide(Policy(daily=1), honest("2026-11-23") * 2, NOW)
    naive = datetime(2026, 11, 23)
    with pytest.raises(ValueError, match="without zone"):
        decide(Policy(daily=1), [Moment(1, naive, None)], NOW)


# ---- laws

ZONES = st.sampled_from(["", "UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia"])
SOME_TIME = st.datetimes(datetime(2009, 1, 1), datetime(2013, 1, 1), timezones=st.just(UTC))
ANY_TIME = st.datetimes(timezones=st.just(UTC)) | SOME_TIME
COUNTS = {rule: st.integers(0, 5) for rule in ("hourly", "daily", "weekly", "monthly", "yearly")}
WITHIN = st.sampled_from(["", "", "1h", "36h", "3d", "2w", "1y"])
OUTCOMES = st.sampled_from(["complete", "complete", "complete", "explained", "incomplete"])
POLICIES = st.builds(Policy, last=st.integers(0, 5), within=WITHIN, timezone=ZONES, **COUNTS).filter(lambda one: not one.keeps_nothing())
PINS = st.sampled_from([None, None, None, "", "why"])


@st.composite
def anything(draw: st.DrawFn, size: int = 25) -> list[Moment]:
    """Any times, limits, outcomes and pins."""
    moments = st.builds(Moment, seq=st.just(0), time=ANY_TIME, limit=st.none() | ANY_TIME, outcome=OUTCOMES, pin=PINS)
    drawn = draw(st.lists(moments, max_size=size))
    numbers = sorted(draw(st.sets(st.integers(1, 1000), min_size=len(drawn), max_size=len(drawn))))
    return [replace(one, seq=number) for one, number in zip(drawn, numbers, strict=True)]


@st.composite
def truthful(draw: st.DrawFn) -> list[Moment]:
    """What an honest writer leaves: times that rise, and limits a little later, which rise too."""
    time = draw(SOME_TIME)
    moments = []
    for seq in range(1, draw(st.integers(1, 30)) + 1):
        time += timedelta(minutes=draw(st.integers(0, 600) | st.integers(600, 60 * 24 * 60)))
        moments.append(Moment(seq, time, time + timedelta(minutes=draw(st.integers(0, 10))), draw(OUTCOMES), draw(PINS)))
        time += timedelta(minutes=10)
    return moments


@LAW
@given(POLICIES, anything(), st.randoms())
def test_law_covers_each_once_in_any_order(policy: Policy, snapshots: list[Moment], rng: random.Random) -> None:
    answer = decide(policy, snapshots, NOW)
    assert [one.seq for one in answer] == [one.seq for one in snapshots]
    assert all(one.reasons and all(one.reasons) for one in answer)
    mixed = list(snapshots)
    rng.shuffle(mixed)
    assert decide(policy, mixed, NOW) == answer


@LAW
@given(POLICIES, anything())
def test_law_pinned_and_newest_stay(policy: Policy, snapshots: list[Moment]) -> None:
    stay = set(kept(policy, snapshots))
    whole = [one.seq for one in snapshots if one.outcome != "incomplete"]
    assert stay >= {one.seq for one in snapshots if one.pin is not None}
    assert stay >= {one.seq for one in snapshots[-1:]} | set(whole[-1:])
    assert stay >= {one.seq for one in snapshots if one.seq > max(whole, default=0)}
    assert set(kept(policy, snapshots, remove_last=True)) >= {one.seq for one in snapshots if one.pin is not None}


@LAW
@given(POLICIES, anything())
def test_law_times_rise_and_keep_to_the_limit(policy: Policy, snapshots: list[Moment]) -> None:
    times = effective_times(snapshots)
    assert times == sorted(times)
    for index, one in enumerate(snapshots):
        assert effective_times(snapshots[: index + 1]) == times[: index + 1]
        before = times[index - 1] if index else datetime.min.replace(tzinfo=UTC)
        if one.limit is not None and one.limit.year in range(2, 9999):
            assert times[index] <= max(before, one.limit + TOLERANCE)


@LAW
@given(POLICIES, anything(), st.booleans())
def test_law_idempotent(policy: Policy, snapshots: list[Moment], remove_last: bool) -> None:
    """Deciding again over what was kept keeps all of it, whatever the times and outcomes."""
    stay = set(kept(policy, snapshots, remove_last=remove_last))
    again = [one if one.seq in stay else replace(one, dropped=True) for one in snapshots]
    assert kept(policy, again, remove_last=remove_last) == sorted(stay)


@LAW
@given(POLICIES, truthful())
def test_law_idempotent_without_the_dropped_ones(policy: Policy, snapshots: list[Moment]) -> None:
    """With honest times it makes no difference whether the dropped ones are still known."""
    stay = kept(policy, snapshots)
    assert kept(policy, [one for one in snapshots if one.seq in stay]) == stay


@LAW
@given(POLICIES, anything() | truthful(), st.sampled_from(["last", *COUNTS]), st.integers(1, 3), st.booleans())
def test_law_more_keeps_more(policy: Policy, snapshots: list[Moment], rule: str, more: int, remove_last: bool) -> None:
    wider = changed(policy, **{rule: getattr(policy, rule) + more})
    assert set(kept(wider, snapshots, remove_last=remove_last)) >= set(kept(policy, snapshots, remove_last=remove_last))


def dense(start: datetime, end: datetime, first: int) -> list[Moment]:
    """Honest snapshots from `start` to `end`, close enough to stand for every bucket on the way."""
    steps = int((end - start) / timedelta(minutes=30))
    return honest(*(start + timedelta(minutes=30 * n) for n in range(steps + 1)), end, first=first)


@LAW
@given(POLICIES, truthful(), st.data())
def test_law_of_the_thief(policy: Policy, mine: list[Moment], data: st.DataObject) -> None:
    """A thief who adds what he likes drops no more than time itself would.

    Let `end` be 15 minutes after the last limit of the thief's snapshots (limits rise: they are not his). For every policy without `last`
    and whatever his claims and outcomes: each honest snapshot that would stay, had the thief's been honest ones that follow each other so closely
    from the last honest counted time to `end` that they stand for every bucket on the way, stays. So what a rule keeps in buckets before
    that of the last honest snapshot only goes when that many buckets of real time have passed.
    """
    policy = changed(policy, last=0)
    if policy.keeps_nothing():
        policy = changed(policy, daily=3)
    assert mine[-1].limit is not None
    limit, theirs = mine[-1].limit, []
    for seq in range(101, 101 + data.draw(st.integers(1, 12))):
        limit += timedelta(minutes=data.draw(st.integers(0, 600)))
        near = st.integers(-3000, 3000).map(lambda minutes, limit=limit: limit + timedelta(minutes=minutes))
        claim = data.draw(near | ANY_TIME | st.sampled_from([one.time for one in mine]))
        theirs.append(Moment(seq, claim, limit, data.draw(OUTCOMES)))
    reference = dense(effective_times(mine)[-1], limit + TOLERANCE, 101)
    honest_numbers = {one.seq for one in mine}
    would_stay = honest_numbers & set(kept(policy, [*mine, *reference]))
    assert would_stay <= set(kept(policy, [*mine, *theirs]))


@LAW
@given(truthful(), st.lists(ANY_TIME, min_size=1, max_size=20), st.integers(2, 10))
def test_law_of_the_thief_in_one_day(mine: list[Moment], claims: list[datetime], count: int) -> None:
    """Read plainly: a theft on the day after the last honest snapshot costs at most one of the days before that, whatever is claimed."""
    whole = [replace(one, outcome="complete", pin=None) for one in mine]
    night = whole[-1].time.replace(hour=3, minute=0) + timedelta(days=1)
    theirs = [Moment(101 + n, claim, night) for n, claim in enumerate(claims)]
    last_day = whole[-1].time.date()
    before = [one.seq for one in whole if one.seq in kept(Policy(daily=count - 1), whole) and one.time.date() < last_day]
    assert set(before) <= set(kept(Policy(daily=count), [*whole, *theirs]))


def test_ten_years_of_nights_are_quick() -> None:
    nights = honest(*(at("2016-11-24 02:00") + timedelta(days=n, seconds=n) for n in range(3650)))
    policy = Policy(last=3, hourly=24, daily=14, weekly=8, monthly=36, yearly=10, within="30d", timezone="Europe/Berlin")
    spent = []
    for _ in range(5):
        start = clock.process_time()
        decide(policy, nights, NOW)
        spent.append(clock.process_time() - start)
    assert min(spent) < 0.1
