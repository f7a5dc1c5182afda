"""`diff`: what differs is told, what does not is not even fetched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mailbackup.errors import NotFound
from mailbackup.server.compare import compare
from tests.world import ALICE, World

BOB = "bob@example.org"


def letter(subject: str) -> bytes:
    return f"From: x@example.net\r\nSubject: {subject}\r\n\r\nbody of {subject}\r\n".encode()


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path, directories=True)
    for number in range(4):
        world.deliver(f"{number}.m.host:2,S", letter(f"first {number}"), age=100)
    world.deliver("1.b.host:2,", letter("of bob"), BOB, age=100)
    world.folder(".Sent")
    Path(world.home, "a.txt").write_text("a")
    Path(world.home, "b.txt").write_text("b")
    Path(world.home, "sub").mkdir()
    Path(world.home, "sub", "c.txt").write_text("c")
    world.backup()
    world.settle()
    return world


def test_nothing_differs(world: World):
    world.backup()
    result = compare(world.context, "2", "3")
    assert (result.outcome, result.mailboxes, result.sources) == ("equal", (), ())


def test_messages(world: World):
    box = world.maildir()
    os.rename(f"{box}/cur/0.m.host:2,S", f"{box}/cur/0.m.host:2,FS")
    os.rename(f"{box}/cur/1.m.host:2,S", f"{world.folder('.Sent')}/cur/1.m.host:2,S")
    os.remove(f"{box}/cur/2.m.host:2,S")
    world.deliver("9.m.host", letter("newcomer"), place="new")
    world.backup()
    result = compare(world.context, "2", "3", ALICE)
    [row] = result.mailboxes
    assert (row.address, row.change, row.added, row.removed, row.moved, row.flags) == (ALICE, "changed", 1, 1, 1, 1)
    assert {(m.change, m.folder, m.subject, m.detail) for m in result.messages} == {
        ("added", "INBOX", "newcomer", ""),
        ("removed", "INBOX", "first 2", ""),
        ("moved", "Sent", "first 1", "from INBOX"),
        ("flags", "INBOX", "first 0", "S → FS"),
    }
    assert result.sources == ()
    assert compare(world.context, "2", "3", BOB).outcome == "equal"


def test_what_came_and_went_between_is_seen_in_both_directions(world: World):
    world.deliver("1.c.host:2,", letter("of carol"), "carol@example.org")
    for path, directories, names in os.walk(f"{world.mail}/example.org/bob", topdown=False):
        for name in names:
            os.remove(os.path.join(path, name))
        for name in directories:
            os.rmdir(os.path.join(path, name))
    os.rmdir(f"{world.mail}/example.org/bob")
    world.backup()
    forth = {row.address: (row.change, row.added, row.removed) for row in compare(world.context, "2", "3").mailboxes}
    back = {row.address: (row.change, row.added, row.removed) for row in compare(world.context, "3", "2").mailboxes}
    assert forth == {"carol@example.org": ("added", 1, 0), BOB: ("removed", 0, 1)}
    assert back == {"carol@example.org": ("removed", 0, 1), BOB: ("added", 1, 0)}


def test_files(world: World):
    Path(world.home, "a.txt").write_text("longer")
    os.chmod(f"{world.home}/b.txt", 0o600)
    os.remove(f"{world.home}/sub/c.txt")
    os.symlink("a.txt", f"{world.home}/link")
    world.backup()
    result = compare(world.context, "2", "3", world.home)
    assert {(row.path.removeprefix(world.home), row.change, row.what) for row in result.files} == {
        ("/a.txt", "changed", ("content", "size", "time")),
        ("/b.txt", "changed", ("mode",)),
        ("/sub/c.txt", "removed", ()),
        ("/link", "added", ()),
    }
    assert [row.path for row in compare(world.context, "2", "3", f"{world.home}/sub").files] == [f"{world.home}/sub/c.txt"]
    [source] = compare(world.context, "2", "3").sources
    assert (source.added, source.removed, source.changed) == (1, 1, 2)


@pytest.mark.parametrize("what", ["nobody@example.org", "/nowhere"])
def test_what_neither_holds(what: str, world: World):
    world.backup()
    with pytest.raises(NotFound, match="neither snapshot 2 nor 3"):
        compare(world.context, "2", "3", what)


def test_equal_segments_are_not_fetched(tmp_path: Path):
    """One flag of 3,000 messages changed: the diff reads far less than the listing of a mailbox is long."""
    world = World(tmp_path)
    for number in range(3000):
        world.deliver(f"{number:06}.m.host:2,S", letter(f"number {number}"), age=100)
    world.deliver("1.b.host:2,", letter("of bob"), BOB, age=100)
    world.backup()
    world.settle()
    box = world.maildir()
    os.rename(f"{box}/cur/000007.m.host:2,S", f"{box}/cur/000007.m.host:2,")
    world.backup()
    result = compare(world.context, "2", "3")
    [row] = result.mailboxes
    assert (row.flags, row.added, row.removed) == (1, 0, 0)
    whole = sum(os.path.getsize(os.path.join(path, name)) for path, _, names in os.walk(f"{world.vault}/packs") for name in names)
    assert result.fetched.bytes < whole / 4
