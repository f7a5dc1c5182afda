"""The Borg store keeps the contract, over a path and through ssh to an append-only server."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailbackup.model.options import StoreConfig
from mailbackup.stores.base import Store
from mailbackup.stores.borg.store import BorgStore, open_borg
from mailbackup.testing.store_contract import StoreContract
from tests.stores.borg.conftest import BORG, Bench
from tests.stores.borg.server import ssh_repository


class TestBorgPath(StoreContract):
    @pytest.fixture(autouse=True)
    def _use(self, bench: Bench) -> None:
        self.bench = bench

    def make_store(self) -> Store:
        self.place = self.bench.place()
        return self.bench.open(self.place)

    def reopen(self, store: Store) -> Store:
        return self.bench.open(self.place)

    LONG = 60  # a listing has no pages, and a thousand entries are some hundred archives, which took four minutes

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
            env={
                "BORG_BASE_DIR": str(self.bench.top / "base"),
                "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
                "PATH": "/usr/bin:/bin",
            },
            timeout=60,
        )


class TestBorgSsh:
    """The part of the contract in which the other side matters: a call through ssh takes four times as long as one over a path."""

    store = StoreContract.store
    assert_absent = StoreContract.assert_absent
    test_read_back = StoreContract.test_what_was_put_is_read_back
    test_refused = StoreContract.test_put_of_an_existing_key_is_refused_and_changes_nothing
    test_entry = StoreContract.test_an_entry_is_there_for_others_at_once_with_all_that_was_put_before
    test_whole = StoreContract.test_an_object_appears_whole_at_commit_and_not_before
    test_absent = StoreContract.test_reading_an_absent_object_is_object_missing
    test_left_early = StoreContract.test_a_stream_can_be_left_early
    test_concurrent = StoreContract.test_concurrent_reads_do_not_disturb_each_other
    test_ordered = StoreContract.test_list_is_ordered_by_key_with_sizes_and_times
    test_deleted = StoreContract.test_a_deleted_object_is_gone_and_its_key_free

    @pytest.fixture(autouse=True)
    def _use(self, bench: Bench, tmp_path: Path) -> Iterator[None]:
        self.bench = bench
        with ssh_repository(tmp_path / "there") as there:
            self.place = StoreConfig(name="box", url=there.url, rsh=there.rsh, borg_path=BORG, patience=30)
            yield
            bench.close()

    def make_store(self) -> Store:
        store = open_borg(self.place, create=True, work_dir=str(self.bench.top / "made"))
        assert isinstance(store, BorgStore)
        return store

    def reopen(self, store: Store) -> Store:
        return self.bench.open(self.place)
