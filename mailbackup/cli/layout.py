"""Which pattern fits a directory with mail, and whether two Maildirs hold the same messages: what quickstart needs to know by itself.

Nothing is opened for writing here: the mail may be somebody's only copy.
"""

from __future__ import annotations

import filecmp
import os
from collections import Counter
from dataclasses import dataclass

from mailbackup.errors import NotFound, SourceError
from mailbackup.mail.maildir import is_message, split_name
from mailbackup.mail.pattern import Pattern

_DEPTH = 3
_USUAL = (b"Maildir", b"maildir", b".maildir", b"mail", b"Mail")  # names that are part of a layout and nobody's name

Names = tuple[bytes, ...]
Messages = dict[tuple[bytes, bytes], bytes]  # (folder, base name) → path


@dataclass(frozen=True, slots=True)
class Layout:
    """A pattern, the mailboxes that fit it (names below the pattern's root → path), and how many others were seen."""

    pattern: Pattern
    mailboxes: dict[Names, bytes]
    others: int = 0


def find_layout(root: str) -> Layout:
    """The pattern that fits the most mailboxes under `root`, or `root` itself.

    Raises NotFound when there is no Maildir, SourceError when `root` cannot be listed.
    """
    top = os.fsencode(os.path.abspath(root))
    if not os.path.isdir(top):
        raise NotFound(f"{root} is not a directory", hint="Name the directory that holds the mailboxes.")
    if _is_maildir(top):
        return _single(top)
    found = _maildirs(top, (), os.listdir(top) if os.access(top, os.R_OK | os.X_OK) else _cannot(root))
    if not found:
        raise NotFound(f"no Maildir below {root} (looked {_DEPTH} levels deep)", hint="Name a directory such as /var/vmail or ~/Maildir.")
    shapes = Counter(_shape(names) for names in found)
    best, count = max(shapes.items(), key=lambda item: item[1])
    fitting = {names: path for names, path in found.items() if _shape(names) == best}
    return Layout(Pattern.parse("/".join([os.fsdecode(top).rstrip("/"), *best])), fitting, len(found) - count)


def _cannot(root: str) -> list[bytes]:
    raise SourceError(f"cannot list {root}")


def _is_maildir(path: bytes) -> bool:
    return os.path.isdir(path + b"/cur") and os.path.isdir(path + b"/new")


def _maildirs(path: bytes, names: Names, children: list[bytes]) -> dict[Names, bytes]:
    """Maildirs below `path`; what is below a Maildir are its folders. Directories that cannot be listed are passed over."""
    found: dict[Names, bytes] = {}
    for name in sorted(children):
        below = os.path.join(path, name)
        if os.path.islink(below) or not os.path.isdir(below):
            continue
        if _is_maildir(below):
            found[*names, name] = below
        elif len(names) + 1 < _DEPTH and os.access(below, os.R_OK | os.X_OK):
            found.update(_maildirs(below, (*names, name), os.listdir(below)))
    return found


def _shape(names: Names) -> tuple[str, ...]:
    """`(example.org, ann, Maildir)` → `({domain}, {user}, Maildir)`."""
    literal = (os.fsdecode(names[-1]),) if len(names) > 1 and names[-1] in _USUAL else ()
    free = len(names) - len(literal)
    return (*(("*", "{domain}", "{user}")[-free:]), *literal)


def _single(top: bytes) -> Layout:
    """A pattern that matches this one Maildir and no neighbour of it: `/home/{user}/Maildir`, else `/home/ann/{user}`."""
    parent, base = os.path.split(top)
    above, owner = os.path.split(parent)
    if owner and base in _USUAL and os.access(above, os.R_OK) and not _neighbours(above, base, besides=owner):
        return Layout(Pattern.parse(os.fsdecode(os.path.join(above, b"{user}", base))), {(owner, base): top})
    if base and os.access(parent, os.R_OK) and not _neighbours(parent, b"", besides=base):
        return Layout(Pattern.parse(os.fsdecode(os.path.join(parent, b"{user}"))), {(base,): top})
    raise NotFound(f"{os.fsdecode(top)} lies beside other Maildirs", hint=f"Name {os.fsdecode(parent)}: all of them are saved then.")


def _neighbours(parent: bytes, below: bytes, *, besides: bytes) -> bool:
    """Whether `parent` has other children with a Maildir at `below`; what cannot be looked into may have one."""
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        if name != besides and os.path.isdir(path) and (not os.access(path, os.X_OK) or _is_maildir(os.path.join(path, below))):
            return True
    return False


@dataclass(frozen=True, slots=True)
class Comparison:
    """Messages that are equal byte for byte, that differ, and that only one side has."""

    equal: int
    bytes: int
    different: int
    only_source: int
    only_copy: int


def compare(source: bytes, copy: bytes) -> Comparison:
    """Compare two Maildirs by what is in each folder under each base name. Flags are not content and may differ."""
    left, right = messages_of(source), messages_of(copy)
    equal = size = different = gone = 0
    for name in left.keys() & right.keys():
        try:
            same = filecmp.cmp(left[name], right[name], shallow=False)
        except FileNotFoundError:  # renamed or deleted by its owner at this moment
            gone += 1
            continue
        equal, size, different = equal + same, size + os.path.getsize(right[name]), different + (not same)
    return Comparison(equal, size, different, len(left.keys() - right.keys()), len(right.keys() - left.keys()) + gone)


def messages_of(maildir: bytes) -> Messages:
    """All messages of a Maildir and its folders."""
    found: Messages = {}
    for directory, _, files in os.walk(maildir):
        if os.path.basename(directory) in (b"cur", b"new"):
            folder = os.path.relpath(os.path.dirname(directory), maildir)
            found |= {(folder, split_name(name)[0]): os.path.join(directory, name) for name in files if is_message(name)}
    return found
