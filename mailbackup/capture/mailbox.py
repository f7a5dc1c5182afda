"""One mailbox, from its directories to its tree in the vault.

In four steps, so that the packing line works on one mailbox while the next is read (design section 9): `read` messages, then state files; `build`
segments once the messages' blobs have a place; `root`, the mailbox tree, once the segments have; `finish`: counts and state, once the tree has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mailbackup.capture.anomaly import losses_of
from mailbackup.capture.dirfacts import DirFacts, forget, now_ns, volume_of
from mailbackup.capture.files import FilesWork, FileWalk, OldFiles, new_pieces
from mailbackup.capture.folder import FolderWork, kept_pairs
from mailbackup.capture.mailfolders import MailFolders
from mailbackup.capture.scan import FolderScan
from mailbackup.content.block import Piece
from mailbackup.mail.maildir import left_out_inside, skipped
from mailbackup.model import codec
from mailbackup.model.finding import Finding
from mailbackup.model.ids import from_name, to_name
from mailbackup.model.tree import BlobRef, MailboxTree
from mailbackup.vault.cached import CachedUnit
from mailbackup.vault.gather import BlockName, Note, note_of, put_note
from mailbackup.vault.state import State
from mailbackup.vault.trees import Item, RefTable
from mailbackup.vault.units import Unit
from mailbackup.vault.writer import VaultWriter


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
        gather: frozenset[BlockName] = frozenset(),
        on_messages: Callable[[int, int], None],
    ) -> None:
        self.found = found
        self.cached = cached
        self.findings: list[Finding] = []
        self.totals = Totals()
        self._state = state
        self._writer = writer
        self._keep_gone = keep_gone  # the fall guard acts: what is not found stays in the snapshot, what is new is added
        self._gather = gather  # blocks whose messages are to be sent again
        self._unit = Unit(found.key, gather)
        self._tree: MailboxTree | None = None
        if cached is not None:
            self._tree = codec.decode(state.tree_of(cached.no), MailboxTree, "cached tree")
        self._volume = volume_of(found.path)
        self._folders = MailFolders(
            found.path, found.address, None if cached is None else cached.no, self._tree, self._unit, state, writer, self.findings,
            volume=self._volume, rescan=rescan or (cached is not None and cached.stale), keep_gone=keep_gone, gather=gather, on_messages=on_messages,
        )  # fmt: skip
        self._work = self._folders.work
        self._items: list[Item] = []
        self._old_files = OldFiles()
        self._files: FilesWork | None = None
        self._root_plain = b""
        self._root: Piece | BlobRef | None = cached.ref if cached is not None else None
        self._listed_at = 0
        self._lost: list[FolderWork] = []  # folders that are gone
        self.losses = (0, 0)  # messages of the last snapshot that are gone, or have another body (after `finish`)

    # -- step 1

    def read(self) -> None:
        """List and read what is new. Blobs are under way afterwards."""
        self._listed_at = now_ns()
        self._folders.read()
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

    def _read_files(self) -> None:
        if self._tree is not None and self.cached is not None:
            self._old_files = OldFiles.load(self._state, self.cached.no, self._tree.files, self._tree.blocks)
        walk = FileWalk(
            self.found.path, self.found.address, lambda _: self._unit, self._writer, self.findings, self._old_files, skip=self._skip_file,
            one_file_system=False, listed=self._listed,
        )  # fmt: skip
        self._items = walk.run()
        self.totals.read_bytes = self._folders.read_bytes + walk.read_bytes
        self.totals.new_messages = self._folders.new_messages

    def _listed(self, path: bytes) -> list[bytes] | None:
        """What in `new` and `cur` is no message: the scan has listed them (an untouched folder holds nothing else, of a stale one the last run knows)."""
        folder, _, last = path.rpartition(b"/")
        if last not in (b"new", b"cur") or folder not in self._work:
            return None
        if self._work[folder].stale:
            return [name for name in (old[len(path) + 1 :] for old in self._old_files.below(path)) if b"/" not in name]
        return [name[4:] for name in self._work[folder].scan.others if name[:3] == last]

    def _skip_file(self, path: bytes, name: bytes, is_directory: bool) -> bool:
        """What servers make anew is left out."""
        parent = path[: -len(name) - 1] if len(path) > len(name) else b""
        last = parent.rpartition(b"/")[2]
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
        if self._tree is None or self.cached is None or self._files is None:
            return True
        if self._keep_gone or self.cached.stale or self.cached.dirty or self._files.changed:
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
        self._take_note(unit)
        self.losses = losses_of([*self._work.values(), *self._lost])
        return ref

    def _take_note(self, unit: int) -> None:
        """Of how many small blocks it has now, at most. After a gathering, the next run looks at what came of it."""
        if self.cached is None:
            note: Note | None = Note(0, 0, 0)
        else:
            note = None if self._gather else note_of(self._state, unit)
        if note is not None:
            shifts = [work.shift() for work in [*self._work.values(), *self._lost] if not work.stale]
            note = note.plus(self._unit.fragments, sum(added for added, _ in shifts), sum(gone for _, gone in shifts))
        put_note(self._state, unit, note)

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
            self._folders.load_old(work)
            for pair in work.old:
                pair.gone = [index for index, flag in enumerate(pair.old_flags) if flag is not None]
                self._writer.count([pair.facts, pair.flags_ref, *pair.places(pair.gone)], -1)
            self._lost.append(work)
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
