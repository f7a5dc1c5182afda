"""Restores: nothing leaves the target, nothing is overwritten, what was interrupted goes on, and only what is needed is read."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mailbackup import app, config
from mailbackup.config import DirectoryConfig
from mailbackup.errors import DamageError, NotFound, StoreUnavailable, UnsafeName, WouldOverwrite
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import BlobId, ObjectKey
from mailbackup.model.results import RestoreResult
from mailbackup.restore import execute
from mailbackup.restore.target import Target
from mailbackup.testing.wrapper import Wrapper
from mailbackup.vault import blocks
from mailbackup.vault.epochs import EpochOpener
from mailbackup.vault.trees import Item
from tests.capture.look import open_directory, without_rights
from tests.craft import Craft, reading
from tests.world import ALICE, World, bases_in, messages_in, tree_of

BOB, CAROL = "bob@example.org", "carol@example.org"
BODY = b"Subject: x\n\n" + b"words\n" * 10


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, directories=True)


def fill(world: World, address: str = ALICE, count: int = 4, size: int = 500) -> None:
    """Messages of their own content in INBOX and in a folder."""
    for number in range(count):
        words = hashlib.shake_256(f"{address} {number}".encode()).hexdigest(size // 2).encode()
        folder = ".Archive" if number % 2 else ""
        world.deliver(f"{number}.m:2,S", b"Subject: %d\n\n%b\n" % (number, words), address, folder=folder)
    Path(world.maildir(address), "dovecot-uidlist").write_text("3 V1 N9\n")


@pytest.fixture
def saved(world: World) -> World:
    """A backup of one mailbox and one directory."""
    fill(world)
    for name, content in (("a", "first"), ("deep/er/b", "second"), ("c", "third")):
        path = Path(world.home, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    os.symlink("a", f"{world.home}/link")
    os.link(f"{world.home}/a", f"{world.home}/second-name")
    world.settle()
    assert world.backup().outcome == "complete"
    return world


def not_restored(result: RestoreResult) -> set[str]:
    return {f.subject for f in result.findings if f.kind in (FindingKind.NOT_RESTORED, FindingKind.NAME_REFUSED)}


def everything_beside(world: World, *but: str) -> dict[str, Any]:
    """All that lies in the world, except what changes rightly: a restore must leave it alone."""
    return {path: found for path, found in tree_of(world.root).items() if path != "." and not path.startswith(("state", *but))}


# ---------------------------------------------------------------- names that lead out

EVIL = [b"../out", b"a/../../out", b"/etc/mailbackup-out", b"", b"a\0b", b"a//b", b"./a", b"a/.", b"..", b"a/.."]


@pytest.mark.case("36")
@pytest.mark.parametrize("kind", ["f", "d", "l"])
@pytest.mark.parametrize("name", EVIL)
def test_a_file_whose_name_leads_out(world: World, name: bytes, kind: str):
    with Craft(world) as craft:
        made = {"f": lambda: craft.file(name, b"evil"), "d": lambda: craft.directory(name), "l": lambda: craft.link(name, b"/etc")}[kind]()
        craft.commit(directories={world.home: [craft.directory(), made, craft.file(b"good", b"good")]})
    before = everything_beside(world, "out")
    result = world.restore_files("out", world.home)
    assert result.outcome == "incomplete"
    assert [f.kind for f in result.findings if not f.harmless] == [FindingKind.NAME_REFUSED]
    assert everything_beside(world, "out") == before
    assert not os.path.lexists("/etc/mailbackup-out")
    assert os.listdir(f"{world.root}/out/{world.home}") == ["good"]


@pytest.mark.case("36")
@pytest.mark.parametrize("name", [*EVIL, b"a/b", b"."])
def test_a_message_whose_name_leads_out(world: World, name: bytes):
    with Craft(world) as craft:
        messages = [(craft.file(name, BODY), "c:2,S"), (craft.file(b"good", BODY), "c:2,S")]
        craft.commit(mailboxes=[craft.mailbox(messages)])
    before = everything_beside(world, "out")
    result = world.restore("out")
    assert (result.outcome, [f.kind for f in result.findings if not f.harmless]) == ("incomplete", [FindingKind.NAME_REFUSED])
    assert everything_beside(world, "out") == before
    assert set(messages_in(f"{world.root}/out")) == {b"cur/good:2,S"}


@pytest.mark.case("36")
@pytest.mark.parametrize("flag", ["c/../../../out", "c\0", "x:2,S", "", "n/out"])
def test_flags_that_lead_out(world: World, flag: str):
    with Craft(world) as craft:
        craft.commit(mailboxes=[craft.mailbox([(craft.file(b"1.m", BODY), flag), (craft.file(b"2.m", BODY), "c")])])
    before = everything_beside(world, "out")
    try:
        result = world.restore("out")
    except DamageError:
        assert not os.path.exists(f"{world.root}/out")
    else:
        assert (result.outcome, [f.kind for f in result.findings if not f.harmless]) == ("incomplete", [FindingKind.NAME_REFUSED])
        assert set(messages_in(f"{world.root}/out")) == {b"cur/2.m"}
    assert everything_beside(world, "out") == before


@pytest.mark.case("36")
@pytest.mark.parametrize("folder", [b"../out", b"/etc", b"a/../../b", b"a\0b", b".."])
def test_a_mail_folder_whose_name_leads_out(world: World, folder: bytes):
    with Craft(world) as craft:
        files = [craft.directory()]
        craft.commit(mailboxes=[craft.mailbox([(craft.file(b"1.m", BODY), "c")], folder=folder, files=files)])
    before = everything_beside(world, "target")
    with pytest.raises(UnsafeName):
        world.restore("target")
    assert everything_beside(world, "target") == before


ADDRESSES = [
    "../../out",
    "/etc/out",
    "a\0b",
    "..",
    ".",
]


@pytest.mark.case("36")
@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_that_lead_out(world: World, address: str):
    """With --all, the folder of a mailbox is called like its address."""
    with Craft(world) as craft:
        craft.commit(mailboxes=[craft.mailbox([(craft.file(b"1.m", BODY), "c")], address=address)])
    before = everything_beside(world, "target")
    world.restore("target/all", None)
    assert everything_beside(world, "target") == before
    assert os.listdir(f"{world.root}/target") == ["all"]
    assert not {"cur", "new", "tmp"} & set(os.listdir(f"{world.root}/target/all"))


# ---------------------------------------------------------------- links


@pytest.mark.case("34")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", ["cur", ".Archive", ".Archive/cur", "tmp"])
def test_a_link_planted_in_the_target(saved: World, place: str, overwrite: bool):
    outside, target = f"{saved.root}/outside", f"{saved.root}/target"
    for path in ("", "/cur", "/new", "/tmp"):
        os.makedirs(outside + path)
    os.makedirs(os.path.dirname(f"{target}/{place}"))
    os.symlink(outside, f"{target}/{place}")
    before = everything_beside(saved, "target")
    result = saved.restore("target", overwrite=overwrite)
    assert result.outcome == "incomplete"
    assert everything_beside(saved, "target") == before
    assert os.readlink(f"{target}/{place}") == outside


@pytest.mark.case("34")
def test_a_link_planted_where_a_file_goes(saved: World):
    target = f"{saved.root}/target"
    os.makedirs(f"{target}/cur")
    Path(saved.root, "precious").write_text("precious")
    os.symlink(f"{saved.root}/precious", f"{target}/cur/0.m:2,S")
    with pytest.raises(WouldOverwrite):
        saved.restore("target")
    assert saved.restore("target", overwrite=True).outcome == "complete"
    assert Path(saved.root, "precious").read_text() == "precious"
    assert messages_in(target) == messages_in(saved.maildir())
    assert not os.path.islink(f"{target}/cur/0.m:2,S")


@pytest.mark.case("35")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_in_the_backup_and_a_file_through_it(world: World, overwrite: bool):
    outside = f"{world.root}/outside"
    os.makedirs(outside)
    with Craft(world) as craft:
        items = [
            craft.directory(),
            craft.link(b"evil", outside.encode()),
            craft.file(b"evil/passwd", b"evil"),
            craft.file(b"good", b"good"),
        ]
        craft.commit(directories={world.home: items})
    assert world.restore_files("target", world.home, overwrite=overwrite).outcome == "incomplete"
    copy = Path(f"{world.root}/target{world.home}")
    assert (os.listdir(outside), (copy / "good").read_bytes()) == ([], b"good")
    if overwrite:  # over what the first one left
        assert world.restore_files("target", world.home, overwrite=True).outcome == "incomplete"
    else:
        with pytest.raises(WouldOverwrite):
            world.restore_files("target", world.home)
    assert (os.listdir(outside), (copy / "good").read_bytes()) == ([], b"good")


@pytest.mark.case("35")
def test_a_hard_link_to_a_link(world: World):
    """A file says that it is a further name of a symbolic link: it must not become a name of what that one points to."""
    precious = Path(world.root, "precious")
    precious.write_text("precious")
    with Craft(world) as craft:
        link = craft.link(b"evil", os.fsencode(precious))
        link.hard = b"evil"
        items = [craft.directory(), link, craft.file(b"second", b"content", hard=b"evil")]
        craft.commit(directories={world.home: items})
    world.restore_files("target", world.home)
    second = f"{world.root}/target{world.home}/second"
    assert not os.path.lexists(second) or (Path(second).read_bytes(), os.stat(second).st_nlink) == (b"content", 1)
    assert (precious.read_text(), precious.stat().st_nlink) == ("precious", 1)


@pytest.mark.case("35")
@pytest.mark.parametrize("first", [b"../../../precious", b"/etc/passwd"])
def test_a_hard_link_that_leads_out(world: World, first: bytes):
    precious = Path(world.root, "precious")
    precious.write_text("precious")
    with Craft(world) as craft:
        craft.commit(directories={world.home: [craft.directory(), craft.file(b"evil", b"evil", hard=first), craft.file(b"good", b"good")]})
    result = world.restore_files("target", world.home)
    assert not_restored(result) == {f"{world.home[1:]}/evil"}
    assert precious.stat().st_nlink == os.stat("/etc/passwd").st_nlink == 1


def test_hard_links_come_back(saved: World):
    saved.restore_files("target")
    copy = f"{saved.root}/target{saved.home}"
    assert tree_of(copy) == tree_of(saved.home)
    assert os.path.samefile(f"{copy}/a", f"{copy}/second-name")


def test_a_further_name_of_what_an_earlier_restore_left(saved: World):
    saved.restore_files("target")
    copy = f"{saved.root}/target{saved.home}"
    os.unlink(f"{copy}/second-name")
    assert saved.restore_files("target").outcome == "complete"
    assert os.path.samefile(f"{copy}/a", f"{copy}/second-name")


def add_sources(world: World, *paths: str) -> None:
    """Further `[[directory]]` sections."""
    loaded, path = config.load(world.config_path)
    more = tuple(DirectoryConfig(name=path, path=path) for path in paths)
    Path(path).write_text(config.render(replace(loaded, directories=loaded.directories + more)))


@pytest.mark.case("14")
def test_hard_links_of_two_sources_have_nothing_in_common(world: World):
    """Both call their first name `a`: a name of the second must not become one of the first's file."""
    other = f"{world.root}/other"
    os.mkdir(other)
    add_sources(world, other)
    for source in (world.home, other):
        Path(source, "a").write_text(source)
        os.link(f"{source}/a", f"{source}/b")
    world.backup()
    assert world.restore_files("target", world.home, other).outcome == "complete"
    for source in (world.home, other):
        assert tree_of(f"{world.root}/target{source}") == tree_of(source)
        assert os.path.samefile(f"{world.root}/target{source}/a", f"{world.root}/target{source}/b")


@pytest.mark.case("14")
def test_further_names_that_lie_about_their_content(world: World):
    with Craft(world) as craft:
        items = [craft.file(name, content, hard=b"a") for name, content in ((b"a", b"one"), (b"b", b"two"), (b"c", b"one"))]
        craft.commit(directories={world.home: [craft.directory(), *items]})
    assert world.restore_files("target").outcome == "complete"
    copy = Path(f"{world.root}/target{world.home}")
    assert [(copy / name).read_bytes() for name in "abc"] == [b"one", b"two", b"one"]


@pytest.mark.case("12", "14")
def test_deep_directories(world: World):
    """Deeper than descriptors are kept open, and a hard link from one depth to another."""
    deep = [f"{world.home}/{first}" + "/d" * 90 for first in "xy"]
    for place in deep:
        os.makedirs(place)
        Path(place, "own").write_text(place)
    os.link(f"{deep[0]}/own", f"{deep[1]}/link")
    world.backup()
    assert world.restore_files("target").outcome == "complete"
    assert tree_of(f"{world.root}/target{world.home}") == tree_of(world.home)


def test_many_directories(world: World):
    for number in range(100):
        os.mkdir(f"{world.home}/{number}")
        Path(world.home, str(number), "f").write_text(str(number))
        os.link(f"{world.home}/0/f", f"{world.home}/{number}/zero")
    world.backup()
    before = len(os.listdir("/proc/self/fd"))
    assert world.restore_files("target").outcome == "complete"
    assert tree_of(f"{world.root}/target{world.home}") == tree_of(world.home)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_source_inside_a_source(world: World):
    """Saved twice, restored once."""
    Path(world.home, "sub").mkdir()
    Path(world.home, "sub", "x").write_text("x")
    add_sources(world, f"{world.home}/sub")
    world.backup()
    assert world.restore_files("target", world.home).outcome == "complete"
    assert tree_of(f"{world.root}/target{world.home}") == tree_of(world.home)


def test_names_of_a_damaged_large_file(world: World, monkeypatch: pytest.MonkeyPatch):
    """Large files are checked while they are written: no name of a damaged one appears, each is named, and the others come back."""
    monkeypatch.setattr(execute, "_IN_MEMORY", 0)
    with Craft(world) as craft:
        refs = [craft.blob(b"content")._replace(blob=BlobId("0" * 64))]
        names = [craft.file(name, refs=refs, hard=b"a") for name in (b"a", b"b")]
        craft.commit(directories={world.home: [craft.directory(), *names, craft.file(b"good", b"good")]})
    result = world.restore_files("target", world.home)
    assert not_restored(result) == {f"{world.home[1:]}/a", f"{world.home[1:]}/b"}
    assert os.listdir(f"{world.root}/target{world.home}") == ["good"]


# ---------------------------------------------------------------- what is there already


@pytest.mark.case("37")
def test_nothing_is_overwritten_unless_told(saved: World):
    target = Path(saved.root, "target")
    (target / "cur").mkdir(parents=True)
    (target / "cur" / "2.m:2,S").write_bytes(b"mine")
    (target / "notes").write_bytes(b"mine too")
    before = everything_beside(saved)
    with pytest.raises(WouldOverwrite):
        saved.restore("target")
    assert everything_beside(saved) == before
    assert saved.restore("target", overwrite=True).outcome == "complete"
    assert messages_in(str(target)) == messages_in(saved.maildir())
    assert (target / "notes").read_bytes() == b"mine too"


@pytest.mark.case("37")
def test_a_directory_where_a_file_goes_stays(saved: World):
    place = Path(saved.root, "target", "cur", "2.m:2,S")
    (place / "within").mkdir(parents=True)
    result = saved.restore("target", overwrite=True)
    assert not_restored(result) == {"cur/2.m:2,S"}
    assert (place / "within").is_dir()


def test_a_file_where_the_target_goes(saved: World):
    Path(saved.root, "target").write_bytes(b"mine")
    with pytest.raises(WouldOverwrite):
        saved.restore("target")
    assert Path(saved.root, "target").read_bytes() == b"mine"


@pytest.mark.case("22")
def test_a_restore_goes_on(saved: World):
    """What is whole stays untouched; what the power cut truncated is replaced on demand only."""
    saved.restore("target")
    target = Path(saved.root, "target")
    whole, missing, cut = target / "cur/0.m:2,S", target / "cur/2.m:2,S", target / ".Archive/cur/1.m:2,S"
    missing.unlink()
    before = whole.stat()
    again = saved.restore("target")
    assert (again.outcome, again.kept > 0, missing.exists()) == ("complete", True, True)
    assert messages_in(str(target)) == messages_in(saved.maildir())
    os.truncate(cut, 100)
    with pytest.raises(WouldOverwrite):
        saved.restore("target")
    assert cut.stat().st_size == 100
    assert saved.restore("target", overwrite=True).outcome == "complete"
    assert messages_in(str(target)) == messages_in(saved.maildir())
    after = whole.stat()
    assert (after.st_ino, after.st_ctime_ns) == (before.st_ino, before.st_ctime_ns)


@pytest.mark.case("M6")
def test_a_message_whose_flags_changed_in_the_target(saved: World):
    """Someone reads on in the restored mailbox: a second restore brings no second copy, and takes no flag back."""
    saved.restore("target")
    target = f"{saved.root}/target"
    os.rename(f"{target}/cur/0.m:2,S", f"{target}/cur/0.m:2,FS")
    os.rename(f"{target}/cur/2.m:2,S", f"{target}/new/2.m")
    result = saved.restore("target")
    assert (result.outcome, result.messages) == ("complete", 4)
    assert bases_in(target) == bases_in(saved.maildir())
    assert set(messages_in(target)) == {b"cur/0.m:2,FS", b"new/2.m", b".Archive/cur/1.m:2,S", b".Archive/cur/3.m:2,S"}


def test_two_messages_with_one_name(world: World):
    """One in cur and one in new, or twice in a crafted list: both come back."""
    world.deliver("1.m", b"Subject: one\n\n", place="new")
    world.deliver("1.m:2,S", b"Subject: two\n\n")
    world.backup()
    world.restore("target")
    assert sorted(content for content, _ in messages_in(f"{world.root}/target").values()) == [b"Subject: one\n\n", b"Subject: two\n\n"]
    with Craft(world) as craft:
        craft.commit(
            mailboxes=[
                craft.mailbox([(craft.file(b"1.m", b"Subject: one\n\n"), "c:2,S"), (craft.file(b"1.m", b"Subject: 2\n\n"), "c:2,S")])
            ]
        )
    for _ in range(2):
        assert world.restore("crafted").outcome == "complete"
        found = messages_in(f"{world.root}/crafted")
        assert sorted(content for content, _ in found.values()) == [b"Subject: 2\n\n", b"Subject: one\n\n"]


@pytest.mark.case("22", "M6")
@pytest.mark.parametrize("kept", [0, 1])
@pytest.mark.parametrize("contents", [(b"Subject: one\n\n", b"Subject: two\n\n"), (b"Subject: 1\n\n", b"Subject: longer\n\n")])
def test_two_messages_with_one_base_name_go_on(world: World, contents: tuple[bytes, bytes], kept: int):
    """One of them lies in the target already: it is not taken for the other one, whose size and time are the same."""
    for name, content in zip(("1.m:2,", "1.m:2,S"), contents, strict=True):
        os.utime(world.deliver(name, content), ns=(0, 10**18))
    world.backup()
    world.restore("target")
    os.unlink(f"{world.root}/target/cur/{('1.m:2,', '1.m:2,S')[kept]}")
    result = world.restore("target")
    assert (result.outcome, result.messages, result.kept) == ("complete", 2, 1)
    assert messages_in(f"{world.root}/target") == messages_in(world.maildir())


@pytest.mark.case("37", "M6")
def test_a_message_that_changed_and_whose_flags_changed(saved: World):
    """Told to overwrite, it replaces the content under the name that the message has now: no folder gets a base name twice."""
    saved.restore("target")
    cur = f"{saved.root}/target/cur"
    os.rename(f"{cur}/0.m:2,S", f"{cur}/0.m:2,FS")
    Path(cur, "0.m:2,FS").write_bytes(b"changed")
    with pytest.raises(WouldOverwrite):
        saved.restore("target")
    assert saved.restore("target", overwrite=True).outcome == "complete"
    assert sorted(os.listdir(cur)) == ["0.m:2,FS", "2.m:2,S"]
    assert bases_in(f"{saved.root}/target") == bases_in(saved.maildir())


# ---------------------------------------------------------------- numbers and names that no system has


def craft_oddities(craft: Craft) -> list[Item]:
    early = craft.file(b"early", b"early")
    early.mtime = (-(1 << 62), 0)
    strange = craft.file(b"strange", b"strange", xattrs={"user." + "n" * 300: "AA==", "nonsense": "AA==", "user.nul\0": "AA=="})
    owned = craft.file(b"owned", b"owned")
    owned.owner = replace(craft.owner, uid=1 << 40, gid=-1, mode=0o4755)
    return [early, strange, owned]


@pytest.mark.case("15", "16")
def test_attributes_that_cannot_be_set(world: World):
    """Content is worth more: it comes back, and the attribute is named."""
    with Craft(world) as craft:
        craft.commit(directories={world.home: [craft.directory(), *craft_oddities(craft)]})
    result = world.restore_files("target")
    assert result.outcome == "complete"
    copy = Path(f"{world.root}/target{world.home}")
    assert {path.name: path.read_text() for path in copy.iterdir()} == {name: name for name in ("early", "strange", "owned")}
    named = {finding.subject.rpartition("/")[2] for finding in result.findings}
    assert named >= ({"strange", "owned"} if os.geteuid() == 0 else {"strange"})
    assert (copy / "owned").stat().st_mode & 0o7777 == 0o755, "a set-uid program of somebody else"


REFUSED = {
    "empty link": lambda craft: craft.link(b"bad", b""),
    "link with NUL": lambda craft: craft.link(b"bad", b"a\0b"),
    "long link": lambda craft: craft.link(b"bad", b"x" * 5000),
    "long name": lambda craft: craft.file(b"x" * 300, b"1"),
    "long directory": lambda craft: craft.directory(b"x" * 300),
    "in a long directory": lambda craft: craft.file(b"x" * 300 + b"/a", b"1"),
    "device": lambda craft: craft.file(b"bad", type="c", device=(1 << 40, -3)),
    "no device": lambda craft: craft.file(b"bad", type="b"),
}


@pytest.mark.case("36")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_file_system_takes(world: World, kind: str):
    """It is named, once, and everything else comes back."""
    with Craft(world) as craft:
        craft.commit(
            directories={world.home: [craft.directory(), REFUSED[kind](craft), craft.link(b"link", b"good"), craft.file(b"good", b"good")]}
        )
    result = world.restore_files("target")
    assert len(result.findings) == 1
    assert sorted(os.listdir(f"{world.root}/target{world.home}")) == ["good", "link"]
    assert result.files == 2


# ---------------------------------------------------------------- parts


@pytest.mark.case("39")
@pytest.mark.parametrize(
    "options",
    [
        {"address": "nobody@example.org"},
        {"folder": "Nothing"},
        {"at": "99"},
        {"at": "1"},
        {"at": "1999-01-01"},
        {"at": "soon"},
        {"at": "0001-01-01"},
        {"at": "0001-01-01T00:00:00+14:00"},
        {"at": "yesterday 25:00"},
        {"at": ""},
        {"at": "\u00b2"},
        {"at": "1" * 5000},
        {"location": "elsewhere"},
    ],
    ids=lambda options: str(options)[:40],
)
def test_what_does_not_exist(saved: World, options: dict[str, str]):
    with pytest.raises(NotFound) as caught:
        saved.restore("target", **options)
    assert caught.value.hint
    assert not os.path.exists(f"{saved.root}/target")


@pytest.mark.case("39")
def test_a_path_that_no_source_holds(saved: World):
    with pytest.raises(NotFound):
        saved.restore_files("target", "/nowhere")
    with pytest.raises(NotFound):
        saved.restore_files("target", saved.home, f"{saved.home}/missing")
    assert not os.path.exists(f"{saved.root}/target")


def test_moments(saved: World):
    first = messages_in(saved.maildir())
    seqs = [row.seq for row in app.snapshots(saved.context)]
    time.sleep(2.1)
    saved.deliver("9.m:2,", BODY)
    seqs.append(saved.backup().seq)
    old, new = (row.time for row in app.snapshots(saved.context))
    today = time.strftime("%Y-%m-%d")
    for at in ("latest", str(seqs[1]), new, today, "today", f"{today} 23:59:59", "2999-01-01"):
        assert saved.restore("second", at=at).seq == seqs[1]
    for at in (str(seqs[0]), old):
        assert saved.restore("first", at=at).seq == seqs[0]
    assert messages_in(f"{saved.root}/first") == first
    assert messages_in(f"{saved.root}/second") == messages_in(saved.maildir())


@pytest.mark.case("M7")
@pytest.mark.parametrize(("folder", "expected"), [("Archive", {1, 3}), (".Archive", {1, 3}), ("INBOX", {0, 2}), ("inbox", {0, 2})])
def test_one_folder(saved: World, folder: str, expected: set[int]):
    result = saved.restore("target", folder=folder)
    place = b".Archive/cur/" if 1 in expected else b"cur/"
    assert set(messages_in(f"{saved.root}/target")) == {place + b"%d.m:2,S" % number for number in expected}
    assert result.messages == 2
    assert os.path.exists(f"{saved.root}/target/.Archive") == (1 in expected)
    assert os.path.exists(f"{saved.root}/target/dovecot-uidlist") == (0 in expected)


@pytest.mark.case("M7")
def test_a_folder_and_then_the_rest(saved: World):
    saved.restore("target", folder="Archive")
    assert saved.restore("target").kept >= 2
    assert messages_in(f"{saved.root}/target") == messages_in(saved.maildir())


def test_all_mailboxes(saved: World):
    for address in (BOB, CAROL):
        fill(saved, address, 2)
    saved.backup()
    result = saved.restore("target", None)
    assert (result.outcome, result.messages) == ("complete", 8)
    for address in (ALICE, BOB, CAROL):
        assert tree_of(f"{saved.root}/target/{address}") == tree_of(saved.maildir(address))


def test_some_files(saved: World):
    saved.restore_files("target", f"{saved.home}/deep", f"{saved.home}/c")
    found = {path for path, (_, _, content) in tree_of(f"{saved.root}/target{saved.home}").items() if content is not None}
    assert found == {"deep/er/b", "c"}


@pytest.mark.parametrize("existing", [False, True])
def test_a_dry_run_writes_nothing(saved: World, existing: bool):
    if existing:
        saved.restore("target")
        os.unlink(f"{saved.root}/target/cur/0.m:2,S")
    before = everything_beside(saved)
    result = saved.restore("target", dry_run=True)
    assert (result.outcome, result.messages) == ("planned", 4)
    assert ("write", "cur/0.m:2,S") in {(line.action, line.path) for line in result.plan}
    assert saved.restore("target", None, dry_run=True).outcome == "planned"
    assert everything_beside(saved) == before


@pytest.mark.case("38")
@pytest.mark.root
def test_without_root():
    """Content, modes and times of what belonged to others come back; one finding says that owners did not, and it is no failure."""
    with open_directory() as place:
        world = World(place, directories=True)
        fill(world)
        Path(world.home, "program").write_bytes(b"#!")
        os.chmod(f"{world.home}/program", 0o4755)
        os.mkfifo(f"{world.home}/fifo")
        os.mknod(f"{world.home}/null", 0o20666, os.makedev(1, 3))
        here = tree_of(world.home)
        world.backup()
        world.restore("before")
        with without_rights(world):
            mail, files = world.restore("target/mail"), world.restore_files("target/files")
        for result in (mail, files):
            assert (result.outcome, {f.kind for f in result.findings}) == ("complete", {f.kind for f in result.findings if f.harmless})
            assert [f.kind for f in result.findings].count(FindingKind.OWNER_KEPT) == 1
        assert tree_of(f"{world.root}/target/mail") == tree_of(world.maildir())
        there = tree_of(f"{world.root}/target/files{world.home}")
        assert stat.S_ISCHR(here.pop("null")[0]), "only root makes devices"
        assert (here.pop("program")[0] & 0o7777, there.pop("program")[0] & 0o7777) == (0o4755, 0o755), "a set-uid program of somebody else"
        assert there == here
        assert os.stat(f"{world.root}/target/mail/cur").st_uid == os.stat(world.home).st_uid != 0


# ---------------------------------------------------------------- interruptions


@pytest.mark.case("22")
@pytest.mark.parametrize("count", range(6))
def test_interrupted_in_the_middle(saved: World, count: int, monkeypatch: pytest.MonkeyPatch):
    """After any number of files: each is whole or not there, nothing else lies about, and the next restore completes it."""
    real, calls = Target._publish, [0]

    def publish(*args: Any, **named: Any) -> None:
        calls[0] += 1
        if calls[0] > count:
            raise KeyboardInterrupt
        real(*args, **named)

    monkeypatch.setattr(Target, "_publish", staticmethod(publish))
    try:
        saved.restore("target")
        assert count >= 5
    except KeyboardInterrupt:
        assert len(messages_in(f"{saved.root}/target")) in (count, count - 1)  # the uidlist is no message
    assert messages_in(f"{saved.root}/target").items() <= messages_in(saved.maildir()).items()
    assert not [name for _, _, names in os.walk(f"{saved.root}/target") for name in names if "mailbackup" in name]
    monkeypatch.undo()
    assert saved.restore("target").outcome == "complete"
    assert tree_of(f"{saved.root}/target") == tree_of(saved.maildir())


class Failing(Wrapper):
    """A store that goes away after some reads of packs."""

    left = 0

    def get_range(self, key: ObjectKey, offset: int, length: int) -> bytes:
        """Until it goes away."""
        self.left -= 1
        if self.left < 0:
            raise StoreUnavailable("connection reset")
        return super().get_range(key, offset, length)

    def stream(self, key: ObjectKey, chunk: int = 1 << 20) -> Iterator[bytes]:
        """Never used by restores."""
        raise AssertionError


@pytest.mark.parametrize("reads", [0, 1, 2, 3])
def test_the_store_goes_away(world: World, reads: int):
    for number in range(3):
        world.deliver(f"{number}.m:2,S", b"Subject: %d\n\n" % number + os.urandom(40_000).hex().encode())
    world.backup()

    def hook(store: Any) -> Failing:
        failing = Failing(store)
        failing.left = reads
        return failing

    world.store_hook = hook
    with pytest.raises(StoreUnavailable):
        world.restore("target")
    world.store_hook = None
    left = messages_in(f"{world.root}/target") if os.path.exists(f"{world.root}/target") else {}
    assert left.items() <= messages_in(world.maildir()).items()
    assert world.restore("target").outcome == "complete"
    assert messages_in(f"{world.root}/target") == messages_in(world.maildir())


class Opening(EpochOpener):
    """Counts what it opens."""

    opened = 0

    def open(self, sealed: bytes) -> bytes:
        """One more."""
        self.opened += 1
        return super().open(sealed)


def test_little_is_opened_before_it_is_asked_for(world: World):
    """Some kilobytes may unpack to 16 MiB each, so memory is bounded by the number of blocks, too."""
    with Craft(world) as craft:
        refs = [craft.blob(bytes([number]) * 40_000) for number in range(40)]
        craft.commit(directories={world.home: [craft.directory(), craft.file(b"f", refs=refs)]})
    with reading(world) as reader:
        opener = reader.blocks._opener
        opener.__class__, opener.opened = Opening, 0
        stream = reader.stream(refs)
        for number, ref in enumerate(refs[:20]):
            assert stream.blob(ref) == bytes([number]) * 40_000
            time.sleep(0.01)
            assert opener.opened <= number + 1 + blocks._OPEN_AHEAD
        stream.close()
        assert opener.opened >= 20


def test_blocks_that_nobody_asks_for_do_not_stop_the_reading_ahead(world: World):
    """A damaged file is given up at its first block; its others were fetched for nothing."""
    with Craft(world) as craft:
        refs = [craft.blob(bytes([number]) * 40_000) for number in range(60)]
        craft.commit(directories={world.home: [craft.directory(), craft.file(b"f", refs=refs)]})
    with reading(world) as reader:
        stream = reader.stream(refs)
        wanted = [0, 1, *range(20, 40), 5, *range(41, 60)]
        assert [stream.blob(refs[number])[0] for number in wanted] == wanted
        assert not {**stream._opening, **stream._fetched}
        stream.close()


def test_one_mailbox_costs_its_own_bytes(world: World):
    stored = {}
    for address in (ALICE, BOB, CAROL):
        before = sum(stat.size for key, stat in world.store().list("packs/"))
        fill(world, address, 300, 6_000)
        world.settle()
        world.backup()
        stored[address] = sum(stat.size for key, stat in world.store().list("packs/")) - before
    shutil.rmtree(world.state)
    for address in (ALICE, BOB, CAROL):
        result = world.restore(f"out/{address}", address)
        assert messages_in(f"{world.root}/out/{address}") == messages_in(world.maildir(address))
        assert result.fetched.bytes <= 1.1 * stored[address] + 65_536, (address, result.fetched, stored)
