"""A small host to back up: sources, configuration, vault and kit under one directory, and the commands as functions.

Tests call `mailbackup.app`, the functions behind the commands, on real directories; nothing is faked. For faults at the store, `World.store_hook` wraps
the store that every command opens.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from mailbackup import access, app, config
from mailbackup.model.results import BackupResult, RestoreResult, VerifyResult
from mailbackup.stores.base import Store
from mailbackup.stores.local import LocalStore

ALICE = "alice@example.org"


class World:
    """One host. `root/mail/{domain}/{user}/Maildir` and `root/home` are its sources, `root/vault` its store; further ones are `root/vault-2` …"""

    def __init__(self, root: object, *, directories: bool = False, mail: bool = True, stores: int = 1, urls: tuple[str, ...] = ()) -> None:
        self.root = str(root)
        self.mail = f"{self.root}/mail"
        self.home = f"{self.root}/home"
        self.vault = f"{self.root}/vault"
        self.state = f"{self.root}/state"
        self.kit = f"{self.root}/kit.txt"
        self.config_path = f"{self.root}/mailbackup.toml"
        self.store_hook: Callable[[Store], Store] | None = None
        os.makedirs(self.mail, exist_ok=True)
        os.makedirs(self.home, exist_ok=True)
        options = app.InitOptions(
            config_path=self.config_path,
            state_dir=self.state,
            host="mx1.example.org",
            mail=(f"{self.mail}/{{domain}}/{{user}}/Maildir",) if mail else (),
            directories=(self.home,) if directories else (),
            stores=urls or tuple(config.file_url(self.vault if n == 1 else f"{self.vault}-{n}") for n in range(1, stores + 1)),
            kit_out=self.kit,
        )
        self.made = app.init(options)

    # -- sources

    def maildir(self, address: str = ALICE) -> str:
        """The Maildir of an address, made if need be."""
        user, _, domain = address.partition("@")
        path = f"{self.mail}/{domain}/{user}/Maildir"
        for place in ("cur", "new", "tmp"):
            os.makedirs(f"{path}/{place}", exist_ok=True)
        return path

    def folder(self, name: str, address: str = ALICE) -> str:
        """A Maildir++ folder, made if need be."""
        path = f"{self.maildir(address)}/{name}"
        for place in ("cur", "new", "tmp"):
            os.makedirs(f"{path}/{place}", exist_ok=True)
        return path

    def deliver(
        self, name: str, content: bytes, address: str = ALICE, *, folder: str = "", place: str = "cur", age: float | None = None
    ) -> str:
        """Put a message in place; `age` in seconds before now sets its mtime. Returns its path."""
        base = self.folder(folder, address) if folder else self.maildir(address)
        path = f"{base}/{place}/{name}"
        with open(path, "wb") as file:
            file.write(content)
        if age is not None:
            stamp = os.stat(path).st_mtime_ns - int(age * 1e9)
            os.utime(path, ns=(stamp, stamp))
        return path

    def settle(self, seconds: int = 10) -> None:
        """Make all directories look older, so that their stamps prove something (as the night after does)."""
        for path, _, _ in os.walk(self.mail):
            status = os.stat(path)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - seconds * 10**9))

    # -- commands

    @property
    def context(self) -> access.Context:
        """What commands get."""
        loaded, path = config.load(self.config_path)
        return access.Context(config=loaded, config_path=path, state_dir=self.state, identity_file=self.kit)

    @contextlib.contextmanager
    def _hooked(self) -> Iterator[None]:
        if self.store_hook is None:
            yield
            return
        real, hook = access.open_store, self.store_hook
        access.open_store = lambda *args, **kwargs: hook(real(*args, **kwargs))  # type: ignore[assignment]
        try:
            yield
        finally:
            access.open_store = real

    def backup(self, **options: Any) -> BackupResult:
        """`mailbackup backup`."""
        with self._hooked():
            return app.backup(self.context, **options)

    def verify(self, **options: Any) -> VerifyResult:
        """`mailbackup verify`."""
        with self._hooked():
            return app.verify(self.context, **options)

    def using(self, store: str) -> access.Context:
        """What commands get with `--store`."""
        return replace(self.context, store=store)

    def restore(self, to: str, address: str | None = ALICE, **options: Any) -> RestoreResult:
        """`mailbackup restore mailbox`."""
        with self._hooked():
            return app.restore_mailbox(self.context, address, to=f"{self.root}/{to}", **options)

    def restore_files(self, to: str, *paths: str, **options: Any) -> RestoreResult:
        """`mailbackup restore files`."""
        with self._hooked():
            return app.restore_files(self.context, list(paths) or [self.home], to=f"{self.root}/{to}", **options)

    # -- looking

    def store(self, number: int = 1) -> LocalStore:
        """The vault's store, or a further one."""
        return LocalStore(self.vault, "local") if number == 1 else LocalStore(f"{self.vault}-{number}", f"local-{number}")

    def objects(self, number: int = 1) -> list[str]:
        """Keys of all objects in a store of the vault."""
        with contextlib.closing(self.store(number)) as store:
            return [key for key, _ in store.list("")]

    def lose_state(self) -> None:
        """As if /var/lib/mailbackup had been cleared."""
        shutil.rmtree(self.state)


def messages_in(maildir: str) -> dict[bytes, tuple[bytes, int]]:
    """Every message below a Maildir: path relative to it → (content, mtime in ns)."""
    found = {}
    root = os.fsencode(maildir)
    for path, _, names in os.walk(root):
        if os.path.basename(path) in (b"cur", b"new"):
            for name in names:
                full = os.path.join(path, name)
                with open(full, "rb") as file:
                    found[os.path.relpath(full, root)] = (file.read(), os.stat(full).st_mtime_ns)
    return found


def bases_in(maildir: str) -> dict[tuple[bytes, bytes], bytes]:
    """Messages by (folder, base name): what does not change with flags."""
    found = {}
    for path, (content, _) in messages_in(maildir).items():
        folder, name = os.path.split(os.path.dirname(path))[0], os.path.basename(path)
        found[folder, name.partition(b":")[0]] = content
    return found


def tree_of(root: str) -> dict[str, tuple[Any, ...]]:
    """Everything below a directory with what a restore must bring back."""
    found: dict[str, tuple[Any, ...]] = {}
    for path, directories, names in os.walk(os.fsencode(root)):
        for name in [*directories, *names, b""]:
            full = os.path.join(path, name) if name else path
            status = os.lstat(full)
            content: Any = None
            if os.path.islink(full):
                content = os.readlink(full)
            elif os.path.isfile(full):
                with open(full, "rb") as file:
                    content = file.read()
            key = os.path.relpath(full, os.fsencode(root)).decode("utf-8", "backslashreplace")
            found[key] = (status.st_mode, status.st_mtime_ns, content)
    return found
