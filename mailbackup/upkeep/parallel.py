"""Several objects at once: what one after another would wait for lines and disks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from mailbackup.model.events import Stop, never
from mailbackup.stores.base import Store

A = TypeVar("A")
B = TypeVar("B")

THREADS = 4  # hashing releases the interpreter; more do not help a disk


def threads_for(store: Store) -> int:
    """How many objects of a store are read at once."""
    return max(THREADS, store.traits.parallel)


def in_order(work: Callable[[A], B], items: Iterable[A], threads: int, stop: Stop = never) -> Generator[B, None, None]:
    """`work` of each item, in the order of the items, `threads` at once. `stop` is asked before each is begun; then what was begun is the rest.

    At most twice as many wait as are worked on, however many items there are. What `work` raises ends it.
    """
    rest = iter(items)
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(threads, "upkeep") as pool:
        try:
            while True:
                if stop():
                    yield from _begun(waiting)
                    return
                waiting.extend(pool.submit(work, item) for item in islice(rest, 2 * threads - len(waiting)))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _begun(waiting: deque[Future[B]]) -> Generator[B, None, None]:
    """What the threads have taken already: the items are taken in order, so the first that can be called off is where it ends."""
    for future in reversed(waiting):
        future.cancel()
    while waiting and not waiting[0].cancelled():
        yield waiting.popleft().result()
