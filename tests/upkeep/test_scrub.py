"""The keyless scrub: it knows what was pruned, goes round within a budget, and signs what it finds so that the next backup heals it."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from mailbackup.crypto.signing import SigningKey, seal_line
from mailbackup.errors import KeyProblem, ObjectDamaged, UsageError
from mailbackup.model import codec
from mailbackup.model.events import ignore, never
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import Digest, PackId, act_key, pack_key
from mailbackup.model.ledger import Act, Head, PackPart
from mailbackup.model.results import VerifyResult
from mailbackup.stores.base import Store, StoreTraits
from mailbackup.stores.memory import MemoryStore
from mailbackup.testing.faults import ReadOnly, flip_bit
from mailbackup.testing.wrapper import Wrapper
from mailbackup.upkeep.acts import add_act
from mailbackup.upkeep.parallel import in_order
from mailbackup.upkeep.registry import PackLife
from mailbackup.upkeep.rolling import Budget, rolling_verify
from mailbackup.upkeep.scrub import scrub
from tests.upkeep.keeper import Keeper, clock, keeper

__all__ = ["clock", "keeper"]


def kinds(result: VerifyResult) -> dict[str, FindingKind]:
    return {finding.subject: finding.kind for finding in result.findings}


def act(keeper: Keeper, kind: Any, signer: SigningKey | None = None, **members: Any) -> None:
    with contextlib.closing(keeper.store()) as store:
        add_act(store, keeper.anchors, signer or keeper.admin, kind, lambda _: members)


def lives(keeper: Keeper) -> dict[PackId, PackLife]:
    with contextlib.closing(keeper.store()) as store:
        return scrub(store, keeper.anchors, on_event=ignore).registry.packs


def a_live(keeper: Keeper) -> PackId:
    return max((life for life in lives(keeper).values() if not life.is_dead), key=lambda life: life.row.size).row.id


def a_dead(keeper: Keeper) -> PackId:
    """A pack that only an older snapshot needs."""
    return next(pack for pack, life in lives(keeper).items() if life.is_dead and os.path.exists(path_of(keeper, pack)))


def path_of(keeper: Keeper, pack: PackId) -> str:
    return f"{keeper.vault}/{pack_key(pack)}"


def parts(*packs: PackId) -> tuple[PackPart, ...]:
    return tuple(PackPart(id=pack) for pack in packs)


# ---------------------------------------------------------------- what was pruned


@pytest.fixture
def pruned(keeper: Keeper) -> tuple[Keeper, set[str]]:
    """A host whose older snapshots are gone, and the keys of what was deleted. A copy of all lies beside the vault."""
    keeper.night("1")
    keeper.night("2")
    keeper.prune()
    keeper.wait(8)
    keeper.audited()
    before = set(keeper.objects())
    shutil.copytree(keeper.vault, f"{keeper.root}/before")
    keeper.prune()
    gone = before - set(keeper.objects())
    assert {key.partition("/")[0] for key in gone} == {"packs", "snapshots"}
    return keeper, gone


def test_what_was_pruned_is_not_missed(pruned: tuple[Keeper, set[str]]):
    keeper, _ = pruned
    assert keeper.verify().findings == ()
    assert keeper.verify(budget=Budget(share=1.0)).findings == ()
    assert keeper.verify(decrypt=True).findings == ()


@pytest.mark.parametrize("budget", [None, Budget(share=1.0)])
def test_what_a_killed_prune_left_is_no_damage(pruned: tuple[Keeper, set[str]], budget: Budget | None):
    keeper, gone = pruned
    for key in gone:
        os.makedirs(os.path.dirname(f"{keeper.vault}/{key}"), exist_ok=True)
        shutil.copy2(f"{keeper.root}/before/{key}", f"{keeper.vault}/{key}")
    result = keeper.verify(budget=budget)
    assert kinds(result) == dict.fromkeys(gone, FindingKind.PRUNE_UNFINISHED)
    assert result.outcome == "clean"
    keeper.prune()
    assert keeper.verify().findings == ()


def test_dropped_snapshots_are_checked_until_their_time_is_over(keeper: Keeper):
    keeper.night("1")
    keeper.night("2")
    keeper.prune()
    dead = a_dead(keeper)
    os.unlink(path_of(keeper, dead))
    result = keeper.verify()
    assert kinds(result) == {pack_key(dead): FindingKind.OBJECT_MISSING}
    assert result.findings[0].snapshots


@pytest.mark.parametrize("which", [a_live, a_dead])
@pytest.mark.parametrize("kind", ["prune", "received-without"])
@pytest.mark.parametrize("budget", [None, Budget(share=1.0)])
def test_an_act_that_gives_up_what_is_needed_is_damage(keeper: Keeper, which: Any, kind: Any, budget: Budget | None):
    keeper.night("1")
    keeper.night("2")
    pack = which(keeper)
    act(keeper, kind, packs=parts(pack))
    there = keeper.verify(budget=budget)
    assert (kinds(there), there.outcome) == ({pack_key(pack): FindingKind.ACT_WRONG}, "damaged")
    assert there.findings[0].snapshots
    os.unlink(path_of(keeper, pack))
    gone = keeper.verify(budget=budget)
    assert {finding.kind for finding in gone.findings} == {FindingKind.ACT_WRONG, FindingKind.OBJECT_MISSING}


def test_an_erased_block_is_needed_by_nothing(keeper: Keeper):
    keeper.night("1")
    keeper.night("2")
    pack = a_dead(keeper)
    act(keeper, "erase", packs=parts(pack), mailbox=Digest("0" * 64))
    act(keeper, "prune", packs=parts(pack))
    os.unlink(path_of(keeper, pack))
    assert keeper.verify().findings == ()


def test_an_act_of_nobody_excuses_nothing(keeper: Keeper):
    keeper.night("1")
    pack, stranger = a_live(keeper), SigningKey.generate()
    forged = Act(
        format=1, vault=keeper.anchors.vault, chain="0" * 32, seq=1, prev=None, type="prune", time="2026-01-01T00:00:00Z",
        signer=stranger.public, packs=parts(pack), gone=(2,),
    )  # fmt: skip
    with contextlib.closing(keeper.store()) as store:
        store.put(act_key(1), seal_line(codec.encode(forged), stranger))
    os.unlink(path_of(keeper, pack))
    assert kinds(keeper.verify()) == {"acts": FindingKind.CHAIN_BROKEN, pack_key(pack): FindingKind.OBJECT_MISSING}


def test_an_act_about_another_ledger_is_refused(keeper: Keeper):
    act(keeper, "prune", head=Head(seq=2, sha256=Digest("0" * 64)))
    (finding,) = keeper.verify().findings
    assert (finding.kind, finding.subject) == (FindingKind.CHAIN_BROKEN, "acts")
    assert "rests on another entry 2" in finding.detail


# ---------------------------------------------------------------- a budget


class Noting(Wrapper):
    """Notes what is read whole."""

    def __init__(self, inner: Store, read: list[str]) -> None:
        super().__init__(inner)
        self.read = read

    def around(self, verb: str, key: str) -> AbstractContextManager[None]:
        if verb == "stream":
            self.read.append(key)
        return contextlib.nullcontext()


def test_a_round_reads_everything_once(keeper: Keeper):
    for name in "123":
        keeper.night(name)
    read: list[str] = []
    keeper.store_hook = lambda store: Noting(store, read)
    whole, results = 0, []
    while not results or not results[-1].rounds[0].last:
        results.append(keeper.verify(budget=Budget(bytes=1)))
        assert results[-1].outcome == "clean"
        whole += results[-1].rounds[0].bytes
        assert len(results) < 100
    each = [key for key in keeper.objects() if key.startswith(("keys/", "vault.json"))]
    other = [key for key in keeper.objects() if not key.startswith(("keys/", "vault.json", "ledger/"))]
    assert sorted(key for key in read if key not in each) == sorted(other)
    assert len(results) == len(other)
    assert whole == results[0].rounds[0].whole
    (runs,) = {-(-whole // result.rounds[0].bytes) == result.rounds[0].runs for result in results}
    assert runs


def test_it_goes_on_where_it_ended(keeper: Keeper):
    for name in "12":
        keeper.night(name)
    read: list[str] = []
    keeper.store_hook = lambda store: Noting(store, read)
    for _ in range(2):
        keeper.verify(budget=Budget(share=0.4))
    packs = [key for key in read if key.startswith("packs/")]
    assert packs
    assert len(packs) == len(set(packs))


def test_a_pack_that_only_an_older_snapshot_needs_is_in_the_round(keeper: Keeper):
    keeper.night("1")
    keeper.night("2")
    dead = a_dead(keeper)
    flip_bit(path_of(keeper, dead), 100)
    assert pack_key(dead) in kinds(keeper.verify(budget=Budget(share=1.0)))


def test_a_damaged_snapshot_or_list_is_in_the_round(keeper: Keeper):
    key = next(key for key in keeper.objects() if key.startswith("snapshots/"))
    flip_bit(f"{keeper.vault}/{key}", 50)
    assert kinds(keeper.verify(budget=Budget(share=1.0))) == {key: FindingKind.OBJECT_DAMAGED}
    os.unlink(f"{keeper.vault}/{key}")
    assert kinds(keeper.verify(budget=Budget(bytes=1))) == {key: FindingKind.OBJECT_MISSING}, "found at once: that costs a listing"


def test_time_ends_it_between_objects(keeper: Keeper):
    for number in range(30):
        keeper.deliver(f"{number}.t:2,", os.urandom(40_000))
        keeper.settle()
        keeper.backup()
    keeper.store_hook = Slow
    result = keeper.verify(budget=Budget(seconds=0.3))
    (found,) = result.rounds
    assert 0 < found.bytes < found.whole
    assert not found.last
    keeper.store_hook = None
    assert keeper.verify(budget=Budget(seconds=1e-9)).rounds[0].bytes > 0, "else a round would never end"


class Slow(Wrapper):
    """A tenth of a second for each object that is read."""

    @contextmanager
    def around(self, verb: str, key: str) -> Iterator[None]:  # type: ignore[override]
        if verb == "stream" and key.startswith("packs/"):
            time.sleep(0.1)
        yield


@pytest.mark.parametrize("more", [{"decrypt": True}, {"sample": 0.5}])
def test_a_budget_goes_alone(keeper: Keeper, more: dict[str, Any]):
    with pytest.raises(UsageError, match="a budget goes with neither"):
        keeper.verify(budget=Budget(share=0.5), **more)


def test_stopped_before_it_began_it_says_so(keeper: Keeper):
    with contextlib.closing(keeper.store()) as store:
        rolled = rolling_verify(store, keeper.anchors, after="", budget=Budget(), stop=lambda: True, on_event=ignore)
    assert (rolled.after, rolled.packs, rolled.bytes, rolled.runs, rolled.wrapped) == ("", 0, 0, None, False)


# ---------------------------------------------------------------- signing what is damaged


@pytest.mark.parametrize("budget", [None, Budget(share=1.0)])
@pytest.mark.parametrize("damage", ["flip", "lose"])
def test_what_is_damaged_is_signed_once_and_sent_again(keeper: Keeper, damage: str, budget: Budget | None):
    pack = a_live(keeper)
    flip_bit(path_of(keeper, pack), 100) if damage == "flip" else os.unlink(path_of(keeper, pack))
    result = keeper.verify(sign=keeper.key_file, budget=budget)
    assert result.acts == {"local": 1}
    blocks = keeper.book().damaged
    assert blocks == {pack: "0" if damage == "flip" else None}
    assert keeper.verify(sign=keeper.key_file, budget=budget).acts == {}
    if damage == "lose":
        os.makedirs(os.path.dirname(path_of(keeper, pack)), exist_ok=True)
    healed = keeper.backup()
    assert FindingKind.HEALED in {finding.kind for finding in healed.findings}
    keeper.check_restores(healed.seq)


def test_only_what_something_needs_is_signed(pruned: tuple[Keeper, set[str]]):
    keeper, _ = pruned
    keeper.night("3")
    dead = a_dead(keeper)
    os.unlink(path_of(keeper, dead))
    assert keeper.verify(sign=keeper.key_file).acts, "the snapshot before needs it"
    keeper.prune()
    keeper.wait(8)
    keeper.audited()
    keeper.prune()
    assert dead in keeper.book().deleted
    assert keeper.verify(sign=keeper.key_file).findings == (), "nothing needs it any more, whatever an act said of it"


def test_an_old_act_says_which_snapshots(keeper: Keeper):
    pack = a_live(keeper)
    act(keeper, "damage", packs=(PackPart(id=pack, blocks="0"),))
    (finding,) = keeper.verify().findings
    assert (finding.kind, finding.detail) == (FindingKind.OBJECT_DAMAGED, "act 1 says so of blocks 0")
    flip_bit(path_of(keeper, pack), 100)
    (finding,) = keeper.verify().findings
    assert finding.kind is FindingKind.BLOCK_DAMAGED, "one finding for one pack"


def test_a_key_that_nobody_named_is_refused_before_anything_is_read(keeper: Keeper):
    read: list[str] = []
    keeper.store_hook = lambda store: Noting(store, read)
    with open(keeper.key_file, "w", encoding="ascii") as file:
        file.write(SigningKey.generate().seed_hex)
    with pytest.raises(KeyProblem) as caught:
        keeper.verify(sign=keeper.key_file)
    assert caught.value.exit_status == 7
    assert "mailbackup vault trust add prune" in caught.value.hint
    assert read == []


def test_that_it_could_not_be_signed_hides_nothing(keeper: Keeper):
    pack = a_live(keeper)
    flip_bit(path_of(keeper, pack), 100)
    keeper.store_hook = ReadOnly
    found = keeper.verify(sign=keeper.key_file)
    assert kinds(found) == {pack_key(pack): FindingKind.BLOCK_DAMAGED, "acts": FindingKind.NOT_RECORDED}


# ---------------------------------------------------------------- the audit's record


def test_a_sound_vault_is_recorded_when_it_was_opened(keeper: Keeper):
    assert keeper.verify(decrypt=True).audits == {"local": 1}
    audit = keeper.book().audit
    assert audit is not None
    assert audit.signer == keeper.anchors.admin
    sampled = keeper.verify(decrypt=True, sample=0.5)
    assert (sampled.audits, sampled.unrecorded) == ({}, "only a sample was opened")
    keeper.store_hook = ReadOnly
    refused = keeper.verify(decrypt=True)
    assert (refused.outcome, refused.audits) == ("clean", {})
    assert refused.unrecorded


# ---------------------------------------------------------------- several at once


class Meeting(Wrapper):
    """A store with a line to a far place, which notes how many objects are read at once."""

    def __init__(self, inner: Store, parallel: int) -> None:
        super().__init__(inner)
        self.traits = StoreTraits(range_reads=True, create_only=True, durable_after_put=True, parallel=parallel)
        self.most = self.now_reading = 0
        self.lock = threading.Lock()

    @contextmanager
    def around(self, verb: str, key: str) -> Iterator[None]:  # type: ignore[override]
        if verb == "stream":
            with self.lock:
                self.now_reading += 1
                self.most = max(self.most, self.now_reading)
            time.sleep(0.02)
            with self.lock:
                self.now_reading -= 1
        yield


@pytest.mark.parametrize("whole", [True, False])
def test_as_many_are_read_at_once_as_pays_off(keeper: Keeper, whole: bool):
    for number in range(12):
        keeper.deliver(f"{number}.t:2,", os.urandom(40_000))
        keeper.settle()
        keeper.backup()
    with contextlib.closing(keeper.store()) as inner:
        store = Meeting(inner, 8)
        if whole:
            scrub(store, keeper.anchors, on_event=ignore)
        else:
            rolling_verify(store, keeper.anchors, after="", budget=Budget(), stop=never, on_event=ignore)
    assert 7 <= store.most <= 8


def test_in_order_keeps_order_and_ends_early() -> None:
    assert list(in_order(lambda n: n * n, range(100), 5)) == [n * n for n in range(100)]
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.01)
        return number

    asked = iter(range(1000))
    found = list(in_order(work, range(1000), 3, lambda: next(asked) > 10))
    assert found == list(range(len(found)))
    assert sorted(begun) == found, "what was begun is told"
    assert 11 <= len(found) <= 20
    with contextlib.closing(in_order(work, iter(range(10_000)), 3)) as left:
        next(left)
    assert len(begun) < 60


def test_in_order_raises_what_the_work_raises() -> None:
    def work(number: int) -> int:
        if number == 5:
            raise ObjectDamaged("five")
        return number

    done = []
    with pytest.raises(ObjectDamaged, match="five"):
        done.extend(in_order(work, range(10), 2))
    assert list(MemoryStore().shadows()) == []
