"""Which version of an object is read, in a bucket that keeps versions.

Objects are written once, so the oldest version is the genuine one. A later one, or a delete marker, is what somebody did to it. Listings show the
oldest; reads without a listing ask for the current one, which costs no request, and `uncover` looks behind it when that is not what it should be.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any

from mailbackup.stores.base import Shadow


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an object, or a delete marker. `name` is its name in the bucket."""

    name: str
    id: str
    latest: bool
    marker: bool
    size: int
    time: datetime


def versions_of(page: dict[str, Any]) -> Iterator[Version]:
    """A page of a listing in one sequence: by name, the newest of each name first. A plain listing shows one version, which has no id."""
    plain = [Version(raw["Key"], "", True, False, raw["Size"], raw["LastModified"]) for raw in page.get("Contents", ())]
    found = [_version(raw, marker=False) for raw in page.get("Versions", ())]
    markers = [_version(raw, marker=True) for raw in page.get("DeleteMarkers", ())]
    return heapq.merge(plain, found, markers, key=attrgetter("name"))


def _version(raw: dict[str, Any], *, marker: bool) -> Version:
    return Version(raw["Key"], raw["VersionId"], bool(raw["IsLatest"]), marker, raw.get("Size", 0), raw["LastModified"])


def by_name(versions: Iterator[Version]) -> Iterator[tuple[str, tuple[Version, ...]]]:
    """Name → its versions and markers."""
    for name, found in groupby(versions, attrgetter("name")):
        yield name, tuple(found)


def oldest_first(found: Sequence[Version]) -> list[Version]:
    """The real versions. Services list the newest first."""
    return [version for version in reversed(found) if not version.marker]


def shadow_of(found: Sequence[Version]) -> Shadow | None:
    """What somebody did to an object that has these versions and markers; None when nothing."""
    genuine = oldest_first(found)
    if not genuine:
        return "lost" if found else None
    if any(version.marker for version in found):
        return "hidden"
    return "replaced" if len(genuine) > 1 else None


class Chosen:
    """Which version of which object is read. Only objects that somebody interfered with are in here."""

    def __init__(self) -> None:
        self._reads: dict[str, str] = {}
        self._shown: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def parameters(self, name: str) -> dict[str, str]:
        """What has to be added to a read of this object."""
        version = self._reads.get(name)
        return {} if version is None else {"VersionId": version}

    def listed(self, name: str, found: Sequence[Version]) -> Version | None:
        """The version of this object that a listing shows; None when nothing but markers is left."""
        genuine = oldest_first(found)
        if not genuine:
            return None
        with self._lock:
            if len(found) > 1 and name not in self._reads:
                self._choose(name, genuine[0])
            chosen = self._reads.get(name)
        return next((version for version in genuine if version.id == chosen), genuine[0])

    def uncover(self, name: str, found: Sequence[Version]) -> bool:
        """Choose the oldest version that was not shown yet. False when all were."""
        with self._lock:
            shown = self._shown.get(name, set()) or {version.id for version in found if version.latest}
            genuine = oldest_first(found)
            fresh = next((version for version in genuine if version.id not in shown), None)
            if fresh is None:
                if len(genuine) > 1:
                    self._choose(name, genuine[0])  # none would do: then the oldest is what there is to say something about
                return False
            self._shown[name] = set(shown)
            self._choose(name, fresh)
            return True

    def forget(self, name: str) -> None:
        """After all versions of an object were deleted."""
        with self._lock:
            self._reads.pop(name, None)
            self._shown.pop(name, None)

    def _choose(self, name: str, version: Version) -> None:
        self._reads[name] = version.id
        self._shown.setdefault(name, set()).add(version.id)
