"""Writing several files at once: creating one costs the kernel more than it costs Python, and a thread that waits for the kernel holds nobody up."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from mailbackup.restore.plan import Step
from mailbackup.restore.target import Place

_WAITING_BYTES = 32 << 20
_WAITING_FILES = 64

Outcome = Callable[[], None]
"""Raises what writing the file raised, if anything."""


class Writers:
    """Threads that write files. `on_done` is told each step with its outcome, in the thread of the caller and in the order of the steps."""

    def __init__(self, on_done: Callable[[Step, Outcome], None], threads: int) -> None:
        self._on_done = on_done
        self._pool = ThreadPoolExecutor(threads, "write")
        self._waiting: deque[tuple[Step, Place, Future[None]]] = deque()
        self._bytes = 0

    def submit(self, step: Step, place: Place, write: Outcome) -> None:
        """Write a file soon; `place` is released when it is done. Waits while too much is under way. Raises what `on_done` raises."""
        while self._waiting and (self._bytes + step.entry.size > _WAITING_BYTES or len(self._waiting) >= _WAITING_FILES):
            self._take()
        self._waiting.append((step, place, self._pool.submit(write)))
        self._bytes += step.entry.size

    def drain(self) -> None:
        """Wait for everything that is under way. Raises what `on_done` raises."""
        while self._waiting:
            self._take()

    def close(self) -> None:
        """Wait for what has begun and drop the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for _, place, _ in self._waiting:
            with contextlib.suppress(OSError):
                place.release()
        self._waiting.clear()

    def _take(self) -> None:
        step, place, future = self._waiting.popleft()
        self._bytes -= step.entry.size
        future.exception()  # wait
        place.release()
        self._on_done(step, future.result)
