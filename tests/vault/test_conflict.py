"""Only one host writes a vault. Whoever finds traces of another one stops, and damages nothing; a lost answer of the store is no other writer."""

import copy
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import Busy, ChainBroken, ConflictError, StoreUnavailable
from mailbackup.model.finding import FindingKind
from mailbackup.model.ledger import Grant
from mailbackup.stores.base import Store
from mailbackup.testing.faults import FailOnce
from mailbackup.testing.wrapper import Wrapper
from tests.vault.past import Past, letter


class Meanwhile(Wrapper):
    """Something else happens right before the first put of an object below a prefix."""

    def __init__(self, inner: Store, prefix: str, act: Callable[[], object]) -> None:
        super().__init__(inner)
        self._prefix = prefix
        self._act: Callable[[], object] | None = act

    @contextmanager
    def around(self, verb: str, key: str) -> Iterator[None]:
        """Acts once."""
        if verb == "put" and key.startswith(self._prefix) and self._act is not None:
            act, self._act = self._act, None
            act()
        yield


def meanwhile(world: Past, act: Callable[[], object], prefix: str = "ledger/") -> None:
    """During the next run of this world, someone acts right before its entry is put."""
    acts = [act]
    world.store_hook = lambda store: Meanwhile(store, prefix, acts.pop()) if acts else store


@pytest.fixture
def world(tmp_path):
    made = Past(tmp_path)
    made.first_day()
    made.backup()
    made.second_day()
    return made


def twin_of(world: Past) -> Past:
    """Another host with the same configuration and key, and the state as it is now."""
    twin = copy.copy(world)
    twin.state = f"{world.root}/twin"
    shutil.copytree(world.state, twin.state)
    return twin


def assert_refused(world: Past, error: type[ConflictError] = ConflictError) -> None:
    """The run stops with exit status 6 and adds nothing that counts."""
    before = world.ledger()
    with pytest.raises(error) as refused:
        world.backup()
    assert refused.value.exit_status == 6
    assert world.ledger()[: len(before)] == before
    world.check_clean()


@pytest.mark.case("24")
def test_two_hosts_with_one_key_at_once(world):
    """The second one to put its entry stops; later it follows what the first one wrote."""
    twin = twin_of(world)
    meanwhile(world, twin.backup)
    assert_refused(world)
    world.store_hook = None
    assert world.committed() == twin.committed() == [2, 3]
    result = world.backup()
    assert [finding.kind for finding in result.findings] == [FindingKind.STATE_OLD]
    world.check()


@pytest.mark.case("24")
def test_two_hosts_with_one_key_in_turns(world):
    """Not meant to be, but the vault stays sound: each finds its state older than the vault."""
    twin = twin_of(world)
    world.backup()
    for number, host in enumerate((twin, world, twin, world)):
        world.deliver(f"{80 + number}.x:2,", letter(f"x {number}"))
        result = host.backup()
        assert [finding.kind for finding in result.findings] == [FindingKind.STATE_OLD]
        host.check()


def test_another_writer_takes_the_place(world):
    """Between the look at the head and the put; and in the next run, when the own entry is still pending."""
    other = SigningKey.generate()
    meanwhile(world, lambda: world.put_entry(other, type="packs"))
    for _ in range(2):
        with pytest.raises(ConflictError) as refused:
            world.backup()
        assert refused.value.exit_status == 6
        world.store_hook = None
        world.check_restores(2)


def test_an_entry_of_someone_whom_nobody_trusts(world):
    world.put_entry(SigningKey.generate(), type="packs")
    for _ in range(2):
        with pytest.raises(ChainBroken):
            world.backup()
    world.check_restores(2)


@pytest.mark.parametrize("members", ["grant", "revoke"])
def test_the_admin_hands_the_vault_to_another_writer(world, members):
    writer = world.context.config.trust.writer
    key = SigningKey.generate().public if members == "grant" else writer
    world.put_entry(world.admin, type="trust", **{members: (Grant("writer", key),)})
    for _ in range(2):
        assert_refused(world)
    world.check_restores(2)


def test_the_admin_names_other_roles(world):
    """That is none of the writer's business: it takes note, and believes the acts of whom it names, in this run and in later ones."""
    helper = SigningKey.generate()
    world.put_entry(world.admin, type="trust", grant=(Grant("prune", helper.public), Grant("drill", SigningKey.generate().public)))
    assert world.backup().outcome == "explained"
    assert world.backup().outcome == "complete"
    world.damage_act(world.packs()[-1:], helper)
    result = world.backup()
    assert [finding.kind for finding in result.findings] == [FindingKind.HEALED]
    assert world.backup().outcome == "complete"
    world.check_restores(result.seq)
    world.check_no_waste()


def test_an_act_of_someone_whom_nobody_trusts(world):
    """It is not believed, and keeps nobody from a backup; `verify` tells of it."""
    world.damage_act(world.packs(), SigningKey.generate())
    assert world.backup().outcome == "complete"
    assert FindingKind.CHAIN_BROKEN in {finding.kind for finding in world.verify().findings}
    world.check_restores(2)


@pytest.mark.case("24")
def test_two_runs_at_once(world):
    """The second one is told at once; the first one goes on undisturbed."""
    meanwhile(world, lambda: assert_refused(world, Busy), "snapshots/")
    assert world.backup().outcome == "complete"
    world.store_hook = None
    assert world.committed() == [2, 3]
    world.check()


def assert_nothing_twice(world: Past) -> None:
    """Every number, pack and snapshot object stands in the chain once."""
    entries = world.ledger()
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    named = Counter(pack["id"] for entry in entries for pack in entry.get("packs", ()))
    named.update(entry["snapshot"]["key"] for entry in entries if "snapshot" in entry)
    named.update(epoch["key"] for entry in entries for epoch in entry.get("epochs", ()))
    assert max(named.values()) == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("after", [False, True], ids=["refused", "answer lost"])
@pytest.mark.parametrize(("verb", "pattern"), [("put", "keys/*"), ("commit", "packs/*"), ("put", "snapshots/*"), ("put", "ledger/*")])
def test_a_put_that_fails_or_whose_answer_is_lost(tmp_path, verb, pattern, after, workers):
    """The run ends with the store's error; the next one takes up what is there, and nothing gets into the chain twice."""
    world = Past(tmp_path)
    world.workers = workers
    world.first_day()
    if pattern != "keys/*":  # only a first run makes a key
        world.backup()
        world.second_day()
    world.store_hook = lambda store: FailOnce(store, verb, pattern, StoreUnavailable("no answer"), after=after)
    with pytest.raises(StoreUnavailable):
        world.backup()
    world.store_hook = None
    result = world.backup()
    assert (result.outcome, result.findings) == ("complete", ())
    assert_nothing_twice(world)
    world.check()
