"""The program as people and scripts meet it when something is wrong: the right status, a hint, and never a traceback."""

from __future__ import annotations

import contextlib
import io
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

from mailbackup.cli.program import main
from mailbackup.content.zstd import zstd
from mailbackup.crypto.age import generate_identity
from mailbackup.kit import load_identity_file, render
from mailbackup.testing.mounts import remount, tmpfs
from tests.capture.look import open_directory, without_rights
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
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        peak = f"{world.root}/peak"
        program = [sys.executable, "-c", LAUNCH, peak, sys.executable, "-m", "mailbackup", *known(world), *args]
        child = subprocess.run(program, stdin=subprocess.DEVNULL, stdout=out, stderr=err, cwd=ROOT)
        out.seek(0)
        err.seek(0)
        with open(peak) as file:
            kib = int(file.read())
        os.unlink(peak)
        return checked(Done(child.returncode, out.read(), err.read().decode(), kib * 1024))


def answer(world: World, *args: str | bytes) -> Done:
    """The same with --json, in this process: starting the program takes longer than most commands."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*known(world), *map(os.fsdecode, args), "--json"])
    for stream in (out, err):
        stream.flush()
    return checked(Done(status, out.buffer.getvalue(), err.buffer.getvalue().decode(), 0))


def known(world: World) -> list[str]:
    return ["--config", world.config_path, "--state", world.state]


def checked(done: Done) -> Done:
    assert b"Traceback" not in done.out, done
    assert "Traceback" not in done.err, done
    return done


def fails(world: World, status: int, *args: str | bytes) -> str:
    """The command ends with this status, and says why and what to do: on stderr, and as JSON. Returns the code of the error."""
    said = run(world, *args)
    assert (said.status, said.out) == (status, b""), said
    assert said.err.splitlines()[-1].startswith("HINT: "), said.err
    return fails_again(world, status, said, *args)


def fails_again(world: World, status: int, said: Done | None, *args: str | bytes) -> str:
    """What a command answers with --json is the same error."""
    done = answer(world, *args)
    error = done.json["error"]
    assert (done.status, done.json["outcome"], done.err) == (status, "error", "")
    assert error["message"]
    assert error["hint"]
    assert said is None or f"[{error['code']}]" in said.err
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
    assert fails_again(world, 7, None, *command(world, words)) == "MB-K002"
    assert fails_again(world, 7, None, *command(world, words), "--identity", "/nowhere/kit.txt") == "MB-K002"
    assert fails_again(world, 7, None, *command(world, words), "--identity", f"{world.root}/rubbish.txt") == "MB-K005"
    assert not os.path.exists(f"{world.root}/target")


@pytest.mark.case("41", "46")
def test_a_wrong_passphrase(world: World, monkeypatch: pytest.MonkeyPatch):
    loaded = load_identity_file(world.kit, None).kit
    assert loaded is not None
    locked, secret = Path(world.root, "locked.txt"), Path(world.root, "passphrase")
    locked.write_text(render(loaded, "right"))
    monkeypatch.delenv("MAILBACKUP_PASSPHRASE_FILE", raising=False)
    assert fails(world, 7, "ls", "--identity", str(locked)) == "MB-K002"
    monkeypatch.setenv("MAILBACKUP_PASSPHRASE_FILE", str(secret))
    assert fails_again(world, 2, None, "ls", "--identity", str(locked)) == "MB-U001"
    secret.write_text("wrong\n")
    assert fails_again(world, 7, None, "ls", "--identity", str(locked)) == "MB-K005"


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
    assert fails_again(world, 2, None, "verify") == "MB-U003"


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
    assert (answer(world, "backup").status, answer(world, "backup").json["outcome"]) == (3, "incomplete")
    said = run(world, "backup")
    assert said.status == 3
    assert world.home in said.err


@pytest.mark.case("45")
def test_the_mail_root_is_gone(world: World):
    shutil.rmtree(world.mail)
    assert answer(world, "backup").json["outcome"] == "incomplete"
    assert run(world, "backup").err != ""


@pytest.mark.case("45")
def test_no_source_at_all(world: World):
    shutil.rmtree(world.mail)
    shutil.rmtree(world.home)
    assert run(world, "backup").status == 3
    assert answer(world, "backup").json["exit_status"] == 3


# ---------------------------------------------------------------- no rights

CLOSED: dict[str, tuple[str, tuple[str, ...], int]] = {
    "configuration": ("mailbackup.toml", ("backup",), 2),
    "signing key": ("mailbackup.key", ("backup",), 7),
    "state": ("state", ("backup",), 5),
    "state file": ("state/state.db", ("backup",), 5),
    "store to write": ("vault", ("backup",), 5),
    "store to check": ("vault", ("verify",), 5),
    "ledger": ("vault/ledger", ("snapshots",), 5),
    "packs": ("vault/packs", ("verify",), 5),
    "kit": ("kit.txt", ("ls",), 7),
    "target": ("closed", ("restore", "mailbox", ALICE, "--to", "closed/target"), 5),
    "message": ("mail/example.org/alice/Maildir/cur/2.m:2,S", ("backup",), 3),
    "mailbox": ("mail/example.org/alice/Maildir", ("backup",), 3),
    "all mail": ("mail", ("backup",), 3),
    "directory": ("home", ("backup",), 3),
    "file": ("home/notes", ("backup",), 3),
}


@pytest.mark.case("4", "45")
@pytest.mark.root
@pytest.mark.parametrize("what", CLOSED)
def test_without_rights(what: str):
    """Nobody may open one thing, and the user is not root."""
    name, words, status = CLOSED[what]
    with open_directory() as place:
        world = World(place, directories=True)
        world.deliver("1.m:2,S", BODY)
        Path(world.home, "notes").write_bytes(b"notes")
        os.mkdir(f"{place}/closed")
        world.backup()
        world.deliver("2.m:2,S", BODY)
        args = [f"{place}/{word}" if word.startswith("closed/") else word for word in words]
        answer(world, "ls", *with_kit(world))  # what is imported late must be there already
        with without_rights(world):
            os.chmod(f"{place}/{name}", 0)
            if status == 3:
                done = answer(world, *args)
                assert (done.status, done.json["outcome"]) == (3, "incomplete")
                assert {finding["kind"] for finding in done.json["findings"]} & {"unreadable", "source-missing"}
            else:
                fails_again(world, status, None, *args, *with_kit(world))
            os.chmod(f"{place}/{name}", 0o700)
    assert not os.path.exists(place)


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
        done = answer(world, *args)
        assert (done.status, done.err) == (0, ""), done
        text = run(world, *args, *(("--overwrite",) if args[0] == "restore" else ()))
        assert text.status == 0
        assert b"\x1b" not in text.out
    assert messages_in(target).items() >= messages_in(world.maildir()).items()
    assert Path(os.fsdecode(os.fsencode(target) + place + b"/\xe4")).read_bytes() == b"odd"
    missing = answer(world, "restore", "files", place + b"/\xfe", "--to", target, *kit)
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
        said, done = run(world, *args, *kit), answer(world, *args, *kit)
        assert (said.status, done.status) == (4, 4)
        assert "bomb" in said.err
        assert any("bomb" in finding["subject"] for finding in done.json["findings"])
        assert said.peak < 400 << 20
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
        assert answer(world, *args, *with_kit(world)).json["exit_status"] == 4
    assert not os.path.exists(f"{world.root}/target")
