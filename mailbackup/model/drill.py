"""What rebuilding a server and drilling it have to say."""

from __future__ import annotations

from typing import Literal

from mailbackup.model.codec import Record
from mailbackup.model.finding import Finding


class StepResult(Record, frozen=True, kw_only=True):
    """One step of a rebuild. `detail`: what was done, or why not."""

    system: str
    name: str
    action: str
    outcome: Literal["planned", "done", "failed", "skipped"]
    seconds: float = 0.0
    detail: str = ""


class ServerResult(Record, frozen=True, kw_only=True):
    """`restore server`."""

    outcome: Literal["planned", "complete", "incomplete"]
    seq: int
    target: str
    steps: tuple[StepResult, ...]
    messages: int
    files: int
    seconds: float
    findings: tuple[Finding, ...] = ()


class ProbeResult(Record, frozen=True, kw_only=True):
    """One probe. `tier` boot: needs no mailbox of the snapshot."""

    name: str
    system: str
    tier: Literal["boot", "full"]
    outcome: Literal["passed", "failed", "skipped"]
    seconds: float
    detail: str = ""


class PhaseTime(Record, frozen=True, kw_only=True):
    """How long a phase took, in seconds."""

    name: str
    seconds: float


class DrillResult(Record, frozen=True, kw_only=True):
    """`drill …`. `rto_s`: seconds from nothing to a proven server; `rpo_s`: age of the snapshot then. `seq` None: the files of this host were used."""

    outcome: Literal["proven", "failed"]
    kind: Literal["boot", "light", "full"]
    engine: str
    seq: int | None
    mailboxes: int
    messages: int
    probes: tuple[ProbeResult, ...]
    steps: tuple[StepResult, ...]
    phases: tuple[PhaseTime, ...]
    rto_s: float
    rpo_s: int | None
    findings: tuple[Finding, ...] = ()
    act: int | None = None
