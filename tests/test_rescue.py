"""rescue-1.py against vaults of a third writer (rescue_writer.py): what it restores, and what it refuses."""

from __future__ import annotations

import base64
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.rescue_writer import FILES, Mail, Signer, TinyVault, dump, name, run, sha256

ALONE = [sys.executable, "-I", "-S"]  # -S: no site-packages, so neither the package nor any dependency can be imported
BOB, EVE = "bob@example.org", "eve@example.org"
ETC = {"name": ".", "type": "d", "owner": 1, "mtime": [1500000000, 999999999]}


@pytest.fixture(scope="module", autouse=True)
def _programs() -> None:
    missing = [program for program in ("age", "age-keygen", "zstd", "openssl") if not shutil.which(program)]
    if missing:
        text = f"the rescue script needs {', '.join(missing)}: apt-get install age zstd openssl"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(text)


@pytest.fixture
def tiny_vault(tmp_path: Path) -> TinyVault:
    """Two mailboxes and /etc in one snapshot; each mailbox and /etc have a pack of their own."""
    vault = TinyVault(tmp_path)
    boxes = [vault.mailbox(BOB, {"": mails("bob"), ".Sent": mails("sent", 1)})]
    bob_pack = vault.close_pack()
    boxes.append(vault.mailbox(EVE, {"": mails("eve")}))
    vault.close_pack()
    vault.snapshot(boxes, {"/etc": [ETC, vault.file("hostname", b"mx1\n"), vault.file("ssl/deep/key.pem", b"secret", owner=2)]})
    vault.bob_pack = bob_pack
    return vault


def mails(who: str, count: int = 3) -> list[Mail]:
    flags = ("c:2,S", "n", "c:2,FRS")
    return [
        Mail(f"{i}.M{i}.{who}".encode(), f"Subject: {who} {i}\n\n".encode(), f"body {i} of {who}\n".encode() * 9, flags[i % 3])
        for i in range(count)
    ]


def content(mail: Mail) -> bytes:
    return mail.head + mail.body


def rescue(
    vault: TinyVault, *args: Any, expect: int = 0, kit: Any = None, before: Any = (), **more: Any
) -> subprocess.CompletedProcess[str]:
    script = vault.path("rescue-1.py")
    command = [*before, *ALONE, script, "--vault", vault.root, "--identity", kit or vault.kit, *args]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, errors="surrogateescape",
                          check=False, cwd="/", **more)  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.returncode == expect, done.stderr
    return done


def restore(vault: TinyVault, *args: Any, expect: int = 0, **more: Any) -> tuple[dict[bytes, bytes], str]:
    """Everything restored, as path -> content; and what was said on stderr."""
    out = vault.tmp / "out"
    done = rescue(vault, "--to", out, *args, expect=expect, **more)
    return files_of(out), done.stderr


def files_of(out: Path) -> dict[bytes, bytes]:
    found = {}
    for here, dirs, files in os.walk(os.fsencode(out)):
        assert not [one for one in dirs if one.startswith(b".rescue")], "drafts were left behind"
        for file in files:
            path = os.path.join(here, file)
            if not os.path.islink(path):
                with open(path, "rb") as opened:
                    found[os.path.relpath(path, os.fsencode(out))] = opened.read()
    return found


SPY = """#!/bin/sh
echo "argv: $*" >> {log}
find "$TMPDIR" -printf '%y %m %s\\n' >> {log}
exec {program} "$@"
"""


def spy(vault: TinyVault, program: str) -> tuple[Path, dict[str, str]]:
    """Put a spy before a program: (its log, the environment in which it listens; there is a TMPDIR of its own)."""
    tools, log, private = (vault.tmp / one for one in ("tools", "log", "private"))
    tools.mkdir()
    private.mkdir()
    (tools / program).write_text(SPY.format(log=log, program=shutil.which(program)))
    (tools / program).chmod(0o755)
    return log, {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "TMPDIR": str(private)}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# ---- it stands alone


def test_the_package_cannot_be_imported_where_the_script_runs() -> None:
    for module in ("mailbackup", "pyrage", "msgspec"):
        assert subprocess.run([*ALONE, "-c", f"import {module}"], capture_output=True, check=False, cwd="/").returncode == 1


def test_the_script_imports_the_standard_library_only() -> None:
    lines = (FILES / "rescue-1.py").read_text().splitlines()
    imports = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imports
    assert imports <= sys.stdlib_module_names


# ---- what is there


def test_snapshots_are_listed_newest_last(tiny_vault: TinyVault) -> None:
    tiny_vault.snapshot([tiny_vault.mailbox(BOB, {"": mails("later", 2)})], outcome="incomplete")
    tiny_vault.snapshot([], {"/etc": [tiny_vault.file("a", b"1")]}, outcome="explained")
    lines = rescue(tiny_vault, "--list").stdout.splitlines()[1:]
    assert [line.split() for line in lines] == [
        ["2", "2026-11-24T02:30:00Z", "complete", "7"],
        ["3", "2026-11-24T02:30:00Z", "incomplete", "2"],
        ["4", "2026-11-24T02:30:00Z", "explained", "0"],
    ]


def test_a_snapshot_is_listed_with_counts(tiny_vault: TinyVault) -> None:
    text = rescue(tiny_vault, "--list", "--at", 2).stdout
    assert f"{BOB}  4 messages" in text
    assert f"{EVE}  3 messages" in text
    assert "/etc  3 files" in text


def test_a_damaged_snapshot_is_listed_and_said(tiny_vault: TinyVault) -> None:
    tiny_vault.snapshot([])
    next(tiny_vault.path("snapshots").glob("0000000002-*")).unlink()
    done = rescue(tiny_vault, "--list", expect=4)
    assert "complete            ?" in done.stdout
    assert "No such file" in done.stderr


# ---- what comes back


def test_everything_comes_back(tiny_vault: TinyVault) -> None:
    found, said = restore(tiny_vault)
    want = {b"files/etc/hostname": b"mx1\n", b"files/etc/ssl/deep/key.pem": b"secret"}
    for who, where, count in (("bob", BOB + "/", 3), ("sent", BOB + "/.Sent/", 1), ("eve", EVE + "/", 3)):
        for mail in mails(who, count):
            side = "cur" if mail.flag[0] == "c" else "new"
            want[f"mail/{where}{side}/".encode() + mail.name + mail.flag[1:].encode()] = content(mail)
    assert found == want
    assert "NOT RESTORED" not in said
    assert "warning" not in said.lower()


def test_times_modes_links_and_empty_directories(tiny_vault: TinyVault) -> None:
    entries = [
        ETC,
        {**tiny_vault.file("a", b"twice"), "hard": name("a")},
        {"name": "dev", "type": "c", "device": [1, 3]},
        {"name": "empty/inner", "type": "d", "owner": 1, "mtime": [1400000000, 7]},
        {"name": "empty", "type": "d", "owner": 1, "mtime": [1300000000, 8]},
        {"name": "fifo", "type": "p"},
        {"name": "link", "type": "l", "target": "../../../nowhere", "mtime": [1200000000, 6]},
        {"name": "old", "type": "f", "mtime": [-5, 250000000], "owner": 2},
        {**tiny_vault.file("z", b"twice"), "hard": name("a")},
        {**tiny_vault.file("zz", b"other"), "hard": name("a")},
    ]
    tiny_vault.snapshot([], {"/etc": entries})
    out = tiny_vault.tmp / "out"
    done = rescue(tiny_vault, "--to", out)
    etc = out / "files/etc"
    assert (etc / "a").stat().st_ino == (etc / "z").stat().st_ino
    assert (etc / "zz").read_bytes() == b"other", "said to be the same file, but its content differs"
    assert (etc / "zz").stat().st_nlink == 1
    times = {one: os.lstat(etc / one).st_mtime_ns for one in ("", "a", "empty", "empty/inner", "link", "old")}
    assert times == {"": 1500000000999999999, "a": 1600000000000000001, "empty": 1300000000000000008,
                     "empty/inner": 1400000000000000007, "link": 1200000000000000006, "old": -4750000000}  # fmt: skip
    assert os.readlink(etc / "link") == "../../../nowhere"
    assert [(etc / one).stat().st_mode & 0o7777 for one in ("a", "empty", "old")] == [0o600, 0o750, 0o755], "no set-uid bit"
    assert "not made: files/etc/dev: character device [1, 3]" in done.stdout
    assert "not made: files/etc/fifo: FIFO" in done.stdout
    assert not (etc / "dev").exists()
    assert done.stderr.count("owners are not restored") == 1


def test_xattrs_come_back_where_the_file_system_has_them(tiny_vault: TinyVault) -> None:
    try:
        os.setxattr(tiny_vault.tmp, "user.probe", b"1")
    except OSError:
        pytest.skip("no user xattrs in the temporary directory")
    value = base64.b64encode(b"\0text").decode()
    tiny_vault.snapshot([], {"/etc": [tiny_vault.file("a", b"1", xattrs={"user.note": value, "nonsense": value})]})
    restore(tiny_vault)
    assert os.getxattr(tiny_vault.tmp / "out/files/etc/a", "user.note") == b"\0text"


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_owners_by_name_then_by_number(tiny_vault: TinyVault) -> None:
    owners = [[0o4755, 77777, "daemon", 77777, "daemon"], [0o640, 77777, "no-such-user", 77778, None]]
    entries = [tiny_vault.file("a", b"1"), tiny_vault.file("b", b"2", owner=1),
               {"name": "l", "type": "l", "target": "a", "owner": 1}]  # fmt: skip
    segment = {"ref": tiny_vault.record("files", owners=owners, entries=entries), "first": "a", "count": 3}
    tiny_vault.files = lambda _: [segment]
    tiny_vault.snapshot([], {"/": entries})
    restore(tiny_vault, "--owners")
    a, b, link = (os.lstat(tiny_vault.tmp / "out/files" / one) for one in "abl")
    assert (a.st_uid, a.st_gid, a.st_mode & 0o7777) == (1, 1, 0o4755)
    assert (b.st_uid, b.st_gid, b.st_mode & 0o7777) == (77777, 77778, 0o640)
    assert (link.st_uid, link.st_gid) == (77777, 77778)


def test_a_null_flag_is_a_message_that_is_not_there(tiny_vault: TinyVault) -> None:
    gone = Mail(b"5.gone", b"H\n\n", b"x", flag=None)
    tiny_vault.snapshot([tiny_vault.mailbox(BOB, {"": [*mails("bob", 1), gone]})])
    found, _ = restore(tiny_vault)
    assert list(found) == [f"mail/{BOB}/cur/0.M0.bob:2,S".encode()]


def test_names_that_are_not_utf8(tiny_vault: TinyVault) -> None:
    odd = Mail(b"1.\xff\xfe", b"H\n\n", b"x", flag="c:2,S\udcfd")
    entries = [{"name": "l", "type": "l", "target": name(b"\x81")}, tiny_vault.file(b"\x80", b"1")]
    tiny_vault.snapshot([tiny_vault.mailbox(BOB, {b".Entw\xfcrfe": [odd]})], {b"/srv/\xe9t\xe9": entries})
    found, _ = restore(tiny_vault)
    assert found == {
        b"mail/bob@example.org/.Entw\xfcrfe/cur/1.\xff\xfe:2,S\xfd": b"H\n\nx",
        b"files/srv/\xe9t\xe9/\x80": b"1",
    }
    assert os.readlink(os.fsencode(tiny_vault.tmp) + b"/out/files/srv/\xe9t\xe9/l") == b"\x81"


def test_two_mailboxes_with_one_address_both_come_back(tiny_vault: TinyVault) -> None:
    boxes = [tiny_vault.mailbox(BOB, {"": mails(key, 1)}, key=f"vol/{key}") for key in ("one", "two")]
    tiny_vault.snapshot([*boxes, tiny_vault.mailbox(None, {"": mails("none", 1)}, key="../x")])
    found, _ = restore(tiny_vault)
    assert {path.split(b"/")[1] for path in found} == {
        b"bob@example.org~vol%2Fone", b"bob@example.org~vol%2Ftwo", b"mailbox-" + sha256(b"../x").encode()[:32]}  # fmt: skip
    assert len(found) == 3


@pytest.mark.parametrize("asked", [BOB, f"vmail/{BOB}"])
def test_one_mailbox_reads_only_its_own_pack(tiny_vault: TinyVault, asked: str) -> None:
    kept = {tiny_vault.bob_pack, f"packs/{(last := tiny_vault.registered['packs'][-1]['id'])[:2]}/{last}"}
    for pack in tiny_vault.path("packs").glob("*/*"):
        if str(pack.relative_to(tiny_vault.root)) not in kept:
            pack.unlink()
    found, _ = restore(tiny_vault, "--mailbox", asked)
    assert len(found) == 4
    assert all(path.startswith(b"mail/bob@example.org/") for path in found)


def test_an_older_snapshot_comes_back(tiny_vault: TinyVault) -> None:
    tiny_vault.snapshot([])
    assert restore(tiny_vault, "--at", 2)[0]


def test_content_of_many_refs_and_more_blocks_than_are_kept(tiny_vault: TinyVault) -> None:
    parts = [os.urandom(40) * 1000 for _ in range(90)]
    refs = [tiny_vault.block(part)[0] for part in parts]
    order = [*range(90), 0, 45]
    entry = {"name": "big", "size": 40000 * len(order), "refs": [refs[i] for i in order]}
    tiny_vault.snapshot([], {"/srv": [entry]})
    assert restore(tiny_vault)[0] == {b"files/srv/big": b"".join(parts[i] for i in order)}


def test_each_block_is_opened_once(tiny_vault: TinyVault) -> None:
    log, env = spy(tiny_vault, "age")
    many = [tiny_vault.file(f"{i:02}", bytes([i]) * 40) for i in range(30)]
    again = [{**one, "name": "again-" + one["name"]} for one in many]
    tiny_vault.snapshot([], {"/srv": [entry for pair in zip(many, again, strict=True) for entry in pair]})
    assert len(restore(tiny_vault, env=env)[0]) == 60
    assert log.read_text().count("argv:") == 1 + 1 + 2 + 30  # the key, the snapshot, two listings, the blocks


def test_what_is_stale_is_said(tiny_vault: TinyVault) -> None:
    tiny_vault.snapshot([{**tiny_vault.mailbox(BOB, {"": mails("bob", 1)}), "stale": True}, tiny_vault.mailbox(EVE, {})])
    for args in (["--list", "--at", 3], ["--to", tiny_vault.tmp / "out"]):
        lines = rescue(tiny_vault, *args).stdout.splitlines()
        assert ["as of an earlier snapshot" in line for line in lines if "example.org" in line] == [True, False]


def test_directories_that_one_may_not_enter(tiny_vault: TinyVault) -> None:
    without_rights = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    if without_rights and not shutil.which("setpriv"):
        pytest.skip("as root this needs setpriv")
    owners = [[0o600, 0, None, 0, None], [0o000, 0, None, 0, None]]
    entries = [{"name": "a", "type": "d", "owner": 1, "mtime": [7, 7]}, {"name": "a/b", "type": "d", "owner": 1, "mtime": [8, 8]},
               tiny_vault.file("a/b/c", b"1", owner=1)]  # fmt: skip
    segment = {"ref": tiny_vault.record("files", owners=owners, entries=entries), "first": "a", "count": 3}
    tiny_vault.files = lambda _: [segment]
    tiny_vault.snapshot([], {"/etc": entries})
    done = rescue(tiny_vault, "--to", tiny_vault.tmp / "out", before=without_rights)
    assert "NOT RESTORED" not in done.stderr
    top = tiny_vault.tmp / "out/files/etc/a"
    assert (top.stat().st_mode & 0o7777, top.stat().st_mtime_ns) == (0, 7000000007)
    top.chmod(0o700)
    assert ((top / "b").stat().st_mode & 0o7777, (top / "b").stat().st_mtime_ns) == (0, 8000000008)
    (top / "b").chmod(0o700)
    assert (top / "b/c").stat().st_mode & 0o7777 == 0


def test_a_saved_mailbox_inside_a_directory_is_pointed_to(tiny_vault: TinyVault) -> None:
    tiny_vault.snapshot([], {"/": [{"name": "var/vmail/bob", "type": "m", "target": "vmail/bob"}]})
    assert "files/var/vmail/bob is the mailbox vmail/bob" in rescue(tiny_vault, "--to", tiny_vault.tmp / "out").stdout


# ---- damage: say which, restore the rest


def test_a_flipped_bit_costs_only_what_lies_in_that_block(tiny_vault: TinyVault) -> None:
    whole = restore(tiny_vault)[0]
    shutil.rmtree(tiny_vault.tmp / "out")
    flip(tiny_vault.path(tiny_vault.bob_pack), 230)  # in block 0, behind the header of the age file: headers of the INBOX
    found, said = restore(tiny_vault, expect=4)
    lost = {path for path in whole if path.startswith((b"mail/bob@example.org/cur", b"mail/bob@example.org/new"))}
    assert found == {path: data for path, data in whole.items() if path not in lost}
    assert f"damaged: {tiny_vault.bob_pack}: block 0 is damaged" in said
    for path in lost:
        assert f"NOT RESTORED: {path.decode()}: " in said


def test_a_blob_must_have_its_hash_even_where_the_block_is_genuine(tiny_vault: TinyVault) -> None:
    true = tiny_vault.file("a", b"12345678")
    liar = {**true, "name": "b", "size": 4, "refs": [true["refs"][0]._replace(size=4)]}
    tiny_vault.snapshot([], {"/etc": [true, liar]})
    found, said = restore(tiny_vault, expect=4)
    assert found == {b"files/etc/a": b"12345678"}
    assert "files/etc/b: its content is not what the listing names" in said


def test_a_block_that_does_not_lie_where_the_listing_says(tiny_vault: TinyVault) -> None:
    good, large = tiny_vault.file("good", b"1"), tiny_vault.file("large", b"2")
    moved = {**good, "name": "moved", "refs": [good["refs"][0]._replace(number=5)]}
    large["refs"] = [large["refs"][0]._replace(length=(17 << 20) + 1)]
    none = {**good, "name": "none", "refs": [good["refs"][0]._replace(number=999)]}
    unknown = {**good, "name": "unknown", "refs": [good["refs"][0]._replace(pack="0" * 32)]}
    for number in range(8):
        tiny_vault.block(bytes([number]))
    tiny_vault.snapshot([], {"/etc": [good, large, moved, none, unknown]})
    found, said = restore(tiny_vault, expect=4)
    assert found == {b"files/etc/good": b"1"}
    assert "block 5 does not lie where a listing says" in said
    assert said.count("does not exist or is too large") == 2
    assert f"the ledger knows no pack {'0' * 32}" in said


def test_a_missing_pack(tiny_vault: TinyVault) -> None:
    tiny_vault.path(tiny_vault.bob_pack).unlink()
    found, said = restore(tiny_vault, expect=4)
    assert len(found) == 5
    assert f"NOT RESTORED: mail/{BOB}: {tiny_vault.bob_pack} cannot be read: No such file" in said


def test_a_pack_cut_at_its_end_still_gives_its_blocks(tiny_vault: TinyVault) -> None:
    pack = tiny_vault.path(tiny_vault.bob_pack)
    pack.write_bytes(pack.read_bytes()[:-5])
    found, said = restore(tiny_vault, expect=4)
    assert len(found) == 9
    assert f"damaged: {tiny_vault.bob_pack}" in said


def test_lost_flags_do_not_lose_messages(tiny_vault: TinyVault) -> None:
    folder = tiny_vault.folder("", mails("bob"), flags=["c:2,S"])
    tiny_vault.snapshot([tiny_vault.mailbox(BOB, {}, made=[folder])])
    found, said = restore(tiny_vault, expect=4)
    assert set(found) == {f"mail/{BOB}/cur/{i}.M{i}.bob:2,".encode() for i in range(3)}
    assert "which messages were deleted, new, or read: there are not as many as messages" in said


def test_a_block_that_decompresses_beyond_16_mib(tiny_vault: TinyVault) -> None:
    allowed = tiny_vault.file("allowed", bytes(16 << 20))
    bomb = tiny_vault.file("bomb", bytes((16 << 20) + 1))
    tiny_vault.snapshot([], {"/srv": [allowed, bomb]})
    found, said = restore(tiny_vault, expect=4)
    assert list(found) == [b"files/srv/allowed"]
    assert "it holds more than the 16777216 bytes that the format allows" in said


def test_a_listing_that_is_not_json_or_of_another_kind(tiny_vault: TinyVault) -> None:
    row = tiny_vault.mailbox(BOB, {"": mails("bob", 1)})
    other = {**row, "key": "other", "address": EVE, "tree": tiny_vault.block(b"not json")[0]}
    flags = {**row, "key": "third", "address": "x@y", "tree": tiny_vault.record("flags", flags=[])}
    tiny_vault.snapshot([row, other, flags])
    found, said = restore(tiny_vault, expect=4)
    assert len(found) == 1
    assert f"NOT RESTORED: mail/{EVE}: malformed record" in said
    assert "NOT RESTORED: mail/x@y: a record is of kind flags, not mailbox" in said


def test_malformed_entries_are_named_one_by_one(tiny_vault: TinyVault) -> None:
    good = tiny_vault.file("good", b"1")
    bad = [
        {**good, "name": "b1", "size": 2}, {**good, "name": "b2", "owner": 99}, {**good, "name": "b3", "owner": -1},
        {**good, "name": "b4", "mtime": [0, 10**9 * 10**9]}, {**good, "name": "b5", "refs": [[99, 0, 1, "x"]]},
        {**good, "name": "b6", "refs": 7}, {**good, "name": "b7", "type": "q"}, {**good, "name": "b8", "mtime": [10**300, 0]},
        {"name": "b9", "type": "l"},
    ]  # fmt: skip
    tiny_vault.snapshot([], {"/etc": [*bad, good]})
    found, said = restore(tiny_vault, expect=4)
    assert list(found) == [b"files/etc/good"]
    assert said.count("NOT RESTORED: files/etc/b") == len(bad)


def test_an_object_that_is_not_a_file_does_not_hang(tiny_vault: TinyVault) -> None:
    pack = tiny_vault.path(tiny_vault.bob_pack)
    pack.unlink()
    os.mkfifo(pack)
    assert "is not a plain file" in restore(tiny_vault, expect=4, timeout=60)[1]


# ---- names that want out


@pytest.mark.parametrize("evil", [b"../x", b"a/../../x", b"/tmp/x", b"", b"a\0b", b"..", b"a/./b", b"a//b"])
def test_hostile_names_are_refused(tiny_vault: TinyVault, evil: bytes) -> None:
    tiny_vault.snapshot([], {"/etc": [tiny_vault.file(evil, b"evil"), tiny_vault.file("good", b"1")]})
    found, said = restore(tiny_vault, expect=4)
    assert found == {b"files/etc/good": b"1"}
    assert "refused: its name is unsafe" in said
    assert sorted(os.listdir(tiny_vault.tmp / "out")) == ["files"]
    assert not (tiny_vault.tmp / "x").exists()


@pytest.mark.parametrize(
    ("base", "flag"),
    [(b"../x", "c:2,"), (b"a/b", "c"), (b"", "c"), (b"", "c:2,S"), (b"x", "c/../../../y"), (b"x", "c\0"), (b".", "c."), (b"x", "q")],
)
def test_hostile_names_of_messages_are_refused(tiny_vault: TinyVault, base: bytes, flag: str) -> None:
    evil = Mail(base, b"H\n\n", b"evil", flag)
    tiny_vault.snapshot([tiny_vault.mailbox(BOB, {"": [evil, *mails("bob", 1)]})])
    found, said = restore(tiny_vault, expect=4)
    assert list(found) == [f"mail/{BOB}/cur/0.M0.bob:2,S".encode()]
    assert "NOT RESTORED" in said


@pytest.mark.parametrize("where", ["../eve", "/etc", "a/../.."])
def test_hostile_names_of_folders_and_directories_are_refused(tiny_vault: TinyVault, where: str) -> None:
    folder = tiny_vault.folder(where, mails("bob", 1))
    tiny_vault.snapshot([tiny_vault.mailbox(BOB, {}, made=[folder])], {f"/../{where}": [tiny_vault.file("a", b"1")]})
    found, said = restore(tiny_vault, expect=4)
    assert not found
    assert said.count("its name is unsafe") == 2


def test_a_file_through_a_symlink(tiny_vault: TinyVault) -> None:
    outside = tiny_vault.tmp / "outside"
    outside.mkdir()
    link = {"name": "a", "type": "l", "target": str(outside)}
    inner = {"name": "a/c", "type": "l", "target": "/etc/passwd"}
    tiny_vault.snapshot([], {"/etc": [link, tiny_vault.file("a/b", b"through"), inner, link],
                             "/etc/a": [tiny_vault.file("d", b"through")]})  # fmt: skip
    found, said = restore(tiny_vault, expect=4)
    assert not list(outside.iterdir())
    assert found == {b"files/etc/a/b": b"through", b"files/etc/a/d": b"through"}
    assert "NOT RESTORED: files/etc/a: File exists" in said


def test_nothing_is_overwritten(tiny_vault: TinyVault) -> None:
    tiny_vault.snapshot([], {"/etc": [tiny_vault.file("a", b"first"), tiny_vault.file("a", b"second"), tiny_vault.file("a/b", b"x")]})
    found, said = restore(tiny_vault, expect=4)
    assert found == {b"files/etc/a": b"first"}
    assert "something of this name is there already" in said
    assert "something that is not a directory is in its way" in said


def test_control_characters_are_not_printed(tiny_vault: TinyVault) -> None:
    tiny_vault.snapshot([], {"/etc": [{"name": "x\x1b[2J\n", "type": "p"}]})
    assert "\x1b" not in rescue(tiny_vault, "--to", tiny_vault.tmp / "out").stdout


# ---- the chain


def refused(vault: TinyVault, text: str, *args: Any, **more: Any) -> None:
    """Exit 4, that text, and nothing was restored."""
    done = rescue(vault, "--to", vault.tmp / "out", *args, expect=4, **more)
    assert text in done.stderr
    assert not (vault.tmp / "out").exists()


def test_an_entry_of_another_signer(tiny_vault: TinyVault) -> None:
    tiny_vault.write_kit(head="")
    stranger = Signer(tiny_vault.tmp / "stranger.pem")
    tiny_vault.rewrite(2, stranger, signer=stranger.public)
    refused(tiny_vault, "entry 2 is refused: its signer is not trusted")


def test_an_entry_that_only_claims_the_signer(tiny_vault: TinyVault) -> None:
    tiny_vault.write_kit(head="")
    tiny_vault.rewrite(2, Signer(tiny_vault.tmp / "stranger.pem"))
    refused(tiny_vault, "entry 2 is refused: its signature is wrong")


def test_a_writer_cannot_grant(tiny_vault: TinyVault) -> None:
    stranger = Signer(tiny_vault.tmp / "stranger.pem")
    tiny_vault.entry("trust", signer=tiny_vault.writer, grant=[{"role": "writer", "key": stranger.public}])
    refused(tiny_vault, "entry 3 is refused: its signer is not trusted")


def test_a_key_with_another_role_cannot_write(tiny_vault: TinyVault) -> None:
    pruner = Signer(tiny_vault.tmp / "pruner.pem")
    tiny_vault.entry("trust", grant=[{"role": "prune", "key": pruner.public}])
    tiny_vault.entry("packs", signer=pruner)
    refused(tiny_vault, "entry 4 is refused: its signer is not trusted")


def test_a_revoked_writer_cannot_write(tiny_vault: TinyVault) -> None:
    new = Signer(tiny_vault.tmp / "new.pem")
    row = {"role": "writer", "key": tiny_vault.writer.public}
    tiny_vault.entry("trust", grant=[{"role": "writer", "key": new.public}], revoke=[row])
    tiny_vault.entry("packs", signer=new)
    restore(tiny_vault)
    shutil.rmtree(tiny_vault.tmp / "out")
    tiny_vault.entry("packs")
    refused(tiny_vault, "entry 5 is refused: its signer is not trusted")


def test_a_changed_prev(tiny_vault: TinyVault) -> None:
    tiny_vault.snapshot([])
    tiny_vault.write_kit(head="")
    tiny_vault.rewrite(3, tiny_vault.writer, prev="0" * 64)
    refused(tiny_vault, "entry 3 is refused: the chain is broken")


def test_a_changed_byte(tiny_vault: TinyVault) -> None:
    tiny_vault.write_kit(head="")
    path = tiny_vault.ledger(2)
    path.write_bytes(path.read_bytes().replace(b'"complete"', b'"explained"'))
    refused(tiny_vault, "entry 2 is refused: its signature is wrong")


@pytest.mark.parametrize("changes", [{"vault": "0" * 32}, {"seq": 3}, {"format": 2}, {"type": "other"}, {"packs": 5}, {"extra": 1.5}])
def test_an_entry_that_does_not_belong_here(tiny_vault: TinyVault, changes: dict[str, Any]) -> None:
    tiny_vault.write_kit(head="")
    tiny_vault.rewrite(2, tiny_vault.writer, **changes)
    refused(tiny_vault, "entry 2 is refused")


def test_members_that_are_not_known_are_ignored(tiny_vault: TinyVault) -> None:
    tiny_vault.write_kit(head="")
    tiny_vault.rewrite(2, tiny_vault.writer, novelty={"a": [1]})
    restore(tiny_vault)


def test_a_cut_tail_below_the_head_of_the_kit(tiny_vault: TinyVault) -> None:
    tiny_vault.snapshot([])
    tiny_vault.ledger(3).unlink()
    refused(tiny_vault, "the ledger ends at 2, but entry 3 has been seen")


def test_a_pinned_entry_with_another_hash(tiny_vault: TinyVault) -> None:
    refused(tiny_vault, "entry 2 is not the one that has been seen", "--head", f"2:{'0' * 64}")
    tiny_vault.write_kit(head=f"1 {'0' * 64}")
    refused(tiny_vault, "entry 1 is not the one that has been seen")


def test_a_gap(tiny_vault: TinyVault) -> None:
    tiny_vault.snapshot([])
    tiny_vault.ledger(2).unlink()
    refused(tiny_vault, "ledger entry 2 is missing")
    shutil.rmtree(tiny_vault.path("ledger"))
    refused(tiny_vault, "there is no ledger here")


def test_a_third_line_and_a_stray_file(tiny_vault: TinyVault) -> None:
    tiny_vault.put("ledger/0000000000/.0000000003.json.tmp", b"")
    tiny_vault.put("ledger/0000000001/0000000003.json", b"")
    assert restore(tiny_vault)[1].count("is not an object of a vault; ignored") == 2
    shutil.rmtree(tiny_vault.tmp / "out")
    tiny_vault.write_kit(head="")
    data = tiny_vault.ledger(2).read_bytes()
    for changed in (data + b"\n", data + b"x", data[:-1]):
        tiny_vault.ledger(2).write_bytes(changed)
        refused(tiny_vault, "entry 2 is refused")


def test_a_vault_that_is_not_that_of_the_kit(tiny_vault: TinyVault) -> None:
    tiny_vault.write_kit(vault="0" * 32)
    refused(tiny_vault, "this is not the vault that was asked for: 'vault'")
    tiny_vault.write_kit(**{"admin-public": "0" * 64})
    refused(tiny_vault, "this is not the vault that was asked for: 'admin-public'")
    tiny_vault.path("vault.json").unlink()
    refused(tiny_vault, "entry 1 is refused: its signer is not trusted")


def test_texts_that_are_not_those_that_were_signed(tiny_vault: TinyVault) -> None:
    for key in ("FORMAT-1.md", "rescue-1.py"):
        with tiny_vault.path(key).open("ab") as file:
            file.write(b"\n# changed\n")
    tiny_vault.path("vault.json").unlink()
    _, said = restore(tiny_vault)
    assert "the script that you run is not the one that was signed" in said
    for key in ("FORMAT-1.md is damaged", "rescue-1.py is damaged", "vault.json cannot be read"):
        assert key in said


@pytest.fixture(scope="module")
def long_vault(tmp_path_factory: pytest.TempPathFactory) -> TinyVault:
    """More than one page: 257 entries, the last is a snapshot; trust entries at 1 and 3."""
    vault = TinyVault(tmp_path_factory.mktemp("long"))
    vault.snapshot([vault.mailbox(BOB, {"": mails("bob", 1)})])
    vault.entry("trust", grant=[{"role": "drill", "key": "0" * 64}])
    row = vault.mailbox(BOB, {"": mails("bob", 2)})
    vault.close_pack()
    while vault.seq < 256:
        vault.entry("packs")
    vault.snapshot([row])
    return vault


@pytest.fixture
def paged(long_vault: TinyVault, tmp_path: Path) -> TinyVault:
    """A copy of it without its first page."""
    vault = object.__new__(TinyVault)
    vault.__dict__.update(long_vault.__dict__, tmp=tmp_path, root=long_vault.copy(tmp_path / "vault"), kit=tmp_path / "kit.txt")
    vault.write_kit()
    shutil.rmtree(vault.path("ledger/0000000000"))
    return vault


def test_the_whole_chain_of_two_pages(long_vault: TinyVault) -> None:
    assert len(restore(long_vault)[0]) == 2
    assert len(rescue(long_vault, "--list").stdout.splitlines()) == 3


def test_the_last_page_is_enough(paged: TinyVault) -> None:
    found, said = restore(paged)
    assert len(found) == 2
    assert "the ledger before entry 256 is not here" in said
    assert "genuine" in said


def test_a_pinned_entry_before_the_page_must_be_there(paged: TinyVault, long_vault: TinyVault) -> None:
    data = long_vault.ledger(2).read_bytes()
    refused(paged, "entry 2 is not the one that has been seen", "--head", f"2:{sha256(data)}")
    paged.put("ledger/0000000000/0000000002.json", data)
    restore(paged, "--head", f"2:{sha256(data)}")


def test_a_forged_trust_line_in_a_page(paged: TinyVault) -> None:
    paged.write_kit(head="")
    stranger = Signer(paged.tmp / "stranger.pem")
    first = json.loads(paged.trust[0].split("\n")[0])
    first["grant"].append({"role": "writer", "key": stranger.public})
    for claimed in (first["signer"], stranger.public):
        forged = stranger.sign(dump({**first, "signer": claimed})).decode()
        paged.rewrite(256, stranger, trust=[forged, *paged.trust[1:]], signer=stranger.public)
        refused(paged, "entry 256 is refused: its sign")
    paged.rewrite(256, stranger, trust=[], signer=stranger.public)
    refused(paged, "entry 256 is refused: its signer is not trusted")


def test_trust_lines_that_leave_something_out(long_vault: TinyVault, tmp_path: Path) -> None:
    vault = object.__new__(TinyVault)
    vault.__dict__.update(long_vault.__dict__, tmp=tmp_path, root=long_vault.copy(tmp_path / "vault"), kit=tmp_path / "kit.txt")
    vault.write_kit(head="")
    vault.rewrite(256, vault.writer, trust=vault.trust[:1])
    refused(vault, "entry 256 is refused: the trust entries that it repeats are not those of the chain")


def test_a_damaged_list_of_live_packs(paged: TinyVault) -> None:
    flip(next(paged.path("lists").iterdir()), 20)
    refused(paged, "its hash is not the signed one")


# ---- keys


def test_a_wrong_identity(tiny_vault: TinyVault) -> None:
    tiny_vault.recovery = run("age-keygen").decode().splitlines()[-1]
    tiny_vault.write_kit()
    for what in (["--list"], ["--to", tiny_vault.tmp / "out"]):
        assert "your identity does not open keys/" in rescue(tiny_vault, *what, expect=7).stderr


def test_a_damaged_key_object_is_not_a_wrong_key(tiny_vault: TinyVault) -> None:
    flip(tiny_vault.path("keys/0000000001-0000000001.age"), 100)
    assert "is damaged: its hash" in rescue(tiny_vault, "--to", tiny_vault.tmp / "out", expect=4).stderr


def test_a_rewrapped_key(tiny_vault: TinyVault) -> None:
    identity, key = run("age-keygen").decode(), "keys/0000000001-0000000002.age"
    to = run("age-keygen", "-y", data=identity.encode()).decode().strip()
    data = run("age", "-r", to, data=f"# again\n{tiny_vault.identity}\n".encode())
    tiny_vault.put(key, data)
    tiny_vault.entry("trust", rewrapped=[{"epoch": 1, "key": key, "sha256": sha256(data)}])
    tiny_vault.recovery = identity.splitlines()[-1]
    tiny_vault.write_kit()
    assert len(restore(tiny_vault)[0]) == 9
    shutil.rmtree(tiny_vault.tmp / "out")
    tiny_vault.path(tiny_vault.bob_pack).unlink()
    restore(tiny_vault, expect=4)  # and not 7: the first object did not open, but the second did


def test_two_epochs_of_which_the_identity_opens_one(tiny_vault: TinyVault) -> None:
    old = tiny_vault.file("old", b"1")
    tiny_vault.close_pack()
    tiny_vault.entry("packs")
    drill = run("age-keygen").decode()
    recipients = [run("age-keygen", "-y", data=text.encode()).decode().strip() for text in (drill, tiny_vault.recovery)]
    tiny_vault.new_epoch(recipients)
    tiny_vault.snapshot([], {"/etc": [old, tiny_vault.file("new", b"2")]})
    assert restore(tiny_vault)[0] == {b"files/etc/old": b"1", b"files/etc/new": b"2"}
    shutil.rmtree(tiny_vault.tmp / "out")
    tiny_vault.recovery = drill.splitlines()[-1]
    tiny_vault.write_kit()
    found, said = restore(tiny_vault, expect=7)
    assert found == {b"files/etc/new": b"2"}
    assert "NOT RESTORED: files/etc/old: your identity does not open" in said


def test_a_plain_identity_needs_anchors(tiny_vault: TinyVault) -> None:
    plain = tiny_vault.tmp / "plain"
    plain.write_text(tiny_vault.recovery + "\n")
    assert "Give --admin HEX" in rescue(tiny_vault, "--list", kit=plain, expect=2).stderr
    rescue(tiny_vault, "--list", "--admin", tiny_vault.admin.public, "--vault-id", tiny_vault.id, kit=plain)
    said = rescue(tiny_vault, "--list", "--trust-store", kit=plain).stderr
    assert said.count("WARNING: no '") == 2
    said = rescue(tiny_vault, "--list", "--admin", "0" * 64, kit=plain, expect=4).stderr
    assert "not the vault that was asked for" in said


@pytest.mark.parametrize("line", ["vault: 12", "admin-public: xyz", "head: 3", f"vault: {'1' * 32}"])
def test_an_anchor_that_is_not_understood_is_not_ignored(tiny_vault: TinyVault, line: str) -> None:
    with tiny_vault.kit.open("a") as file:
        file.write(f"# {line}\n")
    assert "do not give one proper" in rescue(tiny_vault, "--list", expect=2).stderr


def talk(command: list[str], passphrase: bytes, times: int = 1) -> int:
    """Run a command on a terminal of its own and type the passphrase so many times; returns its exit status."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    seen = b""
    while True:
        try:
            got = os.read(terminal, 1024)
        except OSError:
            break
        seen += got
        if times and seen.rstrip().endswith(b":"):
            os.write(terminal, passphrase + b"\n")
            seen, times = b"", times - 1
        if not got:
            break
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("armour", [["-a"], []])
def test_a_kit_with_a_passphrase(tiny_vault: TinyVault, armour: list[str]) -> None:
    sealed = tiny_vault.tmp / "kit.age"
    assert talk(["age", "-p", *armour, "-o", str(sealed), str(tiny_vault.kit)], b"correct horse", 2) == 0
    command = [*ALONE, str(tiny_vault.path("rescue-1.py")), "--vault", str(tiny_vault.root), "--identity", str(sealed),
               "--to", str(tiny_vault.tmp / "out")]  # fmt: skip
    assert talk(command, b"wrong") == 7
    assert not (tiny_vault.tmp / "out").exists()
    assert talk(command, b"correct horse") == 0
    assert len(files_of(tiny_vault.tmp / "out")) == 9


def test_secrets_are_private_and_gone_afterwards(tiny_vault: TinyVault) -> None:
    log, env = spy(tiny_vault, "age")
    restore(tiny_vault, env=env, umask=0)
    seen = log.read_text()
    assert "AGE-SECRET" not in seen
    assert [line for line in seen.splitlines() if line.startswith("f ")], "the spy saw no secret file: it proves nothing"
    assert not [line for line in seen.splitlines() if line.startswith("f ") and line.split()[1] != "600"]
    assert "d 700" in seen
    assert not os.listdir(env["TMPDIR"])


def test_secrets_are_gone_when_it_is_stopped(tiny_vault: TinyVault) -> None:
    tools, tmp = (tiny_vault.tmp / one for one in ("tools", "private"))
    tools.mkdir()
    tmp.mkdir()
    (tools / "zstd").write_text("#!/bin/sh\ntouch $TMPDIR/here\nexec sleep 60\n")
    (tools / "zstd").chmod(0o755)
    command = [*ALONE, tiny_vault.path("rescue-1.py"), "--vault", tiny_vault.root, "--identity", tiny_vault.kit, "--list"]
    env = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "TMPDIR": str(tmp)}
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not (tmp / "here").exists():
            assert process.poll() is None
            time.sleep(0.02)
        assert list(tmp.glob("tmp*/epoch-1"))
        process.send_signal(signal.SIGTERM)
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert [one.name for one in tmp.iterdir()] == ["here"]


# ---- what a person gets wrong


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "give either --list or --to DIR"),
        (["--list", "--to", "x"], "give either --list or --to DIR"),
        (["--list", "--at", "9"], "there is no snapshot 9"),
        (["--list", "--at", "1"], "there is no snapshot 1"),
        (["--to", "OUT", "--mailbox", "nobody@example.org"], "there is no mailbox nobody@example.org"),
        (["--list", "--head", "x"], "do not give one proper 'head'"),
        (["--list", "--vault", "/nowhere"], "/nowhere is not a directory"),
        (["--list", "--identity", "/nowhere"], "cannot read the identity"),
    ],
)
def test_usage(tiny_vault: TinyVault, args: list[str], text: str) -> None:
    out = str(tiny_vault.tmp / "out")
    assert text in rescue(tiny_vault, *[out if arg == "OUT" else arg for arg in args], expect=2).stderr
    assert not os.path.exists(out)


def test_the_target_must_be_empty(tiny_vault: TinyVault) -> None:
    (tiny_vault.tmp / "out").mkdir()
    (tiny_vault.tmp / "out/mine").write_text("mine")
    assert "is not empty" in rescue(tiny_vault, "--to", tiny_vault.tmp / "out", expect=2).stderr
    assert os.listdir(tiny_vault.tmp / "out") == ["mine"]


def test_a_target_that_cannot_be_written(tiny_vault: TinyVault) -> None:
    assert "cannot go on" in rescue(tiny_vault, "--to", tiny_vault.kit / "out", expect=1).stderr


def test_missing_programs_are_named(tiny_vault: TinyVault) -> None:
    said = rescue(tiny_vault, "--list", expect=2, env={"PATH": "/nowhere"}).stderr
    assert "apt-get install age zstd openssl" in said


def test_a_vault_without_snapshots(tmp_path: Path) -> None:
    assert "there is no snapshot yet" in restore(TinyVault(tmp_path), expect=2)[1]


def test_it_prints_in_the_plainest_locale(tiny_vault: TinyVault) -> None:
    tiny_vault.snapshot([], {"/Größe": [tiny_vault.file("ä", b"1")]})
    out = rescue(tiny_vault, "--list", "--at", 3, env={**os.environ, "LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii"}).stdout
    assert "/Gr" in out
