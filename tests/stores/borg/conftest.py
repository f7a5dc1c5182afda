"""Borg stores in fresh repositories. A repository that exists is copied: making one costs a call of borg."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mailbackup.model.options import StoreConfig
from mailbackup.stores.borg.store import BorgStore, open_borg
from tests.stores.borg.server import BORG


@pytest.fixture(scope="session")
def empty_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository without archives, to be copied."""
    top = tmp_path_factory.mktemp("empty")
    environment = {"BORG_BASE_DIR": str(top / "base"), "PATH": "/usr/bin:/bin"}
    subprocess.run([BORG, "init", "-e", "none", str(top / "repository")], check=True, timeout=60, env=environment)
    return top / "repository"


@dataclass(frozen=True)
class Bench:
    """Repositories and work directories below `top`."""

    top: Path
    empty: Path
    numbers: Iterator[int]
    opened: list[BorgStore]

    def place(self, **options: object) -> StoreConfig:
        """The address of a fresh, empty repository."""
        path = self.top / f"repository-{next(self.numbers)}"
        shutil.copytree(self.empty, path)
        return StoreConfig(**{"name": "box", "url": f"borg://{path}", "borg_path": BORG, "patience": 20} | options)  # type: ignore[arg-type]

    def open(self, place: StoreConfig, work: str | None = None) -> BorgStore:
        """The store there, with a work directory of its own unless one is named; closed after the test."""
        folder = self.top / (work or f"work-{next(self.numbers)}")
        store = open_borg(place, create=False, work_dir=str(folder))
        assert isinstance(store, BorgStore)
        self.opened.append(store)
        return store

    def close(self) -> None:
        """Close what was opened."""
        while self.opened:
            self.opened.pop().close()


@pytest.fixture
def bench(tmp_path: Path, empty_repository: Path) -> Iterator[Bench]:
    """A bench; what was opened is closed."""
    bench = Bench(tmp_path, empty_repository, itertools.count(), [])
    yield bench
    bench.close()
