"""Directory sources: every kind of file there is, files that change or vanish while they are read, and what is read again the next night."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import os
import shutil
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mailbackup import app
from mailbackup.capture import reading
from mailbackup.capture.files import FileWalk
from mailbackup.model.finding import FindingKind
from mailbackup.testing.mounts import tmpfs
from tests.capture.look import check, directory_of, kinds, open_directory, without_rights
from tests.world import ALICE, World

BLOCK = bytes(range(256)) * 256  # 64 KiB


@pytest.fixture
def world(tmp_path: object) -> World:
    return World(tmp_path, directories=True)


@pytest.fixture(autouse=True)
def no_hanging() -> Iterator[None]:
    """A FIFO that is opened for reading would block for ever."""

    def hangs(*_: object) -> None:
        raise TimeoutError("the test hangs")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def write(path: str, content: bytes = b"content\n") -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
    return path


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def restored(world: World, name: str = "out", **options: Any) -> str:
    """Where the directory source lies after a restore of all of it."""
    result = world.restore_files(name, **options)
    assert (result.outcome, result.findings) == ("complete", ())
    return f"{world.root}/{name}{world.home}"


def everything(root: str) -> dict[bytes, tuple[Any, ...]]:
    """Everything below a directory, with all that a backup must keep. Files with several names have the first one here."""
    found: dict[bytes, tuple[Any, ...]] = {}
    first: dict[int, bytes] = {}
    for path, directories, names in os.walk(os.fsencode(root)):
        for name in [b".", *directories, *names]:
            full = os.path.join(path, name)
            key = os.path.normpath(os.path.relpath(full, os.fsencode(root)))
            found[key] = _one(full)
    for key in sorted(found):
        status = os.lstat(os.path.join(os.fsencode(root), key))
        if stat.S_ISREG(status.st_mode):
            found[key] += (first.setdefault(status.st_ino, key),)
    return found


def _one(full: bytes) -> tuple[Any, ...]:
    status = os.lstat(full)
    mode, content = status.st_mode, None
    if stat.S_ISLNK(mode):
        content = os.readlink(full)
    elif stat.S_ISREG(mode):
        content = hashlib.sha256(read(os.fsdecode(full))).hexdigest().encode()
    xattrs = {name: os.getxattr(full, name, follow_symlinks=False) for name in os.listxattr(full, follow_symlinks=False)}
    device = status.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0
    return mode, status.st_uid, status.st_gid, status.st_mtime_ns, device, content, xattrs


def configure(world: World, lines: str) -> None:
    """Add lines to the section of the directory source."""
    with open(world.config_path, encoding="utf-8") as file:
        text = file.read()
    path = f'path = "{world.home}"\n'
    assert path in text
    with open(world.config_path, "w", encoding="utf-8") as file:
        file.write(text.replace(path, f"{path}{lines}\n"))


# ---------------------------------------------------------------- kinds of files


@pytest.mark.case("1")
@pytest.mark.root
def test_every_kind_of_file_comes_back_as_it_was(world):
    home = world.home
    os.chown(write(f"{home}/program", b"x" * 80 * 1024), 100, 200)
    os.chmod(f"{home}/program", 0o4755)
    write(f"{home}/empty", b"")
    write(f"{home}/closed/inside")
    os.link(f"{home}/program", f"{home}/closed/second-name")
    os.chmod(f"{home}/closed", 0o555)
    os.symlink("nowhere/at/all", f"{home}/dangling")
    os.lchown(f"{home}/dangling", 100, 200)
    os.mkfifo(f"{home}/fifo", 0o640)
    os.mknod(f"{home}/null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(f"{home}/loop", 0o660 | stat.S_IFBLK, os.makedev(7, 12))
    write(f"{home}/attributes")
    os.setxattr(f"{home}/attributes", "user.foo", b"bar")
    os.setxattr(f"{home}/attributes", "user.empty", b"")
    os.setxattr(f"{home}/attributes", "trusted.binary", bytes(range(256)))
    os.setxattr(f"{home}/closed", "user.directory", b"too")
    for number, name in enumerate(["program", "empty", "dangling", "fifo", "null", "loop", "attributes", "closed", "."]):
        os.utime(f"{home}/{name}", ns=(0, 10**18 + 7 * number + 1), follow_symlinks=False)
    result = world.backup()
    assert (result.outcome, result.findings, result.files) == ("complete", (), 5)
    assert everything(restored(world)) == everything(home)
    check(world)


@pytest.mark.case("1")
def test_owners_are_kept_by_number_and_name(world):
    write(f"{world.home}/mine")
    world.backup()
    _, entries = directory_of(world)
    owner, status = entries[b"mine"].owner, os.stat(f"{world.home}/mine")
    assert (owner.mode, owner.uid, owner.gid) == (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)


@pytest.mark.case("2")
def test_a_socket_is_left_out_with_a_harmless_finding(world):
    write(f"{world.home}/file")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(f"{world.home}/socket")
        result = world.backup()
    assert (result.outcome, kinds(result)) == ("explained", [FindingKind.SOCKET_SKIPPED])
    assert result.findings[0].subject == f"{world.home}/socket"
    assert os.listdir(restored(world)) == ["file"]


@pytest.mark.case("3")
def test_a_fifo_is_never_opened(world):
    os.mkfifo(f"{world.home}/fifo")
    result = world.backup()
    assert result.outcome == "complete"
    assert stat.S_ISFIFO(os.lstat(f"{restored(world)}/fifo").st_mode)


@pytest.mark.case("3", "8")
def test_a_fifo_that_takes_the_place_of_a_file_does_not_block(world, monkeypatch):
    write(f"{world.home}/file")

    def swap(path: str) -> None:
        os.unlink(path)
        os.mkfifo(path)

    before_open(monkeypatch, world, "file", swap)
    result = world.backup()
    assert (result.outcome, kinds(result)) == ("incomplete", [FindingKind.CHANGED])


# ---------------------------------------------------------------- what cannot be read


@pytest.mark.case("4")
def test_an_unreadable_file_is_named_and_the_others_are_saved():
    with open_directory() as root:
        world = World(root, directories=True)
        for name in "abc":
            write(f"{world.home}/{name}", name.encode())
        world.backup()
        write(f"{world.home}/b", b"changed")
        write(f"{world.home}/new", b"new")
        write(f"{world.home}/d", b"d")
        with without_rights(world):
            os.chmod(f"{world.home}/b", 0)
            os.chmod(f"{world.home}/new", 0)
            result = world.backup()
            again = world.backup()
        for run in (result, again):
            assert run.outcome == "incomplete"
            assert [(f.kind, f.subject, f.detail) for f in sorted(run.findings, key=lambda f: f.subject)] == [
                (FindingKind.UNREADABLE, f"{world.home}/b", "Permission denied"),
                (FindingKind.UNREADABLE, f"{world.home}/new", "Permission denied"),
            ]
        out = restored(world)
        assert {name: read(f"{out}/{name}") for name in os.listdir(out)} == {"a": b"a", "b": b"b", "c": b"c", "d": b"d"}
        os.chmod(f"{world.home}/b", 0o600)
        os.chmod(f"{world.home}/new", 0o600)
        check(world, world.backup())
        assert read(f"{restored(world, 'healed')}/b") == b"changed"
        assert read(f"{world.root}/healed{world.home}/new") == b"new"


@pytest.mark.case("4")
@pytest.mark.parametrize("mode", [0o000, 0o100, 0o400])
def test_an_unreadable_directory_keeps_what_the_last_snapshot_had(mode):
    with open_directory() as root:
        world = World(root, directories=True)
        write(f"{world.home}/shut/file", b"inside")
        write(f"{world.home}/shut/deep/er/file", b"deep inside")
        write(f"{world.home}/shut-not/file", b"beside")
        world.backup()
        with without_rights(world):
            os.chmod(f"{world.home}/shut", mode)
            os.unlink(f"{world.home}/shut-not/file")
            result = world.backup()
            os.chmod(f"{world.home}/shut", 0o755)
        assert result.outcome == "incomplete"
        assert set(kinds(result)) == {FindingKind.UNREADABLE}
        assert all(finding.subject.startswith(f"{world.home}/shut") for finding in result.findings)
        out = restored(world)
        assert read(f"{out}/shut/file") == b"inside"
        assert read(f"{out}/shut/deep/er/file") == b"deep inside"
        assert os.listdir(f"{out}/shut-not") == []
        check(world, world.backup())


@pytest.mark.case("5")
def test_a_source_below_a_directory_that_may_only_be_passed_through():
    with open_directory() as root:
        os.makedirs(f"{root}/closed")
        world = World(f"{root}/closed/inner", directories=True)
        write(f"{world.home}/file")
        world.backup()
        write(f"{world.home}/other")
        os.chmod(f"{root}/closed", 0o711)
        with without_rights(world):
            result = world.backup()
        assert (result.outcome, result.files) == ("complete", 2)


@pytest.mark.case("6")
@pytest.mark.parametrize(("errors", "outcome"), [(3, "complete"), (4, "incomplete")])
def test_transient_read_errors_are_tried_again(world, monkeypatch, errors, outcome):
    """A fake: no disk can be made to fail three times and then work."""
    write(f"{world.home}/file", b"precious")
    left = [errors]

    def failing_pread(fd: int, size: int, offset: int) -> bytes:
        if left[0] and os.readlink(f"/proc/self/fd/{fd}").endswith("/home/file"):
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return os.pread(fd, size, offset)

    class FakeOs:
        """The module os, but for reading."""

        pread = staticmethod(failing_pread)

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

    monkeypatch.setattr(reading, "os", FakeOs())
    result = world.backup()
    assert result.outcome == outcome
    assert kinds(result) == ([] if outcome == "complete" else [FindingKind.UNREADABLE])
    if outcome == "complete":
        assert read(f"{restored(world)}/file") == b"precious"


def test_a_tree_of_any_depth(world):
    """A user who makes a deep tree must not be able to end the backup of the whole host."""
    fd = os.open(world.home, os.O_RDONLY)
    for _ in range(700):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=fd))
    os.close(fd)
    result = world.backup()
    assert (result.outcome, result.files) == ("complete", 1)
    _, entries = directory_of(world)
    assert b"d/" * 700 + b"file" in entries


@pytest.mark.root
def test_a_path_that_is_too_long_to_open_is_named(world):
    """Deeper than the 4096 bytes that the kernel takes in one go."""
    fd = os.open(world.home, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("n" * 250, dir_fd=fd)
        below = os.open("n" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    write(f"{world.home}/file")
    result = world.backup()
    assert (result.outcome, kinds(result), result.files) == ("incomplete", [FindingKind.UNREADABLE], 1)


# ---------------------------------------------------------------- what changes while it is read


def before_stat(monkeypatch: pytest.MonkeyPatch, world: World, name: str, act: Callable[[str], object]) -> None:
    """Do something to a file, once, between the listing of its directory and the look at it."""
    _once(monkeypatch, "_entry", world, name, act)


def before_open(monkeypatch: pytest.MonkeyPatch, world: World, name: str, act: Callable[[str], object]) -> None:
    """Do something to a file or directory, once, between the look at it and its opening."""
    _once(monkeypatch, "_read" if os.path.isfile(f"{world.home}/{name}") else "_directory", world, name, act)


def _once(monkeypatch: pytest.MonkeyPatch, method: str, world: World, name: str, act: Callable[[str], object]) -> None:
    original, left = getattr(FileWalk, method), [name.encode()]

    def acting(self: FileWalk, path: bytes, *arguments: Any) -> Any:
        if path in left:
            left.remove(path)
            act(f"{world.home}/{name}")
        return original(self, path, *arguments)

    monkeypatch.setattr(FileWalk, method, acting)


@pytest.mark.case("7")
@pytest.mark.parametrize("when", [before_stat, before_open])
@pytest.mark.parametrize("name", ["file", "directory"])
def test_what_vanishes_is_left_out(world, monkeypatch, when, name):
    write(f"{world.home}/file")
    write(f"{world.home}/stays")
    os.mkdir(f"{world.home}/directory")
    when(monkeypatch, world, name, os.unlink if name == "file" else os.rmdir)
    result = world.backup()
    assert (result.outcome, result.findings) == ("complete", ())
    assert sorted(os.listdir(restored(world))) == sorted({"file", "stays", "directory"} - {name})


@pytest.mark.case("7")
def test_a_directory_that_vanishes_with_its_files(world, monkeypatch):
    write(f"{world.home}/directory/file")
    before_open(monkeypatch, world, "directory/file", lambda path: shutil.rmtree(os.path.dirname(path)))
    assert world.backup().outcome == "complete"


def to_directory(path: str) -> None:
    os.unlink(path)
    write(f"{path}/inside")


def to_link(path: str) -> None:
    os.rename(path, path + ".was")
    os.symlink("/etc" if os.path.isdir(path + ".was") else "/etc/passwd", path)


def to_file(path: str) -> None:
    os.rename(path, path + ".was")
    write(path, b"now a file")


def to_other_directory(path: str) -> None:
    os.rename(path, path + ".was")
    write(f"{path}/secret", b"never looked at")


@pytest.mark.case("8")
@pytest.mark.parametrize(
    ("name", "swap"),
    [("file", to_directory), ("file", to_link), ("directory", to_file), ("directory", to_link), ("directory", to_other_directory)],
)
def test_what_becomes_something_else_is_refused(world, monkeypatch, name, swap):
    """Never the attributes of one with the content of another."""
    write(f"{world.home}/file", b"before")
    write(f"{world.home}/directory/inside")
    before_open(monkeypatch, world, name, swap)
    result = world.backup()
    assert (result.outcome, kinds(result), result.findings[0].subject) == ("incomplete", [FindingKind.CHANGED], f"{world.home}/{name}")
    assert not os.path.lexists(f"{restored(world)}/{name}")
    check(world, world.backup())
    now = everything(world.home)
    assert everything(restored(world, "next")) == now


@pytest.mark.case("8")
def test_a_directory_swapped_for_a_link_does_not_lead_the_walk_elsewhere(world, monkeypatch):
    """The backup runs as root: a user who swaps directories must not get files into it that are not his."""
    secret = write(f"{world.root}/secret/id", b"secret")
    write(f"{world.home}/user/keys/id", b"his own")
    write(f"{world.home}/user/keys/other")

    def swap(path: str) -> None:
        os.rename(os.path.dirname(path), f"{world.home}/user/moved")
        os.symlink(os.path.dirname(secret), os.path.dirname(path))

    before_stat(monkeypatch, world, "user/keys/id", swap)
    world.backup()
    assert read(f"{restored(world)}/user/keys/id") == b"his own"


@pytest.mark.case("8")
@pytest.mark.parametrize("becomes", ["another link", "a file", "nothing"])
def test_a_link_that_is_replaced_while_it_is_looked_at(world, monkeypatch, becomes):
    """What is kept of it is of one thing: target, time and owner of the new one, or nothing at all."""
    os.symlink("first", f"{world.home}/link")
    os.utime(f"{world.home}/link", ns=(0, 5), follow_symlinks=False)

    def swap(path: str) -> None:
        os.unlink(path)
        if becomes == "another link":
            os.symlink("second", path)
            os.utime(path, ns=(0, 7), follow_symlinks=False)
        elif becomes == "a file":
            write(path, b"file")

    _once(monkeypatch, "_special", world, "link", swap)
    assert world.backup().outcome == "complete"
    out = f"{restored(world)}/link"
    if becomes == "another link":
        assert (os.readlink(out), os.lstat(out).st_mtime_ns) == ("second", 7)
    else:
        assert not os.path.lexists(out)
    check(world, world.backup())
    assert everything(restored(world, "next")) == everything(world.home)


def while_read(monkeypatch: pytest.MonkeyPatch, times: int, act: Callable[[], object]) -> None:
    """Do something after the content of a file was read, and before the check that it stood still."""
    original, left = FileWalk._store, [times]

    def acting(self: FileWalk, path: bytes, fd: int) -> Any:
        found = original(self, path, fd)
        if left[0]:
            left[0] -= 1
            act()
        return found

    monkeypatch.setattr(FileWalk, "_store", acting)


def append(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"more\n")


def rewrite(path: str) -> None:
    size = os.path.getsize(path)
    time.sleep(0.005)  # a tick of the file system's clock
    with open(path, "r+b") as file:
        file.write(os.urandom(4).hex().encode()[:size])


@pytest.mark.case("9")
@pytest.mark.parametrize(
    "change", [append, lambda path: os.truncate(path, os.path.getsize(path) // 2), rewrite], ids=["grows", "shrinks", "rewritten"]
)
def test_a_file_that_changed_while_it_was_read_is_read_again(world, monkeypatch, change):
    path = write(f"{world.home}/file", b"1234567890")
    while_read(monkeypatch, 1, lambda: change(path))
    result = world.backup()
    assert (result.outcome, result.findings) == ("complete", ())
    assert everything(restored(world)) == everything(world.home)


@pytest.mark.case("9")
@pytest.mark.parametrize(
    "change", [append, lambda path: os.truncate(path, os.path.getsize(path) // 2), rewrite], ids=["grows", "shrinks", "rewritten"]
)
def test_a_file_that_never_stands_still_is_flagged_and_what_was_read_is_whole(world, monkeypatch, change):
    path = write(f"{world.home}/file", b"1234567890" * 100)
    while_read(monkeypatch, 3, lambda: change(path))
    result = world.backup()
    assert (result.outcome, kinds(result)) == ("incomplete", [FindingKind.CHANGED])
    _, entries = directory_of(world)
    assert len(read(f"{restored(world)}/file")) == entries[b"file"].entry.size
    check(world, world.backup())
    assert everything(restored(world, "next")) == everything(world.home)


@pytest.mark.case("11")
def test_a_directory_that_ten_workers_change(world):
    """Whatever a run says, its snapshot restores completely, and no file in it is a mixture."""
    stop = threading.Event()

    def work(number: int) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            directory = f"{world.home}/{number % 3}/{count % 4}"
            with contextlib.suppress(FileNotFoundError, FileExistsError):  # makedirs is not atomic against another worker's rmtree
                os.makedirs(directory, exist_ok=True)
            body = b"%d.%d " % (number, count) * (1 + count % 700)
            path = f"{directory}/{number}.{count % 8}"
            with open(f"{world.home}/temp.{number}", "wb") as file:
                file.write(hashlib.sha256(body).digest() + body)
            try:
                os.rename(f"{world.home}/temp.{number}", path)
                if count % 5 == 0:
                    shutil.rmtree(directory, ignore_errors=True)
            except FileNotFoundError:
                pass  # another worker has taken the directory away
            time.sleep(0.001)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(10)]
    for worker in workers:
        worker.start()
    try:
        runs = [world.backup() for _ in range(4)]
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    assert any(run.files for run in runs)
    for run in runs:
        assert set(kinds(run)) <= {FindingKind.CHANGED}, run.findings
        out = restored(world, str(run.seq), at=str(run.seq))
        for path, _, names in os.walk(out):
            for content in [read(f"{path}/{name}") for name in names if not name.startswith("temp")]:
                assert hashlib.sha256(content[32:]).digest() == content[:32]
    check(world)


# ---------------------------------------------------------------- what is read again


def new_inode(path: str) -> None:
    shutil.copy2(path, path + ".new")
    os.rename(path + ".new", path)


def content_with_old_mtime(path: str) -> None:
    stamp = os.stat(path).st_mtime_ns
    write(path, read(path)[::-1])
    os.utime(path, ns=(stamp, stamp))


def chmod_twice(path: str) -> None:
    mode = stat.S_IMODE(os.stat(path).st_mode)
    os.chmod(path, 0o711)
    os.chmod(path, mode)


@pytest.mark.case("10")
@pytest.mark.parametrize(
    ("change", "sends"),
    [
        (new_inode, False),
        (lambda path: os.utime(path, ns=(5, 5)), False),
        (content_with_old_mtime, True),
        (append, True),
        (lambda path: write(path, read(path)[::-1]), True),
        (chmod_twice, False),
        (lambda path: os.utime(path, ns=(5, os.stat(path).st_mtime_ns)), False),
    ],
    ids=[
        "same content, new inode",
        "same content, new mtime",
        "new content with the old mtime",
        "longer",
        "other content",
        "ctime only",
        "atime",
    ],
)
@pytest.mark.parametrize("size", [20_000, 50_000])
def test_what_changed_is_read_and_the_rest_is_not(world, change, sends, size):
    content = os.urandom(size)
    path = write(f"{world.home}/x/changed", content)
    write(f"{world.home}/x/unchanged", os.urandom(9_000))
    world.backup()
    time.sleep(0.005)
    change(path)
    result = world.backup()
    assert (result.outcome, result.bytes_read) == ("complete", os.path.getsize(path))
    assert (result.bytes_stored > size) == sends
    check(world)
    assert everything(restored(world)) == everything(world.home)
    quiet = world.backup()
    assert (quiet.bytes_read, quiet.bytes_stored) == (0, 0)


@pytest.mark.case("10")
def test_an_unchanged_source_is_not_read(world):
    for number in range(50):
        write(f"{world.home}/{number % 5}/{number}", os.urandom(500))
    first = world.backup()
    assert first.bytes_read == 25_000
    again = world.backup()
    assert (again.outcome, again.files, again.bytes_read, again.bytes_stored) == ("complete", 50, 0, 0)


@pytest.mark.parametrize("change", ["rename", "chmod", "chown", "xattr", "link", "rename directory"])
def test_names_and_attributes_send_no_content(world, change):
    """The content is known: by inode if the name changed, by name if the inode did."""
    body = os.urandom(20_000)
    path = write(f"{world.home}/x/sub/file", body)
    world.backup()
    match change:
        case "rename":
            os.rename(path, f"{world.home}/x/other")
        case "chmod":
            os.chmod(path, 0o640)
        case "chown":
            os.chown(path, os.getuid(), 1234 if os.getuid() == 0 else os.getgid())
        case "xattr":
            os.setxattr(path, "user.note", b"new")
        case "link":
            os.link(path, f"{world.home}/x/second")
        case _:
            os.rename(f"{world.home}/x/sub", f"{world.home}/x/bus")
    result = world.backup()
    assert result.outcome == "complete"
    assert result.bytes_stored < 5_000
    check(world)
    assert everything(restored(world)) == everything(world.home)


def test_a_state_made_anew_sends_no_file_again(world):
    for number in range(20):
        write(f"{world.home}/x/{number}", os.urandom(2_000))
    world.backup()
    app.state_rebuild(world.context)
    result = world.backup()
    assert result.bytes_read == 40_000
    assert result.bytes_stored < 10_000
    check(world, result)


# ---------------------------------------------------------------- names, holes, links, attributes, times


@pytest.mark.case("12")
def test_names_of_all_kinds(world):
    home = os.fsencode(world.home)
    plain = [b"two words", b"(round)", b"100%s", b"-rf", b" ", b"\\", b'"', b"n" * 253]
    for name in [*plain, b"line\nbreak", b"\xe2\x28\xa1", "\u00fcml\u00e4ut".encode(), b"\x7f\x01"]:
        write(os.fsdecode(home + b"/" + name), name)
        write(os.fsdecode(home + b"/" + name + b".d/" + name))
    deep = b"/".join([b"d" * 64] * 7)
    write(os.fsdecode(home + b"/" + deep + b"/file"))
    os.symlink(b"t" * 450, home + b"/long target")
    os.symlink(b"\xff\xfe", home + b"/target that is no text")
    result = world.backup()
    assert (result.outcome, result.findings) == ("complete", ())
    assert everything(restored(world)) == everything(world.home)
    again = world.backup()
    assert (again.bytes_read, again.bytes_stored) == (0, 0)
    with_odd_name = world.restore_files("one", os.fsdecode(home + b"/\xe2\x28\xa1"))
    assert with_odd_name.files == 1


@pytest.mark.case("13")
@pytest.mark.parametrize("layout", ["start", "middle", "end", "all"])
def test_sparse_files_come_back_equal_in_content(world, layout):
    mib = 1 << 20
    with open(f"{world.home}/sparse", "wb") as file:
        for place in {"start": [5], "middle": [0, 5], "end": [0], "all": []}[layout]:
            file.seek(place * mib + 7)
            file.write(os.urandom(1000))
        file.truncate(6 * mib)
    result = world.backup()
    assert result.bytes_read == 6 * mib
    assert result.bytes_stored < mib // 2
    out = restored(world)
    assert read(f"{out}/sparse") == read(f"{world.home}/sparse")


@pytest.fixture
def linked(world: World) -> World:
    """A file with four names in three directories, one with two names, one whose second name lies outside the source."""
    write(f"{world.home}/a/one", BLOCK)
    for name in ("a/two", "b/three", "z/four"):
        os.makedirs(os.path.dirname(f"{world.home}/{name}"), exist_ok=True)
        os.link(f"{world.home}/a/one", f"{world.home}/{name}")
    write(f"{world.home}/b/small", b"small")
    os.link(f"{world.home}/b/small", f"{world.home}/a/{'l' * 200}")
    os.link(write(f"{world.root}/outside"), f"{world.home}/b/half")
    os.symlink("one", f"{world.home}/a/symlink")
    os.link(f"{world.home}/a/symlink", f"{world.home}/b/symlink", follow_symlinks=False)
    return world


@pytest.mark.case("14")
def test_hard_links_come_back_as_such(linked):
    result = linked.backup()
    assert result.outcome == "complete"
    assert result.bytes_read < len(BLOCK) + 100
    out = restored(linked)
    assert everything(out) == everything(linked.home)
    assert os.stat(f"{out}/z/four").st_nlink == 4
    assert os.stat(f"{out}/b/half").st_nlink == 1
    again = linked.backup()
    assert (again.bytes_read, again.bytes_stored) == (0, 0)


@pytest.mark.case("14")
def test_hard_links_of_one_directory(linked):
    linked.backup()
    result = linked.restore_files("out", f"{linked.home}/b")
    assert result.outcome == "complete"
    out = f"{linked.root}/out{linked.home}/b"
    assert {name: read(f"{out}/{name}") for name in ("three", "small", "half")} == {"three": BLOCK, "small": b"small", "half": b"content\n"}
    assert os.stat(f"{out}/three").st_nlink == 1


@pytest.mark.case("14")
def test_hard_links_restored_twice(linked):
    linked.backup()
    out = restored(linked)
    before = everything(out)
    assert restored(linked) == out  # everything is there already
    assert restored(linked, overwrite=True) == out
    assert everything(out) == before


@pytest.mark.case("14")
def test_a_link_that_is_added_or_taken_away(linked):
    linked.backup()
    os.unlink(f"{linked.home}/a/one")
    os.link(f"{linked.home}/b/three", f"{linked.home}/zz")
    assert linked.backup().outcome == "complete"
    check(linked)
    assert everything(restored(linked)) == everything(linked.home)


@pytest.mark.case("14", "15")
def test_all_names_of_a_file_have_its_attributes(world):
    """Whichever of them is restored first writes the file."""
    write(f"{world.home}/m/middle")
    os.setxattr(f"{world.home}/m/middle", "user.note", b"kept")
    for name in ("a", "z"):
        os.mkdir(f"{world.home}/{name}")
        os.link(f"{world.home}/m/middle", f"{world.home}/{name}/other")
    world.backup()
    assert everything(restored(world)) == everything(world.home)
    for name in ("a/other", "z/other", "m/middle"):
        world.restore_files(f"one/{name[0]}", f"{world.home}/{name}")
        assert os.getxattr(f"{world.root}/one/{name[0]}{world.home}/{name}", "user.note") == b"kept"


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as the kernel keeps it: rows of (tag, permissions, id)."""
    return b"\2\0\0\0" + b"".join(
        tag.to_bytes(2, "little") + rights.to_bytes(2, "little") + who.to_bytes(4, "little") for tag, rights, who in entries
    )


@pytest.mark.case("15")
def test_acls_come_back(world):
    """For a user that this host does not know."""
    nobody = 0xFFFFFFFF
    value = acl((1, 6, nobody), (2, 4, 4711), (4, 4, nobody), (16, 4, nobody), (32, 0, nobody))
    os.mkdir(f"{world.home}/shared")
    os.setxattr(write(f"{world.home}/shared/file"), "system.posix_acl_access", value)
    os.setxattr(f"{world.home}/shared", "system.posix_acl_default", value)
    assert world.backup().outcome == "complete"
    out = restored(world)
    assert os.getxattr(f"{out}/shared/file", "system.posix_acl_access") == value
    assert os.getxattr(f"{out}/shared", "system.posix_acl_default") == value
    assert everything(out) == everything(world.home)


@pytest.mark.case("15")
@pytest.mark.root
def test_an_attribute_that_cannot_be_set_is_a_finding_and_the_file_is_there():
    """Only root may set trusted attributes, and a user restores."""
    with open_directory() as root:
        world = World(root, directories=True)
        os.setxattr(write(f"{world.home}/file", b"content"), "trusted.secret", b"\0value")
        world.backup()
        restored(world, "warm")
        with without_rights(world):
            result = world.restore_files("out")
        kept = [(f.subject.rpartition("/")[2], f.detail) for f in result.findings if f.kind is FindingKind.ATTRIBUTE_KEPT]
        assert [name for name, detail in kept if "trusted.secret" in detail] == ["file"]
        assert read(f"{root}/out{world.home}/file") == b"content"
        _, entries = directory_of(world)
        assert entries[b"file"].entry.xattrs == {"trusted.secret": base64.b64encode(b"\0value").decode()}


@pytest.mark.case("16")
def test_times_are_kept_to_the_nanosecond(world):
    times = {"old": -(10**9) * 86400 * 365 - 1, "epoch": 0, "one": 1, "now": 1_767_600_000_123_456_789, "y2261": 9_183_110_400 * 10**9 + 7}
    for name, ns in times.items():
        write(f"{world.home}/d-{name}/inside/file")
        os.utime(f"{world.home}/d-{name}/inside/file", ns=(0, ns))
        os.symlink("x", f"{world.home}/d-{name}/link")
        os.utime(f"{world.home}/d-{name}/link", ns=(0, ns), follow_symlinks=False)
        os.utime(f"{world.home}/d-{name}/inside", ns=(0, ns))
        os.utime(f"{world.home}/d-{name}", ns=(0, ns))
    kept = everything(world.home)
    assert len({status[3] for status in kept.values()}) == len(times) + 1
    assert world.backup().outcome == "complete"
    assert everything(restored(world)) == kept


# ---------------------------------------------------------------- what belongs to a source


def test_what_is_excluded_is_neither_read_nor_entered(world):
    configure(world, 'exclude = ["*/.cache", "*.tmp", "/top/[ab]", "*/deep/*.log"]')
    kept = ["one/file", "one/cache", "top/c", "one/deep.log", "one/tmp", "one/deep/log"]
    for name in [
        *kept,
        "one/.cache/file",
        "one/x/.cache/deep/file",
        "two.tmp",
        "one/three.tmp",
        "top/a",
        "top/b/file",
        "one/deep/x.log",
        "one/deep/er/x.log",
    ]:
        write(f"{world.home}/{name}")
    result = world.backup()
    assert (result.outcome, result.files, result.bytes_read) == ("complete", len(kept), len(kept) * len(b"content\n"))
    out = restored(world)
    assert {os.path.relpath(f"{path}/{name}", out) for path, _, names in os.walk(out) for name in names} == set(kept)


def test_a_file_that_is_excluded_from_now_on_leaves_the_next_snapshot(world):
    write(f"{world.home}/file")
    write(f"{world.home}/other")
    world.backup()
    configure(world, 'exclude = ["other"]')
    check(world, world.backup())
    assert os.listdir(restored(world)) == ["file"]


@pytest.mark.root
@pytest.mark.parametrize("one_file_system", [True, False])
def test_other_file_systems_are_left_out_unless_asked_for(world, one_file_system):
    if not one_file_system:
        configure(world, "one_file_system = false")
    write(f"{world.home}/file")
    with tmpfs(f"{world.home}/mounted", 1 << 20):
        write(f"{world.home}/mounted/inside")
        result = world.backup()
    out = restored(world)
    assert os.path.isdir(f"{out}/mounted")
    assert os.path.exists(f"{out}/mounted/inside") == (not one_file_system)
    assert (result.outcome, kinds(result)) == (("explained", [FindingKind.OTHER_FILE_SYSTEM]) if one_file_system else ("complete", []))


@pytest.mark.parametrize("spelling", ["{root}", "{root}/", "{root}/../{name}", "{root}.link"])
def test_mail_inside_a_source_is_saved_as_mail_and_once(tmp_path, spelling):
    """However the source is written: `{root}.link` is a symbolic link to it, which is followed since somebody configured it."""
    world = World(tmp_path / "world")
    os.symlink(world.mail, f"{world.mail}.link")
    body = os.urandom(40_000)
    world.deliver("1.a:2,S", b"Subject: x\n\n" + body)
    write(f"{world.mail}/example.org/alice/notes", b"beside the Maildir")
    with open(world.config_path, "a", encoding="utf-8") as file:
        file.write(f'\n[[directory]]\nname = "all"\npath = "{spelling.format(root=world.mail, name="mail")}"\n')
    result = world.backup()
    assert (result.outcome, result.messages, result.files) == ("complete", 1, 1)
    assert result.bytes_read < 41_000
    _, entries = directory_of(world)
    found = entries[b"example.org/alice/Maildir"].entry
    assert (found.type, found.target) == ("m", "mail:example.org/alice")
    assert not any(name.startswith(b"example.org/alice/Maildir/") for name in entries)
    check(world, world.backup())


def test_a_source_that_is_not_there(world):
    write(f"{world.home}/file")
    world.backup()
    os.rename(world.home, world.home + ".away")
    result = world.backup()
    assert (result.outcome, kinds(result), result.files) == ("incomplete", [FindingKind.SOURCE_MISSING], 1)
    root, entries = directory_of(world)
    assert root.stale
    assert b"file" in entries
    os.rename(world.home + ".away", world.home)
    check(world, world.backup())
    assert not directory_of(world)[0].stale


def test_mailboxes_are_no_business_of_a_source_without_mail(world):
    world.deliver("1.a:2,", b"Subject: x\n\nx\n", ALICE)
    write(f"{world.home}/file")
    result = world.backup()
    assert (result.messages, result.files) == (1, 1)
