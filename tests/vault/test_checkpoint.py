"""`packs` entries, which save what a long run shipped before it died, and every 256th entry, from which a host without a state can begin."""

import contextlib
import json
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mailbackup.content import writer as packing
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import ConflictError
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import digest, entry_key
from mailbackup.model.ledger import Grant, from_ranges
from mailbackup.stores.base import Store
from mailbackup.testing.crashpoints import Crash, CrashingStore, CrashPoint, count_operations, crash_points
from mailbackup.testing.wrapper import Wrapper
from mailbackup.vault import commit, writer
from mailbackup.vault.chain import check_entry, live_list_of, page_trust
from tests.vault.past import Past, letter
from tests.world import World

MAILBOXES = 8
BODY = 100_000  # bytes of new mail per mailbox and night
PAGE = 256  # entries of a page: the format says so


class Dying(Wrapper):
    """The process dies when it is about to put an object below `prefix`."""

    def __init__(self, inner: Store, prefix: str) -> None:
        super().__init__(inner)
        self.prefix, self.dead = prefix, False

    @contextmanager
    def around(self, verb: str, key: str) -> Iterator[None]:
        """Dies, and stays dead."""
        if self.dead or (verb == "put" and key.startswith(self.prefix)):
            self.dead = True
            raise Crash(f"before {verb} {key}")
        yield


class Asked(Wrapper):
    """Notes the entries that are read."""

    def __init__(self, inner: Store, seen: set[str]) -> None:
        super().__init__(inner)
        self.seen = seen

    @contextmanager
    def around(self, verb: str, key: str) -> Iterator[None]:
        """Notes them."""
        if verb == "get" and key.startswith("ledger/"):
            self.seen.add(key)
        yield


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Eight mailboxes with a snapshot, and a night with new mail in each and one message less. A checkpoint comes after every third mailbox or so."""
    monkeypatch.setattr(writer, "CHECKPOINT_BYTES", 250_000)
    monkeypatch.setattr(packing, "PACK_TARGET", 1)
    made = Past(tmp_path)
    fill(made, "first")
    assert made.backup().outcome == "complete"
    fill(made, "second")
    for number in range(MAILBOXES):
        os.unlink(f"{made.maildir(address(number))}/cur/first:2,")
    return made


def address(number: int) -> str:
    return f"user{number}@example.org"


def fill(world: Past, name: str) -> None:
    for number in range(MAILBOXES):
        content = random.Random(f"{name} {number}").randbytes(BODY)
        world.deliver(f"{name}:2,", letter(f"{name} {number}", content), address(number))
        world.deliver(f"{name}-stays:2,", letter(f"{name} stays"), address(number))


def die_before_the_second_checkpoint(world: Past) -> None:
    """What follows the first one is shipped, and fixed nowhere."""
    fixes = [commit.fix]

    def fix(*args: object) -> None:
        if not fixes:
            raise Crash
        fixes.pop()(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Crash):
        patch.setattr(writer, "fix", fix)
        world.backup()


def registered(world: Past) -> set[str]:
    return {f"{world.vault}/packs/{pack['id'][:2]}/{pack['id']}" for entry in world.ledger() for pack in entry.get("packs", ())}


# ---------------------------------------------------------------- checkpoints


def test_a_long_run_registers_what_it_has_shipped(world):
    known = len(world.ledger())
    world.backup()
    *checkpoints, snapshot = world.ledger()[known:]
    assert len(checkpoints) >= 2
    assert {entry["type"] for entry in checkpoints} == {"packs"}
    assert snapshot["type"] == "snapshot"
    for entry in checkpoints:
        assert entry["packs"]
        assert not {"stops", "snapshot", "outcome", "freeze"} & set(entry)
        assert "stops" not in entry.get("lists", {})
    assert snapshot["stops"]  # the old messages: by the snapshot, and by nothing before it
    world.check()
    world.check_no_waste()


@pytest.mark.case("19")
def test_what_is_registered_is_not_sent_again_and_the_rest_is(world):
    """Packs that no entry names are never referred to: a prune may remove them at any time."""
    before, live = registered(world), world.live_in_ledger()
    die_before_the_second_checkpoint(world)
    saved = registered(world) - before
    stray = set(world.packs()) - registered(world)
    shipped, wasted = (sum(map(os.path.getsize, packs)) for packs in (saved, stray))
    assert min(shipped, wasted) > 2 * BODY
    assert live < world.live_in_ledger()  # nothing was stopped
    world.check_restores(world.committed()[-1])
    result = world.backup()
    assert (result.outcome, result.findings) == ("complete", ())
    assert result.bytes_stored < MAILBOXES * BODY - shipped + 50_000
    bodies = {os.path.basename(pack) for pack in saved if os.path.getsize(pack) > BODY}
    assert bodies <= {pack for pack, _ in world.reached(result.seq)}
    assert not stray & registered(world)
    for pack in stray:
        os.unlink(pack)
    world.check()
    world.check_no_waste()


@pytest.mark.case("19")
def test_a_snapshot_that_was_fixed_is_put_by_the_next_run(world):
    """Dying at the put of the snapshot object loses nothing: everything stands in the state already."""
    known = set(world.committed())
    world.store_hook = lambda store: Dying(store, "snapshots/")
    with pytest.raises(Crash):
        world.backup()  # remembers what the sources held
    world.store_hook = None
    assert "packs" in {entry["type"] for entry in world.ledger()[-3:]}
    world.deliver("third:2,", letter("third"), address(0))
    result = world.backup()
    assert (result.outcome, result.findings) == ("complete", ())
    assert result.bytes_stored < 20_000
    assert len(set(world.committed()) - known) == 2
    world.check()
    world.check_no_waste()


# ---------------------------------------------------------------- pages


@pytest.fixture
def old(tmp_path):
    """A host whose next entry begins a page. Among those before are a trust entry, and packs of which only some blocks are live."""
    made = Past(tmp_path)
    made.first_day()
    made.backup()
    made.put_entry(made.admin, type="trust", grant=(Grant("drill", SigningKey.generate().public),))
    made.second_day()
    while World.backup(made).seq < PAGE - 1:
        pass
    made.remember()
    return made


def check_page(world: Past) -> None:
    """Entry 256 carries the live set and every trust entry."""
    with contextlib.closing(world.store()) as store:
        raw = world.raw(entry_key(PAGE))
        entry = check_entry(raw, PAGE, digest(world.raw(entry_key(PAGE - 1))), page_trust(store, PAGE, world.anchors), world.anchors).entry
        live = live_list_of(store, entry)
    assert [line.encode() for line in entry.trust] == [world.raw(entry_key(seq)) for seq in (1, 3)]
    found = {(pack.id, number) for pack in live.packs for number in from_ranges(pack.live, pack.blocks)}
    lives = world.registry().packs.items()
    assert found == {(pack, number) for pack, life in lives for number in range(life.row.blocks) if life.lives(number, PAGE)}
    assert any(len(from_ranges(pack.live, pack.blocks)) < pack.blocks for pack in live.packs)
    assert [epoch.epoch for epoch in live.epochs] == [1]


def test_a_host_without_a_state_starts_from_the_page(old):
    old.deliver("256.x:2,", letter("of the page"))
    assert old.backup().seq == PAGE
    check_page(old)
    os.unlink(f"{old.maildir()}/cur/256.x:2,")
    old.deliver("257.x:2,", letter("after the page"))
    old.backup()
    old.lose_state()
    seen: set[str] = set()
    old.store_hook = lambda store: Asked(store, seen)
    result = old.backup()
    old.store_hook = None
    assert (result.seq, result.outcome, [f.kind for f in result.findings]) == (PAGE + 2, "explained", [FindingKind.STATE_NEW])
    assert "freeze" in old.ledger()[-1]
    assert seen == {entry_key(PAGE), entry_key(PAGE + 1)}
    after = old.backup()
    assert (after.outcome, after.findings, after.bytes_stored) == ("complete", (), 0)
    old.check_clean()
    for seq in (2, 4, PAGE, PAGE + 1, PAGE + 2, PAGE + 3):
        old.check_restores(seq)
    old.check_no_waste()


def test_a_state_that_starts_from_the_page_knows_who_is_trusted(old):
    """The trust entry is far back; what the page repeats of it counts, also for the next page."""
    old.backup()
    old.lose_state()
    old.backup()
    assert json.loads(old.sql("SELECT value FROM meta WHERE key = 'trust_lines'")[0][0]) == [
        old.raw(entry_key(seq)).decode() for seq in (1, 3)
    ]
    old.put_entry(old.admin, type="trust", revoke=(Grant("writer", old.context.config.trust.writer),))
    old.lose_state()
    with pytest.raises(ConflictError):
        old.backup()
    old.check_clean()


@pytest.mark.case("19")
def test_killed_at_every_operation_of_the_run_that_begins_a_page(old):
    """Its entry has a list of its own besides the snapshot."""
    old.save("before")
    past = dict(old.past)

    def run(point: CrashPoint) -> None:
        old.put_back("before")
        old.past = dict(past)
        old.store_hook = lambda store: CrashingStore(store, point)
        try:
            old.backup()
        finally:
            old.store_hook = None

    for point in crash_points(count_operations(run)):
        with pytest.raises(Crash):
            run(point)
        result = old.backup()
        assert (result.outcome, result.findings) == ("complete", ()), point
        check_page(old)
        old.check_no_waste()
    old.check_clean()
