"""The policies of the guide, given to three users of the server: each can do what it must, and nothing else."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from mailbackup.errors import StoreRefused
from mailbackup.model.ids import ObjectKey, entry_key
from mailbackup.stores.s3.store import S3Store
from mailbackup.testing.store_contract import KEY, OTHER, VAULT, keys
from tests.stores.s3 import proxy as faults
from tests.stores.s3.guide import policies
from tests.stores.s3.proxy import Proxy
from tests.stores.s3.server import Identity, Weed
from tests.stores.s3.stores import Buckets

ENTRY = entry_key(1)
ACT = ObjectKey("acts/0000000001.json")
As = Callable[..., S3Store]


def _wait_for(weed: Weed, identity: Identity, bucket: str, folder: str) -> None:
    """New users are known a moment after they were made."""
    client = weed.client_of(identity)
    for _ in range(100):
        try:
            client.list_objects_v2(Bucket=bucket, Prefix=folder)
        except client.exceptions.ClientError:
            time.sleep(0.1)
        else:
            break
    client.close()


@pytest.fixture(scope="module")
def hosts(weed: Weed, buckets: Buckets) -> dict[str, tuple[Identity, str]]:
    """Kind of bucket and host → a user with its policy, and the folder it is for."""
    found = {}
    for kind in ("plain", "versions", "lock"):
        folder = buckets.folder()
        for host, policy in policies(buckets.names[kind], folder).items():
            user = weed.user(f"{host}-{uuid.uuid4().hex[:8]}", policy)
            _wait_for(weed, user, buckets.names[kind], folder)
            found[f"{kind} {host}"] = user, folder
    return found


@pytest.fixture
def open_as(
    hosts: dict[str, tuple[Identity, str]], buckets: Buckets, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> As:
    """Opens the folder of a kind of bucket as a host."""

    def opened(kind: str, host: str, **options: Any) -> S3Store:
        user, folder = hosts[f"{kind} {host}"]
        with monkeypatch.context() as patch:
            patch.setenv("AWS_ACCESS_KEY_ID", user.key)
            patch.setenv("AWS_SECRET_ACCESS_KEY", user.secret)
            store = buckets.open(kind, folder, **options)
        request.addfinalizer(store.close)
        return store

    return opened


@pytest.fixture(autouse=True)
def empty(hosts: dict[str, tuple[Identity, str]], buckets: Buckets, request: pytest.FixtureRequest) -> None:
    """Each test begins with empty folders (where nothing is locked)."""
    for kind in ("plain", "versions"):
        store = buckets.open(kind, hosts[f"{kind} mail-host"][1])
        for key in keys(store):
            store.delete(ObjectKey(key))
        store.close()


@pytest.mark.parametrize("kind", ["plain", "versions"])
def test_the_mail_host_adds_and_reads_what_it_needs_and_no_more(open_as: As, kind: str) -> None:
    store = open_as(kind, "mail-host")
    assert store.traits.versions == (kind == "versions")
    for key in (VAULT, KEY, ENTRY, ACT):
        store.put(key, b"x")
    with store.create(OTHER) as writer:
        writer.write(b"pack")
        writer.commit()
    assert keys(store) == sorted([VAULT, KEY, OTHER, ENTRY, ACT])
    for key in (VAULT, ENTRY, ACT):
        assert store.get(key, 10) == b"x"
    for use in (lambda: store.get(KEY, 10), lambda: store.delete(KEY), lambda: store.delete(ENTRY)):
        with pytest.raises(StoreRefused, match="AccessDenied"):
            use()
    assert keys(store) == sorted([VAULT, KEY, OTHER, ENTRY, ACT])


@pytest.mark.parametrize("kind", ["plain", "versions"])
def test_the_prune_host_removes(open_as: As, kind: str) -> None:
    mail, prune = open_as(kind, "mail-host"), open_as(kind, "prune-host")
    mail.put(KEY, b"x")
    prune.put(ACT, b"act")
    assert prune.get(KEY, 10) == b"x"
    prune.delete(KEY)
    assert keys(mail) == [ACT]


@pytest.mark.parametrize("kind", ["plain", "versions"])
def test_the_restore_host_reads_and_changes_nothing(open_as: As, kind: str) -> None:
    mail, restore = open_as(kind, "mail-host"), open_as(kind, "restore-host")
    mail.put(KEY, b"x")
    assert restore.get(KEY, 10) == b"x"
    for use in (lambda: restore.put(ENTRY, b"x"), lambda: restore.delete(KEY)):
        with pytest.raises(StoreRefused, match="AccessDenied"):
            use()
    assert keys(restore) == [KEY]


def test_nobody_reaches_the_folder_of_another_host(open_as: As, buckets: Buckets) -> None:
    store = open_as("plain", "mail-host")
    store._address = type(store._address)(buckets.names["plain"], "another/")
    with pytest.raises(StoreRefused, match="AccessDenied"):
        store.put(VAULT, b"x")
    with pytest.raises(StoreRefused, match="AccessDenied"):
        store.get(VAULT, 10)


def test_a_lost_answer_is_recognised_by_a_host_that_may_not_read_packs(open_as: As, weed: Weed) -> None:
    with Proxy(weed.url) as proxy:
        store = open_as("versions", "mail-host", endpoint=proxy.url)
        proxy.rule(faults.LOST_ANSWER, method="PUT", times=1)
        store.put(KEY, b"pack" * 1000)
        assert proxy.faults() == 1
    assert keys(open_as("versions", "mail-host")) == [KEY]


def test_what_a_thief_of_the_mail_host_s_credentials_does_is_seen_through(open_as: As, hosts: Any, weed: Weed, buckets: Buckets) -> None:
    mail = open_as("versions", "mail-host")
    mail.put(ENTRY, b"genuine")
    mail.put(KEY, b"genuine pack")
    user, folder = hosts["versions mail-host"]
    thief = weed.client_of(user)
    bucket = buckets.names["versions"]
    for key in (ENTRY, KEY):
        thief.put_object(Bucket=bucket, Key=f"{folder}/{key}", Body=b"forged")
        with pytest.raises(thief.exceptions.ClientError):
            thief.delete_object(Bucket=bucket, Key=f"{folder}/{key}")
        for version in thief.list_object_versions(Bucket=bucket, Prefix=f"{folder}/{key}")["Versions"]:
            with pytest.raises(thief.exceptions.ClientError):
                thief.delete_object(Bucket=bucket, Key=f"{folder}/{key}", VersionId=version["VersionId"])
    with pytest.raises(thief.exceptions.ClientError):
        thief.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    thief.close()
    reader = open_as("versions", "restore-host")
    assert keys(reader) == sorted([ENTRY, KEY])
    assert reader.get(ENTRY, 100) == b"genuine"
    assert reader.get(KEY, 100) == b"genuine pack"


def test_a_lock_holds_against_the_prune_host(open_as: As) -> None:
    mail, prune = open_as("lock", "mail-host", lock_days=1), open_as("lock", "prune-host", lock_days=1)
    key = entry_key(int(time.time()) % 100_000)
    mail.put(key, b"locked")
    with pytest.raises(StoreRefused, match="locked until"):
        prune.delete(key)
    assert prune.get(key, 10) == b"locked"


def test_a_host_that_may_not_ask_for_the_lock_finds_out_when_it_writes(
    weed: Weed, buckets: Buckets, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = buckets.folder()
    policy = policies(buckets.names["plain"], folder)["mail-host"]
    policy["Statement"][0]["Action"].remove("s3:GetBucketObjectLockConfiguration")
    user = weed.user(f"cannot-ask-{uuid.uuid4().hex[:8]}", policy)
    _wait_for(weed, user, buckets.names["plain"], folder)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", user.key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", user.secret)
    store = buckets.open("plain", folder, lock_days=1)
    with pytest.raises(StoreRefused) as caught:
        store.put(KEY, b"not locked")
    assert "lock_days = 0" in caught.value.hint
    store.close()
