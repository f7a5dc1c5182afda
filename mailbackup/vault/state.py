"""The state: what the host remembers of its vault, in SQLite (design section 4.6).

It is a cache plus the pinned head. The host cannot read its own backups, so this is how it knows what it already sent. Losing it costs one
full upload, never correctness: the vault decides. Large blobs only are found by id; small ones are found in the cached segments of
their mailbox. Names, sizes, hashes and addresses stand here, never a body or a secret key.

One connection, one lock, one writing thread. A run changes rows in one transaction that is committed together with the pending entry
(`vault.commit`), so a kill leaves either all of it or nothing.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

from mailbackup.errors import ConfigInvalid, NoSpace, StateUnusable, StoreRefused
from mailbackup.model import codec
from mailbackup.model.ids import BlobId, Digest, ObjectKey, PackId, VaultId
from mailbackup.model.ledger import EpochRow, PackRow
from mailbackup.model.tree import BlobRef, Outcome, SourceCount
from mailbackup.vault import intact
from mailbackup.vault.cached import CachedSegment, CachedUnit, packed, to_ref, to_segment, unpacked
from mailbackup.vault.statefile import ERRORS, STORE_HEAD, Rows, move_aside, to_head, translate

VERSION = 1
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE epoch (epoch INTEGER PRIMARY KEY, recipient TEXT, key TEXT, sha256 TEXT, sealed BLOB, recipients TEXT, registered INTEGER);
CREATE TABLE pack (no INTEGER PRIMARY KEY, id TEXT UNIQUE, size INTEGER, sha256 TEXT, blocks INTEGER, footer TEXT, epoch INTEGER,
                   broken INTEGER DEFAULT 0);
CREATE TABLE block (pack INTEGER, number INTEGER, refs INTEGER, PRIMARY KEY (pack, number)) WITHOUT ROWID;
CREATE TABLE blob (id BLOB PRIMARY KEY, pack INTEGER, number INTEGER, offset INTEGER, length INTEGER, size INTEGER) WITHOUT ROWID;
CREATE INDEX blob_pack ON blob (pack, number);
CREATE TABLE unit (no INTEGER PRIMARY KEY, kind TEXT, key TEXT, location TEXT, address TEXT, path BLOB, messages INTEGER, bytes INTEGER,
                   stale INTEGER, dirty INTEGER, tree BLOB, ref BLOB, UNIQUE (kind, key));
CREATE TABLE segment (no INTEGER PRIMARY KEY, unit INTEGER, folder BLOB, id BLOB, data BLOB, inodes BLOB, ctimes BLOB, flags BLOB,
                      dirty INTEGER, UNIQUE (unit, folder, id));
CREATE TABLE dirfact (unit INTEGER, path BLOB, volume TEXT, inode INTEGER, mtime INTEGER, ctime INTEGER, PRIMARY KEY (unit, path)) WITHOUT ROWID;
CREATE TABLE source (name TEXT PRIMARY KEY, kind TEXT, mailboxes INTEGER, messages INTEGER, bytes INTEGER) WITHOUT ROWID;
CREATE TABLE snapshot (seq INTEGER PRIMARY KEY, time TEXT, messages INTEGER, bytes INTEGER, outcome TEXT);
CREATE TABLE pending (position INTEGER PRIMARY KEY, key TEXT, data BLOB);
"""
_LATER = "CREATE TABLE IF NOT EXISTS gather (unit INTEGER PRIMARY KEY, fragments INTEGER, live INTEGER, dead INTEGER)"
"""What a state of this version may lack, and gets when it is opened."""


class State:
    """The open state database. `lock` guards the connection; `find_large` is called by sealing threads."""

    def __init__(self, path: str, vault: VaultId) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.moved_aside: str | None = None
        self._db = self._open(vault)

    # -- opening

    def _open(self, vault: VaultId) -> sqlite3.Connection:
        os.makedirs(os.path.dirname(self.path) or ".", mode=0o700, exist_ok=True)
        try:
            if not intact.take(self.path):
                self.moved_aside = move_aside(self.path)
            try:
                return self._connect(vault)
            except StateUnusable:
                self.moved_aside = move_aside(self.path)
                return self._connect(vault)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(f"the state {self.path} cannot be made: {error.strerror}") from None
            raise StoreRefused(f"the state {self.path} cannot be opened: {error.strerror}", hint="Check permissions and --state.") from None

    def _connect(self, vault: VaultId) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=5)
        try:
            return self._prepare(db, vault)
        except BaseException as error:
            db.close()
            if isinstance(error, ERRORS):
                raise translate(error, self.path) from None
            raise

    def _prepare(self, db: sqlite3.Connection, vault: VaultId) -> sqlite3.Connection:
        """Set a connection up, and make the tables in a new file."""
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA cache_size = -16384")
        if db.execute("PRAGMA user_version").fetchone()[0] == 0:
            self._create(db, vault)
        owner = db.execute("SELECT value FROM meta WHERE key = 'vault'").fetchone()
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version != VERSION or owner is None:
            raise sqlite3.DatabaseError("malformed")
        if owner[0] != vault:
            raise ConfigInvalid(
                f"the state in {self.path} belongs to vault {owner[0][:12]}…, the configuration names {vault[:12]}…",
                hint="Give each vault a state directory of its own with --state DIR.",
            )
        db.execute(_LATER)
        return db

    def _create(self, db: sqlite3.Connection, vault: VaultId) -> None:
        db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        db.execute("INSERT INTO meta VALUES ('vault', ?)", (vault,))

    def close(self) -> None:
        """Close; what is not committed is rolled back."""
        with self.lock:
            self._db.close()
        intact.keep(self.path)

    # -- transactions

    def begin(self) -> None:
        """Start the transaction of a run."""
        self.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Make everything since `begin` durable."""
        if self._db.in_transaction:
            self.execute("COMMIT")

    def rollback(self) -> None:
        """Forget everything since `begin`."""
        if self._db.in_transaction:
            self.execute("ROLLBACK")

    def execute(self, sql: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        """Run one statement. Modules that own tables here use it inside the run's transaction."""
        try:
            with self.lock:
                cursor = self._db.cursor(Rows)
                cursor.path = self.path
                return cursor.execute(sql, tuple(values))
        except ERRORS as error:
            raise translate(error, self.path) from None

    def execute_many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Run one statement for many rows."""
        try:
            with self.lock:
                self._db.executemany(sql, rows)
        except ERRORS as error:
            raise translate(error, self.path) from None

    # -- the pinned head and other single facts

    def get(self, key: str) -> Any:
        """A single remembered value, or None."""
        row = self.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def put(self, key: str, value: Any) -> None:
        """Remember a single value."""
        self.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))

    @property
    def head(self) -> tuple[int, Digest] | None:
        """The pinned head: the highest entry that is known to be in the vault."""
        seq = self.get("head_seq")
        return None if seq is None else (seq, Digest(self.get("head_hash")))

    def set_head(self, seq: int, sha256: Digest) -> None:
        """Pin a head."""
        self.put("head_seq", seq)
        self.put("head_hash", sha256)

    def store_head(self, name: str) -> tuple[int, Digest] | None:
        """The highest entry that was seen in the store called `name`."""
        value = self.get(STORE_HEAD + name)
        return None if value is None else to_head(value)

    def set_store_head(self, name: str, seq: int, sha256: Digest) -> None:
        """Pin the head of one store."""
        self.put(STORE_HEAD + name, f"{seq} {sha256}")

    # -- epochs

    def newest_epoch(self) -> tuple[EpochRow, bytes, str, bool] | None:
        """The newest epoch: its row, sealed identity, the recipients it is sealed to (one a line), and whether an entry named it."""
        row = self.execute(
            "SELECT epoch, recipient, key, sha256, sealed, recipients, registered FROM epoch ORDER BY epoch DESC LIMIT 1"
        ).fetchone()
        if row is None:
            return None
        return EpochRow(epoch=row[0], recipient=row[1], key=ObjectKey(row[2]), sha256=Digest(row[3])), row[4], row[5], bool(row[6])

    def add_epoch(self, row: EpochRow, sealed: bytes, recipients: str) -> None:
        """Remember an epoch before its key object is put."""
        self.execute(
            "INSERT OR REPLACE INTO epoch VALUES (?, ?, ?, ?, ?, ?, 0)", (row.epoch, row.recipient, row.key, row.sha256, sealed, recipients)
        )

    def register_epochs(self, epochs: Iterable[EpochRow]) -> None:
        """An entry names these epochs. One that the state knows otherwise, from before it was lost or rolled back, is replaced: its key is nowhere."""
        for row in epochs:
            known = self.execute("SELECT sha256 FROM epoch WHERE epoch = ?", (row.epoch,)).fetchone()
            if known is None or known[0] != row.sha256:
                self.add_epoch(row, b"", "")
            self.execute("UPDATE epoch SET registered = 1 WHERE epoch = ?", (row.epoch,))

    # -- packs, blocks, large blobs: the live set

    def add_pack(self, row: PackRow) -> int:
        """A registered pack with all its blocks live and not referred to. Returns its local number."""
        cursor = self.execute(
            "INSERT INTO pack (id, size, sha256, blocks, footer, epoch) VALUES (?, ?, ?, ?, ?, ?)",
            (row.id, row.size, row.sha256, row.blocks, row.footer, row.epoch),
        )
        number = cursor.lastrowid
        assert number is not None, "SQLite gives a row id to every insert"
        self.execute_many("INSERT INTO block VALUES (?, ?, 0)", ((number, block) for block in range(row.blocks)))
        return number

    def packs(self) -> dict[PackId, tuple[int, int, int, bool]]:
        """All packs with live blocks: id → (local number, size, blocks, broken)."""
        rows = self.execute("SELECT id, no, size, blocks, broken FROM pack")
        return {PackId(row[0]): (row[1], row[2], row[3], bool(row[4])) for row in rows}

    def pack_rows(self) -> Iterator[tuple[int, PackRow]]:
        """All packs with live blocks as the ledger registered them."""
        for row in self.execute("SELECT no, id, size, sha256, blocks, footer, epoch FROM pack ORDER BY no").fetchall():
            yield row[0], PackRow(id=row[1], size=row[2], sha256=row[3], blocks=row[4], footer=row[5], epoch=row[6])

    def live_blocks(self, pack: int) -> list[int]:
        """Numbers of the live blocks of a pack, sorted."""
        return [row[0] for row in self.execute("SELECT number FROM block WHERE pack = ? ORDER BY number", (pack,))]

    def find_large(self, blob: BlobId) -> BlobRef | None:
        """Where a large blob lies, if a live, whole block holds it. Safe in any thread."""
        row = self.execute(
            "SELECT pack.id, blob.number, offset, length, blob.size FROM blob JOIN pack ON pack.no = blob.pack WHERE blob.id = ?",
            (bytes.fromhex(blob),),
        ).fetchone()
        return None if row is None else BlobRef(PackId(row[0]), row[1], row[2], row[3], 0, row[4], blob)

    def add_large(self, refs: Iterable[BlobRef], packs: dict[PackId, int]) -> None:
        """Remember large blobs of registered packs (id → local number)."""
        self.execute_many(
            "INSERT OR REPLACE INTO blob VALUES (?, ?, ?, ?, ?, ?)",
            ((bytes.fromhex(r.blob), packs[r.pack], r.number, r.offset, r.length, r.size) for r in refs),
        )

    def change_refs(self, changes: dict[tuple[PackId, int], int]) -> list[tuple[PackId, int]]:
        """Add to the reference counts of blocks. Returns the blocks that are not live although something refers to them."""
        packs = {row[0]: row[1] for row in self.execute("SELECT id, no FROM pack")}
        missing = []
        for (pack, number), change in changes.items():
            if change == 0:
                continue
            cursor = self.execute("UPDATE block SET refs = refs + ? WHERE pack = ? AND number = ?", (change, packs.get(pack), number))
            if cursor.rowcount == 0 and change > 0:
                missing.append((pack, number))
        return missing

    def unused_blocks(self) -> dict[PackId, list[int]]:
        """Live blocks that nothing refers to: what a complete snapshot stops."""
        unused: dict[PackId, list[int]] = {}
        rows = self.execute("SELECT pack.id, number FROM block JOIN pack ON pack.no = block.pack WHERE refs <= 0 ORDER BY pack.no, number")
        for pack, number in rows:
            unused.setdefault(PackId(pack), []).append(number)
        return unused

    def drop_blocks(self, stops: Iterable[tuple[PackId, Iterable[int]]]) -> None:
        """These blocks are live no more: forget them and the large blobs in them, and packs without a live block."""
        for pack, numbers in stops:
            row = self.execute("SELECT no FROM pack WHERE id = ?", (pack,)).fetchone()
            if row is None:
                continue
            pairs = [(row[0], number) for number in numbers]
            self.execute_many("DELETE FROM block WHERE pack = ? AND number = ?", pairs)
            self.execute_many("DELETE FROM blob WHERE pack = ? AND number = ?", pairs)
        self.execute("DELETE FROM pack WHERE NOT EXISTS (SELECT 1 FROM block WHERE block.pack = pack.no)")

    def mark_broken(self, packs: Iterable[int]) -> None:
        """These packs are missing or damaged in the store: nothing new may refer to them."""
        for pack in packs:
            self.execute("UPDATE pack SET broken = 1 WHERE no = ?", (pack,))
            self.execute("DELETE FROM blob WHERE pack = ?", (pack,))

    # -- units and segments

    def units(self, kind: str) -> dict[str, CachedUnit]:
        """All mailboxes (`mail`) or directory sources (`directory`), without their trees, by key."""
        rows = self.execute(
            "SELECT no, kind, key, location, address, path, messages, bytes, stale, dirty, ref FROM unit WHERE kind = ?", (kind,)
        )
        return {
            row[2]: CachedUnit(
                row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], bool(row[8]), bool(row[9]), b"", to_ref(row[10])
            )
            for row in rows
        }

    def tree_of(self, unit: int) -> bytes:
        """The plaintext of the root record of a unit."""
        row = self.execute("SELECT tree FROM unit WHERE no = ?", (unit,)).fetchone()
        return unpacked(row[0])

    def put_unit(self, unit: CachedUnit) -> int:
        """Remember a unit; replaces the one of the same kind and key. Returns its number."""
        self.execute(
            "INSERT INTO unit (kind, key, location, address, path, messages, bytes, stale, dirty, tree, ref)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (kind, key) DO UPDATE SET location = excluded.location,"
            " address = excluded.address, path = excluded.path, messages = excluded.messages, bytes = excluded.bytes,"
            " stale = excluded.stale, dirty = excluded.dirty, tree = excluded.tree, ref = excluded.ref",
            (
                unit.kind, unit.key, unit.location, unit.address, unit.path, unit.messages, unit.size, unit.stale, unit.dirty,
                packed(unit.tree), None if unit.ref is None else packed(codec.encode(unit.ref)),
            ),
        )  # fmt: skip
        row = self.execute("SELECT no FROM unit WHERE kind = ? AND key = ?", (unit.kind, unit.key)).fetchone()
        return int(row[0])

    def drop_unit(self, unit: int) -> None:
        """Forget a unit and everything below it."""
        for table, column in (("segment", "unit"), ("dirfact", "unit"), ("gather", "unit"), ("unit", "no")):
            self.execute(f"DELETE FROM {table} WHERE {column} = ?", (unit,))  # noqa: S608 - names from this line

    def segments(self, unit: int, folder: bytes | None = None) -> Iterator[tuple[bytes, CachedSegment]]:
        """The cached segments of a unit (of one folder of it), with their folder."""
        sql = "SELECT folder, id, data, inodes, ctimes, flags, dirty FROM segment WHERE unit = ?"
        values: list[Any] = [unit]
        if folder is not None:
            sql, values = sql + " AND folder = ?", [unit, folder]
        for row in self.execute(sql, values).fetchall():
            yield row[0], to_segment(row[1:])

    def segment(self, unit: int, folder: bytes, blob: BlobId) -> CachedSegment | None:
        """One cached segment."""
        row = self.execute(
            "SELECT id, data, inodes, ctimes, flags, dirty FROM segment WHERE unit = ? AND folder = ? AND id = ?",
            (unit, folder, bytes.fromhex(blob)),
        ).fetchone()
        return None if row is None else to_segment(row)

    def put_segment(self, unit: int, folder: bytes, segment: CachedSegment) -> None:
        """Remember a segment."""
        self.execute(
            "INSERT OR REPLACE INTO segment (unit, folder, id, data, inodes, ctimes, flags, dirty) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                unit, folder, bytes.fromhex(segment.id), packed(segment.data), segment.inodes.tobytes(), segment.ctimes.tobytes(),
                packed(segment.flags), segment.dirty,
            ),
        )  # fmt: skip

    def update_segment(self, unit: int, folder: bytes, blob: BlobId, *, flags: bytes, inodes: array[int]) -> None:
        """A facts segment that stays, with other flags."""
        self.execute(
            "UPDATE segment SET flags = ?, inodes = ?, dirty = 0 WHERE unit = ? AND folder = ? AND id = ?",
            (packed(flags), inodes.tobytes(), unit, folder, bytes.fromhex(blob)),
        )

    def keep_segments(self, unit: int, folder: bytes, keep: set[BlobId]) -> None:
        """Forget the segments of a folder that are not in `keep`."""
        for (blob,) in self.execute("SELECT id FROM segment WHERE unit = ? AND folder = ?", (unit, folder)).fetchall():
            if blob.hex() not in keep:
                self.execute("DELETE FROM segment WHERE unit = ? AND folder = ? AND id = ?", (unit, folder, blob))

    def drop_folder(self, unit: int, folder: bytes) -> None:
        """Forget a folder that is gone."""
        self.execute("DELETE FROM segment WHERE unit = ? AND folder = ?", (unit, folder))

    # -- sources and snapshots

    def sources(self) -> dict[str, SourceCount]:
        """What each source held in the newest snapshot."""
        rows = self.execute("SELECT name, kind, mailboxes, messages, bytes FROM source")
        return {r[0]: SourceCount(name=r[0], kind=r[1], mailboxes=r[2], messages=r[3], bytes=r[4]) for r in rows}

    def set_sources(self, counts: Iterable[SourceCount]) -> None:
        """Remember what each source holds."""
        self.execute("DELETE FROM source")
        self.execute_many("INSERT INTO source VALUES (?, ?, ?, ?, ?)", ((c.name, c.kind, c.mailboxes, c.messages, c.bytes) for c in counts))

    def add_snapshot(self, seq: int, when: str, messages: int | None, size: int | None, outcome: Outcome) -> None:
        """Remember a snapshot; counts None where they are not known."""
        self.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?, ?, ?)", (seq, when, messages, size, outcome))

    def snapshot_counts(self) -> dict[int, tuple[int | None, int | None]]:
        """(messages, bytes) of the snapshots that this host made, by seq."""
        return {row[0]: (row[1], row[2]) for row in self.execute("SELECT seq, messages, bytes FROM snapshot")}

    # -- pending

    def pending(self) -> list[tuple[ObjectKey, bytes]]:
        """Objects that were fixed and may not be in the store yet, in commit order; the entry is last."""
        return [(ObjectKey(row[0]), row[1]) for row in self.execute("SELECT key, data FROM pending ORDER BY position")]

    def set_pending(self, objects: list[tuple[ObjectKey, bytes]]) -> None:
        """Replace what is pending."""
        self.execute("DELETE FROM pending")
        self.execute_many("INSERT INTO pending (key, data) VALUES (?, ?)", objects)
