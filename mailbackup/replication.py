"""What several stores mean for a run: who is written to, who is brought up afterwards, what is kept here meanwhile, and what is said of each."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence

from mailbackup.access import Context, Traffic, open_place, store_dir, writer_key
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import (
    ConflictError,
    DamageError,
    KeyProblem,
    MailbackupError,
    NotFound,
    StoreError,
    StoreRefused,
    UsageError,
)
from mailbackup.host import remove_tree, run_lock
from mailbackup.model.events import Stop, never
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import PublicKey, pack_key
from mailbackup.model.ledger import Anchors
from mailbackup.model.results import CopyResult, StoreOutcome
from mailbackup.stores.base import Store
from mailbackup.stores.counted import CountedStore
from mailbackup.stores.local import LocalStore
from mailbackup.stores.locate import open_store
from mailbackup.upkeep.copying import copy
from mailbackup.vault.chain import find_head
from mailbackup.vault.replay import start
from mailbackup.vault.replicas import Replica, Replicas
from mailbackup.vault.state import State
from mailbackup.vault.statefile import remembered

OUTBOX_BYTES = 4 << 30
"""What may wait on this host for a store that is away, while none of the others can be read."""

_OUTBOX = "outbox"


class Replication:
    """The stores of one run. `begin` before it writes, `finish` after its commit."""

    def __init__(self, context: Context, replicas: Replicas, traffic: Traffic, anchors: Anchors, stop: Stop) -> None:
        self.replicas = replicas
        self._context = context
        self._traffic = traffic
        self._anchors = anchors
        self._stop = stop
        self._before: dict[str, int] = {}
        self._said: dict[str, MailbackupError] = {}

    def begin(self, state: State, writer: PublicKey) -> list[Finding]:
        """Bring the state to the head of the vault (`vault.replay.start`). When no store stands there, one that is behind gets what waits in the outbox."""
        try:
            findings = start(self.replicas, state, self._anchors, writer)
        except StoreError:
            if not self._from_outbox(state):
                raise
            findings = start(self.replicas, state, self._anchors, writer)
        for replica in self.replicas.replicas:
            seen = state.store_head(replica.name)
            if replica.head == 0 and seen is not None:  # it could not be asked
                replica.head = seen[0]
        self._before = {replica.name: replica.head for replica in self.replicas.replicas}
        if len(self.replicas.replicas) > 1 and not self._readable(state):
            self.replicas.use_outbox(_open_outbox(self._context, create=True))
        return findings

    def _from_outbox(self, state: State) -> bool:
        """Whether a store that was behind could be brought up from the outbox."""
        outbox = _open_outbox(self._context)
        behind = [replica for replica in self.replicas.replicas if replica.behind and replica.error is None]
        if outbox is None or not behind or state.head is None:
            return False
        with contextlib.closing(outbox):
            for replica in behind:
                self._bring_up(replica, [outbox])
        for replica in behind:
            replica.behind = replica.head < state.head[0]
        return any(replica.current for replica in self.replicas.replicas)

    def _readable(self, state: State) -> bool:
        """Whether this host can read packs in a store that it writes to: then that store serves those that are away."""
        pack = next((row.id for _, row in state.pack_rows()), None)
        if pack is None:
            return True  # nothing says that it cannot
        for store in self.replicas.current:
            try:
                store.get_range(pack_key(pack), 0, 1)
            except StoreRefused:
                continue
            except (StoreError, DamageError):
                return True  # what is wrong there is found by others
            return True
        return False

    def finish(self) -> tuple[tuple[StoreOutcome, ...], list[Finding]]:
        """Bring up the stores that are behind, and say where each stands. What is wrong with one is told, not raised: the snapshot was made."""
        current = self.replicas.current
        head = max((replica.head for replica in self.replicas.replicas if replica.current), default=0)
        outbox = _open_outbox(self._context)
        for replica in self.replicas.replicas:
            if replica.store is not None and not replica.current and not isinstance(replica.error, _HOPELESS):
                self._bring_up(replica, [*([outbox] if outbox is not None else []), *current])
        if outbox is not None:
            outbox.close()
        outcomes = tuple(self._outcome(replica, head) for replica in self.replicas.replicas)
        if all(outcome.outcome == "current" for outcome in outcomes):
            _drop_outbox(self._context)
        if len(outcomes) == 1:
            return outcomes, []
        return outcomes, [_told(outcome) for outcome in outcomes if outcome.outcome != "current"]

    def _bring_up(self, replica: Replica, sources: Sequence[Store]) -> None:
        """Copy what a store lacks. Why that failed is kept for `_outcome`."""
        assert replica.store is not None, "a store that could not be opened"
        try:
            copied = copy(
                sources,
                replica.store,
                self._anchors,
                stop=self._stop,
                on_event=self._context.on_event,
                signer=_signer(self._context),
            )
        except MailbackupError as error:
            self._said[replica.name] = error
            with contextlib.suppress(MailbackupError):
                replica.head = find_head(replica.store)
        else:
            replica.head, replica.error, replica.behind = copied.head, None, False

    def _outcome(self, replica: Replica, head: int) -> StoreOutcome:
        error = replica.error or self._said.get(replica.name)
        counted = next((store for store in self._traffic.stores if store.name == replica.name), None)
        missing = max(0, head - replica.head)
        return StoreOutcome(
            name=replica.name, outcome="failed" if error is not None else "behind" if missing else "current", head=replica.head,
            before=self._before.get(replica.name, replica.head), missing=missing, requests=counted.requests if counted else 0,
            bytes_read=counted.bytes_read if counted else 0, bytes_written=counted.bytes_written if counted else 0,
            detail="" if error is None else error.message, hint="" if error is None else error.hint,
        )  # fmt: skip


_HOPELESS = (ConflictError, DamageError, KeyProblem, UsageError)
"""What a copy would not mend."""


def _told(outcome: StoreOutcome) -> Finding:
    lacks = f"lacks the last {outcome.missing} entries" if outcome.missing > 1 and outcome.head else "lacks this snapshot"
    why = f": {outcome.detail}" if outcome.detail else ""
    return Finding(FindingKind.STORE_BEHIND, outcome.name, f"{lacks}{why}")


def _open_outbox(context: Context, *, create: bool = False) -> LocalStore | None:
    """The outbox; None when there is none."""
    path = os.path.join(context.state_dir, _OUTBOX)
    if create:
        LocalStore.create_root(path)
    if not os.path.isdir(path):
        return None
    try:
        return LocalStore(path, _OUTBOX, quota_bytes=OUTBOX_BYTES)
    except StoreError:
        return None


def _drop_outbox(context: Context) -> None:
    path = os.path.join(context.state_dir, _OUTBOX)
    if os.path.isdir(path):
        remove_tree(path)


# ---------------------------------------------------------------- the command


def copy_store(context: Context, *, source: str | None, target: str, stop: Stop = never) -> CopyResult:
    """Bring the store `target` up to `source` (None = whichever of the others has an object). Needs no key.

    Raises UsageError for unknown names, and what `upkeep.copying.copy` raises.
    """
    began = time.monotonic()
    places = {place.name: place for place in context.config.stores}
    for name in (target, *([source] if source else [])):
        if name not in places:
            raise UsageError(f"there is no store {name}", hint=f"Configured: {', '.join(places)}.")
    if target == source or len(places) < 2:
        raise UsageError(f"store {target} cannot be copied to itself", hint="Name two stores of the configuration.")
    os.makedirs(context.state_dir, mode=0o700, exist_ok=True)
    with run_lock(os.path.join(context.state_dir, "lock")), contextlib.ExitStack() as stack:
        sources = _sources(context, [source] if source else [name for name in places if name != target], stack)
        place = places[target]
        new = (
            target not in remembered(context.state_path, context.anchors.vault).stores
        )  # else an unmounted disk would be filled underneath
        to = stack.enter_context(contextlib.closing(CountedStore(open_store(place, create=new, work_dir=store_dir(context, target)))))
        done = copy(sources, to, context.anchors, stop=stop, on_event=context.on_event, signer=_signer(context))
    return CopyResult(
        source=source or ", ".join(store.name for store in sources), target=target, head=done.head, copied_objects=done.objects, copied_bytes=done.bytes,
        left_out=len(done.left_out) + len(done.without), requests=to.requests + sum(store.requests for store in sources),
        seconds=round(time.monotonic() - began, 3),
    )  # fmt: skip


def _signer(context: Context) -> SigningKey | None:
    """The key that may say what a store never got: the writer's, on its host."""
    try:
        return writer_key(context)
    except KeyProblem:
        return None


def _sources(context: Context, names: list[str], stack: contextlib.ExitStack) -> list[CountedStore]:
    """The stores that can be opened, nearest first. Raises what the first says when none can."""
    opened: list[CountedStore] = []
    first: MailbackupError | None = None
    for place in context.config.stores:
        if place.name in names:
            try:
                opened.append(stack.enter_context(contextlib.closing(open_place(context, place))))
            except (StoreError, KeyProblem) as error:
                first = first or error
    if not opened:
        raise first or NotFound("no store to copy from")
    return opened
