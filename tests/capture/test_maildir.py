"""Mailboxes: everything a Maildir may hold comes back as it was, and what the vault has is not sent again."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import subprocess
import sys
from typing import Any

import pytest

from mailbackup import app
from mailbackup.mail.maildir import readable_folder
from mailbackup.model.finding import FindingKind
from tests.capture.look import check, kinds, on_disk, open_directory, without_rights
from tests.world import ALICE, World, messages_in, tree_of

BOB = "bob@example.org"


@pytest.fixture
def world(tmp_path: Any) -> World:
    return World(tmp_path)


def mail(n: int, size: int = 600) -> bytes:
    """A message whose body cannot be compressed."""
    return b"From: a@example.org\nSubject: %d\nMessage-ID: <%d@example.org>\n\n" % (n, n) + random.Random(n).randbytes(size) + b"\n"


def deliver(world: World, count: int, first: int = 0, size: int = 600, **where: Any) -> None:
    for n in range(first, first + count):
        world.deliver(f"{1700000000 + n}.M{n}P1.mx1:2,", mail(n, size), **where)


def write(path: str, content: bytes = b"content\n") -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)
    return path


def restored(world: World, to: str = "out", address: str = ALICE, **options: Any) -> str:
    """Path of a mailbox that was restored anew."""
    path = f"{world.root}/{to}"
    shutil.rmtree(path, ignore_errors=True)
    result = world.restore(to, address, **options)
    assert (result.outcome, result.findings) == ("complete", ())
    return path


# ---------------------------------------------------------------- what is sent again


@pytest.mark.case("M4")
def test_a_renamed_folder_sends_no_content(world: World) -> None:
    deliver(world, 200, folder=".Old", size=4_000)
    first = world.backup()
    assert first.bytes_stored > 800_000
    os.rename(f"{world.maildir()}/.Old", f"{world.maildir()}/.New")
    result = world.backup()
    check(world, result)
    assert (result.messages, result.bytes_stored < 30_000) == (200, True)
    assert messages_in(restored(world)) == messages_in(world.maildir())
    assert len(messages_in(restored(world, at=str(first.seq), folder="Old"))) == 200


@pytest.mark.case("M4")
def test_a_moved_message_sends_no_content(world: World) -> None:
    deliver(world, 3, size=100_000)
    world.folder(".Archive")
    world.backup()
    os.rename(f"{world.maildir()}/cur/1700000001.M1P1.mx1:2,", f"{world.maildir()}/.Archive/cur/1700000001.M1P1.mx1:2,S")
    result = world.backup()
    check(world, result)
    assert (result.messages, result.bytes_stored < 6_000) == (3, True)
    assert messages_in(restored(world)) == messages_in(world.maildir())


@pytest.mark.case("M5")
def test_hard_linked_duplicates(world: World) -> None:
    """Stored once in a mailbox; restored as files of their own, with equal content, in every mailbox."""
    path = world.deliver("1.M1P1.mx1:2,", mail(1, 200_000))
    world.folder(".Copy")
    os.link(path, f"{world.maildir()}/.Copy/cur/1.M1P1.mx1:2,S")
    os.link(path, f"{world.maildir()}/cur/2.M2P1.mx1:2,")
    os.link(path, f"{world.maildir(BOB)}/new/9.M9P9.mx1")
    result = world.backup()
    check(world, result)
    assert (result.messages, result.bytes_stored < 450_000) == (4, True)
    for address in (ALICE, BOB):
        assert messages_in(restored(world, address=address)) == messages_in(world.maildir(address))


def test_one_new_message_among_3000_stores_little(world: World) -> None:
    deliver(world, 3_000)
    world.backup()
    deliver(world, 1, first=5_000)
    result = world.backup()
    assert (result.messages, result.new_messages, result.bytes_read) == (3_001, 1, len(mail(5_000)))
    assert result.bytes_stored < 60_000


@pytest.mark.parametrize("count", [40, 700])
def test_deletions_over_many_nights(world: World, count: int) -> None:
    """What was deleted leaves a tombstone, until so many are gone that its segment is written anew: each night restores as it was."""
    chance = random.Random(count)
    deliver(world, count, size=50)
    nights = []
    for night in range(7):
        cur = f"{world.maildir()}/cur"
        for name in chance.sample(sorted(os.listdir(cur)), count // 12 if night else 0):
            os.unlink(f"{cur}/{name}")
        deliver(world, night % 3, first=chance.randrange(2_000), size=50)
        if night % 2:
            world.settle()
        nights.append((world.backup(), messages_in(world.maildir())))
    check(world, *(result for result, _ in nights))
    for result, found in nights:
        assert result.messages == len(found)
        assert messages_in(restored(world, at=str(result.seq))) == found


# ---------------------------------------------------------------- names


@pytest.mark.case("M8", "M1")
def test_message_names(world: World) -> None:
    """What stands behind the colon is kept as it is, also where it means nothing; other separators are part of the name."""
    names = ["1.a:2,", "2.b:2,FS", "3.c:2,Sab", "4.d:1,odd", "5.e:", "6.f:2,S:2,T", ":2,S", "7.g!2,S", "8.h;2,S", "9 i", "-rf", "10.j,S=5,W=6:2,"]
    for n, name in enumerate(names):
        world.deliver(name, mail(n))
    world.deliver("11.k:2,S", mail(90), place="new")
    os.rename(world.deliver("temp", mail(91)), os.fsencode(world.maildir()) + b"/cur/12.\xff\n:2,\xfe")
    world.settle()
    result = world.backup()
    check(world, result)
    assert result.messages == len(names) + 2
    assert tree_of(restored(world)) == tree_of(world.maildir())
    assert world.backup().bytes_read == 0


@pytest.mark.case("M9")
def test_folder_names(world: World) -> None:
    """Each is listed readably, and comes back when asked for by the name that is shown."""
    names = [
        b".Entw&APw-rfe", b".Sent Mail", b".[Google Mail].All Mail", b".INBOX.foo", b".trailing.", b".\xc3\xbcml", b"fs/deep/er", b"fs", b".\xff\xfe",
        b".a&-b", b".&broken", b".Ver%2Fy", b".new\nline",
    ]  # fmt: skip
    root = os.fsencode(world.maildir())
    for n, name in enumerate(names):
        for place in (b"cur", b"new", b"tmp"):
            os.makedirs(root + b"/" + name + b"/" + place)
        with open(root + b"/" + name + b"/cur/%d.x:2,S" % n, "wb") as file:
            file.write(mail(n))
    check(world, world.backup())
    assert tree_of(restored(world)) == tree_of(world.maildir())
    shown = {line.folder for line in app.messages(world.context, ALICE)}
    assert shown == {readable_folder(name) for name in names}
    assert {"Entwürfe", "Sent Mail", "[Google Mail]/All Mail", "fs/deep/er", "üml", "a&b"} <= shown
    for n, name in enumerate(names):
        assert list(messages_in(restored(world, folder=readable_folder(name)))) == [name + b"/cur/%d.x:2,S" % n]


@pytest.mark.case("M10")
def test_empty_folders(world: World) -> None:
    for name in (".Empty", ".Empty.below", "fs/empty"):
        write(f"{world.folder(name)}/maildirfolder", b"")
    os.chmod(f"{world.maildir()}/.Empty", 0o2750)
    os.makedirs(f"{world.maildir()}/.OnlyCur/cur")
    os.makedirs(f"{world.maildir()}/no folder at all/empty")
    result = world.backup()
    check(world, result)
    assert (result.mailboxes, result.messages) == (1, 0)
    assert tree_of(restored(world)) == tree_of(world.maildir())


@pytest.mark.case("M12")
def test_a_size_in_the_name_that_is_wrong(world: World) -> None:
    world.deliver("1.M1P1.mx1,S=999999,W=3:2,S", mail(1))
    world.backup()
    assert [line.size for line in app.messages(world.context, ALICE)] == [len(mail(1))]
    assert messages_in(restored(world)) == messages_in(world.maildir())


def test_one_base_name_twice(world: World) -> None:
    """Two files, two messages; also when one of them goes."""
    for name, place in (("1.x:2,", "cur"), ("1.x:2,S", "cur"), ("1.x", "new"), ("2.y:2,", "cur")):
        world.deliver(name, mail(len(name) * 10 + len(place) + ord(name[0])), place=place)
    world.settle()
    result = world.backup()
    check(world, result)
    assert result.messages == 4
    assert messages_in(restored(world)) == messages_in(world.maildir())
    again = world.backup()
    assert (again.messages, again.bytes_read) == (4, 0)
    os.unlink(f"{world.maildir()}/cur/1.x:2,")
    check(world, world.backup())
    assert messages_in(restored(world)) == messages_in(world.maildir())


# ---------------------------------------------------------------- content


@pytest.mark.case("M17")
def test_contents(world: World) -> None:
    contents = [
        b"", b"\n", b"\r\n", b"no headers, no end", b"A: b\n\nlf\n", b"A: b\r\n\r\ncrlf\r\n", b"A: b\r\rcr\r", b"A: b\r\n\nmixed\r\n", b"\0" * 5_000,
        b"A: b\n\n\0\xff\0no newline", b"A: " + b"x" * 269_000 + b"\n\nbody\n", b"A: b\n\n" + b"y" * 269_000, b"From me Mon Jan 1\nA: b\n\n>From\n",
        b"A: b\n\n" + random.Random(1).randbytes(5 << 20), b"A: b\nB: only headers\n", b"A: b\n" * 60_000,
    ]  # fmt: skip
    for n, content in enumerate(contents):
        world.deliver(f"{n}.x:2,", content)
    check(world, world.backup())
    out = messages_in(restored(world))
    assert [out[b"cur/%d.x:2," % n][0] for n in range(len(contents))] == contents
    assert len(app.messages(world.context, ALICE)) == len(contents)


def test_a_compressed_message_lists_its_headers(world: World) -> None:
    world.deliver("1.M1P1.mx1,S=700:2,S", gzip.compress(b"From: a@example.org\nSubject: packed\n\n" + b"body\n" * 999))
    world.backup()
    assert [(line.subject, line.from_) for line in app.messages(world.context, ALICE)] == [("packed", "a@example.org")]
    assert messages_in(restored(world)) == messages_in(world.maildir())


# ---------------------------------------------------------------- what lies beside the messages


@pytest.mark.case("M7")
def test_state_files(world: World) -> None:
    """What clients would notice is kept byte for byte; caches and locks are left out."""
    deliver(world, 1)
    world.folder(".Sent")
    kept = ["dovecot-uidlist", "dovecot-keywords", "subscriptions", "dovecot-uidvalidity", "dovecot.index", "dovecot.index.log", "maildirsize", ".Sent/dovecot-uidlist", ".Sent/dovecot-acl", "courierimapkeywords/:list", "sieve/x.sieve", ".Sent/.noindex"]  # fmt: skip  # noqa: E501
    dropped = ["dovecot.index.cache", "dovecot-uidlist.lock", ".Sent/dovecot.index.cache", ".Sent/.dovecot-sync.lock", "xapian-indexes/db", "dovecot.index.search"]  # fmt: skip  # noqa: E501
    for n, name in enumerate([*kept, *dropped]):
        write(f"{world.maildir()}/{name}", b"3 V1700000000 N%d G\n:\xff\0" % n)
    check(world, world.backup())
    out = restored(world)
    for name in kept:
        assert tree_of(out)[name] == tree_of(world.maildir())[name]
    assert not {*dropped} & {*tree_of(out)}


@pytest.mark.case("M13")
def test_unfinished_deliveries_are_not_saved(world: World) -> None:
    for folder in ("", ".Sent"):
        world.deliver("1.half", b"Subject: ha", folder=folder, place="tmp")
        world.deliver("2.old", b"Subject: old", folder=folder, place="tmp", age=3 * 86_400)
    os.makedirs(f"{world.maildir()}/tmp/directory")
    result = world.backup()
    assert (result.outcome, result.messages, result.bytes_read) == ("complete", 0, 0)
    out = restored(world)
    assert not [name for name in tree_of(out) if "half" in name or "old" in name]
    assert os.path.isdir(f"{out}/tmp")
    assert os.path.isdir(f"{out}/.Sent/tmp")


def test_what_is_no_message_in_cur(world: World) -> None:
    """A stray directory, a dot file and a link are kept as what they are; what NFS leaves of deleted files is not."""
    deliver(world, 2)
    cur = f"{world.maildir()}/cur"
    write(f"{cur}/stray/inside")
    write(f"{cur}/.hidden")
    os.symlink("nowhere", f"{cur}/link")
    world.settle()
    for _ in range(2):
        result = world.backup()
        assert (result.outcome, result.messages) == ("complete", 2)
    assert tree_of(restored(world)) == tree_of(world.maildir())
    write(f"{cur}/.nfs00000000deadbeef")
    check(world, world.backup())
    assert ".nfs00000000deadbeef" not in os.listdir(f"{restored(world)}/cur")


@pytest.mark.root
@pytest.mark.case("M15")
def test_modes_owners_and_attributes(world: World) -> None:
    deliver(world, 2)
    deliver(world, 2, folder=".Shared")
    one = f"{world.maildir()}/cur/1700000000.M0P1.mx1:2,"
    os.chmod(one, 0o640)
    os.setxattr(one, "user.note", b"\0x")
    for path, directories, names in os.walk(world.maildir()):
        for name in [*directories, *names, "."]:
            os.chown(f"{path}/{name}", 5000 + len(name), 5001)
    os.chmod(f"{world.maildir()}/.Shared", 0o2770)
    check(world, world.backup())
    out = restored(world)
    assert tree_of(out) == tree_of(world.maildir())
    for name in tree_of(out):
        here, there = os.lstat(f"{world.maildir()}/{name}"), os.lstat(f"{out}/{name}")
        assert (here.st_uid, here.st_gid) == (there.st_uid, there.st_gid)
    assert os.getxattr(f"{out}/cur/1700000000.M0P1.mx1:2,", "user.note") == b"\0x"


# ---------------------------------------------------------------- where a mailbox lies, and whether it can be read


@pytest.mark.case("M14")
def test_links_to_mailboxes(world: World) -> None:
    """One that stays in its location is followed; one that leaves it is named, and what it leads to is not saved."""
    deliver(world, 2)
    inside, outside = f"{world.mail}/.store/bob", f"{world.root}/elsewhere"
    for place in (inside, outside):
        write(f"{place}/cur/1.x:2,", mail(1))
    for user, target in (("bob", inside), ("carol", outside)):
        os.makedirs(f"{world.mail}/example.org/{user}")
        os.symlink(target, f"{world.mail}/example.org/{user}/Maildir")
    result = world.backup()
    assert (result.outcome, kinds(result), result.mailboxes, result.messages) == ("incomplete", [FindingKind.SOURCE_MISSING], 2, 3)
    assert "carol" in result.findings[0].detail
    assert messages_in(restored(world, address=BOB)) == messages_in(inside)


@pytest.mark.case("M14")
def test_a_link_inside_a_mailbox_is_not_followed(world: World) -> None:
    deliver(world, 1)
    write(f"{world.root}/elsewhere/cur/9.foreign:2,", mail(9))
    os.symlink(f"{world.root}/elsewhere", f"{world.maildir()}/.Linked")
    result = world.backup()
    assert (result.outcome, result.messages) == ("complete", 1)
    os.makedirs(f"{world.maildir()}/.Bad")
    os.symlink(f"{world.root}/elsewhere/cur", f"{world.maildir()}/.Bad/cur")
    result = world.backup()
    assert (kinds(result), result.messages) == ([FindingKind.UNREADABLE], 1)


@pytest.mark.case("M14")
def test_a_mailbox_that_is_not_mounted(world: World) -> None:
    """An empty directory is where a hundred messages were: no success."""
    deliver(world, 100)
    world.backup()
    os.rename(world.maildir(), f"{world.root}/aside")
    os.mkdir(f"{world.mail}/example.org/alice/Maildir")
    result = world.backup()
    assert (result.outcome, kinds(result), result.messages) == ("incomplete", [FindingKind.SHRUNK], 100)


@pytest.mark.parametrize("closed", [".Work", ".Work/cur", ""])
def test_an_unreadable_folder_keeps_what_it_had(closed: str) -> None:
    """And says so each night, until it can be read again. The other folders go on."""
    with open_directory() as root:
        world = World(root)
        deliver(world, 3, folder=".Work")
        deliver(world, 2)
        deliver(world, 1, address=BOB)
        write(f"{world.folder('.Work')}/dovecot-uidlist", b"3 V1 N9\n")
        world.settle()
        world.backup()
        before = tree_of(restored(world))
        deliver(world, 1, first=50)
        deliver(world, 1, first=60, address=BOB)
        world.settle()
        place = f"{world.maildir()}/{closed}".rstrip("/")
        mode = os.stat(place).st_mode
        os.chmod(place, 0)
        with without_rights(world):
            results = [world.backup(), world.backup()]
        for result in results:
            assert (result.outcome, {*kinds(result)}) == ("incomplete", {FindingKind.UNREADABLE})
            assert result.messages == (5 if closed == "" else 6) + 2
        os.chmod(place, mode)
        found = messages_in(restored(world))
        assert len([name for name in found if name.startswith(b".Work/")]) == 3
        after = tree_of(f"{world.root}/out")
        assert {*before} <= {*after}
        assert len(found) == (5 if closed == "" else 6)
        result = world.backup()
        check(world, result)
        assert (result.messages, result.new_messages) == (8, 1 if closed == "" else 0)
        assert on_disk(restored(world)) == on_disk(world.maildir())


# ---------------------------------------------------------------- many

CHILD = """
import sys
from mailbackup import app, config
loaded, path = config.load(sys.argv[1])
result = app.backup(app.Context(config=loaded, config_path=path, state_dir=sys.argv[2]))
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(result.outcome, result.messages, peak // 1024)
"""


@pytest.mark.case("M11")
def test_20000_messages_in_one_folder(world: World) -> None:
    """In a process of its own, whose memory is looked at."""
    cur = f"{world.maildir()}/cur"
    for n in range(20_000):
        with open(f"{cur}/{1700000000 + n}.M{n}P1.mx1:2,S", "wb") as file:
            file.write(b"Subject: %d\n\nBody %d\n" % (n, n))
    command = [sys.executable, "-c", CHILD, world.config_path, world.state]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    outcome, messages, peak = done.stdout.split()
    assert (outcome, int(messages)) == ("complete", 20_000)
    assert int(peak) < 400
    assert messages_in(restored(world, folder="INBOX")) == messages_in(world.maildir())
