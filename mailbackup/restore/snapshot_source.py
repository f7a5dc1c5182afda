"""A snapshot as the source of a rebuild."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

from mailbackup.errors import NotFound
from mailbackup.model import codec
from mailbackup.model.events import OnEvent
from mailbackup.model.ids import from_name
from mailbackup.model.system import INVENTORY, Inventories, Inventory
from mailbackup.model.tree import DUMPS, SYSTEM, DirectoryRoot, MailboxRow, MailboxTree, Snapshot
from mailbackup.restore.accounts import RootAccounts
from mailbackup.restore.execute import Executor
from mailbackup.restore.plan import Planner, plan_mailbox
from mailbackup.restore.server import Placed
from mailbackup.restore.target import Target
from mailbackup.vault.reader import FoundEntry, VaultReader


class Located(NamedTuple):
    """An entry, its whole path without the leading slash, and the path of its source likewise."""

    path: bytes
    prefix: bytes
    found: FoundEntry


class SnapshotSource:
    """What a snapshot holds of a server: all of its mailboxes, unless some are chosen. `durable`: what is placed has to survive a power cut."""

    def __init__(self, reader: VaultReader, snapshot: Snapshot, on_event: OnEvent, *, durable: bool = True) -> None:
        self._durable = durable
        self.reader = reader
        self.snapshot = snapshot
        self._on_event = on_event
        self._keys: set[str] | None = None

    def choose(self, keys: set[str] | None) -> None:
        """Take only the mailboxes with these keys (None = all). To be said before `mailboxes` is asked for."""
        self._keys = keys

    @cached_property
    def inventories(self) -> tuple[Inventory, ...]:
        """The systems of the snapshot. Raises NotFound when none was captured."""
        return codec.decode(self.dump(INVENTORY), Inventories, INVENTORY).systems

    def dump(self, name: str) -> bytes:
        """What a program said then."""
        wanted = name.encode()
        for row in self._dumps:
            if row.path == wanted:
                return self._content(row.found)
        raise NotFound(
            f"snapshot {self.snapshot.seq} holds no dump {name}", hint="Systems are saved when [systems] use is set in the configuration."
        )

    def read(self, path: str) -> bytes:
        """A small file of a system."""
        wanted = path.strip("/").encode("utf-8", "surrogateescape")
        for row in self._systems:
            if row.path == wanted and row.found.entry.type == "f":
                return self._content(row.found)
        raise NotFound(f"snapshot {self.snapshot.seq} does not hold {path}")

    def place(self, paths: tuple[str, ...], without: tuple[str, ...], root: str, accounts: RootAccounts) -> Placed:
        """Put files and directories below `root`."""
        target = Target(root, accounts, durable=self._durable)
        planner = Planner(target, overwrite=True)
        for row in self._chosen(_relative(paths), _relative(without), target):
            planner.add(row.found, row.prefix)
        return self._executed(planner, target)

    def place_mail(self, root: str, accounts: RootAccounts) -> Placed:
        """Put the wanted mailboxes where they were."""
        placed = Placed()
        for _, tree in self.mailboxes:
            target = Target(root, accounts, durable=self._durable)
            planner = Planner(target, overwrite=True)
            plan_mailbox(self.reader, tree, planner, prefix=from_name(tree.path).lstrip(b"/"))
            placed.add(self._executed(planner, target))
        return placed

    @cached_property
    def mailboxes(self) -> list[tuple[MailboxRow, MailboxTree]]:
        """The wanted mailboxes with their trees."""
        return [
            (row, self.reader.record(ref, MailboxTree, f"tree of {row.address}"))
            for row, ref in self.reader.mailboxes(self.snapshot)
            if self._keys is None or row.key in self._keys
        ]

    def listing(self, paths: tuple[str, ...]) -> Iterator[Located]:
        """Entries of `[[directory]]` sources at or below `paths`."""
        wanted = _relative(paths)
        for root in self.snapshot.root.directories:
            if root.name != DUMPS and not root.name.startswith(SYSTEM):
                yield from (row for row in self._rows(root) if _hit(row.path, wanted))

    # -- inside

    def _executed(self, planner: Planner, target: Target) -> Placed:
        done = Executor(self.reader, planner.plan, target, overwrite=True, on_event=self._on_event).run()
        kept = sum(step.is_message for step in planner.plan.kept)
        return Placed(done.files + len(planner.plan.kept) - kept, done.messages + kept, done.bytes, done.findings)

    def _chosen(self, wanted: set[bytes], without: set[bytes], target: Target) -> Iterator[Located]:
        """Entries to place: what was asked for, and directories above it that the target does not have."""
        rows = {row.path: row for row in self._touched(wanted)}
        hits = {path for path in rows if _hit(path, wanted) and (rows[path].found.entry.type == "d" or not _hit(path, without))}
        above = {parent for path in hits for parent in _parents(path) if parent in rows and not target.names(parent)}
        yield from (rows[path] for path in sorted(hits | above))

    def _touched(self, wanted: set[bytes]) -> Iterator[Located]:
        yield from self._systems
        for root in self.snapshot.root.directories:
            if root.name != DUMPS and not root.name.startswith(SYSTEM) and _touches(from_name(root.path).strip(b"/"), wanted):
                yield from self._rows(root)

    @cached_property
    def _systems(self) -> list[Located]:
        return [row for root in self.snapshot.root.directories if root.name.startswith(SYSTEM) for row in self._rows(root)]

    @cached_property
    def _dumps(self) -> list[Located]:
        roots = [root for root in self.snapshot.root.directories if root.name == DUMPS]
        return [row._replace(path=row.found.name) for root in roots for row in self._rows(root)]

    def _rows(self, root: DirectoryRoot) -> Iterator[Located]:
        prefix = from_name(root.path).strip(b"/")
        for found in self.reader.directory(self.snapshot, root):
            path = prefix if found.name == b"." else b"/".join(filter(None, (prefix, found.name)))
            if path:
                yield Located(path, prefix, found)

    def _content(self, found: FoundEntry) -> bytes:
        return b"".join(self.reader.blocks.blob(ref) for ref in found.refs)


def _relative(paths: Iterable[str]) -> set[bytes]:
    return {path.strip("/").encode("utf-8", "surrogateescape") for path in paths}


def _parents(path: bytes) -> Iterator[bytes]:
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path


def _hit(path: bytes, wanted: set[bytes]) -> bool:
    return path in wanted or any(parent in wanted for parent in _parents(path))


def _touches(source: bytes, wanted: set[bytes]) -> bool:
    return _hit(source, wanted) or any(path == source or path.startswith(source + b"/") for path in wanted)
