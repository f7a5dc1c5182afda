"""How a finished file of a local store gets its name: atomically where the file system can, else under a lock and with a look first.

`link` and `renameat2` with RENAME_NOREPLACE never replace what exists. exFAT, CIFS without hard links and many FUSE file systems know
neither. There one look and a plain rename have to do: the lock file keeps the processes of this host apart, and nobody keeps apart two
hosts that share the directory. Hence the trait `create_only` of such a store is False.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from mailbackup.host import publish_new
from mailbackup.stores.local_tree import LOCK

_CANNOT = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}  # what `publish_new` raises where it can do neither
_NO_LOCKS = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}


def can_create_only(temps: int) -> bool | None:
    """Whether `publish_new` works on the file system of the folder open as `temps`, tried there; nothing stays behind.

    None when that cannot be found out now, as in a folder that may only be read.
    """
    name = secrets.token_hex(16)
    source, target = f"{name}.1", f"{name}.2"
    try:
        for _ in range(2):  # the second must be refused
            os.close(os.open(source, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=temps))
            publish_new(source, target, temps, temps)
    except FileExistsError:
        return True
    except OSError as error:
        return False if error.errno in _CANNOT else None
    finally:
        for left in (source, target):
            with contextlib.suppress(OSError):
                os.unlink(left, dir_fd=temps)
    return False


def publish_looked(temp: str, final: str, temp_fd: int, final_fd: int, root: int) -> None:
    """`host.publish_new` where that does not work, for the store whose root is open as `root`. Raises OSError, FileExistsError as it does."""
    with _locked(root):
        try:
            os.stat(final, dir_fd=final_fd, follow_symlinks=False)
        except FileNotFoundError:
            os.rename(temp, final, src_dir_fd=temp_fd, dst_dir_fd=final_fd)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), final)


@contextmanager
def _locked(root: int) -> Iterator[None]:
    """One at a time, of all threads and processes of this host. Without locks in the file system: only the look protects."""
    fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=root)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(fd)
