"""Passphrases: from a prompt or a file, never from the command line."""

from __future__ import annotations

import os
import sys
from getpass import getpass

from mailbackup.errors import IdentityMissing, UsageError

VARIABLE = "MAILBACKUP_PASSPHRASE_FILE"


def new_passphrase(*, none: bool) -> str | None:
    """A passphrase for a new kit: from `$MAILBACKUP_PASSPHRASE_FILE`, else asked twice. None when `none` was said.

    Raises UsageError when there is nobody to ask, or the answers differ.
    """
    if none:
        return None
    given = _from_file()
    if given is None and sys.stdin.isatty():
        given = getpass("Passphrase for the recovery kit: ")
        if given and getpass("The same once more: ") != given:
            raise UsageError("the two passphrases differ", hint="Run again; nothing was changed.")
    if not given:
        raise UsageError("no passphrase for the recovery kit", hint=f"Name a file that holds it with ${VARIABLE}, or say --no-passphrase.")
    return given


def identity_passphrase(path: str | None) -> str:
    """The passphrase of the identity file `path`. Raises IdentityMissing when there is nobody to ask."""
    given = _from_file()
    if given is None and sys.stdin.isatty():
        given = getpass(f"Passphrase of {path}: ")
    if not given:
        raise IdentityMissing(f"{path} is protected by a passphrase", hint=f"Name a file that holds it with ${VARIABLE}.")
    return given


def _from_file() -> str | None:
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            return file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"cannot read the passphrase from {path}: {reason}", hint=f"Check ${VARIABLE}.") from None
