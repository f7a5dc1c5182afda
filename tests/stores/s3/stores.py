"""Stores on the test server."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from mailbackup.model.options import StoreConfig
from mailbackup.stores.s3.store import S3Store, open_s3
from tests.stores.s3.server import Weed


@dataclass(frozen=True)
class Buckets:
    """A bucket of each kind: "plain", "versions", "lock". Tests get folders, since a bucket costs the server volumes."""

    weed: Weed
    names: dict[str, str]

    @classmethod
    def make(cls, weed: Weed) -> Buckets:
        """Fresh ones."""
        return cls(weed, {"plain": weed.bucket(), "versions": weed.bucket(versions=True), "lock": weed.bucket(lock=True)})

    @staticmethod
    def folder() -> str:
        """A fresh name."""
        return f"mx-{uuid.uuid4().hex[:12]}"

    def place(self, kind: str, folder: str, **options: Any) -> StoreConfig:
        """The configuration of a store."""
        usual = {
            "name": "bucket",
            "endpoint": self.weed.url,
            "addressing": "path",
            "patience": 3,
            "url": f"s3://{self.names[kind]}/{folder}",
        }
        return StoreConfig(**{**usual, **options})

    def open(self, kind: str, folder: str, **options: Any) -> S3Store:
        """A store, which has to be closed."""
        return open_s3(self.place(kind, folder, **options), create=False)
