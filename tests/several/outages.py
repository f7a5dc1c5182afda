"""Stores that go away in the middle of a run, with or without having done what they were asked last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mailbackup.errors import MailbackupError, StoreUnavailable
from mailbackup.stores.base import Store
from mailbackup.testing.wrapper import Wrapper


class Outage(Wrapper):
    """Works for `after` operations, then never again. With `lost_answer` the last of them takes effect, and only its answer is lost."""

    def __init__(self, inner: Store, after: int, *, lost_answer: bool = False, error: type[MailbackupError] = StoreUnavailable) -> None:
        super().__init__(inner)
        self.left = after
        self.lost_answer = lost_answer
        self.error = error

    @contextmanager
    def around(self, verb: str, key: str) -> Iterator[None]:
        """Refuses, or lets it happen and says that it failed."""
        self.left -= 1
        if self.left >= 0 or (self.lost_answer and self.left == -1):
            yield
        if self.left < 0:
            raise self.error(f"store {self.name} went away during {verb} {key}")


def outages(plan: dict[str, Callable[[Store], Store]]) -> Callable[[Store], Store]:
    """A hook for `World.store_hook`: by the name of the store, what stands around it."""
    return lambda store: plan.get(store.name, lambda same: same)(store)


def down(
    name: str, after: int = 0, *, lost_answer: bool = False, error: type[MailbackupError] = StoreUnavailable
) -> Callable[[Store], Store]:
    """A hook in which one store goes away after some operations."""
    return outages({name: lambda store: Outage(store, after, lost_answer=lost_answer, error=error)})
