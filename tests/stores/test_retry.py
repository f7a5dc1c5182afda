"""Patience: what is tried again, how long, and with which pauses. Bandwidth: what threads share."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mailbackup.errors import StoreRefused, StoreUnavailable
from mailbackup.stores.bandwidth import Bandwidth
from mailbackup.stores.retry import Patience, Tries


class Clock:
    """Time that only passes in sleep."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.slept: list[float] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def failing(times: int, error: Exception) -> tuple[list[int], object]:
    seen: list[int] = []

    def action(attempt: int) -> str:
        seen.append(attempt)
        if len(seen) <= times:
            raise error
        return "done"

    return seen, action


def test_what_may_pass_is_tried_again(clock: Clock) -> None:
    seen, action = failing(3, StoreUnavailable("not now"))
    assert Patience(60).run(action) == "done"  # type: ignore[arg-type]
    assert seen == [0, 1, 2, 3]


def test_refusals_are_not_tried_again(clock: Clock) -> None:
    seen, action = failing(3, StoreRefused("never"))
    with pytest.raises(StoreRefused):
        Patience(60).run(action)  # type: ignore[arg-type]
    assert seen == [0]
    assert clock.slept == []


@pytest.mark.parametrize("seconds", [0, 1, 10, 120])
def test_after_its_time_the_last_error_is_raised(clock: Clock, seconds: float) -> None:
    _, action = failing(1 << 30, StoreUnavailable("not now"))
    with pytest.raises(StoreUnavailable, match="not now"):
        Patience(seconds).run(action)  # type: ignore[arg-type]
    assert seconds - 8 <= clock.now - 1000 <= seconds


def test_pauses_grow_to_a_limit_and_differ() -> None:
    patience = Patience(60, first=0.2, most=8)
    for attempt in range(40):
        whole = min(8, 0.2 * 2**attempt)
        pauses = [patience.pause(attempt) for _ in range(20)]
        assert all(whole / 2 <= pause <= whole for pause in pauses)
        assert len(set(pauses)) > 1


def test_progress_begins_anew(clock: Clock) -> None:
    tries = Tries(Patience(5))
    for _ in range(20):
        clock.sleep(4)
        tries.progress()
        tries.failed(StoreUnavailable("not now"))
        assert tries.attempt == 1


def test_without_a_limit_nothing_waits(clock: Clock) -> None:
    Bandwidth(None).take(1 << 40)
    assert not Bandwidth(None).limited
    assert clock.slept == []


def test_threads_share_the_bandwidth() -> None:
    bandwidth = Bandwidth(100_000)
    begin = time.monotonic()
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(bandwidth.take, [10_000] * 5))
    assert 0.35 < time.monotonic() - begin < 0.9  # the fifth begins when the first four have passed


def test_what_was_not_used_is_not_saved_up(clock: Clock) -> None:
    bandwidth = Bandwidth(1000)
    bandwidth.take(1000)
    clock.sleep(100)
    bandwidth.take(1000)
    bandwidth.take(1000)
    assert clock.slept[1:] == [0.0, 1.0] or clock.slept[-1] == 1.0
