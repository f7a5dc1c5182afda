"""Reading a vault that lies in several stores: each object from the nearest store that has it whole (design section 4.5).

Stores are opened when they are first needed, so a box at the end of a slow line costs nothing while the disk beside it answers. What a store lacks, or
has damaged, is looked for behind what may hide it there (`Store.uncover`), then in the next store. That it was needed is remembered as a finding:
somebody should repair the first.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from mailbackup.errors import DamageError, KeyProblem, MailbackupError, StoreError, StoreUnavailable, WrongIdentity
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import ObjectKey
from mailbackup.stores.base import Store

T = TypeVar("T")

Opener = Callable[[], Store]


class Nearest:
    """The stores of a vault that can be read, nearest first. Safe to use from several threads."""

    def __init__(self, sources: Sequence[tuple[str, Opener]]) -> None:
        self._openers = list(sources)
        self._opened: dict[str, Store] = {}
        self._down: dict[str, MailbackupError] = {}  # they did not answer, and are not asked again
        self._lock = threading.RLock()
        self._looking: dict[
            tuple[str, str], threading.Lock
        ] = {}  # one for each object: opening a block may need a key, which is read as well
        self._uncovered: dict[tuple[str, str], int] = {}  # how often
        self._findings: dict[tuple[str, str], Finding] = {}

    @classmethod
    def of(cls, *stores: Store) -> Nearest:
        """Stores that are open."""
        return cls([(store.name, lambda store=store: store) for store in stores])  # type: ignore[misc]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was read from another place than the nearest, and which stores could not be reached."""
        with self._lock:
            return tuple(self._findings.values())

    @property
    def several(self) -> bool:
        """Whether there is more than one store."""
        return len(self._openers) > 1

    def stores(self) -> Iterator[Store]:
        """The stores that answer, nearest first, each opened when its turn comes. Raises what the first says when none does."""
        some = False
        for name, _ in self._openers:
            store = self._open(name)
            if store is not None:
                some = True
                yield store
        if not some:
            raise next(iter(self._down.values()), StoreUnavailable("no store is configured"))

    def first(self) -> Store:
        """The nearest store that answers."""
        return next(self.stores())

    def read(self, key: ObjectKey, attempt: Callable[[Store], T]) -> T:
        """What `attempt` makes of the object in the first store where it succeeds. It raises DamageError or WrongIdentity for an object that is
        missing or not what it should be.

        Raises what the nearest store's object was, else why no store could be asked.
        """
        first: MailbackupError | None = None
        refused: MailbackupError | None = None
        for store in self.stores():
            try:
                value = self._behind(store, key, attempt)
            except (DamageError, WrongIdentity) as error:
                first = first or error
            except StoreError as error:
                self.gave_up(store, error)
                refused = refused or error
            else:
                if first is not None:
                    self._note(key, f"{first.message}; it was read from store {store.name}")
                return value
        raise first or refused or StoreUnavailable("no store could be read")

    def gave_up(self, store: Store, error: StoreError) -> None:
        """A store did not answer: it is not asked again. That it refuses one thing says nothing about others."""
        if isinstance(error, StoreUnavailable) and self.several:
            with self._lock:
                self._down[store.name] = error
            self._note(store.name, error.message, FindingKind.STORE_UNREACHABLE)

    def newer_elsewhere(self, subject: str, detail: str) -> None:
        """Newer snapshots than those that can be read were seen."""
        self._note(subject, detail, FindingKind.STORE_BEHIND)

    def close(self) -> None:
        """Close what was opened."""
        for store in self._opened.values():
            store.close()

    def _behind(self, store: Store, key: ObjectKey, attempt: Callable[[Store], T]) -> T:
        """The object, or the oldest of its versions that will do."""
        name = (store.name, key)
        before = self._uncovered.get(name, 0)
        try:
            return attempt(store)
        except (DamageError, WrongIdentity) as error:
            with self._guard(name):  # what one thread uncovers, all read
                if self._uncovered.get(name, 0) != before:
                    with contextlib.suppress(DamageError, WrongIdentity):
                        return attempt(store)
                while store.uncover(key):
                    self._uncovered[name] = self._uncovered.get(name, 0) + 1
                    try:
                        value = attempt(store)
                    except (DamageError, WrongIdentity):
                        continue
                    self._note(key, f"{error.message}; an older version in store {store.name} is whole", FindingKind.REPLACED)
                    return value
            raise

    def _guard(self, name: tuple[str, str]) -> threading.Lock:
        with self._lock:
            return self._looking.setdefault(name, threading.Lock())

    def _open(self, name: str) -> Store | None:
        with self._lock:
            if name in self._down:
                return None
            if name not in self._opened:
                try:
                    self._opened[name] = dict(self._openers)[name]()
                except (StoreError, KeyProblem) as error:
                    if not self.several:
                        raise
                    self._down[name] = error
                    self._note(name, error.message, FindingKind.STORE_UNREACHABLE)
                    return None
            return self._opened[name]

    def _note(self, subject: str, detail: str, kind: FindingKind = FindingKind.OTHER_STORE) -> None:
        with self._lock:
            self._findings.setdefault((kind, subject), Finding(kind, subject, detail))
