"""What a command answers, and how answers and errors are shown: for people, or as one JSON object."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TextIO

from mailbackup.cli.text import number, printable
from mailbackup.errors import MailbackupError
from mailbackup.model.codec import plain
from mailbackup.model.finding import Finding

SHOWN_FINDINGS = 20  # of those that need action; the rest is counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`fields` are those of `--json`; `text` is for people, left out with -q when it is only a `report` of what was done.

    `raw` goes to stdout as it is (and without `--json` only it).
    """

    outcome: str = "done"
    exit_status: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    text: Iterable[str] = ()
    report: bool = True
    findings: tuple[Finding, ...] = ()
    raw: bytes | None = None


def fields_of(record: Any) -> dict[str, Any]:
    """The members of a result record as JSON fields, without `outcome`, which every answer has anyway."""
    members: dict[str, Any] = {name: plain(getattr(record, name)) for name in record.__struct_fields__ if name != "outcome"}
    return members


def show_answer(answer: Answer, command: str, *, as_json: bool, quiet: bool) -> None:
    """Write an answer. Findings that need action are written to stderr even when quiet."""
    if as_json:
        status = {"command": command, "outcome": answer.outcome, "exit_status": answer.exit_status}
        write_json({**status, **answer.fields})
        return
    if answer.raw is not None:
        write(answer.raw)
    elif not (quiet and answer.report):
        write(lines(answer.text))
    write(lines(_about(answer.findings, quiet=quiet)), sys.stderr)


def _about(findings: tuple[Finding, ...], *, quiet: bool) -> list[str]:
    harmful = [finding for finding in findings if not finding.harmless]
    shown = [f"{finding.kind}: {finding.subject}{': ' if finding.detail else ''}{finding.detail}" for finding in harmful[:SHOWN_FINDINGS]]
    if len(harmful) > SHOWN_FINDINGS:
        shown.append(f"… and {len(harmful) - SHOWN_FINDINGS} more; --json lists all")
    if not quiet and len(findings) > len(harmful):
        shown.append(f"{number(len(findings) - len(harmful), 'finding')} without need for action; --json lists all")
    return shown


def show_error(error: MailbackupError, command: str, *, as_json: bool) -> None:
    """Write an error: message and hint on stderr, or the error object on stdout."""
    if as_json:
        about = {"code": error.code, "message": error.message, "hint": error.hint}
        write_json({"error": about, "command": command, "outcome": "error", "exit_status": error.exit_status})
        return
    hint = [f"HINT: {error.hint}"] if error.hint else []
    write(lines([f"{error.message} [{error.code}]", *hint]), sys.stderr)


def lines(texts: Iterable[str]) -> bytes:
    """Lines for people: control characters made visible, since names and subjects come from strangers."""
    return "".join(f"{printable(text)}\n" for text in texts).encode(sys.stdout.encoding or "utf-8", "backslashreplace")


def write_json(value: dict[str, Any]) -> None:
    """One line of JSON. Names that are not UTF-8 (from the command line) keep their bytes as lone surrogates."""
    write(json.dumps(plain(value), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")


def write(data: bytes, stream: TextIO | None = None) -> None:
    """Write to stdout (or `stream`) at once. A reader that went away is no error: the work is done, its status stands."""
    stream = stream or sys.stdout
    try:
        stream.flush()
        stream.buffer.write(data)
        stream.buffer.flush()
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())  # else the interpreter complains once more at its end
