"""Trying again while a store does not answer."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mailbackup.errors import MailbackupError

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """For how many seconds something is tried again, and the pauses between: `first`, doubled each time up to `most`, each cut by up to half at
    random, so that those who were refused together do not come back together.
    """

    seconds: float
    first: float = 0.2
    most: float = 8.0

    def run(self, action: Callable[[int], T]) -> T:
        """What `action(attempt)` returns; attempts count from 0. Errors with `retryable` are tried again, the last one is raised."""
        tries = Tries(self)
        while True:
            try:
                return action(tries.attempt)
            except MailbackupError as error:
                tries.failed(error)

    def pause(self, attempt: int) -> float:
        """Seconds to wait after this attempt."""
        return min(self.most, self.first * (1 << min(attempt, 16))) * random.uniform(0.5, 1)  # noqa: S311 (no secret)


class Tries:
    """The attempts at one thing. The time runs from the first one, or from the last progress."""

    def __init__(self, patience: Patience) -> None:
        self.attempt = 0
        self._patience = patience
        self._end = time.monotonic() + patience.seconds

    def failed(self, error: MailbackupError) -> None:
        """Wait before the next attempt; raises `error` when trying again does not help or the time is over."""
        pause = self._patience.pause(self.attempt)
        if not error.retryable or time.monotonic() + pause > self._end:
            raise error
        time.sleep(pause)
        self.attempt += 1

    def progress(self) -> None:
        """Something was achieved: patience begins anew."""
        self.attempt = 0
        self._end = time.monotonic() + self._patience.seconds
