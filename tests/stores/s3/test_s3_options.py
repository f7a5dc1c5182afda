"""What `[[store]]` can say of a bucket, seen on the server; and services that answer otherwise than asked."""

from __future__ import annotations

import io
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.response import StreamingBody

from mailbackup.errors import KeyExists, NoSpace, ObjectDamaged, StoreRefused
from mailbackup.model.ids import entry_key
from mailbackup.stores.s3 import payload
from mailbackup.stores.s3.store import S3Store
from mailbackup.testing.store_contract import KEY, OTHER, VAULT
from tests.stores.s3.conftest import Open
from tests.stores.s3.server import Weed

DATA = bytes(range(256)) * 4000  # 1 MiB


def seen(weed: Weed, store: S3Store, key: str) -> dict[str, Any]:
    return dict(weed.client().head_object(Bucket=store._address.bucket, Key=store._address.name(key), ChecksumMode="ENABLED"))


def test_only_packs_get_the_storage_class(open_one: Open, weed: Weed) -> None:
    store = open_one(storage_class="STANDARD_IA")
    store.put(KEY, b"pack")
    store.put(VAULT, b"card")
    assert seen(weed, store, KEY)["StorageClass"] == "STANDARD_IA"
    assert seen(weed, store, VAULT).get("StorageClass", "STANDARD") == "STANDARD"


def test_every_object_gets_the_tags(open_one: Open, weed: Weed) -> None:
    store = open_one(tags={"purpose": "backup & more", "x": "1"})
    for key in (KEY, VAULT):
        store.put(key, b"x")
        tags = weed.client().get_object_tagging(Bucket=store._address.bucket, Key=store._address.name(key))["TagSet"]
        assert {tag["Key"]: tag["Value"] for tag in tags} == {"purpose": "backup & more", "x": "1"}


def test_encryption_by_the_service_is_asked_for(open_one: Open) -> None:
    """Only asked: the test server answers 500 to it, which is what it does without a key service."""
    asked = open_one(sse="aws:kms", sse_key="alias/backup")._wishes(KEY)
    assert (asked["ServerSideEncryption"], asked["SSEKMSKeyId"]) == ("aws:kms", "alias/backup")
    assert "ServerSideEncryption" not in open_one()._wishes(KEY)


def test_the_checksum_is_kept_by_the_service(open_one: Open, weed: Weed) -> None:
    store = open_one()
    store.put(KEY, DATA)
    with store.create(OTHER) as writer:
        writer.write(DATA)
        writer.commit()
    expected = payload.Payload.of(DATA).checksum
    assert seen(weed, store, KEY)["ChecksumSHA256"] == seen(weed, store, OTHER)["ChecksumSHA256"] == expected


@pytest.mark.parametrize("verb", ["put", "create", "get", "get_range", "stream"])
def test_the_bandwidth_is_kept_to(open_one: Open, verb: str) -> None:
    open_one().put(KEY, DATA)
    store = open_one(bandwidth=1_000_000)
    uses = {
        "put": lambda: [store.put(OTHER, DATA), store.put(VAULT, b"")],
        "create": lambda: _create(store),
        "get": lambda: store.get(KEY, len(DATA)),
        "get_range": lambda: store.get_range(KEY, 0, len(DATA)),
        "stream": lambda: b"".join(store.stream(KEY, 100_000)),
    }
    begin = time.monotonic()
    uses[verb]()
    assert 0.7 < time.monotonic() - begin < 4
    assert store.get(KEY if verb != "create" else OTHER, len(DATA)) == DATA


def _create(store: S3Store) -> None:
    with store.create(OTHER) as writer:
        writer.write(DATA)
        writer.commit()


def test_a_full_spool_is_no_space(open_one: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_one()
    with store.create(KEY) as writer:
        writer._spool.file.close()  # type: ignore[attr-defined]
        monkeypatch.setattr(writer._spool, "file", open("/dev/full", "wb", buffering=0))  # type: ignore[attr-defined]  # noqa: SIM115
        with pytest.raises(NoSpace):
            writer.write(DATA * 4)
    assert list(store.list()) == []


def test_where_nothing_refuses_a_name_that_is_taken_it_is_looked_for(open_one: Open) -> None:
    store = open_one(create_only=False)
    assert not store.traits.create_only
    store.put(entry_key(1), b"first")
    with pytest.raises(KeyExists):
        store.put(entry_key(1), b"second")
    assert store.get(entry_key(1), 100) == b"first"


def test_and_what_another_put_meanwhile_is_noticed(open_one: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = open_one(create_only=False), open_one(create_only=False)
    call = store._client.call

    def late(operation: str, *args: Any, **parameters: Any) -> dict[str, Any]:
        answer = call(operation, *args, **parameters)
        if operation == "put_object":
            name = {"Bucket": store._address.bucket, "Key": parameters["Key"]}
            other._client._boto.put_object(**name, Body=b"another's")
        return answer

    monkeypatch.setattr(store._client, "call", late)
    with pytest.raises(KeyExists):
        store.put(KEY, b"ours")


# ------------------------------------------------------------ other services


def _answer(status: int, data: bytes, **more: Any) -> dict[str, Any]:
    return {
        "Body": StreamingBody(io.BytesIO(data), len(data)),
        "ContentLength": len(data),
        "LastModified": datetime.now(UTC),
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {}},
        **more,
    }


def _answers(store: S3Store, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]) -> None:
    monkeypatch.setattr(store._client, "call", lambda *_, **__: answer)


def test_a_service_that_ignores_ranges_gives_the_right_bytes(open_one: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_one()
    _answers(store, monkeypatch, _answer(200, b"0123456789"))
    assert store.get_range(KEY, 3, 4) == b"3456"


def test_and_is_found_too_short(open_one: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_one()
    _answers(store, monkeypatch, _answer(200, b"0123456789"))
    with pytest.raises(ObjectDamaged):
        store.get_range(KEY, 3, 8)


@pytest.mark.parametrize("said", ["bytes 0-3/10", "bytes 2-6/10", "bytes 3-5/10", "bytes 3-7/10", "", "nonsense"])
def test_a_service_that_answers_another_range_is_refused(open_one: Open, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    store = open_one()
    _answers(store, monkeypatch, _answer(206, b"3456", ContentRange=said))
    with pytest.raises(StoreRefused, match="other bytes"):
        store.get_range(KEY, 3, 4)


def test_a_service_that_stored_something_else_is_refused(open_one: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_one()
    _answers(store, monkeypatch, {"ChecksumSHA256": "bm90IHRoaXM="})
    with pytest.raises(StoreRefused, match="other bytes"):
        store.put(KEY, b"this")


def test_objects_of_others_in_the_bucket_are_not_seen(open_one: Open, weed: Weed) -> None:
    store = open_one()
    store.put(KEY, b"ours")
    bucket, folder = store._address.bucket, store._address.folder
    for name in (f"{folder.rstrip('/')}2/vault.json", f"{folder.rstrip('/')}.txt"):
        weed.client().put_object(Bucket=bucket, Key=name, Body=b"theirs")
    weed.client().put_object(Bucket=bucket, Key=folder, Body=b"")  # what a console makes
    assert [key for key, _ in store.list()] == [KEY]
    assert store.prefixes("") == ("packs/",)


def test_spools_do_not_lie_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    assert payload.spool_folder() == "/var/tmp"
    monkeypatch.setenv("TMPDIR", "/somewhere")
    assert payload.spool_folder() is None
