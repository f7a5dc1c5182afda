"""The parts of jobs. Each does its work and says in a `Done` what came of it; what it raises is for `jobs.run` to judge."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from mailbackup import app
from mailbackup.access import Context, use_store
from mailbackup.errors import DamageError, Interrupted, MailbackupError, RecordInvalid, SourceError, UsageError
from mailbackup.host import stamp, utc_now
from mailbackup.model.events import Stop
from mailbackup.model.finding import Finding
from mailbackup.model.job import ScrubPlace, Seen, Status
from mailbackup.model.results import BackupResult
from mailbackup.upkeep.readback import read_back as read_entries_back
from mailbackup.upkeep.rolling import rolling_scrub
from mailbackup.upkeep.status import read_status, remember_read_back, remember_scrub
from mailbackup.vault.chain import find_head


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a part: a sentence, the exit status that it stands for, and findings. Not 0 means that it failed, unless it is `harmless`."""

    detail: str = ""
    exit_status: int = 0
    findings: tuple[Finding, ...] = ()
    harmless: int = 0


class Skip(Exception):
    """This part cannot be done here, or not now, and that is no failure. An `exit_status` other than 0 still counts for the job."""

    def __init__(self, reason: str, exit_status: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.exit_status = exit_status


def backup(context: Context, before: tuple[Finding, ...], stop: Stop) -> tuple[BackupResult, Done]:
    """A snapshot, with the findings made before it."""
    made = app.backup(context, findings=before, stop=stop)
    detail = f"snapshot {made.seq} is {made.outcome}: {made.messages:,} messages ({made.new_messages:,} new), {made.files:,} files"
    incomplete = SourceError.exit_status  # a snapshot was made all the same
    return made, Done(detail, incomplete if made.outcome == "incomplete" else 0, made.findings, harmless=incomplete)


def head_of(context: Context) -> int:
    """The number of the last entry in the store."""
    with use_store(context, only=True) as store:
        return find_head(store)


def read_back(context: Context, made: BackupResult, head_before: int, stop: Stop) -> Done:
    """Everything that the ledger names since the last read-back, read and hashed; at least what came behind `head_before`."""
    proof = _known(context).read_back
    after = head_before if proof is None else min(proof.entry, head_before)
    with use_store(context) as store:
        found = read_entries_back(store, context.anchors, after=after, stop=stop, on_event=context.on_event)
    if found.proven:
        remember_read_back(context.state_dir, Seen(seq=made.seq, time=stamp(utc_now())), found.last)
    return Done(*_judged(f"{found.objects:,} objects, {found.bytes:,} bytes", found.findings, whole=found.whole))


def scrub(context: Context, budget: int, stop: Stop) -> Done:
    """A share of the live packs, going on where the last run ended."""
    place = _known(context).scrub
    now = stamp(utc_now())
    with use_store(context) as store:
        rolled = rolling_scrub(store, context.anchors, after=place.after, budget=budget, stop=stop, on_event=context.on_event)
    since = (now if rolled.after else "") if rolled.wrapped else place.since or now
    remember_scrub(context.state_dir, ScrubPlace(after=rolled.after, since=since, round=now if rolled.wrapped else place.round))
    share = f"{rolled.packs:,} packs, {rolled.bytes:,} of {rolled.live:,} bytes"
    return Done(*_judged(share, rolled.findings, whole=not stop()))


def _known(context: Context) -> Status:
    """What is remembered; nothing when that is damaged: the next write makes it anew."""
    try:
        return read_status(context.state_dir)
    except RecordInvalid:
        return Status()


def _judged(detail: str, findings: list[Finding], *, whole: bool) -> tuple[str, int, tuple[Finding, ...]]:
    if findings:
        return f"{detail}; {len(findings)} damaged or missing, first {findings[0].subject}", DamageError.exit_status, tuple(findings)
    return (detail, 0, ()) if whole else (f"{detail}, then stopped", Interrupted.exit_status, ())


def boot(context: Context) -> Done:
    """The configuration of this host, started in a scratch container."""
    from mailbackup.server import drills

    try:
        result = drills.boot(context)
    except UsageError as error:
        raise Skip(error.message) from None
    return _drilled(result)


def drill(context: Context, identity: str | None) -> Done:
    """A restore of the newest snapshot, rehearsed in a scratch container."""
    from mailbackup.server import drills

    if identity is None:
        raise Skip("no identity on this host: set identity in the job file, or drill on another machine")
    return _drilled(drills.light(dataclasses.replace(context, identity_file=identity)))


def _drilled(result: object) -> Done:
    raise MailbackupError("drills are not here yet")
