"""A drill: a scratch machine, shown to be isolated, a rebuild in it, its daemons, and probes. Whatever happens, it is removed afterwards."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from mailbackup.drill import overlay
from mailbackup.drill.isolation import prove_isolation
from mailbackup.drill.probes import mail, mailboxes, static
from mailbackup.drill.probes.bench import Bench, ProbeFailed, ProbeSkipped
from mailbackup.drill.scratch import Engine, Scratch
from mailbackup.errors import MailbackupError, NotFound
from mailbackup.model.account import Accounts
from mailbackup.model.codec import decode
from mailbackup.model.drill import PhaseTime, ProbeResult, StepResult
from mailbackup.model.events import OnEvent, Phase
from mailbackup.model.system import Probe, ServerStep
from mailbackup.restore.server import Rebuild, Source
from mailbackup.restore.snapshot_source import SnapshotSource
from mailbackup.systems.ask import CannotAsk
from mailbackup.systems.dovecot import ACCOUNTS
from mailbackup.systems.known import probes

Prove = Callable[[Probe, Bench], str]
Between = Callable[[str, Scratch], None]
"""Called between the rebuild and the daemons with the root and the machine: where tests break things to see a probe notice."""

_STATIC: dict[str, Prove] = {"config": static.config, "maps": static.maps, "accounts": static.accounts, "files": static.files}
_RUNNING: dict[str, Prove] = {
    "mail": mail.delivery, "auth": mail.auth, "dkim": mail.dkim, "certificate": mail.certificate, "queue": mail.queue, "users": mail.users,
    "mailboxes": mailboxes.mailboxes,
}  # fmt: skip


@dataclass(slots=True)
class Rehearsal:
    """What came of a drill."""

    steps: list[StepResult] = field(default_factory=list)
    probes: list[ProbeResult] = field(default_factory=list)
    phases: list[PhaseTime] = field(default_factory=list)
    messages: int = 0

    @property
    def proven(self) -> bool:
        """Whether everything that was tried worked, and something was."""
        tried = [probe for probe in self.probes if probe.outcome != "skipped"]
        return bool(tried) and all(probe.outcome == "passed" for probe in tried) and all(step.outcome == "done" for step in self.steps)

    @contextmanager
    def phase(self, name: str, on_event: OnEvent) -> Iterator[None]:
        """Measure a phase."""
        on_event(Phase(f"drill: {name}", None, "steps"))
        began = time.monotonic()
        try:
            yield
        finally:
            self.phases.append(PhaseTime(name=name, seconds=round(time.monotonic() - began, 3)))


@dataclass(slots=True)
class Drill:
    """One drill on a root directory that is ready (its base is in it)."""

    source: Source
    engine: Engine
    root: str
    hostname: str
    tier: Literal["boot", "full"]
    on_event: OnEvent
    leave_out: tuple[str, ...] = ()  # names of systems whose files are not restored
    between: Between | None = None

    def run(self) -> Rehearsal:
        """Everything, in order. Raises DrillImpossible and SafetyRefusal; whatever the backup lacks is a failed step or probe."""
        done = Rehearsal()
        with done.phase("isolate", self.on_event):
            scratch = self.engine.start(self.root, self.hostname)
        try:
            with done.phase("prove isolation", self.on_event):
                prove_isolation(scratch)
            self._rehearse(done, scratch)
        finally:
            scratch.close()
        return done

    def _rehearse(self, done: Rehearsal, scratch: Scratch) -> None:
        bench = self._bench(scratch)
        rebuild = Rebuild(self.source, self.root, scratch.run, self.on_event)
        with done.phase("restore", self.on_event):
            for step in rebuild.steps():
                if step.action != "start" and step.system not in self.leave_out:
                    done.steps.append(rebuild.step(step))
        done.messages = rebuild.placed.messages
        if self.between is not None:
            self.between(self.root, scratch)
        wanted = [probe for probe in probes(self.source.inventories) if probe.system not in self.leave_out and self._fits(probe)]
        with done.phase("prove files", self.on_event):
            done.probes += [_proven(probe, _STATIC, bench) for probe in wanted if probe.kind in _STATIC]
        with done.phase("start", self.on_event):
            self._overlay(bench)
            done.steps += [self._start(step, scratch) for step in rebuild.steps() if step.action == "start"]
        with done.phase("prove service", self.on_event):
            done.probes += [_proven(probe, _RUNNING, bench) for probe in wanted if probe.kind in _RUNNING]

    def _fits(self, probe: Probe) -> bool:
        return self.tier == "full" or probe.tier == "boot"

    def _bench(self, scratch: Scratch) -> Bench:
        bench = Bench(scratch, self.source, self.root, secrets.token_urlsafe(24))
        if isinstance(self.source, SnapshotSource):
            bench.reader, bench.mailboxes = self.source.reader, self.source.mailboxes
        try:
            bench.accounts = decode(self.source.dump(ACCOUNTS), Accounts, ACCOUNTS).accounts
        except NotFound:
            bench.accounts = ()
        return bench

    def _overlay(self, bench: Bench) -> None:
        dovecot, postfix = bench.inventory("dovecot"), bench.inventory("postfix")
        if dovecot is not None:
            overlay.dovecot(self.root, dovecot.fact("config"), dovecot.version, bench.password)
        if postfix is not None:
            overlay.postfix(self.root, postfix.fact("config"))

    @staticmethod
    def _start(step: ServerStep, scratch: Scratch) -> StepResult:
        argv = ("dovecot", "-c", overlay.DOVECOT) if step.system == "dovecot" else step.argv
        began = time.monotonic()
        outcome, detail = "done", ""
        try:
            said = scratch.run(argv, step.timeout)
            said.check(argv)
            scratch.wait_for(step.ready)
        except CannotAsk as error:
            outcome, detail = "failed", str(error)
        seconds = round(time.monotonic() - began, 3)
        return StepResult(system=step.system, name=step.name, action=step.action, outcome=outcome, seconds=seconds, detail=detail)  # type: ignore[arg-type]


def _proven(probe: Probe, how: dict[str, Prove], bench: Bench) -> ProbeResult:
    """Run one probe. Whatever goes wrong in it is its result: an unrestorable backup is a failed drill, not a crash."""
    began = time.monotonic()
    outcome, detail = "passed", ""
    try:
        detail = how[probe.kind](probe, bench)
    except ProbeFailed as error:
        outcome, detail = "failed", str(error)
    except ProbeSkipped as error:
        outcome, detail = "skipped", str(error)
    except MailbackupError as error:
        outcome, detail = "failed", error.message
    except (OSError, ValueError, KeyError) as error:
        outcome, detail = "failed", f"{type(error).__name__}: {error}"
    seconds = round(time.monotonic() - began, 3)
    return ProbeResult(name=probe.name, system=probe.system, tier=probe.tier, outcome=outcome, seconds=seconds, detail=detail)  # type: ignore[arg-type]
