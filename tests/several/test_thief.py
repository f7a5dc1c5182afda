"""A bucket with versions in which somebody has replaced and hidden everything: it is read all the same, from several threads."""

from __future__ import annotations

import pytest

from tests.several.conftest import s3_url
from tests.several.test_kinds import deliver
from tests.stores.s3.server import Weed
from tests.stores.s3.stores import Buckets
from tests.world import World, messages_in


@pytest.mark.parametrize("how", ["replace", "hide", "both"])
@pytest.mark.parametrize("stateless", [False, True])
def test_what_a_thief_replaced_and_hid_is_restored(
    tmp_path: object, weed: Weed, buckets: Buckets, as_admin: None, how: str, stateless: bool
) -> None:
    bucket = buckets.names["versions"]
    url = s3_url(weed.url, bucket)
    folder = url.partition("?")[0].rpartition("/")[2]
    world = World(tmp_path, urls=(url,))
    for _ in range(2):
        deliver(world, 8)
        world.backup()
    client = weed.client()
    for raw in client.list_objects_v2(Bucket=bucket, Prefix=f"{folder}/")["Contents"]:
        if how != "hide":
            client.put_object(Bucket=bucket, Key=raw["Key"], Body=b"forged" * 100)
        if how != "replace":
            client.delete_object(Bucket=bucket, Key=raw["Key"])
    if stateless:
        world.lose_state()
    result = world.restore("out")
    assert (result.outcome, messages_in(f"{world.root}/out")) == ("complete", messages_in(world.maildir()))
    assert world.backup().outcome in ("complete", "explained")
