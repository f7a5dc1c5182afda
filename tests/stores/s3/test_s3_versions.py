"""What somebody with the mail host's credentials does to objects, in buckets that keep versions and in those that lock them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mailbackup.errors import KeyExists, ObjectMissing, StoreRefused
from mailbackup.model.ids import ObjectKey, entry_key
from mailbackup.stores.s3.store import S3Store
from mailbackup.testing.store_contract import KEY, OTHER, keys
from tests.stores.s3.conftest import Open
from tests.stores.s3.server import Weed
from tests.stores.s3.stores import Buckets

ENTRY = entry_key(7)


class Attacker:
    """Somebody who writes past the store, without conditions."""

    def __init__(self, weed: Weed, store: S3Store) -> None:
        self.client: Any = weed.client("mailhost")
        self.address = store._address

    def replace(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.address.bucket, Key=self.address.name(key), Body=data)

    def remove(self, key: str) -> None:
        self.client.delete_object(Bucket=self.address.bucket, Key=self.address.name(key))


@pytest.fixture
def store(open_one: Open) -> S3Store:
    return open_one("versions")


@pytest.fixture
def attacker(weed: Weed, store: S3Store) -> Attacker:
    return Attacker(weed, store)


def test_the_traits_say_what_the_bucket_does(open_one: Open) -> None:
    assert open_one("versions").traits.versions
    assert open_one("lock", lock_days=1).traits.object_lock
    plain = open_one("plain").traits
    assert not plain.versions
    assert not plain.object_lock
    assert plain.trusted_time
    assert open_one(connections=5).traits.parallel == 5


def test_a_listing_shows_and_then_reads_the_genuine_object(store: S3Store, open_one: Open, attacker: Attacker) -> None:
    store.put(KEY, b"genuine")
    store.put(OTHER, b"neighbour")
    attacker.replace(KEY, b"forged")
    attacker.replace(KEY, b"forged again")
    reader = open_one("versions")
    assert [(key, stat.size) for key, stat in reader.list()] == [(KEY, 7), (OTHER, 9)]
    assert reader.get(KEY, 100) == b"genuine"
    assert b"".join(reader.stream(KEY)) == b"genuine"
    assert reader.get_range(KEY, 0, 3) == b"gen"
    assert reader.stat(KEY).size == 7


def test_a_reader_who_did_not_list_looks_behind(store: S3Store, open_one: Open, attacker: Attacker) -> None:
    store.put(KEY, b"genuine")
    attacker.replace(KEY, b"forged")
    reader = open_one("versions")
    assert reader.get(KEY, 100) == b"forged"
    assert reader.uncover(KEY)
    assert reader.get(KEY, 100) == b"genuine"
    assert not reader.uncover(KEY)
    assert reader.get(KEY, 100) == b"genuine"


def test_what_a_marker_hides_is_listed_and_found(store: S3Store, open_one: Open, attacker: Attacker) -> None:
    store.put(ENTRY, b"genuine")
    attacker.remove(ENTRY)
    reader = open_one("versions")
    with pytest.raises(ObjectMissing):
        reader.get(ENTRY, 100)
    assert reader.uncover(ENTRY)
    assert reader.get(ENTRY, 100) == b"genuine"
    assert not reader.uncover(ENTRY)
    other = open_one("versions")
    assert keys(other) == [ENTRY]
    assert other.prefixes("ledger/") == ("ledger/0000000000/",)
    assert other.get(ENTRY, 100) == b"genuine"


def test_when_the_oldest_was_forged_the_next_ones_are_shown_in_their_order(store: S3Store, attacker: Attacker) -> None:
    for data in (b"first", b"second", b"third"):
        attacker.replace(KEY, data)
    assert keys(store) == [KEY]
    assert store.get(KEY, 100) == b"first"
    assert store.uncover(KEY)
    assert store.get(KEY, 100) == b"second"
    assert store.uncover(KEY)
    assert store.get(KEY, 100) == b"third"
    assert not store.uncover(KEY)


def test_an_object_that_was_never_there_has_nothing_behind_it(store: S3Store) -> None:
    assert not store.uncover(KEY)


@pytest.mark.parametrize("key", [ENTRY, ObjectKey("acts/0000000001.json"), ObjectKey("vault.json")])
def test_a_hidden_name_of_the_ledger_is_not_given_a_second_meaning(store: S3Store, attacker: Attacker, key: ObjectKey) -> None:
    store.put(key, b"genuine")
    attacker.remove(key)
    with pytest.raises(KeyExists):
        store.put(key, b"another")
    assert store.uncover(key)
    assert store.get(key, 100) == b"genuine"


def test_deleting_removes_versions_and_markers(store: S3Store, open_one: Open, attacker: Attacker, weed: Weed) -> None:
    store.put(ENTRY, b"genuine")
    attacker.replace(ENTRY, b"forged")
    attacker.remove(ENTRY)
    store.delete(ENTRY)
    listed = weed.client().list_object_versions(Bucket=store._address.bucket, Prefix=store._address.folder)
    assert "Versions" not in listed
    assert "DeleteMarkers" not in listed
    store.put(ENTRY, b"new")
    assert open_one("versions").get(ENTRY, 100) == b"new"


def test_many_versions_over_several_pages(store: S3Store, attacker: Attacker, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(KEY, b"genuine")
    for number in range(5):
        attacker.replace(KEY, b"forged %d" % number)
    store.put(OTHER, b"neighbour")
    attacker.remove(OTHER)
    monkeypatch.setattr(store, "_page", _small_pages(store))
    assert [(key, stat.size) for key, stat in store.list()] == [(KEY, 7), (OTHER, 9)]
    assert store.get(KEY, 100) == b"genuine"


def _small_pages(store: S3Store) -> Any:
    whole = store._page
    return lambda asked: whole({**asked, "MaxKeys": 2})


# ------------------------------------------------------------ Object Lock


@pytest.mark.parametrize("mode", ["compliance", "governance"])
def test_a_locked_object_stays_and_the_refusal_says_until_when(open_one: Open, weed: Weed, buckets: Buckets, mode: str) -> None:
    store = open_one("lock", lock_days=2, lock_mode=mode)
    store.put(KEY, b"locked")
    with store.create(OTHER) as writer:
        writer.write(b"locked too")
        writer.commit()
    day = (datetime.now(UTC) + timedelta(days=2)).strftime("%Y-%m-%d")
    for key in (KEY, OTHER):
        with pytest.raises(StoreRefused, match=f"locked until {day}"):
            store.delete(key)
    assert keys(store) == sorted([KEY, OTHER])
    head = weed.client().head_object(Bucket=buckets.names["lock"], Key=store._address.name(KEY))
    assert head["ObjectLockMode"] == mode.upper()


def test_the_date_is_the_service_s_but_never_far_ahead_of_ours(open_one: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_one("lock", lock_days=1)
    assert abs(store._client.now().timestamp() - time.time()) < 5
    monkeypatch.setattr(store._client, "_clock", (time.time() + 10 * 365 * 86400, time.monotonic()))
    assert 86390 < store._client.now().timestamp() - time.time() < 86410
    monkeypatch.setattr(store._client, "_clock", (time.time() - 3600, time.monotonic()))
    assert -3610 < store._client.now().timestamp() - time.time() < -3590


def test_a_bucket_without_lock_is_refused_when_it_is_opened(open_one: Open) -> None:
    with pytest.raises(StoreRefused) as caught:
        open_one("plain", lock_days=30)
    assert "lock_days = 0" in caught.value.hint
