"""Several stores: the same bytes in each, each with an outcome of its own, caught up later, and read from the nearest that is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest

from mailbackup import app, kit, replication
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import AlreadyExists, AnchorMismatch, ChainBroken, ConflictError, NoSpace, StoreRefused, StoreUnavailable, UsageError
from mailbackup.host import utc_now
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import digest, drill_key
from mailbackup.model.ledger import ObjectRow
from mailbackup.model.results import BackupResult
from mailbackup.stores.base import Store
from mailbackup.testing.crashpoints import Crash, CrashingStore, count_operations, crash_points
from mailbackup.testing.faults import ReadOnly
from mailbackup.testing.wrapper import Wrapper
from mailbackup.upkeep.acts import add_drill
from tests.several.outages import Outage, down, outages
from tests.world import World, messages_in

FIRST, SECOND = "local", "local-2"


@pytest.fixture
def world(tmp_path: object) -> World:
    """A host with two stores and one snapshot."""
    made = World(tmp_path, stores=2)
    deliver(made, 3)
    made.backup()
    return made


def deliver(world: World, count: int, *, size: int = 40_000) -> None:
    number = len(messages_in(world.maildir()))
    for n in range(number, number + count):
        world.deliver(f"{n}.m:2,S", b"Subject: %d\n\n" % n + os.urandom(size // 2).hex().encode())


def outcomes(result: BackupResult) -> dict[str, tuple[str, int]]:
    return {store.name: (store.outcome, store.missing) for store in result.stores}


BOTH = {FIRST: ("current", 0), SECOND: ("current", 0)}


def content(world: World, number: int) -> dict[str, bytes]:
    with contextlib.closing(world.store(number)) as store:
        return {key: store.get(key, 1 << 30) for key, _ in store.list("")}


def assert_same(world: World) -> None:
    assert content(world, 1) == content(world, 2)


def whole_in(world: World, name: str) -> None:
    """The newest snapshot restores from this store alone."""
    target = f"{world.root}/from-{name}"
    result = app.restore_mailbox(world.using(name), "alice@example.org", to=target)
    assert (result.outcome, messages_in(target)) == ("complete", messages_in(world.maildir()))
    shutil.rmtree(target)


# ---------------------------------------------------------------- writing


def test_every_store_gets_the_same_bytes(world: World):
    deliver(world, 2)
    result = world.backup()
    assert (result.outcome, outcomes(result)) == ("complete", BOTH)
    assert_same(world)
    assert world.verify().outcome == "clean"
    for name in (FIRST, SECOND):
        whole_in(world, name)
    assert [row.stores for row in app.snapshots(world.context)] == [(FIRST, SECOND)] * 2


@pytest.mark.parametrize("name", [FIRST, SECOND])
@pytest.mark.parametrize("lost_answer", [False, True])
@pytest.mark.parametrize("after", range(0, 16, 2))
def test_a_store_that_goes_away_in_the_middle(world: World, name: str, after: int, lost_answer: bool):
    deliver(world, 2)
    world.store_hook = down(name, after, lost_answer=lost_answer)
    result = world.backup()
    other = FIRST if name == SECOND else SECOND
    assert result.outcome == "complete"
    assert outcomes(result)[other] == ("current", 0)
    if outcomes(result)[name] != ("current", 0):
        assert outcomes(result)[name][0] == "failed"
        assert [finding.kind for finding in result.findings] == [FindingKind.STORE_BEHIND]
    world.store_hook = None
    whole_in(world, other)
    again = world.backup()
    assert (outcomes(again), again.findings) == (BOTH, ())
    assert content(world, 1).items() ^ content(world, 2).items() == set()
    assert app.verify(world.context, decrypt=True).outcome == "clean"


def test_a_store_that_was_away_for_nights_is_caught_up(world: World):
    world.store_hook = down(SECOND)
    for _ in range(3):
        deliver(world, 1)
        assert outcomes(world.backup())[SECOND][0] == "failed"
    world.store_hook = None
    deliver(world, 1)
    result = world.backup()
    assert outcomes(result) == BOTH
    assert [store.before for store in result.stores] == [5, 2]
    assert_same(world)
    assert [row.stores for row in app.snapshots(world.context)] == [(FIRST, SECOND)] * 5


def test_catching_up_that_is_cut_off_goes_on_the_next_night(world: World):
    world.store_hook = down(SECOND)
    for _ in range(3):
        deliver(world, 1)
        world.backup()
    world.store_hook = down(SECOND, 25)
    first = outcomes(world.backup())[SECOND]
    assert first[0] == "failed"
    assert first[1] > 0
    with contextlib.closing(world.store(2)) as store:
        assert app.verify(world.using(SECOND)).outcome == "clean", "half of a copy is a whole vault with an older head"
        assert sum(1 for _ in store.list("ledger/")) > 2
    world.store_hook = None
    assert outcomes(world.backup()) == BOTH
    assert_same(world)


def test_with_all_stores_away_nothing_is_made_and_the_same_bytes_are_put_later(world: World):
    deliver(world, 1)
    world.store_hook = outages({name: lambda store: Outage(store, 9) for name in (FIRST, SECOND)})
    with pytest.raises(StoreUnavailable):
        world.backup()
    world.store_hook = down(FIRST)
    assert outcomes(world.backup())[SECOND] == ("current", 0)
    world.store_hook = down(SECOND)
    with pytest.raises(StoreUnavailable, match="went away"):
        world.backup()
    world.store_hook = None
    assert outcomes(world.backup()) == BOTH
    assert_same(world)


def test_the_head_of_the_vault_is_what_the_longest_store_says(world: World):
    """The state was rolled back to a moment at which neither knew of the last entries."""
    shutil.copytree(world.state, f"{world.root}/old-state")
    world.store_hook = down(FIRST)
    deliver(world, 2)
    world.backup()
    world.store_hook = None
    shutil.rmtree(world.state)
    shutil.copytree(f"{world.root}/old-state", world.state)
    result = world.backup()
    assert outcomes(result) == BOTH
    assert [finding.kind for finding in result.findings] == [FindingKind.STATE_OLD]
    assert_same(world)
    assert app.verify(world.context, decrypt=True).outcome == "clean"


def test_stores_with_different_entries_are_a_conflict_and_neither_is_changed(world: World):
    """Both were written to from a state of the same age, each while the other was away."""
    shutil.copytree(world.state, f"{world.root}/old-state")
    world.store_hook = down(FIRST)
    world.backup(rescan=True)
    shutil.rmtree(world.state)
    shutil.copytree(f"{world.root}/old-state", world.state)
    world.store_hook = down(SECOND)
    deliver(world, 1)
    world.backup()
    world.store_hook = None
    kept = content(world, 2)
    result = world.backup()
    assert outcomes(result)[FIRST] == ("current", 0)
    assert result.stores[1].outcome == "failed"
    assert "two sides" in result.stores[1].detail
    with pytest.raises(ConflictError):
        replication.copy_store(world.context, source=FIRST, target=SECOND)
    assert content(world, 2) == kept
    world.lose_state()
    with pytest.raises(ConflictError, match="two sides"):  # nothing tells which of them counts
        for _ in range(2):
            shutil.copy(f"{world.vault}/ledger/0000000000/0000000003.json", f"{world.root}/three")
            os.unlink(f"{world.vault}/ledger/0000000000/0000000004.json")
            world.backup()


def test_a_store_whose_tail_was_cut_is_left_out_and_said(world: World):
    os.unlink(f"{world.vault}-2/ledger/0000000000/0000000002.json")
    deliver(world, 1)
    result = world.backup()
    assert outcomes(result)[FIRST] == ("current", 0)
    assert outcomes(result)[SECOND][0] == "failed"
    assert "was seen before" in result.stores[1].detail
    with pytest.raises(ChainBroken):
        app.restore_mailbox(world.using(SECOND), "alice@example.org", to=f"{world.root}/x")
    replication.copy_store(world.context, source=None, target=SECOND)  # a person decided that it is all right
    assert outcomes(world.backup()) == BOTH
    assert_same(world)


def test_a_full_store_is_left_out_and_the_others_get_the_snapshot(world: World):
    deliver(world, 1)
    world.store_hook = down(SECOND, 7, error=NoSpace)
    result = world.backup()
    assert (outcomes(result)[FIRST], outcomes(result)[SECOND][0]) == (("current", 0), "failed")


def test_killed_at_every_operation_with_two_stores(world: World):
    deliver(world, 2)
    shutil.copytree(world.root, f"{world.root}-kept")

    def run(point: object) -> None:
        world.store_hook = lambda store: CrashingStore(store, point)  # type: ignore[arg-type]
        try:
            context = world.context
            config = context.config
            one_thread = type(config)(
                **{name: getattr(config, name) for name in config.__struct_fields__} | {"backup": type(config.backup)(workers=0)}
            )
            with world._hooked():
                app.backup(type(context)(config=one_thread, config_path=context.config_path, state_dir=context.state_dir))
        finally:
            world.store_hook = None

    total = count_operations(run)
    assert total > 16
    for point in list(crash_points(total))[::3]:
        for name in ("state", "vault", "vault-2"):
            shutil.rmtree(f"{world.root}/{name}")
            shutil.copytree(f"{world.root}-kept/{name}", f"{world.root}/{name}")
        with pytest.raises(Crash):
            run(point)
        result = world.backup()
        assert (result.outcome, outcomes(result), result.findings) == ("complete", BOTH, ()), point
        ledgers = [
            {key: data for key, data in content(world, number).items() if key.startswith(("ledger/", "snapshots/"))} for number in (1, 2)
        ]
        assert ledgers[0].keys() == ledgers[1].keys() or ledgers[0].items() ^ ledgers[1].items() <= orphans(world, ledgers), point
        assert app.verify(world.context, decrypt=True).outcome == "clean", point


def orphans(world: World, ledgers: list[dict[str, bytes]]) -> set[tuple[str, bytes]]:
    """Snapshot objects that no entry names: a killed run may leave one in one store only."""
    named = b"".join(data for key, data in ledgers[0].items() if key.startswith("ledger/"))
    return {(key, data) for ledger in ledgers for key, data in ledger.items() if key.startswith("snapshots/") and key.encode() not in named}


# ---------------------------------------------------------------- packs that went missing


def some_pack(world: World, number: int) -> str:
    return next(key for key in world.objects(number) if key.startswith("packs/"))


def test_a_pack_that_one_store_lost_is_copied_from_the_other(world: World):
    pack = some_pack(world, 2)
    os.unlink(f"{world.vault}-2/{pack}")
    result = world.backup()
    assert [(finding.kind, "copied from another store" in finding.detail) for finding in result.findings] == [(FindingKind.HEALED, True)]
    assert result.new_messages == 0
    assert_same(world)


def test_a_pack_that_is_damaged_in_the_other_store_too_is_not_copied(world: World):
    pack = some_pack(world, 2)
    os.unlink(f"{world.vault}-2/{pack}")
    with open(f"{world.vault}/{pack}", "r+b") as file:
        file.write(b"\0\0\0\0")
    result = world.backup()
    assert any("read and sent again" in finding.detail for finding in result.findings)
    whole_in(world, SECOND)


# ---------------------------------------------------------------- reading


def test_a_restore_reads_the_nearest_store_only(world: World):
    asked: list[str] = []
    world.store_hook = lambda store: asked.append(store.name) or store  # type: ignore[func-returns-value]
    assert world.restore("out").outcome == "complete"
    assert set(asked) == {FIRST}


@pytest.mark.parametrize("harm", ["missing", "damaged", "cut"])
def test_a_restore_falls_over_to_the_next_store(world: World, harm: str):
    for pack in [key for key in world.objects() if key.startswith(("packs/", "snapshots/", "keys/"))]:
        path = f"{world.vault}/{pack}"
        if harm == "missing":
            os.unlink(path)
        else:
            with open(path, "r+b") as file:
                file.truncate(10) if harm == "cut" else file.write(b"\0" * 400)
    result = world.restore("out")
    assert (result.outcome, messages_in(f"{world.root}/out")) == ("complete", messages_in(world.maildir()))
    assert {finding.kind for finding in result.findings} == {FindingKind.OTHER_STORE}
    assert all(SECOND in finding.detail for finding in result.findings)


def test_different_objects_may_come_from_different_stores(world: World):
    deliver(world, 1)
    world.backup()
    first, second = sorted(key for key in world.objects() if key.startswith("packs/"))[:2]
    os.unlink(f"{world.vault}/{first}")
    os.unlink(f"{world.vault}-2/{second}")
    assert world.restore("out").outcome == "complete"
    assert messages_in(f"{world.root}/out") == messages_in(world.maildir())


def test_a_restore_without_the_first_store(world: World):
    shutil.move(world.vault, f"{world.root}/burnt")
    result = world.restore("out")
    assert result.outcome == "complete"
    assert [(finding.kind, finding.subject) for finding in result.findings] == [(FindingKind.STORE_UNREACHABLE, FIRST)]
    shutil.move(f"{world.vault}-2", f"{world.root}/burnt-2")
    with pytest.raises(StoreUnavailable):
        world.restore("out-2")


def test_the_newest_snapshot_counts_wherever_it_is(world: World):
    """The nearest store was away when it was made; no state tells (as on a new machine)."""
    world.store_hook = down(FIRST)
    deliver(world, 1)
    world.backup()
    world.store_hook = None
    for lost in (False, True):
        if lost:
            world.lose_state()
        result = world.restore(f"out-{lost}")
        assert messages_in(f"{world.root}/out-{lost}") == messages_in(world.maildir())
        assert result.seq == 3
    assert [row.stores for row in app.snapshots(world.context)] == [(FIRST, SECOND), (SECOND,)]


def test_a_store_that_is_behind_restores_what_it_has_while_the_other_is_away(world: World):
    world.store_hook = down(SECOND)
    deliver(world, 1)
    world.backup()
    world.store_hook = down(FIRST)
    result = world.restore("out")
    assert (result.seq, result.outcome) == (2, "incomplete"), "there is a newer one"
    assert {finding.kind for finding in result.findings} == {FindingKind.STORE_UNREACHABLE, FindingKind.STORE_BEHIND}
    assert world.restore("out-2", at="2").outcome == "complete", "this one was asked for"


def test_the_newest_entry_damaged_where_only_one_store_has_it(world: World):
    world.store_hook = down(SECOND)
    deliver(world, 1)
    world.backup()
    world.store_hook = None
    with open(f"{world.vault}/ledger/0000000000/0000000003.json", "r+b") as file:
        file.write(b"x")
    result = world.restore("out")
    assert (result.seq, result.outcome) == (2, "incomplete")
    assert FindingKind.STORE_BEHIND in {finding.kind for finding in result.findings}


def test_a_copy_does_not_fill_an_unmounted_disk(world: World):
    os.rename(f"{world.vault}-2", f"{world.root}/unmounted")
    os.mkdir(f"{world.vault}-2")
    with pytest.raises(StoreUnavailable):
        replication.copy_store(world.context, source=None, target=SECOND)
    assert os.listdir(f"{world.vault}-2") == []


def test_a_key_object_of_a_lost_run_is_a_conflict_and_not_taken_for_ours(third: World):
    """Another epoch's bytes lie under the key: whoever believed them could not open what is sealed to it."""
    assert third.backup().stores[2].outcome == "failed"
    os.makedirs(f"{third.root}/third/keys")
    with open(f"{third.root}/third/keys/0000000001-0000000001.age", "wb") as file:
        file.write(b"of a run that was forgotten")
    with pytest.raises(ConflictError, match="another object"):
        replication.copy_store(third.context, source=None, target="third")


def test_torn_acts_keep_no_store_from_a_snapshot(world: World):
    """A backup only looks in them for damage; `verify` says that they are torn."""
    os.makedirs(f"{world.vault}-2/acts")
    with open(f"{world.vault}-2/acts/0000000001.json", "wb") as file:
        file.write(b"{")
    deliver(world, 1)
    result = world.backup()
    assert (outcomes(result)[FIRST], outcomes(result)[SECOND]) == (("current", 0), ("current", 0))
    assert app.verify(world.using(SECOND)).outcome == "damaged"


def test_a_store_that_goes_away_while_it_is_healed_leaves_the_other_current(world: World):
    os.unlink(f"{world.vault}-2/{some_pack(world, 2)}")

    class NoFlush(Wrapper):
        def flush(self):
            """Away."""
            raise StoreUnavailable("away")

    world.store_hook = outages({SECOND: NoFlush})
    assert outcomes(world.backup())[FIRST] == ("current", 0)
    world.store_hook = None
    assert outcomes(world.backup()) == BOTH
    whole_in(world, SECOND)


def test_a_damaged_entry_is_read_from_the_other_store(world: World):
    deliver(world, 1)
    world.backup()
    for number in (2, 3):
        path = f"{world.vault}/ledger/0000000000/{number:010d}.json"
        with open(path, "r+b") as file:
            kept = file.read()
            file.seek(0)
            file.write(b"x")
        assert len(app.snapshots(world.context)) == 2
        assert world.restore(f"out-{number}", at="2").outcome == "complete"
        assert world.restore(f"out-latest-{number}").seq == 3
        with open(path, "wb") as file:
            file.write(kept)


def test_verify_checks_every_store_and_says_in_which_something_is_wrong(world: World):
    os.unlink(f"{world.vault}-2/{some_pack(world, 2)}")
    result = world.verify()
    assert result.outcome == "damaged"
    assert all(finding.detail.startswith(f"store {SECOND}: ") for finding in result.findings)
    assert app.verify(world.using(FIRST)).outcome == "clean"
    world.store_hook = down(FIRST)
    assert world.verify().outcome == "damaged"
    world.store_hook = down(SECOND)
    with pytest.raises(StoreUnavailable):
        world.verify()


# ---------------------------------------------------------------- copy


@pytest.fixture
def third(world: World) -> Iterator[World]:
    """The same host with a third store that is empty."""
    deliver(world, 1)
    world.backup()
    with open(world.config_path, "a") as file:
        file.write(f'\n[[store]]\nname = "third"\nurl = "file://{world.root}/third"\n')
    return world


def test_copy_fills_a_new_store(third: World):
    result = third.backup()
    assert [(store.name, store.outcome) for store in result.stores] == [(FIRST, "current"), (SECOND, "current"), ("third", "failed")]
    copied = replication.copy_store(third.context, source=None, target="third")
    assert (copied.head, copied.copied_objects > 6, copied.left_out) == (4, True, 0)
    result = third.backup()
    assert all(store.outcome == "current" for store in result.stores)
    whole_in(third, "third")
    again = replication.copy_store(third.context, source=FIRST, target="third")
    assert (again.copied_objects, again.copied_bytes) == (0, 0)


def test_copy_leaves_the_acts_where_they_are(third: World):
    """One chain in two stores would let whoever can write to one of them repeat in it what was signed for the other."""
    details = drill_key(utc_now())
    key = SigningKey.from_hex(kit.load_identity_file(third.kit, None).kit.admin_seed)
    with contextlib.closing(third.store()) as store:
        store.put(details, b"sealed")
        add_drill(store, third.context.anchors, key, ObjectRow(key=details, sha256=digest(b"sealed"), size=6))
    replication.copy_store(third.context, source=FIRST, target="third")
    assert not os.path.exists(f"{third.root}/third/acts")
    assert app.verify(third.using("third")).outcome == "clean"


@pytest.mark.parametrize("after", range(0, 34, 3))
def test_copy_goes_on_where_it_was_cut_off(third: World, after: int):
    third.store_hook = down("third", after)
    real = replication.open_store
    try:
        replication.open_store = lambda *args, **kwargs: third.store_hook(real(*args, **kwargs))  # type: ignore[assignment, misc]
        with contextlib.suppress(StoreUnavailable):
            replication.copy_store(third.context, source=None, target="third")
    finally:
        replication.open_store = real
    third.store_hook = None
    result = replication.copy_store(third.context, source=None, target="third")
    assert result.head == 3
    assert app.verify(third.using("third")).outcome == "clean"
    whole_in(third, "third")


def test_copy_takes_a_damaged_object_from_another_store(third: World):
    for key in [key for key in third.objects() if key.startswith(("packs/", "snapshots/"))]:
        with open(f"{third.vault}/{key}", "r+b") as file:
            file.write(b"\0")
    replication.copy_store(third.context, source=None, target="third")
    whole_in(third, "third")


def test_copy_refuses_what_is_no_beginning_of_this_vault(third: World, tmp_path: object):
    other = World(f"{tmp_path}/other")
    shutil.copytree(other.vault, f"{third.root}/third")
    with pytest.raises(AnchorMismatch):
        replication.copy_store(third.context, source=None, target="third")
    shutil.rmtree(f"{third.root}/third")
    os.makedirs(f"{third.root}/third/packs/ab")
    with open(f"{third.root}/third/packs/ab/{'ab' + '0' * 30}", "wb") as file:
        file.write(b"somebody's")
    with pytest.raises(AlreadyExists):
        replication.copy_store(third.context, source=None, target="third")
    for names in ((None, "nowhere"), ("nowhere", "third"), ("third", "third")):
        with pytest.raises(UsageError):
            replication.copy_store(third.context, source=names[0], target=names[1])


# ---------------------------------------------------------------- a host that may not read packs


class Unreadable(Wrapper):
    """As for the credentials of a mail host: packs and snapshots can be put, not read."""

    def get_range(self, key, offset, length):
        """See `Store.get_range`."""
        self._refuse(key)
        return super().get_range(key, offset, length)

    def get(self, key, limit):
        """See `Store.get`."""
        self._refuse(key)
        return super().get(key, limit)

    def stream(self, key, chunk=1 << 20):
        """See `Store.stream`."""
        self._refuse(key)
        return super().stream(key, chunk)

    def _refuse(self, key: str) -> None:
        if key.startswith(("packs/", "snapshots/", "lists/")):
            raise StoreRefused(f"{key}: access denied")


def unreadable(plan: dict[str, int]) -> object:
    """Both stores unreadable; those named go away after some operations."""

    def hook(store: Store) -> Store:
        store = Unreadable(store)
        return Outage(store, plan[store.name]) if store.name in plan else store

    return hook


def outbox(world: World) -> list[str]:
    path = f"{world.state}/outbox"
    return [name for _, _, names in os.walk(path) for name in names]


@pytest.mark.parametrize("after", [0, 5, 9, 12, 14])
def test_where_no_store_can_be_read_an_outbox_keeps_what_one_lacks(world: World, after: int):
    world.store_hook = unreadable({})
    deliver(world, 1)
    assert outcomes(world.backup()) == BOTH
    assert outbox(world) == [], "every store has everything"
    world.store_hook = unreadable({SECOND: after})
    for _ in range(2):
        deliver(world, 1)
        assert outcomes(world.backup())[SECOND][0] == "failed"
    assert outbox(world)
    world.store_hook = unreadable({})
    result = world.backup()
    assert (outcomes(result), outbox(world)) == (BOTH, []), result.stores
    world.store_hook = None
    assert_same(world)


def test_the_outbox_serves_a_store_while_the_others_are_away(world: World):
    world.store_hook = unreadable({SECOND: 0})
    deliver(world, 1)
    world.backup()
    world.store_hook = unreadable({FIRST: 0})
    deliver(world, 1)
    result = world.backup()
    assert outcomes(result)[SECOND] == ("current", 0)
    world.store_hook = unreadable({})
    assert outcomes(world.backup()) == BOTH
    assert_same(world)


def test_a_full_outbox_costs_no_backup(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(replication, "OUTBOX_BYTES", 1000)
    world.store_hook = unreadable({SECOND: 0})
    deliver(world, 2)
    result = world.backup()
    assert (result.outcome, outcomes(result)[FIRST]) == ("complete", ("current", 0))
    world.store_hook = unreadable({})
    assert outcomes(world.backup())[SECOND][0] == "failed"
    world.store_hook = None
    assert outcomes(world.backup()) == BOTH


def test_a_store_that_may_only_be_read_is_left_out(world: World):
    world.store_hook = outages({SECOND: ReadOnly})
    deliver(world, 1)
    assert outcomes(world.backup()) == {FIRST: ("current", 0), SECOND: ("failed", 1)}
