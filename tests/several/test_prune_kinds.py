"""Pruning where the store is a distant one: what goes is gone, what stays restores. Without days that pass: these stores have clocks of their own."""

from __future__ import annotations

import os
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from mailbackup.access import open_place
from mailbackup.crypto.signing import SigningKey
from mailbackup.kit import load_identity_file
from mailbackup.model.events import ignore, never
from mailbackup.model.ids import digest, entry_key
from mailbackup.model.retention import Policy
from mailbackup.upkeep.acts import add_audit
from mailbackup.upkeep.planning import Rules
from mailbackup.upkeep.prune import prune
from mailbackup.vault.chain import find_head
from tests.several.conftest import address
from tests.world import World, messages_in

RULES = Rules(policy=Policy(last=1), grace=timedelta(0))


@pytest.mark.parametrize("kind", ["s3-versions", "borg"])
def test_what_goes_is_gone_and_what_stays_restores(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    with address(kind, request, tmp_path) as url:
        world = World(tmp_path, urls=(url,))
        world.deliver("1.stays:2,S", b"Subject: stays\n\n" + os.urandom(900_000))
        world.backup()
        gone = world.deliver("2.goes:2,S", b"Subject: goes\n\n" + os.urandom(100_000))
        world.settle()
        world.backup()
        os.unlink(gone)
        world.settle()
        world.backup()
        kit = load_identity_file(world.kit, None).kit
        assert kit is not None
        admin, context = SigningKey.from_hex(kit.admin_seed), world.context
        with closing(open_place(context, context.config.stores[0])) as store:
            prune(
                store, context.anchors, admin, RULES, stop=never, on_event=ignore
            )  # drops, and is seen by the store's clock or by its act
            head = find_head(store)
            add_audit(store, context.anchors, admin, (head, digest(store.get(entry_key(head), 1 << 20))))
            packs = {key for key, _ in store.list("packs/")}
            done = prune(store, context.anchors, admin, RULES, stop=never, on_event=ignore)
            assert done.bytes > 100_000
            assert done.plan.gone == [2, 3]
            assert len(packs - {key for key, _ in store.list("packs/")}) == 1
        with closing(open_place(context, context.config.stores[0])) as store:
            assert len({key for key, _ in store.list("packs/")}) == len(packs) - 1
            assert [key[:20] for key, _ in store.list("snapshots/")] == ["snapshots/0000000004"]
        assert world.verify(decrypt=True).outcome == "clean"
        assert world.restore("out").outcome == "complete"
        assert messages_in(f"{world.root}/out") == messages_in(world.maildir())
        assert world.backup().outcome == "complete"
