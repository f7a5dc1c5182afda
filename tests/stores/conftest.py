"""A local store in a fresh directory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from mailbackup.stores.local import LocalStore


@pytest.fixture
def root(tmp_path: object) -> str:
    """Where a store can be made."""
    return os.path.join(str(tmp_path), "store")


@pytest.fixture
def store(root: str) -> Iterator[LocalStore]:
    """An empty local store."""
    LocalStore.create_root(root)
    store = LocalStore(root, "cellar")
    yield store
    store.close()


@pytest.fixture
def open_to_all() -> Iterator[str]:
    """A temporary folder that an unprivileged user can reach."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield folder
