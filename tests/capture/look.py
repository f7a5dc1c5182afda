"""Looking at what capture made: the listing of a snapshot, the reference counts in the state; and a place where a user without rights can work."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from mailbackup import access, app
from mailbackup.mail.maildir import flag_parts
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import from_name
from mailbackup.model.results import BackupResult
from mailbackup.model.tree import BlobRef, DirectoryRoot, Folder
from mailbackup.testing.mounts import unprivileged
from mailbackup.vault.heal import TABLE, table_blocks, unit_refs
from mailbackup.vault.reader import FoundEntry, VaultReader
from mailbackup.vault.state import State
from mailbackup.vault.statefile import FILE_NAME
from tests.world import ALICE, World

NOBODY = 65534


class Message(NamedTuple):
    """A message as a snapshot lists it. `file` is its path relative to the mailbox."""

    file: bytes
    content: bytes
    mtime: int


def kinds(result: BackupResult) -> list[FindingKind]:
    """What a run found."""
    return [finding.kind for finding in result.findings]


def listed(reader: VaultReader, folder: bytes, entries: list[FoundEntry]) -> set[Message]:
    """The messages of a folder."""
    found = set()
    for entry in entries:
        assert entry.flag is not None
        place, rest = flag_parts(entry.flag)
        path = b"/".join([*([folder] if folder else []), {b"c": b"cur", b"n": b"new"}[place], entry.name + rest])
        content = b"".join(map(reader.blocks.blob, entry.refs))
        found.add(Message(path, content, entry.entry.mtime[0] * 10**9 + entry.entry.mtime[1]))
    return found


def on_disk(maildir: str) -> set[Message]:
    """The messages that a Maildir holds, wherever they lie."""
    found = set()
    root = os.fsencode(maildir)
    for path, _, names in os.walk(root):
        for name in names if os.path.basename(path) in (b"cur", b"new") else ():
            full = os.path.join(path, name)
            with open(full, "rb") as file:
                found.add(Message(os.path.relpath(full, root), file.read(), os.fstat(file.fileno()).st_mtime_ns))
    return found


@contextlib.contextmanager
def opened_vault(world: World) -> Iterator[VaultReader]:
    """The vault of a world, open for reading."""
    with access.use_vault(world.context) as (reader, _):
        yield reader


def folders_of(world: World, address: str = ALICE, at: str = "latest") -> dict[bytes, Folder]:
    """The folders of a mailbox as its tree lists them."""
    with opened_vault(world) as reader:
        _, tree = reader.mailbox(reader.snapshot(reader.find(at)), address)
        return {from_name(folder.name): folder for folder in tree.folders}


def entries_of(world: World, address: str = ALICE, at: str = "latest") -> list[FoundEntry]:
    """All messages of a mailbox as its tree lists them."""
    with opened_vault(world) as reader:
        _, tree = reader.mailbox(reader.snapshot(reader.find(at)), address)
        return [entry for folder in tree.folders for entry in reader.messages(tree, folder)]


def files_of(world: World, address: str = ALICE, at: str = "latest") -> dict[bytes, FoundEntry]:
    """What a mailbox holds besides messages, as its tree lists it."""
    with opened_vault(world) as reader:
        _, tree = reader.mailbox(reader.snapshot(reader.find(at)), address)
        return {entry.name: entry for entry in reader.files(tree.blocks, tree.files, "files")}


def directory_of(world: World, at: str = "latest") -> tuple[DirectoryRoot, dict[bytes, FoundEntry]]:
    """The first directory source as a snapshot lists it."""
    with opened_vault(world) as reader:
        snapshot = reader.snapshot(reader.find(at))
        root = snapshot.root.directories[0]
        return root, {entry.name: entry for entry in reader.directory(snapshot, root)}


def wrong_counts(state: State) -> dict[tuple[str, int], tuple[int, int]]:
    """Blocks whose reference count (first) is not how often the cached trees refer to them (second)."""
    wanted: Counter[tuple[str, int]] = Counter()
    for kind in ("mail", "directory"):
        for unit in state.units(kind).values():
            unit.tree = state.tree_of(unit.no)
            wanted.update(map(_block, unit_refs(state, unit)))
    wanted.update(table_blocks(state.get(TABLE) or "[]"))
    rows = state.execute("SELECT pack.id, number, refs FROM block JOIN pack ON pack.no = block.pack")
    counted = {(row[0], row[1]): row[2] for row in rows}
    return {block: (counted.get(block, 0), wanted[block]) for block in {*counted, *wanted} if counted.get(block, 0) != wanted[block]}


def _block(ref: BlobRef) -> tuple[str, int]:
    return ref.pack, ref.number


def check(world: World, *results: BackupResult) -> None:
    """The state knows the mailboxes of the newest snapshot, its counts are right, a keyed audit of the whole vault finds nothing, and the runs had nothing
    to say but that much was deleted."""
    with contextlib.closing(State(f"{world.state}/{FILE_NAME}", world.context.anchors.vault)) as state:
        assert wrong_counts(state) == {}
        assert set(state.units("mail")) == {line.key for line in app.mailboxes(world.context)}
    assert world.verify(decrypt=True).findings == ()
    for result in results:
        assert {finding.kind for finding in result.findings} <= {FindingKind.ANOMALY, FindingKind.MAILBOX_SHRANK}, result.findings


@contextlib.contextmanager
def without_rights(world: World) -> Iterator[None]:
    """The body as a user to whom the whole world belongs, but who is not root. Everything must have been used once: what Python imports late it may
    not be able to read."""
    for path, directories, names in os.walk(world.root):
        for name in [".", *directories, *names]:
            if os.geteuid() == 0:
                os.chown(f"{path}/{name}", NOBODY, NOBODY, follow_symlinks=False)
    with unprivileged():
        yield


@contextlib.contextmanager
def open_directory() -> Iterator[str]:
    """A temporary directory that other users can reach; those of pytest are closed to them."""
    path = tempfile.mkdtemp(prefix="mailbackup-test-")
    os.chmod(path, 0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)
