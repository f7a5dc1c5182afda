"""The program as people and scripts meet it when something is wrong: the right status, a hint, and never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mailbackup.content.zstd import zstd
from mailbackup.crypto.age import generate_identity
from mailbackup.testing.mounts import remount, tmpfs
from tests.craft import Craft
from tests.world import ALICE, World, messages_in

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BODY = b"Subject: x\n\nwords\n"


# A process takes over the peak of the one that it was forked from: a small one in between keeps the peak of the tests' own out of it.
LAUNCH = """
import os, sys
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class Done:
    """A process that ended; `peak` is the most memory that it had, in bytes."""

    status: int
    out: bytes
    err: str
    peak: int

    @property
    def json(self) -> dict[str, Any]:
        """The answer: one line of UTF-8 on stdout, nothing on stderr."""
        assert self.out.count(b"\n") == 1, self.out
        answer: dict[str, Any] = json.loads(self.out.decode("utf-8"))
        assert answer["exit_status"] == self.status
        return answer


def run(world: World, *args: str | bytes) -> Done:
    """One command line in a process of its own, with the world's configuration and state."""
    known = ["--config", world.config_path, "--state", world.state]
    command = [sys.executable, "-c", LAUNCH, f"{world.root}/peak", sys.executable, "-m", "mailbackup", *known, *args]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT)
        with open(f"{world.root}/peak") as file:
            peak = int(file.read())
        os.unlink(f"{world.root}/peak")
        out.seek(0)
        err.seek(0)
        done = Done(child.returncode, out.read(), err.read().decode(), peak * 1024)
    assert b"Traceback" not in done.out, done
    assert "Traceback" not in done.err, done
    return done


def fails(world: World, status: int, *args: str | bytes) -> str:
    """The command ends with this status, and says why and what to do: on stderr, and as JSON. Returns the code of the error."""
    said = run(world, *args)
    assert (said.status, said.out) == (status, b""), said
    assert said.err.splitlines()[-1].startswith("HINT: "), said.err
    done = run(world, *args, "--json")
    error, answer = done.json["error"], done.json
    assert (done.status, answer["outcome"], done.err) == (status, "error", "")
    assert error["message"]
    assert error["hint"]
    assert f"[{error['code']}]" in said.err
    return str(error["code"])


def with_kit(world: World) -> tuple[str, str]:
    return "--identity", world.kit


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A host with a first backup."""
    world = World(tmp_path, directories=True)
    world.deliver("1.m:2,S", BODY)
    Path(world.home, "notes").write_bytes(b"notes")
    world.settle()
    assert world.backup().outcome == "complete"
    return world


# ---------------------------------------------------------------- keys

READING = [("ls",), ("ls", ALICE), ("show", "2"), ("verify", "--decrypt"), ("restore", "mailbox", ALICE, "--to"), ("state", "rebuild")]


def command(world: World, words: tuple[str, ...]) -> tuple[str, ...]:
    return (*words, f"{world.root}/target") if words[-1] == "--to" else words


@pytest.mark.case("45")
@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_identities(world: World, words: tuple[str, ...]):
    other = Path(world.root, "other.txt")
    other.write_text(f"{generate_identity().secret}\n")
    Path(world.root, "rubbish.txt").write_bytes(b"\xff\0 rubbish")
    assert fails(world, 7, *command(world, words), "--identity", str(other)) == "MB-K003"
    assert fails(world, 7, *command(world, words)) == "MB-K002"
    assert fails(world, 7, *command(world, words), "--identity", "/nowhere/kit.txt").startswith("MB-K")
    assert fails(world, 7, *command(world, words), "--identity", f"{world.root}/rubbish.txt") == "MB-K005"
    assert not os.path.exists(f"{world.root}/target")


@pytest.mark.case("45")
def test_the_signing_key_is_gone(world: World):
    os.unlink(f"{world.root}/mailbackup.key")
    assert fails(world, 7, "backup") == "MB-K002"


# ---------------------------------------------------------------- configuration and usage


@pytest.mark.case("45")
@pytest.mark.parametrize(
    "text",
    [b"[host\n", b"\xff\xfe", b"", b"host = 3\n", b"[host]\nname = 'x'\nnmae = 1\n", b"\0", b"a = [" * 5000],
    ids=["broken", "bytes", "empty", "kind", "unknown", "NUL", "deep"],
)
def test_a_broken_configuration(world: World, text: bytes):
    Path(world.config_path).write_bytes(text)
    assert fails(world, 2, "backup") == "MB-U003"
    fails(world, 2, "verify")


@pytest.mark.case("45")
def test_no_configuration(world: World):
    os.unlink(world.config_path)
    assert fails(world, 2, "backup") == "MB-U002"
    os.mkdir(world.config_path)
    fails(world, 2, "backup")


@pytest.mark.case("45")
@pytest.mark.parametrize(
    "args", [("backup", "--bogus"), ("bogus",), ("restore",), ("verify", "--sample", "x"), ("ls", "a", "b", "c"), ("--config",)]
)
def test_wrong_usage(world: World, args: tuple[str, ...]):
    done = run(world, *args)
    assert (done.status, done.out) == (2, b"")
    assert "HINT: " in done.err


@pytest.mark.case("45")
@pytest.mark.parametrize(
    "args", [("ls", "nobody@example.org"), ("ls", "--at", "99"), ("restore", "mailbox", "nobody", "--to", "x"), ("show", "77")]
)
def test_what_does_not_exist(world: World, args: tuple[str, ...]):
    assert fails(world, 2, *args, *with_kit(world)) == "MB-U004"


# ---------------------------------------------------------------- sources


@pytest.mark.case("45")
def test_a_source_is_a_file(world: World):
    """The other sources are saved; the snapshot says what is missing."""
    shutil.rmtree(world.home)
    Path(world.home).write_bytes(b"a file")
    answer = run(world, "backup", "--json")
    assert (answer.status, answer.json["outcome"]) == (3, "incomplete")
    said = run(world, "backup")
    assert said.status == 3
    assert world.home in said.err


@pytest.mark.case("45")
def test_the_mail_root_is_gone(world: World):
    shutil.rmtree(world.mail)
    answer = run(world, "backup", "--json")
    assert (answer.status, answer.json["outcome"]) == (3, "incomplete")
    assert run(world, "backup").err != ""


@pytest.mark.case("45")
def test_no_source_at_all(world: World):
    shutil.rmtree(world.mail)
    shutil.rmtree(world.home)
    assert run(world, "backup").status == 3
    assert run(world, "backup", "--json").json["exit_status"] == 3


# ---------------------------------------------------------------- stores


@pytest.mark.case("45")
@pytest.mark.root
def test_a_full_disk(tmp_path: Path):
    os.mkdir(f"{tmp_path}/vault")
    with tmpfs(f"{tmp_path}/vault", 2 << 20):
        world = World(tmp_path)
        world.deliver("1.m:2,S", BODY + os.urandom(8 << 20))
        assert fails(world, 8, "backup") == "MB-R002"
        assert run(world, "verify").status == 0


@pytest.mark.case("45")
@pytest.mark.root
def test_a_full_target(world: World):
    world.deliver("2.m:2,S", BODY + os.urandom(3 << 20))
    world.backup()
    with tmpfs(f"{world.root}/small", 1 << 20):
        assert fails(world, 8, "restore", "mailbox", ALICE, "--to", f"{world.root}/small/target", *with_kit(world)) == "MB-R002"
        assert messages_in(f"{world.root}/small").keys() <= messages_in(world.maildir()).keys() | {b"target/cur/1.m:2,S"}


@pytest.mark.case("45")
@pytest.mark.root
def test_a_store_that_is_read_only(tmp_path: Path):
    os.mkdir(f"{tmp_path}/vault")
    with tmpfs(f"{tmp_path}/vault", 8 << 20):
        world = World(tmp_path)
        world.deliver("1.m:2,S", BODY)
        assert world.backup().outcome == "complete"
        world.deliver("2.m:2,S", BODY)
        remount(world.vault, "ro")
        assert fails(world, 5, "backup") == "MB-O003"
        assert run(world, "verify").status == 0
        assert run(world, "restore", "mailbox", ALICE, "--to", f"{tmp_path}/target", *with_kit(world)).status == 0


@pytest.mark.case("45")
@pytest.mark.parametrize("words", [("backup",), ("snapshots",), ("verify",), *READING], ids=" ".join)
def test_the_store_is_gone(world: World, words: tuple[str, ...]):
    shutil.rmtree(world.vault)
    assert fails(world, 5, *command(world, words), *with_kit(world)) == "MB-O002"
    assert not os.path.exists(world.vault)


@pytest.mark.case("45")
@pytest.mark.parametrize("words", [("backup",), ("snapshots",), ("verify",), *READING], ids=" ".join)
def test_the_store_is_a_file(world: World, words: tuple[str, ...]):
    shutil.rmtree(world.vault)
    Path(world.vault).write_bytes(b"")
    fails(world, 5, *command(world, words), *with_kit(world))


# ---------------------------------------------------------------- names and blocks from strangers


@pytest.mark.case("12", "47")
def test_names_that_are_not_text(world: World):
    """In mail and in files: all answers are valid JSON, and the bytes come back."""
    odd = os.fsencode(world.maildir()) + b"/cur/2.\xff\xfe\x1b[31m:2,S"
    shutil.copy(os.fsencode(world.maildir()) + b"/cur/1.m:2,S", odd)
    place = os.fsencode(world.home) + b"/f\xfcr\n\xff"
    os.mkdir(place)
    Path(os.fsdecode(place + b"/\xe4")).write_bytes(b"odd")
    os.mkdir(os.fsencode(world.maildir()) + b"/.\xff")
    for name in (b"cur", b"new", b"tmp"):
        os.mkdir(os.fsencode(world.maildir()) + b"/.\xff/" + name)
    shutil.copy(odd, os.fsencode(world.maildir()) + b"/.\xff/new/3.\xff")
    target, kit = f"{world.root}/target", with_kit(world)
    for args in (
        ("backup",),
        ("ls", *kit),
        ("ls", ALICE, *kit),
        ("show", "3", *kit),
        ("verify", "--decrypt", *kit),
        ("restore", "mailbox", ALICE, "--dry-run", "--to", target, *kit),
        ("restore", "mailbox", ALICE, "--to", target, *kit),
        ("restore", "files", place, "--dry-run", "--to", target, *kit),
        ("restore", "files", place, "--to", target, *kit),
    ):
        done = run(world, *args, "--json")
        assert (done.status, done.json["exit_status"], done.err) == (0, 0, ""), done
        text = run(world, *args, *(("--overwrite",) if args[0] == "restore" else ()))
        assert text.status == 0
        assert b"\x1b" not in text.out
    assert messages_in(target).items() >= messages_in(world.maildir()).items()
    assert Path(os.fsdecode(os.fsencode(target) + place + b"/\xe4")).read_bytes() == b"odd"
    missing = run(world, "restore", "files", place + b"/\xfe", "--to", target, *kit, "--json")
    assert (missing.status, missing.json["error"]["code"]) == (2, "MB-U004")


class Bomb:
    """A sealer that seals a GiB of zeros, in some kilobytes of zstd, in place of what it is given."""

    def __init__(self, real: Any) -> None:
        self._real = real
        context, zeros = zstd.ZstdCompressor(level=3), bytes(16 << 20)
        self._frame = b"".join(context.compress(zeros) for _ in range(64)) + context.flush()

    def seal(self, _: bytes) -> bytes:
        """The bomb."""
        sealed: bytes = self._real.seal(self._frame)
        return sealed


@pytest.mark.case("45")
def test_a_bomb_in_a_block(world: World):
    with Craft(world) as craft:
        packs = craft.writer._packs
        whole = craft.file(b"good", b"good")
        packs._sealer, honest = Bomb(packs._sealer), packs._sealer
        bomb = craft.file(b"bomb", b"small")
        packs._sealer = honest
        craft.commit(directories={world.home: [craft.directory(), bomb, whole]})
    target, kit = f"{world.root}/target", with_kit(world)
    for args in (("verify", "--decrypt"), ("restore", "files", world.home, "--to", target)):
        said = run(world, *args, *kit)
        answer = run(world, *args, *kit, "--json")
        assert (said.status, answer.status, answer.json["exit_status"]) == (4, 4, 4)
        assert "bomb" in said.err
        assert any("bomb" in finding["subject"] for finding in answer.json["findings"])
        assert max(said.peak, answer.peak) < 400 << 20
    assert os.listdir(target + world.home) == ["good"]
    assert run(world, "verify").status == 0


@pytest.mark.case("45")
def test_a_bomb_in_a_listing(world: World):
    with Craft(world) as craft:
        packs = craft.writer._packs
        items = [craft.directory(), craft.file(b"good", b"good")]
        packs._sealer = Bomb(packs._sealer)
        craft.commit(directories={world.home: items})
    for args in (("verify", "--decrypt"), ("restore", "files", world.home, "--to", f"{world.root}/target")):
        done = run(world, *args, *with_kit(world))
        assert (done.status, done.err != "") == (4, True)
        assert done.peak < 400 << 20
        assert run(world, *args, *with_kit(world), "--json").json["exit_status"] == 4
    assert not os.path.exists(f"{world.root}/target")
