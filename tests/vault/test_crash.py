"""Killed at every step of a run, before and after the step takes effect: the next run needs no repair, and no snapshot is lost or wrong."""

import contextlib
import os
from collections.abc import Callable

import pytest

from mailbackup.testing.crashpoints import Crash, CrashingStore, CrashPoint, count_operations, crash_points
from mailbackup.vault import commit, writer
from mailbackup.vault.state import State
from tests.vault.past import Past

CAMPAIGN = bool(os.environ.get("MAILBACKUP_CAMPAIGN"))

Run = Callable[[CrashPoint], object]


def first_run(world: Past) -> None:
    """A host before its first run."""
    world.first_day()


def second_run(world: Past) -> None:
    """A host with a snapshot, after a day in which everything happened that can happen."""
    world.first_day()
    world.backup()
    world.second_day()


def second_run_with_checkpoints(world: Past) -> None:
    """The same, and everything that is shipped is registered at once."""
    second_run(world)


@pytest.fixture
def world(tmp_path, monkeypatch, request):
    if request.param is second_run_with_checkpoints:
        monkeypatch.setattr(writer, "CHECKPOINT_BYTES", 0)
    made = Past(tmp_path)
    request.param(made)
    made.save("before")
    return made


moments = pytest.mark.parametrize("world", [first_run, second_run, second_run_with_checkpoints], indirect=True, ids=lambda f: f.__name__)


def die_everywhere(world: Past, run: Run, share: int = 1) -> int:
    """Let `run` die at each of its steps (or at every n-th), on what was saved; afterwards the next run must find its way.

    Returns the number of steps.
    """
    total = count_operations(run)
    for point in list(crash_points(total))[:: 1 if CAMPAIGN else share]:
        world.put_back("before")
        with pytest.raises(Crash):
            run(point)
        world.remember()
        result = world.backup()
        assert (result.outcome, result.findings) == ("complete", ()), point
        world.check()
    return total


@moments
@pytest.mark.case("19")
def test_killed_at_every_operation_of_the_store(world):
    def run(point: CrashPoint) -> None:
        world.store_hook = lambda store: CrashingStore(store, point)
        try:
            world.backup()
        finally:
            world.store_hook = None

    assert die_everywhere(world, run, 7 if writer.CHECKPOINT_BYTES == 0 else 1) > 8


@pytest.mark.parametrize("world", [first_run, second_run_with_checkpoints], indirect=True, ids=lambda f: f.__name__)
def test_killed_at_every_commit_of_the_state(world, monkeypatch):
    """Among them: what follows was fixed but not put, and put but not pinned."""
    original = State.commit

    def run(point: CrashPoint) -> None:
        def counted(state: State) -> None:
            with point.operation("commit"):
                original(state)

        with monkeypatch.context() as patch:
            patch.setattr(State, "commit", counted)
            world.backup()

    assert die_everywhere(world, run, 3 if writer.CHECKPOINT_BYTES == 0 else 1) >= 4


def dies(*_: object) -> None:
    raise Crash


@pytest.mark.parametrize(("module", "name"), [(writer, "put_pending"), (commit, "promote")])
def test_between_fix_put_and_pin(tmp_path, monkeypatch, module, name):
    """The very bytes that were fixed are the ones that get into the vault, by whichever run."""
    world = Past(tmp_path)
    second_run(world)
    with monkeypatch.context() as patch, contextlib.suppress(Crash):
        patch.setattr(module, name, dies)
        world.backup()
    fixed = dict(world.sql("SELECT key, data FROM pending"))
    assert any(key.startswith("snapshots/") for key in fixed)
    put = {key for key in fixed if key in world.objects()}
    assert put == (set() if name == "put_pending" else set(fixed))
    assert world.backup().outcome == "complete"
    assert {key: world.raw(key) for key in fixed} == fixed
    assert len(world.committed()) == 3
    world.check()
