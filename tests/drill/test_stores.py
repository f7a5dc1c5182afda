"""A light drill of what lies in S3 and in a Borg repository."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mailbackup import config
from tests.drill.conftest import KIT, popen
from tests.reference.server import ReferenceServer
from tests.stores.borg.server import BORG
from tests.stores.s3.server import IDENTITIES, command

pytestmark = pytest.mark.root

CONFIG = "/etc/mailbackup/mailbackup.toml"
ADMIN = {"AWS_ACCESS_KEY_ID": IDENTITIES[0].key, "AWS_SECRET_ACCESS_KEY": IDENTITIES[0].secret, "AWS_EC2_METADATA_DISABLED": "true"}
MAKE_BUCKET = """
import boto3, time
for _ in range(300):
    try:
        client = boto3.client("s3", endpoint_url="http://127.0.0.1:28333", region_name="us-east-1")
        client.create_bucket(Bucket="backups")
        client.put_object(Bucket="backups", Key="ready", Body=b"x")
        client.delete_object(Bucket="backups", Key="ready")
        break
    except Exception as error:
        time.sleep(0.1)
else:
    raise error
"""


@pytest.fixture
def s3_inside(saved: ReferenceServer) -> Iterator[str]:
    """A bucket on the reference server's own loopback: it has no other network."""
    folder: Path = saved.path("/srv/weed")
    folder.mkdir(parents=True)
    ports = {"master": 29333, "volume": 28080, "filer": 28888, "s3": 28333}
    weed = popen(saved, *command(folder, "/srv/weed", ports))
    try:
        saved.run(sys.executable, "-c", MAKE_BUCKET, env=ADMIN, timeout=60)
        yield "s3://backups/mx1?endpoint=http://127.0.0.1:28333&addressing=path"
    finally:
        weed.kill()
        weed.wait(20)


@pytest.fixture(params=["s3", "borg"])
def url(request: pytest.FixtureRequest) -> str:
    """Where the vault is copied to."""
    if request.param == "s3":
        return str(request.getfixturevalue("s3_inside"))
    return f"borg:///srv/borg/mx1?borg_path={BORG}"


def test_a_light_drill_from_a_distant_store(saved: ReferenceServer, url: str):
    path = saved.path(CONFIG)
    before = path.read_text()
    found = config.parse(before, CONFIG)
    store = config.store_from_url("distant", url)
    members = {name: getattr(found, name) for name in found.__struct_fields__}
    path.write_text(config.render(type(found)(**members | {"stores": (*found.stores, store)})))
    try:
        copied = _answer(saved, "copy", "--to", "distant")
        assert copied["copied_objects"] > 6
        began = time.monotonic()
        drilled = _answer(saved, "--store", "distant", "--identity", KIT, "drill", "light")
        assert (drilled["outcome"], {probe["outcome"] for probe in drilled["probes"]}) == ("proven", {"passed"})
        assert time.monotonic() - began < 100
    finally:
        path.write_text(before)


def _answer(server: ReferenceServer, *args: str) -> dict[str, Any]:
    """The answer of a command with credentials for S3."""
    done = server.run(
        sys.executable, "-m", "mailbackup", "--json", *args, timeout=200, check=False,
        env={**ADMIN, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
