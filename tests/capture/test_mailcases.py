"""Maildirs as they are: odd layouts, odd files, deletions over many nights, and the fall guard."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys

import pytest

from mailbackup import app
from tests.world import ALICE, World, bases_in, messages_in, tree_of

CAMPAIGN = bool(os.environ.get("MAILBACKUP_CAMPAIGN"))


def fill(world: World, count: int, address: str = ALICE, *, folder: str = "", first: int = 0) -> None:
    for number in range(first, first + count):
        world.deliver(f"{1700000000 + number}.M{number}P1.mx1:2,S", b"Subject: %d\n\nBody %d\n" % (number, number), address, folder=folder)


def kinds(result) -> list[str]:
    return [str(finding.kind) for finding in result.findings]


# ---------------------------------------------------------------- contents


@pytest.mark.case("M4")
def test_a_renamed_folder_sends_no_content(tmp_path):
    world = World(tmp_path)
    for number in range(20):
        world.deliver(f"{number}.m:2,S", b"Subject: x\n\n" + os.urandom(20_000), folder=".Old")
    world.deliver("99.large:2,S", b"Subject: large\n\n" + os.urandom(200_000), folder=".Old")
    world.backup()
    os.rename(f"{world.maildir()}/.Old", f"{world.maildir()}/.New")
    result = world.backup()
    assert (result.outcome, result.messages) == ("complete", 21)
    assert result.bytes_stored < 20_000
    world.restore("out")
    assert messages_in(f"{world.root}/out") == messages_in(world.maildir())


@pytest.mark.case("M5")
def test_hard_linked_copies_are_stored_once_and_come_back(tmp_path):
    world = World(tmp_path)
    for size, name in ((100_000, "large"), (3_000, "small")):
        source = world.deliver(f"1.{name}:2,S", b"Subject: x\n\n" + os.urandom(size))
        for folder in (".A", ".B"):
            os.link(source, f"{world.folder(folder)}/cur/2.{name}:2,S")
    result = world.backup()
    assert (result.messages, result.bytes_stored < 120_000) == (6, True)
    world.restore("out")
    assert messages_in(f"{world.root}/out") == messages_in(world.maildir())


@pytest.mark.case("M10")
def test_empty_folders_and_markers_are_kept(tmp_path):
    world = World(tmp_path)
    open(f"{world.folder('.Empty')}/maildirfolder", "w").close()
    os.makedirs(f"{world.maildir()}/fs/Archive/2026/cur")
    world.backup()
    world.restore("out")
    assert tree_of(f"{world.root}/out") == tree_of(world.maildir())


@pytest.mark.case("M9")
def test_odd_folder_names(tmp_path):
    world = World(tmp_path)
    names = (".Entw&APw-rfe", ".with space", ".[Google Mail].All Mail", ".trailing.", ".INBOX.foo", "Archive/2026/Q1")
    for number, name in enumerate(names):
        world.deliver(f"{number}.m:2,S", b"Subject: x\n\n%d\n" % number, folder=name)
    os.makedirs(os.fsencode(world.maildir()) + b"/.\xe4\xf6/cur")
    with open(os.fsencode(world.maildir()) + b"/.\xe4\xf6/cur/9.m:2,", "wb") as file:
        file.write(b"Subject: latin\n\nx\n")
    assert world.backup().messages == len(names) + 1
    world.restore("out")
    assert messages_in(f"{world.root}/out") == messages_in(world.maildir())
    shown = {line.folder for line in app.messages(world.context, ALICE)}
    assert {"Entwürfe", "Archive/2026/Q1", "[Google Mail]/All Mail"} <= shown
    assert world.restore("one", ALICE, folder="Entwürfe").messages == 1


@pytest.mark.case("M11")
def test_many_messages_in_one_folder(tmp_path):
    """Peak memory of the whole run, in a process of its own, stays bounded."""
    count = 100_000 if CAMPAIGN else 20_000
    world = World(tmp_path)
    fill(world, count)
    command = [sys.executable, "-m", "mailbackup", "--config", world.config_path, "--state", world.state, "backup", "-q"]
    program = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True);"
    program += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)"
    done = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 400, "MiB"
    result = world.restore("out")
    assert (result.outcome, result.messages) == ("complete", count)


@pytest.mark.case("M13")
def test_what_is_left_out(tmp_path):
    world = World(tmp_path)
    kept = (
        "dovecot-uidlist",
        "dovecot-keywords",
        "subscriptions",
        "dovecot.index",
        "dovecot.index.log",
        "dovecot.mailbox.log",
        ".Sent/dovecot-acl",
    )
    gone = ("tmp/1.half", "dovecot-uidlist.lock", "dovecot.index.cache", "dovecot.index.thread", ".Sent/tmp/2.half")
    world.folder(".Sent")
    for name in (*kept, *gone):
        with open(f"{world.maildir()}/{name}", "w") as file:
            file.write(f"content of {name}\n")
    world.deliver("1.m:2,S", b"Subject: x\n\nx\n")
    world.backup()
    world.restore("out")
    for name in kept:
        with open(f"{world.root}/out/{name}") as file:
            assert file.read() == f"content of {name}\n"
    assert not [name for name in gone if os.path.exists(f"{world.root}/out/{name}")]
    assert os.path.isdir(f"{world.root}/out/tmp")


@pytest.mark.root
@pytest.mark.case("M15")
def test_modes_and_owners_come_back(tmp_path):
    world = World(tmp_path)
    path = world.deliver("1.m:2,S", b"Subject: x\n\nx\n")
    os.chown(path, 5000, 5001)
    os.chmod(path, 0o640)
    os.chown(world.folder(".Shared"), 5000, 5002)
    os.chmod(world.folder(".Shared"), 0o2770)
    world.backup()
    world.restore("out")
    for name in ("cur/1.m:2,S", ".Shared"):
        was, now = os.stat(f"{world.maildir()}/{name}"), os.stat(f"{world.root}/out/{name}")
        assert (was.st_uid, was.st_gid, was.st_mode) == (now.st_uid, now.st_gid, now.st_mode)


def test_odd_files_in_cur(tmp_path):
    """A directory, a dot file and a link in cur are no messages, and do not stop anybody."""
    world = World(tmp_path)
    world.deliver("1.m:2,S", b"Subject: x\n\nx\n")
    cur = f"{world.maildir()}/cur"
    os.makedirs(f"{cur}/stray/below")
    open(f"{cur}/.hidden", "w").close()
    os.symlink("1.m:2,S", f"{cur}/link")
    for _ in range(2):
        result = world.backup()
        assert (result.outcome, result.messages) == ("complete", 1)
    world.restore("out")
    assert os.path.isdir(f"{world.root}/out/cur/stray/below")
    assert os.readlink(f"{world.root}/out/cur/link") == "1.m:2,S"


def test_headers_of_packed_messages_are_listed(tmp_path):
    world = World(tmp_path)
    world.deliver("1.z:2,S", gzip.compress(b"Subject: packed\nFrom: bob@example.org\n\n" + b"body " * 1000))
    world.backup()
    assert [line.subject for line in app.messages(world.context, ALICE)] == ["packed"]


@pytest.mark.case("M3")
def test_deletions_over_many_nights(tmp_path):
    """Deleted messages leave nulls in the flags, until a segment is written anew; each night restores as it was."""
    world = World(tmp_path)
    fill(world, 600)
    world.backup()
    cur, pictures = f"{world.maildir()}/cur", {}
    for night in range(12):
        for name in sorted(os.listdir(cur))[night::29]:
            os.unlink(f"{cur}/{name}")
        result = world.backup()
        assert (result.outcome, result.new_messages, result.messages) == ("complete", 0, len(os.listdir(cur)))
        pictures[result.seq] = messages_in(world.maildir())
    for seq in list(pictures)[::4]:
        world.restore(f"out-{seq}", at=str(seq))
        assert messages_in(f"{world.root}/out-{seq}") == pictures[seq]
    assert world.verify(decrypt=True).outcome == "clean"


# ---------------------------------------------------------------- the fall guard


@pytest.mark.case("M14")
def test_an_empty_mount_is_no_success(tmp_path):
    world = World(tmp_path)
    fill(world, 100)
    world.backup()
    os.rename(world.mail, f"{world.mail}-away")
    os.makedirs(world.mail)
    result = world.backup()
    assert (result.outcome, result.messages, kinds(result)) == ("incomplete", 100, ["shrunk"])
    assert world.restore("out").messages == 100
    os.rmdir(world.mail)
    assert world.backup().outcome == "incomplete"
    os.rename(f"{world.mail}-away", world.mail)
    result = world.backup()
    assert (result.outcome, result.messages) == ("complete", 100)


def test_a_sharp_fall_keeps_what_is_gone_and_adds_what_is_new(tmp_path):
    world = World(tmp_path)
    fill(world, 100)
    before = bases_in(world.maildir())
    world.backup()
    for name in sorted(os.listdir(f"{world.maildir()}/cur"))[:70]:
        os.unlink(f"{world.maildir()}/cur/{name}")
    fill(world, 3, first=500)
    result = world.backup()
    assert (result.outcome, kinds(result), result.messages) == ("incomplete", ["shrunk"], 103)
    world.restore("out")
    assert bases_in(f"{world.root}/out") == {**before, **bases_in(world.maildir())}
    result = world.backup(accept_shrink=True)
    assert (result.outcome, result.messages) == ("complete", 33)
    assert world.verify(decrypt=True).outcome == "clean"


def test_one_user_may_empty_a_mailbox(tmp_path):
    world = World(tmp_path)
    fill(world, 100)
    fill(world, 60, "bob@example.org")
    world.backup()
    shutil.rmtree(f"{world.maildir('bob@example.org')}/cur")
    world.maildir("bob@example.org")
    result = world.backup()
    assert (result.outcome, result.messages) == ("complete", 100)


def test_an_account_that_is_gone_is_dropped(tmp_path):
    world = World(tmp_path)
    fill(world, 100)
    fill(world, 10, "bob@example.org")
    world.backup()
    shutil.rmtree(f"{world.mail}/example.org/bob")
    result = world.backup()
    assert (result.outcome, result.mailboxes, result.messages) == ("complete", 1, 100)
    assert [line.address for line in app.mailboxes(world.context)] == [ALICE]


@pytest.mark.case("M14")
def test_linked_mailboxes(tmp_path):
    """A link inside the location is followed once; one that leads out of it is not, and is said."""
    world = World(tmp_path)
    fill(world, 5)
    os.makedirs(f"{world.mail}/example.org/carol")
    os.symlink(world.maildir(), f"{world.mail}/example.org/carol/Maildir")
    elsewhere = f"{world.root}/elsewhere"
    os.makedirs(f"{elsewhere}/cur")
    os.makedirs(f"{world.mail}/example.org/dave")
    os.symlink(elsewhere, f"{world.mail}/example.org/dave/Maildir")
    result = world.backup()
    assert (result.outcome, result.mailboxes) == ("incomplete", 2)
    assert "source-missing" in kinds(result)
    assert world.restore("out", "carol@example.org").messages == 5


def test_the_directory_guard(tmp_path):
    world = World(tmp_path, directories=True)
    for number in range(60):
        open(f"{world.home}/{number}", "w").close()
    world.backup()
    for number in range(50):
        os.unlink(f"{world.home}/{number}")
    result = world.backup()
    assert (result.outcome, kinds(result), result.files) == ("incomplete", ["shrunk"], 60)
    assert world.backup(accept_shrink=True).files == 10
