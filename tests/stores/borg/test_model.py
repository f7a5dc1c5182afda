"""Whatever is done to a Borg store in whatever order, it reads like a dict that is written once."""

from __future__ import annotations

import contextlib
import itertools
import os
import tempfile

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import rule

from mailbackup.model.options import StoreConfig
from mailbackup.stores.base import Store
from mailbackup.stores.borg.store import open_borg
from tests.stores.borg.server import BORG
from tests.stores.test_store_model import StoreMachine

CAMPAIGN = bool(os.environ.get("MAILBACKUP_CAMPAIGN"))


class BorgMachine(StoreMachine):
    def open(self) -> Store:
        self.top = self.cleanup.enter_context(tempfile.TemporaryDirectory())
        self.numbers = itertools.count()
        self.place = StoreConfig(name="box", url=f"borg://{self.top}/repository", borg_path=BORG)
        return self.another()

    def another(self) -> Store:
        """A store that knows nothing but the repository."""
        store = open_borg(self.place, create=True, work_dir=f"{self.top}/work-{next(self.numbers)}")
        return self.cleanup.enter_context(contextlib.closing(store))

    @rule()
    def open_again(self) -> None:
        """Another host sees the same after a flush."""
        self.store.flush()
        if self.writing is None:
            self.store = self.another()

    @rule()
    def flush(self) -> None:
        self.store.flush()


TestBorgModel = BorgMachine.TestCase
TestBorgModel.settings = settings(
    max_examples=20 if CAMPAIGN else 2,
    stateful_step_count=14,
    deadline=None,
    phases=[Phase.generate],  # a call takes a third of a second: no time for shrinking
    suppress_health_check=list(HealthCheck),
)
