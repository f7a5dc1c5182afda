"""The obligations of `mailbackup.stores.base`, one test each. A store's test subclasses `StoreContract` and gives `make_store`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from mailbackup.errors import KeyExists, ObjectDamaged, ObjectMissing
from mailbackup.model.ids import ObjectKey, PackId, entry_key, pack_key
from mailbackup.stores.base import Store

KEY = ObjectKey("packs/ab/" + "ab" + "0" * 30)
OTHER = ObjectKey("packs/cd/" + "cd" + "1" * 30)
VAULT = ObjectKey("vault.json")
MALFORMED = [
    *("", "x", "packs", "packs/", "../vault.json", "/etc/passwd", "packs/ab/../vault.json", ".tmp/x", "vault.json\0", "vault.json/"),
    *("a\nb", "packs/cd/" + "ab" + "0" * 30, "packs/AB/" + "AB" + "0" * 30, "ledger/1/1.json", "vault.json\n"),
]
LIMIT = 1 << 20
BIG = bytes(range(256)) * 8192  # 2 MiB: more than one piece of a stream

USES: dict[str, Callable[[Store, ObjectKey], object]] = {
    "put": lambda store, key: store.put(key, b"x"),
    "create": lambda store, key: store.create(key).__enter__(),
    "get": lambda store, key: store.get(key, LIMIT),
    "get_range": lambda store, key: store.get_range(key, 0, 1),
    "stream": lambda store, key: list(store.stream(key)),
    "stat": lambda store, key: store.stat(key),
    "delete": lambda store, key: store.delete(key),
}
READS = {verb: USES[verb] for verb in ("get", "get_range", "stream", "stat")}


BELOW = {
    "": 4,
    "ledger/": 3,
    "ledger/0000000001/": 2,
    "ledger/0000000001/0000000257": 1,
    "led": 3,
    "vault.json": 1,
    "vault.jsonx": 0,
    "x": 0,
    "packs/": 0,
    "ledger/0000000001/0000000257.json/": 0,
    "ledger/0000000009/": 0,
    "/": 0,
    "../": 0,
    "./": 0,
    "ledger/../": 0,
    "\0": 0,
    "\udcff": 0,
}
COMPONENTS: dict[str, tuple[str, ...]] = {
    "": ("ledger/", "packs/"),
    "led": ("ledger/",),
    "ledger/": ("ledger/0000000000/", "ledger/0000000001/"),
    "ledger/0000000001/": (),
    "packs/": ("packs/ab/",),
    "snapshots/": (),
    "../": (),
}


def keys(store: Store, prefix: str = "") -> list[str]:
    """The keys of a listing."""
    return [key for key, _ in store.list(prefix)]


class StoreContract:
    """Passed by every store. What a store says that it cannot do (its traits) is not asked of it."""

    LONG = 1100  # objects of a long listing: more than the 1000 keys of one page of an object store

    def make_store(self) -> Store:
        """A fresh, empty store."""
        raise NotImplementedError

    def reopen(self, store: Store) -> Store:
        """The same objects through a second, independent store where there is such a thing."""
        return store

    def plant(self, store: Store, key: str, data: bytes) -> None:
        """Put an object with a malformed key past the store; skip where that is impossible."""
        pytest.skip("this store cannot hold a malformed key")

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        """A fresh, empty store, closed afterwards."""
        store = self.make_store()
        yield store
        store.close()

    # ------------------------------------------------------------ put

    @pytest.mark.parametrize("data", [b"", b"\0", b"mail\r\n", BIG], ids=["empty", "nul", "text", "big"])
    def test_what_was_put_is_read_back(self, store: Store, data: bytes) -> None:
        store.put(KEY, data)
        store.flush()
        again = self.reopen(store)
        assert again.get(KEY, len(data)) == data
        assert b"".join(again.stream(KEY)) == data
        assert again.stat(KEY).size == len(data)
        assert again.get_range(KEY, 0, len(data)) == data
        assert keys(again) == [KEY]

    @pytest.mark.parametrize("second", [b"other", b"first"], ids=["other bytes", "same bytes"])
    def test_put_of_an_existing_key_is_refused_and_changes_nothing(self, store: Store, second: bytes) -> None:
        store.put(KEY, b"first")
        with pytest.raises(KeyExists, match=KEY):
            store.put(KEY, second)
        assert store.get(KEY, LIMIT) == b"first"
        assert keys(store) == [KEY]

    def test_of_concurrent_puts_exactly_one_wins(self, store: Store) -> None:
        if not store.traits.create_only:
            pytest.skip("the store says that it cannot")
        others = [store, self.reopen(store)]
        for seq in range(1, 11):
            winners = race([(others[n % 2], entry_key(seq), b"writer %d" % n * 500) for n in range(8)])
            assert len(winners) == 1
            assert store.get(entry_key(seq), LIMIT) == winners[0]
        assert len(keys(store)) == 10

    def test_concurrent_puts_of_different_keys_all_succeed(self, store: Store) -> None:
        names = [pack_key(PackId(f"{n:032x}")) for n in range(24)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put(key, key.encode()), names))
        assert keys(store) == sorted(names)
        assert all(store.get(key, LIMIT) == key.encode() for key in names)

    def test_an_entry_is_there_for_others_at_once_with_all_that_was_put_before(self, store: Store) -> None:
        store.put(KEY, b"pack")
        store.put(entry_key(1), b"entry")
        again = self.reopen(store)
        assert keys(again) == sorted([KEY, entry_key(1)])
        assert again.get(KEY, LIMIT) == b"pack"

    def test_flush_is_harmless_where_nothing_waits(self, store: Store) -> None:
        store.flush()
        store.put(KEY, b"pack")
        store.flush()
        store.flush()
        assert keys(self.reopen(store)) == [KEY]

    def test_nobody_stands_before_an_object_that_was_put_once(self, store: Store) -> None:
        store.put(KEY, b"x")
        store.put(VAULT, b"y")
        assert list(store.shadows()) == []
        assert list(store.shadows("packs/")) == []

    def test_a_lock_lasts_as_long_as_was_asked_for_or_there_is_none(self, store: Store) -> None:
        store.put(KEY, b"x")
        until = store.now() + 3 * 86400
        store.lock_until(KEY, until)
        store.lock_until(KEY, store.now() + 60)  # never shortens
        held = store.locked_until(KEY)
        if store.traits.object_lock:
            assert held is not None
            assert held >= until - 1
        else:
            assert held is None

    def test_there_is_nothing_behind_an_object_that_was_put_once(self, store: Store) -> None:
        store.put(KEY, b"pack")
        store.flush()
        assert not store.uncover(OTHER)
        assert not store.uncover(KEY)
        assert store.get(KEY, LIMIT) == b"pack"

    # ------------------------------------------------------------ create

    def test_an_object_appears_whole_at_commit_and_not_before(self, store: Store) -> None:
        with store.create(KEY) as writer:
            writer.write(BIG)
            writer.write(memoryview(BIG)[:1000])
            assert keys(store) == []
            assert store.prefixes("") == ()
            with pytest.raises(ObjectMissing):
                store.stat(KEY)
            writer.write(b"")
            writer.commit()
            assert keys(store) == [KEY]
        store.flush()
        assert self.reopen(store).get(KEY, 2 * len(BIG)) == BIG + BIG[:1000]

    def test_an_object_without_bytes_can_be_committed(self, store: Store) -> None:
        with store.create(KEY) as writer:
            writer.commit()
        assert store.stat(KEY).size == 0

    def test_leaving_without_commit_aborts(self, store: Store) -> None:
        with store.create(KEY) as writer:
            writer.write(b"half")
        self.assert_absent(store, KEY)

    def test_an_exception_inside_aborts_and_passes_through(self, store: Store) -> None:
        def fail() -> None:
            with store.create(KEY) as writer:
                writer.write(b"half")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        self.assert_absent(store, KEY)

    def test_after_abort_the_key_is_free(self, store: Store) -> None:
        with store.create(KEY) as writer:
            writer.write(b"half")
            writer.abort()
            writer.abort()
        store.put(KEY, b"whole")
        assert store.get(KEY, LIMIT) == b"whole"

    def test_abort_after_commit_is_harmless(self, store: Store) -> None:
        with store.create(KEY) as writer:
            writer.write(b"whole")
            writer.commit()
            writer.abort()
        assert store.get(KEY, LIMIT) == b"whole"

    def test_commit_of_an_existing_key_is_refused_and_changes_nothing(self, store: Store) -> None:
        with store.create(KEY) as writer:
            writer.write(b"second")
            store.put(KEY, b"first")
            with pytest.raises(KeyExists, match=KEY):
                writer.commit()
        assert store.get(KEY, LIMIT) == b"first"
        assert keys(store) == [KEY]

    @pytest.mark.parametrize("end", ["commit", "abort"])
    def test_an_ended_writer_takes_nothing_more(self, store: Store, end: str) -> None:
        with store.create(KEY) as writer:
            getattr(writer, end)()
            with pytest.raises(ValueError, match=KEY):
                writer.write(b"late")
            with pytest.raises(ValueError, match=KEY):
                writer.commit()

    # ------------------------------------------------------------ reading

    @pytest.mark.parametrize("verb", READS)
    def test_reading_an_absent_object_is_object_missing(self, store: Store, verb: str) -> None:
        store.put(OTHER, b"neighbour")
        with pytest.raises(ObjectMissing, match=KEY):
            READS[verb](store, KEY)

    def test_get_refuses_an_object_longer_than_its_limit(self, store: Store) -> None:
        store.put(KEY, b"12345")
        for limit in (0, 1, 4):
            with pytest.raises(ObjectDamaged, match=KEY):
                store.get(KEY, limit)

    def test_ranges_inside(self, store: Store) -> None:
        store.put(KEY, b"0123456789")
        for offset, length in [(0, 10), (0, 1), (3, 4), (9, 1), (5, 0), (10, 0)]:
            assert store.get_range(KEY, offset, length) == b"0123456789"[offset : offset + length]

    def test_ranges_outside_are_damage(self, store: Store) -> None:
        store.put(KEY, b"0123456789")
        for offset, length in [(0, 11), (9, 2), (10, 1), (11, 0), (1 << 40, 1), (0, 1 << 40)]:
            with pytest.raises(ObjectDamaged, match=KEY):
                store.get_range(KEY, offset, length)

    def test_negative_ranges_are_a_bug_of_the_caller(self, store: Store) -> None:
        store.put(KEY, b"0123456789")
        for offset, length in [(-1, 1), (0, -1), (-5, -5)]:
            with pytest.raises(ValueError, match="range"):
                store.get_range(KEY, offset, length)

    def test_stream_gives_pieces_of_at_most_the_size_asked_for(self, store: Store) -> None:
        store.put(KEY, BIG)
        pieces = list(store.stream(KEY, 100_000))
        assert b"".join(pieces) == BIG
        assert all(0 < len(piece) <= 100_000 for piece in pieces)

    def test_a_stream_can_be_left_early(self, store: Store) -> None:
        store.put(KEY, BIG)
        assert next(iter(store.stream(KEY, 10))) == BIG[:10]
        store.delete(KEY)

    def test_concurrent_reads_do_not_disturb_each_other(self, store: Store) -> None:
        store.put(KEY, BIG)

        def read(n: int) -> bool:
            return store.get_range(KEY, n * 1001, 5000) == BIG[n * 1001 : n * 1001 + 5000] and b"".join(store.stream(KEY)) == BIG

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(32)))

    # ------------------------------------------------------------ listing

    def test_an_empty_store_lists_nothing(self, store: Store) -> None:
        assert keys(store) == []
        assert store.prefixes("") == ()

    def test_list_is_ordered_by_key_with_sizes_and_times(self, store: Store) -> None:
        names = sorted([*map(entry_key, (1, 2, 255, 256, 257, 600)), KEY, OTHER, VAULT, ObjectKey("acts/0000000001.json")])
        for size, key in enumerate(reversed(names)):
            store.put(key, b"x" * size)
        found = list(store.list())
        assert [key for key, _ in found] == names
        assert [stat.size for _, stat in found] == list(reversed(range(len(names))))
        assert all(stat == store.stat(ObjectKey(key)) for key, stat in found)

    def test_a_long_listing_is_complete(self, store: Store) -> None:
        names = [entry_key(seq) for seq in range(1, self.LONG + 1)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put(key, b""), names))
        assert keys(store) == names
        assert keys(store, "ledger/0000000004/") == [name for name in names if name.startswith("ledger/0000000004/")]

    def test_list_below_a_prefix(self, store: Store) -> None:
        for key in (VAULT, *map(entry_key, (1, 256, 257))):
            store.put(key, b"")
        for prefix, count in BELOW.items():
            assert len(keys(store, prefix)) == count, prefix
            assert all(key.startswith(prefix) for key in keys(store, prefix))

    def test_prefixes_are_the_next_components(self, store: Store) -> None:
        for key in (VAULT, KEY, *map(entry_key, (1, 256, 257))):
            store.put(key, b"")
        for prefix, found in COMPONENTS.items():
            assert store.prefixes(prefix) == found, prefix

    def test_a_prefix_whose_objects_are_gone_is_gone(self, store: Store) -> None:
        store.put(KEY, b"")
        store.put(OTHER, b"")
        store.delete(KEY)
        assert store.prefixes("packs/") == ("packs/cd/",)

    @pytest.mark.parametrize("key", ["zzz", "packs/ab/short", "ledger/x", "a b\n", "packs/AB"])
    def test_malformed_keys_are_listed(self, store: Store, key: str) -> None:
        self.plant(store, key, b"what is this")
        store.put(VAULT, b"")
        assert keys(store) == sorted([key, VAULT])

    # ------------------------------------------------------------ delete, keys

    def test_a_deleted_object_is_gone_and_its_key_free(self, store: Store) -> None:
        store.put(KEY, b"old")
        store.put(OTHER, b"neighbour")
        store.delete(KEY)
        self.assert_absent(store, KEY)
        assert store.get(OTHER, LIMIT) == b"neighbour"
        store.put(KEY, b"new")
        assert store.get(KEY, LIMIT) == b"new"

    def test_deleting_what_is_absent_succeeds(self, store: Store) -> None:
        store.delete(KEY)
        store.put(OTHER, b"neighbour")
        store.delete(KEY)
        assert keys(store) == [OTHER]

    @pytest.mark.parametrize("verb", USES)
    def test_a_malformed_key_is_a_bug_of_the_caller(self, store: Store, verb: str) -> None:
        for key in MALFORMED:
            with pytest.raises(ValueError, match="malformed"):
                USES[verb](store, ObjectKey(key))
        assert keys(store) == []

    def assert_absent(self, store: Store, key: ObjectKey) -> None:
        """No verb sees the object."""
        assert key not in keys(store)
        for use in READS.values():
            with pytest.raises(ObjectMissing):
                use(store, key)


def race(puts: list[tuple[Store, ObjectKey, bytes]]) -> list[bytes]:
    """All puts at the same time, each in a thread; the bytes of those that succeeded. KeyExists is the only way to lose."""
    start = threading.Barrier(len(puts))

    def attempt(put: tuple[Store, ObjectKey, bytes]) -> bytes | None:
        store, key, data = put
        start.wait()
        try:
            store.put(key, data)
        except KeyExists:
            return None
        return data

    with ThreadPoolExecutor(len(puts)) as pool:
        return [data for data in pool.map(attempt, puts) if data is not None]
