"""The directory below a local store, walked by open folders and never through a symbolic link."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter

from mailbackup.errors import StoreUnavailable
from mailbackup.host import fsync_dir, write_all
from mailbackup.model.ids import VAULT_KEY, show
from mailbackup.stores.base import ObjectStat

TEMP = ".tmp"
MARKER = ".mailbackup-store"  # tells a store from a mount point on which nothing is mounted
LOCK = ".mailbackup-lock"  # see `local_publish`
_NOT_OBJECTS = {TEMP, MARKER, LOCK, "lost+found"}  # at the root only; the last is there when the store is a file system of its own
_DEEPEST = 8  # folders; keys have at most two. What lies deeper is shown as one malformed key, not followed

_MARKER_TEXT = "This directory is a store of mailbackup. Where this file is missing, mailbackup asks whether the disk is mounted.\n"


def make_marked(path: str) -> None:
    """The directory `path`, what is missing above it, and its marker, durably. Raises OSError, or MailbackupError where it cannot be flushed."""
    _make_directory(path)
    with contextlib.suppress(FileExistsError):
        fd = os.open(os.path.join(path, MARKER), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, _MARKER_TEXT.encode())  # for people: that the file exists is what counts, so a torn one will do
            os.fsync(fd)
        finally:
            os.close(fd)
        fsync_dir(path)


def _make_directory(path: str) -> None:
    if os.path.isdir(path):
        return
    above = os.path.dirname(path)
    _make_directory(above)
    with contextlib.suppress(FileExistsError):  # another process was faster; a file in its place fails below
        os.mkdir(path, 0o700)
    fsync_dir(path)
    fsync_dir(above)


def check_marked(root: int, store: str, path: str) -> None:
    """Raises StoreUnavailable when the directory open as `root` has neither a marker nor, as stores made without one, vault.json; OSError."""
    for sign in (MARKER, VAULT_KEY):
        with contextlib.suppress(FileNotFoundError):
            os.stat(sign, dir_fd=root, follow_symlinks=False)
            return
    raise StoreUnavailable(
        f"store {store}: {path} is there, but is no store: neither {MARKER} nor {VAULT_KEY} is in it",
        hint=f"Is the disk mounted? If it is, and this is where the store was: touch {os.path.join(path, MARKER)}",
    )


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
