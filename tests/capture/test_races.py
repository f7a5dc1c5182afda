"""Mail that changes while it is read: nothing that exists throughout may be missing, under whatever name it goes."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mailbackup.capture.scan import FolderScan, Seen
from tests.world import ALICE, World, bases_in, messages_in

STORM = os.path.join(os.path.dirname(__file__), "storm.py")


@contextlib.contextmanager
def storm(*arguments: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, STORM, *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        assert process.poll() is None, "the storm died"
        process.terminate()
        process.wait()
        process.stdout.close()


def fill(directory: str, count: int, first: int = 0) -> None:
    for number in range(first, first + count):
        with open(f"{directory}/{1700000000 + number}.M{number}P1.mx1:2,", "wb") as file:
            file.write(b"Subject: %d\n\nBody %d\n" % (number, number))


@pytest.mark.case("M1", "M2", "M16")
def test_rename_storm_loses_nothing(tmp_path):
    world = World(tmp_path)
    maildir = world.maildir()
    fill(f"{maildir}/cur", 12_000)
    for number in range(12_000, 20_000):
        with open(f"{maildir}/new/{1700000000 + number}.M{number}P1.mx1", "wb") as file:
            file.write(b"Subject: %d\n\nBody %d\n" % (number, number))
    with storm("flags", maildir):
        result = world.backup()
    assert (result.outcome, result.messages, result.findings) == ("complete", 20_000, ())
    world.restore("out")
    assert bases_in(f"{world.root}/out") == bases_in(maildir)


@pytest.mark.case("M1", "M3")
def test_storm_during_the_next_night(tmp_path):
    """The second run compares with what is cached: a name that is stale must not look like a deleted message."""
    world = World(tmp_path)
    maildir = world.maildir()
    fill(f"{maildir}/cur", 5_000)
    world.backup()
    with storm("flags", maildir):
        result = world.backup()
    assert (result.outcome, result.messages, result.new_messages) == ("complete", 5_000, 0)
    world.restore("out")
    assert bases_in(f"{world.root}/out") == bases_in(maildir)


@pytest.mark.case("M4", "M16")
def test_moves_between_folders_lose_nothing(tmp_path):
    world = World(tmp_path)
    fill(world.folder(".A") + "/cur", 500)
    world.folder(".B")
    maildir = world.maildir()
    with storm("move", f"{maildir}/.A", f"{maildir}/.B"):
        result = world.backup()
        again = world.backup()
    for run in (result, again):
        assert run.outcome in ("complete", "explained"), run.findings
    world.restore("first", at=str(result.seq))
    world.restore("second", at=str(again.seq))
    everything = {base for _, base in bases_in(maildir)}
    assert len(everything) == 500
    for name in ("first", "second"):
        assert {base for _, base in bases_in(f"{world.root}/{name}")} == everything


class Racing(FolderScan):
    """A scan during which somebody acts between two listings: `acts[n]` runs before listing n."""

    acts: dict = {}

    def list_once(self):
        self.acts.pop(self.listings, lambda: None)()
        return super().list_once()


def racing(monkeypatch, **acts):
    Racing.acts = {int(key[1:]): act for key, act in acts.items()}
    monkeypatch.setattr("mailbackup.capture.mailbox.FolderScan", Racing)


def test_deleted_while_read_is_expunged_not_lost(tmp_path, monkeypatch):
    world = World(tmp_path)
    fill(world.maildir() + "/cur", 10)
    world.settle()
    victim = sorted(os.listdir(world.maildir() + "/cur"))[3]
    original = FolderScan.list_once

    def listing(self):
        news = original(self)
        if self.listings == 1:
            os.unlink(f"{world.maildir()}/cur/{victim}")
        return news

    monkeypatch.setattr(FolderScan, "list_once", listing)
    result = world.backup()
    assert (result.outcome, result.messages) == ("explained", 9)
    assert [finding.kind for finding in result.findings] == ["expunged"]
    assert victim.partition(":")[0] in result.findings[0].detail


def test_new_to_cur_between_listing_and_open(tmp_path, monkeypatch):
    world = World(tmp_path)
    world.deliver("1.new", b"Subject: x\n\nbody\n", place="new")
    world.settle()
    original = FolderScan.list_once

    def listing(self):
        news = original(self)
        if self.listings == 1:
            os.rename(f"{world.maildir()}/new/1.new", f"{world.maildir()}/cur/1.new:2,S")
        return news

    monkeypatch.setattr(FolderScan, "list_once", listing)
    result = world.backup()
    assert (result.outcome, result.messages) == ("complete", 1)
    world.restore("out")
    assert list(messages_in(f"{world.root}/out")) == [b"cur/1.new:2,S"]


def test_moved_into_a_folder_that_was_listed_before(tmp_path, monkeypatch):
    """.A is listed, then the message goes from .B to .A, then .B is listed: without a look back it would be in neither."""
    world = World(tmp_path)
    world.folder(".A")
    world.deliver("7.move:2,S", b"Subject: x\n\nbody\n", folder=".B")
    world.settle()
    original = FolderScan.list_once

    def listing(self):
        if self.path.endswith(b".B") and self.listings == 0:
            os.rename(f"{world.maildir()}/.B/cur/7.move:2,S", f"{world.maildir()}/.A/cur/7.move:2,S")
        return original(self)

    monkeypatch.setattr(FolderScan, "list_once", listing)
    result = world.backup()
    assert (result.outcome, result.messages) == ("complete", 1)
    world.restore("out", ALICE)
    assert b".A/cur/7.move:2,S" in messages_in(f"{world.root}/out")


@pytest.mark.case("M3")
def test_flag_change_sends_no_content(tmp_path):
    world = World(tmp_path)
    fill(world.maildir() + "/cur", 300)
    world.backup()
    cur = world.maildir() + "/cur"
    before = {name: os.stat(f"{cur}/{name}").st_mtime_ns for name in os.listdir(cur)}
    for name in before:
        os.rename(f"{cur}/{name}", f"{cur}/{name}FS")
    result = world.backup()
    assert (result.new_messages, result.bytes_read) == (0, 0)
    assert result.bytes_stored < 2_000
    world.restore("out")
    assert messages_in(f"{world.root}/out") == messages_in(world.maildir())


def test_change_within_the_tick_of_the_directory_stamp(tmp_path):
    """A message that arrives right after a run, with the directory's mtime unchanged, is still seen: young stamps prove nothing."""
    world = World(tmp_path)
    cur = world.maildir() + "/cur"
    fill(cur, 3)
    world.backup()
    stamp = os.stat(cur).st_mtime_ns
    fill(cur, 1, first=3)
    os.utime(cur, ns=(stamp, stamp))
    assert world.backup().messages == 4


def test_unchanged_folder_is_not_even_listed(tmp_path, monkeypatch):
    world = World(tmp_path)
    fill(world.maildir() + "/cur", 3)
    world.settle()
    world.backup()
    monkeypatch.setattr(FolderScan, "list_once", lambda self: pytest.fail("listed"))
    result = world.backup()
    assert (result.outcome, result.messages, result.bytes_read) == ("complete", 3, 0)


def test_what_moves_behind_a_listing_that_then_stands_still_is_not_missed(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Known messages are in the other folder at each listing; the last time they come behind readdir and before the stamps are taken. Then nothing moves."""
    world = World(tmp_path)
    fill(world.folder(".A") + "/cur", 50)
    fill(world.folder(".B") + "/cur", 50, first=50)
    world.settle()
    world.backup()
    maildir, listings = world.maildir(), 0
    really, moving = FolderScan._list, os.listdir(f"{maildir}/.A/cur")[:20]

    def move(one: str, other: str) -> None:
        for name in moving:
            os.rename(f"{maildir}/{one}/cur/{name}", f"{maildir}/{other}/cur/{name}")

    def list_and_move(self: FolderScan, directory: bytes, place: bytes, listing: dict[bytes, Seen]) -> None:
        nonlocal listings
        second = self.path.endswith(b"/.B") and directory == b"cur"
        listings += second
        if second and listings == 1:
            move(".B", ".A")
        really(self, directory, place, listing)
        if second and listings == 3:
            move(".A", ".B")

    move(".A", ".B")
    monkeypatch.setattr(FolderScan, "_list", list_and_move)
    result = world.backup()
    assert listings > 3
    world.restore("out", at=str(result.seq))
    assert len({base for _, base in bases_in(f"{world.root}/out")}) == 100


def test_a_listing_in_the_moment_of_a_change_proves_nothing(tmp_path):
    """What changes after it in the same tick of the clock leaves the stamp as it is."""
    world = World(tmp_path)
    fill(world.folder(".A") + "/cur", 3)
    scan = FolderScan(os.fsencode(world.folder(".A")))
    scan.list_once()
    assert scan.young
    time.sleep(0.05)
    scan.list_once()
    assert not scan.young
