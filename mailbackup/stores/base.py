"""The contract of a store: a flat set of immutable objects under well-formed keys.

Every obligation here is a test of `mailbackup.testing.store_contract.StoreContract`, which each store passes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from mailbackup.model.ids import ObjectKey


@dataclass(frozen=True, slots=True)
class StoreTraits:
    """What a store can do, as data: asked by those who depend on it, never guessed from its type."""

    range_reads: bool  # get_range reads little more than it returns
    create_only: bool  # put refuses an existing key atomically, also against another process
    durable_after_put: bool  # an object is durable, and visible to others, once put has returned; else once `flush` has
    trusted_time: bool = False  # stat().time is the store's, not the writer's
    versions: bool = False  # what is replaced or deleted stays behind, see `Store.uncover`
    object_lock: bool = False  # objects cannot be removed before a date, see `Store.locked_until`
    lock_days: int = 0  # for how long a new object is locked
    delete_granularity: Literal["object", "compaction"] = (
        "object"  # a deleted object frees its bytes, or somebody who compacts the store does
    )
    parallel: int = 1  # requests at once that pay off
    request_cost: int = 0  # bytes that come in the time that a further request takes


Shadow = Literal["replaced", "hidden", "lost"]
"""What somebody did to an object: another version in front of it, a delete marker in front of it, a marker with nothing behind it any more."""


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """Size in bytes and the time (seconds since 1970) at which the store says it got the object."""

    size: int
    time: float


class ObjectWriter(Protocol):
    """An object being written. Nothing is visible under its key before `commit`."""

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes. Raises StoreUnavailable, StoreRefused or NoSpace; the object is then aborted."""

    def commit(self) -> None:
        """Make the object visible, whole and durable, or raise and leave nothing visible. Raises KeyExists as `put` does."""

    def abort(self) -> None:
        """Drop what was written. Never raises; harmless after commit."""


class Store(Protocol):
    """Where objects go. Safe to use from several threads."""

    name: str

    @property
    def traits(self) -> StoreTraits:
        """What it can do."""

    def put(self, key: ObjectKey, data: bytes) -> None:
        """Create the object, whole and durable.

        Raises KeyExists when the key exists, whatever its bytes, and changes nothing then; ValueError for a malformed key; StoreUnavailable,
        StoreRefused or NoSpace, and then either the whole object exists (a lost answer) or nothing does. A put that the store itself repeats after
        a lost answer is no KeyExists. Entries of the ledger and acts are durable at once, with all that was put before them, in every store.
        """

    def create(self, key: ObjectKey) -> AbstractContextManager[ObjectWriter]:
        """A writer for a large object. Leaving the context without commit aborts."""

    def flush(self) -> None:
        """Make everything that was put durable and visible to others, in the order in which it was put. Nothing to do where puts are durable.

        Raises as `put` does; KeyExists when somebody else put one of the keys first, and then none of what was waiting exists.
        """

    def get(self, key: ObjectKey, limit: int) -> bytes:
        """The whole object. Raises ObjectMissing when absent, ObjectDamaged when it is longer than `limit` bytes."""

    def get_range(self, key: ObjectKey, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. Raises ObjectMissing when absent, ObjectDamaged when the object is too short."""

    def stream(self, key: ObjectKey, chunk: int = 1 << 20) -> Iterator[bytes]:
        """The object in pieces of at most `chunk` bytes, in order. Raises ObjectMissing when absent."""

    def stat(self, key: ObjectKey) -> ObjectStat:
        """Size and time. Raises ObjectMissing when absent."""

    def list(self, prefix: str = "") -> Iterator[tuple[str, ObjectStat]]:
        """All objects whose key begins with `prefix`, in the order of their keys, also ones whose key is malformed.

        An unfinished object is never listed. An absent prefix is an empty listing. Raises StoreUnavailable when the store is not there.
        """

    def prefixes(self, prefix: str) -> tuple[str, ...]:
        """The distinct next path components below `prefix` that hold objects (`ledger/` → `ledger/0000000000/`), sorted."""

    def now(self) -> float:
        """Seconds since 1970 by the clock that gives objects their times: the store's own where the trait `trusted_time` holds."""

    def uncover(self, key: ObjectKey) -> bool:
        """Look behind what may hide or replace an object: called by a reader to whom `key` is missing, or is not what it should be.

        From now on this store reads the oldest version of `key` that it has not shown yet. Objects are written once, so the oldest is the
        genuine one, and a newer one or a delete marker is what somebody did to it. False when there is none, as in a store without versions.
        Listings of a store with versions show each key once, with the oldest version, also one that a marker hides.
        """

    def shadows(self, prefix: str = "") -> Iterator[tuple[str, Shadow]]:
        """The objects below `prefix` that somebody replaced or hid, in the order of their keys: more than one version, or a delete marker.

        Nothing in a store without versions. Costs a listing.
        """

    def locked_until(self, key: ObjectKey) -> float | None:
        """The date (seconds since 1970) before which the genuine (oldest) version of an object cannot be removed, None when nothing holds it.

        None in a store without `object_lock`. Raises ObjectMissing when absent, StoreRefused when these credentials may not ask.
        """

    def lock_until(self, key: ObjectKey, time: float) -> None:
        """Have that version held until `time` at least; a lock that lasts longer stays as it is. Nothing happens in a store without `object_lock`.

        Raises ObjectMissing, and StoreRefused when these credentials may not.
        """

    def delete(self, key: ObjectKey) -> None:
        """Remove the object with all its versions. An absent key is success. Raises StoreRefused while a lock protects it."""

    def close(self) -> None:
        """Release what the store holds; what was put and not flushed is dropped."""
