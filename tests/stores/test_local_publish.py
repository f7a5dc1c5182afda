"""A local store on file systems that can neither link nor rename without replacing: it says so, and keeps all else of the contract.

exFAT is a real one. As loop devices and FUSE are not everywhere, the contract also runs on a store for which both calls fail (a fake).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mailbackup import host
from mailbackup.errors import KeyExists
from mailbackup.model.ids import ObjectKey, entry_key
from mailbackup.stores import local_publish
from mailbackup.stores.base import Store
from mailbackup.stores.local import LocalStore
from mailbackup.testing.mounts import remount, tmpfs
from mailbackup.testing.store_contract import KEY, LIMIT, OTHER, VAULT, StoreContract, keys, race


def new_store(root: str) -> LocalStore:
    LocalStore.create_root(root)
    return LocalStore(root, "cellar")


def refuse(number: int) -> object:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


@pytest.fixture
def neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake: `link` and `renameat2` answer as those of exFAT do."""
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    monkeypatch.setattr(host, "rename_new", refuse(errno.EINVAL))


@contextmanager
def exfat(folder: str) -> Iterator[str]:
    """An exFAT file system mounted below `folder`, by FUSE."""
    if os.geteuid() != 0 or not (shutil.which("mkfs.exfat") and shutil.which("mount.exfat-fuse") and os.path.exists("/dev/fuse")):
        pytest.skip("needs root, FUSE, exfatprogs and exfat-fuse")
    image, place = f"{folder}/exfat.img", f"{folder}/exfat"
    os.mkdir(place)
    with open(image, "xb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.exfat", image], check=True, capture_output=True, timeout=30)
    found = subprocess.run(["losetup", "--find", "--show", image], check=False, capture_output=True, text=True, timeout=30)
    if found.returncode != 0:
        pytest.skip(f"no loop device here: {found.stderr.strip()}")
    with contextlib.ExitStack() as undo:
        undo.callback(subprocess.run, ["losetup", "--detach", found.stdout.strip()], check=True, timeout=30)
        done = subprocess.run(
            ["mount.exfat-fuse", found.stdout.strip(), place], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=30
        )
        if done.returncode != 0:
            pytest.skip(f"cannot mount exFAT here: {done.stderr!r}")
        undo.callback(subprocess.run, ["umount", place], check=True, timeout=30)
        yield place


class WithoutLinks(StoreContract):
    """The contract, for a store that opens with `create_only` False once something was written there."""

    root: str
    opened: contextlib.ExitStack

    def make_store(self) -> Store:
        store = new_store(self.root)
        store.put(VAULT, b"")
        store.delete(VAULT)
        assert store.traits.create_only is False
        return store

    def reopen(self, store: Store) -> Store:
        again = self.opened.enter_context(contextlib.closing(LocalStore(self.root, "again")))
        again.try_create_only()
        assert again.traits.create_only is False
        return again


class TestContractWithoutLinks(WithoutLinks):
    @pytest.fixture(autouse=True)
    def _places(self, root: str, neither: None) -> Iterator[None]:
        self.root = root
        with contextlib.ExitStack() as self.opened:
            yield


@pytest.mark.root
class TestContractOnExfat(WithoutLinks):
    @pytest.fixture(autouse=True)
    def _places(self, tmp_path: object) -> Iterator[None]:
        with exfat(str(tmp_path)) as disk, contextlib.ExitStack() as self.opened:
            self.root = f"{disk}/store"
            yield


# ---------------------------------------------------------------- finding out


def test_a_usual_file_system_is_create_only_and_the_trial_leaves_nothing(root: str) -> None:
    with contextlib.closing(new_store(root)) as store:
        store.put(KEY, b"mail")
        assert store.traits.create_only is True
    with contextlib.closing(LocalStore(root, "again")) as again:
        assert again.traits.create_only is True
    assert os.listdir(f"{root}/.tmp") == []
    assert sorted(os.listdir(root)) == [".mailbackup-store", ".tmp", "packs"]


@pytest.mark.parametrize(("link", "rename"), [(errno.EPERM, None), (None, errno.EINVAL)], ids=["rename only", "link only"])
def test_one_of_the_two_is_enough(root: str, monkeypatch: pytest.MonkeyPatch, link: int | None, rename: int | None) -> None:
    if link:
        monkeypatch.setattr(os, "link", refuse(link))
    if rename:
        monkeypatch.setattr(host, "rename_new", refuse(rename))
    with contextlib.closing(new_store(root)) as store:
        store.put(KEY, b"mail")
        assert store.traits.create_only is True


def test_a_rename_that_replaces_all_the_same_is_not_believed(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        local_publish, "publish_new", lambda temp, final, a, b: os.rename(temp, final, src_dir_fd=a, dst_dir_fd=b)
    )  # a fake of a file system that ignores the flag
    with contextlib.closing(new_store(root)) as store:
        store.put(KEY, b"mail")
        assert store.traits.create_only is False
        assert os.listdir(f"{root}/.tmp") == []


@pytest.mark.root
def test_a_disk_that_may_only_be_read_opens_and_is_tried_when_it_is_written(tmp_path: object, neither: None) -> None:
    with tmpfs(f"{tmp_path}/disk", 4 << 20) as disk:
        with contextlib.closing(new_store(f"{disk}/store")) as store:
            store.put(KEY, b"mail")
        remount(disk, "ro")
        with contextlib.closing(LocalStore(f"{disk}/store", "cellar")) as store:
            assert store.get(KEY, LIMIT) == b"mail"
            assert store.traits.create_only is True  # not known; nothing can be written
            remount(disk, "rw")
            store.put(OTHER, b"mail")
            assert store.traits.create_only is False


def test_opening_a_store_without_scratch_folder_does_not_make_one(root: str) -> None:
    with contextlib.closing(new_store(root)):
        assert os.listdir(root) == [".mailbackup-store"]


# ---------------------------------------------------------------- the lock


def test_an_existing_object_is_not_replaced(root: str, neither: None) -> None:
    with contextlib.closing(new_store(root)) as store:
        with store.create(KEY) as writer:
            writer.write(b"second")
            store.put(KEY, b"first")
            with pytest.raises(KeyExists):
                writer.commit()
        assert store.get(KEY, LIMIT) == b"first"
        assert os.listdir(f"{root}/.tmp") == []


def slow_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves time between the look and the rename."""
    really = os.rename
    monkeypatch.setattr(os, "rename", lambda *args, **options: (threading.Event().wait(0.02), really(*args, **options)))


def test_of_concurrent_puts_on_this_host_exactly_one_wins(root: str, neither: None, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_rename(monkeypatch)
    with contextlib.closing(new_store(root)) as store, contextlib.closing(LocalStore(root, "again")) as again:
        for seq in range(1, 6):
            winners = race([((store, again)[n % 2], entry_key(seq), b"%d" % n) for n in range(6)])
            assert [store.get(entry_key(seq), LIMIT)] == winners


def test_another_process_waits_for_the_lock(root: str, neither: None) -> None:
    holder = (
        "import fcntl, os, sys, time\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600); fcntl.flock(fd, fcntl.LOCK_EX)\n"
        "print('held', flush=True); sys.stdin.readline()"
    )
    with contextlib.closing(new_store(root)) as store:
        command = [sys.executable, "-c", holder, f"{root}/.mailbackup-lock"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            thread = threading.Thread(target=store.put, args=(KEY, b"mail"))
            thread.start()
            thread.join(0.5)
            assert thread.is_alive()
            assert keys(store) == []
            other.communicate("\n", timeout=30)
        thread.join(30)
        assert keys(store) == [KEY]


def test_without_locks_the_look_alone_has_to_do(root: str, neither: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    with contextlib.closing(new_store(root)) as store:
        store.put(KEY, b"mail")
        with pytest.raises(KeyExists):
            store.put(KEY, b"other")
        assert keys(store) == [KEY]


def test_a_lock_that_fails_otherwise_is_an_error(root: str, neither: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", refuse(errno.EIO))
    with contextlib.closing(new_store(root)) as store:
        with pytest.raises(Exception, match="Input/output"):
            store.put(KEY, b"mail")
        assert keys(store) == []
        assert os.listdir(f"{root}/.tmp") == []


def test_the_lock_file_is_no_object_and_no_link_is_followed(root: str, neither: None, tmp_path: object) -> None:
    with contextlib.closing(new_store(root)) as store:
        store.put(ObjectKey("vault.json"), b"{}")
        assert os.path.exists(f"{root}/.mailbackup-lock")
        assert keys(store) == ["vault.json"]
        os.remove(f"{root}/.mailbackup-lock")
        os.symlink(f"{tmp_path}/elsewhere", f"{root}/.mailbackup-lock")
        with pytest.raises(Exception, match="symbolic"):
            store.put(KEY, b"mail")
        assert not os.path.exists(f"{tmp_path}/elsewhere")
