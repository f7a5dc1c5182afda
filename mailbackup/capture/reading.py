"""Reading files that others may be writing, renaming or deleting at the same moment."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator

CHUNK = 4 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY  # a FIFO in a file's place must not block
_TRIES = 3
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}


class Gone(Exception):
    """The name is not there any more: look again, it may have another one."""


class OtherKind(Exception):
    """The name is something else than a regular file now."""


class Unreadable(Exception):
    """The file cannot be read; the text says why."""


def open_file(path: bytes, dir_fd: int | None = None) -> tuple[int, os.stat_result]:
    """A regular file, open, and its status; the caller closes it. Raises Gone, OtherKind or Unreadable."""
    try:
        fd = os.open(path, _FLAGS, dir_fd=dir_fd)
    except OSError as error:
        raise _told(error) from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise OtherKind
    return fd, status


@contextlib.contextmanager
def opened(path: bytes, dir_fd: int | None = None) -> Iterator[tuple[int, os.stat_result]]:
    """The same, closed at the end."""
    fd, status = open_file(path, dir_fd)
    try:
        yield fd, status
    finally:
        os.close(fd)


def read_whole(fd: int, size: int) -> bytes:
    """Everything in an open file that had `size` bytes a moment ago. Transient errors are tried again. Raises Unreadable."""
    parts = [_read(fd, size + 1, 0)]
    offset = len(parts[0])
    while parts[-1] and offset != size:  # longer or shorter than it said: read to its end
        parts.append(_read(fd, CHUNK, offset))
        offset += len(parts[-1])
    return parts[0] if len(parts) == 1 else b"".join(parts)


def chunks(fd: int) -> Iterator[bytes]:
    """Everything in an open file, in chunks of 4 MiB. Raises Unreadable."""
    offset = 0
    while data := _read(fd, CHUNK, offset):
        yield data
        offset += len(data)


def unchanged(before: os.stat_result, fd: int, length: int) -> bool:
    """Whether an open file is what it was when it was opened, and `length` bytes were read of it."""
    after = os.fstat(fd)
    return (after.st_size, after.st_mtime_ns) == (length, before.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def begins_with(path: bytes, dir_fd: int, start: bytes) -> bool:
    """Whether a regular file begins with these bytes. What cannot be read does not."""
    try:
        with opened(path, dir_fd) as (fd, _):
            return _read(fd, len(start), 0) == start
    except (Gone, OtherKind, Unreadable):
        return False


def xattrs_of(file: int | bytes | str, *, follow: bool = True) -> dict[str, str] | None:
    """Extended attributes (ACLs are such), values in base64; None when there are none or the file system has none.

    One that the kernel lists and does not give is left out, and so is one whose name is not UTF-8: the format has names as text.
    """
    options = {} if isinstance(file, int) else {"follow_symlinks": follow}
    try:
        names = os.listxattr(file, **options)
    except OSError:
        return None
    found = {}
    for name in sorted(names):
        with contextlib.suppress(OSError, UnicodeEncodeError):
            name.encode()
            found[name] = base64.b64encode(os.getxattr(file, name, **options)).decode()
    return found or None


def _read(fd: int, size: int, offset: int) -> bytes:
    for attempt in range(_TRIES + 1):
        try:
            return os.pread(fd, size, offset)
        except OSError as error:
            if error.errno != errno.EIO or attempt == _TRIES:
                raise Unreadable(error.strerror or str(error)) from None
            time.sleep(0.01 * 4**attempt)
    raise AssertionError("unreachable")


def _told(error: OSError) -> Exception:
    if error.errno in _GONE:
        return Gone()
    if error.errno == errno.ELOOP:
        return OtherKind()
    if error.errno == errno.ENXIO:  # a socket
        return OtherKind()
    return Unreadable(error.strerror or str(error))
