"""A trial finds what a store does not keep of what its traits promise; it changes nothing and never raises."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from mailbackup.errors import ObjectMissing, StoreRefused, StoreUnavailable
from mailbackup.model.ids import ObjectKey, entry_key
from mailbackup.stores.base import ObjectStat, Store
from mailbackup.stores.local import LocalStore
from mailbackup.stores.memory import MemoryStore
from mailbackup.stores.probe import StoreProbe, probe
from mailbackup.testing.store_contract import KEY, LIMIT, OTHER, VAULT, keys
from mailbackup.testing.wrapper import Wrapper

INFO = b'{"format":1,"vault":"..."}'
ALL = ["create-only", "ranges", "listing", "absent objects", "clock", "versions", "object lock", "packs"]


def filled(store: Store) -> Store:
    """With all that a probe looks at."""
    for key in (VAULT, KEY, entry_key(1)):
        store.put(key, INFO)
    return store


@pytest.fixture(params=["memory", "local"])
def vault(request: pytest.FixtureRequest, root: str) -> Iterator[Store]:
    """A store with the beginnings of a vault."""
    if request.param == "memory":
        yield filled(MemoryStore())
        return
    LocalStore.create_root(root)
    with contextlib.closing(LocalStore(root, "cellar")) as store:
        yield filled(store)


def assert_healthy(found: list[StoreProbe], but: str = "") -> None:
    """All outcomes but one are those of a healthy store without versions and locks."""
    healthy = {"versions": "unknown", "object lock": "unknown"}
    assert [row.name for row in found] == ALL
    assert all(row.outcome == healthy.get(row.name, "ok") for row in found if row.name != but)
    assert all(row.hint for row in found if row.outcome == "failed")


def named(found: list[StoreProbe], name: str) -> StoreProbe:
    """The outcome of one trial; the others are those of a healthy store."""
    assert_healthy(found, name)
    return next(row for row in found if row.name == name)


def test_a_healthy_store_passes_and_nothing_is_left_behind(vault: Store) -> None:
    before = list(vault.list())
    found = probe(vault)
    assert_healthy(found)
    assert [row.detail for row in found if row.outcome == "unknown"] == [
        "not kept: whoever can write may overwrite",
        "not used: whoever can delete may delete",
    ]
    assert list(vault.list()) == before
    assert vault.get(VAULT, LIMIT) == INFO


def test_nothing_is_deleted(vault: Store) -> None:
    class NoDelete(Wrapper):
        def delete(self, key: ObjectKey) -> None:
            raise AssertionError(f"a probe deletes {key}")

    assert_healthy(probe(NoDelete(vault)))


def test_a_store_that_ignores_the_condition(vault: Store) -> None:
    class Ignores(Wrapper):
        written: tuple[ObjectKey, bytes] | None = None

        def put(self, key: ObjectKey, data: bytes) -> None:
            self.written = (key, data)

    store = Ignores(vault)
    found = named(probe(store), "create-only")
    assert found.outcome == "failed"
    assert "create_only = false" in found.hint
    assert store.written == (VAULT, INFO)


def test_a_store_that_says_that_it_replaces_is_not_written_to(vault: Store) -> None:
    class Replaces(Wrapper):
        def put(self, key: ObjectKey, data: bytes) -> None:
            raise AssertionError(f"a probe writes {key}")

    store = Replaces(vault)
    store.traits = replace(store.traits, create_only=False)
    found = named(probe(store), "create-only")
    assert found.outcome == "unknown"
    assert "Let only this host write" in found.hint


def test_ranges_that_are_not_those_of_the_object(vault: Store) -> None:
    class Whole(Wrapper):
        def get_range(self, key: ObjectKey, offset: int, length: int) -> bytes:
            return self.inner.get(key, LIMIT)[:length]  # as a proxy does that ignores Range

    assert named(probe(Whole(vault)), "ranges").outcome == "failed"


def test_ranges_that_cost_more_than_they_return(vault: Store) -> None:
    store = Wrapper(vault)
    store.traits = replace(store.traits, range_reads=False)
    assert named(probe(store), "ranges").outcome == "unknown"


@pytest.mark.parametrize("hidden", [VAULT, "ledger/"])
def test_a_listing_that_hides_objects(vault: Store, hidden: str) -> None:
    class Hides(Wrapper):
        def list(self, prefix: str = "") -> Iterator[tuple[str, ObjectStat]]:
            return ((key, found) for key, found in self.inner.list(prefix) if not key.startswith(hidden))

        def prefixes(self, prefix: str) -> tuple[str, ...]:
            return () if prefix == hidden else self.inner.prefixes(prefix)

    assert named(probe(Hides(vault)), "listing").outcome == "failed"


def test_a_store_that_cannot_tell_absent_from_refused(vault: Store) -> None:
    class Forbids(Wrapper):
        def stat(self, key: ObjectKey) -> ObjectStat:
            try:
                return self.inner.stat(key)
            except ObjectMissing:
                raise StoreRefused("forbidden", hint="allow listing") from None

    found = named(probe(Forbids(vault)), "absent objects")
    assert (found.outcome, found.detail, found.hint) == ("failed", "forbidden", "allow listing")


def test_a_store_that_has_everything(vault: Store) -> None:
    class Claims(Wrapper):
        def stat(self, key: ObjectKey) -> ObjectStat:
            return ObjectStat(1, 0)

    assert named(probe(Claims(vault)), "absent objects").outcome == "failed"


@pytest.mark.parametrize(("ahead", "outcome"), [(-(10**8), "ok"), (60, "ok"), (3600, "failed")])
@pytest.mark.parametrize("trusted", [False, True])
def test_a_clock_ahead(vault: Store, ahead: int, outcome: str, trusted: bool) -> None:
    class Ahead(Wrapper):
        def stat(self, key: ObjectKey) -> ObjectStat:
            return ObjectStat(self.inner.stat(key).size, time.time() + ahead)

    store = Ahead(vault)
    store.traits = replace(store.traits, trusted_time=trusted)
    assert named(probe(store), "clock").outcome == outcome


def test_versions_and_locks_are_told() -> None:
    store = Wrapper(filled(MemoryStore()))
    store.traits = replace(store.traits, versions=True, object_lock=True)
    told = {row.name: row for row in probe(store)}
    assert (told["versions"].outcome, told["versions"].detail) == ("ok", "versions are kept")
    assert told["object lock"].outcome == "ok"


def test_a_vault_without_packs() -> None:
    store = filled(MemoryStore())
    store.delete(KEY)
    assert named(probe(store), "packs").detail == "there is none yet"


def test_packs_that_this_host_may_not_read(vault: Store) -> None:
    class WriteOnly(Wrapper):
        def get_range(self, key: ObjectKey, offset: int, length: int) -> bytes:
            if key.startswith("packs/"):
                raise StoreRefused("AccessDenied")
            return self.inner.get_range(key, offset, length)

    found = named(probe(WriteOnly(vault)), "packs")
    assert found.outcome == "unknown"
    assert "other credentials (AccessDenied)" in found.detail


def test_the_newest_pack_of_a_folder_is_read(root: str) -> None:
    class Notes(Wrapper):
        read: str = ""

        def get_range(self, key: ObjectKey, offset: int, length: int) -> bytes:
            self.read = key
            return self.inner.get_range(key, offset, length)

    LocalStore.create_root(root)
    with contextlib.closing(LocalStore(root, "cellar")) as store:
        newer, older = ObjectKey("packs/cd/cd" + "0" * 30), OTHER
        for key in (VAULT, KEY, entry_key(1), newer, older):
            store.put(key, INFO)
        os.utime(f"{root}/{older}", (1, 1))
        noting = Notes(store)
        assert_healthy(probe(noting))
        assert noting.read == newer


@pytest.mark.parametrize("error", [StoreUnavailable("gone away"), RuntimeError("gone away")], ids=["error", "bug"])
def test_every_error_is_an_outcome(error: Exception) -> None:
    class Broken(Wrapper):
        def get(self, key: ObjectKey, limit: int) -> bytes:
            raise error

        def stat(self, key: ObjectKey) -> ObjectStat:
            raise error

        get_range = list = prefixes = put = get  # type: ignore[assignment]

    found = probe(Broken(MemoryStore()))
    outcomes = {row.name: row.outcome for row in found}
    assert [name for name in ALL if outcomes[name] == "failed"] == [*ALL[:5], "packs"]
    assert all(row.hint for row in found if row.outcome == "failed")


def test_an_interrupted_trial_ends(vault: Store) -> None:
    class Interrupted(Wrapper):
        def prefixes(self, prefix: str) -> tuple[str, ...]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(Interrupted(vault))
    assert keys(vault) == sorted([VAULT, KEY, entry_key(1)])
