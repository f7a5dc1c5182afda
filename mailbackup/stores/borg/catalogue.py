"""Which archive holds which object: read from the repository alone, and remembered by the archives' ids.

An archive of ours is named `mailbackup-NNNNNNNNNN`. Its comment says what is in it: a JSON list (braces would be placeholders to borg)

    ["mailbackup-1", token, [[key, size], …], [[key, base64], …]]

with a random token of who made it, and, as a spared call, the bytes of the small records. Object `key` lies in the archive as files
`key/000000`, `key/000001`… of at most 4 MiB. Of two archives with the same key the one with the lower number counts, so nothing that comes later
hides an object. The names are the lock: borg refuses one that exists, so of two writers who want the next number one has to look again. Numbers
never come free again: an archive whose objects are all deleted stays, empty.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mailbackup.errors import ObjectDamaged, RecordInvalid
from mailbackup.model.codec import Record, decode, encode
from mailbackup.model.ids import digest
from mailbackup.stores.base import ObjectStat
from mailbackup.stores.borg.answers import ARCHIVE_MISSING, Answered
from mailbackup.stores.borg.command import Borg

FORM = "mailbackup-1"
_NAME = re.compile(r"mailbackup-(\d{10})")
_GLOB = "mailbackup-" + "[0-9]" * 10
_TRIES = 5  # listings while somebody adds archives


class Comment(Record, frozen=True, array_like=True):
    """The comment of an archive."""

    form: str
    token: str
    objects: tuple[tuple[str, int], ...]
    small: tuple[tuple[str, str], ...] = ()


class _Listed(Record, frozen=True):
    name: str
    id: str
    time: str
    comment: str = ""


class _Listing(Record, frozen=True):
    archives: tuple[_Listed, ...]


class _File(Record, frozen=True):
    type: str
    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive of ours: key → size in bytes, in the order of the archive; `small` holds the bytes of some; `time` in seconds since 1970."""

    number: int
    id: str
    time: float
    token: str
    objects: dict[str, int] = field(default_factory=dict)
    small: dict[str, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name in the repository."""
        return archive_name(self.number)


def archive_name(number: int) -> str:
    """The name of an archive of ours."""
    return f"mailbackup-{number:010d}"


def comment_of(token: str, objects: Iterable[tuple[str, int]], small: Iterable[tuple[str, bytes]]) -> str:
    """The comment that `archive_of` reads."""
    kept = tuple((key, base64.b64encode(data).decode()) for key, data in small)
    return encode(Comment(FORM, token, tuple(objects), kept)).decode()


def moment_of(text: str) -> float:
    """borg's time (UTC by our environment) in seconds since 1970. Raises RecordInvalid."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise RecordInvalid(f"time of an archive: {text!r}") from None


class Catalogue:
    """The objects of a repository. `folder` remembers comments between processes; it may be lost or damaged. Safe to use from several threads."""

    def __init__(self, borg: Borg, folder: str) -> None:
        self._borg = borg
        self._folder = folder
        self._archives: dict[str, Archive] = {}
        self._owners: dict[str, Archive] = {}
        self._highest = 0
        self._asked = float("-inf")
        self._lock = threading.Lock()
        os.makedirs(folder, mode=0o700, exist_ok=True)

    # ------------------------------------------------------------ asking what is known

    @property
    def next_number(self) -> int:
        """One more than the highest number that is known."""
        return self._highest + 1

    def find(self, key: str) -> Archive | None:
        """The archive whose object of this key counts."""
        return self._owners.get(key)

    def items(self) -> list[tuple[str, ObjectStat]]:
        """All objects, in no order."""
        return [(key, ObjectStat(archive.objects[key], archive.time)) for key, archive in self._owners.items()]

    def archives(self) -> list[Archive]:
        """All archives, by number."""
        return sorted(self._archives.values(), key=lambda archive: archive.number)

    # ------------------------------------------------------------ learning

    def add(self, archive: Archive) -> None:
        """An archive that this process has made."""
        with self._lock:
            self._remember(archive)
            self._set({**self._archives, archive.id: archive}, max(self._highest, archive.number))

    def refresh(self, expected: tuple[str, ...] = ()) -> None:
        """Look at the repository. Raises as `Borg.run` does, Answered for a message id in `expected`."""
        wanted = time.monotonic()
        with self._lock:
            if self._asked < wanted:  # else a listing that began after the call serves as well
                begun = time.monotonic()
                self._load(expected)
                self._asked = begun

    def _load(self, expected: tuple[str, ...]) -> None:
        listed = self._listed((), expected)
        known = {found.id: archive for found in listed if (archive := self._known(found)) is not None}
        for _ in range(_TRIES):
            unknown = [found for found in listed if found.id not in known]
            if not unknown:
                break
            commented = self._commented(unknown, listed)
            known |= {found.id: self._read(found) for found in commented if found.id not in known}
            listed = list(({found.name: found for found in listed} | {found.name: found for found in commented}).values())
        self._set(
            {found.id: known[found.id] for found in listed if found.id in known}, max((_number(found) for found in listed), default=0)
        )
        self._forget()

    def _listed(self, options: tuple[str, ...], expected: tuple[str, ...] = ()) -> list[_Listed]:
        answer = self._borg.run("list", "--json", "--sort-by", "name", "--glob-archives", _GLOB, *options, expected=expected)
        return [found for found in decode(answer, _Listing, "listing of borg").archives if _NAME.fullmatch(found.name)]

    def _commented(self, unknown: list[_Listed], listed: list[_Listed]) -> list[_Listed]:
        """The archives from the first unknown one on, with comments: borg loads each, so those before are left alone."""
        first = min(found.name for found in unknown)
        count = sum(found.name >= first for found in listed)
        try:
            found = self._listed(("--last", str(count), "--format", "{comment}"))
        except ObjectDamaged:  # one cannot be read: ask for each, so that it does not hide the others
            return [self._commented_alone(each) for each in listed if each.name >= first]
        return [each for each in found if each.name >= first]

    def _commented_alone(self, found: _Listed) -> _Listed:
        with contextlib.suppress(ObjectDamaged):
            answer = self._borg.run("list", "--json", "--glob-archives", found.name, "--format", "{comment}")
            return next(iter(decode(answer, _Listing, "listing of borg").archives), found)
        return found

    def _read(self, found: _Listed) -> Archive:
        with contextlib.suppress(RecordInvalid):
            archive = archive_of(found)
            self._remember(archive, found.comment)
            return archive
        return Archive(_number(found), found.id, moment_of(found.time), "", files_of(self._borg, found.name))

    def _set(self, archives: dict[str, Archive], highest: int) -> None:
        owners: dict[str, Archive] = {}
        for archive in sorted(archives.values(), key=lambda archive: archive.number):
            for key in archive.objects:
                owners.setdefault(key, archive)
        self._archives, self._owners, self._highest = archives, owners, highest

    # ------------------------------------------------------------ remembering

    def _known(self, found: _Listed) -> Archive | None:
        if found.id in self._archives:
            return self._archives[found.id]
        with contextlib.suppress(OSError, RecordInvalid, ValueError), open(os.path.join(self._folder, found.id), "rb") as file:
            total, _, comment = file.read().partition(b"\n")
            if total.decode() == digest(comment):
                return archive_of(_Listed(found.name, found.id, found.time, comment.decode()))
        return None

    def _remember(self, archive: Archive, comment: str | None = None) -> None:
        text = comment if comment is not None else comment_of(archive.token, archive.objects.items(), archive.small.items())
        with (
            contextlib.suppress(OSError),
            open(os.path.join(self._folder, archive.id), "wb") as file,
        ):  # a cache: what is lost is read again
            file.write(digest(text.encode()).encode() + b"\n" + text.encode())

    def _forget(self) -> None:
        with contextlib.suppress(OSError):
            for name in set(os.listdir(self._folder)) - set(self._archives):
                os.unlink(os.path.join(self._folder, name))


def archive_of(found: _Listed) -> Archive:
    """The archive that a listing with comments shows. Raises RecordInvalid."""
    comment = decode(found.comment, Comment, f"comment of {found.name}")
    if comment.form != FORM or any(size < 0 for _, size in comment.objects):
        raise RecordInvalid(f"comment of {found.name}: unknown form")
    objects = dict(comment.objects)
    try:
        small = {key: base64.b64decode(data, validate=True) for key, data in comment.small}
    except binascii.Error as error:
        raise RecordInvalid(f"comment of {found.name}: {error}") from None
    small = {key: data for key, data in small.items() if objects.get(key) == len(data)}
    return Archive(_number(found), found.id, moment_of(found.time), comment.token, objects, small)


def files_of(borg: Borg, name: str) -> dict[str, int]:
    """Key and bytes of what an archive holds, whatever its comment says. Nothing when it is gone or cannot be read: then its objects are missing."""
    objects: dict[str, int] = {}
    with contextlib.suppress(ObjectDamaged, Answered):
        answer = borg.run("list", "--json-lines", "--format", "{size}", archive=name, expected=(ARCHIVE_MISSING,))
        for line in answer.splitlines():
            with contextlib.suppress(RecordInvalid):  # a name that is not UTF-8 was never one of our objects
                found = decode(line, _File, f"listing of {name}")
                if found.type == "-":
                    key = found.path.rpartition("/")[0] or found.path
                    objects[key] = objects.get(key, 0) + found.size
    return objects


def _number(found: _Listed) -> int:
    return int(found.name.rpartition("-")[2])
