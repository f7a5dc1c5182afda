"""What the store lost is sent again by the next run, as far as the source still has it, and the run says so."""

import os

import pytest

from mailbackup import app
from mailbackup.content import writer as packing
from mailbackup.errors import ObjectMissing, StoreUnavailable
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import blob_id
from mailbackup.model.results import BackupResult
from mailbackup.testing.faults import FailOnce, flip_bit, swap, truncate
from tests.vault.past import LARGE, Past, letter

HEALED = FindingKind.HEALED


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two snapshots; every block is a pack of its own."""
    monkeypatch.setattr(packing, "PACK_TARGET", 1)
    made = Past(tmp_path)
    made.first_day()
    made.backup()
    made.second_day()
    made.settle()
    made.backup()
    made.save("whole")
    return made


def live_packs(world: Past) -> list[str]:
    """Paths of the packs that the newest snapshot needs."""
    return [f"{world.vault}/packs/{pack[:2]}/{pack}" for pack in sorted({pack for pack, _ in world.live_in_ledger()})]


def damaging_snapshots(world: Past) -> set[int]:
    """The snapshots that `verify --decrypt` finds damaged."""
    findings = world.verify(decrypt=True).findings
    return {seq for finding in findings if not finding.harmless for seq in finding.snapshots}


def check_healed(world: Past, result: BackupResult, old: set[int]) -> None:
    """The run said what it did, the new snapshot is whole, and of the old ones exactly those that are said to be damaged cannot be restored."""
    assert [finding.kind for finding in result.findings] == [HEALED]
    assert result.outcome == "explained"
    world.check_restores(result.seq)
    world.check_no_waste()
    damaged = damaging_snapshots(world)
    assert damaged
    assert damaged <= old
    for seq in old - damaged:
        world.check_restores(seq)
    again = world.backup()
    assert (again.outcome, again.findings, again.bytes_stored) == ("complete", (), 0)


@pytest.mark.case("27")
def test_each_lost_pack_is_sent_again(world):
    """Whatever was in it: bodies, headers, flags, facts, a mailbox's tree, the mailbox table, segments of a directory, its files."""
    packs = live_packs(world)
    assert len(packs) > 12
    for pack in packs:
        world.put_back("whole")
        os.unlink(pack)
        check_healed(world, world.backup(), {2, 3})


def test_everything_is_lost(world):
    for pack in world.packs():
        os.unlink(pack)
    check_healed(world, world.backup(), {2, 3})


@pytest.mark.parametrize("kind", ["truncated", "replaced", "named by an act"])
def test_damaged_packs_are_sent_again(world, kind):
    packs = live_packs(world)
    if kind == "truncated":
        for pack in packs[::2]:
            truncate(pack, -1)
    elif kind == "replaced":
        largest, smallest = max(packs, key=os.path.getsize), min(packs, key=os.path.getsize)
        swap(largest, smallest)
    else:
        for pack in packs:
            flip_bit(pack, 100)  # nothing that a listing shows
        world.damage_act(packs)
    check_healed(world, world.backup(), {2, 3})


def test_an_act_that_lies_costs_bytes_only(world):
    world.damage_act(live_packs(world))
    result = world.backup()
    assert [finding.kind for finding in result.findings] == [HEALED]
    world.check_restores(result.seq)
    world.check_no_waste()
    world.check_restores(2)


def test_lost_and_gone_at_the_source(world):
    """Nobody has it any more: the new snapshot is whole without it, and only the old ones are damaged."""
    for pack in world.packs():
        os.unlink(pack)
    os.unlink(f"{world.maildir()}/cur/3.small:2,S")
    os.unlink(f"{world.home}/notes")
    world.folder(".Trash")
    check_healed(world, world.backup(), {2, 3})


def test_lost_before_but_not_needed_any_more(world):
    """A pack that only old snapshots need is not looked for: nothing can bring it back, and `verify` says what is damaged."""
    old = set(world.packs()) - set(live_packs(world))
    for pack in old:
        os.unlink(pack)
    result = world.backup()
    assert (result.outcome, result.bytes_stored) == ("complete", 0)
    assert damaging_snapshots(world) == {2}
    world.check_restores(3)


@pytest.mark.case("27")
def test_the_loss_is_told_by_the_first_snapshot_that_is_made(world):
    """A run that meets the loss and dies later has told nobody."""
    os.unlink(live_packs(world)[0])
    world.store_hook = lambda store: FailOnce(store, "create", "packs/*", StoreUnavailable("gone"))
    with pytest.raises(StoreUnavailable):
        world.backup()
    world.store_hook = None
    check_healed(world, world.backup(), {2, 3})


def test_a_rebuilt_state_knows_what_is_lost(world):
    """The trees of the newest snapshot may refer to what the store lost: that must not be taken for present."""
    rebuilt = 0
    for pack in live_packs(world):
        world.put_back("whole")
        os.unlink(pack)
        world.lose_state()
        try:
            app.state_rebuild(world.context)
        except ObjectMissing:  # it was a tree: without it there is nothing to begin with
            result = world.backup()
            assert result.outcome == "explained"
            world.check_restores(result.seq)
            world.check_no_waste()
            continue
        rebuilt += 1
        check_healed(world, world.backup(), {2, 3})
    assert rebuilt > 4


def test_content_that_several_mailboxes_share_is_sent_once(world):
    """A large body that two mailboxes have, and a third one by now: one block, for all of them."""
    ((pack,),) = world.sql(f"SELECT pack.id FROM blob JOIN pack ON pack.no = blob.pack WHERE blob.id = x'{blob_id(LARGE)}'")
    os.unlink(f"{world.vault}/packs/{pack[:2]}/{pack}")
    world.deliver("40.copy:2,", letter("a third copy", LARGE), "carol@example.net")
    result = world.backup()
    assert [finding.kind for finding in result.findings] == [HEALED]
    world.check_restores(result.seq)
    world.check_no_waste()
    assert len(world.sql(f"SELECT 1 FROM blob WHERE id = x'{blob_id(LARGE)}'")) == 1
