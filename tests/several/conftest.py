"""Addresses of fresh, empty stores of each kind."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stores.borg.server import BORG, ssh_repository
from tests.stores.s3.proxy import Proxy
from tests.stores.s3.server import Weed, shared_server
from tests.stores.s3.stores import Buckets

KINDS = ("s3", "s3-versions", "borg", "borg+ssh")


@pytest.fixture(scope="session")
def weed() -> Iterator[Weed]:
    """A SeaweedFS server."""
    with shared_server() as server:
        yield server


@pytest.fixture(scope="session")
def buckets(weed: Weed) -> Buckets:
    """One bucket of each kind: tests get folders, since a bucket costs the server volumes."""
    return Buckets.make(weed)


@pytest.fixture
def as_admin(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of the server's administrator, as boto3 finds them; nothing of this machine's."""
    for name, value in weed.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a store that is not there yet, as `init --store` takes it."""
    with address(request.param, request, tmp_path) as found:
        yield found


@contextlib.contextmanager
def address(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The same for one kind."""
    if kind.startswith("s3"):
        weed = request.getfixturevalue("weed")
        request.getfixturevalue("as_admin")
        names = request.getfixturevalue("buckets").names
        yield s3_url(weed.url, names["versions" if kind == "s3-versions" else "plain"])
    elif kind == "borg":
        yield f"borg://{tmp_path}/repository?borg_path={BORG}&patience=20"
    else:
        with ssh_repository(tmp_path / "box") as box:
            yield f"{box.url}?borg_path={BORG}&patience=20&rsh={box.rsh.replace(' ', '+')}"


def s3_url(endpoint: str, bucket: str) -> str:
    """A store in a fresh folder of a bucket."""
    return f"s3://{bucket}/{Buckets.folder()}?endpoint={endpoint}&addressing=path&patience=5"


@pytest.fixture
def proxy(weed: Weed, as_admin: None) -> Iterator[Proxy]:
    """What stands between us and the server."""
    with Proxy(weed.url) as between:
        yield between
