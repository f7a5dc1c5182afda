"""Walking a tree of files: directories as they stand in `[[directory]]` sources, and what in a mailbox is not a message.

Every file is asked for its status in each run; only one whose inode, mtime, ctime or size differ from the last run is read.

Those whose files these are may rename them at any moment, and the walk runs as root. So a directory is opened without following a link, must be the one
that its parent's listing showed, and what lies in it is reached through its descriptor: no link that is put in its place leads the walk elsewhere.
"""

from __future__ import annotations

import os
import stat
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mailbackup.capture.reading import Gone, OtherKind, Unreadable, begins_with, chunks, opened, unchanged, xattrs_of
from mailbackup.content.block import Piece
from mailbackup.content.cut import cut_stream
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import blob_id, from_name, show, to_name
from mailbackup.model.tree import BlobRef, BlockRow, Entry, Segment, SegmentRow
from mailbackup.vault.cached import CachedSegment
from mailbackup.vault.heal import FILES
from mailbackup.vault.state import State
from mailbackup.vault.trees import Item, Place, RefTable, cut, decode_segment, encode_segment, owner_now, resolve
from mailbackup.vault.units import Unit
from mailbackup.vault.writer import VaultWriter

Skip = Callable[[bytes, bytes, bool], bool]
"""Asked with (path relative to the root, file name, is it a directory) whether to leave something out. A directory that is left out is not entered."""

Kind = Literal["f", "d", "l", "p", "c", "b", "m"]
_SPECIAL: dict[int, Kind] = {stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFCHR: "c", stat.S_IFBLK: "b"}

_NANO = 1_000_000_000
_CACHE_TAG = b"CACHEDIR.TAG"
_CACHE_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"  # https://bford.info/cachedir/


@dataclass(slots=True)
class Cached:
    """A file as the last run left it."""

    name: bytes
    segment: Segment
    entry: Entry
    inode: int  # 0 = not known
    ctime: int
    lost: bool  # the vault does not have its content any more


@dataclass(slots=True)
class OldFiles:
    """The cached segments of a tree of files, and their blobs."""

    segments: list[tuple[CachedSegment, BlobRef]] = field(default_factory=list)
    entries: dict[bytes, Cached] = field(default_factory=dict)
    by_inode: dict[int, Cached] = field(default_factory=dict)
    decoded: list[Segment] = field(default_factory=list)
    _sorted: list[bytes] = field(default_factory=list)

    @classmethod
    def load(cls, state: State, unit: int, rows: Sequence[SegmentRow], blocks: Sequence[BlockRow]) -> OldFiles:
        """What the state has of a unit's files, in the order of its tree."""
        old = cls()
        for row in rows:
            cached = state.segment(unit, FILES, row.ref.blob)
            if cached is None:
                continue
            segment = decode_segment(cached.data, "cached segment", "files")
            old.segments.append((cached, resolve(blocks, row.ref)))
            old.decoded.append(segment)
            for entry, inode, ctime in zip(segment.entries, cached.inodes, cached.ctimes, strict=True):
                name = from_name(entry.name)
                lost = cached.dirty and not inode
                old.entries[name] = old.by_inode[inode] = Cached(name, segment, entry, inode, ctime, lost)
        return old

    def below(self, path: bytes) -> list[bytes]:
        """Names of what lay below a directory."""
        if not self._sorted:
            self._sorted = sorted(self.entries)
        return self._sorted[bisect_left(self._sorted, path + b"/") : bisect_left(self._sorted, path + b"0")]  # "0" follows "/"


class FileWalk:
    """Walks one tree. `unit_of(path)` tells in whose blocks the content of a file goes, and is the same object for the same unit; `mailboxes` are
    saved as such, by real path. With `skip_caches`, a directory below the root that a valid CACHEDIR.TAG declares a cache is kept with its tag alone.
    Findings are appended to `findings`."""

    def __init__(
        self,
        root: bytes,
        label: str,
        unit_of: Callable[[bytes], Unit],
        writer: VaultWriter,
        findings: list[Finding],
        old: OldFiles,
        *,
        skip: Skip,
        one_file_system: bool = True,
        skip_caches: bool = False,
        mailboxes: dict[bytes, str] | None = None,
        leave: Callable[[bytes], None] = lambda _: None,
        listed: Callable[[bytes], list[bytes] | None] = lambda _: None,
    ) -> None:
        self.root = root
        self.label = label
        self.items: list[Item] = []
        self.read_bytes = 0
        self._unit_of = unit_of
        self._writer = writer
        self._findings = findings
        self._old = old
        self._skip = skip
        self._one_file_system = one_file_system
        self._skip_caches = skip_caches
        self._caches: list[bytes] = []  # directories that were found to be such
        self._mailboxes = mailboxes or {}
        self._listed = listed  # names in a directory, where somebody else has listed it; None = list it
        self._leave = leave  # told when everything below an entry of the root was read
        self._links: dict[tuple[int, int], list[Item]] = {}
        self._pending: list[tuple[bytes, os.stat_result]] = []  # directories to list; no recursion: users make trees of any depth

    def run(self) -> list[Item]:
        """All entries, ordered by path. Raises Unreadable when the root itself cannot be read."""
        try:
            status = os.stat(self.root)  # the one link that is followed is the root itself: somebody configured it
        except OSError as error:
            raise Unreadable("is not there" if isinstance(error, FileNotFoundError) else error.strerror or str(error)) from None
        if not stat.S_ISDIR(status.st_mode):
            raise Unreadable("is not a directory")
        self._device = status.st_dev
        self._real = os.path.realpath(self.root).rstrip(b"/") + b"/"
        self._directory(b".", status)
        while self._pending:
            path, status = self._pending.pop()
            self._directory(path, status)
            first = path.partition(b"/")[0]
            if not self._pending or self._pending[-1][0].partition(b"/")[0] != first:
                self._leave(first)
        for items in self._links.values():
            if len(items) > 1:
                first = min(item.name for item in items)
                for item in items:
                    item.hard = first
        self._tell_caches()
        self.items.sort(key=Item.sort_key)
        return self.items

    def _directory(self, path: bytes, status: os.stat_result) -> None:
        """A directory and what lies in it; its subdirectories become pending."""
        follow = 0 if path == b"." else os.O_NOFOLLOW
        try:
            fd = os.open(self._full(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | follow)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            self._find(FindingKind.CHANGED, path, "it became something else than a directory while it was looked at")
            return
        except OSError as error:
            self.items.append(self._item(path, "d", status))
            self._cannot_list(path, error)
            return
        try:
            self._listing(path, status, fd)
        finally:
            os.close(fd)

    def _listing(self, path: bytes, status: os.stat_result, fd: int) -> None:
        if not os.path.samestat(os.fstat(fd), status):
            self._find(FindingKind.CHANGED, path, "another directory came in its place while it was looked at")
            return
        self.items.append(self._item(path, "d", status, fd))
        try:
            names = self._listed(path)
            if names is None:
                names = [os.fsencode(name) for name in os.listdir(fd)]
        except OSError as error:
            self._cannot_list(path, error)
            return
        if self._skip_caches and path != b"." and _CACHE_TAG in names and begins_with(_CACHE_TAG, fd, _CACHE_SIGNATURE):
            self._caches.append(path)
            names = [_CACHE_TAG]
        for name in names:
            self._entry(name if path == b"." else path + b"/" + name, name, fd)

    def _tell_caches(self) -> None:
        """One finding for all of them: homes are full of caches, but a tag that somebody planted must not pass unseen."""
        if self._caches:
            first = show(min(self._caches))
            detail = f"{len(self._caches)} directories with a CACHEDIR.TAG are in the snapshot without their content, first {first}"
            self._findings.append(Finding(FindingKind.CACHE_SKIPPED, self.label, detail))

    def _cannot_list(self, path: bytes, error: OSError) -> None:
        if path == b".":
            raise Unreadable(error.strerror or str(error))
        self._unreadable(path, error.strerror or str(error), subtree=True)

    def _entry(self, path: bytes, name: bytes, parent: int) -> None:
        try:
            status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        except OSError as error:
            self._unreadable(path, error.strerror or str(error), subtree=True)
            return
        kind = stat.S_IFMT(status.st_mode)
        if self._skip(path, name, kind == stat.S_IFDIR):
            return
        if kind == stat.S_IFREG:
            self._file(path, status, parent)
        elif kind == stat.S_IFDIR:
            self._subdirectory(path, status)
        else:
            self._special(path, kind, parent)

    def _subdirectory(self, path: bytes, status: os.stat_result) -> None:
        key = self._mailboxes.get(self._real + path) if self._mailboxes else None
        if key is not None:
            item = self._item(path, "m", status)
            item.target = key.encode()
            self.items.append(item)
        elif self._one_file_system and status.st_dev != self._device:
            self.items.append(self._item(path, "d", status))
            self._find(FindingKind.OTHER_FILE_SYSTEM, path, "another file system is mounted here; it is not part of this source")
        else:
            self._pending.append((path, status))

    def _special(self, path: bytes, kind: int, parent: int) -> None:
        """A link, FIFO or device, looked at through one descriptor, which opens nothing: all that is kept of it is of one thing."""
        if kind not in _SPECIAL:
            self._find(FindingKind.SOCKET_SKIPPED, path, "a socket has no content")
            return
        try:
            fd = os.open(os.path.basename(path), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        except OSError:
            return  # gone
        try:
            status = os.fstat(fd)
            if stat.S_IFMT(status.st_mode) == kind:  # else replaced: what replaced it is seen next time
                self._opened_special(path, _SPECIAL[kind], status, fd)
        finally:
            os.close(fd)

    def _opened_special(self, path: bytes, kind: Kind, status: os.stat_result, fd: int) -> None:
        item = self._item(path, kind, status)
        if kind == "l":
            item.target = os.readlink(b"", dir_fd=fd)
        elif kind in ("c", "b"):
            item.device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        item.xattrs = xattrs_of(f"/proc/self/fd/{fd}")  # of the thing itself, also of a link: the descriptor leads to it and not on
        self._note_names(item, status)
        self.items.append(item)

    def _note_names(self, item: Item, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            self._links.setdefault((status.st_dev, status.st_ino), []).append(item)

    def _file(self, path: bytes, status: os.stat_result, parent: int) -> None:
        same = self._links.get((status.st_dev, status.st_ino)) if status.st_nlink > 1 else None
        cached = self._old.entries.get(path)
        if same:
            item = self._again(path, status, same[0])
        elif cached is not None and _unchanged_since(cached, status):
            item = Item.of(cached.segment, cached.entry, status.st_ino, status.st_ctime_ns)
            item.hard = None
        else:
            self._offer(path, cached, status)
            found = self._read(path, parent)
            if found is None:
                return
            item = found
        self._note_names(item, status)
        self.items.append(item)

    def _again(self, path: bytes, status: os.stat_result, first: Item) -> Item:
        """A further name of a file that was read already."""
        item = self._item(path, "f", status)
        item.size, item.places, item.mtime, item.xattrs = first.size, first.places, first.mtime, first.xattrs
        return item

    def _offer(self, path: bytes, cached: Cached | None, status: os.stat_result) -> None:
        """Let the file's content of the last run be referred to again: a change of mode or name alone sends nothing."""
        unit = self._unit_of(path)
        for known in (cached, self._old.by_inode.get(status.st_ino)):
            if known is not None and not known.lost and self._unit_of(known.name) is unit:
                unit.add_refs(known.segment.blocks, known.entry.refs)

    def _read(self, path: bytes, parent: int) -> Item | None:
        for attempt in range(3):
            try:
                with opened(os.path.basename(path), parent) as (fd, status):
                    places, size = self._store(path, fd)
                    if not unchanged(status, fd, size):
                        if attempt < 2:
                            continue
                        self._find(FindingKind.CHANGED, path, f"{size} bytes of it are in the snapshot")
                    item = self._item(path, "f", status)
                    item.places, item.size = places, size
                    item.xattrs = xattrs_of(fd)
                    return item
            except Gone:
                return None
            except OtherKind:
                self._find(FindingKind.CHANGED, path, "it became something else than a file while it was read")
                return None
            except Unreadable as error:
                self._unreadable(path, str(error))
                return None
        raise AssertionError("unreachable")

    def _store(self, path: bytes, fd: int) -> tuple[list[Place], int]:
        unit = self._unit_of(path)
        places: list[Place] = []
        size = 0
        for data in cut_stream(chunks(fd)):
            places.append(self._writer.add(unit, "files", data))
            size += len(data)
        self.read_bytes += size
        return places, size

    def _item(self, path: bytes, kind: Kind, status: os.stat_result, fd: int | None = None) -> Item:
        owner = owner_now(status.st_mode, status.st_uid, status.st_gid)
        item = Item(path, kind, owner, divmod(status.st_mtime_ns, _NANO), inode=status.st_ino, ctime=status.st_ctime_ns)
        if kind == "d":
            item.xattrs = xattrs_of(self._full(path), follow=False) if fd is None else xattrs_of(fd)
        return item

    def _unreadable(self, path: bytes, why: str, *, subtree: bool = False) -> None:
        """Keep what the last run had of it."""
        self._find(FindingKind.UNREADABLE, path, why)
        names = [path] if path in self._old.entries and self.items[-1].name != path else []
        if subtree:
            names += self._old.below(path)
        for name in names:
            cached = self._old.entries[name]
            self.items.append(Item.of(cached.segment, cached.entry, 0, 0))

    def _full(self, path: bytes) -> bytes:
        return self.root if path == b"." else self.root + b"/" + path

    def _find(self, kind: FindingKind, path: bytes, detail: str) -> None:
        self._findings.append(Finding(kind, f"{self.label}/{show(path)}", detail))


@dataclass(slots=True)
class FilesWork:
    """The segments of a walked tree, old and new. Unchanged ones are recognised by their bytes."""

    rows: list[tuple[Place, bytes, int, CachedSegment]] = field(default_factory=list)
    removed: list[BlobRef] = field(default_factory=list)
    added: list[Place] = field(default_factory=list)
    changed: bool = False

    @classmethod
    def build(cls, items: list[Item], old: OldFiles, writer: VaultWriter, unit: Unit) -> FilesWork:
        """Store the segments that differ. All pieces of the items must be settled."""
        work = cls()
        known = {cached.id: (cached, ref) for cached, ref in old.segments if not cached.dirty}
        for run in cut(items):
            plain = encode_segment("files", run)
            cached = CachedSegment(
                blob_id(plain), plain, array("Q", (i.inode for i in run)), array("Q", (i.ctime for i in run)), b"", dirty=False
            )
            same = known.pop(cached.id, None)
            if same is not None:
                work.rows.append((same[1], run[0].name, len(run), cached))
                continue
            place = writer.add(unit, "trees", plain)
            work.rows.append((place, run[0].name, len(run), cached))
            work.added += [place, *(p for item in run for p in item.places)]
            work.changed = True
        kept = {id(cached) for cached, ref in old.segments if any(row[0] is ref for row in work.rows)}
        for (cached, ref), segment in zip(old.segments, old.decoded, strict=True):
            if id(cached) not in kept:
                work.removed += [ref, *(resolve(segment.blocks, r) for entry in segment.entries for r in entry.refs)]
                work.changed = True
        return work

    def segment_rows(self, table: RefTable) -> tuple[SegmentRow, ...]:
        """Its rows in the parent's record. All segments must be settled."""
        return tuple(SegmentRow(table.add(place), to_name(first), count) for place, first, count, _ in self.rows)

    def save_stats(self, state: State, unit: int, old: OldFiles) -> None:
        """Remember the inodes and ctimes of segments that stay: a file that was touched, but did not change, is not read again."""
        known = {cached.id: cached for cached, _ in old.segments}
        for _, _, _, cached in self.rows:
            before = known.get(cached.id)
            if before is None or (before.inodes, before.ctimes) != (cached.inodes, cached.ctimes):
                state.put_segment(unit, FILES, cached)

    def save(self, state: State, unit: int) -> None:
        """Remember the segments."""
        for _, _, _, cached in self.rows:
            state.put_segment(unit, FILES, cached)
        state.keep_segments(unit, FILES, {cached.id for _, _, _, cached in self.rows})


def new_pieces(items: list[Item]) -> Iterator[Piece]:
    """The blobs that are new in this run."""
    for item in items:
        yield from item.pieces


def _unchanged_since(cached: Cached, status: os.stat_result) -> bool:
    entry = cached.entry
    return (
        entry.type == "f"
        and cached.inode == status.st_ino
        and cached.ctime == status.st_ctime_ns
        and entry.size == status.st_size
        and tuple(entry.mtime) == divmod(status.st_mtime_ns, _NANO)
    )
