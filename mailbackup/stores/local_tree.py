"""The directory below a local store, walked by open folders and never through a symbolic link."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter

from mailbackup.model.ids import show
from mailbackup.stores.base import ObjectStat

TEMP = ".tmp"
_NOT_OBJECTS = {TEMP, "lost+found"}  # at the root only; the latter is there when the store is a file system of its own
_DEEPEST = 8  # folders; keys have at most two. What lies deeper is shown as one malformed key, not followed


def enter(above: int, name: str) -> int:
    """The folder `name` in the open folder `above`, opened. Raises NotADirectoryError for a symbolic link."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)


@contextmanager
def entered(above: int, name: str) -> Iterator[int]:
    """`enter` for the body."""
    fd = enter(above, name)
    try:
        yield fd
    finally:
        os.close(fd)


def walk(folder: int, base: str, prefix: str) -> Iterator[tuple[str, ObjectStat]]:
    """Key and stat of all that is not a folder, ordered by key, below the folder open as `folder`.

    `base` is the key of that folder ("" or ending in a slash). Holds the names of one folder of each level in memory. What vanishes
    meanwhile is left out.
    """
    for key, entry in _entries(folder, base):
        if not key.endswith("/") or key.count("/") > _DEEPEST:
            if key.startswith(prefix) and (found := _stat(entry)) is not None:
                yield key, found
        elif key.startswith(prefix) or prefix.startswith(key):
            with entered(folder, entry.name) as below:
                yield from walk(below, key, prefix)


def components(folder: int, base: str, prefix: str) -> Iterator[str]:
    """`Store.prefixes`, without walking more of each component than its first object."""
    for key, entry in _entries(folder, base):
        if not key.endswith("/"):
            continue
        if prefix.startswith(key):
            with entered(folder, entry.name) as below:
                yield from components(below, key, prefix)
        elif key.startswith(prefix):
            with entered(folder, entry.name) as below:
                if next(walk(below, key, prefix), None) is not None:
                    yield key


def _entries(folder: int, base: str) -> list[tuple[str, os.DirEntry[str]]]:
    """What is in a folder, by key. The key of a folder ends in a slash: that gives it its place among all keys (a-b < a/b < ab)."""
    with os.scandir(folder) as found:
        entries = [entry for entry in found if base or entry.name not in _NOT_OBJECTS]
    keyed = ((base + show(os.fsencode(entry.name)), entry) for entry in entries)
    return sorted(((key + "/" if entry.is_dir(follow_symlinks=False) else key, entry) for key, entry in keyed), key=itemgetter(0))


def _stat(entry: os.DirEntry[str]) -> ObjectStat | None:
    try:
        found = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return ObjectStat(found.st_size, found.st_mtime)
