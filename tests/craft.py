"""Vaults that no capture would make: trees and ledger entries of any content, sealed and signed with the host's real keys.

    with Craft(world) as craft:
        craft.commit(directories={world.home: [craft.directory(b"."), craft.file(b"../evil", b"x")]})

The blocks, packs, snapshots and entries are written by the real writer; only what stands in the trees is up to the test.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from msgspec.structs import replace

from mailbackup import app
from mailbackup.crypto.age import AgeKeyMaker, AgeOpener, AgeSealer, open_epoch
from mailbackup.crypto.signing import SigningKey, seal_line
from mailbackup.kit import load_identity_file
from mailbackup.model import codec
from mailbackup.model.ids import BlobId, Name, digest, entry_key, to_name
from mailbackup.model.ledger import Anchors, Grant, LedgerEntry
from mailbackup.model.tree import (
    BlobRef,
    DirectoryRoot,
    Folder,
    MailboxRow,
    MailboxTable,
    MailboxTree,
    Owner,
    PairRow,
    Ref,
    Root,
    SegmentRow,
    SourceCount,
)
from mailbackup.vault.chain import find_head
from mailbackup.vault.epochs import EpochOpener
from mailbackup.vault.nearest import Nearest
from mailbackup.vault.reader import VaultReader
from mailbackup.vault.replay import start
from mailbackup.vault.replicas import Replicas
from mailbackup.vault.state import State
from mailbackup.vault.trees import Item, RefTable, encode_flags, encode_segment
from mailbackup.vault.units import LaneKind, Unit
from mailbackup.vault.writer import SnapshotDraft, VaultWriter, WriterKeys, ensure_epoch
from tests.world import ALICE, World

MTIME = (1_600_000_000, 123_456_789)
_NO_REF = Ref(0, 0, 0, BlobId(""))


class Craft:
    """One run of the real writer over a world's vault. Leaving it without `commit` leaves the vault as it was."""

    def __init__(self, world: World) -> None:
        context = world.context
        recipients = tuple(recipient.key for recipient in context.config.recipients)
        self._store = world.store()
        self._state = State(context.state_path, context.anchors.vault)
        keys = WriterKeys(writer_key(world), context.anchors, recipients, AgeKeyMaker(recipients))
        start(Replicas.of(self._store), self._state, context.anchors, keys.signer.public)
        epoch = ensure_epoch(Replicas.of(self._store), self._state, keys)
        self.writer = VaultWriter(Replicas.of(self._store), self._state, keys, AgeSealer(epoch.recipient), epoch, threads=0)
        self.unit = Unit("crafted")
        self.owner = Owner(0o640, os.geteuid(), None, os.getegid(), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()
        self._state.close()

    # -- blobs and entries

    def blob(self, data: bytes, kind: LaneKind = "files") -> BlobRef:
        """Where these bytes lie now, in a block of their own; counted as referred to."""
        return self.blobs([data], kind)[0]

    def blobs(self, parts: Iterable[bytes], kind: LaneKind = "files") -> list[BlobRef]:
        """The same for several blobs that share blocks."""
        pieces = [self.writer.add(self.unit, kind, data) for data in parts]
        self.writer.flush(self.unit, kind)
        self.writer.settle(pieces)
        self.writer.count(pieces, 1)
        return [piece.ref() for piece in pieces]

    def file(
        self, name: bytes, content: bytes = b"", *, refs: Sequence[BlobRef] | None = None, size: int | None = None, **more: Any
    ) -> Item:
        """A file, or a message when it is given to a folder. `refs` in place of its content, `size` in place of the true one."""
        places = refs if refs is not None else ([self.blob(content)] if content else [])
        item = Item(name, more.pop("type", "f"), self.owner, MTIME, sum(ref.size for ref in places) if size is None else size, places)
        for attribute, value in more.items():
            setattr(item, attribute, value)
        return item

    def directory(self, name: bytes = b".") -> Item:
        return Item(name, "d", replace(self.owner, mode=0o750), MTIME)

    def link(self, name: bytes, target: bytes) -> Item:
        return self.file(name, type="l", target=target)

    # -- listings

    def segments(self, items: Sequence[Item], table: RefTable) -> tuple[SegmentRow, ...]:
        """One `files` segment; nothing is sorted."""
        return (SegmentRow(table.add(self._tree(encode_segment("files", items))), to_name(items[0].name), len(items)),) if items else ()

    def folder(self, name: bytes, messages: Sequence[tuple[Item, Name | None]], table: RefTable, *, flags: Sequence[Name | None] | None = None,
               count: int | None = None) -> Folder:  # fmt: skip
        """A mail folder of (message, flag); `flags` and `count` in place of the true ones."""
        items = [item for item, _ in messages]
        own = [flag for _, flag in messages] if flags is None else flags
        facts, flag_list = self._tree(encode_segment("facts", items)), self._tree(encode_flags(own))
        pair = PairRow(table.add(facts), table.add(flag_list), to_name(items[0].name), len(items))
        here = [item for item, flag in messages if flag is not None]
        return Folder(name=to_name(name), messages=len(here) if count is None else count, bytes=sum(i.size for i in here), segments=(pair,))

    def mailbox(self, messages: Sequence[tuple[Item, Name | None]], *, address: str = ALICE, folder: bytes = b"", files: Sequence[Item] | None = None,
                row_count: int | None = None, **more: Any) -> tuple[MailboxRow, BlobRef]:  # fmt: skip
        """A mailbox with one folder, and its row without the ref; `row_count` in place of the true number of messages."""
        table = RefTable()
        made = self.folder(folder, messages, table, **more)
        places = [folder + (b"/" if folder else b"") + place for place in (b"cur", b"new", b"tmp")]
        listed = [self.directory(), *(self.directory(place) for place in places)] if files is None else files
        key = f"crafted:{address}"
        tree = MailboxTree(key=key, location="crafted", address=address, path=to_name(b"/var/mail"), blocks=(),
                           files=self.segments(listed, table), folders=(made,))  # fmt: skip
        tree = replace(tree, blocks=table.rows())
        count = made.messages if row_count is None else row_count
        ref = self._tree(codec.encode(tree))
        return MailboxRow(key=key, location="crafted", address=address, messages=count, bytes=made.bytes, tree=_NO_REF), ref

    def commit(self, *, directories: dict[str, Sequence[Item]] | None = None, mailboxes: Sequence[tuple[MailboxRow, BlobRef]] = (),
               source_count: int | None = None, **more: Any) -> int:  # fmt: skip
        """Commit a snapshot of these directories (path → entries) and mailboxes. Returns its number."""
        table = RefTable()
        rows = tuple(
            DirectoryRoot(name=path, path=to_name(os.fsencode(path)), segments=self.segments(items, table), files=_files(items),
                          bytes=sum(item.size for item in items))
            for path, items in (directories or {}).items()
        )  # fmt: skip
        mail = self._table(mailboxes, table)
        messages = sum(row.messages for row, _ in mailboxes) if source_count is None else source_count
        size = sum(row.bytes for row, _ in mailboxes)
        source = SourceCount(name="crafted", kind="mail", mailboxes=len(mailboxes), messages=messages, bytes=size)
        draft = SnapshotDraft(
            host="mx1", tool="craft", outcome=more.pop("outcome", "complete"), root=Root(blocks=table.rows(), directories=rows, mailboxes=mail),
            sources=[source], findings=[], facts={}, **more,
        )  # fmt: skip
        return self.writer.commit(draft)[0]

    def _table(self, mailboxes: Sequence[tuple[MailboxRow, BlobRef]], root: RefTable) -> tuple[SegmentRow, ...]:
        if not mailboxes:
            return ()
        own = RefTable()
        ordered = sorted(mailboxes, key=lambda pair: pair[0].key)
        rows = tuple(replace(row, tree=own.add(ref)) for row, ref in ordered)
        ref = self._tree(codec.encode(MailboxTable(blocks=own.rows(), mailboxes=rows)))
        return (SegmentRow(root.add(ref), rows[0].key, len(rows)),)

    def _tree(self, plain: bytes) -> BlobRef:
        return self.blob(plain, "trees")


def _files(items: Sequence[Item]) -> int:
    return sum(item.type == "f" for item in items)


# ---------------------------------------------------------------- keys and entries


def writer_key(world: World) -> SigningKey:
    """The host's signing key."""
    with open(app.writer_key_path(world.config_path), encoding="ascii") as file:
        return SigningKey.from_hex(file.read().strip())


def admin_key(world: World) -> SigningKey:
    """The administrator's signing key, from the kit."""
    kit = load_identity_file(world.kit, None).kit
    assert kit is not None
    return SigningKey.from_hex(kit.admin_seed)


def raw_entry(world: World, seq: int) -> bytes:
    """The bytes of an entry of the ledger."""
    with open(f"{world.vault}/{entry_key(seq)}", "rb") as file:
        return file.read()


def parsed(raw: bytes) -> LedgerEntry:
    """What an entry says, unchecked."""
    return codec.decode(raw.split(b"\n")[0], LedgerEntry, "entry")


def head_of(world: World) -> int:
    return find_head(world.store())


def put_raw(world: World, key: str, data: bytes) -> None:
    """Put or replace an object, whatever it is, as whoever owns the store can."""
    path = f"{world.vault}/{key}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def signed(entry: LedgerEntry, key: SigningKey) -> bytes:
    """The entry as an object; its `signer` is that key."""
    return seal_line(codec.encode(replace(entry, signer=key.public)), key)


def append(world: World, key: SigningKey, *, type: str = "packs", **members: Any) -> int:  # noqa: A002 - the member's name
    """Put the next entry of the ledger, signed by `key`. Returns its number."""
    last = head_of(world)
    before = raw_entry(world, last)
    entry = LedgerEntry(
        format=1, vault=parsed(before).vault, seq=last + 1, prev=digest(before), type=type, time="2026-11-24T02:30:00Z", signer=key.public
    )  # fmt: skip
    put_raw(world, entry_key(last + 1), signed(replace(entry, **members), key))
    return last + 1


def trust(world: World, *, grant: Iterable[SigningKey] = (), revoke: Iterable[SigningKey] = (), role: str = "writer") -> int:
    """The administrator names and dismisses keys, in the next entry."""
    rows = {
        "grant": tuple(Grant(role, key.public) for key in grant),
        "revoke": tuple(Grant(role, key.public) for key in revoke),
    }
    return append(world, admin_key(world), type="trust", **rows)


# ---------------------------------------------------------------- reading


@contextmanager
def reading(world: World, anchors: Anchors | None = None) -> Iterator[VaultReader]:
    """The vault open for reading with the kit's identity, as commands have it; `anchors` in place of what configuration and state say."""
    identities = load_identity_file(world.kit, None).identities
    store = world.store()
    opener = EpochOpener(Nearest.of(store), lambda sealed: AgeOpener([open_epoch(sealed, identities)]))
    yield VaultReader(Nearest.of(store), anchors or world.context.anchors, opener)
    store.close()
