"""What differs between two snapshots. Segments that both have are equal by their ids and are not fetched, so the diff of two nights costs what changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from mailbackup.errors import NotFound
from mailbackup.mail.maildir import flag_parts, readable_folder
from mailbackup.model.ids import BlobId, from_name, show
from mailbackup.model.results import DiffFile, DiffMailbox, DiffMessage, DiffSource, MessageLine
from mailbackup.model.tree import (
    DUMPS,
    BlobRef,
    BlockRow,
    DirectoryRoot,
    Folder,
    MailboxRow,
    MailboxTable,
    MailboxTree,
    SegmentRow,
    Snapshot,
)
from mailbackup.restore.browse import described
from mailbackup.vault.reader import FoundEntry, VaultReader
from mailbackup.vault.trees import resolve

_Change = Literal["added", "removed", "changed"]
_MessageKey = tuple[bytes, bytes, tuple[BlobId, ...]]  # folder, base name, content
_Mailbox = tuple[MailboxRow, BlobRef]


@dataclass(slots=True)
class Difference:
    """All that differs; what is listed one by one depends on what was asked about."""

    mailboxes: list[DiffMailbox] = field(default_factory=list)
    messages: list[DiffMessage] = field(default_factory=list)
    sources: list[DiffSource] = field(default_factory=list)
    files: list[DiffFile] = field(default_factory=list)


def diff(reader: VaultReader, first: Snapshot, second: Snapshot, what: str | None = None) -> Difference:
    """From `first` to `second`. `what`: an address (its messages are listed), or a path (the files at and below it); None = everything, counted.

    Raises NotFound when neither snapshot holds what was asked about.
    """
    found = Difference()
    if what is None or not _is_path(what):
        found.mailboxes, found.messages = _Mail(reader, first, second).compare(what)
    if what is None or _is_path(what):
        found.sources, found.files = _Files(reader, first, second).compare(what)
    return found


def _is_path(what: str) -> bool:
    return what == DUMPS or what.startswith(("/", f"{DUMPS}/"))


# ---------------------------------------------------------------- mail


@dataclass(slots=True)
class _Changes:
    """The messages of one mailbox that differ."""

    added: list[FoundEntry] = field(default_factory=list)
    removed: list[FoundEntry] = field(default_factory=list)
    moved: list[tuple[FoundEntry, FoundEntry]] = field(default_factory=list)
    flags: list[tuple[FoundEntry, FoundEntry]] = field(default_factory=list)


class _Mail:
    def __init__(self, reader: VaultReader, first: Snapshot, second: Snapshot) -> None:
        self._reader = reader
        self._first = first
        self._second = second

    def compare(self, address: str | None) -> tuple[list[DiffMailbox], list[DiffMessage]]:
        """The mailboxes that differ; with an address only this one, with its messages."""
        if address is not None:
            self._known(address)
        before, after = self._rows(self._first, self._second), self._rows(self._second, self._first)
        mailboxes: list[DiffMailbox] = []
        messages: list[DiffMessage] = []
        for key in sorted(before.keys() | after.keys()):
            old, new = before.get(key), after.get(key)
            row = (new or old or _nobody())[0]
            if address is not None and address.lower() not in (row.address.lower(), key.lower()):
                continue
            changes = self._changes(old, new)
            if old is None or new is None or any((changes.added, changes.removed, changes.moved, changes.flags)):
                mailboxes.append(_counted(row, "changed" if old and new else "added" if new else "removed", changes))
            if address is not None:
                messages += self._described(changes)
        return mailboxes, messages

    def _known(self, address: str) -> None:
        """Raises NotFound when neither snapshot has the mailbox."""
        for snapshot in (self._second, self._first):
            for row, _ in self._reader.mailboxes(snapshot):
                if address.lower() in (row.address.lower(), row.key.lower()):
                    return
        raise NotFound(
            f"neither snapshot {self._first.seq} nor {self._second.seq} has a mailbox {address}",
            hint="'mailbackup ls' lists the mailboxes.",
        )

    def _rows(self, of: Snapshot, other: Snapshot) -> dict[str, _Mailbox]:
        """The rows of those segments of the mailbox table that the other snapshot does not have. Rows are equal where trees are: they fall away later."""
        shared = {resolve(other.root.blocks, row.ref).blob for row in other.root.mailboxes}
        found = {}
        for row in of.root.mailboxes:
            ref = resolve(of.root.blocks, row.ref)
            if ref.blob not in shared:
                table = self._reader.record(ref, MailboxTable, "mailbox table")
                found.update({mailbox.key: (mailbox, resolve(table.blocks, mailbox.tree)) for mailbox in table.mailboxes})
        erased, anchors = self._reader.erased, self._reader.anchors
        return {key: mailbox for key, mailbox in found.items() if erased.of(anchors, key, of.seq) is None}

    def _changes(self, old: _Mailbox | None, new: _Mailbox | None) -> _Changes:
        if old and new and old[1].blob == new[1].blob:
            return _Changes()
        before, after = self._tree(old), self._tree(new)
        shared = _pairs(before) & _pairs(after)
        return _compared(self._messages(before, shared), self._messages(after, shared))

    def _tree(self, mailbox: _Mailbox | None) -> MailboxTree | None:
        return None if mailbox is None else self._reader.record(mailbox[1], MailboxTree, f"tree of {mailbox[0].address}")

    def _messages(self, tree: MailboxTree | None, shared: set[_PairKey]) -> Iterator[FoundEntry]:
        """The messages in segments that are not shared."""
        for folder in tree.folders if tree is not None else ():
            assert tree is not None
            own = tuple(row for row in folder.segments if (folder.name, row.facts.blob, row.flags.blob) not in shared)
            yield from self._reader.messages(tree, Folder(name=folder.name, messages=0, bytes=0, segments=own))

    def _described(self, changes: _Changes) -> Iterator[DiffMessage]:
        """A line per message that differs. Their headers are read, and nothing else."""
        news = [*changes.added, *changes.removed, *(new for _, new in changes.moved), *(new for _, new in changes.flags)]
        lines = iter(described(self._reader, news))
        for _ in changes.added:
            yield _line("added", next(lines))
        for _ in changes.removed:
            yield _line("removed", next(lines))
        for old, _ in changes.moved:
            yield _line("moved", next(lines), f"from {readable_folder(old.folder or b'')}")
        for old, new in changes.flags:
            yield _line("flags", next(lines), f"{_flags(old)} → {_flags(new)}")


_PairKey = tuple[object, BlobId, BlobId]


def _pairs(tree: MailboxTree | None) -> set[_PairKey]:
    return (
        {(folder.name, row.facts.blob, row.flags.blob) for folder in tree.folders for row in folder.segments} if tree is not None else set()
    )


def _nobody() -> _Mailbox:
    raise AssertionError("a key of neither snapshot")


def _compared(before: Iterable[FoundEntry], after: Iterable[FoundEntry]) -> _Changes:
    """A message that is gone from one folder and new in another one with the same content was moved."""
    old, new = {_key(entry): entry for entry in before}, {_key(entry): entry for entry in after}
    changes = _Changes(flags=[(old[key], new[key]) for key in old.keys() & new.keys() if old[key].flag != new[key].flag])
    gone: dict[tuple[BlobId, ...], list[FoundEntry]] = {}
    for key in sorted(old.keys() - new.keys()):
        gone.setdefault(key[2], []).append(old[key])
    for key in sorted(new.keys() - old.keys()):
        sources = gone.get(key[2])
        if sources and key[2]:
            changes.moved.append((sources.pop(0), new[key]))
        else:
            changes.added.append(new[key])
    changes.removed = [entry for entries in gone.values() for entry in entries]
    changes.flags.sort(key=lambda pair: _key(pair[1]))
    return changes


def _key(entry: FoundEntry) -> _MessageKey:
    return entry.folder or b"", entry.name, tuple(ref.blob for ref in entry.refs)


def _counted(row: MailboxRow, change: _Change, changes: _Changes) -> DiffMailbox:
    return DiffMailbox(
        address=row.address, key=row.key, change=change, added=len(changes.added), removed=len(changes.removed), moved=len(changes.moved),
        flags=len(changes.flags),
    )  # fmt: skip


def _line(change: Literal["added", "removed", "moved", "flags"], line: MessageLine, detail: str = "") -> DiffMessage:
    return DiffMessage(change=change, id=line.id, folder=line.folder, subject=line.subject, detail=detail)


def _flags(entry: FoundEntry) -> str:
    place, rest = flag_parts(entry.flag) if entry.flag is not None else (b"", b"")
    return (show(rest.removeprefix(b":2,")) or "none") if place == b"c" else "new"


# ---------------------------------------------------------------- files


class _Files:
    def __init__(self, reader: VaultReader, first: Snapshot, second: Snapshot) -> None:
        self._reader = reader
        self._first = first
        self._second = second

    def compare(self, wanted: str | None) -> tuple[list[DiffSource], list[DiffFile]]:
        """The sources that differ, and the files below `wanted` (without it those of the dumps): one that two sources hold is listed once."""
        before = {root.name: root for root in self._first.root.directories}
        after = {root.name: root for root in self._second.root.directories}
        sources: list[DiffSource] = []
        files: dict[str, DiffFile] = {}
        for name in sorted(before.keys() | after.keys()):
            rows = list(self._source(before.get(name), after.get(name)))
            picked = [row for row in rows if wanted is None or _below(row.path, wanted)]
            if picked:
                sources.append(_summed(name, picked))
            if wanted is not None or name == DUMPS:
                files.update({row.path: row for row in picked if row.path not in files})
        if wanted is not None and not files:
            self._known(wanted)
        return sources, [files[path] for path in sorted(files)]

    def _known(self, wanted: str) -> None:
        """Raises NotFound when neither snapshot holds the path."""
        for snapshot in (self._second, self._first):
            for root in snapshot.root.directories:
                base = show(from_name(root.path))
                if not (_below(base, wanted) or _below(wanted, base) or base == "/"):
                    continue
                if any(_below(_whole(root, entry), wanted) for entry in self._reader.directory(snapshot, root)):
                    return
        hint = "Paths are absolute. Mail is compared by address: 'mailbackup diff A B ADDRESS'."
        raise NotFound(f"neither snapshot {self._first.seq} nor {self._second.seq} holds {wanted}", hint=hint)

    def _source(self, old: DirectoryRoot | None, new: DirectoryRoot | None) -> Iterator[DiffFile]:
        shared = self._ids(self._first, old) & self._ids(self._second, new)
        before = {_whole(old, entry): entry for entry in self._entries(self._first, old, shared)} if old else {}
        after = {_whole(new, entry): entry for entry in self._entries(self._second, new, shared)} if new else {}
        for path in sorted(before.keys() | after.keys()):
            if path not in before or path not in after:
                yield DiffFile(path=path, change="added" if path in after else "removed")
            elif what := tuple(_what(before[path], after[path])):
                yield DiffFile(path=path, change="changed", what=what)

    @staticmethod
    def _ids(snapshot: Snapshot, root: DirectoryRoot | None) -> set[BlobId]:
        return {resolve(snapshot.root.blocks, row.ref).blob for row in root.segments} if root is not None else set()

    def _entries(self, snapshot: Snapshot, root: DirectoryRoot, shared: set[BlobId]) -> Iterator[FoundEntry]:
        blocks: tuple[BlockRow, ...] = snapshot.root.blocks
        own: list[SegmentRow] = [row for row in root.segments if resolve(blocks, row.ref).blob not in shared]
        return self._reader.files(blocks, own, show(from_name(root.path)))


def _whole(root: DirectoryRoot, entry: FoundEntry) -> str:
    base = show(from_name(root.path))
    return base if entry.name == b"." else f"{base.rstrip('/')}/{show(entry.name)}"


def _below(path: str, wanted: str) -> bool:
    return path == wanted or path.startswith(wanted.rstrip("/") + "/")


def _what(old: FoundEntry, new: FoundEntry) -> Iterator[str]:
    """What of a file is not as it was."""
    if [ref.blob for ref in old.refs] != [ref.blob for ref in new.refs]:
        yield "content"
    for word, before, after in (
        ("type", old.entry.type, new.entry.type),
        ("size", old.entry.size, new.entry.size),
        ("mode", old.owner.mode, new.owner.mode),
        ("owner", _names(old), _names(new)),
        ("target", old.entry.target, new.entry.target),
        ("attributes", old.entry.xattrs, new.entry.xattrs),
    ):
        if before != after:
            yield word
    if old.entry.mtime != new.entry.mtime and new.entry.type == "f":  # that of a directory changes with what lies in it
        yield "time"


def _names(entry: FoundEntry) -> tuple[object, ...]:
    return entry.owner.uid, entry.owner.user, entry.owner.gid, entry.owner.group


def _summed(name: str, rows: list[DiffFile]) -> DiffSource:
    counts = {change: sum(row.change == change for row in rows) for change in ("added", "removed", "changed")}
    return DiffSource(name=name, added=counts["added"], removed=counts["removed"], changed=counts["changed"])
