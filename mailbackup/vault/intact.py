"""Whether the state's file is still what was written.

SQLite notices damage to its own structure, but not a flipped bit in a value, and a wrong reference count would stop blocks that are in use. So
while nobody has the file open, its SHA-256 lies beside it. The sum is taken away before the file may change: a killed run leaves none, and then
the file is taken as it is. Reading the file once costs less than a second per GiB, and what the run reads next is in memory afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os

from mailbackup.errors import MailbackupError
from mailbackup.host import atomic_write, fsync_dir

SUFFIX = ".sum"


def take(path: str) -> bool:
    """Whether nothing speaks against the file. It may be changed afterwards."""
    try:
        with open(path + SUFFIX, encoding="ascii", errors="replace") as file:
            expected = file.read().strip()
        sound = not os.path.exists(path) or _sum(path) == expected
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        sound = False
    forget(path)
    return sound


def forget(path: str) -> None:
    """Take the sum away, durably."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path + SUFFIX)
        fsync_dir(os.path.dirname(path) or ".")


def keep(path: str) -> None:
    """Note the sum of a file that was closed. One that others still write, or that cannot be read, gets none."""
    if os.path.exists(path + "-wal"):
        return
    with contextlib.suppress(OSError, MailbackupError):
        atomic_write(path + SUFFIX, _sum(path).encode() + b"\n")


def _sum(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
