"""A store that is filled, or brought up, after others were pruned: it lacks what is gone there, and says so; nothing else is excused."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailbackup import app, replication
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import DamageError, StoreUnavailable
from mailbackup.model.ids import ObjectKey, PackId, pack_key
from mailbackup.model.ledger import PackPart
from mailbackup.stores.base import Store
from mailbackup.stores.local import LocalStore
from mailbackup.upkeep.acts import Book, add_act, read_book
from mailbackup.upkeep.copying import Pruned, absent_snapshots, record_without
from tests import craft
from tests.several.outages import down
from tests.vault.past import Past, letter

CAROL = "carol@example.org"


@pytest.fixture
def past(tmp_path: Path) -> Past:
    """Three snapshots; a pack of the second holds nothing that lives. Of the second store, which is configured later, there is nothing yet."""
    past = Past(tmp_path / "host")
    past.first_day()
    past.backup()
    past.deliver("50.large:2,S", letter("large", os.urandom(60_000)), CAROL)
    past.settle()
    past.backup()
    shutil.rmtree(os.path.dirname(past.maildir(CAROL)))
    past.settle()
    assert past.backup(accept_shrink=True).outcome in ("complete", "explained")
    return past


def add_second(past: Past) -> None:
    with open(past.config_path, "a") as file:
        file.write(f'\n[[store]]\nname = "second"\nurl = "file://{past.vault}-2"\n')
    past._config = None


def prune(past: Past) -> tuple[list[PackId], int]:
    """Let the second snapshot go, and what only it needed: an act, then the deletion. Returns the packs and the snapshot."""
    registry, _ = past.registry()
    gone = past.committed()[1]
    packs = [pack for pack, life in registry.packs.items() if life.is_dead and life.since >= gone]
    assert packs
    with closing_store(past) as store:
        parts = tuple(PackPart(id=pack) for pack in packs)
        add_act(store, past.anchors, past.admin, "prune", lambda _: {"gone": (gone,), "packs": parts})
        for key in [*map(pack_key, packs), *(ObjectKey(key) for key, _ in store.list("snapshots/") if int(key[10:20]) == gone)]:
            store.delete(key)
    return packs, gone


@contextlib.contextmanager
def closing_store(past: Past, number: int = 1) -> Iterator[Store]:
    path, name = (past.vault, "local") if number == 1 else (f"{past.vault}-2", "second")
    with contextlib.closing(LocalStore(path, name)) as store:
        yield store


def book_of(past: Past, number: int) -> Book:
    with closing_store(past, number) as store:
        return read_book(store, past.anchors)


def copy(past: Past) -> None:
    replication.copy_store(past.context, source=None, target="second")


def lacks_just(past: Past, packs: list[PackId], gone: int) -> None:
    """The second store has everything but what was pruned, its acts say so, and it is clean."""
    there = set(past.objects()) - {key for key in past.objects() if key.startswith("acts/")}
    with closing_store(past, 2) as store:
        here = {key for key, _ in store.list("") if not key.startswith("acts/")}
    assert here == there
    assert not any(pack_key(pack) in here for pack in packs)
    book = book_of(past, 2)
    assert set(packs) <= book.missing
    assert absent_snapshots(book) == {gone}
    assert app.verify(past.using("second"), decrypt=True).outcome == "clean"


def test_a_new_store_lacks_what_was_pruned_and_is_clean(past: Past) -> None:
    packs, gone = prune(past)
    add_second(past)
    copy(past)
    lacks_just(past, packs, gone)


def test_a_store_with_acts_of_its_own_says_what_it_never_got(past: Past) -> None:
    """It was away while the others were pruned, and had its own chain of acts by then."""
    behind = past.committed()[0]
    packs, gone = prune(past)
    fill_up_to(past, behind)
    with closing_store(past, 2) as store:
        add_act(store, past.anchors, past.admin, "ack", lambda _: {"guards": ("freeze",)})
    copy(past)
    lacks_just(past, packs, gone)
    (act,) = (link.act for link in book_of(past, 2).acts if link.act.type == "received-without")
    assert act.signer == craft.writer_key(past).public
    assert {part.id for part in act.packs} == set(packs)
    before = len(book_of(past, 2).acts)
    copy(past)
    assert len(book_of(past, 2).acts) == before, "what was said once is not said again"


def fill_up_to(past: Past, seq: int) -> None:
    """A second store that holds the ledger up to an entry, with all that this names."""
    add_second(past)
    shutil.copytree(past.vault, f"{past.vault}-2")
    shutil.rmtree(f"{past.vault}-2/acts")
    for key in [key for key in past.objects() if key.startswith("ledger/") and int(key[-15:-5]) > seq]:
        os.unlink(f"{past.vault}-2/{key}")
    registry, _ = past.registry()
    for key in [pack_key(pack) for pack, life in registry.packs.items() if life.since > seq]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{past.vault}-2/{key}")
    for key in [key for key in past.objects() if key.startswith("snapshots/") and int(key[10:20]) > seq]:
        os.unlink(f"{past.vault}-2/{key}")


def test_the_next_run_brings_up_a_store_and_says_what_it_never_got(past: Past) -> None:
    packs, gone = prune(past)
    fill_up_to(past, past.committed()[0])
    past.deliver("60.next:2,S", letter("next"))
    result = past.backup()
    assert [store.outcome for store in result.stores] == ["current", "current"]
    lacks_just(past, packs, gone)


def test_a_snapshot_that_is_missing_and_was_never_pruned_stops_the_copy(past: Past) -> None:
    add_second(past)
    key = next(key for key in past.objects() if key.startswith("snapshots/"))
    os.unlink(f"{past.vault}/{key}")
    with pytest.raises(DamageError):
        copy(past)


def test_a_dead_pack_that_is_missing_and_was_never_pruned_is_not_excused(past: Past) -> None:
    registry, _ = past.registry()
    dead = next(pack for pack, life in registry.packs.items() if life.is_dead)
    os.unlink(f"{past.vault}/{pack_key(dead)}")
    add_second(past)
    copy(past)
    assert dead not in book_of(past, 2).missing
    assert app.verify(past.using("second")).outcome == "damaged"


def test_an_act_never_excuses_a_pack_with_a_live_block(past: Past) -> None:
    """Whoever holds a prune key says that a pack is gone which the newest snapshot needs; the first store still has it."""
    registry, _ = past.registry()
    live = next(pack for pack, life in registry.packs.items() if not life.is_dead)
    with closing_store(past) as store:
        add_act(store, past.anchors, past.admin, "prune", lambda _: {"packs": (PackPart(id=live),)})
    fill_up_to(past, 1)
    os.unlink(f"{past.vault}/{pack_key(live)}")
    with pytest.raises(DamageError):
        copy(past)
    assert live not in book_of(past, 2).missing


@pytest.mark.parametrize("after", range(2, 40, 6))
def test_a_copy_that_was_cut_off_ends_clean(past: Past, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    packs, gone = prune(past)
    fill_up_to(past, 1)
    hook, real = down("second", after), replication.open_store
    with monkeypatch.context() as patch:
        patch.setattr(replication, "open_store", lambda *args, **kwargs: hook(real(*args, **kwargs)))
        with contextlib.suppress(StoreUnavailable):
            copy(past)
    copy(past)
    lacks_just(past, packs, gone)


def test_without_a_key_nothing_is_said(past: Past) -> None:
    prune(past)
    fill_up_to(past, 1)
    os.unlink(app.writer_key_path(past.config_path))
    copy(past)
    assert book_of(past, 2).acts == []


def test_what_has_a_live_block_is_never_called_absent(past: Past) -> None:
    registry, _ = past.registry()
    live = next(pack for pack, life in registry.packs.items() if not life.is_dead)
    dead = next(pack for pack, life in registry.packs.items() if life.is_dead)
    with closing_store(past) as store:
        for pack in (live, dead):
            store.delete(pack_key(pack))
        said = Pruned(frozenset({live, dead, PackId("0" * 32)}), frozenset())
        assert record_without(store, past.anchors, craft.writer_key(past), said) == 1
    assert book_of(past, 1).missing == {dead}


def test_a_key_that_nobody_named_says_nothing(past: Past) -> None:
    registry, _ = past.registry()
    dead = next(pack for pack, life in registry.packs.items() if life.is_dead)
    with closing_store(past) as store:
        store.delete(pack_key(dead))
        assert record_without(store, past.anchors, SigningKey.generate(), Pruned(frozenset({dead}), frozenset())) is None
    assert book_of(past, 1).acts == []
