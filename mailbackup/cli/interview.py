"""The questions of `init`, each with what was found on this host as its answer."""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from getpass import getpass
from typing import TYPE_CHECKING

import typer

from mailbackup import config
from mailbackup.cli.answer import lines, write
from mailbackup.cli.text import number
from mailbackup.errors import UsageError

if TYPE_CHECKING:
    from mailbackup.server.found import FoundHere

NOTHING = "-"
"""The answer that means none."""


@dataclass(frozen=True, slots=True)
class Given:
    """What was said on the command line, or answered."""

    mail: list[str]
    directories: list[str]
    stores: list[str]
    kit_out: str | None
    domain: str | None
    host: str | None
    no_passphrase: bool = False


def ask(given: Given, found: FoundHere) -> Given:
    """Ask for what was not given. Raises UsageError when nothing is to be saved."""
    from mailbackup.config import default_store_dir

    _say(*_about(found), f"Enter takes the answer in brackets; {NOTHING} means none; several are separated by blanks.")
    mail = given.mail or _asked("Mailboxes", [row.pattern for row in found.mail], _mail_problem)
    for pattern in mail:
        _say(f"  {pattern}: {number(_mailboxes(pattern), 'mailbox', 'mailboxes')}")
    directories = given.directories or _asked("Directories besides", list(found.directories), _directory_problem)
    if not mail and not directories and not found.programs:
        raise UsageError("nothing to save: no mailboxes and no directories", hint="Run again and name some.")
    stores = given.stores or _asked("Backups go to", [default_store_dir()], _store_problem, needed="they must go somewhere")
    kit = (
        given.kit_out or _asked("Recovery kit", [_kit_place(given)], _kit_problem, needed="without a kit nobody could read the backups")[0]
    )
    return replace(given, mail=mail, directories=directories, stores=stores, kit_out=kit)


def passphrase(none: bool) -> str | None:
    """The passphrase of the kit, asked twice; nothing = a kit without one. Raises UsageError when the answers differ three times."""
    from mailbackup.cli.secret import VARIABLE, new_passphrase

    if none or os.environ.get(VARIABLE):
        return new_passphrase(none=none)
    for _ in range(3):
        first = getpass("Passphrase of the recovery kit (nothing = none): ")
        if not first:
            return None
        if getpass("The same once more: ") == first:
            return first
        _say("The two differ.")
    raise UsageError("the two passphrases differ", hint="Run again; nothing was changed.")


def _say(*texts: str) -> None:
    write(lines(texts), sys.stderr)


def _about(found: FoundHere) -> list[str]:
    """What was found, in a line or two."""
    said = [f"Found on this host: {', '.join(found.programs)}."] if found.programs else ["No mail program was found on this host."]
    return [*said, *([f"Not certain: {found.doubt}."] if found.doubt else [])]


def _asked(question: str, default: list[str], problem: Callable[[str], str | None], *, needed: str = "") -> list[str]:
    """The answer to a question, asked again until it can be used. `needed`: what to say to somebody who answers with nothing."""
    while True:
        answer = str(typer.prompt(question, default=shlex.join(default) or NOTHING, err=True))
        try:
            rows = [] if answer.strip() == NOTHING else shlex.split(answer)
        except ValueError as error:
            _say(f"  {error}")
            continue
        problems = [said for row in rows if (said := problem(row)) is not None]
        if not rows and needed:
            problems = [needed]
        if not problems:
            return rows
        _say(*(f"  {said}" for said in problems))


def _mail_problem(pattern: str) -> str | None:
    from mailbackup.mail.pattern import Pattern

    try:
        Pattern.parse(os.path.abspath(pattern) if not pattern.startswith("/") else pattern)
    except ValueError as error:
        return str(error)
    return None


def _mailboxes(pattern: str) -> int:
    from mailbackup.server.found import count

    return count(pattern)


def _directory_problem(path: str) -> str | None:
    return None if os.path.isdir(path) else f"{path} is not a directory"


def _store_problem(url: str) -> str | None:
    if "://" not in url:
        return None
    try:
        problems = config.store_problems(config.store_from_url("store", url))
    except ValueError as error:
        return str(error)
    return next((problem for _, problem, _ in problems), None)


def _kit_problem(path: str) -> str | None:
    whole = os.path.abspath(os.path.expanduser(path))
    if os.path.lexists(whole):
        return f"{whole} exists, and nothing is overwritten"
    return None


def _kit_place(given: Given) -> str:
    """A place that is outside of the configuration, so that nobody takes the kit for a part of it."""
    return os.path.join(os.path.expanduser("~"), f"mailbackup-kit-{(given.host or socket.gethostname()).split('.')[0]}.txt")
