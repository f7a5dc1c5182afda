"""Finding the mailboxes of a location on disk."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from mailbackup.capture.mailbox import FoundMailbox
from mailbackup.mail.pattern import Component, Pattern, address, key
from mailbackup.model.options import MailConfig

_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}  # certainly no directory


@dataclass(slots=True)
class Located:
    """The mailboxes of one location, and directories on the way to them that could not be listed, with the reason."""

    mailboxes: list[FoundMailbox] = field(default_factory=list)
    failed: dict[bytes, str] = field(default_factory=dict)


def locate(config: MailConfig, host: str) -> Located:
    """Look for mailboxes where the pattern says. A directory counts when it is a Maildir."""
    pattern = Pattern.parse(config.path)
    located = Located()
    if not os.path.isdir(pattern.root):
        located.failed[pattern.root] = "is not there"
        return located
    for names, path in _candidates(pattern, located):
        captured = pattern.capture(names)
        if captured is None:
            continue
        real = _followed(path, pattern.root)
        if real is None:
            located.failed[path] = "is a symbolic link that leads out of its location"
        elif is_maildir(real):
            located.mailboxes.append(FoundMailbox(key(config.name, captured), config.name, address(captured, config.domain, host), real))
    located.mailboxes.sort(key=lambda found: found.key)
    return located


def is_maildir(path: bytes) -> bool:
    """Whether a directory is a Maildir: it has a `cur` or a `new`, or a folder that has. One that cannot be looked into counts: reading it says why."""
    try:
        if _holds_messages(path):
            return True
        with os.scandir(path) as entries:
            return any(_holds_messages(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as error:
        return error.errno not in _ABSENT


def _holds_messages(path: bytes) -> bool:
    return _is_directory(path + b"/cur") or _is_directory(path + b"/new")


def _is_directory(path: bytes) -> bool:
    """Unlike os.path.isdir, says no only when it knows. Raises OSError."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise


def _candidates(pattern: Pattern, located: Located) -> Iterator[tuple[list[bytes], bytes]]:
    pending: list[tuple[list[bytes], bytes]] = [([], pattern.root)]
    while pending:
        names, path = pending.pop()
        if len(names) == len(pattern.components):
            yield names, path
            continue
        for name in _matching(path, pattern.components[len(names)], located):
            pending.append(([*names, name], path.rstrip(b"/") + b"/" + name))


def _matching(path: bytes, component: Component, located: Located) -> list[bytes]:
    """Names of the directories in `path` that fit. Where it cannot be told, the place is noted in `located.failed`."""
    try:
        names = [component.literal] if component.literal is not None else [name for name in os.listdir(path) if component.matches(name)]
    except OSError as error:
        located.failed[path] = error.strerror or str(error)
        return []
    found = []
    for name in names:
        whole = path.rstrip(b"/") + b"/" + name
        try:
            if _is_directory(whole):
                found.append(name)
        except OSError as error:
            located.failed[whole] = error.strerror or str(error)
    return found


def _followed(path: bytes, root: bytes) -> bytes | None:
    """A mailbox may be a symbolic link to a place inside its location; anything else would save what nobody configured."""
    if not os.path.islink(path):
        return path
    real = os.path.realpath(path)
    return real if real.startswith(os.path.realpath(root) + b"/") else None
