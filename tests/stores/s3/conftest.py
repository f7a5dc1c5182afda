"""The server that all tests of this folder share, and stores in fresh folders of its buckets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from mailbackup.stores.s3.store import S3Store
from tests.stores.s3.server import Weed, shared_server
from tests.stores.s3.stores import Buckets


@pytest.fixture(scope="session")
def weed() -> Iterator[Weed]:
    """A SeaweedFS server."""
    with shared_server() as server:
        yield server


@pytest.fixture(scope="session")
def buckets(weed: Weed) -> Buckets:
    """One bucket of each kind."""
    return Buckets.make(weed)


@pytest.fixture(autouse=True)
def as_admin(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of the server's administrator, as boto3 finds them; nothing of this machine's."""
    for name, value in weed.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


Open = Callable[..., S3Store]


@pytest.fixture
def open_one(buckets: Buckets) -> Iterator[Open]:
    """Opens stores: `open_one("plain", **options)`, all of one test in one folder; closed afterwards."""
    folder, opened = buckets.folder(), []

    def open_here(kind: str = "plain", **options: object) -> S3Store:
        opened.append(buckets.open(kind, folder, **options))
        return opened[-1]

    yield open_here
    for store in opened:
        store.close()
