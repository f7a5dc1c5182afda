"""Restores: nothing outside the target is touched, nothing is overwritten unless told, and an interrupted restore goes on where it stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile

import pytest

from mailbackup.capture.files import FileWalk
from mailbackup.errors import NotFound, SafetyRefusal, WouldOverwrite
from mailbackup.restore.target import Target
from mailbackup.vault.trees import Item, owner_now
from tests.world import ALICE, World, messages_in, tree_of

OWNER = owner_now(0o644, os.geteuid(), os.getegid())


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path, directories=True)
    for number in range(5):
        made.deliver(f"{number}.m:2,S", b"Subject: %d\n\nbody %d\n" % (number, number))
    made.deliver("9.sent:2,S", b"Subject: sent\n\nsent\n", folder=".Sent")
    os.makedirs(f"{made.home}/user")
    for name in ("a", "b", "c"):
        with open(f"{made.home}/user/{name}", "w") as file:
            file.write(name * 1000)
    return made


def hostile(world, monkeypatch, *items: Item) -> None:
    """Back up with these entries beside the real ones of the directory source, as someone with the writer's key could."""
    run = FileWalk.run

    def lie(walk):
        found = run(walk)
        if walk.root == os.fsencode(world.home):
            found += items
            found.sort(key=Item.sort_key)
        return found

    monkeypatch.setattr(FileWalk, "run", lie)
    world.backup()


def link(name: bytes, target: bytes) -> Item:
    item = Item(name, "l", OWNER, (1, 0))
    item.target = target
    return item


@pytest.mark.case("36")
def test_names_that_lead_out_are_refused(world, monkeypatch):
    names = (b"../evil", b"/tmp/evil-absolute", b"user/../../evil", b"user/./evil", b"user//evil", b"user/e\0vil", b"")
    hostile(world, monkeypatch, *(Item(name, "f", OWNER, (1, 0)) for name in names))
    result = world.restore_files("out")
    assert result.outcome == "incomplete"
    assert [finding.kind for finding in result.findings] == ["name-refused"] * len(names)
    assert tree_of(f"{world.root}/out{world.home}") == tree_of(world.home)
    assert not os.path.exists("/tmp/evil-absolute")
    assert {name for name in os.listdir(world.root) if "evil" in name} == set()


@pytest.mark.case("34")
def test_a_link_in_the_backup_is_not_followed(world, monkeypatch):
    victim = f"{world.root}/victim"
    os.makedirs(victim)
    hostile(world, monkeypatch, link(b"evil", os.fsencode(victim)), Item(b"evil/passwd", "f", OWNER, (1, 0)))
    result = world.restore_files("out")
    assert os.listdir(victim) == []
    assert result.outcome == "incomplete"
    assert tree_of(f"{world.root}/out{world.home}/user") == tree_of(f"{world.home}/user")


@pytest.mark.case("34")
def test_a_link_that_waits_in_the_target_is_not_followed(world):
    world.backup()
    victim, there = f"{world.root}/victim", f"{world.root}/out{world.home}"
    os.makedirs(victim)
    os.makedirs(there)
    os.symlink(victim, f"{there}/user")
    with contextlib.suppress(SafetyRefusal):
        assert world.restore_files("out").outcome == "incomplete"
    assert os.listdir(victim) == []


@pytest.mark.case("35")
def test_a_hard_link_to_a_link_links_the_link(world):
    """Linux makes one inode with two names of a symbolic link; neither name may bring back what it points to."""
    with open(f"{world.root}/secret", "w") as file:
        file.write("secret")
    os.symlink(f"{world.root}/secret", f"{world.home}/one")
    os.link(f"{world.home}/one", f"{world.home}/two", follow_symlinks=False)
    world.backup()
    assert world.restore_files("out").outcome == "complete"
    for name in ("one", "two"):
        assert os.readlink(f"{world.root}/out{world.home}/{name}") == f"{world.root}/secret"


@pytest.mark.case("37")
def test_nothing_is_overwritten_unless_told(world):
    world.backup()
    there = f"{world.root}/out{world.home}/user"
    os.makedirs(there)
    with open(f"{there}/b", "w") as file:
        file.write("mine")
    with pytest.raises(WouldOverwrite, match="user/b"):
        world.restore_files("out")
    assert os.listdir(there) == ["b"]
    assert world.restore_files("out", overwrite=True).outcome == "complete"
    assert tree_of(f"{world.root}/out{world.home}") == tree_of(world.home)


@pytest.mark.case("37")
def test_a_directory_where_a_file_must_go_stays(world):
    world.backup()
    there = f"{world.root}/out{world.home}/user"
    os.makedirs(f"{there}/b/mine")
    result = world.restore_files("out", overwrite=True)
    assert (result.outcome, os.listdir(f"{there}/b")) == ("incomplete", ["mine"])


@pytest.mark.case("22")
def test_an_interrupted_restore_goes_on(world):
    world.backup()
    world.restore_files("out")
    there = f"{world.root}/out{world.home}/user"
    whole = os.stat(f"{there}/a")
    os.truncate(f"{there}/b", 10)
    os.unlink(f"{there}/c")
    result = world.restore_files("out", overwrite=True)
    assert (result.outcome, result.kept) == ("complete", 1)
    after = os.stat(f"{there}/a")
    assert (after.st_ino, after.st_ctime_ns) == (whole.st_ino, whole.st_ctime_ns)
    assert tree_of(f"{world.root}/out{world.home}") == tree_of(world.home)


@pytest.mark.case("22")
def test_a_restore_that_dies_leaves_no_half_file(world, monkeypatch):
    world.backup()
    dress, calls = Target._dress, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return dress(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Target, "_dress", dies)
        with pytest.raises(KeyboardInterrupt):
            world.restore("out")
    found = tree_of(f"{world.root}/out")
    assert not [name for name in found if ".mailbackup-" in name]
    assert messages_in(f"{world.root}/out").items() <= messages_in(world.maildir()).items()
    assert world.restore("out").outcome == "complete"
    assert messages_in(f"{world.root}/out") == messages_in(world.maildir())


@pytest.mark.root
@pytest.mark.case("38")
def test_as_an_ordinary_user(world):
    """Contents come back, and one finding says that owners did not."""
    os.chown(f"{world.home}/user/a", 100, 200)
    world.backup()
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from mailbackup.model.tree import Entry, Owner;"
        "from mailbackup.restore.target import AttributeKept, Target; os.setgid(65534); os.setuid(65534);"
        "t = Target(sys.argv[2]); t.prepare()\n"
        "try: t.write_file(t.place(b'x'), [b'content'], Entry(name='x', size=7, mtime=(5, 6)), Owner(0o640, 100, None, 200, None), replace=False)\n"
        "except AttributeKept as kept: print(kept)"
    )
    place = tempfile.mkdtemp()  # pytest's own directories are closed to others
    os.chown(place, 65534, 65534)
    where = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run([sys.executable, "-c", program, where, f"{place}/out"], capture_output=True, text=True)
    if "Permission denied" in done.stderr and "site-packages" in done.stderr:
        pytest.fail(f"the child cannot read the interpreter's packages: {done.stderr}")
    assert done.stdout == "owner\n", done.stderr
    status = os.stat(f"{place}/out/x")
    assert (status.st_uid, status.st_mode & 0o777, status.st_mtime_ns) == (65534, 0o640, 5_000_000_006)
    shutil.rmtree(place)


@pytest.mark.case("39")
def test_what_does_not_exist_is_said(world):
    world.backup()
    for call in (
        lambda: world.restore("out", "nobody@example.org"),
        lambda: world.restore("out", ALICE, folder="Nothing"),
        lambda: world.restore("out", ALICE, at="99"),
        lambda: world.restore("out", ALICE, at="2001-01-01"),
        lambda: world.restore("out", ALICE, at="the day after"),
        lambda: world.restore_files("out", "/nowhere"),
    ):
        with pytest.raises(NotFound) as error:
            call()
        assert error.value.hint
    assert not os.path.exists(f"{world.root}/out")


def test_moments(world):
    first = world.backup().seq
    world.deliver("6.new:2,", b"Subject: new\n\nnew\n")
    world.backup()
    assert world.restore("a", at=str(first)).messages == 6
    assert world.restore("b", at="latest").messages == 7
    assert world.restore("c", at="today").messages == 7


@pytest.mark.case("39", "M7")
def test_one_folder_comes_alone(world):
    world.backup()
    result = world.restore("out", ALICE, folder="Sent")
    assert (result.outcome, result.messages) == ("complete", 1)
    assert list(messages_in(f"{world.root}/out")) == [b".Sent/cur/9.sent:2,S"]


@pytest.mark.case("M6")
def test_a_message_whose_flags_changed_in_the_target_is_kept(world):
    world.backup()
    world.restore("out")
    cur = f"{world.root}/out/cur"
    os.rename(f"{cur}/0.m:2,S", f"{cur}/0.m:2,FS")
    result = world.restore("out")
    assert (result.outcome, result.kept) == ("complete", 6)
    assert sorted(os.listdir(cur)) == ["0.m:2,FS", "1.m:2,S", "2.m:2,S", "3.m:2,S", "4.m:2,S"]


def test_two_messages_with_one_base_name_both_come_back(world):
    world.deliver("0.m:2,F", b"Subject: other\n\nother\n")
    world.backup()
    world.restore("out")
    contents = sorted(content for content, _ in messages_in(f"{world.root}/out").values())
    assert contents == sorted(content for content, _ in messages_in(world.maildir()).values())


def test_a_plan_touches_nothing(world):
    world.backup()
    result = world.restore("out", dry_run=True)
    assert (result.outcome, result.messages, result.fetched.bytes) == ("planned", 6, 0)
    assert not os.path.exists(f"{world.root}/out")
    assert any(line.path == "cur/0.m:2,S" for line in result.plan)


def test_one_mailbox_reads_its_own_bytes(tmp_path):
    """At most 1.1 times what the vault grew by when the mailbox was stored, and the listings."""
    world = World(tmp_path)
    stored = 0
    for user in ("alice", "bob", "carol"):
        for number in range(60):
            world.deliver(f"{number}.m:2,S", os.urandom(9_000) + b"\n\n" + os.urandom(40_000), f"{user}@example.org")
        stored = world.backup().bytes_stored
    result = world.restore("out", "carol@example.org")
    assert result.outcome == "complete"
    assert result.fetched.bytes <= 1.1 * stored + 64 * 1024


def test_mailboxes_all_at_once(world):
    world.deliver("1.x:2,", b"Subject: x\n\nx\n", "bob@example.org")
    world.backup()
    result = world.restore("all", None)
    assert (result.outcome, result.messages) == ("complete", 7)
    assert sorted(os.listdir(f"{world.root}/all")) == [ALICE, "bob@example.org"]
    shutil.rmtree(f"{world.root}/all")
