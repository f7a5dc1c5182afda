"""Steps of a rebuild whose source is damaged: what did not come back is never passed over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mailbackup.access import use_vault
from mailbackup.model.events import ignore
from mailbackup.model.system import ServerStep
from mailbackup.model.tree import SMALL_BLOB
from mailbackup.restore.server import Rebuild
from mailbackup.restore.snapshot_source import SnapshotSource
from mailbackup.systems.ask import Said
from tests.world import World

pytestmark = pytest.mark.root


def not_run(argv: tuple[str, ...], timeout: float) -> Said:
    raise AssertionError(f"{argv} was run")


def rebuilt(world: World, root: Path) -> tuple[str, str, int]:
    """Outcome and words of the step that brings the directories back, and how many files it placed."""
    (root / "etc").mkdir(parents=True)
    with use_vault(world.context) as (reader, _):
        source = SnapshotSource(reader, reader.snapshot(reader.find("latest")), ignore)
        rebuild = Rebuild(source, str(root), not_run, ignore)
        done = rebuild.step(ServerStep(system="directories", name="directories", action="files", rank=50, paths=(world.home,)))
        return done.outcome, done.detail, rebuild.placed.files


def test_a_file_that_cannot_be_restored_makes_its_step_fail(tmp_path: Path) -> None:
    world = World(tmp_path / "world", directories=True)
    contents = {name: os.urandom(2 * SMALL_BLOB) for name in ("one", "two")}
    for name, content in contents.items():
        Path(world.home, name).write_bytes(content)
    world.backup()
    assert rebuilt(world, tmp_path / "good") == ("done", "2 files", 2)
    pack = max(Path(world.vault, "packs").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    damaged = bytearray(pack.read_bytes())
    damaged[1000] ^= 1  # in the first of two blocks
    pack.chmod(0o600)
    pack.write_bytes(damaged)
    outcome, detail, files = rebuilt(world, tmp_path / "bad")
    assert (outcome, files) == ("failed", 1)
    assert detail.startswith("not restored: 1, first ")
    back = {path.name: path.read_bytes() for path in (tmp_path / "bad" / world.home.lstrip("/")).iterdir()}
    assert back in ({name: content} for name, content in contents.items())
