"""Directory facts: what proves, without listing it, that a mail folder's `new` or `cur` did not change since the last run.

Kept in the state's file and transaction. Only stamps that are older than two seconds at their listing are kept: a younger one proves nothing. On
network file systems, where a client may cache attributes, nothing is proven and nothing is kept.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import time

from mailbackup.capture.scan import ABSENT, QUIET_NS, Stamp
from mailbackup.vault.state import State

_NETWORK = {0x6969, 0xFF534D42, 0xFE534D42, 0x517B, 0x01021997, 0x5346414F, 0x00C36400, 0x65735546}
"""f_type of nfs, cifs, smb2, smb, 9p, afs, ceph, fuse (statfs(2))."""


class DirFacts:
    """The facts of one unit."""

    def __init__(self, state: State, unit: int | None) -> None:
        self._state = state
        self._facts: dict[bytes, tuple[str, Stamp]] = {}
        if unit is not None:
            rows = state.execute("SELECT path, volume, inode, mtime, ctime FROM dirfact WHERE unit = ?", (unit,))
            self._facts = {row[0]: (row[1], Stamp(row[2], row[3], row[4])) for row in rows}

    def prove(self, folder: bytes, volume: str | None, stamps: tuple[Stamp, Stamp]) -> bool:
        """Whether a folder's new and cur are, by their stamps, as they were when they were last listed."""
        known = self._facts.get(folder + b"/new"), self._facts.get(folder + b"/cur")
        return volume is not None and known == ((volume, _storable(stamps[0])), (volume, _storable(stamps[1])))

    @staticmethod
    def keep(state: State, unit: int, folder: bytes, volume: str | None, stamps: tuple[Stamp, Stamp], listed: int) -> None:
        """Remember the stamps of a listing that began at `listed` (ns), if they prove something."""
        forget(state, unit, folder)
        if volume is None or any(s != ABSENT and s.mtime > listed - QUIET_NS for s in stamps):
            return
        for name, known in ((b"/new", stamps[0]), (b"/cur", stamps[1])):
            state.execute("INSERT INTO dirfact VALUES (?, ?, ?, ?, ?, ?)", (unit, folder + name, volume, *_storable(known)))


def forget(state: State, unit: int, folder: bytes) -> None:
    """A folder whose facts prove nothing any more."""
    state.execute("DELETE FROM dirfact WHERE unit = ? AND path IN (?, ?)", (unit, folder + b"/new", folder + b"/cur"))


def _storable(stamp: Stamp) -> Stamp:
    """SQLite has signed integers of 64 bits; overlay file systems use the highest bit of inodes."""
    return stamp._replace(inode=stamp.inode & (1 << 63) - 1)


def now_ns() -> int:
    """The clock that file systems stamp with."""
    return time.time_ns()


class _StatFs(ctypes.Structure):
    _fields_ = (
        ("f_type", ctypes.c_long),
        ("f_bsize", ctypes.c_long),
        ("f_blocks", ctypes.c_ulong),
        ("f_bfree", ctypes.c_ulong),
        ("f_bavail", ctypes.c_ulong),
        ("f_files", ctypes.c_ulong),
        ("f_ffree", ctypes.c_ulong),
        ("f_fsid", ctypes.c_int * 2),
        ("rest", ctypes.c_long * 16),
    )


def volume_of(path: bytes) -> str | None:
    """An id of the file system that stays over reboots (f_fsid; st_dev does not); None for network file systems and where it cannot be asked."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = _StatFs()
    if libc.statfs(ctypes.c_char_p(os.fsencode(path)), ctypes.byref(found)) != 0:
        return None
    if found.f_type & 0xFFFFFFFF in _NETWORK:
        return None
    return f"{found.f_type & 0xFFFFFFFF:x}:{found.f_fsid[0] & 0xFFFFFFFF:08x}{found.f_fsid[1] & 0xFFFFFFFF:08x}"
