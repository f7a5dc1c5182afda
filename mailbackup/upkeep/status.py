"""What the host remembers of its backups: `status.json` in the state directory.

It is for people and monitors, and tells nothing that a restore relies on: when it is lost, `status` is red until the next run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from mailbackup.errors import MailbackupError, RecordInvalid, UsageError
from mailbackup.host import atomic_write, stamp, utc_now
from mailbackup.model import codec
from mailbackup.model.drill import DrillResult
from mailbackup.model.finding import FindingKind
from mailbackup.model.job import Alarm, PartSeen, Proof, ScrubPlace, Seen, Status
from mailbackup.model.results import BackupResult

FILE_NAME = "status.json"
GOOD_SECONDS = 26 * 3600
"""Age up to which a snapshot is good: a night may begin late and last long; two hours later than a day means that one is missing."""


def read_status(state_dir: str) -> Status:
    """What is remembered; nothing when there is no file.

    Raises UsageError when it may not be read, or is of a newer version, and RecordInvalid when it is not such a file.
    """
    path = os.path.join(state_dir, FILE_NAME)
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        return Status()
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}", hint="It is readable for the user who runs the backups only: run as that user (root)."
        ) from None
    return codec.decode(raw, Status, path)


def replaced(status: Status, **members: Any) -> Status:
    """The status with other members."""
    return Status(**{name: getattr(status, name) for name in Status.__struct_fields__} | members)


def remember(state_dir: str, change: Callable[[Status], dict[str, Any]]) -> Status:
    """Change members of what is remembered. A file that is no status is made anew. Raises what `host.atomic_write` raises."""
    try:
        known = read_status(state_dir)
    except RecordInvalid:
        known = Status()
    status = replaced(known, **change(known))
    atomic_write(os.path.join(state_dir, FILE_NAME), codec.encode(status) + b"\n", mode=0o600)
    return status


def remember_backup(state_dir: str, result: BackupResult) -> str | None:
    """A snapshot was made. What cannot be remembered costs no backup: returns why, if so."""
    seen = Seen(seq=result.seq, time=stamp(utc_now()))

    alarm = next((Alarm(seen, found.detail) for found in result.findings if found.kind is FindingKind.ANOMALY), None)

    def change(known: Status) -> dict[str, Any]:
        anomaly = alarm or known.anomaly
        if result.outcome == "incomplete":
            return {"newest": seen, "incomplete_in_a_row": known.incomplete_in_a_row + 1, "anomaly": anomaly}
        return {"newest": seen, "good": seen, "incomplete_in_a_row": 0, "anomaly": anomaly}

    try:
        remember(state_dir, change)
    except MailbackupError as error:
        return error.message
    return None


def remember_read_back(state_dir: str, snapshot: Seen, entry: int) -> None:
    """A snapshot's objects, and all that the ledger names up to `entry`, were read back and are what they should be."""
    proof = Proof(by="read-back", snapshot=snapshot, time=stamp(utc_now()), entry=entry)
    remember(state_dir, lambda _: {"read_back": proof})


def remember_drill(state_dir: str, result: DrillResult) -> None:
    """A drill of a snapshot ended. One that failed, or that used the files of this host instead, proves no snapshot."""
    if result.outcome != "proven" or result.seq is None:
        return
    now = utc_now()
    snapshot = Seen(seq=result.seq, time=stamp(now - timedelta(seconds=result.rpo_s or 0)))
    proof = Proof(by="drill", snapshot=snapshot, time=stamp(now))
    remember(state_dir, lambda _: {"drill": proof})


def remember_scrub(state_dir: str, store: str, place: ScrubPlace) -> None:
    """Where the rolling scrub of a store goes on."""
    remember(state_dir, lambda known: {"scrub": known.scrub | {store: place}})


def whole_round_of(state_dir: str, store: str) -> ScrubPlace:
    """Where the round over everything in a store goes on: that of `verify`, not that of the nightly job, which reads live packs only."""
    try:
        return read_status(state_dir).scrub.get(f"{store}/all", ScrubPlace())
    except RecordInvalid:
        return ScrubPlace()


def remember_whole_round(state_dir: str, store: str, place: ScrubPlace, after: str, *, wrapped: bool) -> ScrubPlace:
    """That round came to `after`, and ended on the way if `wrapped`. Returns the new place. Raises what `remember` raises."""
    now = stamp(utc_now())
    place = ScrubPlace(after=after, since=now if wrapped else place.since or now, round=now if wrapped else place.round)
    os.makedirs(state_dir, mode=0o700, exist_ok=True)
    remember_scrub(state_dir, f"{store}/all", place)
    return place


def remember_parts(state_dir: str, job: str, seen: tuple[PartSeen, ...]) -> None:
    """How the parts of a job ended; replaces what was known of that job."""
    remember(state_dir, lambda known: {"parts": (*(part for part in known.parts if part.job != job), *seen)})
