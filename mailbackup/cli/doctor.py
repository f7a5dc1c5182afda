"""`doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command
from mailbackup.cli.text import table
from mailbackup.errors import ConfigInvalid, ConfigMissing, DamageError
from mailbackup.model.results import DoctorResult


def register(root: typer.Typer) -> None:
    """Add the command to the program."""
    command(root, "doctor", example="mailbackup doctor --dns")(doctor)


def doctor(
    run: Run,
    *,
    dns: Annotated[bool, typer.Option("--dns", help="Ask the DNS too: is the published DKIM record that of the key on this host.")] = False,
) -> Answer:
    """Say whether this host can make backups that are worth something, and what to do next. Changes nothing, needs no identity."""
    from mailbackup.server import doctor as examining

    try:
        context = run.context()
    except (ConfigMissing, ConfigInvalid) as error:
        return _answer(examining.without_configuration(error))
    return _answer(examining.doctor(context, dns=dns))


def _answer(result: DoctorResult) -> Answer:
    status = DamageError.exit_status if result.outcome == "problems" else 0
    return Answer(outcome=result.outcome, exit_status=status, fields=fields_of(result), text=summary(result), report=False)


_MARKS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}


def summary(result: DoctorResult) -> Iterator[str]:
    """A line per check, what is worst last, and the next step."""
    order = {"ok": 0, "warning": 1, "problem": 2}
    checks = sorted(result.checks, key=lambda check: order[check.level])
    yield from table([[_MARKS[check.level], check.name, check.text] for check in checks])
    yield f"do this next: {result.next}"
