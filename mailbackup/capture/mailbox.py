"""One mailbox, from its directories to its tree in the vault.

In four steps, so that the packing line works on one mailbox while the next is read (design section 9): `read` messages, then state files; `build`
segments once the messages' blobs have a place; `root`, the mailbox tree, once the segments have; `finish`: counts and state, once the tree has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mailbackup.capture.dirfacts import DirFacts, forget, now_ns, volume_of
from mailbackup.capture.files import FilesWork, FileWalk, OldFiles, new_pieces
from mailbackup.capture.folder import FolderWork, OldPair, kept_pairs
from mailbackup.capture.messages import FolderReader
from mailbackup.capture.reading import Gone, Unreadable
from mailbackup.capture.scan import FolderScan, Seen
from mailbackup.content.block import Piece
from mailbackup.mail.maildir import left_out_inside, readable_folder, skipped
from mailbackup.mail.uidlist import parse as parse_uidlist
from mailbackup.model import codec
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import from_name, show, to_name
from mailbackup.model.tree import BlobRef, Folder, MailboxTree
from mailbackup.vault.state import CachedUnit, State
from mailbackup.vault.trees import Item, RefTable, resolve
from mailbackup.vault.units import Unit
from mailbackup.vault.writer import VaultWriter

_RESCANS = 5  # looks back at folders that changed while others were read


@dataclass(frozen=True, slots=True)
class FoundMailbox:
    """A mailbox on disk: its identity, its address, and where it lies."""

    key: str
    location: str
    address: str
    path: bytes


@dataclass(slots=True)
class Totals:
    """What a mailbox contributed to a run."""

    messages: int = 0
    size: int = 0
    new_messages: int = 0
    read_bytes: int = 0


class MailboxCapture:
    """The run of one mailbox. Raises Unreadable from `read` when nothing of it can be read: the caller then keeps the previous tree."""

    def __init__(
        self,
        found: FoundMailbox,
        cached: CachedUnit | None,
        state: State,
        writer: VaultWriter,
        *,
        rescan: bool,
        keep_gone: bool = False,
        on_messages: Callable[[int, int], None],
    ) -> None:
        self.found = found
        self.cached = cached
        self.findings: list[Finding] = []
        self.totals = Totals()
        self._state = state
        self._writer = writer
        self._rescan = rescan or (cached is not None and cached.stale)
        self._keep_gone = keep_gone  # the fall guard acts: what is not found stays in the snapshot, what is new is added
        self._on_messages = on_messages
        self._unit = Unit(found.key)
        self._label = found.address
        self._tree: MailboxTree | None = None
        if cached is not None:
            self._tree = codec.decode(state.tree_of(cached.no), MailboxTree, "cached tree")
        self._work: dict[bytes, FolderWork] = {}
        self._items: list[Item] = []
        self._old_files = OldFiles()
        self._files: FilesWork | None = None
        self._root_plain = b""
        self._root: Piece | BlobRef | None = cached.ref if cached is not None else None
        self._listed_at = 0
        self._volume: str | None = None
        self._offered = False

    # -- step 1

    def read(self) -> None:
        """List and read what is new. Blobs are under way afterwards."""
        self._listed_at = now_ns()
        self._volume = volume_of(self.found.path)
        names, failed = folders(self.found.path)
        facts = DirFacts(self._state, None if self.cached is None or self._rescan else self.cached.no)
        known = {from_name(f.name): f for f in self._tree.folders} if self._tree else {}
        vanished: list[tuple[bytes, bytes]] = []
        for name in names:
            work = FolderWork(name, FolderScan(self._path(name)), known.get(name))
            self._work[name] = work
            vanished += self._folder(work, facts)
        self._look_back(vanished)
        self._keep_unreadable(known, failed)
        if self._keep_gone:
            for name, folder in known.items():
                if name not in self._work:
                    self._work[name] = FolderWork(name, FolderScan(self._path(name)), folder, stale=True, flawed=True)
        self._read_files()
        self._writer.flush(self._unit, "headers", "bodies", "files")

    @property
    def kept_gone(self) -> bool:
        """Whether messages that were not found are in its tree."""
        return self._keep_gone

    @property
    def messages(self) -> int:
        """How many messages it holds now (after `read`)."""
        return sum(work.counts()[0] for work in self._work.values())

    def _path(self, folder: bytes) -> bytes:
        return self.found.path + b"/" + folder if folder else self.found.path

    def _folder(self, work: FolderWork, facts: DirFacts) -> list[tuple[bytes, bytes]]:
        """List, compare and read one folder. Returns (folder, base) of messages that were seen and are not there any more."""
        try:
            work.scan.stamps = work.scan.now()
            if work.cached is not None and not work.cached.stale and facts.prove(work.name, self._volume, work.scan.stamps):
                work.untouched = True
                return []
            return self._changed_folder(work)
        except Unreadable as error:
            self._find(FindingKind.UNREADABLE, work.name, str(error))
            work.stale = work.flawed = True
            work.items.clear()
            return []

    def _changed_folder(self, work: FolderWork) -> list[tuple[bytes, bytes]]:
        work.untouched = False
        self._load_old(work)
        work.scan.stabilise(lambda: (name for pair in work.old for name in pair.live_names()))
        present = dict(work.scan.seen)
        for pair in work.old:
            pair.compare(present)
        if self._rescan:
            present.update(self._restated(work))
        vanished = self._read_messages(work, present)
        if self._keep_gone:
            self._keep_all(work)
        return vanished

    @staticmethod
    def _keep_all(work: FolderWork) -> None:
        again = {item.name for item in work.items}
        for pair in work.old:
            for index in list(pair.gone):
                if pair.names[index] not in again:
                    pair.keep(index)

    def _load_old(self, work: FolderWork) -> None:
        if work.cached is None or self._tree is None or self.cached is None or work.old:
            return
        for row in work.cached.segments:
            segment = self._state.segment(self.cached.no, work.name, row.facts.blob)
            if segment is not None:
                blocks = self._tree.blocks
                work.old.append(OldPair(segment, resolve(blocks, row.facts), resolve(blocks, row.flags), from_name(row.first)))

    def _restated(self, work: FolderWork) -> dict[bytes, Seen]:
        """For a rescan: messages whose size or mtime is not what the vault has, although name and inode are."""
        again: dict[bytes, Seen] = {}
        for pair in work.old:
            for index, (name, flag) in enumerate(zip(pair.names, pair.flags, strict=True)):
                seen = work.scan.seen.get(name)
                if flag is None or seen is None:
                    continue
                try:
                    status = os.lstat(work.scan.path + (b"/new/" if seen.place == b"n" else b"/cur/") + seen.name)
                except OSError:
                    continue  # renamed since; name and inode were the same a moment ago
                entry = pair.segment.entries[index]
                if (status.st_size, divmod(status.st_mtime_ns, 1_000_000_000)) != (entry.size, tuple(entry.mtime)):
                    pair.flags[index] = None
                    pair.gone.append(index)
                    again[name] = seen
        return again

    def _read_messages(self, work: FolderWork, present: dict[bytes, Seen]) -> list[tuple[bytes, bytes]]:
        """Read these messages into `work.items`."""
        if not present and not work.scan.doubles:
            return []
        self._offer_old_blobs()
        found = len(self.findings)
        reader = FolderReader(work.scan, self._folder_label(work.name), self._unit, self._writer, self.findings)

        again = {pair.names[index] for pair in work.old for index in pair.gone}

        def take(item: Item) -> None:
            work.items.append(item)
            self.totals.new_messages += item.name not in again
            self._on_messages(1, item.size)

        before = {item.name for item in work.items}
        with reader.directories():
            vanished = reader.read((base for base in present if base not in before), take)
            for double in work.scan.doubles:
                self._read_double(reader, double, take)
        self.totals.read_bytes += reader.read_bytes
        if len(self.findings) > found:
            work.flawed = True
            captured = {item.name for item in work.items}
            for base in present:
                if base not in captured and base not in vanished:
                    work.keep(base)
        return [(work.name, base) for base in vanished]

    @staticmethod
    def _read_double(reader: FolderReader, seen: Seen, take: Callable[[Item], None]) -> None:
        """A second file with the base name of another one: both are kept."""
        colon = seen.name.find(b":")
        try:
            item = reader.message(seen.name[:colon] if colon > 0 else seen.name, seen)
        except Gone:
            return  # it was the same message after all, renamed between two looks
        if item is not None:
            take(item)

    def _offer_old_blobs(self) -> None:
        """Small blobs that the mailbox has in the vault may be referred to again; loaded when the first new message comes."""
        if self._offered or self._tree is None or self.cached is None:
            return
        self._offered = True
        for folder in self._tree.folders:
            name = from_name(folder.name)
            work = self._work.get(name)
            if work is not None and work.old:
                for pair in work.old:
                    self._unit.add_old(pair.segment, pair.old_flags)
                continue
            for row in folder.segments:
                cached = self._state.segment(self.cached.no, name, row.facts.blob)
                if cached is not None:
                    pair = OldPair(cached, resolve(self._tree.blocks, row.facts), resolve(self._tree.blocks, row.flags), b"")
                    self._unit.add_old(pair.segment, pair.old_flags)

    def _look_back(self, vanished: list[tuple[bytes, bytes]]) -> None:
        """Folders that changed since they were listed are listed again: a message moved from B to A between the two listings is else in neither.

        So are those whose listing was no proof, once, and those whose uidlist names messages that no listing saw. What vanished from its folder
        and turned up in no other was expunged.
        """
        for attempt in range(_RESCANS):
            changed = [work for work in self._work.values() if not work.stale and self._moved_on(work, doubtful=attempt == 0)]
            if not changed:
                break
            for work in changed:
                vanished += self._folder_again(work)
        captured = {item.name for work in self._work.values() for item in work.items}
        for folder, base in vanished:
            if base not in captured:
                self._find(FindingKind.EXPUNGED, folder, f"{show(base)} was deleted while the mailbox was read")

    def _moved_on(self, work: FolderWork, *, doubtful: bool) -> bool:
        try:
            if work.scan.now() != work.scan.stamps:
                return True
        except Unreadable:
            return False
        return doubtful and not work.untouched and not work.scan.quiet and self._uidlist_knows_more(work)

    @staticmethod
    def _uidlist_knows_more(work: FolderWork) -> bool:
        """Whether the server lists messages that no listing saw. Rows of deleted messages are normal, so this only asks for another look."""
        try:
            with open(work.scan.path + b"/dovecot-uidlist", "rb") as file:
                uidlist = parse_uidlist(file.read())
        except OSError:
            return True
        return uidlist is None or any(base not in work.scan.seen for base in uidlist.rows)

    def _folder_again(self, work: FolderWork) -> list[tuple[bytes, bytes]]:
        try:
            if work.untouched:
                return self._changed_folder(work)
            known = set(work.scan.seen)
            work.scan.stabilise()
            news = {base: seen for base, seen in work.scan.seen.items() if base not in known}
            return self._read_messages(work, news)
        except Unreadable as error:
            self._find(FindingKind.UNREADABLE, work.name, str(error))
            work.flawed = True
            return []

    def _keep_unreadable(self, known: dict[bytes, Folder], failed: dict[bytes, str]) -> None:
        """Folders in a directory that could not be looked into keep what the last snapshot had of them."""
        for directory, why in failed.items():
            self._find(FindingKind.UNREADABLE, directory, why)
            for name, folder in known.items():
                if name not in self._work and (name == directory or name.startswith(directory + b"/")):
                    self._work[name] = FolderWork(name, FolderScan(self._path(name)), folder, stale=True, flawed=True)

    def _read_files(self) -> None:
        if self._tree is not None and self.cached is not None:
            self._old_files = OldFiles.load(self._state, self.cached.no, self._tree.files, self._tree.blocks)
        walk = FileWalk(
            self.found.path, self._label, lambda _: self._unit, self._writer, self.findings, self._old_files, skip=self._skip_file,
            one_file_system=False,
        )  # fmt: skip
        self._items = walk.run()
        self.totals.read_bytes += walk.read_bytes

    def _skip_file(self, path: bytes, name: bytes, is_directory: bool) -> bool:
        """Messages are no files here; nor is what servers make anew."""
        parent = path[: -len(name) - 1] if len(path) > len(name) else b""
        folder, _, last = parent.rpartition(b"/")
        if last in (b"new", b"cur") and folder in self._work:
            return path[len(folder) + 1 if folder else 0 :] not in self._work[folder].scan.others
        if is_directory:
            return False
        return skipped(name, parent) is not None or (last == b"tmp" and left_out_inside(last) is not None)

    # -- steps 2 to 4

    def build(self) -> None:
        """Store segments."""
        self._writer.settle(self._content())
        for work in self._work.values():
            if work.changed and not work.stale:
                work.build(self._writer, self._unit)
            elif work.cached is not None and self._tree is not None:
                work.pairs = kept_pairs(self._tree.blocks, work.cached)
        self._files = FilesWork.build(self._items, self._old_files, self._writer, self._unit)
        self._writer.flush(self._unit, "trees")

    def _content(self) -> Iterator[Piece]:
        for work in self._work.values():
            yield from work.pieces()
        yield from new_pieces(self._items)

    @property
    def changed(self) -> bool:
        """Whether the mailbox tree has to be written anew."""
        if self._tree is None or self.cached is None or self.cached.dirty or self.cached.stale or self._files is None or self._files.changed:
            return True
        old = {from_name(folder.name) for folder in self._tree.folders}
        attributes = (self._tree.address, self._tree.location, self._tree.path)
        return (
            attributes != (self.found.address, self.found.location, to_name(self.found.path))
            or old != set(self._work)
            or any(work.changed for work in self._work.values())
        )

    def root(self) -> None:
        """Store the mailbox tree."""
        assert self._files is not None, "root before build"
        if not self.changed:
            return
        self._writer.settle(place for place in self._tree_places() if isinstance(place, Piece))
        table = RefTable()
        files = self._files.segment_rows(table)
        folders = tuple(self._work[name].row(table) for name in sorted(self._work))
        tree = MailboxTree(
            key=self.found.key, location=self.found.location, address=self.found.address, path=to_name(self.found.path),
            blocks=table.rows(), files=files, folders=folders,
        )  # fmt: skip
        self._root_plain = codec.encode(tree)
        self._root = self._writer.add(self._unit, "trees", self._root_plain)
        self._writer.flush(self._unit, "trees")

    def _tree_places(self) -> Iterator[Piece | BlobRef]:
        assert self._files is not None, "places before build"
        yield from self._files.added
        for work in self._work.values():
            yield from work.added

    def finish(self) -> BlobRef:
        """Count references and remember everything. Returns where the tree lies."""
        assert self._files is not None, "finish before build"
        for work in self._work.values():
            messages, size = work.counts()
            self.totals.messages += messages
            self.totals.size += size
        if not self._root_plain:
            assert self._root is not None, "an unchanged mailbox has a tree"
            if self.cached is not None:
                self._files.save_stats(self._state, self.cached.no, self._old_files)
                self._remember_stamps(self.cached.no)
            return self._root if isinstance(self._root, BlobRef) else self._root.ref()
        assert isinstance(self._root, Piece), "a new tree is a piece"
        self._writer.settle([self._root])
        self._count()
        ref = self._root.ref()
        unit = self._state.put_unit(
            CachedUnit(
                0, "mail", self.found.key, self.found.location, self.found.address, self.found.path, self.totals.messages,
                self.totals.size, self._keep_gone, False, self._root_plain, ref,
            )
        )  # fmt: skip
        self._save(unit)
        return ref

    def _count(self) -> None:
        assert self._files is not None, "count before build"
        self._writer.count(self._tree_places(), 1)
        self._writer.count(self._files.removed, -1)
        for work in self._work.values():
            self._writer.count(work.removed, -1)
        if self._root is not None:
            self._writer.count([self._root], 1)
        if self.cached is not None and self.cached.ref is not None:
            self._writer.count([self.cached.ref], -1)
        self._count_lost_folders()

    def _count_lost_folders(self) -> None:
        """Folders that are gone: everything below them is referred to once less."""
        if self._tree is None or self.cached is None:
            return
        for folder in self._tree.folders:
            name = from_name(folder.name)
            if name in self._work:
                continue
            work = FolderWork(name, FolderScan(b""), folder)
            self._load_old(work)
            for pair in work.old:
                live = (index for index, flag in enumerate(pair.old_flags) if flag is not None)
                self._writer.count([pair.facts, pair.flags_ref, *pair.places(live)], -1)
            self._state.drop_folder(self.cached.no, name)
            forget(self._state, self.cached.no, name)

    def _save(self, unit: int) -> None:
        assert self._files is not None, "save before build"
        self._files.save(self._state, unit)
        for name, work in self._work.items():
            if not work.changed or work.stale:
                continue
            for pair in work.pairs:
                if pair.cached is None:
                    continue
                if pair.facts_kept:
                    self._state.update_segment(unit, name, pair.cached.id, flags=pair.cached.flags, inodes=pair.cached.inodes)
                else:
                    self._state.put_segment(unit, name, pair.cached)
            blobs = {(p.facts if isinstance(p.facts, BlobRef) else p.facts.ref()).blob for p in work.pairs}
            self._state.keep_segments(unit, name, blobs)
        self._remember_stamps(unit)

    def _remember_stamps(self, unit: int) -> None:
        for name, work in self._work.items():
            if work.untouched:
                continue
            if work.flawed or work.scan.others or work.scan.doubles:
                forget(self._state, unit, name)
            else:
                DirFacts.keep(self._state, unit, name, self._volume, work.scan.stamps, self._listed_at)

    # -- words

    def _folder_label(self, folder: bytes) -> str:
        return f"{self._label}/{readable_folder(folder)}"

    def _find(self, kind: FindingKind, folder: bytes, detail: str) -> None:
        self.findings.append(Finding(kind, self._folder_label(folder), detail))


def folders(root: bytes) -> tuple[list[bytes], dict[bytes, str]]:
    """Directories below a mailbox that hold messages (they have a `cur` or a `new`), relative to it, b"" being the mailbox itself; and
    directories that could not be looked into, with the reason.

    Maildir++ and LAYOUT=fs alike. Raises Unreadable when the mailbox itself cannot be listed.
    """
    found: list[bytes] = []
    failed: dict[bytes, str] = {}
    pending: list[bytes] = [b""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(root + b"/" + folder if folder else root) as entries:
                below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            if not folder:
                raise Unreadable("is not there") from None
            continue
        except OSError as error:
            if not folder:
                raise Unreadable(error.strerror or str(error)) from None
            failed[folder] = error.strerror or str(error)
            continue
        if b"cur" in below or b"new" in below:
            found.append(folder)
        pending += [
            folder + b"/" + name if folder else name
            for name in below
            if name not in (b"cur", b"new", b"tmp") and left_out_inside(name) is None
        ]
    return sorted(found), failed
