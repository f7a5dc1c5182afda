"""How much may be written into a local store: the reserve of its file system, and the quota that the administrator has set."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mailbackup.errors import NoSpace
from mailbackup.host import free_bytes

RESERVE_PERCENT = 5  # a full /var stops Postfix: the smaller of these two is left free (design section 4.6)
RESERVE_BYTES = 5 << 30
CHECK_EVERY = 16 << 20  # bytes that may be written before the free space is asked for again


def reserve_of(total: int) -> int:
    """Bytes that are never used of a file system of this size, where nothing else is configured."""
    return min(total * RESERVE_PERCENT // 100, RESERVE_BYTES)


def _exempt(key: str) -> bool:
    """`prune` must be able to sign what it is about to free."""
    return key.startswith("acts/")


class Room:
    """What the store called `name` at `path` may still take. Safe to use from several threads.

    `reserve`: bytes of the file system that stay free, None = `reserve_of` it. `quota`: bytes of objects that it may hold, None = any number.
    `count` tells how many it holds; it is called once, when a quota first needs it. From then on the quota knows of what this process
    writes and deletes, and not of what others do: one writer at a time is the rule of a vault.
    """

    def __init__(self, name: str, path: str, reserve: int | None, quota: int | None, count: Callable[[], int]) -> None:
        self._name = name
        self._path = path
        self._reserve = reserve
        self._quota = quota
        self._count = count
        self._held: int | None = None
        self._lock = threading.Lock()

    def grant(self, key: str, wanted: int) -> int:
        """How many bytes (at least `wanted`) a writer of `key` may write before it has to ask again. Raises NoSpace within the reserve."""
        free, total = free_bytes(self._path)
        if total == 0 or _exempt(key):  # total: unknown to the file system
            return wanted + CHECK_EVERY
        reserve = reserve_of(total) if self._reserve is None else self._reserve
        if free - reserve < wanted:
            raise NoSpace(
                f"store {self._name} at {self._path} has {free >> 20} MiB free, of which {reserve >> 20} MiB are kept in reserve: "
                f"no room for {wanted} bytes of {key}"
            )
        return max(wanted, min(free - reserve, CHECK_EVERY))

    def take(self, key: str, size: int) -> None:
        """`size` more bytes are going to be written to `key`. Raises NoSpace beyond the quota; else `give_back` what is not kept."""
        if self._quota is None:
            return
        with self._lock:
            held = self._count() if self._held is None else self._held
            if held + size > self._quota and not _exempt(key):
                raise NoSpace(
                    f"store {self._name} holds {held} bytes, and its quota is {self._quota}: no room for {size} bytes of {key}",
                    hint=f"Set 'quota' of store {self._name} higher, or prune; what was stored stays valid.",
                )
            self._held = held + size

    def give_back(self, size: int) -> None:
        """So many bytes were deleted, or taken and not kept."""
        with self._lock:
            if self._held is not None:
                self._held = max(0, self._held - size)
