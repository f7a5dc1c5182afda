"""The contract, passed by a real server: in a bucket without versions, in one with them, and without create-only puts."""

from __future__ import annotations

from typing import Any

import pytest

from mailbackup.stores.base import Store
from mailbackup.testing.store_contract import KEY, OTHER, StoreContract, keys
from tests.stores.s3.stores import Buckets


class _S3(StoreContract):
    kind = "plain"
    options: dict[str, Any] = {}

    @pytest.fixture(autouse=True)
    def here(self, buckets: Buckets) -> None:
        self.buckets, self.folder = buckets, buckets.folder()

    def make_store(self) -> Store:
        return self.buckets.open(self.kind, self.folder, **self.options)

    def reopen(self, store: Store) -> Store:
        return self.make_store()

    def test_a_prefix_whose_objects_are_gone_is_gone(self, store: Store) -> None:
        """SeaweedFS goes on listing a folder that was emptied for a while. Only the ledger is asked for prefixes, and it never shrinks."""
        store.put(KEY, b"")
        store.put(OTHER, b"")
        store.delete(KEY)
        assert set(store.prefixes("packs/")) - {"packs/ab/"} == {"packs/cd/"}
        assert keys(store, "packs/ab/") == []

    def plant(self, store: Store, key: str, data: bytes) -> None:
        self.buckets.weed.client().put_object(Bucket=self.buckets.names[self.kind], Key=f"{self.folder}/{key}", Body=data)


class TestPlain(_S3):
    pass


class TestVersions(_S3):
    kind = "versions"
    LONG = 60  # the pages of a long listing are looked at without versions, and in test_s3_versions


class TestWithoutCreateOnly(_S3):
    options = {"create_only": False}
    LONG = 60
