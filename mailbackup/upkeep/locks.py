"""Object Lock care: what must stay is kept locked, from a machine that the mail server cannot reach.

A lock is set when an object is made, and ends. Whoever may not delete can wait for that, so the locks of all that is still needed are made longer before
they run out. What was learned of them is remembered, so that not every object is asked for each night.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mailbackup.errors import ObjectMissing, StoreRefused
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import VAULT_KEY, ObjectKey, act_key, entry_key, pack_key
from mailbackup.stores.base import Store
from mailbackup.upkeep.acts import Book
from mailbackup.upkeep.needs import Needs
from mailbackup.upkeep.parallel import in_order
from mailbackup.upkeep.registry import Registry

DAY = 86400
FILE_NAME = "locks.sqlite"
_SAMPLE = 200  # objects that a check asks for
_AT_ONCE = 500  # objects after which what was learned is on disk


def to_keep(registry: Registry, book: Book, head: int) -> list[ObjectKey]:
    """All objects that must stay: ledger, acts, keys, lists, and what live packs and kept snapshots need. The registry is that of the whole ledger.

    What was dropped is not among them, also while it can be taken back: its lock, if left alone, ends in time for its deletion.
    """
    needs = Needs(registry, book, kept_only=True)
    kept = set(needs.snapshots)
    found = [entry_key(seq) for seq in range(1, head + 1)]
    found += [act_key(link.act.seq) for link in book.acts]
    found += [link.act.details.key for link in book.acts if link.act.details is not None]
    found += [key for key in registry.objects if not key.startswith("snapshots/") or int(key[10:20]) in kept]
    return found + [pack_key(pack) for pack, life in registry.packs.items() if needs.needs(life)]


# ---------------------------------------------------------------- extending


@dataclass(slots=True)
class Extended:
    """What was done: locks that were made longer, objects that are `still` locked long enough, and those that could not be, with why.

    `left` were not tried, since the store refused all of the first ones.
    """

    extended: int = 0
    still: int = 0
    failed: list[tuple[ObjectKey, str]] = field(default_factory=list)
    left: int = 0


class Remembered:
    """How long objects are locked, as far as it was learned; a file of one store. For one thread. `where` = what the file is about.

    It is a memory and no proof: when it is lost, or about another place, everything is asked for anew. A file that cannot be used is made anew.
    """

    def __init__(self, path: str, where: str) -> None:
        self._db = self._open(path, where)

    @staticmethod
    def _open(path: str, where: str) -> sqlite3.Connection:
        try:
            return _prepared(path, where)
        except sqlite3.DatabaseError:
            with open(path, "wb"):
                pass  # nothing of it is needed
            return _prepared(path, where)

    def known(self) -> dict[str, float]:
        """Key → until when (seconds since 1970)."""
        return dict(self._db.execute("SELECT key, until FROM locked"))

    def learn(self, rows: Iterable[tuple[str, float]]) -> None:
        """Remember, durably when this returns."""
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO locked (key, until) VALUES (?, ?)", rows)

    def forget(self, keys: Iterable[str]) -> None:
        """Objects that are gone, or need no lock any more."""
        with self._db:
            self._db.executemany("DELETE FROM locked WHERE key = ?", ((key,) for key in keys))

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _prepared(path: str, where: str) -> sqlite3.Connection:
    db = sqlite3.connect(path)
    try:
        with db:
            db.execute("CREATE TABLE IF NOT EXISTS locked (key TEXT PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID")
            db.execute("CREATE TABLE IF NOT EXISTS place (name TEXT NOT NULL)")
            if db.execute("SELECT name FROM place").fetchall() != [(where,)]:
                db.execute("DELETE FROM locked")
                db.execute("DELETE FROM place")
                db.execute("INSERT INTO place VALUES (?)", (where,))
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def remembered(path: str, where: str) -> Iterator[Remembered]:
    """What is remembered in a file, see `Remembered`."""
    with closing(Remembered(path, where)) as found:
        yield found


def extend(store: Store, keys: Sequence[ObjectKey], now: float, lock_days: int, remembered: Remembered) -> Extended:
    """Lock these objects until `lock_days` after `now` (the store's clock, see `Store.now`) where less than half of that is left.

    Raises what an unreachable store raises; what was done by then is done and remembered. An object that is missing, or that the store does not
    let these credentials lock, is in `failed`.
    """
    result, known = Extended(), remembered.known()
    enough, until = now + lock_days * DAY / 2, now + lock_days * DAY
    remembered.forget(known.keys() - set(keys))
    asked = [key for key in keys if known.get(key, 0.0) < enough]
    result.still = len(keys) - len(asked)
    for start in range(0, len(asked), _AT_ONCE):
        chunk = asked[start : start + _AT_ONCE]
        if not _some(store, chunk, enough, until, remembered, result):
            result.left = len(asked) - start - len(chunk)
            break
    return result


def _some(store: Store, keys: Sequence[ObjectKey], enough: float, until: float, remembered: Remembered, result: Extended) -> bool:
    """Whether any of these was locked or could be."""
    learned: list[tuple[str, float]] = []
    done = in_order(lambda key: _one(store, key, enough, until), keys, store.traits.parallel)
    try:
        for key, (held, extended, why) in zip(keys, done, strict=True):
            if why is not None:
                result.failed.append((key, why))
                continue
            result.extended += extended
            result.still += not extended
            learned.append((key, held))
    finally:
        remembered.learn(learned)
    return bool(learned)


def _one(store: Store, key: ObjectKey, enough: float, until: float) -> tuple[float, bool, str | None]:
    """Until when an object is locked now, whether that was made longer, and why it could not be."""
    try:
        held = store.locked_until(key)
        if held is not None and held >= enough:
            return held, False, None
        store.lock_until(key, until)
    except (ObjectMissing, StoreRefused) as error:
        return 0.0, False, error.message
    return until, True, None


# ---------------------------------------------------------------- looking


def look(store: Store, keys: Sequence[ObjectKey]) -> list[Finding]:
    """A finding when objects that must stay are not locked, or will not be soon; a sample where there are many. Nothing in a store without locks.

    Soon is a quarter of the time for which objects are locked: whoever makes locks longer does it when half of it is left.
    """
    if not store.traits.object_lock or not keys:
        return []
    chosen = list(keys) if len(keys) <= _SAMPLE else [*_always(keys), *random.sample(keys, _SAMPLE)]
    soon = store.now() + store.traits.lock_days * DAY / 4
    ending: list[tuple[float, ObjectKey]] = []
    for key, (held, why) in zip(chosen, in_order(lambda key: _held(store, key), chosen, store.traits.parallel), strict=True):
        if why is not None:
            return [Finding(FindingKind.LOCK_UNKNOWN, key, why)]
        if held is not None and held < soon:
            ending.append((held, key))
    return [_ending(ending, len(chosen), store.now())] if ending else []


def _always(keys: Sequence[ObjectKey]) -> list[ObjectKey]:
    """What every restore needs is asked for each time."""
    return [key for key in keys if key == VAULT_KEY or key.startswith("keys/")][:_SAMPLE]


def _held(store: Store, key: ObjectKey) -> tuple[float | None, str | None]:
    """Until when an object is locked (0 = not at all, None = it is missing, which others find), or why that cannot be told."""
    try:
        return store.locked_until(key) or 0.0, None
    except ObjectMissing:
        return None, None
    except StoreRefused as error:
        return None, error.message


def _ending(ending: list[tuple[float, ObjectKey]], asked: int, now: float) -> Finding:
    held, first = min(ending)
    what = (
        "is not locked"
        if not held
        else f"its lock {'ends' if held >= now else 'ended'} {datetime.fromtimestamp(held, UTC):%Y-%m-%d %H:%M} UTC"
    )
    others = (
        f"; so it is, or sooner than it should be, with {len(ending) - 1} more of {asked} objects that were asked for"
        if len(ending) > 1
        else ""
    )
    return Finding(FindingKind.LOCK_ENDS, first, f"{what}{others}")
