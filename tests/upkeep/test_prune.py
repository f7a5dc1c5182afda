"""Pruning: what goes, what stays, what stands in the way, and what a kill leaves."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace as with_other

from mailbackup import app, keeping
from mailbackup.access import Context
from mailbackup.crypto.signing import SigningKey, seal_line
from mailbackup.errors import ChainBroken, ConflictError, KeyProblem, NotFound, PruneRefused, StoreRefused, StoreUnavailable, UsageError
from mailbackup.model import codec
from mailbackup.model.ids import PackId, act_key, entry_key
from mailbackup.model.ledger import Act, PackPart, PackRow
from mailbackup.model.options import RetentionConfig
from mailbackup.testing.wrapper import Wrapper
from mailbackup.upkeep.acts import add_act
from mailbackup.vault import commit, writer
from tests import craft
from tests.upkeep.keeper import Clock, Keeper, clock, keeper

__all__ = ["clock", "keeper"]


def test_what_no_snapshot_needs_goes_after_the_grace_period(keeper: Keeper):
    first = keeper.night("1")
    second = keeper.night("2")
    before = set(keeper.packs())
    dropped = keeper.prune()
    assert dropped.removed == 2
    assert (dropped.stores[0].dropped, dropped.freed_bytes, dropped.kept) == ((first - 1, first), 0, 1)
    assert set(keeper.packs()) == before, "the grace period has begun"
    keeper.wait(8)
    keeper.audited()
    done = keeper.prune()
    assert first in done.stores[0].gone
    assert second not in done.stores[0].gone
    assert done.freed_bytes > 60_000
    assert set(keeper.packs()) < before | set(keeper.packs())
    kept = [seq for seq in keeper.committed() if seq not in keeper.book().dropped]
    assert kept
    for seq in kept:
        keeper.check_restores(seq)
    assert keeper.prune().freed_bytes == 0, "a second run has nothing to do"


def test_pruning_twice_signs_one_act(keeper: Keeper):
    keeper.night("1")
    keeper.prune()
    keeper.prune()
    assert len(keeper.book().acts) == 1


def test_nothing_that_an_audit_has_not_seen_goes(keeper: Keeper):
    keeper.night("1")
    keeper.night("2")
    keeper.prune()
    keeper.wait(8)
    with pytest.raises(PruneRefused, match="no keyed audit yet") as caught:
        keeper.prune()
    assert "verify --decrypt" in caught.value.hint
    planned = keeper.prune(planned=True)
    assert planned.stores[0].guards == ("audit",)
    assert planned.stores[0].waiting > 60_000


def test_the_newest_never_go(keeper: Keeper):
    keeper.night("1")
    keeper.retention = RetentionConfig()
    with pytest.raises(UsageError, match="no retention"):
        keeper.prune()
    newest = keeper.night("2")
    keeper.retention = RetentionConfig(last=0, yearly=1)
    keeper.prune()
    assert newest not in keeper.book().dropped
    assert newest in keeper.prune(remove_last=True).stores[0].dropped or newest not in keeper.book().dropped


def test_pins_hold_and_let_go(keeper: Keeper):
    first = keeper.night("1")
    keeping.pin(keeper.context, (first,), note="before the move", release=False, key_file=keeper.key_file)
    keeper.night("2")
    keeper.prune()
    assert first not in keeper.book().dropped
    keeping.pin(keeper.context, (first,), note="", release=True, key_file=keeper.key_file)
    keeper.prune()
    assert first in keeper.book().dropped


def test_undelete_takes_back(keeper: Keeper):
    first = keeper.night("1")
    keeper.night("2")
    keeper.prune()
    keeping.undelete(keeper.context, (first,), key_file=keeper.key_file)
    keeper.wait(9)
    keeper.audited()
    keeper.prune()
    keeper.check_restores(first)
    with pytest.raises(NotFound, match="was not dropped"):
        keeping.undelete(keeper.context, (first,), key_file=keeper.key_file)


def test_undelete_is_too_late_after_the_grace_period(keeper: Keeper):
    first = keeper.night("1")
    keeper.night("2")
    keeper.prune()
    keeper.wait(8)
    keeper.audited()
    keeper.prune()
    with pytest.raises(NotFound, match="grace period is over"):
        keeping.undelete(keeper.context, (first,), key_file=keeper.key_file)


def test_silence_stops_it(keeper: Keeper):
    keeper.night("1")
    keeper.night("2")
    keeper.clock.ahead += 86400 * 30
    with pytest.raises(PruneRefused, match="the newest snapshot is of"):
        keeper.prune()
    keeping.ack(keeper.context, ("silence",), note="the server is retired", key_file=keeper.key_file)
    keeper.prune()


def test_a_freeze_waits_for_a_human(keeper: Keeper):
    keeper.night("1")
    keeper.lose_state()
    keeper.night("2")
    with pytest.raises(PruneRefused, match="the state was lost"):
        keeper.prune()
    keeping.ack(keeper.context, ("freeze",), note="the disk was replaced", key_file=keeper.key_file)
    assert keeper.prune().removed


def test_too_much_at_once_waits_for_a_human(keeper: Keeper):
    keeper.night("1", size=8_000_000)
    keeper.night("2")
    keeper.prune()
    keeper.wait(8)
    keeper.audited()
    with pytest.raises(PruneRefused, match=r"% of the .* bytes that live") as caught:
        keeper.prune()
    size = int(caught.value.hint.rsplit("--bytes ", 1)[1].rstrip("'."))
    keeping.ack(keeper.context, ("share",), size=size, note="a film went", key_file=keeper.key_file)
    assert keeper.prune().freed_bytes > 8_000_000


def test_a_clock_that_went_back_stops_it(keeper: Keeper):
    keeper.night("1")
    keeper.night("2")
    keeper.prune()
    keeper.night("3")
    keeper.clock.ahead -= 86400 * 2
    with pytest.raises(PruneRefused, match="but act 1 is of"):
        keeper.prune()


def test_a_key_that_nobody_named(keeper: Keeper):
    keeper.night("1")
    stranger = SigningKey.generate()
    with open(keeper.key_file, "w", encoding="ascii") as file:
        file.write(stranger.seed_hex)
    with pytest.raises(KeyProblem, match="not named for pruning") as caught:
        keeper.prune()
    assert f"vault trust add prune {stranger.public}" in caught.value.hint
    with contextlib.closing(keeper.store()) as store, pytest.raises(ChainBroken, match="not signed by someone trusted"):
        keeper.prune_store(store, stranger)
        keeper.prune_store(store)


def test_a_broken_chain_stops_it(keeper: Keeper):
    keeper.night("1")
    keeper.night("2")
    with open(f"{keeper.vault}/{entry_key(2)}", "ab") as file:
        file.write(b"x")
    with pytest.raises(ChainBroken):
        keeper.prune()


def test_acts_that_were_cut_are_noticed(keeper: Keeper):
    first = keeper.night("1")
    keeper.night("2")
    keeper.prune()
    keeping.undelete(keeper.context, (first,), key_file=keeper.key_file)
    os.unlink(f"{keeper.vault}/acts/0000000002.json")
    with pytest.raises(ChainBroken, match="act 2, seen before, is not there any more"):
        keeper.prune()


def test_acts_of_another_store_are_refused(tmp_path: Path, clock: Clock):
    keeper = Keeper(tmp_path, clock, stores=2)
    keeper.first_day()
    keeper.night("1")
    keeper.night("2")
    keeping.prune_stores(keeper.using("local"), key_file=keeper.key_file)
    os.makedirs(f"{keeper.vault}-2/acts", exist_ok=True)
    shutil.copy(f"{keeper.vault}/acts/0000000001.json", f"{keeper.vault}-2/acts/0000000001.json")
    with pytest.raises(ChainBroken, match="store local-2 holds the acts of store local"):
        keeping.prune_stores(keeper.using("local-2"), key_file=keeper.key_file)


class Dying(Wrapper):
    """A store whose deletions end after some."""

    left = 0

    def delete(self, key):
        if self.left == 0:
            raise StoreUnavailable("it is gone")
        self.left -= 1
        super().delete(key)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_killed_run_is_no_damage_and_the_next_one_ends_it(keeper: Keeper, left: int):
    keeper.night("1")
    keeper.night("2")
    keeper.prune()
    keeper.wait(8)
    keeper.audited()
    Dying.left = left
    keeper.store_hook = Dying
    with pytest.raises(StoreUnavailable):
        keeper.prune()
    keeper.store_hook = None
    assert keeper.verify().outcome == "clean"
    assert keeper.prune().stores[0].deleted
    checked = keeper.verify(decrypt=True)
    assert checked.outcome == "clean", checked.findings
    keeper.backup()


class Locked(Wrapper):
    """A store that lets nothing go."""

    def delete(self, key):
        raise StoreRefused(f"{key} is locked until 2030-01-01")


def test_locked_objects_are_counted_and_tried_again(keeper: Keeper):
    keeper.night("1")
    keeper.night("2")
    keeper.prune()
    keeper.wait(8)
    keeper.audited()
    keeper.store_hook = Locked
    done = keeper.prune()
    assert done.stores[0].locked > 0
    assert done.freed_bytes == 0
    assert keeper.prune().stores[0].locked == done.stores[0].locked
    keeper.store_hook = None
    assert keeper.prune().freed_bytes > 60_000


def test_what_an_interrupted_run_left_goes_when_it_is_old(keeper: Keeper):
    keeper.night("1")
    stray = f"{keeper.vault}/packs/ab/ab{'0' * 30}"
    os.makedirs(os.path.dirname(stray), exist_ok=True)
    with open(stray, "wb") as file:
        file.write(b"half a night")
    keeper.prune()
    assert os.path.exists(stray)
    keeper.wait(8)
    keeper.prune()
    assert not os.path.exists(stray)


def test_dry_run_changes_nothing_and_says_why(keeper: Keeper):
    first = keeper.night("1")
    second = keeper.night("2")
    before = keeper.objects()
    planned = keeper.prune(planned=True, key_file=None)
    assert keeper.objects() == before
    told = {row.seq: row for row in planned.reasons}
    assert not told[first].keep
    assert told[second].keep
    assert all(row.reasons for row in told.values())


def test_snapshots_shows_what_was_dropped_pinned_and_is_gone(keeper: Keeper):
    first = keeper.night("1")
    second = keeper.night("2")
    keeping.pin(keeper.context, (first,), note="before the move", release=False, key_file=keeper.key_file)
    keeper.prune()
    rows = {row.seq: row for row in app.snapshots(keeper.context)}
    assert (rows[first].pinned, rows[first].dropped) == ("before the move", ())
    assert (rows[first - 1].pinned, rows[first - 1].dropped) == (None, ("local",))
    keeper.wait(8)
    keeper.audited()
    keeper.prune()
    assert first - 1 not in {row.seq for row in app.snapshots(keeper.context)}
    assert second in {row.seq for row in app.snapshots(keeper.context)}


def test_a_broken_store_does_not_keep_the_others_from_being_pruned(tmp_path: Path, clock: Clock):
    keeper = Keeper(tmp_path, clock, stores=2)
    keeper.first_day()
    keeper.night("1")
    keeper.night("2")
    with open(f"{keeper.vault}/{entry_key(2)}", "ab") as file:
        file.write(b"x")
    done = keeper.prune()
    assert [(store.name, store.outcome) for store in done.stores] == [("local", "failed"), ("local-2", "pruned")]
    assert (done.outcome, done.exit_status) == ("failed", 4)
    assert done.stores[1].dropped


def test_a_run_that_was_paused_for_days_begins_anew(keeper: Keeper, monkeypatch: pytest.MonkeyPatch):
    head = keeper.ledger()[-1]["seq"]
    keeper.deliver("new.m:2,", b"Subject: new\n\n" + os.urandom(40_000))
    with monkeypatch.context() as patch:
        patch.setattr(writer, "LEFT_OVER_SECONDS", -1)
        with pytest.raises(ConflictError, match="paused"):
            keeper.backup()
    assert keeper.ledger()[-1]["seq"] == head
    assert keeper.backup().new_messages == 1


class Silent(Wrapper):
    """A store that takes no entries."""

    def put(self, key, data):
        if key.startswith("ledger/"):
            raise StoreUnavailable("away")
        super().put(key, data)


def test_what_waited_for_its_entry_for_days_is_sent_again(keeper: Keeper, monkeypatch: pytest.MonkeyPatch):
    before = set(keeper.packs())
    keeper.deliver("new.m:2,", b"Subject: new\n\n" + os.urandom(40_000))
    keeper.store_hook = Silent
    with pytest.raises(StoreUnavailable):
        keeper.backup()
    keeper.store_hook = None
    left_over = set(keeper.packs()) - before
    with monkeypatch.context() as patch:
        patch.setattr(commit, "LEFT_OVER_SECONDS", -1)
        seq = keeper.backup().seq
    for pack in left_over:
        os.unlink(pack)
    keeper.check_restores(seq)
    assert keeper.verify(decrypt=True).outcome == "clean"


def registered(keeper: Keeper) -> list[PackRow]:
    """All packs that entries register."""
    return [row for seq in range(1, craft.head_of(keeper) + 1) for row in craft.parsed(craft.raw_entry(keeper, seq)).packs]


@pytest.mark.parametrize("lie", [{"blocks": 0, "size": 0}, {"blocks": 1}, {"size": -1}])
def test_a_writer_that_registers_a_pack_again_makes_nothing_go(keeper: Keeper, lie: dict[str, int]):
    """With no blocks every pack would count as dead; with others, what lives as stopped."""
    keeper.night("1")
    keeper.prune()
    rows = registered(keeper)
    craft.append(keeper, craft.writer_key(keeper), type="packs", packs=tuple(with_other(row, **lie) for row in rows))
    keeper.clock.ahead += 86400 * 6.9
    keeper.audited()
    before = set(keeper.packs())
    with pytest.raises(ChainBroken, match="was registered before"):
        keeper.prune()
    assert set(keeper.packs()) == before
    assert keeper.verify().outcome == "damaged"


def test_a_size_that_the_writer_claims_does_not_make_the_share_small(keeper: Keeper):
    keeper.night("1", size=8_000_000)
    keeper.night("2")
    keeper.prune()
    keeper.wait(8)
    row = registered(keeper)[0]
    craft.append(keeper, craft.writer_key(keeper), type="packs", packs=(with_other(row, id=PackId("0" * 32), size=10**15),))
    keeper.audited()
    with pytest.raises(PruneRefused, match=r"% of the .* bytes that live"):
        keeper.prune()


def test_a_time_that_is_none_is_not_believed(keeper: Keeper):
    keeper.night("1")
    craft.append(keeper, craft.writer_key(keeper), type="packs", time="later")
    assert keeper.prune(planned=True).outcome == "planned"


def test_a_ledger_that_ends_before_what_an_act_saw(keeper: Keeper):
    keeper.night("1")
    keeper.prune()
    last = keeper.ledger()[-1]["seq"]
    os.unlink(f"{keeper.vault}/{entry_key(last)}")
    context = keeper.context
    forgetful = Context(config=context.config, config_path=context.config_path, state_dir=f"{keeper.root}/elsewhere")
    with pytest.raises(ChainBroken, match="newer entries are missing"):
        keeping.prune_stores(forgetful, key_file=keeper.key_file)


def test_an_act_of_nobody_stops_no_backup(keeper: Keeper):
    keeper.night("1")
    keeper.prune()
    stranger = SigningKey.generate()
    act = Act(format=1, vault=keeper.anchors.vault, chain=keeper.book().chain or "", seq=2, prev=keeper.book().acts[0].sha256, type="pin",
              time="2026-11-24T02:30:00Z", signer=stranger.public)  # fmt: skip
    with contextlib.closing(keeper.store()) as store:
        store.put(act_key(2), seal_line(codec.encode(act), stranger))
    assert keeper.backup().outcome == "complete"
    with pytest.raises(ChainBroken) as caught:
        keeper.prune()
    assert "removes it" in caught.value.hint


def test_a_store_that_was_away_is_named(tmp_path: Path, clock: Clock):
    keeper = Keeper(tmp_path, clock, stores=2)
    keeper.first_day()
    first = keeper.night("1")
    os.rename(f"{keeper.vault}-2", f"{keeper.root}/away")
    made = keeping.pin(keeper.context, (first,), note="x", release=False, key_file=keeper.key_file)
    assert list(made.acts) == ["local"]
    assert list(made.without) == ["local-2"]


def test_what_was_seen_and_cannot_be_read(keeper: Keeper):
    keeper.night("1")
    keeper.prune()
    with open(f"{keeper.state}/acts.json", "w", encoding="ascii"):
        pass
    with pytest.raises(UsageError, match="cannot read what was seen"):
        keeper.prune()


def test_what_a_writer_says_it_never_sent_makes_nothing_go(keeper: Keeper):
    """`received-without` explains why an object is not there; an object that is there stays, and is kept as before."""
    keeper.retention = RetentionConfig(last=99)
    keeper.night("1")
    seqs = tuple(keeper.committed())
    registry, _ = keeper.registry()
    dead = tuple(PackPart(id=pack) for pack in registry.packs)
    with contextlib.closing(keeper.store()) as store:
        add_act(store, keeper.anchors, craft.writer_key(keeper), "received-without", lambda _: {"snapshots": seqs, "packs": dead})
    keeper.wait(8)
    keeper.audited()
    before = set(keeper.objects())
    done = keeper.prune()
    assert (done.stores[0].dropped, done.stores[0].gone, done.stores[0].deleted) == ((), (), 0)
    assert before <= set(keeper.objects())
    for seq in seqs:
        keeper.check_restores(seq)
