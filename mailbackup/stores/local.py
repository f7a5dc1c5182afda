"""A store in a directory: an object is a file of mode 0600, its key is its path.

How an object becomes visible, and why so:

1. its bytes go to a fresh file in `.tmp` below the root (the same file system, never listed) and are flushed to disk;
2. folders on the way to it are made, and the folders that hold *them* are flushed;
3. `link` gives it its name: atomic, and unlike `rename` it never replaces what is there. File systems without hard links get `renameat2`
   with RENAME_NOREPLACE, and those without that a look and a rename under a lock (`local_publish`), which the traits admit;
4. its folder is flushed. Only now `put` returns.

Some network file systems (CIFS) and FUSE ones cannot flush a folder: they answer EINVAL, which is taken for success. There a name is sent to
the other side before the call that gives it returns, and what that side keeps through a power cut of its own is not for this host to know;
no later flush would change it. So `durable_after_put` stays True: nothing of a put waits on this host.

A kill leaves at most a file in `.tmp`, removed when the store is opened a day later. All paths are walked from the root, which stays open,
without following symbolic links: whoever can plant a link in the store cannot lead a write or a read out of it. A marker file in the root
(or vault.json, in a store made before there were markers) tells it from an empty mount point, and each verb first looks whether the root
still lies at its path: an unmounted disk is "unavailable", never "all objects are missing".
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from mailbackup.errors import MailbackupError, ObjectDamaged, StoreUnavailable
from mailbackup.host import publish_new, sync_folder, translated, write_all
from mailbackup.model.ids import ObjectKey
from mailbackup.stores.base import ObjectStat, ObjectWriter, Shadow, StoreTraits
from mailbackup.stores.checks import checked_key, checked_range, key_exists, missing, too_long, too_short
from mailbackup.stores.local_publish import can_create_only, publish_looked
from mailbackup.stores.local_room import Room
from mailbackup.stores.local_tree import TEMP, check_marked, components, enter, entered, make_marked, walk

STALE_TEMP = 24 * 3600  # seconds after which no writer can still be at work on a file in .tmp

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # NONBLOCK: a FIFO under a key must not hang a reader
_NOT_A_FILE = {errno.ELOOP, errno.ENXIO}  # what opening a symbolic link or a socket with _READ gives


class LocalStore:
    """A store in the directory `path`, made by `create_root`. Raises StoreUnavailable when it is not there, or is no store.

    `reserve_bytes` of the file system are left free (default: 5 % of it or 5 GiB, whichever is smaller), and at most `quota_bytes` of
    objects are held (default: as many as fit); a write beyond that raises NoSpace. Acts are exempt: `prune` must be able to sign what it is
    about to free. `ObjectStat.time` is the file's modification time. `traits.create_only` is what was found by trying.
    """

    def __init__(self, path: str, name: str, reserve_bytes: int | None = None, quota_bytes: int | None = None) -> None:
        self.path = os.path.abspath(path)
        self.name = name
        self.traits = StoreTraits(range_reads=True, create_only=True, durable_after_put=True)
        self._tried = False
        self.room = Room(name, self.path, reserve_bytes, quota_bytes, self._held)
        self._durable: set[str] = set()  # folders whose own names are known to be on disk
        with translated(f"open store {name} at {self.path}"):
            self._root_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with self.doing("recognise", "the directory"):
                check_marked(self._root_fd, self.name, self.path)
        except BaseException:
            self.close()
            raise
        self._drop_stale_temps()

    @staticmethod
    def create_root(path: str) -> None:
        """Make the directory (mode 0700), what is missing above it, and the marker. Harmless when they exist."""
        path = os.path.abspath(path)
        with translated(f"make the store directory {path}"):
            make_marked(path)

    def close(self) -> None:
        """Give back the open root; every later verb raises StoreUnavailable."""
        fd, self._root_fd = self._root_fd, -1
        if fd >= 0:
            os.close(fd)

    def try_create_only(self) -> None:
        """Let the traits say what this file system can do. Found out before the first write, so that reading changes nothing."""
        if self._tried:
            return
        with contextlib.suppress(OSError), entered(self._root_fd, TEMP) as temps:
            found = can_create_only(temps)
            self._tried = found is not None
            self.traits = replace(self.traits, create_only=found is not False)

    # ------------------------------------------------------------ writing

    def put(self, key: ObjectKey, data: bytes) -> None:
        """See `Store.put`. After KeyExists the existing object is as durable as after its own put."""
        with self.doing("write", key):
            self.try_create_only()
            if self._on_disk(checked_key(key)):  # spares the write; who comes first is decided by the link
                raise key_exists(key, self.name)
        with self.create(key) as writer:
            writer.write(data)
            writer.commit()

    def _on_disk(self, key: str) -> bool:
        try:
            with self.folder(key) as (folder, leaf):
                os.stat(leaf, dir_fd=folder, follow_symlinks=False)
                sync_folder(folder)
        except FileNotFoundError:
            return False
        return True

    def create(self, key: ObjectKey) -> AbstractContextManager[ObjectWriter]:
        """See `Store.create`. The free space is checked every 16 MiB."""
        return self._writing(checked_key(key))

    @contextmanager
    def _writing(self, key: str) -> Iterator[ObjectWriter]:
        with self.doing("write", key):
            writer = _Writer(self, key)
        try:
            yield writer
        finally:
            writer.abort()

    def flush(self) -> None:
        """See `Store.flush`: every put was durable."""

    def now(self) -> float:
        """The clock of this host."""
        return time.time()

    def uncover(self, key: ObjectKey) -> bool:
        """See `Store.uncover`: there are no versions."""
        return False

    def shadows(self, prefix: str = "") -> Iterator[tuple[str, Shadow]]:
        """See `Store.shadows`: there are no versions."""
        return iter(())

    def locked_until(self, key: ObjectKey) -> float | None:
        """See `Store.locked_until`: there are no locks."""
        return None

    def lock_until(self, key: ObjectKey, time: float) -> None:
        """See `Store.lock_until`: there are no locks."""

    def delete(self, key: ObjectKey) -> None:
        """See `Store.delete`. Not flushed: a deletion that a power cut undoes leaves a dead pack, which the next prune removes."""
        with (
            self.doing("delete", key),
            contextlib.suppress(FileNotFoundError),
            self.folder(checked_key(key)) as (folder, leaf),
        ):
            size = os.stat(leaf, dir_fd=folder, follow_symlinks=False).st_size
            os.unlink(leaf, dir_fd=folder)
            self.room.give_back(size)

    def _held(self) -> int:
        with self._scanning() as root:
            return sum(found.size for _, found in walk(root, "", ""))

    # ------------------------------------------------------------ reading

    def get(self, key: ObjectKey, limit: int) -> bytes:
        """See `Store.get`."""
        with self._opened(key) as (fd, size):
            data = _read(fd, 0, min(size, limit) + 1)
        if len(data) > limit:
            raise too_long(key, self.name, limit)
        return data

    def get_range(self, key: ObjectKey, offset: int, length: int) -> bytes:
        """See `Store.get_range`."""
        checked_range(offset, length)
        with self._opened(key) as (fd, size):
            data = _read(fd, offset, length) if offset + length <= size else None
        if data is None or len(data) < length:
            raise too_short(key, self.name, offset, length)
        return data

    def stream(self, key: ObjectKey, chunk: int = 1 << 20) -> Iterator[bytes]:
        """See `Store.stream`."""
        with self._opened(key) as (fd, _):
            _advise(fd, os.POSIX_FADV_SEQUENTIAL)
            while piece := os.read(fd, chunk):
                yield piece
            _advise(fd, os.POSIX_FADV_DONTNEED)  # a scrub must not push the mail server's files out of memory

    def stat(self, key: ObjectKey) -> ObjectStat:
        """See `Store.stat`."""
        with self._opened(key) as (fd, size):
            return ObjectStat(size, os.fstat(fd).st_mtime)

    def list(self, prefix: str = "") -> Iterator[tuple[str, ObjectStat]]:
        """See `Store.list`. Names that are not UTF-8 are shown escaped; symbolic links and the like are shown, not followed."""
        with self.doing("list", prefix or "all objects"), self._scanning() as root:
            yield from walk(root, "", prefix)

    def prefixes(self, prefix: str) -> tuple[str, ...]:
        """See `Store.prefixes`."""
        with self.doing("list", prefix or "all objects"), self._scanning() as root:
            return tuple(components(root, "", prefix))

    # ------------------------------------------------------------ the directory

    def doing(self, verb: str, subject: str) -> AbstractContextManager[None]:
        """Translates every OSError of the body."""
        return translated(f"{verb} {subject} in store {self.name} ({self.path})")

    def _root(self) -> int:
        with translated(f"reach store {self.name} at {self.path}"):
            if os.path.samestat(os.stat(self.path), os.fstat(self._root_fd)):
                return self._root_fd
        raise StoreUnavailable(f"store {self.name}: {self.path} is no longer the directory that was opened")

    def _scanning(self) -> AbstractContextManager[int]:
        return entered(self._root(), ".")

    def publish(self, temp: str, final: str, temp_fd: int, final_fd: int) -> None:
        """`host.publish_new`, or the next best thing. Raises OSError."""
        if self.traits.create_only:
            publish_new(temp, final, temp_fd, final_fd)
        else:
            publish_looked(temp, final, temp_fd, final_fd, self._root())

    @contextmanager
    def folder(self, key: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """The open folder of `key` and the last component. With `make`, missing folders are made, durably. Raises OSError."""
        *parents, leaf = key.split("/")
        fd = enter(self._root(), ".")
        try:
            for depth, part in enumerate(parents, 1):
                if make:
                    self._make_folder(fd, part, "/".join(parents[:depth]))
                fd, above = enter(fd, part), fd
                os.close(above)
            yield fd, leaf
        finally:
            os.close(fd)

    def _make_folder(self, above: int, part: str, path: str) -> None:
        try:
            os.mkdir(part, 0o700, dir_fd=above)
        except FileExistsError:
            if path in self._durable:
                return
        sync_folder(above)  # also when it existed: its maker may have died before this line, or be a thread that is not there yet
        self._durable.add(path)

    @contextmanager
    def _opened(self, key: ObjectKey) -> Iterator[tuple[int, int]]:
        """An object, open, and its size. Raises ObjectMissing, and ObjectDamaged when something else than a file has its name."""
        with self.doing("read", key):
            fd = self._open(checked_key(key))
            try:
                found = os.fstat(fd)
                if not stat.S_ISREG(found.st_mode):
                    raise self._not_a_file(key)
                yield fd, found.st_size
            finally:
                os.close(fd)

    def _open(self, key: str) -> int:
        try:
            with self.folder(key) as (folder, leaf):
                return os.open(leaf, _READ, dir_fd=folder)
        except FileNotFoundError:
            raise missing(key, self.name) from None
        except OSError as error:
            if error.errno in _NOT_A_FILE:
                raise self._not_a_file(key) from None
            raise

    def _not_a_file(self, key: str) -> ObjectDamaged:
        return ObjectDamaged(f"{key} in store {self.name} ({self.path}) is not a file")

    def _drop_stale_temps(self) -> None:
        """Best effort: a store that may only be read is opened all the same."""
        oldest = time.time() - STALE_TEMP
        with contextlib.suppress(OSError), entered(self._root_fd, TEMP) as folder, os.scandir(folder) as found:
            for entry in found:
                if entry.stat(follow_symlinks=False).st_mtime < oldest:
                    os.unlink(entry.name, dir_fd=folder)


class _Writer:
    """An object being written to a file in `.tmp`. For one thread."""

    def __init__(self, store: LocalStore, key: str) -> None:
        self._store = store
        self._key = key
        self._granted = 0  # may be written before the free space is looked at again
        self._taken = 0  # of the quota
        self._temp = f"{TEMP}/{secrets.token_hex(16)}"
        with store.folder(self._temp, make=True) as (folder, leaf):
            self._fd = os.open(leaf, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        store.try_create_only()

    def write(self, data: bytes | memoryview) -> None:
        """See `ObjectWriter.write`."""
        size = memoryview(data).nbytes
        with self._or_abort():
            self._store.room.take(self._key, size)
            self._taken += size
            if size > self._granted:
                self._granted = self._store.room.grant(self._key, size)
            self._granted -= size
            write_all(self._fd, data)

    def commit(self) -> None:
        """See `ObjectWriter.commit`."""
        with self._or_abort():
            os.fsync(self._fd)
            _advise(self._fd, os.POSIX_FADV_DONTNEED)  # reading it back then asks the disk, not the memory
            with self._store.folder(self._temp) as (temps, temp), self._store.folder(self._key, make=True) as (folder, leaf):
                self._publish(temps, temp, folder, leaf)
        self._close()

    def _publish(self, temps: int, temp: str, folder: int, leaf: str) -> None:
        try:
            self._store.publish(temp, leaf, temps, folder)
        except FileExistsError:
            sync_folder(folder)  # who is told so may rely on the object that exists, even if its maker died before this point
            raise key_exists(self._key, self._store.name) from None
        try:
            sync_folder(folder)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(leaf, dir_fd=folder)
            raise

    def abort(self) -> None:
        """See `ObjectWriter.abort`."""
        if self._fd >= 0:
            self._close()
            self._store.room.give_back(self._taken)
            with contextlib.suppress(OSError, MailbackupError), self._store.folder(self._temp) as (folder, leaf):
                os.unlink(leaf, dir_fd=folder)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        with contextlib.suppress(OSError):  # everything that may fail was flushed before, or is thrown away
            os.close(fd)

    @contextmanager
    def _or_abort(self) -> Iterator[None]:
        if self._fd < 0:
            raise ValueError(f"the writer of {self._key} was committed or aborted before")
        try:
            with self._store.doing("write", self._key):
                yield
        except BaseException:
            self.abort()
            raise


def _read(fd: int, offset: int, length: int) -> bytes:
    """`length` bytes from `offset`, fewer only at the end of the file."""
    data = os.pread(fd, length, offset)
    while len(data) < length and (more := os.pread(fd, length - len(data), offset + len(data))):
        data += more
    return data


def _advise(fd: int, advice: int) -> None:
    with contextlib.suppress(OSError):  # advice only
        os.posix_fadvise(fd, 0, 0, advice)
