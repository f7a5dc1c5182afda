"""Finding the mailboxes of a location on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from mailbackup.capture.mailbox import FoundMailbox
from mailbackup.mail.pattern import Component, Pattern, address, key
from mailbackup.model.options import MailConfig


@dataclass(slots=True)
class Located:
    """The mailboxes of one location, and directories on the way to them that could not be listed, with the reason."""

    mailboxes: list[FoundMailbox] = field(default_factory=list)
    failed: dict[bytes, str] = field(default_factory=dict)


def locate(config: MailConfig, host: str) -> Located:
    """Look for mailboxes where the pattern says. A directory counts when it has a `cur` or a `new`, itself or in a folder below it."""
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
    """Whether a directory is a Maildir."""
    return os.path.isdir(path + b"/cur") or os.path.isdir(path + b"/new")


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
    if component.literal is not None:
        return [component.literal] if os.path.isdir(path + b"/" + component.literal) else []
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if component.matches(entry.name) and entry.is_dir()]
    except OSError as error:
        located.failed[path] = error.strerror or str(error)
        return []


def _followed(path: bytes, root: bytes) -> bytes | None:
    """A mailbox may be a symbolic link to a place inside its location; anything else would save what nobody configured."""
    if not os.path.islink(path):
        return path
    real = os.path.realpath(path)
    return real if real.startswith(os.path.realpath(root) + b"/") else None
