"""The stores of one vault, and which of them a run writes to (design sections 4.5.4 and 9).

Every store gets the same bytes. A run writes to the stores that stand at the head of the ledger; one that does not answer, or answers with an error, is
left out from then on with the reason, and a store that is behind gets what it lacks afterwards, from the others (`upkeep.copying`), in the order in which
it was written. So a store holds the whole ledger up to its head at any time, and which store is behind needs no bookkeeping: the ledgers say it.

No Store is made of several: that would hide from those who write which store has what.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from mailbackup.errors import (
    ChainBroken,
    ConflictError,
    DamageError,
    KeyExists,
    KeyProblem,
    MailbackupError,
    NoSpace,
    ObjectDamaged,
    ObjectMissing,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from mailbackup.model.ids import VAULT_KEY, Digest, ObjectKey, digest
from mailbackup.model.ledger import Anchors
from mailbackup.model.tree import RECORD_LIMIT
from mailbackup.stores.base import ObjectWriter, Store
from mailbackup.vault.chain import check_head, check_vault_info, find_head, read_raw
from mailbackup.vault.state import State

OWN_FAULT = (StoreError, NoSpace)
"""What says that one store cannot go on, and nothing about the others."""


@dataclass(slots=True)
class Replica:
    """One store of the vault. `store` None = it could not be opened, because of `error`; `error` = why this run does not write to it (any more).

    `head` is the number of its last entry; `behind` = that is not the head of the vault.
    """

    name: str
    store: Store | None
    error: MailbackupError | None = None
    head: int = 0
    behind: bool = False

    @property
    def current(self) -> bool:
        """Whether this run writes to it."""
        return self.store is not None and self.error is None and not self.behind


class Replicas:
    """All stores of a vault, in the order of the configuration, which is the order of their nearness."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = tuple(replicas)
        self._outbox: Store | None = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, *stores: Store) -> Replicas:
        """Stores that are open."""
        return cls([Replica(store.name, store) for store in stores])

    def use_outbox(self, outbox: Store | None) -> None:
        """Put everything into `outbox` as well from now on: no store that could serve those that are away can be read."""
        self._outbox = outbox

    @property
    def current(self) -> list[Store]:
        """The stores that this run writes to."""
        return [replica.store for replica in self.replicas if replica.current and replica.store is not None]

    @property
    def reference(self) -> Store:
        """The nearest of them. Raises what keeps the first store away when there is none."""
        current = self.current
        if current:
            return current[0]
        raise self._why_none()

    def _why_none(self) -> MailbackupError:
        for replica in self.replicas:
            if replica.error is not None:
                return replica.error
        names = " and ".join(f"store {replica.name}" for replica in self.replicas)
        return StoreUnavailable(
            f"the last entries of the ledger are missing in {names}, and no other store has them now",
            hint="Bring back the store that has them. If it is lost for good, take it out of the configuration and move the state (state.db*) aside: the"
            " next run goes on from what is left, and sends everything once more.",
        )

    def leave_out(self, store: Store, error: MailbackupError) -> None:
        """This run does not write to a store any more. Raises `error` when none is left."""
        with self._lock:
            for replica in self.replicas:
                if replica.store is store and replica.error is None:
                    replica.error = error
        if not self.current:
            raise error

    def give_up(self, store: Store, error: MailbackupError) -> None:
        """`leave_out`, also for the outbox, without which a run goes on."""
        if store is self._outbox:
            self._outbox = None
        else:
            self.leave_out(store, error)

    # ------------------------------------------------------------ who stands where

    def align(self, state: State, anchors: Anchors) -> None:
        """Ask every store for its head, and see which of them stand where the state does, or further. What is wrong with a store is its `error`."""
        pinned = state.head or anchors.head
        for replica in self.replicas:
            if replica.store is None or replica.error is not None:
                continue
            try:
                check_vault_info(replica.store, anchors)
                replica.head = self._checked_head(replica.store, state, anchors, pinned)
                replica.behind = pinned is not None and replica.head < pinned[0]
            except (*OWN_FAULT, DamageError, KeyProblem, ConflictError) as error:
                replica.error = self._in_words(replica, error)

    def _checked_head(self, store: Store, state: State, anchors: Anchors, pinned: tuple[int, Digest] | None) -> int:
        """The head of a store, which must hold the entry that it was seen with, and the pinned one if it gets that far."""
        head = find_head(store)
        if head == 0 and len(self.replicas) > 1 and state.store_head(store.name) is None:
            hint = f"If it is being filled: 'mailbackup copy --to {store.name}' goes on."
            raise StoreError(f"store {store.name} holds the beginning of a vault, and no entry", hint=hint)
        if head == 0:
            raise ChainBroken(f"store {store.name}: the vault has no ledger")
        own = state.store_head(store.name) or (pinned if len(self.replicas) == 1 else None)
        check_head(head, Anchors(vault=anchors.vault, admin=anchors.admin, head=own))
        if own is not None and digest(read_raw(store, own[0])) != own[1]:
            raise ChainBroken(f"entry {own[0]} of store {store.name} is not the one that was written: the ledger was replaced")
        if pinned is not None and pinned != own and pinned[0] <= head and digest(read_raw(store, pinned[0])) != pinned[1]:
            raise _forked(store.name, pinned[0])
        return head

    def _in_words(self, replica: Replica, error: MailbackupError) -> MailbackupError:
        if len(self.replicas) > 1 and isinstance(error, ObjectMissing) and VAULT_KEY in error.message:
            hint = f"If it is a new store: 'mailbackup copy --to {replica.name}' fills it."
            return StoreError(f"store {replica.name} holds no vault", hint=hint)
        return error

    def settle_heads(self) -> tuple[Store, int]:
        """After what was pending was put: the store to follow, the nearest of those with the longest ledger, and its head. Others are behind.

        Raises ConflictError when two stores hold different entries under the head's number, what keeps the first away when there is none.
        """
        while True:
            longest = max((replica.head for replica in self.replicas if replica.current), default=0)
            for replica in self.replicas:
                replica.behind |= replica.current and replica.head < longest
            first, others = self.reference, self.current[1:]
            try:
                raw = read_raw(first, longest) if others else b""
            except OWN_FAULT as error:
                self.leave_out(first, error)
                continue
            for other in others:
                self._try(other, partial(self._check_same, other, longest, raw, first.name))
            return first, longest

    @staticmethod
    def _check_same(store: Store, seq: int, raw: bytes, first: str) -> None:
        if read_raw(store, seq) != raw:
            raise _forked(f"{first} and {store.name}", seq)

    # ------------------------------------------------------------ writing

    def each(self, action: Callable[[Store], None]) -> None:
        """Do something to every store that this run writes to. One that fails by its own fault is left out; raises when none is left."""
        for store in self.current:
            self._try(store, partial(action, store))

    def _try(self, store: Store, action: Callable[[], None]) -> None:
        try:
            action()
        except KeyExists:
            raise
        except (*OWN_FAULT, DamageError) as error:
            self.leave_out(store, error)

    def put_same(self, key: ObjectKey, data: bytes) -> None:
        """Create an object in every store; one with the same bytes is success. Raises ConflictError for other bytes."""
        self.keep(key, data)
        self.each(lambda store: put_same(store, key, data))

    def keep(self, key: ObjectKey, data: bytes) -> None:
        """Put an object into the outbox, if there is one. That it is full costs a later copy, no backup."""
        if self._outbox is not None:
            try:
                put_same(self._outbox, key, data)
            except (*OWN_FAULT, ConflictError):
                self._outbox = None

    def create(self, key: ObjectKey) -> AbstractContextManager[ObjectWriter]:
        """A writer for a large object in every store."""
        return self._writing(key)

    @contextmanager
    def _writing(self, key: ObjectKey) -> Iterator[ObjectWriter]:
        with ExitStack() as stack:
            writer = _Everywhere(self)
            if self._outbox is not None:
                writer.add(self._outbox, stack, key)
            for store in self.current:
                writer.add(store, stack, key)
            yield writer

    @property
    def parallel(self) -> int:
        """Objects at once that pay off."""
        return max((store.traits.parallel for store in self.current), default=1)


class _Everywhere:
    """Writes one object to several stores. For one thread at a time."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas
        self._writers: dict[Store, ObjectWriter] = {}

    def add(self, store: Store, stack: ExitStack, key: ObjectKey) -> None:
        """Open the object in a store."""
        self._try(store, lambda: self._writers.update({store: stack.enter_context(store.create(key))}))

    def write(self, data: bytes | memoryview) -> None:
        """See `ObjectWriter.write`: raises only when no store is left."""
        for store, writer in list(self._writers.items()):
            self._try(store, partial(writer.write, data))

    def commit(self) -> None:
        """See `ObjectWriter.commit`."""
        for store, writer in list(self._writers.items()):
            self._try(store, writer.commit)

    def abort(self) -> None:
        """See `ObjectWriter.abort`."""
        for writer in self._writers.values():
            writer.abort()

    def _try(self, store: Store, action: Callable[[], None]) -> None:
        try:
            action()
        except KeyExists:
            raise
        except (*OWN_FAULT, DamageError) as error:
            self._writers.pop(store, None)
            self._replicas.give_up(store, error)


def _forked(names: str, seq: int) -> ConflictError:
    return ConflictError(
        f"store {names}: entry {seq} is not the same everywhere: the vault was written to from two sides",
        hint="Keep all stores as they are. Decide which counts, take the other out of the configuration, and fill a new one with 'mailbackup copy'.",
    )


def put_same(store: Store, key: ObjectKey, data: bytes) -> None:
    """Create an object; one with the same bytes is success (an answer was lost). Raises ConflictError for other bytes."""
    try:
        store.put(key, data)
    except KeyExists:
        if not _holds(store, key, data):
            raise ConflictError(f"{key}: the store {store.name} already holds another object under this key") from None


def _holds(store: Store, key: ObjectKey, data: bytes) -> bool:
    """Whether an object is these bytes. Where this host may not read it, the hash in its key decides: nobody but its writer knew it before."""
    try:
        return store.get(key, max(RECORD_LIMIT, len(data))) == data
    except StoreRefused:
        if key.startswith(("snapshots/", "lists/")):
            return digest(data)[:16] in key
        raise


def copy_object(sources: Sequence[Store], target: Store, key: ObjectKey, sha256: Digest) -> int:
    """Copy an object from the first store that holds it whole; the bytes. One that is in the target is left as it is.

    Raises ObjectMissing or ObjectDamaged when no source has it with this hash, and what the target raises.
    """
    error: MailbackupError = ObjectMissing(f"{key} is in no store that can be read")
    for source in sources:
        try:
            return _copy_from(source, target, key, sha256)
        except _SourceFailed as failed:
            error = failed.error if not isinstance(error, ObjectDamaged) else error
    raise error


class _SourceFailed(Exception):
    """This source does not give the object; another one may."""

    def __init__(self, error: MailbackupError) -> None:
        super().__init__(error.message)
        self.error = error


def _copy_from(source: Store, target: Store, key: ObjectKey, sha256: Digest) -> int:
    found, size = hashlib.sha256(), 0
    with target.create(key) as writer:
        for piece in _pieces(source, key):
            found.update(piece)
            size += len(piece)
            writer.write(piece)
        if found.hexdigest() != sha256:
            raise _SourceFailed(ObjectDamaged(f"{key} in store {source.name} is not the object that the ledger names"))
        try:
            writer.commit()
        except KeyExists:
            if not _same(target, key, size, sha256):
                raise ConflictError(f"{key}: store {target.name} holds another object under this key") from None
            return 0
    return size


def _same(store: Store, key: ObjectKey, size: int, sha256: Digest) -> bool:
    """Whether an object is the one with this hash; where this host may not read it, whether it has this size."""
    found = hashlib.sha256()
    try:
        for piece in store.stream(key):
            found.update(piece)
    except StoreRefused:
        return any(stat.size == size for _, stat in store.list(key))
    return found.hexdigest() == sha256


def _pieces(source: Store, key: ObjectKey) -> Iterator[bytes]:
    try:
        yield from source.stream(key)
    except (*OWN_FAULT, DamageError) as error:
        raise _SourceFailed(error) from None
