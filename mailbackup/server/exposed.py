"""Identities that lie on the host whose backups they open. Looked for where `init` is asked to put a kit, and where people leave one."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from mailbackup.model.results import Check

_SECRET = b"AGE-SECRET-KEY-1"
_LOCKED = b"-----BEGIN AGE ENCRYPTED FILE-----"
_LONGEST = 1 << 20  # bytes; as long as an identity file may be
_MANY = 500  # files of a directory that are looked into


def identity_checks(config_path: str) -> Iterator[Check]:
    """Whether an identity, or a kit with a passphrase, lies beside the configuration or at the top of root's home (or this user's)."""
    places = dict.fromkeys((os.path.dirname(config_path), "/root", os.path.expanduser("~")))
    found = [(path, locked) for place in places for path, locked in _identities(place)]
    for path, locked in found:
        if locked:
            text = f"a kit with a passphrase lies at {path}: when this host is gone, so is this copy"
            advice = f"Copy {path} to a safe place away from this machine, then delete it here."
        else:
            text = f"identity on this host: whoever gets into it can read every backup with {path}"
            advice = f"Move {path} to a safe place away from this machine."
        yield Check(name="identity", level="warning", text=text, next=advice)
    if not found:
        yield Check(name="identity", level="ok", text="none was found on this host where one is usually left")


def _identities(directory: str) -> Iterator[tuple[str, bool]]:
    """(path, has a passphrase) of files that hold an identity."""
    try:
        names = sorted(os.listdir(directory))[:_MANY]
    except OSError:
        return
    for name in names:
        path = os.path.join(directory, name)
        text = _text(path)
        if any(line.startswith(_SECRET) for line in text.splitlines()):
            yield path, False
        elif text.startswith(_LOCKED) and "kit" in name.lower():
            yield path, True


def _text(path: str) -> bytes:
    """The bytes of a small regular file; empty for everything else. A link is not followed: what it leads to is somewhere else."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LONGEST:
            return b""
        return os.read(fd, _LONGEST)
    except OSError:
        return b""
    finally:
        os.close(fd)
