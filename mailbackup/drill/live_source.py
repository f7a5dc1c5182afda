"""This host as the source of a rebuild: the files that the night has just captured, to show that their configuration starts. Needs no key."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from functools import cached_property

from mailbackup.capture.system import why_left_out
from mailbackup.errors import NotFound
from mailbackup.host import group_name, user_name
from mailbackup.model.system import Chosen, Inventory
from mailbackup.restore.accounts import RootAccounts
from mailbackup.restore.server import Placed
from mailbackup.systems.ask import Ask, CannotAsk
from mailbackup.systems.known import NAMES, survey, system


class LiveSource:
    """The systems of this host as they are now. No mail: homes come as empty directories, the queue does not come at all."""

    def __init__(self, ask: Ask, use: tuple[str, ...] = NAMES) -> None:
        self._ask = ask
        self._use = tuple(name for name in use if name != "directories")

    @cached_property
    def inventories(self) -> tuple[Inventory, ...]:
        """What is found now. Raises CannotAsk when a system does not answer."""
        found = survey(self._ask, self._use)
        for name, why in found.failed.items():
            raise CannotAsk(f"{name}: {why}")
        return tuple(found.inventories)

    def dump(self, name: str) -> bytes:
        """What the program says now. Raises NotFound."""
        for inventory in self.inventories:
            for dump in inventory.dumps:
                known = system(inventory.system)
                if dump.name == name and known is not None:
                    try:
                        return self._ask.output(dump.argv, dump.timeout) if dump.argv else b"".join(known.dump(self._ask, dump))
                    except CannotAsk as error:
                        raise NotFound(str(error)) from None
        raise NotFound(f"there is no dump {name}")

    def read(self, path: str) -> bytes:
        """A file of this host. Raises NotFound."""
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as error:
            raise NotFound(f"cannot read {path}: {error.strerror}") from None

    def place(self, paths: tuple[str, ...], without: tuple[str, ...], root: str, accounts: RootAccounts) -> Placed:
        """Copy files and directories below `root`, with their owners by name."""
        placed = Placed()
        for path in paths:
            for source in self._below(path):
                if any(source == skip or source.startswith(skip + "/") for skip in without) and not os.path.isdir(source):
                    continue
                _parents(source, root, accounts)
                placed.files += _copy(source, root, accounts)
        return placed

    def place_mail(self, root: str, accounts: RootAccounts) -> Placed:
        """None: what is in the vault only a key can open."""
        return Placed()

    def _below(self, path: str) -> Iterator[str]:
        """A chosen path and what lies below it, without what is left out; of homes and queues only the directory."""
        rows = tuple(row for inventory in self.inventories for row in inventory.paths)
        if not os.path.lexists(path):
            return
        yield path
        row = next((row for row in rows if row.path == path), None)
        if row is None or row.queue or path in self._homes or not os.path.isdir(path) or os.path.islink(path):
            return
        yield from self._walk(path, rows)

    def _walk(self, path: str, rows: tuple[Chosen, ...]) -> Iterator[str]:
        for place, directories, names in os.walk(path):
            directories[:] = sorted(name for name in directories if why_left_out(rows, os.path.join(place, name)) is None)
            for name in [*directories, *sorted(names)]:
                if why_left_out(rows, os.path.join(place, name)) is None:
                    yield os.path.join(place, name)

    @cached_property
    def _homes(self) -> set[str]:
        return {path for inventory in self.inventories for path in inventory.facts.get("homes", ())}


def _parents(path: str, root: str, accounts: RootAccounts) -> None:
    """The directories above, as they are here."""
    above = os.path.dirname(path)
    if above != "/" and not os.path.lexists(root + above):
        _parents(above, root, accounts)
        _copy(above, root, accounts)


def _copy(source: str, root: str, accounts: RootAccounts) -> int:
    """One file, link or directory. Returns whether it was a file."""
    target, status = root + source, os.lstat(source)
    if stat.S_ISDIR(status.st_mode):
        os.makedirs(target, exist_ok=True)
    elif stat.S_ISLNK(status.st_mode):
        if os.path.lexists(target):
            os.unlink(target)
        os.symlink(os.readlink(source), target)
    elif stat.S_ISREG(status.st_mode):
        shutil.copyfile(source, target)
    else:
        return 0
    _own(target, status, accounts)
    return int(stat.S_ISREG(status.st_mode))


def _own(target: str, status: os.stat_result, accounts: RootAccounts) -> None:
    user, group = user_name(status.st_uid), group_name(status.st_gid)
    uid = accounts.user_id(user) if user else None
    gid = accounts.group_id(group) if group else None
    os.chown(target, status.st_uid if uid is None else uid, status.st_gid if gid is None else gid, follow_symlinks=False)
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(target, stat.S_IMODE(status.st_mode))
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
