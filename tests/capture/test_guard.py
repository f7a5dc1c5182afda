"""The fall guard: what vanished by accident stays in the snapshot, what was deleted on purpose goes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mailbackup import app
from mailbackup.model.finding import FindingKind
from tests.capture.look import check, kinds, open_directory, without_rights
from tests.world import ALICE, World, messages_in

BOB = "bob@example.org"


@pytest.fixture
def world(tmp_path: Any) -> World:
    return World(tmp_path)


def deliver(world: World, count: int, address: str = ALICE, first: int = 0, **where: Any) -> None:
    for n in range(first, first + count):
        world.deliver(f"{n}.M{n}P1.mx1:2,", b"Subject: %d\n\n%s\n" % (n, address.encode()), address, **where)


def delete(world: World, count: int, address: str = ALICE, folder: str = "") -> None:
    cur = f"{world.folder(folder, address) if folder else world.maildir(address)}/cur"
    for name in sorted(os.listdir(cur))[:count]:
        os.unlink(f"{cur}/{name}")


def restored(world: World, to: str, address: str = ALICE, **options: Any) -> dict[bytes, Any]:
    shutil.rmtree(f"{world.root}/{to}", ignore_errors=True)
    world.restore(to, address, **options)
    return messages_in(f"{world.root}/{to}")


def stale(world: World) -> dict[str, bool]:
    return {line.address: line.stale for line in app.mailboxes(world.context)}


@pytest.mark.case("M14")
@pytest.mark.parametrize(
    ("before", "left", "alarm"), [(49, 0, False), (50, 0, True), (50, 25, False), (50, 24, True), (200, 100, False), (200, 99, True)]
)
def test_where_the_guard_acts(world: World, before: int, left: int, alarm: bool) -> None:
    """From 50 messages on, when less than half is left."""
    deliver(world, before)
    world.backup()
    delete(world, before - left)
    result = world.backup()
    assert kinds(result) == ([FindingKind.SHRUNK] if alarm else [])
    assert (result.outcome, result.messages) == (("incomplete", before) if alarm else ("complete", left))


@pytest.mark.case("M14")
def test_an_emptied_mailbox_keeps_its_messages_until_it_is_said_to_be_meant(world: World) -> None:
    deliver(world, 60)
    deliver(world, 20, folder=".Sent")
    world.settle()
    assert world.backup().messages == 80
    old = messages_in(world.maildir())
    delete(world, 60)
    deliver(world, 3, first=500)
    world.settle()
    for _ in range(2):  # also the next night, when the stamps of the emptied directory prove that nothing changed since
        result = world.backup()
        assert (result.outcome, kinds(result), result.messages) == ("incomplete", [FindingKind.SHRUNK], 83)
        assert "--accept-shrink" in result.findings[0].detail
        assert restored(world, "out") == old | messages_in(world.maildir())
        assert stale(world) == {ALICE: True}
    meant = world.backup(accept_shrink=True)
    check(world, meant)
    assert (meant.messages, stale(world)) == (23, {ALICE: False})
    assert restored(world, "out") == messages_in(world.maildir())
    quiet = world.backup()
    assert (quiet.outcome, quiet.messages, quiet.bytes_read) == ("complete", 23, 0)


@pytest.mark.case("M14")
def test_recovery(world: World) -> None:
    """The mail is back the next night: nothing is sent again, and the counts are right."""
    deliver(world, 120)
    world.settle()
    world.backup()
    maildir = world.maildir()
    os.rename(maildir, f"{world.root}/aside")
    world.maildir()
    world.settle()
    assert kinds(world.backup()) == [FindingKind.SHRUNK]
    shutil.rmtree(maildir)
    os.rename(f"{world.root}/aside", maildir)
    result = world.backup()
    check(world, result)
    assert (result.messages, result.new_messages, result.bytes_read, stale(world)) == (120, 0, 0, {ALICE: False})
    assert restored(world, "out") == messages_in(world.maildir())


@pytest.mark.case("M14")
def test_all_folders_gone(world: World) -> None:
    deliver(world, 70, folder=".Archive")
    world.backup()
    shutil.rmtree(world.folder(".Archive"))
    deliver(world, 1)
    result = world.backup()
    assert (kinds(result), result.messages) == ([FindingKind.SHRUNK], 71)
    assert len(restored(world, "out")) == 71
    check(world, world.backup(accept_shrink=True))
    assert len(restored(world, "out")) == 1


def test_one_emptied_mailbox_among_many_is_no_alarm(world: World) -> None:
    """Somebody cleans up: the source as a whole did not fall."""
    deliver(world, 60)
    deliver(world, 100, BOB)
    world.backup()
    delete(world, 60)
    result = world.backup()
    check(world, result)
    assert (result.messages, stale(world)) == (100, {ALICE: False, BOB: False})
    assert restored(world, "out") == {}


def test_a_deleted_account_is_dropped(world: World) -> None:
    deliver(world, 60)
    deliver(world, 100, BOB)
    first = world.backup()
    shutil.rmtree(f"{world.mail}/example.org/alice")
    result = world.backup()
    check(world, result)
    assert (result.mailboxes, result.messages, stale(world)) == (1, 100, {BOB: False})
    assert len(restored(world, "out", at=str(first.seq))) == 60


def test_most_accounts_gone(world: World) -> None:
    """Directories of accounts vanish with most of the mail: they stay, and what is new elsewhere is added."""
    deliver(world, 60)
    deliver(world, 10, BOB)
    world.backup()
    shutil.rmtree(f"{world.mail}/example.org/alice")
    deliver(world, 1, BOB, first=100)
    result = world.backup()
    assert (kinds(result), result.mailboxes, result.messages) == ([FindingKind.SHRUNK], 2, 71)
    assert stale(world)[ALICE]
    assert (len(restored(world, "out")), len(restored(world, "bob", BOB))) == (60, 11)
    check(world, world.backup(accept_shrink=True))
    assert stale(world) == {BOB: False}


@pytest.mark.case("M14")
@pytest.mark.parametrize("empty", [False, True])
def test_the_root_of_a_location_is_not_mounted(world: World, empty: bool) -> None:
    """Not there at all, or an empty mount point: everything is kept, and comes back to life by itself."""
    deliver(world, 100)
    deliver(world, 5, BOB)
    world.settle()
    world.backup()
    os.rename(world.mail, f"{world.root}/aside")
    if empty:
        os.mkdir(world.mail)
    for _ in range(2):
        result = world.backup()
        assert (result.outcome, result.mailboxes, result.messages) == ("incomplete", 2, 105)
        assert (FindingKind.SHRUNK if empty else FindingKind.SOURCE_MISSING) in kinds(result)
        assert stale(world) == {ALICE: True, BOB: True}
    assert len(restored(world, "out")) == 100
    if empty:
        os.rmdir(world.mail)
    os.rename(f"{world.root}/aside", world.mail)
    result = world.backup()
    check(world, result)
    assert (result.messages, result.new_messages, result.bytes_read, stale(world)) == (105, 0, 0, {ALICE: False, BOB: False})


def test_a_small_location_that_is_not_there_is_kept_too(world: World) -> None:
    """Fewer than 50 messages: the guard does not act, but a root that is missing is no deleted account."""
    deliver(world, 5)
    world.backup()
    os.rename(world.mail, f"{world.root}/aside")
    result = world.backup()
    assert (result.outcome, result.messages, len(restored(world, "out"))) == ("incomplete", 5, 5)


@pytest.mark.parametrize("mode", [0, 0o100, 0o400])
def test_a_domain_that_cannot_be_looked_into(mode: int) -> None:
    """Its mailboxes are no deleted accounts: they stay, stale, however few messages they hold; the other domain goes on."""
    with open_directory() as root:
        world = World(root)
        deliver(world, 3)
        deliver(world, 2, BOB)
        deliver(world, 4, "carl@example.net")
        world.settle()
        world.backup()
        deliver(world, 1, "carl@example.net", first=50)
        with without_rights(world):
            os.chmod(f"{world.mail}/example.org", mode)
            runs = [world.backup(), world.backup()]
            os.chmod(f"{world.mail}/example.org", 0o755)
        for result in runs:
            assert (result.outcome, result.mailboxes, result.messages) == ("incomplete", 3, 10)
            assert kinds(result).count(FindingKind.MAILBOX_MISSING) == 2
        assert stale(world) == {ALICE: True, BOB: True, "carl@example.net": False}
        back = world.backup()
        check(world, back)
        assert (back.messages, back.new_messages, any(stale(world).values())) == (10, 0, False)


def test_a_location_that_is_no_longer_configured(world: World) -> None:
    """What nobody asks for any more leaves the next snapshot, whatever its size: the configuration says it is meant."""
    deliver(world, 100)
    second = f"{world.root}/second"
    os.makedirs(f"{second}/dora/Maildir/cur")
    for n in range(60):
        with open(f"{second}/dora/Maildir/cur/{n}.x:2,", "wb") as file:
            file.write(b"Subject: x\n\n%d\n" % n)
    with open(world.config_path, encoding="utf-8") as file:
        before = file.read()
    with open(world.config_path, "a", encoding="utf-8") as file:
        file.write(f'\n[[mail]]\nname = "second"\npath = "{second}/{{user}}/Maildir"\n')
    both = world.backup()
    assert (both.mailboxes, both.messages) == (2, 160)
    with open(world.config_path, "w", encoding="utf-8") as file:
        file.write(before)
    result = world.backup()
    check(world, both, result)
    assert (result.mailboxes, result.messages, stale(world)) == (1, 100, {ALICE: False})


# ---------------------------------------------------------------- directory sources


def files(root: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


def test_directory_source(tmp_path: Any) -> None:
    """Its previous state stays as a whole, until it is said to be meant or the files are back."""
    world = World(tmp_path, directories=True)
    for n in range(60):
        Path(world.home, str(n)).write_bytes(os.urandom(2_000))
    world.backup()
    before = files(world.home)
    for n in range(40):
        os.rename(f"{world.home}/{n}", f"{world.root}/{n}")
    for _ in range(2):
        result = world.backup()
        assert (result.outcome, kinds(result), result.files) == ("incomplete", [FindingKind.SHRUNK], 60)
        shutil.rmtree(f"{world.root}/out", ignore_errors=True)
        world.restore_files("out")
        assert files(f"{world.root}/out") == before
    for n in range(40):
        os.rename(f"{world.root}/{n}", f"{world.home}/{n}")
    back = world.backup()
    check(world, back)
    assert (back.files, back.bytes_stored < 10_000) == (60, True)
    for n in range(40):
        os.unlink(f"{world.home}/{n}")
    meant = world.backup(accept_shrink=True)
    check(world, meant)
    assert meant.files == 20


def test_directory_source_that_is_not_there(tmp_path: Any) -> None:
    world = World(tmp_path, directories=True)
    Path(world.home, "file").write_bytes(b"text")
    world.backup()
    os.rename(world.home, f"{world.root}/aside")
    for _ in range(2):
        result = world.backup()
        assert (result.outcome, kinds(result), result.files) == ("incomplete", [FindingKind.SOURCE_MISSING], 1)
    world.restore_files("out")
    assert files(f"{world.root}/out") == {"file": b"text"}
    os.rename(f"{world.root}/aside", world.home)
    check(world, world.backup())
