"""The parts of jobs. Each does its work and says in a `Done` what came of it; what it raises is for `jobs.run` to judge."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

from mailbackup import app, keeping
from mailbackup.access import Context, chosen_stores, use_nearest, use_store
from mailbackup.errors import (
    DamageError,
    Interrupted,
    MailbackupError,
    RecordInvalid,
    SourceError,
    StoreError,
    StoreRefused,
    UsageError,
)
from mailbackup.host import run_lock, stamp, utc_now
from mailbackup.kit import load_signing_key
from mailbackup.model.drill import DrillResult
from mailbackup.model.events import Stop
from mailbackup.model.finding import Finding
from mailbackup.model.ids import PackId
from mailbackup.model.job import ScrubPlace, Seen, Status
from mailbackup.model.options import StoreConfig
from mailbackup.model.results import BackupResult
from mailbackup.upkeep.readback import ReadBack
from mailbackup.upkeep.readback import read_back as read_entries_back
from mailbackup.upkeep.rolling import Rolled, rolling_scrub
from mailbackup.upkeep.scrub import record_damage
from mailbackup.upkeep.status import read_status, remember_drill, remember_read_back, remember_scrub
from mailbackup.vault.chain import find_head
from mailbackup.vault.replay import forget_packs
from mailbackup.vault.state import State


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
    away = [outcome for outcome in made.stores if outcome.outcome != "current"]
    if away:
        lacking = "; ".join(f"store {outcome.name} is {outcome.outcome}: {outcome.detail or 'lacks entries'}" for outcome in away)
        return made, Done(f"{detail}; {lacking}", StoreError.exit_status, made.findings)
    incomplete = SourceError.exit_status  # a snapshot was made all the same
    return made, Done(detail, incomplete if made.outcome == "incomplete" else 0, made.findings, harmless=incomplete)


def head_of(context: Context) -> int:
    """The number of the last entry in the nearest store."""
    with use_nearest(context) as (nearest, _):
        return find_head(nearest.first())


def read_back(context: Context, made: BackupResult, head_before: int, stop: Stop) -> Done:
    """Everything that the ledger names since the last read-back, read and hashed in every store; at least what came behind `head_before`."""
    proof = _known(context).read_back
    proven = head_before if proof is None else min(proof.entry, head_before)
    checked: list[tuple[str, ReadBack]] = []
    refused: list[StoreRefused] = []
    for store in made.stores:
        if store.outcome == "current":
            try:
                checked.append((store.name, _read_store_back(context, store.name, min(proven, store.before), stop)))
            except StoreRefused as error:
                refused.append(error)
    if not checked:
        raise Skip(f"what was sent cannot be read: {refused[0].message}" if refused else "no store holds the snapshot")
    if all(found.proven for _, found in checked) and not refused:
        remember_read_back(context.state_dir, Seen(seq=made.seq, time=stamp(utc_now())), min(found.last for _, found in checked))
    detail = f"{sum(found.objects for _, found in checked):,} objects, {sum(found.bytes for _, found in checked):,} bytes"
    if refused:
        detail += f"; not read back: {refused[0].message}"
    return _judged(context, detail, _named(checked), whole=all(found.whole for _, found in checked))


def _read_store_back(context: Context, name: str, after: int, stop: Stop) -> ReadBack:
    with use_store(context, name) as store:
        return read_entries_back(store, context.anchors_of(name), after=after, stop=stop, on_event=context.on_event)


def scrub(context: Context, budget: int, stop: Stop) -> Done:
    """A share of the live packs of every store, going on where the last run ended. `budget` bytes are shared among them."""
    places = chosen_stores(context)
    rolled: list[tuple[str, Rolled]] = []
    refused: list[StoreRefused] = []
    away: list[StoreError] = []
    for place in places:
        try:
            rolled.append((place.name, _scrub_store(context, place.name, budget // len(places), stop)))
        except StoreRefused as error:
            refused.append(error)
        except StoreError as error:
            if len(places) == 1:
                raise
            away.append(error)
    if not rolled and not away:
        raise Skip(f"nothing could be read: {refused[0].message}")
    share = "; ".join(f"{_of(name, places)}{found.packs:,} packs, {found.bytes:,} of {found.live:,} bytes" for name, found in rolled)
    if refused:
        share += f"; not scrubbed: {refused[0].message}"
    done = _judged(context, share, _named(rolled), whole=not stop())
    if away and done.exit_status == 0:
        return Done(f"{done.detail}; {away[0].message}", StoreError.exit_status)
    return done


def _scrub_store(context: Context, name: str, budget: int, stop: Stop) -> Rolled:
    place = _known(context).scrub.get(name, ScrubPlace())
    now = stamp(utc_now())
    with use_store(context, name) as store:
        rolled = rolling_scrub(store, context.anchors_of(name), after=place.after, budget=budget, stop=stop, on_event=context.on_event)
    since = now if rolled.wrapped else place.since or now
    remember_scrub(context.state_dir, name, ScrubPlace(after=rolled.after, since=since, round=now if rolled.wrapped else place.round))
    if rolled.damaged and context.config.retention.key_file is not None:
        with use_store(context, name) as store:
            record_damage(store, context.anchors_of(name), load_signing_key(context.config.retention.key_file), rolled.damaged)
    return rolled


def _of(name: str, places: tuple[StoreConfig, ...]) -> str:
    return f"{name}: " if len(places) > 1 else ""


def _named(checked: Sequence[tuple[str, ReadBack | Rolled]]) -> list[Finding]:
    """The findings of all stores; where there are several, each says in which."""
    if len(checked) == 1:
        return checked[0][1].findings
    return [
        Finding(finding.kind, finding.subject, f"store {name}: {finding.detail}", finding.snapshots)
        for name, found in checked
        for finding in found.findings
    ]


def _known(context: Context) -> Status:
    """What is remembered; nothing when that is damaged: the next write makes it anew."""
    try:
        return read_status(context.state_dir)
    except RecordInvalid:
        return Status()


def _judged(context: Context, detail: str, findings: list[Finding], *, whole: bool) -> Done:
    if not findings:
        return Done(detail) if whole else Done(f"{detail}, then stopped", Interrupted.exit_status)
    said = f"{detail}; {len(findings)} damaged or missing, first {findings[0].subject}{_to_be_healed(context, findings)}"
    return Done(said, DamageError.exit_status, tuple(findings))


def _to_be_healed(context: Context, findings: list[Finding]) -> str:
    """Have the next backup send the contents of damaged packs again, as far as the sources still have them. Says what will happen."""
    packs = {PackId(finding.subject[-32:]) for finding in findings if finding.subject.startswith("packs/")}
    if not packs or not os.path.exists(context.state_path):  # no state: this machine makes no backups, and said so in an act if it could
        return ""
    try:
        with run_lock(os.path.join(context.state_dir, "lock")), closing(State(context.state_path, context.anchors.vault)) as state:
            forget_packs(state, packs)
    except MailbackupError as error:
        return f"; the next backup will not send them again: {error.message}"
    return "; the next backup sends them again, as far as the sources still have them"


def prune(context: Context, stop: Stop) -> Done:
    """Old snapshots go, as the retention says."""
    if context.config.retention.key_file is None:
        raise Skip("no signing key was named on this host (retention.key_file)")
    result = keeping.prune_stores(context, stop=stop)
    detail = f"{result.kept:,} snapshots kept, {result.removed:,} dropped, {result.freed_bytes:,} bytes freed"
    for store in result.stores:
        if store.outcome in ("refused", "failed"):
            detail += f"; store {store.name} {store.outcome}: {store.detail}"
    return Done(detail, result.exit_status)


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
    if identity is None:
        raise Skip("no identity on this host: set identity in the job file, or drill on another machine")
    from mailbackup.server import drills

    result = drills.light(dataclasses.replace(context, identity_file=identity))
    remember_drill(context.state_dir, result)
    return _drilled(result)


def _drilled(result: DrillResult) -> Done:
    """A drill in a sentence: what it has proven, or what it has not."""
    failed = [probe.name for probe in result.probes if probe.outcome == "failed"]
    failed += [f"{step.system}: {step.name}" for step in result.steps if step.outcome == "failed"]
    passed = sum(probe.outcome == "passed" for probe in result.probes)
    if result.outcome == "proven":
        return Done(f"{passed} probes passed in {result.rto_s:.1f} s", 0, result.findings)
    return Done(f"failed: {', '.join(failed) or 'nothing was proven'} ({passed} probes passed)", DamageError.exit_status, result.findings)
