"""Running a job: its parts one after another, so that the failure of one does not cost the others.

hooks → backup → hooks → read-back → scrub → boot or drill → hooks of a failure → status → ping. What a part raises becomes its result. Only the
read-back needs another part: without a snapshot of this run there is nothing to read back (the next run makes up for it).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from mailbackup import hooks, notify
from mailbackup.access import Context
from mailbackup.errors import Interrupted, MailbackupError, SafetyRefusal, SourceError
from mailbackup.host import run_lock, stamp, utc_now
from mailbackup.jobs import parts
from mailbackup.jobs.files import beside
from mailbackup.jobs.parts import Done, Skip
from mailbackup.model.events import Phase as PhaseEvent
from mailbackup.model.events import Stop, never
from mailbackup.model.finding import Finding
from mailbackup.model.job import Job, PartName, PartOutcome, PartSeen
from mailbackup.model.results import BackupResult, Head, JobPart, JobResult
from mailbackup.upkeep.status import remember_parts

LOCK = "job.lock"
WORST_FIRST = (4, 1, 8, 7, 5, 6, 2, 130, 3, 0)
"""Exit statuses by weight: damage to what is already saved, then what kept the night from being saved, then what is missing in it."""


def run_job(context: Context, job: Job, *, stop: Stop = never) -> JobResult:
    """Run a job. Raises Busy when another job of this host runs; everything else that goes wrong stands in the result.

    `stop` is asked between steps: what was done is kept, and the parts that are left are skipped.
    """
    os.makedirs(context.state_dir, mode=0o700, exist_ok=True)
    with run_lock(os.path.join(context.state_dir, LOCK)):
        return _JobRun(context, job, stop).run()


def worst(statuses: list[int]) -> int:
    """The exit status that stands for all of them."""
    return min(statuses, key=lambda status: WORST_FIRST.index(status) if status in WORST_FIRST else 1, default=0)


@dataclass(slots=True)
class _JobRun:
    context: Context
    job: Job
    stop: Stop
    parts: list[JobPart] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    before: tuple[Finding, ...] = ()  # of hooks before the snapshot: they belong into it
    veto: SafetyRefusal | None = None
    head_before: int = 0
    made: BackupResult | None = None

    def run(self) -> JobResult:
        began = time.monotonic()
        self._ping("start", "started", None)
        for name in self.job.parts:
            self._whole_part(name)
        if self.made is None:
            self.findings[:0] = self.before
        if self._status() != 0:
            self._hook_part("failed")
        self._part("status", self._remember, shown=False)
        status = self._status()
        self._ping("fail" if status else "success", self._outcome(), status)
        return JobResult(
            job=self.job.name, outcome=self._outcome(), exit_status=status, parts=tuple(self.parts), seq=self.made.seq if self.made else None,
            head=self._head(), seconds=round(time.monotonic() - began, 3), findings=tuple(self.findings),
        )  # fmt: skip

    # -- parts

    def _whole_part(self, name: PartName) -> None:
        """A part, and the hooks around it. What they prepared before is removed by those after, so the latter run whatever came of it."""
        hooked = name == "backup" and not self.stop()
        if hooked:
            self._hook_part("pre-snapshot")
        self._part(name, lambda: self._do(name))
        if hooked:
            self._hook_part("post-snapshot")

    def _do(self, name: PartName) -> Done:
        if self.stop():
            raise Skip("the job was told to stop", Interrupted.exit_status)
        if name == "backup":
            return self._backup()
        if name == "read-back":
            if self.made is None:
                raise Skip("there is no snapshot of this run; the next read-back covers what was sent")
            return parts.read_back(self.context, self.made, self.head_before, self.stop)
        if name == "scrub":
            return parts.scrub(self.context, self.job.scrub_bytes, self.stop)
        if name == "prune":
            return parts.prune(self.context, self.stop)
        return parts.boot(self.context) if name == "boot" else parts.drill(self.context, self.job.identity)

    def _backup(self) -> Done:
        if self.veto is not None:
            raise Skip("a hook refused it")
        self.head_before = parts.head_of(self.context)
        self.made, done = parts.backup(self.context, self.before, self.stop)
        return done

    def _part(self, name: str, do: Callable[[], Done], *, shown: bool = True) -> None:
        """Run one part; whatever it raises becomes its result. Without `shown` it is listed only when it failed."""
        began = time.monotonic()
        outcome: PartOutcome = "done"
        try:
            done = do()
        except Skip as skip:
            outcome, done = "skipped", Done(skip.reason, skip.exit_status)
        except MailbackupError as error:
            done = _failure(error)
        except Exception as error:
            done = _failure(MailbackupError(f"unexpected {type(error).__name__}: {error}"))
        if outcome == "done" and done.exit_status not in (0, done.harmless):
            outcome = "failed"
        self.findings += done.findings
        if shown or outcome == "failed":
            seconds = round(time.monotonic() - began, 3)
            self.parts.append(JobPart(name=name, outcome=outcome, exit_status=done.exit_status, seconds=seconds, detail=done.detail))

    # -- hooks

    def _hook_part(self, phase: hooks.Phase) -> None:
        """The hooks of a phase are a part when there are any."""
        if os.path.lexists(os.path.join(self._hooks_dir, f"{phase}.d")):
            self.context.on_event(PhaseEvent(f"{phase} hooks", None))
            self._part(f"{phase} hooks", lambda: self._hooks(phase))

    @property
    def _hooks_dir(self) -> str:
        return beside(self.context.config_path, "hooks")

    def _hooks(self, phase: hooks.Phase) -> Done:
        """Hooks that failed before the snapshot make it incomplete: what they were to prepare may be missing in it."""
        early = phase == "pre-snapshot"
        about = hooks.About(
            phase=phase, job=self.job.name, host=self.context.config.host.name, vault=self.context.config.trust.vault,
            seq=self.made.seq if self.made else None, outcome=None if early else self._outcome(),
            findings=() if early else tuple(finding for finding in self.findings if not finding.harmless),
        )  # fmt: skip
        try:
            ran = hooks.run_phase(self._hooks_dir, about, limit=self.job.hook_seconds)
        except SafetyRefusal as veto:
            self.veto = veto
            raise
        if early:
            self.before = ran.findings
        if not ran.findings:
            return Done(", ".join(ran.names))
        detail = "; ".join(f"{finding.subject}: {finding.detail}" for finding in ran.findings)
        return Done(detail, SourceError.exit_status, () if early else ran.findings)

    # -- the end

    def _status(self) -> int:
        return worst([part.exit_status for part in self.parts])

    def _outcome(self) -> Literal["done", "incomplete", "failed"]:
        status = self._status()
        if status == 0:
            return "done"
        return "incomplete" if status == SourceError.exit_status else "failed"

    def _remember(self) -> Done:
        now = stamp(utc_now())
        seen = (
            PartSeen(job=self.job.name, part=part.name, time=now, outcome=part.outcome, exit_status=part.exit_status, detail=part.detail)
            for part in self.parts
        )
        remember_parts(self.context.state_dir, self.job.name, tuple(seen))
        return Done()

    def _head(self) -> Head | None:
        head = self.context.anchors.head
        return None if head is None else Head(seq=head[0], sha256=head[1])

    def _ping(self, moment: notify.Moment, outcome: str, status: int | None) -> None:
        """Tell the watchdog. That it cannot be reached is said, and changes nothing else: its silence is what it is for."""
        url = self.context.config.notify.ping
        if url is None:
            return
        head = self._head()
        told = notify.Told(
            job=self.job.name, outcome=outcome, exit_status=status, snapshot=self.made.seq if self.made else None,
            seq=head.seq if head else None, sha256=head.sha256 if head else None,
        )  # fmt: skip
        found = notify.ping(url, moment, told)
        if found is not None:
            self.findings.append(found)


def _failure(error: MailbackupError) -> Done:
    hint = f" HINT: {error.hint}" if error.hint else ""
    return Done(f"{error.message} [{error.code}]{hint}", error.exit_status)
