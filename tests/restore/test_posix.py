"""What a directory source keeps besides content: ACLs, capabilities and other attributes, holes, names of links and devices, odd times; and caches."""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbackup.capture import reading
from mailbackup.model.finding import FindingKind
from mailbackup.restore.holes import WINDOW, write_parts
from mailbackup.testing.mounts import ext4, tmpfs
from tests.capture.look import check, directory_of, kinds, open_directory, without_rights
from tests.craft import Craft
from tests.world import World, tree_of

MIB = 1 << 20
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
NO_ONE = 0xFFFFFFFF
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
TAG = b"Signature: 8a477f597d28d172789f06886806bc55"


@pytest.fixture
def world(tmp_path: object) -> World:
    return World(tmp_path, directories=True)


def write(path: str, content: bytes = b"content\n") -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
    return path


def acl(*rows: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as the kernel keeps it: rows of (tag, rights, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *row) for row in rows)


def shared(*, group: int = 4, mask: int = 7, user: int = 4711) -> bytes:
    """An ACL that lets a user do everything, and the owning group less than the mask shows."""
    return acl(
        (USER_OBJ, 7, NO_ONE), (USER, 7, user), (GROUP_OBJ, group, NO_ONE), (GROUP, 5, 4712), (MASK, mask, NO_ONE), (OTHER, 0, NO_ONE)
    )


def attributes(path: str) -> dict[str, bytes]:
    """The extended attributes of a thing itself."""
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


def restored(world: World, name: str = "out", **options: Any) -> str:
    """Where the directory source lies after a restore of all of it, in which nothing was missing."""
    result = world.restore_files(name, **options)
    assert (result.outcome, result.findings) == ("complete", ())
    return f"{world.root}/{name}{world.home}"


# ---------------------------------------------------------------- ACLs


@pytest.mark.case("1", "15")
@pytest.mark.root
def test_acls_of_files_directories_and_fifos(world):
    """Set after owner and mode, which would change them: the owner is another one, the mask is not the group's rights."""
    os.makedirs(f"{world.home}/both/inside")
    write(f"{world.home}/both/file")
    os.mkfifo(f"{world.home}/fifo")
    os.symlink("both", f"{world.home}/link")
    for name in ("both", "both/file", "fifo"):
        os.chown(f"{world.home}/{name}", 100, 200)
        os.setxattr(f"{world.home}/{name}", ACCESS, shared(group=1, mask=6))
    os.setxattr(f"{world.home}/both", DEFAULT, shared(group=0))
    before = {name: attributes(f"{world.home}/{name}") for name in ("both", "both/inside", "both/file", "fifo", "link")}
    assert world.backup().outcome == "complete"
    out = restored(world)
    assert {name: attributes(f"{out}/{name}") for name in before} == before
    assert tree_of(out) == tree_of(world.home)
    assert os.stat(f"{out}/both/file").st_mode & 0o070 == 0o060, "the mask"
    check(world)


@pytest.mark.case("15")
def test_acls_as_the_tools_show_them(world):
    """By number where this host has no such user, as `setfacl` took them."""
    path = write(f"{world.home}/file")
    subprocess.run(["setfacl", "-m", "u:4711:rw,g:4712:r,m::rw", path], check=True)
    world.backup()
    listed = [
        subprocess.run(["getfacl", "-n", "-c", "-p", place], check=True, capture_output=True, text=True).stdout
        for place in (path, f"{restored(world)}/file")
    ]
    assert listed[0] == listed[1]
    assert "user:4711:rw-" in listed[1]


@pytest.mark.case("15")
@pytest.mark.parametrize("kind", ["files", "mail"])
def test_what_a_place_hands_down_does_not_stay(world, kind):
    """Restored below a directory with a default ACL, nothing lets in whom the backup does not name."""
    write(f"{world.home}/sub/file")
    os.mkfifo(f"{world.home}/sub/fifo")
    os.symlink("file", f"{world.home}/sub/link")
    write(f"{world.home}/own")
    os.setxattr(f"{world.home}/own", ACCESS, shared(user=4000))
    world.deliver("1.m:2,S", b"Subject: x\n\nx\n")
    source = world.home if kind == "files" else world.maildir()
    before = tree_of(source), {name: attributes(os.path.join(source, name)) for name in tree_of(source)}
    world.backup()
    os.mkdir(f"{world.root}/out")
    os.setxattr(f"{world.root}/out", DEFAULT, shared())
    if kind == "files":
        out = restored(world)
    else:
        assert world.restore("out").findings == ()
        out = f"{world.root}/out"
    assert (tree_of(out), {name: attributes(os.path.join(out, name)) for name in tree_of(out)}) == before


@pytest.mark.case("15")
def test_a_second_restore_below_a_restored_default_acl(world):
    """The directory has its default ACL by then; a file that has none must not inherit it."""
    plain = write(f"{world.home}/shared/plain")
    os.setxattr(f"{world.home}/shared", DEFAULT, shared())
    world.backup()
    out = restored(world)
    os.unlink(f"{out}/shared/plain")
    restored(world)
    assert attributes(f"{out}/shared/plain") == attributes(plain) == {}
    assert os.getxattr(f"{out}/shared", DEFAULT) == shared()


@pytest.mark.case("15")
def test_messages_below_a_default_acl_of_tmp(world):
    """A message is made in tmp, and keeps what tmp gave it."""
    world.deliver("1.m:2,S", b"Subject: x\n\nx\n")
    world.backup()
    world.restore("out")
    os.setxattr(f"{world.root}/out/tmp", DEFAULT, shared())
    os.unlink(f"{world.root}/out/cur/1.m:2,S")
    world.restore("out")
    assert attributes(f"{world.root}/out/cur/1.m:2,S") == {}


@pytest.mark.case("15")
def test_an_acl_that_cannot_be_set_leaves_none_that_was_handed_down(world):
    """A record that was tampered with."""
    with Craft(world) as craft:
        bad = {ACCESS: base64.b64encode(b"no ACL").decode()}
        fifo = craft.file(b"fifo", type="p", xattrs=bad)
        craft.commit(directories={world.home: [craft.directory(), craft.file(b"file", b"1", xattrs=bad), fifo]})
    os.mkdir(f"{world.root}/out")
    os.setxattr(f"{world.root}/out", DEFAULT, shared())
    result = world.restore_files("out")
    assert {f.subject.rpartition("/")[2] for f in result.findings} == {"file", "fifo"}
    for name in ("file", "fifo"):
        assert attributes(f"{world.root}/out{world.home}/{name}") == {}
        assert os.stat(f"{world.root}/out{world.home}/{name}").st_mode & 0o070 == 0


@pytest.mark.case("15")
@pytest.mark.root
def test_where_no_acls_exist_the_group_gets_no_more(world):
    """The group bits of a file with an ACL are its mask. Alone, they would let the group do what only the named user may."""
    os.chmod(write(f"{world.home}/dir/file"), 0o600)
    os.setxattr(f"{world.home}/dir/file", ACCESS, shared(group=0))
    os.setxattr(f"{world.home}/dir", ACCESS, shared(group=5))
    os.mkfifo(f"{world.home}/dir/fifo")
    os.setxattr(f"{world.home}/dir/fifo", ACCESS, shared(group=1))
    world.backup()
    with without_attributes(f"{world.root}/bare") as bare:
        result = world.restore_files("bare/out")
        kept = {(f.subject.rpartition("/")[2], f.detail.partition(":")[0]) for f in result.findings if f.kind is FindingKind.ATTRIBUTE_KEPT}
        assert kept == {(name, f"attribute {ACCESS}") for name in ("dir", "file", "fifo")}
        assert result.outcome == "complete"
        modes = [stat.S_IMODE(os.stat(f"{bare}/out{world.home}/dir{name}").st_mode) for name in ("", "/file", "/fifo")]
        assert [f"{mode:o}" for mode in modes] == ["750", "700", "710"]


@contextlib.contextmanager
def without_attributes(folder: str) -> Iterator[str]:
    """A file system that knows neither ACLs nor other attributes."""
    os.makedirs(folder)
    done = subprocess.run(["mount", "-t", "ramfs", "ramfs", folder], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


# ---------------------------------------------------------------- capabilities and other attributes


@pytest.mark.case("1", "15")
@pytest.mark.root
def test_capabilities_outlive_the_change_of_owner(world):
    path = write(f"{world.home}/program", b"#!/bin/sh\n")
    os.chown(path, 100, 200)
    os.chmod(path, 0o755)
    subprocess.run(["setcap", "cap_net_bind_service=ep", path], check=True)
    os.setxattr(path, ACCESS, shared())
    world.backup()
    copy = f"{restored(world)}/program"
    assert attributes(copy) == attributes(path)
    assert "cap_net_bind_service=ep" in subprocess.run(["getcap", copy], check=True, capture_output=True, text=True).stdout
    assert os.stat(copy).st_uid == 100


@pytest.mark.case("1", "15")
@pytest.mark.root
def test_attributes_of_links_fifos_and_devices(world):
    """`trusted` as root; the kernel refuses `user` for them, and ACLs for links."""
    write(f"{world.home}/target")
    os.symlink("target", f"{world.home}/link")
    os.symlink("nowhere", f"{world.home}/dangling")
    os.mkfifo(f"{world.home}/fifo", 0o640)
    os.mknod(f"{world.home}/null", 0o660 | stat.S_IFCHR, os.makedev(1, 3))
    os.setxattr(f"{world.home}/null", ACCESS, shared(group=0))
    names = ("link", "dangling", "fifo", "null")
    for name in names:
        os.setxattr(f"{world.home}/{name}", "trusted.note", name.encode() + b"\0\xff", follow_symlinks=False)
    world.backup()
    out = restored(world)
    for name in (*names, "target"):
        assert attributes(f"{out}/{name}") == attributes(f"{world.home}/{name}"), name
    assert attributes(f"{out}/target") == {}, "of the link itself"
    assert tree_of(out) == tree_of(world.home)
    again = world.backup()
    assert (again.bytes_read, again.bytes_stored) == (0, 0)


@pytest.mark.case("15")
@pytest.mark.parametrize("kind", ["file", "directory", "mail"])
def test_a_name_that_is_no_text_costs_that_attribute_only(world, kind):
    """Any user can give an attribute such a name; nobody's backup may end by it."""
    path = write(f"{world.home}/directory/file")
    path = {"file": path, "directory": f"{world.home}/directory", "mail": world.deliver("1.m:2,S", b"Subject: x\n\nx\n")}[kind]
    os.setxattr(path, b"user.\xff\xfe", b"lost")
    os.setxattr(path, "user.\u00fc", b"kept")
    result = world.backup()
    assert (result.outcome, result.files, result.messages) == ("complete", 1, 1)
    if kind == "mail":
        world.restore("out")
        copy = f"{world.root}/out/cur/1.m:2,S"
    else:
        copy = restored(world) + path.removeprefix(world.home)
    assert attributes(copy) == {"user.\u00fc": b"kept"}


def test_an_attribute_that_vanishes_costs_that_attribute_only(tmp_path, monkeypatch):
    """Between the list and the look. A fake: the moment cannot be met."""
    path = write(f"{tmp_path}/file")
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "user.b", b"2")
    listed = os.listxattr(path)
    os.removexattr(path, "user.a")
    monkeypatch.setattr(reading.os, "listxattr", lambda *_, **__: listed)
    assert reading.xattrs_of(os.fsencode(path)) == {"user.b": "Mg=="}


@pytest.mark.case("15", "16")
@pytest.mark.root
def test_an_attribute_too_large_for_the_target(tmp_path):
    """The content, the other attributes and the time are there, and one finding names file and attribute."""
    with tmpfs(f"{tmp_path}/large", 64 * MIB) as place, ext4(f"{tmp_path}/image", f"{tmp_path}/large/small"):
        world = World(place, directories=True)
        path = write(f"{world.home}/file")
        for name, size in (("a", 10), ("large", 60_000), ("z", 10)):
            os.setxattr(path, f"trusted.{name}", b"x" * size)
        os.utime(path, ns=(1, 10**18 + 7))
        world.backup()
        result = world.restore_files("small/out")
        copy = f"{place}/small/out{world.home}/file"
        assert [(f.kind, f.subject) for f in result.findings] == [(FindingKind.ATTRIBUTE_KEPT, f"{world.home}/file".lstrip("/"))]
        assert result.findings[0].detail.startswith("attribute trusted.large: ")
        assert attributes(copy) == {"trusted.a": b"x" * 10, "trusted.z": b"x" * 10}
        assert tree_of(copy) == tree_of(path)
        assert (os.stat(copy).st_mtime_ns, os.path.getsize(copy)) == (10**18 + 7, 8)


@pytest.mark.case("15", "38")
@pytest.mark.root
def test_attributes_for_an_ordinary_user():
    """What is his comes back with its ACLs; what takes root is named."""
    with open_directory() as root:
        world = World(root, directories=True)
        os.setxattr(write(f"{world.home}/sub/file"), ACCESS, shared())
        os.setxattr(f"{world.home}/sub", DEFAULT, shared())
        subprocess.run(["setcap", "cap_net_raw=p", write(f"{world.home}/program")], check=True)
        world.backup()
        restored(world, "warm")
        with without_rights(world):
            result = world.restore_files("out")
        named = [(f.subject.rpartition("/")[2], f.detail) for f in result.findings if f.kind is FindingKind.ATTRIBUTE_KEPT]
        assert [(name, detail.partition(":")[0]) for name, detail in named] == [("program", "attribute security.capability")]
        out = f"{root}/out{world.home}"
        assert (attributes(f"{out}/sub/file"), attributes(f"{out}/sub")) == ({ACCESS: shared()}, {DEFAULT: shared()})


@pytest.mark.case("3", "38")
@pytest.mark.root
def test_a_fifo_made_by_an_ordinary_user(tmp_path):
    """With its mode, in spite of the umask."""
    program = (
        "import ctypes, os, sys; sys.path.insert(0, sys.argv[1]); from mailbackup.model.tree import Entry, Owner;"
        "from mailbackup.restore.target import Target; os.setgid(65534); os.setuid(65534); os.umask(0o77);"
        "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"  # PR_SET_DUMPABLE: the state of a program that this user started
        "t = Target(sys.argv[2]); t.prepare(); owner = Owner(0o666, 65534, None, 65534, None)\n"
        "t.special(b'fifo', Entry(name='fifo', type='p', mtime=(5, 6)), owner, replace=False)"
    )
    where = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    with tempfile.TemporaryDirectory() as place:  # pytest's own directories are closed to others
        os.chown(place, 65534, 65534)
        subprocess.run([sys.executable, "-c", program, where, f"{place}/out"], check=True, capture_output=True)
        status = os.lstat(f"{place}/out/fifo")
    assert (stat.S_ISFIFO(status.st_mode), stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (True, 0o666, 5_000_000_006)


@pytest.mark.case("34")
@pytest.mark.root
def test_a_link_planted_in_place_of_a_fifo_is_not_followed(world, monkeypatch):
    """Root restores into a directory that a user may write to, and the user gives the FIFO's name to a link."""
    victim = write(f"{world.root}/victim")
    os.chmod(victim, 0o600)
    os.mkfifo(f"{world.home}/fifo")
    os.chmod(f"{world.home}/fifo", 0o666)
    world.backup()
    make = os.mkfifo

    def swapped(name: bytes, mode: int, *, dir_fd: int) -> None:
        make(name, mode, dir_fd=dir_fd)
        os.unlink(name, dir_fd=dir_fd)
        os.symlink(victim, name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkfifo", swapped)
    result = world.restore_files("out")
    assert stat.S_IMODE(os.stat(victim).st_mode) == 0o600
    assert [finding.kind for finding in result.findings] == [FindingKind.NOT_RESTORED]


# ---------------------------------------------------------------- holes


def used(path: str) -> int:
    """Bytes that a file takes on its disk."""
    os.sync()
    return os.stat(path).st_blocks * 512


@pytest.mark.case("13")
@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
@pytest.mark.parametrize(("data", "size"), [([5], 9), ([0, 5], 9), ([0], 9), ([], 9), ([0, 30, 60], 61), ([2], 2.02)])
def test_sparse_files_come_back_with_their_holes(world, kind, data, size):
    """Holes at the start, in the middle and at the end; the last two: several blobs long, and with little in the last one."""
    path = f"{world.home}/sparse"
    with open(path, "wb") as file:
        for place in data:
            file.seek(place * MIB + 777)
            file.write(os.urandom(5000))
        file.truncate(max(int(size * MIB), file.tell()))
    world.backup()
    with ext4(f"{world.root}/image", f"{world.root}/target") if kind == "ext4" else tmpfs(f"{world.root}/target", 24 * MIB):
        out = restored(world, "target/out")
        assert subprocess.run(["cmp", path, f"{out}/sparse"], check=False).returncode == 0
        assert used(f"{out}/sparse") <= used(path) + len(data) * 2 * WINDOW < MIB


@pytest.mark.case("13")
@pytest.mark.parametrize("replaced", [b"", b"\xff" * 3 * MIB])
def test_a_sparse_file_over_another(world, replaced):
    """What lay there before does not shine through the holes."""
    with open(f"{world.home}/sparse", "wb") as file:
        file.seek(2 * MIB)
        file.write(b"end")
    world.backup()
    write(f"{world.root}/out{world.home}/sparse", replaced)
    out = restored(world, overwrite=True)
    with open(f"{out}/sparse", "rb") as file:
        assert file.read() == bytes(2 * MIB) + b"end"


def test_short_runs_of_zeros_are_written(world):
    """Where a file holds many small gaps, holes would only scatter it over the disk."""
    path = write(f"{world.home}/dense", (b"x" * 4096 + bytes(4096)) * 64)
    world.backup()
    assert used(f"{restored(world)}/dense") >= os.path.getsize(path)


@pytest.mark.case("13")
def test_windows_are_aligned_in_the_file(tmp_path):
    """Where its parts begin has nothing to do with where its holes do."""
    with open(f"{tmp_path}/file", "w+b") as file:
        write_parts(file.fileno(), [b"x" * 100, b"x" * (WINDOW - 100) + bytes(WINDOW) + b"x" * WINDOW])
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == WINDOW
        assert os.lseek(file.fileno(), WINDOW, os.SEEK_DATA) == 2 * WINDOW


PARTS = st.lists(
    st.tuples(st.sampled_from([0, 1, 100, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 5]), st.sampled_from([b"\0", b"x", b"\0x"])).map(
        lambda part: (part[1] * part[0])[: part[0]]
    ),
    max_size=6,
)


@pytest.mark.case("13")
@given(PARTS)
def test_what_is_written_is_the_content(parts):
    with tempfile.TemporaryFile() as file:
        write_parts(file.fileno(), parts)
        file.seek(0)
        assert file.read() == b"".join(parts)


# ---------------------------------------------------------------- several names of one thing


@pytest.fixture
def named(world: World) -> World:
    """A dangling link, a link to a file, a FIFO and a device, each with three names; and a second link that only looks like the first."""
    home = world.home
    for name in ("a", "b/deep", "z"):
        os.makedirs(f"{home}/{name}")
    write(f"{home}/file")
    os.symlink("../nowhere", f"{home}/b/dangling")
    os.symlink("../nowhere", f"{home}/b/twin")
    os.symlink(f"{home}/file", f"{home}/b/link")
    os.mkfifo(f"{home}/b/fifo")
    for name in ("dangling", "link", "fifo"):
        for place in ("a", "z"):
            os.link(f"{home}/b/{name}", f"{home}/{place}/{name}", follow_symlinks=False)
    return world


def groups(root: str) -> set[frozenset[str]]:
    """Which names below a directory are of one inode, where there are several."""
    found: dict[int, set[str]] = {}
    for path, directories, names in os.walk(root):
        for name in [*directories, *names]:
            full = os.path.join(path, name)
            if not stat.S_ISDIR(os.lstat(full).st_mode):
                found.setdefault(os.lstat(full).st_ino, set()).add(os.path.relpath(full, root))
    return {frozenset(names) for names in found.values() if len(names) > 1}


@pytest.mark.case("14", "35")
def test_links_and_fifos_of_several_names(named):
    assert named.backup().outcome == "complete"
    out = restored(named)
    assert tree_of(out) == tree_of(named.home)
    assert groups(out) == groups(named.home) == {frozenset(f"{place}/{name}" for place in "abz") for name in ("dangling", "link", "fifo")}
    assert os.lstat(f"{out}/b/twin").st_nlink == 1
    again = named.backup()
    assert (again.bytes_read, again.bytes_stored) == (0, 0)
    check(named)


@pytest.mark.case("14", "35")
def test_one_directory_and_then_the_rest(named):
    """A part is restored alone; what comes later becomes a further name of what is there."""
    named.backup()
    assert named.restore_files("out", f"{named.home}/b").outcome == "complete"
    out = f"{named.root}/out{named.home}"
    assert os.lstat(f"{out}/b/link").st_nlink == 1
    assert restored(named) == out
    assert groups(out) == groups(named.home)
    assert restored(named, overwrite=True) == out
    assert (groups(out), tree_of(out)) == (groups(named.home), tree_of(named.home))


@pytest.mark.case("14")
@pytest.mark.root
def test_devices_of_several_names(world):
    os.mknod(f"{world.home}/one", 0o600 | stat.S_IFBLK, os.makedev(7, 12))
    os.link(f"{world.home}/one", f"{world.home}/two")
    world.backup()
    assert groups(restored(world)) == {frozenset({"one", "two"})}


@pytest.mark.case("35")
def test_names_that_only_claim_to_be_of_one_thing(world):
    """A record that was tampered with: a link never becomes a name of something else."""
    with Craft(world) as craft:
        items = [craft.link(b"a", b"one"), craft.link(b"b", b"two"), craft.file(b"c", type="p")]
        for item in items:
            item.hard = b"a"
        craft.commit(directories={world.home: [craft.directory(), *items]})
    world.restore_files("out")
    out = f"{world.root}/out{world.home}"
    assert (os.readlink(f"{out}/a"), os.readlink(f"{out}/b")) == ("one", "two")
    assert stat.S_ISFIFO(os.lstat(f"{out}/c").st_mode)


@pytest.mark.case("14", "38")
@pytest.mark.root
def test_a_device_of_several_names_for_an_ordinary_user():
    """None of them can be made, and the restore goes on."""
    with open_directory() as root:
        world = World(root, directories=True)
        os.mknod(f"{world.home}/one", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        os.link(f"{world.home}/one", f"{world.home}/two")
        write(f"{world.home}/file")
        world.backup()
        restored(world, "warm")
        with without_rights(world):
            result = world.restore_files("out")
        named = sorted(
            f.subject.rpartition("/")[2] for f in result.findings if "only root" in f.detail and f.kind is FindingKind.ATTRIBUTE_KEPT
        )
        assert (named, os.listdir(f"{root}/out{world.home}")) == (["one", "two"], ["file"])


@pytest.mark.case("14", "35")
def test_without_hard_links_a_link_comes_back_as_two(named, monkeypatch):
    """A fake: a file system that has links and no hard links is hard to come by."""
    named.backup()
    os.unlink(f"{named.home}/file")
    make = os.link

    def refused(source: Any, name: Any, **options: Any) -> None:
        if stat.S_ISREG(os.stat(source, dir_fd=options.get("src_dir_fd"), follow_symlinks=False).st_mode):
            make(source, name, **options)
            return
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    out = restored(named)
    assert groups(out) == set()
    assert os.readlink(f"{out}/z/link") == f"{named.home}/file"


# ---------------------------------------------------------------- times


@pytest.mark.case("16")
@pytest.mark.root
def test_absurd_times(tmp_path):
    """Years before 1970 and far ahead, of files, directories, links and FIFOs, to the nanosecond."""
    with tmpfs(f"{tmp_path}/world", 64 * MIB) as place:
        world = World(place, directories=True)
        years = {"1901": -2_177_452_800, "1969": -1, "2038": 1 << 31, "2106": 1 << 32, "2261": 9_183_110_400, "2262": 9_223_372_036}
        for name, seconds in years.items():
            os.mkdir(f"{world.home}/{name}")
            write(f"{world.home}/{name}/file")
            os.symlink("nowhere", f"{world.home}/{name}/link")
            os.mkfifo(f"{world.home}/{name}/fifo")
            for inside in ("file", "link", "fifo", "."):
                os.utime(f"{world.home}/{name}/{inside}", ns=(0, seconds * 10**9 + 854_775_807), follow_symlinks=False)
        before = tree_of(world.home)
        assert len({row[1] for row in before.values()}) == len(years) + 1
        assert world.backup().outcome == "complete"
        assert tree_of(restored(world)) == before
        assert world.restore_files("out").kept == 3 * len(years), "recognised as restored already"


@pytest.mark.case("16")
@pytest.mark.root
def test_a_time_that_the_target_cannot_have_is_named(tmp_path):
    """ext4 begins in 1901, and its kernel says nothing of what it cuts off."""
    with tmpfs(f"{tmp_path}/world", 64 * MIB) as place, ext4(f"{tmp_path}/image", f"{place}/old"):
        world = World(place, directories=True)
        os.utime(write(f"{world.home}/file"), ns=(0, -(1 << 62)))
        world.backup()
        result = world.restore_files("old/out")
        assert [(f.kind, f.subject.rpartition("/")[2]) for f in result.findings] == [(FindingKind.ATTRIBUTE_KEPT, "file")]
        assert result.findings[0].detail.startswith("time -4611686019: this file system made it ")


# ---------------------------------------------------------------- caches


@pytest.mark.case("17")
@pytest.mark.parametrize("linked", [False, True])
def test_a_cache_is_kept_as_an_empty_directory_with_its_tag(world, linked):
    write(f"{world.home}/user/.cache/CACHEDIR.TAG", TAG + b"\n# made by a program\n")
    write(f"{world.home}/user/.cache/deep/large", os.urandom(50_000))
    write(f"{world.home}/user/.cache/beside")
    os.chmod(f"{world.home}/user/.cache", 0o700)
    write(f"{world.home}/user/kept")
    if linked:  # one tag for many directories
        os.mkdir(f"{world.home}/a")
        os.link(f"{world.home}/user/.cache/CACHEDIR.TAG", f"{world.home}/a/CACHEDIR.TAG")
        write(f"{world.home}/a/file")
    result = world.backup()
    count, first = (2, "a") if linked else (1, "user/.cache")
    detail = f"{count} directories with a CACHEDIR.TAG are in the snapshot without their content, first {first}"
    assert [(f.kind, f.subject, f.detail) for f in result.findings] == [(FindingKind.CACHE_SKIPPED, world.home, detail)]
    assert (result.outcome, result.files) == ("explained", count + 1)
    assert result.bytes_read < 200
    out = restored(world)
    assert os.listdir(f"{out}/user/.cache") == ["CACHEDIR.TAG"]
    assert tree_of(f"{out}/user/.cache/CACHEDIR.TAG") == tree_of(f"{world.home}/user/.cache/CACHEDIR.TAG")
    assert stat.S_IMODE(os.stat(f"{out}/user/.cache").st_mode) == 0o700
    again = world.backup()
    assert (again.outcome, again.bytes_read, again.bytes_stored) == ("explained", 0, 0)


def no_signature(path: str) -> None:
    write(path, b"Signature: 8a477f597d28d172789f06886806bc56")


def too_short(path: str) -> None:
    write(path, TAG[:-1])


def a_blank_first(path: str) -> None:
    write(path, b" " + TAG)


def a_link(path: str) -> None:
    os.symlink(write(os.path.dirname(os.path.dirname(path)) + "/real", TAG), path)


def a_directory(path: str) -> None:
    write(f"{path}/CACHE", TAG)


def a_fifo(path: str) -> None:
    os.mkfifo(path)


def another_name(path: str) -> None:
    write(path.lower(), TAG)


@pytest.mark.case("17")
@pytest.mark.parametrize("tag", [no_signature, too_short, a_blank_first, a_link, a_directory, a_fifo, another_name])
def test_what_is_no_valid_tag_is_a_file_like_any_other(world, tag):
    write(f"{world.home}/directory/precious")
    tag(f"{world.home}/directory/CACHEDIR.TAG")
    result = world.backup()
    assert (result.outcome, result.findings) == ("complete", ())
    assert tree_of(restored(world)) == tree_of(world.home)


@pytest.mark.case("17")
def test_a_tag_in_the_root_of_a_source_or_in_a_mailbox_leaves_nothing_out(world):
    """Somebody named the source; and mail is no cache, whatever its owner says."""
    write(f"{world.home}/CACHEDIR.TAG", TAG)
    write(f"{world.home}/file")
    world.deliver("1.m:2,S", b"Subject: x\n\nx\n", folder=".Sent")
    for place in (world.maildir(), world.folder(".Sent"), f"{world.maildir()}/sieve"):
        write(f"{place}/CACHEDIR.TAG", TAG)
        write(f"{place}/subscriptions")
    result = world.backup()
    assert (result.outcome, result.findings, result.files, result.messages) == ("complete", (), 2, 1)
    world.restore("out")
    assert tree_of(f"{world.root}/out") == tree_of(world.maildir())


@pytest.mark.case("17")
def test_a_tag_that_comes_and_goes(world):
    write(f"{world.home}/directory/file", b"content")
    world.backup()
    write(f"{world.home}/directory/CACHEDIR.TAG", TAG)
    assert kinds(world.backup()) == [FindingKind.CACHE_SKIPPED]
    assert set(directory_of(world)[1]) == {b".", b"directory", b"directory/CACHEDIR.TAG"}
    os.unlink(f"{world.home}/directory/CACHEDIR.TAG")
    check(world, world.backup())
    assert tree_of(restored(world)) == tree_of(world.home)


@pytest.mark.case("17")
@pytest.mark.root
def test_a_tag_that_cannot_be_read_leaves_nothing_out():
    with open_directory() as root:
        world = World(root, directories=True)
        write(f"{world.home}/directory/CACHEDIR.TAG", TAG)
        write(f"{world.home}/directory/file")
        world.backup()
        os.chmod(f"{world.home}/directory/CACHEDIR.TAG", 0)
        with without_rights(world):
            result = world.backup()
        assert kinds(result) == [FindingKind.UNREADABLE]
        assert b"directory/file" in directory_of(world)[1]


def test_other_marks_do_not_leave_anything_out(world):
    """`.nobackup` and chattr +d say that something may be left out; only the configuration and CACHEDIR.TAG are heard."""
    write(f"{world.home}/directory/.nobackup", b"")
    write(f"{world.home}/directory/file")
    subprocess.run(["chattr", "+d", f"{world.home}/directory/file", f"{world.home}/directory"], check=False, capture_output=True)
    result = world.backup()
    assert (result.outcome, result.files) == ("complete", 2)
