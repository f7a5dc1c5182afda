"""Where a local store must refuse: links and other things in its way, missing rights, no space."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from mailbackup.errors import KeyExists, NoSpace, ObjectDamaged, ObjectMissing, StoreRefused
from mailbackup.model.ids import ObjectKey, entry_key
from mailbackup.model.options import StoreConfig
from mailbackup.stores import local
from mailbackup.stores.local import LocalStore
from mailbackup.stores.locate import open_store
from mailbackup.testing.mounts import remount, tmpfs, unprivileged
from mailbackup.testing.store_contract import KEY, LIMIT, OTHER, READS, USES, VAULT, keys

MIB = 1 << 20


def new_store(root: object, reserve_bytes: int | None = None, quota_bytes: int | None = None) -> LocalStore:
    LocalStore.create_root(str(root))
    return LocalStore(str(root), "cellar", reserve_bytes, quota_bytes)


def temps(store: LocalStore) -> list[str]:
    return os.listdir(os.path.join(store.path, ".tmp"))


# ---------------------------------------------------------------- links and other things in the way


def test_a_symbolic_link_under_a_key_is_neither_read_nor_written_through(store: LocalStore, tmp_path: object) -> None:
    secret = f"{tmp_path}/secret"
    with open(secret, "wb") as file:
        file.write(b"secret")
    os.symlink(secret, os.path.join(store.path, VAULT))
    for use in READS.values():
        with pytest.raises(ObjectDamaged, match=VAULT):
            use(store, VAULT)
    with pytest.raises(KeyExists):
        store.put(VAULT, b"overwritten")
    assert keys(store) == [VAULT]
    store.delete(VAULT)
    with open(secret, "rb") as file:
        assert file.read() == b"secret"


def test_a_symbolic_link_in_place_of_a_folder_leads_nowhere(store: LocalStore, tmp_path: object) -> None:
    elsewhere = f"{tmp_path}/elsewhere"
    os.makedirs(f"{elsewhere}/ab")
    with open(f"{elsewhere}/{KEY.removeprefix('packs/')}", "wb"):
        pass
    os.symlink(elsewhere, os.path.join(store.path, "packs"))
    for verb in ("put", "delete", *READS):
        with pytest.raises(StoreRefused, match="packs"):
            USES[verb](store, KEY)
    with pytest.raises(StoreRefused, match="packs"), store.create(OTHER) as writer:
        writer.commit()
    assert os.listdir(elsewhere) == ["ab"]
    assert keys(store) == ["packs"]


@pytest.mark.parametrize("kind", ["fifo", "folder", "socket"])
def test_what_is_not_a_file_is_damage_and_does_not_hang(store: LocalStore, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.path)  # the path of a socket must be short
    if kind == "fifo":
        os.mkfifo(VAULT)
    elif kind == "folder":
        os.mkdir(VAULT)
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(VAULT)
    for use in READS.values():
        with pytest.raises(ObjectDamaged, match=VAULT):
            use(store, VAULT)
    with pytest.raises(KeyExists):
        store.put(VAULT, b"")


# ---------------------------------------------------------------- rights, space


def test_lost_and_found_and_unfinished_objects_are_not_listed(open_to_all: str) -> None:
    os.makedirs(os.path.join(open_to_all, "lost+found"), mode=0o000)
    os.chmod(open_to_all, 0o777)
    with unprivileged(), contextlib.closing(new_store(open_to_all)) as store, store.create(KEY) as writer:
        writer.write(b"half")
        assert keys(store) == []
        assert store.prefixes("") == ()
    os.rmdir(os.path.join(open_to_all, "lost+found"))


def test_a_store_of_somebody_else_is_refused(open_to_all: str) -> None:
    store = new_store(f"{open_to_all}/store")
    store.put(KEY, b"mail")
    os.chmod(store.path, 0o500 if os.geteuid() else 0o755)
    with unprivileged(), pytest.raises(StoreRefused, match=OTHER) as refused:
        store.put(OTHER, b"mail")
    assert "owner" in refused.value.hint
    os.chmod(store.path, 0o700)
    store.close()


def test_a_private_store_of_somebody_else_cannot_be_opened(open_to_all: str) -> None:
    new_store(f"{open_to_all}/store").close()
    os.chmod(f"{open_to_all}/store", 0 if os.geteuid() else 0o700)
    with unprivileged(), pytest.raises(StoreRefused, match="cellar"):
        LocalStore(f"{open_to_all}/store", "cellar")
    os.chmod(f"{open_to_all}/store", 0o700)


def test_the_reserve_is_not_touched_except_by_acts(root: str) -> None:
    with contextlib.closing(new_store(root, reserve_bytes=1 << 60)) as store:
        with pytest.raises(NoSpace, match="reserve"):
            store.put(KEY, b"mail")
        with pytest.raises(NoSpace), store.create(KEY) as writer:
            writer.write(b"mail")
        store.put(ObjectKey("acts/0000000001.json"), b"prune")
        assert keys(store) == ["acts/0000000001.json"]
        assert temps(store) == []


def write_pieces(store: LocalStore, key: ObjectKey, count: int, between: Callable[[], object] = int) -> None:
    """An object of `count` MiB, MiB by MiB; `between` is called after the first."""
    with store.create(key) as writer:
        writer.write(b"x" * MIB)
        between()
        for _ in range(count - 1):
            writer.write(b"x" * MIB)
        writer.commit()


def test_the_quota_is_a_limit_on_the_bytes_of_all_objects(root: str) -> None:
    with contextlib.closing(new_store(root)) as store:
        store.put(VAULT, b"x" * 60)
    with contextlib.closing(new_store(root, 0, 100)) as store:
        with pytest.raises(NoSpace, match=r"holds 60 bytes, and its quota is 100: no room for 41 bytes") as full:
            store.put(KEY, b"x" * 41)
        assert "'quota' of store cellar" in full.value.hint
        assert (keys(store), temps(store)) == ([VAULT], [])
        store.put(KEY, b"x" * 40)
        with pytest.raises(NoSpace):
            store.put(OTHER, b"x")
        store.put(ObjectKey("acts/0000000001.json"), b"prune")
        store.delete(VAULT)
        store.delete(VAULT)
        store.put(OTHER, b"x" * 55)
        with pytest.raises(NoSpace, match="holds 100 bytes"):
            store.put(entry_key(1), b"x")


def test_reserve_and_quota_are_options_of_the_configuration(root: str) -> None:
    place = StoreConfig(name="cellar", url=f"file://{root}", reserve=0, quota=100)
    with contextlib.closing(open_store(place, create=True)) as store, pytest.raises(NoSpace, match="quota is 100"):
        store.put(KEY, b"x" * 101)
    place = StoreConfig(name="cellar", url=f"file://{root}", reserve=1 << 60)
    with contextlib.closing(open_store(place)) as store, pytest.raises(NoSpace, match="reserve"):
        store.put(KEY, b"x")


def test_what_was_not_kept_does_not_count_against_the_quota(root: str) -> None:
    with contextlib.closing(new_store(root, 0, 100)) as store:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError), store.create(KEY) as writer:
                writer.write(b"x" * 90)
                raise ZeroDivisionError
            with pytest.raises(NoSpace), store.create(KEY) as writer:
                writer.write(b"x" * 60)
                writer.write(b"x" * 41)
        with store.create(KEY) as writer:
            writer.write(b"x" * 45)
            store.put(KEY, b"x" * 45)
            with pytest.raises(KeyExists):
                writer.commit()
            writer.abort()
        store.put(OTHER, b"x" * 55)
        with pytest.raises(NoSpace):
            store.put(VAULT, b"x")


def test_the_quota_holds_for_writers_at_the_same_time(root: str) -> None:
    with contextlib.closing(new_store(root, 0, 1000)) as store:

        def put(seq: int) -> bool:
            with contextlib.suppress(NoSpace):
                store.put(entry_key(seq), b"x" * 30)
                return True
            return False

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(put, range(1, 61))) == 33
        assert sum(found.size for _, found in store.list()) == 990


def test_objects_are_counted_once_and_only_for_a_quota(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[str] = []
    really = local.walk
    monkeypatch.setattr(local, "walk", lambda *args: (walks.append("walk"), really(*args))[1])
    with contextlib.closing(new_store(root)) as store:
        store.put(KEY, b"mail")
        assert walks == []
    with contextlib.closing(new_store(root, 0, 1000)) as store:
        assert walks == []
        for seq in range(1, 10):
            store.put(entry_key(seq), b"x")
        assert walks == ["walk"]


@pytest.mark.root
def test_the_default_reserve_is_a_twentieth(tmp_path: object) -> None:
    with tmpfs(f"{tmp_path}/disk", 40 * MIB) as disk, contextlib.closing(new_store(f"{disk}/store")) as store:
        with pytest.raises(NoSpace, match="2 MiB are kept in reserve"):
            write_pieces(store, KEY, 39)
        assert temps(store) == []
        write_pieces(store, KEY, 37)
        with pytest.raises(NoSpace):
            store.put(OTHER, b"x" * 2 * MIB)
        assert keys(store) == [KEY]


def fill(path: str) -> None:
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 65536)


@pytest.mark.root
@pytest.mark.parametrize("key", [KEY, ObjectKey("acts/0000000001.json")], ids=["object", "act"])
def test_a_full_file_system_keeps_what_is_whole_and_nothing_else(tmp_path: object, key: ObjectKey) -> None:
    with tmpfs(f"{tmp_path}/disk", 4 * MIB) as disk, contextlib.closing(new_store(f"{disk}/store", reserve_bytes=0)) as store:
        store.put(VAULT, b"before")
        with pytest.raises(NoSpace, match="No space left") as full:
            write_pieces(store, key, 3, lambda: fill(f"{disk}/other"))
        assert isinstance(full.value.__cause__, OSError)
        assert keys(store) == [VAULT]
        assert temps(store) == []
        assert store.get(VAULT, LIMIT) == b"before"
        os.unlink(f"{disk}/other")
        write_pieces(store, key, 3)


def put_entries(store: LocalStore, count: int) -> None:
    for seq in range(1, count + 1):
        store.put(entry_key(seq), b"")


@pytest.mark.root
def test_a_file_system_without_inodes_is_full(tmp_path: object) -> None:
    with tmpfs(f"{tmp_path}/disk", 4 * MIB, "nr_inodes=9") as disk, contextlib.closing(new_store(f"{disk}/store", 0)) as store:
        with pytest.raises(NoSpace):
            put_entries(store, 9)
        assert 0 < len(keys(store)) < 9
        assert keys(store) == [entry_key(seq) for seq in range(1, len(keys(store)) + 1)]


@pytest.mark.root
def test_a_read_only_file_system_can_be_read_and_refuses_the_rest(tmp_path: object) -> None:
    with tmpfs(f"{tmp_path}/disk", 4 * MIB) as disk:
        with contextlib.closing(new_store(f"{disk}/store")) as store:
            store.put(KEY, b"mail")
        remount(disk, "ro")
        with contextlib.closing(LocalStore(f"{disk}/store", "cellar")) as store:
            assert store.get(KEY, LIMIT) == b"mail"
            for refused in (lambda: store.put(OTHER, b""), lambda: store.delete(KEY), lambda: USES["create"](store, OTHER)):
                with pytest.raises(StoreRefused, match="Read-only"):
                    refused()
            with pytest.raises(ObjectMissing):
                store.get(OTHER, LIMIT)
