"""The main job from end to end on every kind of store, alone and beside a directory."""

from __future__ import annotations

import os

import pytest

from mailbackup import app, config, replication
from mailbackup.jobs.run import run_job
from mailbackup.model.job import Job
from mailbackup.stores.locate import open_store
from mailbackup.stores.probe import probe
from tests.several.conftest import s3_url
from tests.stores.s3.proxy import Proxy
from tests.stores.s3.stores import Buckets
from tests.world import ALICE, World, messages_in

NIGHTLY = Job(name="nightly", cron="30 2 * * *", parts=("backup", "read-back", "scrub"))


def deliver(world: World, count: int, *, size: int = 3_000) -> None:
    number = len(messages_in(world.maildir()))
    for n in range(number, number + count):
        world.deliver(f"{n}.m:2,S", b"Subject: mail %d\n\n" % n + os.urandom(size // 2).hex().encode())


def test_the_main_job(tmp_path: object, url: str):
    world = World(tmp_path, urls=(url,))
    deliver(world, 5)
    deliver(world, 1, size=400_000)
    first = world.backup()
    assert (first.outcome, first.messages, [store.outcome for store in first.stores]) == ("complete", 6, ["current"])
    deliver(world, 2)
    night = run_job(world.context, NIGHTLY)
    assert (night.exit_status, [(part.name, part.outcome) for part in night.parts]) == (0, [(name, "done") for name in NIGHTLY.parts]), (
        night
    )
    assert [message.subject for message in app.messages(world.context, ALICE)] == [f"mail {n}" for n in range(8)]
    result = world.restore("out")
    assert (result.outcome, messages_in(f"{world.root}/out")) == ("complete", messages_in(world.maildir()))
    assert world.restore("old", at="2").messages == 6
    assert app.verify(world.context, decrypt=True).outcome == "clean"
    world.lose_state()
    assert app.state_rebuild(world.context).messages == 8
    assert world.backup().new_messages == 0
    place = config.load(world.config_path)[0].stores[0]
    with_store = open_store(place, work_dir=f"{world.root}/probe")
    assert [trial for trial in probe(with_store) if trial.outcome == "failed"] == []
    with_store.close()


@pytest.mark.parametrize("url", ["s3-versions", "borg"], indirect=True)  # what ssh adds, the main job shows
def test_a_directory_and_a_distant_store(tmp_path: object, url: str):
    """The distant one is filled by copy, kept by the nights, and enough when the directory burnt."""
    world = World(tmp_path)
    deliver(world, 4)
    world.backup()
    _add_store(world, "distant", url)
    copied = replication.copy_store(world.context, source=None, target="distant")
    assert copied.head == 2
    deliver(world, 2)
    result = world.backup()
    assert [(store.name, store.outcome) for store in result.stores] == [("local", "current"), ("distant", "current")], result.stores
    assert app.verify(world.context).outcome == "clean"
    os.rename(world.vault, f"{world.root}/burnt")
    os.rename(world.state, f"{world.root}/burnt-state")
    assert world.restore("out").outcome == "complete"
    assert messages_in(f"{world.root}/out") == messages_in(world.maildir())
    os.mkdir(world.vault)
    filled = replication.copy_store(world.context, source="distant", target="local")
    assert filled.head == 3
    assert app.verify(world.using("local"), decrypt=True).outcome == "clean"


def _add_store(world: World, name: str, url: str) -> None:
    found, path = config.load(world.config_path)
    store = config.store_from_url(name, url)
    changed = type(found)(**{field: getattr(found, field) for field in found.__struct_fields__} | {"stores": (*found.stores, store)})
    with open(path, "w") as file:
        file.write(config.render(changed))


# ---------------------------------------------------------------- what it costs


@pytest.fixture
def s3(tmp_path: object, buckets: Buckets, proxy: Proxy) -> World:
    """A host with a mailbox of many messages in S3, behind a proxy that counts."""
    world = World(tmp_path, urls=(s3_url(proxy.url, buckets.names["plain"]),))
    deliver(world, 400, size=12_000)
    for n in range(40):
        world.deliver(f"big{n}.m:2,S", b"Subject: big\n\n" + os.urandom(500_000).hex().encode())
    for n in range(3):
        world.deliver(f"{n}.b:2,", b"Subject: bob\n\n" + os.urandom(500_000).hex().encode(), "bob@example.org")
    world.backup()
    proxy.forget()
    return world


def test_one_message_costs_few_requests(s3: World, proxy: Proxy):
    """On a machine without state, as after a disaster. The second one, with the listing at hand, costs four."""
    wanted = app.messages(s3.context, ALICE)[7].id
    s3.lose_state()
    proxy.forget()
    with app.use_vault(s3.context) as (reader, traffic):
        _, tree = reader.mailbox(reader.snapshot(reader.find("latest")), ALICE)
        app.message_bytes(reader, tree, wanted)
        print("\n".join(f"{seen.method} {seen.path}" for seen in proxy.requests))
        assert len(proxy.requests) <= 12
        assert traffic.bytes_read < 3 << 20
        proxy.forget()
        app.message_bytes(reader, tree, wanted)
        assert len(proxy.requests) <= 4


def test_a_mailbox_costs_what_it_holds_and_several_requests_are_under_way(s3: World, proxy: Proxy):
    proxy.latency = 0.03
    result = s3.restore("out")
    stored = sum(os.path.getsize(f"{path}/{name}") for path, _, names in os.walk(s3.maildir()) for name in names) / 2  # hexadecimal digits
    assert result.fetched.bytes < 1.15 * stored
    assert proxy.most_in_flight >= 6, proxy.most_in_flight  # 8 where the machine is quiet


def test_a_night_takes_few_requests_one_after_another(s3: World, proxy: Proxy):
    """Latency counts for each of them: with 80 ms, 25 are two seconds."""
    deliver(s3, 3)
    assert run_job(s3.context, NIGHTLY).exit_status == 0
    assert len(proxy.requests) <= 60
    proxy.forget()
    s3.backup()
    assert len(proxy.requests) <= 25, [f"{seen.method} {seen.path}" for seen in proxy.requests]
