"""The reading side of a vault, in one store or several: snapshots, trees and blobs, for whoever has an identity and trust anchors. It needs no state."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import NamedTuple, TypeVar

from mailbackup.content.block import open_block
from mailbackup.errors import ChainBroken, NotFound, ObjectDamaged, ObjectMissing, StoreError, StoreUnavailable, WrongIdentity
from mailbackup.model import codec
from mailbackup.model.ids import Digest, Name, digest, from_name
from mailbackup.model.ledger import Anchors
from mailbackup.model.tree import (
    RECORD_LIMIT,
    BlobRef,
    BlockRow,
    DirectoryRoot,
    Entry,
    Folder,
    MailboxRow,
    MailboxTable,
    MailboxTree,
    Owner,
    Ref,
    Segment,
    SegmentRow,
    Snapshot,
)
from mailbackup.stores.base import Store
from mailbackup.vault.blocks import BlockReader, BlockStream
from mailbackup.vault.chain import Link, backwards, check_head, check_vault_info, entry_at, find_head, named
from mailbackup.vault.epochs import KEY_LIMIT, EpochOpener
from mailbackup.vault.nearest import Nearest
from mailbackup.vault.tombstones import Tombstones
from mailbackup.vault.trees import decode_flags, decode_segment, owner_of, resolve

T = TypeVar("T")

Pin = tuple[int, Digest]

_NUMBER = re.compile(r"[0-9]{1,10}")


class FoundEntry(NamedTuple):
    """An entry of a tree with everything resolved. `flag` is None for what is not a message; `folder` likewise."""

    folder: bytes | None
    name: bytes
    entry: Entry
    owner: Owner
    refs: tuple[BlobRef, ...]
    head: BlobRef | None
    flag: Name | None


class VaultReader:
    """A vault that is open for reading. Everything it returns was verified."""

    def __init__(
        self, stores: Nearest, anchors: Anchors, opener: EpochOpener, pins: Mapping[str, Pin] | None = None, newest: int | None = None
    ) -> None:
        """`pins`: the highest entry seen in each of several stores, by name. `newest`: number of the vault's newest entry, where that is known;
        a store that holds it needs no other to be asked."""
        self.stores = stores
        self.anchors = anchors
        self._pins = pins or {}
        self._ledgers = self._find_ledgers(newest)
        self._all_asked = newest is None or not stores.several
        self.head = self._ledgers[0][1]
        self._newest = newest
        self._opener = opener
        self.blocks = BlockReader(stores, opener)

    def _find_ledgers(self, newest: int | None) -> list[tuple[Store, int]]:
        """The stores and their heads, the longest ledger first."""
        found = []
        for store in self.stores.stores():
            try:
                found.append((store, find_head(store)))
            except StoreError as error:
                if not self.stores.several:
                    raise
                self.stores.gave_up(store, error)
                continue
            if newest is not None and found[-1][1] >= newest:
                break
        if not found:
            self.stores.first()  # says why
            raise StoreUnavailable("no store could be read")
        return sorted(found, key=lambda row: -row[1])

    def _each_ledger(self) -> Iterator[tuple[Store, int]]:
        """The ledgers that were found, then those of stores that had not to be asked yet."""
        yield from self._ledgers
        if not self._all_asked:
            self._all_asked = True
            asked = {store.name for store, _ in self._ledgers}
            rest = [row for row in self._find_ledgers(None) if row[0].name not in asked]
            self._ledgers += rest
            yield from rest

    def heads(self) -> dict[str, int]:
        """Every store that answers, and the number of the last entry in it."""
        return {store.name: head for store, head in self._each_ledger()}

    @property
    def store(self) -> Store:
        """The store whose ledger is read: the nearest of those with the longest."""
        return self._ledgers[0][0]

    def anchors_of(self, store: Store) -> Anchors:
        """What this store must hold: among several, one may be behind what was seen in another."""
        pin = self._pins.get(store.name, self.anchors.head)
        return Anchors(vault=self.anchors.vault, admin=self.anchors.admin, head=pin)

    def links(self) -> Iterator[Link]:
        """The entries of the ledger from the head back, checked. One that is damaged is read from another store. Raises ChainBroken."""
        reached: Link | None = None
        first: ChainBroken | None = None
        if self.stores.several and self._newest is not None and self.head < self._newest:
            seen = f"entry {self._newest} was seen before, and the stores that answer end at entry {self.head}"
            self.stores.newer_elsewhere(self.store.name, seen)
        for store, head in self._each_ledger():
            try:
                for link in self._backwards(store, head, reached):
                    if reached is None and first is not None:
                        self.stores.newer_elsewhere(self.store.name, first.message)
                    reached = link
                    yield link
                return
            except ChainBroken as error:
                first = first or self._in_words(store, error)
        assert first is not None, "a ledger neither ended nor broke"
        raise first

    def _in_words(self, store: Store, error: ChainBroken) -> ChainBroken:
        """The ledger proves by itself whose it is. When it does not, vault.json may say why: raises AnchorMismatch for another vault."""
        with contextlib.suppress(ObjectMissing, ObjectDamaged):  # `verify` names it
            check_vault_info(store, self.anchors)
        return error

    def _backwards(self, store: Store, head: int, after: Link | None) -> Iterator[Link]:
        """The entries of one store, from the one before `after`, which it must hold as well."""
        anchors = self._check_ledger(store, head)
        for link in backwards(store, anchors, head):
            if after is None or link.seq < after.seq:
                yield link
            elif link.seq == after.seq and link.sha256 != after.sha256:
                raise ChainBroken(f"entry {link.seq} of store {store.name} is another one than in store {self.store.name}")

    def _check_ledger(self, store: Store, head: int) -> Anchors:
        if head == 0:
            raise ChainBroken(f"store {store.name}: the vault has no ledger")
        anchors = self.anchors_of(store)
        check_head(head, anchors)
        return anchors

    def snapshots(self) -> Iterator[Link]:
        """The snapshots' entries, newest first."""
        return (link for link in self.links() if link.entry.type == "snapshot")

    def find(self, at: str) -> Link:
        """The snapshot that `at` means: `latest`, a number, or the newest one at a moment. Raises NotFound."""
        if _NUMBER.fullmatch(at):
            return self._numbered(int(at))
        wanted = None if at == "latest" else _moment(at)
        for link in self.snapshots():
            if wanted is None or _stamp_of(link) <= wanted:
                return link
        raise NotFound(f"there is no snapshot {'yet' if at == 'latest' else repr(at)}")

    def _numbered(self, seq: int) -> Link:
        """The entry itself, so that damage to other entries does not matter."""
        first: ChainBroken | None = None
        for store, head in self._each_ledger():
            try:
                anchors = self._check_ledger(store, head)
                if not 1 <= seq <= head:
                    continue
                link = entry_at(store, anchors, seq)
            except ChainBroken as error:
                first = first or self._in_words(store, error)
                continue
            if link.entry.type == "snapshot":
                return link
        if first is not None:
            raise first
        raise NotFound(f"there is no snapshot {seq}")

    def snapshot(self, link: Link) -> Snapshot:
        """The snapshot that an entry names. Raises ObjectMissing, ObjectDamaged, WrongIdentity."""
        row = link.entry.snapshot
        if row is None:
            raise NotFound(f"entry {link.seq} is not a snapshot")
        raw = self.stores.read(row.key, lambda store: named(store, row))
        self._load(row.epoch)
        snapshot = codec.decode(open_block(self._opener, raw, row.key, RECORD_LIMIT), Snapshot, row.key)
        if (snapshot.vault, snapshot.seq) != (self.anchors.vault, link.seq):
            raise ObjectDamaged(f"{row.key}: belongs to another entry")
        return snapshot

    def _load(self, epoch: int) -> None:
        """Open the identity of an epoch. A key object that is damaged looks just like one that is not for this identity: its hash tells."""
        try:
            self._opener.load(epoch)
        except WrongIdentity:
            for link in self.links():
                named = [(row.epoch, row.key, row.sha256) for row in link.entry.epochs]
                named += [(row.epoch, row.key, row.sha256) for row in link.entry.rewrapped]
                for number, key, sha256 in named:
                    if number == epoch and digest(self.stores.first().get(key, KEY_LIMIT)) != sha256:
                        raise ObjectDamaged(f"{key}: is not the object that the ledger names") from None
            raise

    # -- trees

    def record(self, ref: BlobRef, kind: type[T], what: str) -> T:
        """The record in a blob."""
        return codec.decode(self.blocks.record(ref), kind, what)

    def mailboxes(self, snapshot: Snapshot, keys: Iterable[str] | None = None) -> Iterator[tuple[MailboxRow, BlobRef]]:
        """`table` without the mailboxes that were erased since."""
        return ((row, ref) for row, ref in self.table(snapshot, keys) if self.erased.of(self.anchors, row.key, snapshot.seq) is None)

    @cached_property
    def erased(self) -> Tombstones:
        """The mailboxes that were erased, by the acts of the stores whose ledgers are read."""
        found = Tombstones()
        for store, _ in self._ledgers:
            try:
                found.learn(store, self.anchors_of(store))
            except StoreError:
                if not self.stores.several:
                    raise  # else whatever is read from it fails as well
        return found

    def table(self, snapshot: Snapshot, keys: Iterable[str] | None = None) -> Iterator[tuple[MailboxRow, BlobRef]]:
        """The rows of the mailbox table, with the place of each tree; with `keys`, only segments that can hold them are read."""
        root = snapshot.root
        wanted = None if keys is None else set(keys)
        for index, row in enumerate(root.mailboxes):
            if wanted is not None and not _may_hold(root.mailboxes, index, wanted):
                continue
            table = self.record(resolve(root.blocks, row.ref), MailboxTable, "mailbox table")
            for mailbox in table.mailboxes:
                if wanted is None or mailbox.key in wanted:
                    yield mailbox, resolve(table.blocks, mailbox.tree)

    def mailbox(self, snapshot: Snapshot, address: str, location: str | None = None) -> tuple[MailboxRow, MailboxTree]:
        """The mailbox of an address (or with this key). Raises NotFound, also when several have it and no location tells which."""
        found = [(row, ref) for row, ref in self.table(snapshot) if means(row, address) and location in (None, row.location)]
        erased = [self.erased.of(self.anchors, row.key, snapshot.seq) for row, _ in found]
        rows = [pair for pair, act in zip(found, erased, strict=True) if act is None]
        if found and not rows and erased[0] is not None:
            raise NotFound(f"{address} was erased on {erased[0].time[:10]}, act {erased[0].seq}", hint="What was erased is not restored.")
        if not rows:
            raise NotFound(
                f"snapshot {snapshot.seq} has no mailbox {address}" + (f" in location {location}" if location else ""),
                hint="'mailbackup ls' lists the mailboxes of the newest snapshot; --at names another one.",
            )
        if len(rows) > 1:
            raise NotFound(
                f"{len(rows)} mailboxes have the address {address}: {', '.join(row.key for row, _ in rows)}",
                hint="Say which with --location NAME.",
            )
        row, ref = rows[0]
        return row, self.record(ref, MailboxTree, f"tree of {address}")

    def files(self, blocks: Sequence[BlockRow], segments: Sequence[SegmentRow], what: str) -> Iterator[FoundEntry]:
        """The entries of a tree of files, in order."""
        for row in segments:
            segment = decode_segment(self.blocks.blob(resolve(blocks, row.ref)), what, "files")
            for entry in segment.entries:
                yield _found(None, segment, entry, None)

    def prefetch(self, tree: MailboxTree) -> None:
        """Fetch the listings of all folders of a mailbox, as few requests as there can be."""
        rows = [row for folder in tree.folders for row in folder.segments]
        self.blocks.prefetch(resolve(tree.blocks, ref) for row in rows for ref in (row.facts, row.flags))

    def messages(self, tree: MailboxTree, folder: Folder) -> Iterator[FoundEntry]:
        """The messages of a folder, in order."""
        what = f"{tree.address}/{folder.name}"
        name = from_name(folder.name)
        self.blocks.prefetch(resolve(tree.blocks, ref) for row in folder.segments for ref in (row.facts, row.flags))
        for row in folder.segments:
            segment = decode_segment(self.blocks.blob(resolve(tree.blocks, row.facts)), what, "facts")
            flags = decode_flags(self.blocks.blob(resolve(tree.blocks, row.flags)), len(segment.entries), what)
            for entry, flag in zip(segment.entries, flags, strict=True):
                if flag is not None:
                    yield _found(name, segment, entry, flag)

    def directory(self, snapshot: Snapshot, root: DirectoryRoot) -> Iterator[FoundEntry]:
        """The entries of a directory source."""
        return self.files(snapshot.root.blocks, root.segments, str(root.path))

    def stream(self, order: Iterable[BlobRef], threads: int = 2) -> BlockStream:
        """Blobs that will be asked for in this order."""
        return BlockStream(self.blocks, order, threads=threads)


def _found(folder: bytes | None, segment: Segment, entry: Entry, flag: Name | None) -> FoundEntry:
    refs = tuple(resolve(segment.blocks, ref) for ref in entry.refs)
    head: Ref | None = entry.head
    return FoundEntry(
        folder, from_name(entry.name), entry, owner_of(segment, entry), refs, None if head is None else resolve(segment.blocks, head), flag
    )


def _may_hold(rows: Sequence[SegmentRow], index: int, keys: set[str]) -> bool:
    first = str(rows[index].first)
    after = str(rows[index + 1].first) if index + 1 < len(rows) else None
    return any(first <= key and (after is None or key < after) for key in keys)


def means(row: MailboxRow, address: str) -> bool:
    """Whether `address` (or a key) is that of this mailbox; the case of the domain does not matter."""
    user, at, domain = address.rpartition("@")
    return address == row.key or row.address == (f"{user}@{domain.lower()}" if at else address)


def _stamp_of(link: Link) -> datetime:
    return _moment(link.entry.time)


def _moment(text: str) -> datetime:
    """A date (its end), a date and time (local), an ISO stamp, `today` or `yesterday`, with an optional time. Raises NotFound."""
    from datetime import timedelta

    words = text.strip().split()
    now = datetime.now().astimezone()
    if words and words[0] in ("today", "yesterday"):
        day = now - timedelta(days=words[0] == "yesterday")
        text = " ".join([day.strftime("%Y-%m-%d"), *words[1:]])
    try:
        moment = datetime.fromisoformat(text)
        if len(text.strip()) == len("2026-11-24"):
            moment += timedelta(days=1, seconds=-1)
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise NotFound(
            f"cannot read the moment {text!r}", hint="Say latest, a number, 2026-11-24, '2026-11-24 18:00' or 'yesterday 18:00'."
        ) from None
