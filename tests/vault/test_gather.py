"""Re-gathering: years of small nights leave few blocks, whatever happens to the run that does it, and nothing is read again without need."""

from __future__ import annotations

import contextlib
import os
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace as with_other

from mailbackup.capture import messages
from mailbackup.testing.crashpoints import Crash, CrashingStore, CrashPoint, count_operations, crash_points
from mailbackup.vault import gather, writer
from mailbackup.vault.heal import unit_refs
from mailbackup.vault.state import State
from tests.vault.past import ALICE, BOB, LARGE, Past, letter
from tests.vault.test_refcounts import History
from tests.world import messages_in

CAMPAIGN = bool(os.environ.get("MAILBACKUP_CAMPAIGN"))


class Years(Past):
    """A host whose nights are many and small, and whose past nobody asks for unless `remembers`."""

    def __init__(self, root: object, seed: int = 1, *, remembers: bool = True, **options: Any) -> None:
        super().__init__(root)
        self.remembers = remembers
        self.rng = Random(seed)
        self.count = 0
        self.options(**options)

    def options(self, **options: Any) -> None:
        """Set members of [backup]."""
        config = self.context.config
        self._config = with_other(config, backup=with_other(config.backup, **options))

    def remember(self) -> None:
        if self.remembers:
            super().remember()

    def arrive(self, count: int, address: str = ALICE, folder: str = "") -> None:
        """New mail."""
        for _ in range(count):
            self.count += 1
            words = self.rng.randbytes(self.rng.randint(200, 3_000)).hex().encode()
            self.deliver(f"{self.count:06}.mail:2,S", letter(f"number {self.count}", words), address, folder=folder)

    def leave(self, count: int) -> None:
        """Somebody deletes: mostly what is new, sometimes something old."""
        cur = f"{self.maildir()}/cur"
        names = sorted(os.listdir(cur))
        for number in range(count):
            recent = names[-60:] if number % 3 else names
            name = self.rng.choice(recent)
            names.remove(name)
            os.unlink(f"{cur}/{name}")

    def nights(self, count: int, new: int = 1) -> None:
        """So many nights."""
        for _ in range(count):
            self.arrive(new)
            self.settle()
            self.backup()

    def blocks(self, address: str = ALICE) -> int:
        """How many blocks the tree of a mailbox refers to."""
        with contextlib.closing(State(f"{self.state}/state.db", self.anchors.vault)) as state:
            units = [unit for unit in state.units("mail").values() if unit.address == address]
            units[0].tree = state.tree_of(units[0].no)
            return len({(ref.pack, ref.number) for ref in unit_refs(state, units[0])})


def fragments(world: Years, address: str = ALICE) -> int:
    """How many of them are fragments of headers and bodies."""
    with contextlib.closing(State(f"{world.state}/state.db", world.anchors.vault)) as state:
        number = next(unit.no for unit in state.units("mail").values() if unit.address == address)
        return gather._note_of(gather._blocks(state, number)).fragments


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mailbox is due with more than six fragments."""
    monkeypatch.setattr(gather, "MANY", 6)


@pytest.mark.parametrize("gathers", [True, False])
def test_years_of_small_nights_leave_few_blocks(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, gathers: bool) -> None:
    """Ten years, 20,000 messages: at most 400 blocks. The fixed share: fewer nights, messages and allowed fragments."""
    nights, messages, many, limit = (3_650, 20_000, gather.MANY, 400) if CAMPAIGN else (80, 400, 8, 40)
    if CAMPAIGN and not gathers:
        nights = 300
    monkeypatch.setattr(gather, "MANY", many)
    world = Years(tmp_path, remembers=False, gather_budget=gather.BUDGET if gathers else 0)
    world.arrive(messages)
    read = most = 0
    for _ in range(nights):
        world.arrive(5)
        world.leave(5)
        world.settle()
        result = world.backup()
        assert (result.outcome, result.messages) == ("complete", messages)
        read += result.bytes_read
        most = max(most, world.blocks()) if gathers else world.blocks()
    print(f"{most} blocks, {read >> 20} MiB read in {nights} nights")
    assert most <= limit if gathers else most > min(nights, limit)
    world.check_blocks()
    assert messages_in(world.maildir()) == _restored(world)


def _restored(world: Years) -> dict[bytes, Any]:
    world.restore("out", ALICE)
    return messages_in(f"{world.root}/out")


@pytest.mark.usefixtures("few")
def test_what_is_read_again_and_what_is_not(tmp_path: Any) -> None:
    """Only messages in fragments, when there are too many; large bodies are not sent again, nor are those of the other mailbox."""
    world = Years(tmp_path)
    world.deliver("large:2,S", letter("large", LARGE))
    world.arrive(1, BOB)
    world.arrive(150, folder=".Archive")
    world.settle()
    world.backup()
    world.nights(3)
    assert fragments(world) == 7  # two of each night, but of the first, whose bodies are many, only its headers
    gathered = world.backup()  # the stamps of the directories say that nothing changed, and it is read nevertheless
    inbox = sum(os.path.getsize(f"{world.maildir()}/cur/{name}") for name in os.listdir(f"{world.maildir()}/cur"))
    assert (gathered.outcome, gathered.new_messages) == ("complete", 0)
    assert 0 < gathered.bytes_read <= inbox - os.path.getsize(f"{world.maildir()}/cur/large:2,S")
    assert fragments(world) == 3  # those headers stay where they are: to send them again, as much would have to be read as is new
    quiet = [world.backup() for _ in range(3)]
    assert [result.bytes_read for result in quiet] == [0, 0, 0]
    world.check()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("checkpoints", [False, True])
def test_a_gathering_that_dies_anywhere(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, checkpoints: bool) -> None:
    """The next run makes up for it, and every snapshot is what it was."""
    world = Years(tmp_path)
    world.arrive(1, BOB)
    world.nights(4)
    world.save("before")
    if checkpoints:
        monkeypatch.setattr(writer, "CHECKPOINT_BYTES", 0)

    def run(point: CrashPoint) -> None:
        world.store_hook = lambda store: CrashingStore(store, point)
        try:
            world.backup()
        finally:
            world.store_hook = None

    total = count_operations(run)
    assert total >= 8
    assert fragments(world) <= 2
    for point in list(crash_points(total))[:: 1 if CAMPAIGN else 3]:
        world.put_back("before")
        with pytest.raises(Crash):
            run(point)
        world.remember()
        for _ in range(2):
            assert world.backup().outcome == "complete"
        assert fragments(world) <= 2
        world.check()


@pytest.mark.parametrize("seed", range(40 if CAMPAIGN else 4))
def test_random_histories_with_gathering(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Live stays what the newest snapshot refers to, and every snapshot restores, when mailboxes are gathered all the time."""
    monkeypatch.setattr(gather, "MANY", 1)
    History(tmp_path, seed).play(60)


@pytest.mark.usefixtures("few")
def test_the_budget(tmp_path: Any) -> None:
    """The cheapest blocks first, and no more than may be read; 0 turns it off."""
    world = Years(tmp_path, gather_budget=0)
    world.nights(10)
    assert (world.backup().bytes_read, fragments(world)) == (0, 20)
    world.options(gather_budget=8_000)
    read = world.backup().bytes_read
    assert 0 < read <= 8_000
    assert 2 < fragments(world) < 20
    world.check()


@pytest.mark.usefixtures("few")
def test_hollow_blocks_are_left(tmp_path: Any) -> None:
    """Where less than half of what its blocks hold is live, the rest goes into new ones."""
    world = Years(tmp_path)
    world.arrive(900)
    world.settle()
    world.backup()
    stored = world.blocks()
    cur = f"{world.maildir()}/cur"
    for name in sorted(os.listdir(cur)):
        if int(name[:6]) % 20 >= 9:
            os.unlink(f"{cur}/{name}")
    world.settle()
    world.backup(accept_shrink=True)
    world.settle()
    gathered = world.backup()
    assert gathered.bytes_read > 0
    assert world.blocks() < stored
    assert world.backup().bytes_read == 0
    world.check_blocks()


@pytest.mark.usefixtures("few")
def test_a_message_that_cannot_be_read_meanwhile_stays_where_it_is(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its old place is not given up."""
    world = Years(tmp_path)
    world.nights(4)
    real = messages.open_file

    def refuse(name: bytes, fd: int) -> Any:
        if name.startswith(b"000003"):
            raise messages.Unreadable("Input/output error")
        return real(name, fd)

    look = world.look()
    with monkeypatch.context() as patch:
        patch.setattr(messages, "open_file", refuse)
        assert world.backup().outcome == "incomplete"
    world.correct(world.committed()[-1], look)
    world.check_restores(world.committed()[-1])
    assert world.backup().outcome == "complete"
    world.check()


@pytest.mark.usefixtures("few")
def test_a_state_without_notes(tmp_path: Any) -> None:
    """As an older version left it: mailboxes are looked at once."""
    world = Years(tmp_path, gather_budget=0)
    world.nights(5)
    world.sql("DROP TABLE gather")
    world.options(gather_budget=gather.BUDGET)
    assert world.backup().bytes_read > 0
    assert fragments(world) <= 2
    world.check()
