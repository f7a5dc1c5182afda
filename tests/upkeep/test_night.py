"""The night of a machine that prunes, as a job; and `stats` of several stores."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from msgspec.structs import replace as with_other

from mailbackup import growth
from mailbackup.access import Context
from mailbackup.errors import StoreUnavailable
from mailbackup.jobs.run import run_job
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import PackId
from mailbackup.model.job import Job
from tests.upkeep.keeper import Clock, Keeper, clock, keeper
from tests.world import World

__all__ = ["clock", "keeper"]

NIGHT = Job(name="prune", cron="45 5 * * *", parts=("scrub", "prune"))


def pruning(keeper: Keeper) -> Context:
    """The configuration of the machine that prunes: with the key, and a state of its own."""
    made = keeper.context
    config = with_other(made.config, retention=with_other(keeper.retention, key_file=keeper.key_file))
    return Context(config=config, config_path=made.config_path, state_dir=f"{keeper.root}/prune-state")


def test_the_night_scrubs_and_prunes(keeper: Keeper):
    keeper.night("1")
    keeper.night("2")
    done = run_job(pruning(keeper), NIGHT)
    assert [(part.name, part.outcome) for part in done.parts] == [("scrub", "done"), ("prune", "done")], done
    assert "2 dropped" in done.parts[1].detail
    assert len(keeper.book().dropped) == 2
    assert not os.path.exists(f"{keeper.root}/prune-state/state.db")


def test_what_the_night_finds_damaged_is_signed_and_sent_again(keeper: Keeper):
    keeper.night("1")
    pack = max(keeper.packs(), key=os.path.getsize)
    with open(pack, "r+b") as file:
        file.seek(os.path.getsize(pack) // 2)
        file.write(b"\0" * 64)
    done = run_job(pruning(keeper), NIGHT)
    assert done.exit_status == 4
    assert set(keeper.book().damaged) == {PackId(os.path.basename(pack))}
    assert FindingKind.HEALED in {finding.kind for finding in keeper.backup().findings}
    assert keeper.restore("out").outcome == "complete"


def test_a_refusal_is_the_status_of_the_night(keeper: Keeper):
    keeper.night("1")
    keeper.night("2")
    keeper.clock.ahead += 30 * 86400
    done = run_job(pruning(keeper), NIGHT)
    assert done.exit_status == 8
    assert "the newest snapshot is of" in done.parts[1].detail


def test_a_night_without_a_key_prunes_nothing(keeper: Keeper):
    keeper.night("1")
    done = run_job(keeper.context, NIGHT)
    assert done.parts[1].outcome == "skipped"
    assert "no signing key was named" in done.parts[1].detail


def test_stats_of_two_stores(tmp_path: Path, clock: Clock):
    world = World(tmp_path, stores=2)
    world.deliver("1.m:2,S", b"Subject: one\n\n" + os.urandom(30_000))
    world.deliver("1.b:2,S", b"Subject: two\n\n" + os.urandom(60_000), "bob@example.org")
    world.backup()
    told = growth.stats(world.context, mailboxes=True)
    assert [store.name for store in told.stores] == ["local", "local-2"]
    assert [row.address for row in told.mailboxes] == ["bob@example.org", "alice@example.org"]
    assert told.gains is not None
    assert told.gains.bytes > 90_000
    shutil.rmtree(f"{world.vault}-2")
    told = growth.stats(world.context)
    assert [store.name for store in told.stores] == ["local"]
    assert [finding.kind for finding in told.findings] == [FindingKind.STORE_UNREACHABLE]
    with pytest.raises(StoreUnavailable):
        growth.stats(world.using("local-2"))
