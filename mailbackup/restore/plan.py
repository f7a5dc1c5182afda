"""What a restore will do, decided before anything is touched: reads the vault's trees and the target's names, writes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mailbackup.errors import NotFound, RecordInvalid, UnsafeName
from mailbackup.mail.maildir import directory_of, flag_parts, folder_matches, split_name
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import from_name, safe_path, show
from mailbackup.model.results import PlanLine
from mailbackup.model.tree import BlobRef, Entry, MailboxTree, Owner, Snapshot
from mailbackup.restore.target import Existing, Target
from mailbackup.vault.reader import FoundEntry, VaultReader

Names = tuple[bytes, tuple[BlobRef, ...]]
"""What the names of a hard-linked file have in common: the place of its first name below the target, and the content."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to put in place. `path` relative to the target; `refs` its content, in order; `names` for a file that has several."""

    path: bytes
    entry: Entry
    owner: Owner
    refs: tuple[BlobRef, ...] = ()
    is_message: bool = False
    names: Names | None = None


@dataclass(slots=True)
class RestorePlan:
    """Steps by kind, in the order in which they are executed: directories, files, links and special files."""

    directories: list[Step] = field(default_factory=list)
    files: list[Step] = field(default_factory=list)
    others: list[Step] = field(default_factory=list)
    kept: list[Step] = field(default_factory=list)
    in_the_way: list[Step] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    bytes: int = 0

    @property
    def messages(self) -> int:
        """How many of the files are messages, kept ones included."""
        return sum(step.is_message for step in self.files) + sum(step.is_message for step in self.kept)

    def lines(self) -> tuple[PlanLine, ...]:
        """The plan for a person."""
        return tuple(
            PlanLine(action, show(step.path))
            for action, steps in (("mkdir", self.directories), ("write", self.files), ("link", self.others), ("keep", self.kept))
            for step in steps
        )


class Planner:
    """Collects steps below one target."""

    def __init__(self, target: Target, *, overwrite: bool) -> None:
        self._target = target
        self._overwrite = overwrite
        self._seen: set[bytes] = set()
        self._expected: set[bytes] = set()  # where the messages of the present folder go
        self._strangers: dict[bytes, list[bytes]] = {}  # base name → paths of other messages that its directories in the target hold
        self.plan = RestorePlan()

    def add_folder(self, messages: Iterable[FoundEntry], prefix: bytes, place: bytes) -> None:
        """Plan the messages of a mail folder, whose directory below the prefix is `place`."""
        found = list(messages)
        folder = _join(prefix, place)
        self._expected = {path for entry in found if (path := self._path(entry, prefix, place)) is not None}
        self._strangers = {}
        for directory in (_join(folder, b"new"), _join(folder, b"cur")):
            for name in self._target.names(directory):
                if _join(directory, name) not in self._expected:
                    self._strangers.setdefault(split_name(name)[0], []).append(_join(directory, name))
        for entry in found:
            self.add(entry, prefix, place)

    def add(self, found: FoundEntry, prefix: bytes = b"", place: bytes | None = None) -> None:
        """Plan an entry under `prefix`. For a message, `place` is its folder's directory below the prefix."""
        path = found.name
        try:
            path = _path_of(found, prefix, place)
            names = _names_of(found, prefix)
            _check_target(found)
        except (UnsafeName, RecordInvalid) as error:
            self.plan.findings.append(Finding(FindingKind.NAME_REFUSED, show(path), str(error)))
            return
        if path in self._seen:
            path = self._free(path)
        self._seen.add(path)
        step = Step(path, found.entry, found.owner, found.refs, found.flag is not None, names)
        if found.entry.type in ("d", "m"):
            self.plan.directories.append(step)
        else:
            self._place(step)

    @staticmethod
    def _path(found: FoundEntry, prefix: bytes, place: bytes) -> bytes | None:
        try:
            return _path_of(found, prefix, place)
        except (UnsafeName, RecordInvalid):
            return None

    def _place(self, step: Step) -> None:
        existing = self._target.look(step.path, step.entry)
        if existing is Existing.ABSENT and step.is_message:
            existing, step = self._elsewhere(step)
        if existing is Existing.WHOLE:
            self.plan.kept.append(step)
            return
        if existing is Existing.OTHER and not self._overwrite:
            self.plan.in_the_way.append(step)
            return
        (self.plan.files if step.entry.type == "f" else self.plan.others).append(step)
        self.plan.bytes += step.entry.size

    def _elsewhere(self, step: Step) -> tuple[Existing, Step]:
        """A message may lie there already under another name: its flags changed, or it moved from new to cur. The base name tells.

        It keeps the name that it has now. Other messages of the snapshot with the same base name do not count.
        """
        strangers = self._strangers.get(split_name(os.path.basename(step.path))[0], [])
        for path in strangers:
            if self._target.look(path, step.entry) is Existing.WHOLE:
                strangers.remove(path)
                return Existing.WHOLE, replace(step, path=path)
        if strangers:
            return Existing.OTHER, replace(step, path=strangers.pop())
        return Existing.ABSENT, step

    def _free(self, path: bytes) -> bytes:
        """Two messages with one name: both are restored, the second under a base name of its own."""
        directory, name = os.path.split(path)
        base, rest = split_name(name)
        number = 2
        while (candidate := os.path.join(directory, base + b".%d" % number + rest)) in self._seen:
            number += 1
        return candidate


def _path_of(found: FoundEntry, prefix: bytes, place: bytes | None) -> bytes:
    if found.flag is None:
        path = safe_path(found.entry.name)
        return prefix if path == b"." else _join(prefix, path)
    base = safe_path(found.entry.name, single=True)
    directory, rest = flag_parts(found.flag)
    return _join(_join(prefix, place or b""), directory_of(directory) + b"/" + base + rest)


def _names_of(found: FoundEntry, prefix: bytes) -> Names | None:
    """What a file shares with its other names. Names of messages are no links: they come back as copies."""
    if found.entry.hard is None or found.entry.type != "f" or found.flag is not None:
        return None
    return _join(prefix, safe_path(found.entry.hard)), found.refs


def _check_target(found: FoundEntry) -> None:
    if found.entry.type == "l":
        target = b"" if found.entry.target is None else from_name(found.entry.target)
        if not target or b"\0" in target:
            raise RecordInvalid(f"a symbolic link to {target!r}")


def _join(*parts: bytes) -> bytes:
    return b"/".join(part for part in parts if part)


def plan_mailbox(reader: VaultReader, tree: MailboxTree, planner: Planner, *, prefix: bytes = b"", folder: str | None = None) -> None:
    """Plan a mailbox, or one folder of it with its state files. Raises NotFound for an unknown folder."""
    chosen = [f for f in tree.folders if folder is None or folder_matches(from_name(f.name), folder)]
    if not chosen:
        names = ", ".join(sorted(show(from_name(f.name)) or "INBOX" for f in tree.folders))
        raise NotFound(f"{tree.address} has no folder {folder}", hint=f"Its folders: {names}.")
    picked = {from_name(f.name) for f in chosen}
    for found in reader.files(tree.blocks, tree.files, f"files of {tree.address}"):
        if folder is None or _belongs(found.name, picked, tree):
            planner.add(found, prefix)
    for row in chosen:
        place = safe_path(row.name) if row.name else b""
        planner.add_folder(reader.messages(tree, row), prefix, place)


def _belongs(path: bytes, chosen: set[bytes], tree: MailboxTree) -> bool:
    """Whether a file of the mailbox belongs to one of the chosen folders: its nearest folder decides; parents of a chosen folder are made."""
    folders = {from_name(f.name) for f in tree.folders}
    if path == b"." or any(name == path or name.startswith(path + b"/") for name in chosen):
        return True
    nearest = path
    while nearest and nearest not in folders:
        nearest = os.path.dirname(nearest)
    return nearest in chosen


def plan_files(reader: VaultReader, snapshot: Snapshot, planner: Planner, paths: Iterable[bytes]) -> None:
    """Plan files and directories of directory sources, by absolute path, under their whole paths. Raises NotFound for what no source holds."""
    wanted = {path.rstrip(b"/") or b"/" for path in paths}
    met: set[bytes] = set()
    planned: set[bytes] = set()  # sources may lie in one another: what an earlier one holds is not planned again
    for root in snapshot.root.directories:
        source = from_name(root.path).rstrip(b"/")
        if not any(_touches(source, path) for path in wanted):
            continue
        own: set[bytes] = set()
        for found in reader.directory(snapshot, root):
            whole = source if found.name == b"." else source + b"/" + found.name
            hits = {path for path in wanted if whole == path or whole.startswith(path.rstrip(b"/") + b"/")}
            met |= hits
            if hits and whole not in planned:
                own.add(whole)
                planner.add(found, source.lstrip(b"/"))
        planned |= own
    missing = sorted(wanted - met)
    if missing:
        raise NotFound(
            f"snapshot {snapshot.seq} does not hold {show(missing[0])}" + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            hint="Paths are absolute and lie below a [[directory]] of the configuration.",
        )


def _touches(source: bytes, path: bytes) -> bool:
    return path == source or path.startswith(source + b"/") or source.startswith(path.rstrip(b"/") + b"/")
