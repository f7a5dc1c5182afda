"""One `[[directory]]` source, from its files to its segments in the vault."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable

from mailbackup.capture.files import FilesWork, FileWalk, OldFiles, new_pieces
from mailbackup.content.block import Piece
from mailbackup.model import codec
from mailbackup.model.finding import Finding
from mailbackup.model.ids import show, to_name
from mailbackup.model.options import DirectoryConfig
from mailbackup.model.tree import DirectoryRoot, Root
from mailbackup.vault.cached import CachedUnit
from mailbackup.vault.state import State
from mailbackup.vault.trees import Item, RefTable
from mailbackup.vault.units import Unit
from mailbackup.vault.writer import VaultWriter

ROOT_FILES = b"."  # unit of files that lie directly in the root


class DirectoryCapture:
    """The run of one directory source. Raises Unreadable from `read` when its root cannot be read."""

    guarded = True  # a sharp fall looks like an accident

    def __init__(
        self, config: DirectoryConfig, cached: CachedUnit | None, state: State, writer: VaultWriter, mailboxes: dict[bytes, str]
    ) -> None:
        self.config = config
        self.cached = cached
        self.findings: list[Finding] = []
        self.files = 0
        self.size = 0
        self.read_bytes = 0
        self.items: list[Item] = []
        self._state = state
        self._writer = writer
        self._mailboxes = mailboxes
        self._units: dict[bytes, Unit] = {}
        self._root = codec.decode(state.tree_of(cached.no), Root, "cached tree") if cached is not None else None
        self._old = OldFiles()

    def read(self) -> None:
        """Walk the tree and read what changed."""
        if self._root is not None and self.cached is not None:
            self._old = OldFiles.load(self._state, self.cached.no, self._root.directories[0].segments, self._root.blocks)
        self.items, self.read_bytes = self._walked()
        self.files = sum(item.type == "f" for item in self.items)
        self.size = sum(item.size for item in self.items)
        for first in self._units:
            self._leave(first)

    def _walked(self) -> tuple[list[Item], int]:
        """All entries, ordered by path, and how many bytes were read."""
        walk = FileWalk(
            os.fsencode(self.config.path), self.config.path, self._unit_of, self._writer, self.findings, self._old,
            skip=excluded(self.config.exclude), one_file_system=self.config.one_file_system, skip_caches=True, mailboxes=self._mailboxes, leave=self._leave,
        )  # fmt: skip
        return walk.run(), walk.read_bytes

    def _unit_of(self, path: bytes) -> Unit:
        first, slash, _ = path.partition(b"/")
        name = first if slash else ROOT_FILES
        unit = self._units.get(name)
        if unit is None:
            unit = self._units[name] = Unit(f"{self.config.name}:{show(name)}")
        return unit

    def _leave(self, first: bytes) -> None:
        """A first-level folder is done: its open block must not wait in memory for the end of the walk."""
        if first in self._units:
            self._writer.flush(self._units[first], "files")

    def finish(self) -> None:
        """Store its segments, count references and remember everything."""
        unit = Unit(self.config.name)
        self._writer.settle(new_pieces(self.items))
        work = FilesWork.build(self.items, self._old, self._writer, unit)
        self._writer.flush(unit, "trees")
        self._writer.settle(place for place in work.added if isinstance(place, Piece))
        self._writer.count(work.added, 1)
        self._writer.count(work.removed, -1)
        table = RefTable()
        path = to_name(os.fsencode(self.config.path))
        row = DirectoryRoot(name=self.config.name, path=path, segments=work.segment_rows(table), files=self.files, bytes=self.size)
        plain = codec.encode(Root(blocks=table.rows(), directories=(row,), mailboxes=()))
        cached = CachedUnit(
            0,
            "directory",
            self.config.name,
            self.config.name,
            "",
            os.fsencode(self.config.path),
            self.files,
            self.size,
            False,
            False,
            plain,
            None,
        )
        work.save(self._state, self._state.put_unit(cached))


def excluded(globs: tuple[str, ...]) -> Callable[[bytes, bytes, bool], bool]:
    """Globs match the path below the root with a leading slash (`*/.cache`), or the name alone when they hold no slash."""

    def skip(path: bytes, name: bytes, _is_directory: bool) -> bool:
        whole, last = "/" + os.fsdecode(path), os.fsdecode(name)
        return any(fnmatch.fnmatchcase(whole if "/" in glob else last, glob) for glob in globs)

    return skip
