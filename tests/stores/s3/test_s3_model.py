"""Whatever is done to a bucket in whatever order, it reads like a dict that is written once."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import rule, run_state_machine_as_test

from mailbackup.stores.base import Store
from mailbackup.stores.checks import next_component
from tests.stores.s3.stores import Buckets
from tests.stores.test_store_model import PREFIXES, StoreMachine


class S3Machine(StoreMachine):
    buckets: Buckets
    kind: str
    folder: str

    def open(self) -> Store:
        self.folder = self.buckets.folder()
        return self.open_here()

    def open_here(self) -> Store:
        return self.cleanup.enter_context(contextlib.closing(self.buckets.open(self.kind, self.folder)))

    @rule()
    def open_again(self) -> None:
        """Another process would see the same."""
        self.store = self.open_here()

    @rule(prefix=PREFIXES)
    def below(self, prefix: str) -> None:
        """As in every store, except that emptied folders may go on being named (see test_s3_contract)."""
        expected = sorted(key for key in self.model if key.startswith(prefix))
        assert [key for key, _ in self.store.list(prefix)] == expected
        components = {next_component(key, prefix) for key in expected} - {None}
        for named in {*self.store.prefixes(prefix)} ^ components:
            assert named is not None
            assert named not in components
            assert not list(self.store.list(named))


@pytest.mark.parametrize("kind", ["plain", "versions"])
def test_a_bucket_is_like_a_dict(buckets: Buckets, kind: str) -> None:
    machine = type("Machine", (S3Machine,), {"buckets": buckets, "kind": kind})
    few = settings(max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine, settings=few)
