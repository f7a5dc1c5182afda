"""Die at every step: run something again and again, each time ended at the next store operation.

def run(point):                       # makes its own stores, on the same data, around each of them CrashingStore(store, point)
    ...
for point in crash_points(count_operations(run)):
    with suppress(Crash):
        run(point)
    ...                               # what must hold now? Runs again, without a crash, converge.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mailbackup.stores.base import Store
from mailbackup.testing.wrapper import Wrapper


class Crash(BaseException):
    """The process is gone. Not an Exception: nothing in the program may catch it and go on."""


class CrashPoint:
    """Counts the operations of all stores that share it and ends the process at number `die_at` (from 1; None: never).

    With `after` the operation takes effect, but its caller never learns so. Once dead, every later operation raises Crash without taking
    effect: a clean-up handler of a dead process does not run either.
    """

    def __init__(self, die_at: int | None, *, after: bool = False) -> None:
        self.die_at = die_at
        self.after = after
        self.count = 0
        self.dead = False
        self._lock = threading.Lock()

    @contextmanager
    def operation(self, what: str) -> Iterator[None]:
        """One operation; `what` is the text of the Crash."""
        with self._lock:
            self.count += 1
            now = self.count == self.die_at
            if self.dead or (now and not self.after):
                self.dead = True
                raise Crash(f"{self}: before {what}")
        yield
        if now:
            self.dead = True
            raise Crash(f"{self}: after {what}")

    def __repr__(self) -> str:
        return f"CrashPoint({self.die_at}, after={self.after})"


class CrashingStore(Wrapper):
    """A store whose process dies at operation `die_at`: a number, or a CrashPoint shared by several stores.

    An operation is a call of any verb of Store except `close`, and `commit` of a writer; writes to an unfinished object are not counted, as
    nobody can see them. (A dead writer is still aborted when its context is left; a real one leaves a file in `.tmp`.)
    """

    def __init__(self, inner: Store, die_at: int | CrashPoint, *, after: bool = False) -> None:
        super().__init__(inner)
        self.point = die_at if isinstance(die_at, CrashPoint) else CrashPoint(die_at, after=after)

    @contextmanager
    def around(self, verb: str, key: str) -> Iterator[None]:
        """Dies before or after the body, if it is time."""
        if verb == "write":
            if self.point.dead:
                raise Crash(f"{self.point}: before {verb} {key}")
            yield
            return
        with self.point.operation(f"{verb} {key}"):
            yield


def count_operations(run: Callable[[CrashPoint], object]) -> int:
    """How many store operations `run` makes when nothing crashes."""
    point = CrashPoint(None)
    run(point)
    return point.count


def crash_points(total: int) -> Iterator[CrashPoint]:
    """Both ways to die at each of `total` operations: before it takes effect, and after."""
    for number in range(1, total + 1):
        yield CrashPoint(number)
        yield CrashPoint(number, after=True)
