"""A directory that a restore writes into.

Nothing here follows a symbolic link below the root of the target: every directory is opened component by component with O_NOFOLLOW, and files are
made in place by their directory's descriptor. So an archived link `evil -> /etc` followed by `evil/passwd` cannot write outside, nor can a link
that somebody plants while the restore runs. A file appears under its name whole, by rename, or not at all.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

from mailbackup.errors import RecordInvalid, SafetyRefusal, StoreRefused, WouldOverwrite
from mailbackup.host import group_id, translate_os_error, user_id
from mailbackup.model.ids import from_name, show
from mailbackup.model.tree import Entry, Mtime, Owner
from mailbackup.restore.attributes import ACCESS, DEFAULT, as_it_stands, drop_acls, first_mode, hands_down, set_xattrs
from mailbackup.restore.holes import write_parts

_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DESCRIPTORS = 64  # directories that are kept open
_NANO = 1_000_000_000
_LAST_ORDINARY = 1 << 31  # seconds; every file system has the times before
_LARGEST_ID = (1 << 32) - 2  # the number after it means "leave it as it is"


class Numbers(Protocol):
    """Numbers of users and groups by name; None where there is no such name."""

    def user_id(self, name: str, /) -> int | None:
        """Number of a user."""

    def group_id(self, name: str, /) -> int | None:
        """Number of a group."""


class _Here:
    """The accounts of this host."""

    user_id = staticmethod(user_id)
    group_id = staticmethod(group_id)


_HERE = _Here()


class Existing(Enum):
    """What lies where an entry will go."""

    ABSENT = auto()
    WHOLE = auto()  # the same kind, size and mtime: an earlier, interrupted restore finished it
    OTHER = auto()


class AttributeKept(Exception):
    """Content is in place, but an attribute could not be set; the text names it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a file will go: its path, its name, and descriptors of its directory and of the one it is written in first (maybe the same)."""

    path: bytes
    name: bytes
    home: int
    staging: int
    inherits: bool  # the directory that it is written in gives its files an ACL

    def release(self) -> None:
        """Close the descriptors."""
        os.close(self.home)
        if self.staging != self.home:
            os.close(self.staging)


class Target:
    """The root directory of a restore. It is made (0700) when the first thing is written.

    `accounts` tell the numbers of users and groups where the directory is the root of another machine, whose accounts are not those of this one.
    Without `durable` nothing is flushed at the end: for what is thrown away anyway.
    """

    def __init__(self, root: str, accounts: Numbers | None = None, *, durable: bool = True) -> None:
        self._durable = durable
        self._accounts = accounts or _HERE
        self.root = os.fsencode(os.path.abspath(root))
        self.as_root = os.geteuid() == 0
        self._descriptors: OrderedDict[bytes, int] = OrderedDict()
        self._hand_down: set[bytes] = set()  # directories that give an ACL to what is made in them

    # -- looking, for the plan

    def look(self, path: bytes, entry: Entry) -> Existing:
        """What lies at `path` now, compared with the entry by kind, size and mtime."""
        try:
            status = os.lstat(self._full(path))
        except OSError:
            return Existing.ABSENT
        if entry.type == "l":
            same = stat.S_ISLNK(status.st_mode) and entry.target is not None and os.readlink(self._full(path)) == from_name(entry.target)
        elif entry.type == "f":
            same = stat.S_ISREG(status.st_mode) and (status.st_size, divmod(status.st_mtime_ns, _NANO)) == (entry.size, tuple(entry.mtime))
        else:
            same = stat.S_IFMT(status.st_mode) == _FORMATS.get(entry.type)
        return Existing.WHOLE if same else Existing.OTHER

    def names(self, path: bytes) -> list[bytes]:
        """Names in a directory; none when it is not there."""
        try:
            return os.listdir(self._full(path))
        except OSError:
            return []

    def _full(self, path: bytes) -> bytes:
        return self.root + b"/" + path if path else self.root

    # -- writing

    def prepare(self) -> None:
        """Make the root."""
        try:
            os.makedirs(self.root, mode=0o700, exist_ok=True)
        except FileExistsError:
            raise WouldOverwrite(f"{show(self.root)} exists and is not a directory", hint="Choose another --to.") from None
        except OSError as error:
            raise translate_os_error(error, f"make {show(self.root)}") from error

    def make_directory(self, path: bytes) -> None:
        """A directory, and those above it. Attributes come at the end, by `finish_directory`."""
        self._directory(path)

    def place(self, path: bytes, through: bytes | None = None) -> Place:
        """Where a file will go, with the directories on the way made: beside its temporary name, or through the directory `through` (a Maildir's
        tmp). To be released by the caller."""
        directory, name = os.path.split(path)
        home = os.dup(self._directory(directory))
        try:
            staging = home if through is None else os.dup(self._directory(through))
            return Place(path, name, home, staging, inherits=(directory if through is None else through) in self._hand_down)
        except BaseException:
            os.close(home)
            raise

    def write_file(self, place: Place, parts: Iterable[bytes], entry: Entry, owner: Owner, *, replace: bool) -> None:
        """A file, whole or not at all: written under a temporary name, then renamed. May run in several threads at once.

        Raises WouldOverwrite when something is there and `replace` is false; AttributeKept when only an attribute is missing.
        """
        temp = b".mailbackup-" + secrets.token_hex(8).encode()
        with self._translated(place.path):
            fd = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=place.staging)
            try:
                write_parts(fd, parts)
                wide = drop_acls(fd, ACCESS) if place.inherits else ""
                kept = _first(wide, self._dress(fd, entry, owner))
                self._publish(place.staging, temp, place.home, place.name, replace=replace)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temp, dir_fd=place.staging)
                raise
            finally:
                os.close(fd)
        if kept:
            raise AttributeKept(kept)

    def _dress(self, fd: int, entry: Entry, owner: Owner) -> str:
        """Everything about a file but its content, in the order in which nothing undoes another."""
        kept = self._own(fd, owner)
        mode = owner.mode & (0o1777 if kept else 0o7777)  # no set-uid program of somebody else
        os.fchmod(fd, first_mode(mode, entry.xattrs))
        return _first(set_xattrs(fd, entry.xattrs), _set_time(fd, entry.mtime), kept)

    @staticmethod
    def _publish(staging: int, temp: bytes, home: int, name: bytes, *, replace: bool) -> None:
        if replace:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISDIR(os.stat(name, dir_fd=home, follow_symlinks=False).st_mode):
                    raise WouldOverwrite(f"a directory is where {show(name)} must go", hint="Move it away and run again.")
            os.rename(temp, name, src_dir_fd=staging, dst_dir_fd=home)
            return
        try:
            os.link(temp, name, src_dir_fd=staging, dst_dir_fd=home, follow_symlinks=False)
        except FileExistsError:
            raise WouldOverwrite(f"{show(name)} appeared in the target meanwhile") from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
                raise
            if os.access(name, os.F_OK, dir_fd=home, follow_symlinks=False):
                raise WouldOverwrite(f"{show(name)} appeared in the target meanwhile") from None
            os.rename(temp, name, src_dir_fd=staging, dst_dir_fd=home)
            return
        os.unlink(temp, dir_fd=staging)

    def link(self, path: bytes, first: bytes, *, replace: bool) -> None:
        """A further name of a file that was restored. Raises WouldOverwrite as `write_file` does."""
        directory, name = os.path.split(path)
        source_directory, source = os.path.split(first)
        home = self._directory(directory)
        with self._translated(path):
            _make_room(home, name, replace=replace)
            os.link(source, name, src_dir_fd=self._directory(source_directory), dst_dir_fd=home, follow_symlinks=False)

    def special(self, path: bytes, entry: Entry, owner: Owner, *, replace: bool) -> None:
        """A symbolic link, FIFO or device. Raises WouldOverwrite as `write_file` does, AttributeKept when this user may not make it."""
        directory, name = os.path.split(path)
        home = self._directory(directory)
        with self._translated(path):
            _make_room(home, name, replace=replace)
            if entry.type == "l":
                os.symlink(from_name(entry.target) if entry.target is not None else b"", name, dir_fd=home)
            elif entry.type == "p":
                os.mkfifo(name, owner.mode & 0o7777, dir_fd=home)
            else:
                self._device(home, name, entry, owner)
            ids = self._ids(owner)
            if self.as_root and ids is not None:
                os.chown(name, *ids, dir_fd=home, follow_symlinks=False)
            with as_it_stands(home, name, _FORMATS[entry.type]) as itself:
                kept = _dress_special(itself, entry, owner)
            kept = _first(kept, _set_time(name, entry.mtime, dir_fd=home, follow_symlinks=False))
        if kept:
            raise AttributeKept(kept)

    def _device(self, home: int, name: bytes, entry: Entry, owner: Owner) -> None:
        if entry.device is None:
            raise RecordInvalid(f"{show(name)}: a device without numbers")
        if not self.as_root:
            raise AttributeKept("a device, which only root can make")
        os.mknod(name, (owner.mode & 0o7777) | _FORMATS[entry.type], os.makedev(*entry.device), dir_fd=home)

    def finish_directory(self, path: bytes, entry: Entry, owner: Owner) -> None:
        """Owner, mode, attributes and mtime of a directory, once everything below it is in place. Raises AttributeKept."""
        fd = self._directory(path)
        with self._translated(path):
            kept = self._own(fd, owner)
            wide = drop_acls(fd, ACCESS, DEFAULT)
            os.fchmod(fd, first_mode(owner.mode & 0o7777, entry.xattrs))
            kept = _first(wide, set_xattrs(fd, entry.xattrs), _set_time(fd, entry.mtime), kept)
        if kept:
            raise AttributeKept(kept)

    def close(self) -> None:
        """Make everything durable and release descriptors."""
        if self._durable:
            self._flush()
        for fd in self._descriptors.values():
            os.close(fd)
        self._descriptors.clear()

    def _flush(self) -> None:
        with contextlib.suppress(OSError):
            fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _syncfs(fd)
            finally:
                os.close(fd)

    # -- inside

    def _own(self, fd: int, owner: Owner) -> str:
        """Set the owner as root; else say once what stays. An id that this host calls otherwise goes back by name."""
        if self.as_root:
            ids = self._ids(owner)
            if ids is None:
                return f"owner {owner.uid}, group {owner.gid}: there are no such numbers"
            os.fchown(fd, *ids)
            return ""
        status = os.fstat(fd)
        return "" if (status.st_uid, status.st_gid) == (owner.uid, owner.gid) else "owner"

    def _ids(self, owner: Owner) -> tuple[int, int] | None:
        """Numbers there: by name where the name exists (daemons get their numbers in order of installation), else the old number."""
        uid = self._accounts.user_id(owner.user) if owner.user else None
        gid = self._accounts.group_id(owner.group) if owner.group else None
        ids = (owner.uid if uid is None else uid), (owner.gid if gid is None else gid)
        return ids if all(0 <= number <= _LARGEST_ID for number in ids) else None

    def _directory(self, path: bytes) -> int:
        """A descriptor of a directory below the root, made if need be, reached without following a link. It stays open for the next calls."""
        fd = self._descriptors.get(path)
        if fd is not None:
            self._descriptors.move_to_end(path)
            return fd
        with self._translated(path):
            fd = self._descriptors[path] = self._walk(path)
            if hands_down(fd):
                self._hand_down.add(path)
        if len(self._descriptors) > _DESCRIPTORS:
            os.close(self._descriptors.popitem(last=False)[1])
        return fd

    def _walk(self, path: bytes) -> int:
        """Enter component after component, from the nearest directory that is open."""
        above = path
        while above and above not in self._descriptors:
            above = os.path.dirname(above)
        if above in self._descriptors:
            fd = os.dup(self._descriptors[above])
        else:
            fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in path[len(above) :].split(b"/"):
            if name:
                try:
                    below = _enter(fd, name)
                finally:
                    os.close(fd)
                fd = below
        return fd

    @contextlib.contextmanager
    def _translated(self, path: bytes) -> Iterator[None]:
        try:
            yield
        except (ValueError, OverflowError) as error:  # a number or a name that this system cannot have
            raise RecordInvalid(f"{show(self._full(path))}: {error}") from None
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.EISDIR):
                raise WouldOverwrite(f"something else is at {show(self._full(path))}", hint="Move it away and run again.") from None
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise SafetyRefusal(
                    f"{show(self._full(path))}: a symbolic link or file stands where a directory belongs",
                    hint="Links in the target are not followed. Restore into an empty folder.",
                ) from None
            raise translate_os_error(error, f"write {show(self._full(path))}") from error


_FORMATS = {"d": stat.S_IFDIR, "m": stat.S_IFDIR, "l": stat.S_IFLNK, "p": stat.S_IFIFO, "c": stat.S_IFCHR, "b": stat.S_IFBLK}


def _enter(parent: int, name: bytes) -> int:
    try:
        return os.open(name, _OPEN_DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        os.mkdir(name, 0o700, dir_fd=parent)
        return os.open(name, _OPEN_DIRECTORY, dir_fd=parent)


def _make_room(home: int, name: bytes, *, replace: bool) -> None:
    """Nothing stands at `name` afterwards. Raises WouldOverwrite, also for a directory (a backup may call one thing a link and a folder)."""
    try:
        mode = os.stat(name, dir_fd=home, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise WouldOverwrite(f"a directory is where {show(name)} must go", hint="Move it away and run again.")
    if not replace:
        raise WouldOverwrite(f"{show(name)} appeared in the target meanwhile")
    os.unlink(name, dir_fd=home)


def _set_time(file: int | bytes, mtime: Mtime, **options: Any) -> str:
    """Set the mtime. An empty text, or why that failed: a time that this file system or machine cannot have."""
    ns = mtime[0] * _NANO + mtime[1]
    try:
        os.utime(file, ns=(ns, ns), **options)
        if 0 <= mtime[0] < _LAST_ORDINARY or (now := os.stat(file, **options).st_mtime_ns // _NANO) == mtime[0]:
            return ""
    except (OSError, OverflowError) as error:
        return f"time {mtime[0]}: {error}"
    return f"time {mtime[0]}: this file system made it {now}"  # the kernel clamps, and says nothing


def _dress_special(itself: str, entry: Entry, owner: Owner) -> str:
    """Mode and attributes of a link, FIFO or device."""
    wide = mode = ""
    if entry.type != "l":
        wide = drop_acls(itself, ACCESS)
        try:
            os.chmod(itself, first_mode(owner.mode & 0o7777, entry.xattrs))
        except OSError as error:
            mode = f"mode {owner.mode:o}: {error.strerror}"
    return _first(mode, wide, set_xattrs(itself, entry.xattrs))


def _first(*reasons: str) -> str:
    """What is told of several attributes that could not be set. Its arguments have all been tried by then."""
    return next(filter(None, reasons), "")


def _syncfs(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(fd) != 0:
        raise StoreRefused("cannot sync the target")
