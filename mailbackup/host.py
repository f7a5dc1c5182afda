"""The one door to the operating system: durable writes, free space, names of users, the clock, one run at a time.

Standard library only. An OSError that the user can cause leaves this module as one of our errors, made by `translate_os_error`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import grp
import os
import pwd
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache

from mailbackup.errors import (
    AlreadyExists,
    Busy,
    MailbackupError,
    NoSpace,
    RecordInvalid,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from mailbackup.model.ids import show

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CANNOT_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_RENAME_NOREPLACE = 1  # linux/fs.h

# ---------------------------------------------------------------- errors

_REFUSED = {
    errno.EROFS: "The file system is mounted read-only: 'dmesg' tells whether that is due to an error.",
    errno.EACCES: "Check owner and mode of this path and of the folders above it, or run as root.",
    errno.EPERM: "Check owner, mode and attributes ('lsattr') of this path, or run as root.",
    errno.EFBIG: "Raise the file size limit ('ulimit -f') or use another file system.",
    errno.ELOOP: "Symbolic links are not followed here: put the real file or folder in its place.",
    errno.ENOTDIR: "A file or symbolic link stands where a folder is expected: put the real folder in its place.",
    errno.EISDIR: "A folder stands where a file is expected: move it away.",
}
_UNAVAILABLE = {
    *(errno.ENOENT, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.EBADF),
    *(errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNABORTED, errno.ECONNRESET, errno.EREMOTEIO),
    *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}


def translate_os_error(error: OSError, what: str) -> MailbackupError:
    """Our error for `error`; `what` says what was done and where ("write /var/backups/x"), and begins its text.

    ENOSPC, EDQUOT → NoSpace; permissions, read-only and wrong kinds of file → StoreRefused; what may pass → StoreUnavailable (retryable);
    anything else → StoreError. To be raised `from error`.
    """
    number = error.errno or 0
    text = f"cannot {what}: {error.strerror or error}"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(text)
    if number in _REFUSED:
        return StoreRefused(text, hint=_REFUSED[number])
    if number in _UNAVAILABLE:
        return StoreUnavailable(text)
    return StoreError(text)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Every OSError of the body leaves as `translate_os_error` makes it."""
    try:
        yield
    except OSError as error:
        raise translate_os_error(error, what) from error


def _shown(path: str | bytes) -> str:
    return show(os.fsencode(path))


# ---------------------------------------------------------------- durable writes


def atomic_write(path: str | bytes, data: bytes, *, mode: int = 0o600, replace: bool = True) -> None:
    """Write a file so that, also after a power cut, `path` holds either what it held before or all of `data`.

    The file gets exactly `mode`. A symbolic link at `path` is replaced, not followed. With `replace=False` an existing `path` raises
    AlreadyExists and stays as it is. Other errors are those of `translate_os_error`; nothing is left behind then.
    """
    path = os.fsdecode(path)
    folder, base = os.path.split(path)
    with translated(f"write {_shown(path)}"):
        folder_fd = os.open(folder or ".", _FOLDER)
        try:
            _write_and_publish(folder_fd, base, data, mode, replace)
        except FileExistsError:
            raise AlreadyExists(f"{_shown(path)} exists") from None
        finally:
            os.close(folder_fd)


def _write_and_publish(folder_fd: int, base: str, data: bytes, mode: int, replace: bool) -> None:
    temp = f".mailbackup-{secrets.token_hex(8)}.tmp"
    try:
        fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder_fd)
        try:
            os.fchmod(fd, mode)
            write_all(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        if replace:
            os.rename(temp, base, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
        else:
            publish_new(temp, base, folder_fd, folder_fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temp, dir_fd=folder_fd)
        raise
    sync_folder(folder_fd)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all bytes; `os.write` alone may write fewer (at most 2 GiB, or up to a full disk)."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(fd, rest) :]


def publish_new(temp: str, final: str, temp_fd: int, final_fd: int) -> None:
    """Give the file `temp` (in the folder open as `temp_fd`) the name `final` (in `final_fd`), atomically and only if that is free.

    Raises FileExistsError when it is not, another OSError when this file system can do neither a hard link nor a rename without
    replacing; `temp` is then still there.
    """
    try:
        os.link(temp, final, src_dir_fd=temp_fd, dst_dir_fd=final_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        rename_new(temp, final, temp_fd, final_fd)
    else:
        with contextlib.suppress(OSError):  # it is published: a second name that stays behind does no harm
            os.unlink(temp, dir_fd=temp_fd)


def rename_new(source: str, target: str, source_fd: int, target_fd: int) -> None:
    """`renameat2` with RENAME_NOREPLACE, for file systems without hard links. Raises FileExistsError when `target` exists."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise OSError(errno.EOPNOTSUPP, "neither hard links nor renameat2 are available", target)
    if libc.renameat2(source_fd, os.fsencode(source), target_fd, os.fsencode(target), _RENAME_NOREPLACE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)


def fsync_dir(path: str | bytes) -> None:
    """Make names created in, or removed from, the folder survive a power cut."""
    with translated(f"flush the folder {_shown(path)}"):
        fd = os.open(path, _FOLDER)
        try:
            sync_folder(fd)
        finally:
            os.close(fd)


def sync_folder(fd: int) -> None:
    """`fsync_dir` of an open folder; raises OSError."""
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # CIFS and some FUSE file systems cannot flush a folder: there is nothing better to do
            raise


def free_bytes(path: str | bytes | int) -> tuple[int, int]:
    """Bytes that an unprivileged user may still write on the file system of `path` (or open file), and its size.

    (0, 0) where the file system does not know. Root could use more, but that is what keeps a full server alive.
    """
    with translated(f"ask for the free space of {path if isinstance(path, int) else _shown(path)}"):
        found = os.statvfs(path)
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


# ---------------------------------------------------------------- users and groups


@cache
def user_name(uid: int) -> str | None:
    """Name of a user, None where there is none. Remembered, see `forget_names`."""
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return None


@cache
def group_name(gid: int) -> str | None:
    """Name of a group, None where there is none. Remembered, see `forget_names`."""
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return None


def user_id(name: str) -> int | None:
    """Number of a user, None where there is none. Absence is not remembered: a restore creates users."""
    try:
        return _user_id(name)
    except (KeyError, ValueError):  # ValueError: a name that cannot be one (NUL, lone surrogate)
        return None


def group_id(name: str) -> int | None:
    """Number of a group, None where there is none. Absence is not remembered."""
    try:
        return _group_id(name)
    except (KeyError, ValueError):
        return None


@cache
def _user_id(name: str) -> int:
    return pwd.getpwnam(name).pw_uid


@cache
def _group_id(name: str) -> int:
    return grp.getgrnam(name).gr_gid


def forget_names() -> None:
    """Ask the system anew about users and groups: at the start of each run of a long-lived process, and after accounts were made."""
    for remembered in (user_name, group_name, _user_id, _group_id):
        remembered.cache_clear()


# ---------------------------------------------------------------- the clock

_STAMP = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})Z")


def utc_now() -> datetime:
    """Now, in UTC, with its zone."""
    return datetime.now(UTC)


def stamp(moment: datetime) -> str:
    """`2026-11-24T02:30:00Z` (format section 2), fractions of a second cut off. ValueError when `moment` has no zone."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone")
    return moment.astimezone(UTC).replace(microsecond=0, tzinfo=None).isoformat() + "Z"


def parse_stamp(text: str) -> datetime:
    """The moment of a `stamp`. Raises RecordInvalid for anything else: such text comes out of stores."""
    match = _STAMP.fullmatch(text)
    if match is None:
        raise RecordInvalid(f"time {text!r}: not of the form 2026-11-24T02:30:00Z")
    year, month, day, hour, minute, second = (int(part) for part in match.groups())
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise RecordInvalid(f"time {text!r}: {error}") from None


# ---------------------------------------------------------------- the process


@contextmanager
def run_lock(path: str) -> Iterator[None]:
    """Hold the lock file for the body: one run at a time on this host. Raises Busy at once when another process has it.

    The kernel drops the lock when its process dies, so there are no stale locks. The file stays: removing it would let two runs lock two
    files of one name. It holds the process id, for people.
    """
    with translated(f"open the lock file {path}"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with translated(f"lock {path}"):
            _lock_or_busy(fd, path)
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(fd)


def _lock_or_busy(fd: int, path: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        who = f"process {holder}" if holder.isdigit() else "another process"
        raise Busy(f"{who} holds {path}") from None


def be_nice() -> None:
    """Leave processor and disk to the mail server. Linux derives the I/O priority from the niceness where none was set (ioprio_set(2))."""
    os.nice(19)


SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs of the system are looked for, whatever the environment says: cron's lacks half of it."""

# ---------------------------------------------------------------- scratch directories


@contextmanager
def scratch_directory(parent: str, prefix: str) -> Iterator[str]:
    """A new private directory (0700) in `parent`, whose name begins with `prefix`; removed at the end of the body, however that ends.

    A lock on the directory itself tells that its process lives. What processes left that were killed is removed first: every directory of
    that prefix which belongs to this user and that nobody holds. So a prefix is for one purpose. Nothing may stay mounted in it at the end.
    """
    with translated(f"make a directory in {_shown(parent)}"):
        _remove_abandoned(parent, prefix)
        path, held = _new_scratch(parent, prefix)
    try:
        yield path
    finally:
        try:
            with translated(f"remove {_shown(path)}"):
                remove_tree(path)
        finally:
            os.close(held)


def remove_tree(path: str) -> None:
    """Remove a directory with everything in it, also what its own mode protects. Follows no links; an absent one is fine. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        try:
            shutil.rmtree(path)
        except PermissionError:  # a tree that was restored by an ordinary user has the modes of the original
            for folder, below, _ in os.walk(path):
                for place in (folder, *(os.path.join(folder, name) for name in below)):
                    if not os.path.islink(place):
                        os.chmod(place, 0o700)
            shutil.rmtree(path)


def _new_scratch(parent: str, prefix: str) -> tuple[str, int]:
    """Path and descriptor of a new directory that is locked. One that another run took for abandoned, before it was locked, is given up."""
    while True:
        path = tempfile.mkdtemp(prefix=prefix, dir=parent)
        held = _locked(path)
        if held is not None:
            return path, held


def _remove_abandoned(parent: str, prefix: str) -> None:
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        if not name.startswith(prefix) or (held := _locked(path)) is None:
            continue
        try:
            remove_tree(path)
        finally:
            os.close(held)


def _locked(path: str) -> int | None:
    """A descriptor of this directory of our own, with its lock; None when it is no such directory (any more) or somebody has the lock."""
    try:
        fd = os.open(path, _FOLDER | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_uid == os.geteuid() and os.path.samestat(os.fstat(fd), os.lstat(path)):
            return fd
    except OSError:  # held, or removed meanwhile
        pass
    os.close(fd)
    return None
