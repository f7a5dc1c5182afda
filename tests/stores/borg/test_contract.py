"""The Borg store keeps the contract, over a path and through ssh to an append-only server."""

from __future__ import annotations

import subprocess

import pytest

from mailbackup.model.options import StoreConfig
from mailbackup.stores.base import Store
from mailbackup.stores.borg.store import BorgStore
from mailbackup.testing.store_contract import StoreContract
from tests.stores.borg.conftest import BORG, Bench


class TestBorgPath(StoreContract):
    @pytest.fixture(autouse=True)
    def _use(self, bench: Bench) -> None:
        self.bench = bench

    def make_store(self) -> Store:
        self.place = self.bench.place()
        return self.bench.open(self.place)

    def reopen(self, store: Store) -> Store:
        return self.bench.open(self.place)

    def plant(self, store: Store, key: str, data: bytes) -> None:
        """Archives of our name and without our comment, as somebody else may make them."""
        assert isinstance(store, BorgStore)
        folder = self.bench.top / "planted" / key
        folder.mkdir(parents=True)
        (folder / "000000").write_bytes(data)
        subprocess.run(
            [BORG, "create", f"{store.borg.repository}::mailbackup-0000000007", key],
            check=True,
            cwd=self.bench.top / "planted",
            env={"BORG_BASE_DIR": str(self.bench.top / "base"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes", "PATH": "/usr/bin:/bin"},
            timeout=60,
        )


def place_of(url: str, rsh: str) -> StoreConfig:
    """A store through ssh."""
    return StoreConfig(name="box", url=url, rsh=rsh, borg_path=BORG, remote_path=None, patience=20)
