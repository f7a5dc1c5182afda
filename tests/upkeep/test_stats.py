"""What `stats` says of a store is what lies in it, and it says so without a key."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from mailbackup.cli.stats import summary
from mailbackup.errors import ChainBroken
from mailbackup.model.ids import PackId, digest, entry_key, pack_key
from mailbackup.model.ledger import Head, PackPart, PackRow
from mailbackup.model.results import MailboxLine, StatsResult, StoreStats
from mailbackup.upkeep.acts import add_act
from mailbackup.upkeep.stats import Period, gains, period_of, store_stats
from mailbackup.vault.chain import find_head
from tests.craft import admin_key, append, parsed, raw_entry, writer_key
from tests.world import World

BOB = "bob@example.org"


def mail(name: str) -> bytes:
    return b"Subject: %s\n\n" % name.encode() + os.urandom(60_000)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Three snapshots of two mailboxes. Bob's mailbox, and with it whole packs, is gone from the third on."""
    world = World(tmp_path / "host")
    for number in range(2):
        world.deliver(f"{number}.m:2,S", mail(f"mail {number}"))
        world.deliver(f"{number}.b:2,S", mail(f"for bob {number}"), BOB)
        world.settle()
        assert world.backup().outcome == "complete"
    for number in range(2):
        os.unlink(f"{world.maildir(BOB)}/cur/{number}.b:2,S")
    world.settle()
    assert world.backup(accept_shrink=True).outcome != "incomplete"
    return world


def stats_of(world: World, by: Period = "month") -> StoreStats:
    with contextlib.closing(world.store()) as store:
        return store_stats(store, world.context.anchors, by)


def pack_sizes(world: World) -> dict[str, int]:
    return {key: os.path.getsize(f"{world.vault}/{key}") for key in world.objects() if key.startswith("packs/")}


def act(world: World, kind: str, **members: object) -> None:
    with contextlib.closing(world.store()) as store:
        raw = raw_entry(world, find_head(store))
        members = {"head": Head(seq=parsed(raw).seq, sha256=digest(raw)), **members}
        add_act(store, world.context.anchors, admin_key(world), kind, lambda _: dict(members))  # type: ignore[arg-type]


def fake_pack(number: int, size: int, blocks: int = 4) -> PackRow:
    return PackRow(id=PackId(f"{number:032x}"), size=size, sha256="a" * 64, blocks=blocks, footer="b" * 64, epoch=1)


def test_what_is_there(world: World):
    """Packs, snapshots and records are what lies in the store."""
    os.unlink(world.kit)  # nobody needs it
    found, sizes = stats_of(world), pack_sizes(world)
    assert (found.packs, found.bytes) == (len(sizes), sum(sizes.values()))
    assert (found.snapshots, found.dropped, found.acts, found.freed, found.absent) == (3, 0, 0, 0, 0)
    lying = sum(os.path.getsize(f"{world.vault}/{key}") for key in world.objects() if key.startswith(("ledger/", "snapshots/", "lists/")))
    assert found.records == lying
    assert found.live + found.dead == found.bytes
    assert 0 < found.stopped < found.blocks


def test_packs_die_and_are_freed(world: World):
    """Blocks that stop make a pack die; a pack that an act lets go is there no more."""
    before = stats_of(world)
    append(world, writer_key(world), packs=(fake_pack(1, 1000), fake_pack(2, 500), fake_pack(3, 370)))
    append(world, writer_key(world), type="snapshot", outcome="complete", stops=((PackId(f"{1:032x}"), "0-3"), (PackId(f"{2:032x}"), "0")))
    found = stats_of(world)
    assert (found.dead - before.dead, found.live - before.live, found.stopped - before.stopped) == (1000, 870, 1)
    act(world, "prune", snapshots=(2,), packs=(PackPart(id=PackId(f"{1:032x}")), PackPart(id=PackId("f" * 32))))
    act(world, "prune", packs=(PackPart(id=PackId(f"{1:032x}")),))  # named twice, freed once
    act(world, "received-without", packs=(PackPart(id=PackId(f"{3:032x}")),))
    after = stats_of(world)
    assert (after.freed, after.absent, after.dropped, after.acts) == (1000, 370, 1, 3)
    assert (after.bytes, after.dead) == (found.bytes - 1370, before.dead)
    assert sum(row.freed for row in after.growth) == 1000
    assert sum(row.added for row in after.growth) - 1000 == after.bytes  # what never came was never added


def test_a_left_over_that_came_later_is_there(world: World):
    """An act named it before any entry did: it speaks of what was not registered then."""
    act(world, "prune", packs=(PackPart(id=PackId(f"{1:032x}")),))
    append(world, writer_key(world), packs=(fake_pack(1, 1000),))
    assert (stats_of(world).freed, stats_of(world).bytes) == (0, 1000 + sum(pack_sizes(world).values()))


def test_pins_count(world: World):
    act(world, "prune", snapshots=(2,))
    act(world, "undelete", snapshots=(2,), note="needed")
    assert (stats_of(world).dropped, stats_of(world).pinned) == (0, 1)


def test_growth_by_period(world: World):
    """Each entry counts in the period of its time, and each total is what lies there at its end."""
    for number, time in enumerate(("2027-01-03T23:59:59Z", "2027-01-04T00:00:00Z", "2027-01-04T10:00:00Z", "2027-02-01T00:00:00Z"), 1):
        append(world, writer_key(world), packs=(fake_pack(number, 10 ** (number + 3)),), time=time)
    act(world, "prune", packs=(PackPart(id=PackId(f"{1:032x}")),), time="2027-02-02T00:00:00Z")
    start = sum(pack_sizes(world).values())
    days = stats_of(world, "day").growth
    assert [(row.period, row.added, row.freed) for row in days[-4:]] == [
        ("2027-01-03", 10_000, 0), ("2027-01-04", 1_100_000, 0), ("2027-02-01", 10_000_000, 0), ("2027-02-02", 0, 10_000),
    ]  # fmt: skip
    weeks = stats_of(world, "week").growth
    assert [(row.period, row.added) for row in weeks[-3:]] == [("2026-W53", 10_000), ("2027-W01", 1_100_000), ("2027-W05", 10_000_000)]
    months = stats_of(world, "month").growth
    assert [(row.period, row.packs, row.total - start) for row in months[-2:]] == [("2027-01", 3, 1_110_000), ("2027-02", 1, 11_100_000)]
    assert months[-1].total == stats_of(world).bytes
    assert sum(row.snapshots for row in days) == 3


def test_periods():
    assert period_of("2026-12-31T23:30:00-01:00", "day") == "2027-01-01"
    assert period_of("2027-01-01T00:00:00Z", "week") == "2026-W53"
    assert period_of("2027-01-01T00:00:00Z", "month") == "2027-01"


def test_a_store_that_lies_is_not_believed(world: World):
    """Whoever has the store could else make people prune, or not."""
    seq = parsed(raw_entry(world, 2)).seq
    os.unlink(f"{world.vault}/{entry_key(seq)}")
    with pytest.raises(ChainBroken):
        stats_of(world)


def test_packs_are_not_counted_in_the_store(world: World):
    """What is missing there is for `verify` to find."""
    before = stats_of(world)
    os.unlink(f"{world.vault}/{pack_key(PackId(os.path.basename(next(iter(pack_sizes(world))))))}")
    assert stats_of(world) == before


# ---------------------------------------------------------------- for people


def test_summary(world: World):
    found = stats_of(world)
    box = MailboxLine(address="alice@example.org", location="mail", key="k", messages=2, bytes=120_000, stale=False)
    text = list(summary(StatsResult(stores=(found,), mailboxes=(box,), gains=gains(3, 2 * found.live, found))))
    assert text[0] == "store local:"
    assert any(line.startswith("period") for line in text)
    assert text[-3].endswith("live in the store: 2.00 to 1")
    assert text[-1].split() == ["alice@example.org", "2", "117.2", "KiB", "mail"]


def test_no_gain_of_nothing():
    nothing = StoreStats(
        name="x", head=1, snapshots=0, dropped=0, pinned=0, acts=0, packs=0, bytes=0, live=0, blocks=0, stopped=0, dead=0, freed=0, absent=0, records=1,
        growth=(),
    )  # fmt: skip
    assert gains(1, 5, nothing).ratio is None
