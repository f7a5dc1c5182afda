"""Jobs: what runs by itself, when, and what the host remembers of it (status.json)."""

from __future__ import annotations

import re
from typing import Literal

from mailbackup.model.codec import Record

PartName = Literal["backup", "read-back", "scrub", "prune", "boot", "drill"]
PartOutcome = Literal["done", "failed", "skipped"]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(value: int | str) -> int:
    """Seconds of a number, or of a text such as "90s", "15m", "6h", "1d". Raises ValueError for anything else, also for negative ones."""
    if isinstance(value, int):
        if value < 0:
            raise ValueError(f"{value} is negative")
        return value
    match = re.fullmatch(r"(\d{1,6})\s*([smhd])", value)
    if match is None:
        raise ValueError(f"{value!r} is no length of time; write seconds, or for example 90s, 15m, 6h, 1d")
    return int(match[1]) * _UNITS[match[2]]


class Job(Record, frozen=True, kw_only=True):
    """A job file. `zone` "" = the zone of the host; lengths of time in seconds, or as `seconds_of` reads them; `scrub_bytes` per run.

    `misfire`: how late a run may begin that could not begin in time. `hook_limit`: the longest that one hook may take. `identity`: path of an
    identity, for drills on this host.
    """

    name: str
    about: str = ""
    cron: str
    parts: tuple[PartName, ...]
    enabled: bool = True
    zone: str = ""
    jitter: int | str = 0
    misfire: int | str = 3600
    scrub_bytes: int = 2 << 30
    hook_limit: int | str = 60
    identity: str | None = None

    @property
    def jitter_seconds(self) -> int:
        """The longest time that a start is put off by chance, so that forty hosts do not begin in the same second."""
        return seconds_of(self.jitter)

    @property
    def misfire_seconds(self) -> int:
        """How late a run may begin."""
        return seconds_of(self.misfire)

    @property
    def hook_seconds(self) -> int:
        """The longest that one hook may take."""
        return seconds_of(self.hook_limit)


class Seen(Record, frozen=True, kw_only=True):
    """A snapshot by its number, and when (UTC)."""

    seq: int
    time: str


class Proof(Record, frozen=True, kw_only=True):
    """That a snapshot was proven: `snapshot` is its number and time, `time` that of the proof. `read-back` covers the ledger up to `entry`."""

    by: Literal["read-back", "drill"]
    snapshot: Seen
    time: str
    entry: int = 0


class PartSeen(Record, frozen=True, kw_only=True):
    """How a part of a job ended last."""

    job: str
    part: str
    time: str
    outcome: PartOutcome
    exit_status: int
    detail: str = ""


class ScrubPlace(Record, frozen=True, kw_only=True):
    """Where the rolling scrub goes on: behind pack `after`; the round began at `since`. `round` is when the last whole round ended, if one did."""

    after: str = ""
    since: str = ""
    round: str = ""


class Alarm(Record, frozen=True):
    """A snapshot in which so much mail was gone or changed that it froze pruning."""

    snapshot: Seen
    detail: str


class Status(Record, frozen=True, kw_only=True):
    """`status.json`: what the host remembers, to be read without the vault. `good` = newest snapshot that is complete or explained.

    `scrub` by the name of the store."""

    format: Literal[1] = 1
    good: Seen | None = None
    newest: Seen | None = None
    incomplete_in_a_row: int = 0
    anomaly: Alarm | None = None
    read_back: Proof | None = None
    drill: Proof | None = None
    scrub: dict[str, ScrubPlace] = {}
    parts: tuple[PartSeen, ...] = ()
