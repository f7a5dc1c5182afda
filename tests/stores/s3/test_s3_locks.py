"""Locks that are made longer, and what somebody put in front of objects, on a real server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mailbackup.errors import ObjectMissing, StoreRefused
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import ObjectKey, PackId, entry_key, pack_key
from mailbackup.stores.s3.store import S3Store
from mailbackup.testing.store_contract import KEY, OTHER
from mailbackup.upkeep import shadows
from mailbackup.upkeep.locks import extend, look, remembered
from mailbackup.upkeep.parallel import in_order, threads_for
from mailbackup.upkeep.scrub import hash_object
from tests.stores.s3.conftest import Open
from tests.stores.s3.proxy import Proxy
from tests.stores.s3.server import Weed
from tests.stores.s3.test_s3_versions import Attacker

DAY = 86400
ENTRY = entry_key(7)


@pytest.fixture
def store(open_one: Open) -> S3Store:
    return open_one("lock", lock_days=2)


def held(weed: Weed, store: S3Store, key: str) -> list[tuple[str, datetime]]:
    """Mode and date of each version, the newest first, as the server itself says."""
    client, place = weed.client(), store._address
    listed = client.list_object_versions(Bucket=place.bucket, Prefix=place.name(key))
    return [
        (found["ObjectLockMode"], found["ObjectLockRetainUntilDate"])
        for version in listed.get("Versions", ())
        if (found := client.head_object(Bucket=place.bucket, Key=version["Key"], VersionId=version["VersionId"])).get("ObjectLockMode")
    ]


def near(time: float | None, days: float) -> bool:
    return time is not None and abs(time - (datetime.now(UTC) + timedelta(days=days)).timestamp()) < 60


@pytest.mark.parametrize("mode", ["compliance", "governance"])
def test_a_lock_is_told_made_longer_and_never_shorter(open_one: Open, weed: Weed, mode: str) -> None:
    store = open_one("lock", lock_days=2, lock_mode=mode)
    store.put(KEY, b"locked")
    assert near(store.locked_until(KEY), 2)
    store.lock_until(KEY, store.now() + 9 * DAY)
    assert near(store.locked_until(KEY), 9)
    store.lock_until(KEY, store.now() + DAY)
    assert near(store.locked_until(KEY), 9)
    ((found, until),) = held(weed, store, KEY)
    assert (found, near(until.timestamp(), 9)) == (mode.upper(), True)
    with pytest.raises(StoreRefused, match="locked until"):
        store.delete(KEY)


def test_an_object_without_a_lock_gets_one(open_one: Open, weed: Weed) -> None:
    open_one("lock").put(KEY, b"put by a host with lock_days = 0")
    store = open_one("lock", lock_days=2)
    assert store.locked_until(KEY) is None
    store.lock_until(KEY, store.now() + 2 * DAY)
    assert near(store.locked_until(KEY), 2)
    assert held(weed, store, KEY)[0][0] == "COMPLIANCE"


def test_compliance_stays_compliance(open_one: Open, weed: Weed, store: S3Store) -> None:
    store.put(KEY, b"locked")
    open_one("lock", lock_days=2, lock_mode="governance").lock_until(KEY, store.now() + 5 * DAY)
    ((mode, until),) = held(weed, store, KEY)
    assert (mode, near(until.timestamp(), 5)) == ("COMPLIANCE", True)


def test_it_is_the_genuine_version_that_counts(store: S3Store, weed: Weed) -> None:
    """Somebody puts another version in front, with a longer lock, or hides the object: neither must pass for the lock of the genuine one."""
    store.put(KEY, b"genuine")
    attacker = Attacker(weed, store)
    weed.client().put_object(  # the server lets "mailhost" set no locks
        Bucket=attacker.address.bucket, Key=attacker.address.name(KEY), Body=b"forged",
        ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=datetime.now(UTC) + timedelta(days=90),
    )  # fmt: skip
    assert near(store.locked_until(KEY), 2)
    attacker.remove(KEY)
    assert near(store.locked_until(KEY), 2)
    store.lock_until(KEY, store.now() + 9 * DAY)
    assert near(store.locked_until(KEY), 9)
    assert [near(until.timestamp(), days) for (_, until), days in zip(held(weed, store, KEY), (90, 9), strict=True)] == [True, True]


def test_what_is_not_there_has_no_lock(store: S3Store) -> None:
    with pytest.raises(ObjectMissing):
        store.locked_until(KEY)
    with pytest.raises(ObjectMissing):
        store.lock_until(KEY, store.now() + DAY)


def test_without_lock_days_nothing_is_asked(open_one: Open) -> None:
    store = open_one("plain")
    store.put(KEY, b"x")
    assert store.locked_until(KEY) is None
    store.lock_until(KEY, store.now() + DAY)
    assert store.locked_until(KEY) is None


def test_the_locks_of_what_stays_are_made_longer(open_one: Open, tmp_path: Path) -> None:
    short, store = open_one("lock", lock_days=1), open_one("lock", lock_days=4)
    keys = [pack_key(PackId(f"{number:032x}")) for number in range(12)]
    for number, key in enumerate(keys):
        (short if number < 8 else store).put(key, b"x")
    (finding,) = look(open_one("lock", lock_days=6), keys)
    assert finding.kind is FindingKind.LOCK_ENDS
    with remembered(f"{tmp_path}/locks", "here") as memory:
        done = extend(store, keys, store.now(), 4, memory)
        assert (done.extended, done.still, done.failed) == (8, 4, [])
        assert extend(store, keys, store.now(), 4, memory).still == 12
    assert all(near(store.locked_until(key), 4) for key in keys)
    assert look(store, keys) == []


# ------------------------------------------------------------ shadows


def test_what_somebody_put_in_front_is_told(open_one: Open, weed: Weed) -> None:
    store = open_one("versions")
    attacker = Attacker(weed, store)
    for key in (KEY, OTHER, ENTRY):
        store.put(key, b"genuine")
    assert list(store.shadows()) == []
    attacker.replace(KEY, b"forged")
    attacker.remove(ENTRY)
    attacker.remove("vault.json")
    assert dict(store.shadows()) == {KEY: "replaced", ENTRY: "hidden", "vault.json": "lost"}
    assert dict(store.shadows("packs/")) == {KEY: "replaced"}
    findings = shadows.look(open_one("versions"))
    assert [(finding.kind, finding.subject, finding.harmless) for finding in findings] == [
        (FindingKind.REPLACED, key, False) for key in (ENTRY, KEY, "vault.json")
    ]
    store.delete(KEY)
    assert dict(store.shadows()) == {ENTRY: "hidden", "vault.json": "lost"}


def test_without_versions_nobody_stands_before_anything(open_one: Open) -> None:
    store = open_one("plain")
    store.put(KEY, b"x")
    assert list(store.shadows()) == []


# ------------------------------------------------------------ several at once


def test_eight_connections_are_busy(weed: Weed, open_one: Open) -> None:
    keys = [pack_key(PackId(f"{number:032x}")) for number in range(32)]
    here = open_one()
    for key in keys:
        here.put(key, b"x" * 100_000)
    with Proxy(weed.url, latency=0.05) as proxy:
        store: Any = open_one(endpoint=proxy.url, connections=8)
        proxy.forget()
        assert len(list(in_order(lambda key: hash_object(store, ObjectKey(key)), keys, threads_for(store)))) == 32
        assert 7 <= proxy.most_in_flight <= 8
