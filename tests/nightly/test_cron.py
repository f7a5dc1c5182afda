"""Times: parsed once, and the same for cron, systemd and the daemon."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailbackup.model.job import Job, seconds_of
from mailbackup.schedule import zone
from mailbackup.schedule.cron import Cron
from mailbackup.schedule.daemon import trigger_of

ON_CALENDAR = [
    ("30 2 * * *", "*-*-* 02:30:00"),
    ("0 4 * * 0", "Sun *-*-* 04:00:00"),
    ("0 4 * * 7", "Sun *-*-* 04:00:00"),
    ("0 4 * * SUN", "Sun *-*-* 04:00:00"),
    ("5,35 1-3 * * mon-fri", "Mon,Tue,Wed,Thu,Fri *-*-* 01,02,03:05,35:00"),
    ("0 0 * * 5-7", "Fri,Sat,Sun *-*-* 00:00:00"),
    ("*/20 * * * *", "*-*-* *:00,20,40:00"),
    ("10-50/20 0 1,15 */6 *", "*-01,07-01,15 00:10,30,50:00"),
    ("0 0 29 feb *", "*-02-29 00:00:00"),
    ("* * * * *", "*-*-* *:*:00"),
    ("0 0 1-31 1-12 0-6", "*-*-* 00:00:00"),
]


@pytest.mark.parametrize(("text", "expected"), ON_CALENDAR)
def test_on_calendar(text: str, expected: str):
    assert Cron.parse(text).on_calendar() == expected
    assert Cron.parse(f"  {text.replace(' ', chr(9))} ").on_calendar("Europe/Berlin") == f"{expected} Europe/Berlin"


REFUSED = [
    ("30 2 * *", "has 4 fields instead of five"),
    ("@daily", "has 1 fields"),
    ("60 * * * *", "60 is not between 0 and 59"),
    ("* 24 * * *", "24 is not between 0 and 23"),
    ("* * 0 * *", "0 is not between 1 and 31"),
    ("* * * 13 *", "13 is not between 1 and 12"),
    ("* * * * 8", "8 is not between 0 and 7"),
    ("* * * foo *", "foo is not between 1 and 12"),
    ("5-1 * * * *", "runs backwards"),
    ("5/2 * * * *", "a step is written"),
    ("*/0 * * * *", "a step is written"),
    ("*/ * * * *", "a step is written"),
    ("*/x * * * *", "a step is written"),
    ("1,,2 * * * *", "is no minute"),
    ("~ * * * *", "is no minute"),
    ("-1 * * * *", "is no minute"),
    ("٣ * * * *", "is no minute"),
    ("0 0 1 * mon", "make two jobs instead"),
    ("0 0 31 2,4 *", "names a day that no month has"),
    ("0 0 30 feb *", "names a day that no month has"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        Cron.parse(text)


def fields(low: int, high: int) -> st.SearchStrategy[str]:
    value = st.integers(low, high)
    span = st.tuples(value, value).map(sorted).map(lambda pair: f"{pair[0]}-{pair[1]}")
    stepped = st.tuples(st.just("*") | span, st.integers(1, 30)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    return st.just("*") | st.lists(value.map(str) | span | stepped, min_size=1, max_size=3).map(",".join)


MONTH_DAYS = st.tuples(fields(1, 28), st.just("*")) | st.tuples(st.just("*"), fields(0, 7))
EXPRESSIONS = st.tuples(fields(0, 59), fields(0, 23), MONTH_DAYS, fields(1, 12)).map(lambda f: f"{f[0]} {f[1]} {f[2][0]} {f[3]} {f[2][1]}")
MOMENTS = st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS, MOMENTS)
def test_all_three_mean_the_same_moments(text: str, moment: datetime):
    """Ours against the daemon's library, in a zone without changes of the clock."""
    job = Job(name="x", cron=text, parts=("backup",), zone="UTC")
    ours = list(islice(Cron.parse(text).following(moment, ZoneInfo("UTC")), 4))
    theirs, last = [], moment
    trigger = trigger_of(job)
    for _ in range(4):
        following = trigger.get_next_fire_time(last, last + timedelta(microseconds=1))
        theirs.append(following)
        last = following
    assert ours == theirs


@pytest.mark.parametrize(("text", "_expected"), ON_CALENDAR)
def test_systemd_means_the_same_moments(text: str, _expected: str):
    """Ours against systemd-analyze."""
    moment = datetime.now(UTC)
    calendar = Cron.parse(text).on_calendar("UTC")
    done = subprocess.run(
        ["systemd-analyze", "calendar", "--iterations=2", calendar], capture_output=True, text=True, check=True, env={"TZ": "UTC"}
    )
    theirs = [
        line.split(": ", 1)[1].strip()
        for line in done.stdout.splitlines()
        if "Next elapse" in line or "Iteration" in line or "Iter. #" in line
    ]
    ours = [f"{moment:%a %Y-%m-%d %H:%M:%S} UTC" for moment in islice(Cron.parse(text).following(moment, ZoneInfo("UTC")), 2)]
    assert theirs == ours


def test_changes_of_the_clock():
    """02:30 does not exist on one day, and comes twice on another: it is left out, and runs once."""
    berlin = ZoneInfo("Europe/Berlin")
    spring = list(islice(Cron.parse("30 2 * * *").following(datetime(2026, 3, 28, 12, tzinfo=UTC), berlin), 2))
    assert [f"{moment:%d %H:%M}" for moment in spring] == ["30 00:30", "31 00:30"]
    autumn = list(islice(Cron.parse("30 2 * * *").following(datetime(2026, 10, 24, 12, tzinfo=UTC), berlin), 2))
    assert [f"{moment:%d %H:%M}" for moment in autumn] == ["25 00:30", "26 01:30"]


@pytest.mark.parametrize(("text", "seconds"), [(0, 0), (90, 90), ("90s", 90), ("15m", 900), ("6h", 21600), ("1d", 86400)])
def test_lengths_of_time(text: int | str, seconds: int):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", [-1, "", "6", "h", "6w", "-6h", "6 h h", "1.5h"])
def test_lengths_of_time_that_are_none(text: int | str):
    with pytest.raises(ValueError, match=r"is negative|is no length of time"):
        seconds_of(text)


def test_the_zone_of_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    assert zone.host_zone() == "Asia/Kolkata"
    monkeypatch.setenv("TZ", ":/no/such")
    link = tmp_path / "localtime"
    link.symlink_to("/usr/share/zoneinfo/Europe/Paris")
    monkeypatch.setattr(zone, "_LOCAL", str(link))
    assert zone.host_zone() == "Europe/Paris"
    monkeypatch.setattr(zone, "_LOCAL", "/etc/hostname")
    named = tmp_path / "timezone"
    named.write_text("America/Lima\n")
    monkeypatch.setattr(zone, "_TIMEZONE", str(named))
    assert zone.host_zone() == "America/Lima"
    monkeypatch.setattr(zone, "_TIMEZONE", "/no/such")
    assert zone.host_zone() == "UTC"
