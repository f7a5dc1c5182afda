"""The file of the state: errors of SQLite in our words, what readers may take from it, and how an unusable one is moved out of the way."""

from __future__ import annotations

import os
import sqlite3
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from mailbackup.errors import Busy, MailbackupError, NoSpace, StateUnusable, StoreRefused
from mailbackup.host import free_bytes
from mailbackup.model.ids import Digest, VaultId
from mailbackup.vault import intact

FILE_NAME = "state.db"
STORE_HEAD = "store_head:"  # and the name of a store: a key of `meta`

ERRORS = (sqlite3.Error, UnicodeDecodeError)  # the second also for damaged text
_DAMAGE = ("SQLITE_IOERR_READ", "SQLITE_IOERR_SHORT_READ", "SQLITE_IOERR_DATA", "SQLITE_IOERR_CORRUPTFS")
_TIGHT = 1 << 20  # bytes free below which an I/O error of SQLite, which says no more, means a full disk


class Rows(sqlite3.Cursor):
    """Rows of a statement; SQLite may find damage as late as when one is fetched."""

    path = ""

    def fetchone(self) -> Any:
        try:
            return super().fetchone()
        except ERRORS as error:
            raise translate(error, self.path) from None

    def fetchall(self) -> list[Any]:
        try:
            return super().fetchall()
        except ERRORS as error:
            raise translate(error, self.path) from None

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except ERRORS as error:
            raise translate(error, self.path) from None


@dataclass(frozen=True, slots=True)
class Remembered:
    """What readers ask of a state: the pinned head, that of each store, and (messages, bytes) of the snapshots that the host made."""

    head: tuple[int, Digest] | None = None
    stores: dict[str, tuple[int, Digest]] = field(default_factory=dict)
    counts: dict[int, tuple[int | None, int | None]] = field(default_factory=dict)


def remembered(path: str, vault: VaultId) -> Remembered:
    """What an existing state of this vault remembers; nothing when there is none, or it is unusable. Changes nothing."""
    if not os.path.exists(path):
        return Remembered()
    try:
        db = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=5)
        try:
            meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
            if meta.get("vault") != vault:
                return Remembered()
            counts = {row[0]: (row[1], row[2]) for row in db.execute("SELECT seq, messages, bytes FROM snapshot")}
        finally:
            db.close()
    except ERRORS:
        return Remembered()
    seq, sha256 = meta.get("head_seq"), meta.get("head_hash")
    head = (seq, Digest(sha256)) if isinstance(seq, int) and isinstance(sha256, str) else None
    stores = {key.removeprefix(STORE_HEAD): to_head(value) for key, value in meta.items() if key.startswith(STORE_HEAD)}
    return Remembered(head, {name: pin for name, pin in stores.items() if pin is not None}, counts)


def to_head(value: Any) -> tuple[int, Digest] | None:
    """A head as it stands in `meta`; None for anything else."""
    seq, _, sha256 = str(value).partition(" ")
    return (int(seq), Digest(sha256)) if seq.isdigit() and sha256 else None


def move_aside(path: str) -> str:
    """Rename an unusable state, so that the next one starts afresh and a person can still look. Returns the new name."""
    aside = f"{path}.unusable-{int(time.time())}"
    os.replace(path, aside)
    for suffix in ("-wal", "-shm", intact.SUFFIX):
        if os.path.exists(path + suffix):
            os.remove(path + suffix)
    return aside


def translate(error: Exception, path: str) -> MailbackupError:
    """A SQLite error in our words."""
    text = str(error)
    if "full" in text:
        return NoSpace(f"the state {path} cannot grow: {text}")
    if "readonly" in text or "unable to open" in text:
        return StoreRefused(f"the state {path} cannot be written: {text}", hint="Check permissions and --state.")
    if "locked" in text:
        return Busy(f"the state {path} is in use by another run")
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_IOERR") and name not in _DAMAGE:
        if free_bytes(os.path.dirname(path) or ".")[0] < _TIGHT:
            return NoSpace(f"the state {path} cannot grow: {text}")
        return StoreRefused(f"the state {path} cannot be written: {text}", hint="Look into the system's log for errors of its disk.")
    return StateUnusable(f"the state {path} is unusable: {text}")
