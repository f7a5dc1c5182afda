"""Addresses of stores that cannot be opened say what can."""

from __future__ import annotations

import contextlib
import os

import pytest

from mailbackup.errors import ConfigInvalid, StoreUnavailable
from mailbackup.model.options import StoreConfig
from mailbackup.stores.locate import open_store
from mailbackup.testing.store_contract import VAULT


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/var/backups",
        "ftp://box/x",
        "s3+x://bucket",
        "file:relative",
        "file://relative",
        "file://host/path",
        "file://",
        "file:///a%00b",
    ],
)
def test_an_address_that_no_store_understands_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigInvalid, match="cellar") as refused:
        open_store(StoreConfig(name="cellar", url=url), create=True)
    assert "file:///" in refused.value.hint


def test_the_password_of_an_unknown_address_is_not_shown() -> None:
    with pytest.raises(ConfigInvalid) as refused:
        open_store(StoreConfig(name="cellar", url="swift://user:hunter2@box"))
    assert "hunter2" not in refused.value.message + refused.value.hint


def test_a_file_address_opens_a_local_store(tmp_path: object) -> None:
    url = f"file://{tmp_path}/my%20store"
    with pytest.raises(StoreUnavailable):
        open_store(StoreConfig(name="cellar", url=url))
    with contextlib.closing(open_store(StoreConfig(name="cellar", url=url), create=True)) as store:
        store.put(VAULT, b"{}")
        assert store.name == "cellar"
    assert os.listdir(f"{tmp_path}/my store") != []
