"""Each fault of the line or the service, met by each verb: the right result or the right error, nothing half, nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mailbackup.errors import KeyExists, MailbackupError, ObjectDamaged, StoreRefused, StoreUnavailable
from mailbackup.model.ids import ObjectKey, entry_key
from mailbackup.stores.base import Store
from mailbackup.stores.s3.store import S3Store
from mailbackup.testing.store_contract import KEY, OTHER
from tests.stores.s3 import proxy as faults
from tests.stores.s3.conftest import Open
from tests.stores.s3.proxy import Fault, Proxy
from tests.stores.s3.server import Weed

DATA = bytes(range(256)) * 2000  # 500 KiB: more than the buffers of a connection
LIMIT = 1 << 20
ENTRY = entry_key(1)

PASSING = [faults.RESET, faults.SLOW, faults.SLOW_DOWN, faults.INTERNAL, faults.LOST_ANSWER]
REFUSING = [faults.EXPIRED, faults.SKEWED, faults.DENIED, faults.QUOTA]


@pytest.fixture
def proxy(weed: Weed) -> Iterator[Proxy]:
    with Proxy(weed.url) as between:
        yield between


@pytest.fixture
def direct(open_one: Open) -> S3Store:
    """The store past the proxy, which holds one object."""
    store = open_one()
    store.put(OTHER, DATA)
    return store


@pytest.fixture
def store(open_one: Open, direct: S3Store, proxy: Proxy) -> S3Store:
    """The same behind the proxy."""
    found = open_one(endpoint=proxy.url, patience=8)
    proxy.forget()
    return found


def create(store: Store, key: ObjectKey) -> None:
    with store.create(key) as writer:
        writer.write(DATA[:1000])
        writer.write(DATA[1000:])
        writer.commit()


WRITES: dict[str, Callable[[Store], None]] = {
    "put": lambda store: store.put(KEY, DATA),
    "create": lambda store: create(store, KEY),
    "put an entry": lambda store: store.put(ENTRY, DATA),
}
READS: dict[str, tuple[Callable[[Store], object], object]] = {
    "get": (lambda store: store.get(OTHER, LIMIT), DATA),
    "get_range": (lambda store: store.get_range(OTHER, 1000, 300_000), DATA[1000:301_000]),
    "stream": (lambda store: b"".join(store.stream(OTHER, 10_000)), DATA),
    "stat": (lambda store: store.stat(OTHER).size, len(DATA)),
    "list": (lambda store: [key for key, _ in store.list()], [OTHER]),
    "prefixes": (lambda store: store.prefixes(""), ("packs/",)),
}


def objects(store: Store) -> dict[str, bytes]:
    return {key: store.get(ObjectKey(key), LIMIT) for key, _ in store.list()}


def written(name: str) -> dict[str, bytes]:
    return {OTHER: DATA, ENTRY if "entry" in name else KEY: DATA}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("fault", [*PASSING, faults.CONFLICT, faults.CUT_REQUEST, faults.FLIPPED_REQUEST], ids=lambda fault: fault.name)
def test_a_write_survives_what_passes(direct: S3Store, store: S3Store, proxy: Proxy, fault: Fault, name: str, times: int) -> None:
    proxy.rule(fault, method="PUT", times=times)
    WRITES[name](store)
    assert proxy.faults() >= 1
    assert objects(direct) == written(name)


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("fault", [*PASSING, faults.CUT_ANSWER], ids=lambda fault: fault.name)
def test_a_read_survives_what_passes(store: S3Store, proxy: Proxy, fault: Fault, name: str) -> None:
    proxy.rule(fault, times=2)
    read, expected = READS[name]
    assert read(store) == expected
    assert proxy.faults() >= 1


@pytest.mark.parametrize("name", [*WRITES, *READS])
@pytest.mark.parametrize("fault", REFUSING, ids=lambda fault: fault.name)
def test_refusals_are_told_at_once(direct: S3Store, store: S3Store, proxy: Proxy, fault: Fault, name: str) -> None:
    proxy.rule(fault)
    use: Callable[[Store], Any] = WRITES[name] if name in WRITES else READS[name][0]
    with pytest.raises(StoreRefused) as caught:
        use(store)
    assert caught.value.hint
    assert fault.answer is not None
    if name != "stat":  # an answer to HEAD has no text, and boto3 looks whether the bucket lies elsewhere
        assert fault.answer[1] in caught.value.message
        assert len(proxy.requests) == 1
    assert objects(direct) == {OTHER: DATA}


@pytest.mark.parametrize("name", [*WRITES, *READS])
@pytest.mark.parametrize("fault", [faults.RESET, faults.SLOW_DOWN], ids=lambda fault: fault.name)
def test_what_does_not_pass_ends_as_unavailable(direct: S3Store, proxy: Proxy, open_one: Open, fault: Fault, name: str) -> None:
    store = open_one(endpoint=proxy.url, patience=1)
    proxy.rule(fault)
    use: Callable[[Store], Any] = WRITES[name] if name in WRITES else READS[name][0]
    with pytest.raises(StoreUnavailable):
        use(store)
    assert proxy.faults() > 1
    assert objects(direct) == {OTHER: DATA}


@pytest.mark.parametrize("name", WRITES)
def test_an_answer_that_is_always_lost_leaves_the_whole_object_or_none(direct: S3Store, proxy: Proxy, open_one: Open, name: str) -> None:
    store = open_one(endpoint=proxy.url, patience=1)
    proxy.rule(faults.LOST_ANSWER, method="PUT")
    with pytest.raises(StoreUnavailable):
        WRITES[name](store)
    assert objects(direct) == written(name)


@pytest.mark.parametrize("name", WRITES)
def test_after_a_failed_try_the_object_of_another_is_not_ours(direct: S3Store, store: S3Store, proxy: Proxy, name: str) -> None:
    key = ENTRY if "entry" in name else KEY
    proxy.rule(Fault("lost", delay=0.5, lose="request"), method="PUT", times=1)
    other = DATA[:-1] + b"!"
    direct.put(key, other)
    with pytest.raises(KeyExists):
        WRITES[name](store)
    assert objects(direct) == {OTHER: DATA, key: other}


def test_a_second_put_of_the_same_bytes_is_refused_where_nothing_failed(store: S3Store) -> None:
    store.put(KEY, DATA)
    with pytest.raises(KeyExists):
        store.put(KEY, DATA)


@pytest.mark.parametrize("name", ["get", "stream"])
def test_a_wrong_byte_on_the_line_is_noticed(store: S3Store, proxy: Proxy, name: str) -> None:
    proxy.rule(faults.FLIPPED_ANSWER)
    with pytest.raises(ObjectDamaged, match="checksum"):
        READS[name][0](store)


def test_a_wrong_byte_that_does_not_come_again_is_no_damage(store: S3Store, proxy: Proxy) -> None:
    proxy.rule(faults.FLIPPED_ANSWER, times=1)
    assert store.get(OTHER, LIMIT) == DATA
    assert len(proxy.requests) == 2


def test_a_put_that_always_arrives_wrong_is_never_done(direct: S3Store, open_one: Open, proxy: Proxy) -> None:
    store = open_one(endpoint=proxy.url, patience=1)
    proxy.rule(faults.FLIPPED_REQUEST)
    with pytest.raises(MailbackupError):
        store.put(KEY, DATA)
    assert objects(direct) == {OTHER: DATA}


def test_a_stream_goes_on_where_it_broke(store: S3Store, proxy: Proxy) -> None:
    proxy.rule(faults.CUT_ANSWER, times=4)
    assert b"".join(store.stream(OTHER, 1000)) == DATA
    assert len(proxy.requests) == 5


def test_a_stream_does_not_mix_two_objects(direct: S3Store, open_one: Open, proxy: Proxy, weed: Weed) -> None:
    store = open_one(endpoint=proxy.url)
    proxy.rule(faults.CUT_ANSWER, times=1)
    pieces = store.stream(OTHER, 1000)
    next(pieces)
    weed.client().put_object(Bucket=direct._address.bucket, Key=direct._address.name(OTHER), Body=DATA[::-1])
    with pytest.raises(ObjectDamaged, match="replaced"):
        list(pieces)


def test_a_service_without_conditional_puts_is_not_trusted_silently(store: S3Store, proxy: Proxy) -> None:
    proxy.rule(faults.NOT_IMPLEMENTED, method="PUT")
    with pytest.raises(StoreRefused) as caught:
        store.put(KEY, DATA)
    assert "create_only = false" in caught.value.hint


def test_puts_and_reads_cost_one_request(store: S3Store, proxy: Proxy) -> None:
    store.put(KEY, DATA)
    create(store, ENTRY)
    store.get(KEY, LIMIT)
    store.get_range(KEY, 5, 5)
    list(store.stream(KEY))
    list(store.list())
    assert [(seen.method, seen.status) for seen in proxy.requests] == [("PUT", 200)] * 2 + [("GET", 200), ("GET", 206)] + [("GET", 200)] * 2


def test_no_more_requests_at_once_than_connections(direct: S3Store, open_one: Open, proxy: Proxy) -> None:
    store = open_one(endpoint=proxy.url, connections=3)
    proxy.forget()
    proxy.latency = 0.05
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda _: store.get_range(OTHER, 0, 10), range(24)))
    assert 2 <= proxy.most_in_flight <= 4  # a request leaves the proxy a moment after its answer
