"""Times of the form that crontab(5) describes, understood once for all three schedulers: cron, systemd and the daemon.

They do not agree: cron counts week days from Sunday and the daemon's library from Monday, systemd names them; and where day of the month and week
day are both restricted, cron runs on either while the others want both. So the fields become sets here, and that last form is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEK = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")  # as cron counts
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_YEARS = 9  # in which every date that exists comes, also 29 February around a year like 2100


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its name, the least and greatest value, and names of values from the least on."""

    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


FIELDS = (
    Field("minute", 0, 59),
    Field("hour", 0, 23),
    Field("day of the month", 1, 31),
    Field("month", 1, 12, MONTHS),
    Field("week day", 0, 7, WEEK),
)


@dataclass(frozen=True, slots=True)
class Cron:
    """The five fields as sorted values; None = every value (a star). Week days 0 to 6 from Sunday."""

    text: str
    minutes: tuple[int, ...] | None
    hours: tuple[int, ...] | None
    days: tuple[int, ...] | None
    months: tuple[int, ...] | None
    week_days: tuple[int, ...] | None

    @classmethod
    def parse(cls, text: str) -> Cron:
        """Raises ValueError, in words for the author of the file."""
        words = text.split()
        if len(words) != 5:
            raise ValueError(f"{text!r} has {len(words)} fields instead of five (minute, hour, day of the month, month, week day)")
        minutes, hours, days, months, week_days = (_values(word, field) for word, field in zip(words, FIELDS, strict=True))
        if week_days is not None:
            week_days = _all_or(tuple(sorted({day % 7 for day in week_days})), 7)
        if days is not None and week_days is not None:
            raise ValueError(f"{text!r} restricts the day of the month and the week day: cron would run on either; make two jobs instead")
        if days is not None and all(days[0] > _LONGEST[month - 1] for month in months or range(1, 13)):
            raise ValueError(f"{text!r} names a day that no month has")
        return cls(" ".join(words), minutes, hours, days, months, week_days)

    def fits(self, day: date) -> bool:
        """Whether it runs on a day."""
        return (
            (self.days is None or day.day in self.days)
            and (self.months is None or day.month in self.months)
            and (self.week_days is None or day.isoweekday() % 7 in self.week_days)
        )

    def following(self, after: datetime, zone: ZoneInfo) -> Iterator[datetime]:
        """The times behind `after`, in UTC, at most those of some years. One that a change of the clock leaves out is left out."""
        first = after.astimezone(zone).date()
        for offset in range(_YEARS * 366):
            day = first + timedelta(days=offset)
            if self.fits(day):
                yield from (moment for moment in self._moments(day, zone) if moment > after)

    def _moments(self, day: date, zone: ZoneInfo) -> Iterator[datetime]:
        for hour in self.hours or range(24):
            for minute in self.minutes or range(60):
                local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone)
                moment = local.astimezone(UTC)
                if moment.astimezone(zone).replace(tzinfo=None) == local.replace(tzinfo=None):
                    yield moment

    def on_calendar(self, zone: str = "") -> str:
        """As systemd.time(7) wants it in OnCalendar=."""
        week = (
            "" if self.week_days is None else ",".join(WEEK[day].title() for day in sorted(self.week_days, key=lambda day: day or 7)) + " "
        )
        place = f" {zone}" if zone else ""
        return f"{week}*-{_list(self.months)}-{_list(self.days)} {_list(self.hours)}:{_list(self.minutes)}:00{place}"

    def trigger_fields(self) -> dict[str, str]:
        """Arguments of the daemon's trigger. Week days by name, since its numbers are others."""
        fields = {"minute": self.minutes, "hour": self.hours, "day": self.days, "month": self.months}
        week = "*" if self.week_days is None else ",".join(WEEK[day] for day in self.week_days)
        plain = {name: "*" if values is None else ",".join(map(str, values)) for name, values in fields.items()}
        return plain | {"day_of_week": week, "second": "0"}


def _list(values: tuple[int, ...] | None) -> str:
    return "*" if values is None else ",".join(f"{value:02d}" for value in values)


def _all_or(values: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    return None if len(values) == count else values


def _values(text: str, field: Field) -> tuple[int, ...] | None:
    """The values of a field, or None for all of them."""
    found: set[int] = set()
    for part in text.split(","):
        span, slash, step = part.partition("/")
        low, high = _span(span, field, text)
        if slash and (not step.isascii() or not step.isdigit() or int(step) == 0 or not (span == "*" or "-" in span)):
            raise ValueError(f"{text!r} is no {field.name}: a step is written */N or FROM-TO/N")
        found.update(range(low, high + 1, int(step or 1)))
    return (
        _all_or(tuple(sorted(found)), field.high - field.low + 1) if field.name != "week day" else (None if text == "*" else tuple(found))
    )


def _span(text: str, field: Field, whole: str) -> tuple[int, int]:
    if text == "*":
        return field.low, field.high if field.name != "week day" else 6
    match = re.fullmatch(r"(\d{1,2}|[a-z]{3})(?:-(\d{1,2}|[a-z]{3}))?", text.lower(), re.ASCII)
    if match is None:
        raise ValueError(f"{whole!r} is no {field.name}")
    low, high = _number(match[1], field, whole), _number(match[2] or match[1], field, whole)
    if low > high:
        raise ValueError(f"{whole!r} is no {field.name}: {text} runs backwards")
    return low, high


def _number(text: str, field: Field, whole: str) -> int:
    if text in field.names:
        return field.low + field.names.index(text)
    if not text.isdigit() or not field.low <= int(text) <= field.high:
        raise ValueError(f"{whole!r} is no {field.name}: {text} is not between {field.low} and {field.high}")
    return int(text)
