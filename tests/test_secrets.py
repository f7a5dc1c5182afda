"""Secrets stay where they belong: in the kit. And what only checks a vault cannot even load what decrypts."""

from __future__ import annotations

import base64
import contextlib
import glob
import os
import random
import shutil
import sqlite3
import string
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailbackup.content.zstd import decompress
from mailbackup.crypto.age import open_epoch
from mailbackup.kit import load_identity_file
from tests.world import World, messages_in

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MARKER = "".join(random.choices(string.ascii_letters, k=40)).encode()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A host that has lived. Its temporary files lie below its root, too."""
    root = tmp_path_factory.mktemp("secrets")
    os.mkdir(f"{root}/temporary")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", f"{root}/temporary")
        patch.setattr(tempfile, "tempdir", None)
        yield lived(root)


def lived(root: Path) -> World:
    """Backups, one of them killed, a verification, a lost state and restores."""
    world = World(root, directories=True)
    Path(world.home, "notes").write_bytes(b"notes " + MARKER)
    for number, size in enumerate((10, 50_000)):
        world.deliver(f"{number}.findme:2,S", b"Subject: %d\n\n%b %b\n" % (number, MARKER, b"w" * size))
        world.settle()
        world.backup()
    kill_a_backup(world)
    world.verify(decrypt=True)
    shutil.copytree(world.state, f"{world.root}/old-state")
    world.lose_state()
    world.backup()
    world.restore("out/mail")
    world.restore_files("out/files")
    return world


def kill_a_backup(world: World) -> None:
    """SIGKILL while a pack is half written: what lies about then is searched, too."""
    large = world.deliver("9.findme:2,", b"Subject: 9\n\n%b %b\n" % (MARKER, random.randbytes(24 << 20)))
    program = [sys.executable, "-m", "mailbackup", "--config", world.config_path, "--state", world.state, "backup", "-q"]
    with subprocess.Popen(program, cwd=ROOT) as process:
        try:
            while not (halves := [path for path in glob.glob(f"{world.vault}/.tmp/*") if size_of(path) > 1 << 20]):
                assert process.poll() is None, "it ended before it could be killed"
        finally:
            process.kill()
    assert process.returncode < 0
    assert all(map(os.path.exists, halves))
    os.unlink(large)


def size_of(path: str) -> int:
    """Of a file that may have got its name meanwhile."""
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0


def secrets_of(world: World) -> dict[str, bytes]:
    """Everything that must not be known to the host, nor to the store."""
    loaded = load_identity_file(world.kit, None)
    assert loaded.kit is not None
    found = {
        "identity": loaded.kit.identity.encode(),
        "seed": loaded.kit.admin_seed.encode(),
        "raw seed": bytes.fromhex(loaded.kit.admin_seed),
    }
    for path in glob.glob(f"{world.vault}/keys/*"):
        found[os.path.basename(path)] = str(open_epoch(Path(path).read_bytes(), loaded.identities)).encode()
    assert all(len(secret) >= 32 for secret in found.values())
    assert sum(secret.startswith(b"AGE-SECRET-KEY-1") for secret in found.values()) >= 2, found.keys()
    return found


def texts(world: World) -> Iterator[tuple[str, bytes]]:
    """Every file below the world's root, and every value of a state, unpacked where it is compressed."""
    paths = [os.path.join(folder, name) for folder, _, names in os.walk(world.root) for name in names]
    for path in paths:
        yield os.path.relpath(path, world.root), Path(path).read_bytes()
    for path in paths:
        if path.endswith("state.db"):
            yield from ((f"{os.path.relpath(path, world.root)}: {table}", value) for table, value in values(path))


def values(path: str) -> Iterator[tuple[str, bytes]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        for (table,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
            for row in db.execute(f"SELECT * FROM {table}"):
                for value in row:
                    yield table, unpacked(value) if isinstance(value, bytes) else str(value).encode()


def unpacked(value: bytes) -> bytes:
    """The content, where there is a zstd frame in it (behind a checksum)."""
    start = value.find(b"\x28\xb5\x2f\xfd")
    return value if start < 0 else value[:start] + decompress(value[start:], 1 << 28, "state")


def forms(secret: bytes) -> list[bytes]:
    """As it is, in hexadecimal, and in base64, wherever in a longer text it may begin."""
    shifted = [base64.b64encode(b"x" * shift + secret)[4 * (shift > 0) : -4] for shift in range(3)]
    return [secret, secret.lower(), secret.hex().encode(), *shifted]


def where(world: World, secret: bytes) -> set[str]:
    return {name for name, text in texts(world) if any(form in text for form in forms(secret))}


def test_no_secret_lies_about(world: World):
    for name, secret in secrets_of(world).items():
        assert where(world, secret) == ({"kit.txt"} if name in ("identity", "seed", "raw seed") else set()), name
    assert os.stat(world.kit).st_mode & 0o077 == 0
    assert os.stat(f"{world.root}/mailbackup.key").st_mode & 0o077 == 0


def test_no_word_of_a_message_lies_about(world: World):
    found = where(world, MARKER)
    assert {name.split("/")[0] for name in found} == {"mail", "home", "out"}
    assert len(found) == 6
    assert len(messages_in(f"{world.root}/out/mail")) == 2


def test_the_search_can_find(world: World):
    """It looks into the states: names stand there, compressed."""
    found = where(world, b"0.findme")
    assert {"state/state.db: segment", "old-state/state.db: segment"} <= found
    assert "state/state.db" not in found
    for coded in (base64.b64encode(b"12345" + MARKER), base64.encodebytes(b"1" + MARKER).replace(b"\n", b""), MARKER.hex().encode()):
        Path(world.root, "temporary", "leak").write_bytes(coded)
        assert "temporary/leak" in where(world, MARKER)
    os.unlink(f"{world.root}/temporary/leak")


BLOCKED = """
import importlib, pkgutil, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name in ("mailbackup.crypto.age", "pyrage") or name.startswith("pyrage."):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
package = importlib.import_module(sys.argv[1])
names = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(len(names), *(name for name in sys.modules if "age" in name.split(".") or "pyrage" in name))
"""


def import_all(package: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCKED, package], check=False, capture_output=True, text=True, cwd=ROOT)


def test_upkeep_does_not_load_what_decrypts():
    done = import_all("mailbackup.upkeep")
    assert done.returncode == 0, done.stderr
    count, *loaded = done.stdout.split()
    assert int(count) >= 2
    assert loaded == []


def test_the_blockade_holds():
    done = import_all("mailbackup.crypto")
    assert done.returncode == 1
    assert "is blocked" in done.stderr


def test_no_secret_in_the_arguments_of_helpers(tmp_path: Path):
    """A first backup that is large enough for helper processes; what they were called with is public."""
    world = World(tmp_path)
    for number in range(40):
        world.deliver(f"{number}.m:2,", b"Subject: %d\n\n%b %b" % (number, MARKER, random.randbytes(1 << 20)))
    seen: dict[int, bytes] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for pid in children():
                with contextlib.suppress(OSError):
                    seen[pid] = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            done.wait(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert world.backup().outcome == "complete"
    finally:
        done.set()
        watcher.join()
    helpers = [text for text in seen.values() if b"mailbackup.crypto.worker" in text]
    assert helpers
    for text in helpers:
        assert not [name for name, secret in secrets_of(world).items() if secret in text or secret.lower() in text]
        assert MARKER not in text
        assert b"AGE-SECRET-KEY" not in text


def children() -> list[int]:
    found: list[int] = []
    for path in glob.glob("/proc/self/task/*/children"):
        with contextlib.suppress(OSError):
            found += map(int, Path(path).read_text().split())
    return found
