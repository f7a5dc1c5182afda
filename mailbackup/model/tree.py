"""Records of trees and snapshots: format sections 7, 8 and 9. The names of the members are the names in the JSON."""

from __future__ import annotations

from typing import Literal, NamedTuple

from mailbackup.model.codec import Record
from mailbackup.model.finding import Finding
from mailbackup.model.ids import BlobId, Name, PackId, VaultId

SMALL_BLOB = 32 * 1024  # below: shares blocks, deduplicated within its mailbox (locality rule, format section 6)
BLOCK_TARGET = 1024 * 1024  # plaintext of a shared block
BLOCK_LIMIT = 16 * 1024 * 1024  # plaintext of any block
SEALED_LIMIT = 17 * 1024 * 1024  # a sealed block
PIECE_LIMIT = 4 * 1024 * 1024  # a blob of a message or file
RECORD_LIMIT = 16 * 1024 * 1024  # a JSON record
LIST_LIMIT = 1024 * 1024 * 1024  # a list of the ledger
PACK_TARGET = 64 * 1024 * 1024

SYSTEM = "system:"  # begins the name of a source that an adapter of `mailbackup.systems` chose; its path is "/"
DUMPS = "dumps"  # name and path of the source that holds what programs said (no path begins without "/" otherwise)

Mtime = tuple[int, int]  # seconds, nanoseconds


class BlobRef(NamedTuple):
    """Where a blob lies: its block (pack, number, offset, length) and its place in the block's plaintext."""

    pack: PackId
    number: int
    offset: int
    length: int
    start: int
    size: int
    blob: BlobId


class BlockRow(Record, array_like=True, frozen=True, gc=False):
    """A row of `blocks`: where a sealed block lies. Offsets and lengths in bytes."""

    pack: PackId
    number: int
    offset: int
    length: int


class Ref(Record, array_like=True, frozen=True, gc=False):
    """A reference inside a record: row of `blocks`, start and length in its plaintext, blob id."""

    block: int
    start: int
    length: int
    blob: BlobId


class Owner(Record, array_like=True, frozen=True, gc=False):
    """Mode (07777 bits), uid, user name, gid, group name."""

    mode: int
    uid: int
    user: str | None
    gid: int
    group: str | None


class Entry(Record, frozen=True, omit_defaults=True, gc=False):
    """One file, message or directory of a listing (format section 8.1)."""

    name: Name
    type: Literal["f", "d", "l", "p", "c", "b", "m"] = "f"
    owner: int = 0
    mtime: Mtime = (0, 0)
    size: int = 0
    refs: tuple[Ref, ...] = ()
    headers: int = 0
    head: Ref | None = None
    target: Name | None = None
    hard: Name | None = None
    device: tuple[int, int] | None = None
    xattrs: dict[str, str] | None = None


class Segment(Record, frozen=True, kw_only=True):
    """Part of a listing: `files` (paths) or `facts` (messages of one folder)."""

    kind: Literal["files", "facts"]
    blocks: tuple[BlockRow, ...]
    owners: tuple[Owner, ...]
    entries: tuple[Entry, ...]


class Flags(Record, frozen=True, kw_only=True):
    """Where each message of a facts segment lies and its flags; None = not in this snapshot (format section 8.2)."""

    flags: tuple[Name | None, ...]
    kind: Literal["flags"] = "flags"


class SegmentRow(Record, frozen=True):
    """A `files` or table segment as its parent lists it. `first` is the first name in it."""

    ref: Ref
    first: Name
    count: int


class PairRow(Record, frozen=True):
    """A facts segment and its flags as a folder lists them."""

    facts: Ref
    flags: Ref
    first: Name
    count: int


class Folder(Record, frozen=True, omit_defaults=True, kw_only=True):
    """A mail folder: its directory relative to the mailbox ("" = INBOX), its messages and their bytes."""

    name: Name
    messages: int
    bytes: int
    segments: tuple[PairRow, ...]
    stale: bool = False


class MailboxTree(Record, frozen=True, kw_only=True):
    """Root blob of a mailbox's tree (format section 8.3)."""

    key: str
    location: str
    address: str
    path: Name
    blocks: tuple[BlockRow, ...]
    files: tuple[SegmentRow, ...]
    folders: tuple[Folder, ...]
    kind: Literal["mailbox"] = "mailbox"


class MailboxRow(Record, frozen=True, omit_defaults=True, kw_only=True):
    """A mailbox in the table. `stale` = the tree of an earlier snapshot, since it could not be read."""

    key: str
    location: str
    address: str
    messages: int
    bytes: int
    tree: Ref
    stale: bool = False


class MailboxTable(Record, frozen=True, kw_only=True):
    """A segment of the mailbox table."""

    blocks: tuple[BlockRow, ...]
    mailboxes: tuple[MailboxRow, ...]
    kind: Literal["mailboxes"] = "mailboxes"


class DirectoryRoot(Record, frozen=True, omit_defaults=True, kw_only=True):
    """A `[[directory]]` source in the root of a snapshot. Its `name` is its identity."""

    name: str
    path: Name
    segments: tuple[SegmentRow, ...]
    files: int
    bytes: int
    stale: bool = False


class Root(Record, frozen=True, kw_only=True):
    """Everything that a snapshot holds."""

    blocks: tuple[BlockRow, ...]
    directories: tuple[DirectoryRoot, ...]
    mailboxes: tuple[SegmentRow, ...]


class SourceCount(Record, frozen=True, kw_only=True):
    """What one configured source held; the fall guard compares it with the next run."""

    name: str
    kind: Literal["mail", "directory"]
    mailboxes: int
    messages: int
    bytes: int


Outcome = Literal["complete", "explained", "incomplete"]


class Snapshot(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A snapshot object, decoded (format section 9)."""

    format: Literal[1]
    vault: VaultId
    seq: int
    time: str
    host: str
    tool: str
    outcome: Outcome
    root: Root
    sources: tuple[SourceCount, ...]
    findings: tuple[Finding, ...] = ()
    facts: dict[str, str] = {}
