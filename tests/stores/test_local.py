"""The local store keeps the contract and what only a directory has to promise: private files, durability, a disk that goes away."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mailbackup.errors import KeyExists, StoreRefused, StoreUnavailable
from mailbackup.model.ids import ObjectKey, entry_key
from mailbackup.stores.base import Store
from mailbackup.stores.local import STALE_TEMP, LocalStore
from mailbackup.testing.mounts import after_power_cut, ext4
from mailbackup.testing.store_contract import BIG, KEY, LIMIT, OTHER, USES, VAULT, StoreContract, keys

MIB = 1 << 20


def new_store(root: object, reserve_bytes: int | None = None) -> LocalStore:
    LocalStore.create_root(str(root))
    return LocalStore(str(root), "cellar", reserve_bytes)


def temps(store: LocalStore) -> list[str]:
    return os.listdir(os.path.join(store.path, ".tmp"))


class TestLocalStoreContract(StoreContract):
    @pytest.fixture(autouse=True)
    def _places(self, root: str) -> Iterator[None]:
        self.root = root
        with contextlib.ExitStack() as self.opened:
            yield

    def make_store(self) -> Store:
        return new_store(self.root)

    def reopen(self, store: Store) -> Store:
        return self.opened.enter_context(contextlib.closing(LocalStore(self.root, "again")))

    def plant(self, store: Store, key: str, data: bytes) -> None:
        path = os.path.join(self.root, key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)


# ---------------------------------------------------------------- the files


def test_objects_are_private_files_and_nothing_else_stays(store: LocalStore) -> None:
    store.put(KEY, b"mail")
    with store.create(OTHER) as writer:
        writer.write(b"half")
        assert len(temps(store)) == 1
    path = os.path.join(store.path, KEY)
    assert stat.filemode(os.stat(path).st_mode) == "-rw-------"
    assert os.stat(path).st_nlink == 1
    for folder in ("", "packs", "packs/ab", ".tmp"):
        assert stat.filemode(os.stat(os.path.join(store.path, folder)).st_mode) == "drwx------"
    assert temps(store) == []


@pytest.mark.parametrize("end", ["key exists", "exception", "abort"])
def test_no_temporary_file_outlives_a_failed_write(store: LocalStore, end: str) -> None:
    store.put(KEY, b"first")
    with contextlib.suppress(KeyExists, ZeroDivisionError), store.create(KEY) as writer:
        writer.write(b"second")
        if end == "abort":
            writer.abort()
            assert temps(store) == []
        elif end == "exception":
            raise ZeroDivisionError
        else:
            writer.commit()
    assert temps(store) == []


def test_order_of_keys_is_kept_where_a_folder_sorts_otherwise(store: LocalStore) -> None:
    for name in ("packs-old", "packs.bak", "packs0", "packs/ab/x"):
        os.makedirs(os.path.dirname(os.path.join(store.path, name)), exist_ok=True)
        with open(os.path.join(store.path, name), "wb"):
            pass
    assert keys(store) == sorted(["packs-old", "packs.bak", "packs0", "packs/ab/x"])


def test_names_that_are_not_utf8_are_listed_escaped(store: LocalStore) -> None:
    with open(os.path.join(os.fsencode(store.path), b"caf\xe9"), "wb"):
        pass
    assert keys(store) == ["caf\\xe9"]
    assert keys(store, "caf\\xe9") == ["caf\\xe9"]


def test_folders_deeper_than_any_key_are_one_malformed_key(store: LocalStore) -> None:
    os.makedirs(os.path.join(store.path, "/".join("abcdefghijklmn")))
    assert keys(store) == ["a/b/c/d/e/f/g/h/i/"]


def test_what_vanishes_during_a_listing_is_left_out(store: LocalStore) -> None:
    for seq in (1, 2, 3):
        store.put(entry_key(seq), b"")
    listing = store.list()
    assert next(listing)[0] == entry_key(1)
    store.delete(entry_key(2))
    assert [key for key, _ in listing] == [entry_key(3)]


def test_a_killed_writer_leaves_nothing_visible_and_is_cleaned_up_a_day_later(root: str, store: LocalStore) -> None:
    script = (
        "import os, signal, sys; from mailbackup.stores.local import LocalStore\n"
        "with LocalStore(sys.argv[1], 'x').create(sys.argv[2]) as w:\n"
        "  w.write(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, root, KEY], check=False).returncode == -signal.SIGKILL
    assert keys(store) == []
    store.put(KEY, b"whole")
    [left] = temps(store)
    new_store(root).close()
    assert temps(store) == [left]
    old = time.time() - STALE_TEMP - 60
    os.utime(os.path.join(root, ".tmp", left), (old, old))
    new_store(root).close()
    assert temps(store) == []
    assert keys(store) == [KEY]


def test_of_concurrent_processes_exactly_one_wins(root: str, store: LocalStore) -> None:
    script = (
        "import sys; from mailbackup.errors import KeyExists; from mailbackup.stores.local import LocalStore\n"
        "from mailbackup.model.ids import entry_key\n"
        "store = LocalStore(sys.argv[1], 'x'); won = 0; print('ready', flush=True); sys.stdin.readline()\n"
        "for seq in range(1, 101):\n"
        "  try: store.put(entry_key(seq), sys.argv[2].encode()); won += 1\n"
        "  except KeyExists: pass\n"
        "print(won)"
    )
    command = [sys.executable, "-c", script, root]
    racers = [subprocess.Popen([*command, str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for n in range(3)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    answers = [racer.communicate("\n")[0] for racer in racers]
    assert sum(map(int, answers)) == 100
    written = [store.get(entry_key(seq), LIMIT) for seq in range(1, 101)]
    assert [written.count(str(n).encode()) for n in range(3)] == list(map(int, answers))


# ---------------------------------------------------------------- durability


def test_bytes_are_flushed_before_the_name_and_the_name_before_the_answer(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    final = os.path.join(store.path, KEY)
    flushed: list[tuple[str, bool]] = []  # what, and whether the object was visible then
    really = os.fsync

    def watched(fd: int) -> None:
        flushed.append((os.readlink(f"/proc/self/fd/{fd}"), os.path.exists(final)))
        really(fd)

    monkeypatch.setattr(os, "fsync", watched)
    store.put(KEY, b"mail")
    names = [os.path.relpath(path, store.path) for path, _ in flushed]
    file = next(n for n, name in enumerate(names) if name.startswith(".tmp/"))
    assert flushed[file][1] is False
    assert flushed[-1] == (os.path.dirname(final), True)
    assert (store.path, False) in flushed[file:]  # holds the name "packs"
    assert (os.path.join(store.path, "packs"), False) in flushed  # holds the name "ab"


def test_a_folder_that_another_process_made_is_flushed_once(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    os.makedirs(os.path.join(store.path, "packs/ab"), mode=0o700)
    flushed: list[str] = []
    really = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.readlink(f"/proc/self/fd/{fd}")), really(fd)))
    store.put(KEY, b"mail")
    assert os.path.join(store.path, "packs") in flushed
    flushed.clear()
    store.put(ObjectKey("packs/ab/" + "ab" + "f" * 30), b"mail")
    assert os.path.join(store.path, "packs") not in flushed


def test_who_meets_an_existing_key_may_rely_on_it(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    # its maker may have died between giving the name and flushing it
    store.put(KEY, b"mail")
    flushed: list[str] = []
    really = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (flushed.append(os.readlink(f"/proc/self/fd/{fd}")), really(fd)))
    with pytest.raises(KeyExists):
        store.put(KEY, b"mail")
    assert flushed == [os.path.join(store.path, "packs/ab")]


def test_a_name_that_cannot_be_flushed_is_taken_back(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.path.join(store.path, "packs/ab")
    really = os.fsync

    def failing(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}") == folder:
            raise OSError(5, "Input/output error")
        really(fd)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreUnavailable, match=KEY):
        store.put(KEY, b"mail")
    assert keys(store) == []
    assert temps(store) == []


@pytest.mark.root
def test_what_was_put_survives_a_power_cut(tmp_path: object) -> None:
    image = f"{tmp_path}/disk.img"
    with ext4(image, f"{tmp_path}/disk") as disk, contextlib.closing(new_store(f"{disk}/store", 0)) as store:
        store.put(KEY, BIG)
        with store.create(OTHER) as writer:
            writer.write(BIG)
            with after_power_cut(image, f"{tmp_path}/early") as early, contextlib.closing(LocalStore(f"{early}/store", "early")) as left:
                assert keys(left) == [KEY]
            writer.commit()
        with after_power_cut(image, f"{tmp_path}/late") as late, contextlib.closing(LocalStore(f"{late}/store", "late")) as left:
            assert left.get(KEY, len(BIG)) == BIG
            assert left.get(OTHER, len(BIG)) == BIG


NO_HARD_LINKS = """
import ctypes, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
LOAD_NUMBER, EQUAL, RETURN = (0x20, 0, 0, 0), 0x15, 0x06
rules = [LOAD_NUMBER, (EQUAL, 1, 0, 265), (EQUAL, 0, 1, 86), (RETURN, 0, 0, 0x00050000 | 1), (RETURN, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0  # no new privileges; seccomp filter
import os
try:
    os.link(sys.argv[0], "/tmp/never")
except PermissionError:
    pass
from mailbackup.errors import KeyExists
from mailbackup.model.ids import entry_key
from mailbackup.stores.local import LocalStore
from mailbackup.testing.store_contract import race
store = LocalStore(sys.argv[1], "x")
for seq in range(1, 11):
    assert len(race([(store, entry_key(seq), b"%d" % n) for n in range(6)])) == 1
print(len(list(store.list())), os.listdir(sys.argv[1] + "/.tmp"))
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the system calls are those of x86_64")
def test_without_hard_links_a_rename_that_never_replaces_does_the_same(root: str, store: LocalStore) -> None:
    done = subprocess.run([sys.executable, "-c", NO_HARD_LINKS, root], check=False, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("10 []\n", "")
    assert len(keys(store)) == 10


# ---------------------------------------------------------------- a store that is not there


def test_an_absent_directory_is_unavailable_and_made_only_on_request(tmp_path: object) -> None:
    path = f"{tmp_path}/not/yet/there"
    with pytest.raises(StoreUnavailable, match=path):
        LocalStore(path, "cellar")
    assert not os.path.exists(path)
    LocalStore.create_root(path)
    LocalStore.create_root(path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    LocalStore(path, "cellar").close()


def test_a_file_in_place_of_the_directory_is_refused(root: str) -> None:
    with open(root, "w"):
        pass
    with pytest.raises(StoreRefused, match=root):
        LocalStore.create_root(root)
    with pytest.raises(StoreRefused, match=root):
        LocalStore(root, "cellar")


ALL_VERBS = {**USES, "list": lambda store, key: list(store.list()), "prefixes": lambda store, key: store.prefixes("")}


@pytest.mark.parametrize("verb", ALL_VERBS)
@pytest.mark.parametrize("gone", ["moved away", "an empty directory is there instead", "closed"])
def test_a_store_that_went_away_is_unavailable_and_not_empty(store: LocalStore, verb: str, gone: str) -> None:
    store.put(KEY, b"mail")
    if gone == "closed":
        store.close()
    else:
        os.rename(store.path, store.path + ".away")
    if gone.startswith("an empty"):
        os.mkdir(store.path)
    with pytest.raises(StoreUnavailable, match=store.name):
        ALL_VERBS[verb](store, KEY)
    assert not gone.startswith("an empty") or os.listdir(store.path) == []


def test_an_unmounted_mount_point_is_unavailable(tmp_path: object) -> None:
    with pytest.raises(StoreUnavailable, match="no store") as unmounted:
        LocalStore(str(tmp_path), "cellar")
    assert "Is the disk mounted?" in unmounted.value.hint
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.root
def test_a_store_that_was_unmounted_is_unavailable_until_it_is_mounted_again(tmp_path: object) -> None:
    image, place = f"{tmp_path}/disk.img", f"{tmp_path}/disk"
    with ext4(image, place), contextlib.closing(new_store(place, 0)) as store:
        store.put(KEY, b"mail")
    with pytest.raises(StoreUnavailable, match="no store"):
        LocalStore(place, "cellar", 0)
    with after_power_cut(image, f"{tmp_path}/again") as again, contextlib.closing(LocalStore(again, "cellar")) as store:
        assert keys(store) == [KEY]


def test_the_hint_tells_how_to_make_it_a_store_again(store: LocalStore) -> None:
    store.put(KEY, b"mail")
    os.remove(f"{store.path}/.mailbackup-store")
    with pytest.raises(StoreUnavailable) as refused:
        LocalStore(store.path, "cellar")
    command = refused.value.hint[refused.value.hint.index("touch") :]
    subprocess.run(command.split(), check=True)
    with contextlib.closing(LocalStore(store.path, "cellar")) as again:
        assert keys(again) == [KEY]


def test_a_store_made_before_there_were_markers_is_accepted(store: LocalStore) -> None:
    store.put(VAULT, b"{}")
    os.remove(f"{store.path}/.mailbackup-store")
    with contextlib.closing(LocalStore(store.path, "cellar")) as again:
        assert again.get(VAULT, LIMIT) == b"{}"


def test_the_marker_says_what_it_is_and_is_no_object(root: str) -> None:
    new_store(root).close()
    with open(f"{root}/.mailbackup-store") as file:
        text = file.read()
    assert "store of mailbackup" in text
    assert text.count("\n") == 1
    LocalStore.create_root(root)
    with contextlib.closing(LocalStore(root, "cellar")) as store:
        assert keys(store) == []
        assert keys(store, ".mail") == []
    assert os.listdir(os.path.dirname(root)) == [os.path.basename(root)]


def test_only_the_store_itself_is_marked(tmp_path: object) -> None:
    LocalStore.create_root(f"{tmp_path}/a/b/store")
    marked = [path for path, _, names in os.walk(str(tmp_path)) if ".mailbackup-store" in names]
    assert marked == [f"{tmp_path}/a/b/store"]


def test_a_refused_directory_stays_closed(tmp_path: object) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            LocalStore(str(tmp_path), "cellar")
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_folders_that_cannot_be_flushed_are_accepted(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.fsync

    def failing(fd: int) -> None:  # a fake of what CIFS does
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(22, "Invalid argument")
        really(fd)

    monkeypatch.setattr(os, "fsync", failing)
    store.put(KEY, b"mail")
    assert keys(store) == [KEY]
    assert store.traits.durable_after_put
