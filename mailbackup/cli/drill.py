"""`drill boot`, `drill light`, `drill full`."""

from __future__ import annotations

from typing import Annotated

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.browse import At
from mailbackup.cli.command import Run, command, group
from mailbackup.cli.text import duration, number, table
from mailbackup.errors import DamageError, UsageError
from mailbackup.model.drill import DrillResult

_MARKS = {"passed": "ok", "failed": "FAILED", "skipped": "-"}


def register(root: typer.Typer) -> None:
    """Add the commands to the program."""
    parent = group(root, "drill", "Rehearse a restore in a throw-away machine without a network.")
    command(parent, "boot", example="mailbackup drill boot")(boot)
    command(parent, "light", example="mailbackup drill light --identity kit.txt")(light)
    command(parent, "full", example="mailbackup drill full --identity kit.txt")(full)


def boot(run: Run) -> Answer:
    """Start this host's configuration in a scratch machine, without any key: does it come up, take mail, sign and deliver it?"""
    from mailbackup.server import drills

    return _answer(drills.boot(run.context()))


def light(run: Run, *, at: At = "latest") -> Answer:
    """Restore configuration, keys and a sample of the mail, start it on this host's programs, prove it."""
    from mailbackup.server import drills

    return _remembered(run, drills.light(run.context(), at=at))


def full(
    run: Run,
    *,
    at: At = "latest",
    engine: Annotated[str, typer.Option("--engine", metavar="NAME", help="podman, bwrap, or auto.")] = "auto",
) -> Answer:
    """Rebuild the whole server on a fresh installation of its release, start it, prove it."""
    from mailbackup.server import drills

    if engine not in ("auto", "podman", "bwrap"):
        raise UsageError(f"there is no engine {engine}", hint="Say podman, bwrap or auto.")
    return _remembered(run, drills.full(run.context(), at=at, engine=engine))  # type: ignore[arg-type]


def _remembered(run: Run, result: DrillResult) -> Answer:
    from mailbackup.upkeep.status import remember_drill

    remember_drill(run.context().state_dir, result)
    return _answer(result)


def _answer(result: DrillResult) -> Answer:
    proven = result.outcome == "proven"
    return Answer(
        outcome=result.outcome,
        exit_status=0 if proven else DamageError.exit_status,
        fields=fields_of(result),
        text=_summary(result),
        report=proven,
        findings=result.findings,
    )


def _summary(result: DrillResult) -> list[str]:
    steps = [(_MARKS["failed"], f"{step.system}: {step.name}", step.detail) for step in result.steps if step.outcome == "failed"]
    probes = [(_MARKS[probe.outcome], probe.name, probe.detail) for probe in result.probes]
    phases = ", ".join(f"{phase.name} {duration(phase.seconds)}" for phase in result.phases)
    what = "the files of this host" if result.seq is None else f"snapshot {result.seq}"
    held = f", {number(result.messages, 'message')} of {number(result.mailboxes, 'mailbox', 'mailboxes')}" if result.seq is not None else ""
    signed = f", signed as act {result.act}" if result.act is not None else ""
    return [
        *table([*steps, *probes]),
        phases,
        f"{result.kind} drill of {what} ({result.engine}{held}): {result.outcome} in {duration(result.rto_s)}{signed}",
    ]
