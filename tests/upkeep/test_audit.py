"""The keyed audit: a ledger that lies about what lives is found, and only an audit that found everything in order leaves a record."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mailbackup.audit.record import Recorded, record_audit
from mailbackup.audit.walk import Audited, Auditor
from mailbackup.crypto.signing import SigningKey
from mailbackup.model.events import ignore
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import Digest, digest
from mailbackup.upkeep.acts import Book, add_act, read_book
from mailbackup.upkeep.registry import Registry
from mailbackup.vault.chain import Trust, find_head, walk
from tests import craft
from tests.upkeep.lies import lie
from tests.vault.past import Past

STRANGER = SigningKey.generate()


@pytest.fixture
def past(tmp_path: Path) -> Past:
    """Two complete snapshots."""
    past = Past(tmp_path / "host")
    past.first_day()
    assert past.backup().outcome == "complete"
    past.second_day()
    assert past.backup().outcome == "complete"
    return past


def walked(past: Past) -> tuple[Registry, tuple[int, Digest]]:
    """What the ledger says, and its head."""
    registry, head = Registry(), (0, Digest(""))
    with closing(past.store()) as store:
        for link in walk(store, past.anchors, Trust(past.anchors.admin), last=find_head(store)):
            registry.learn(store, link)
            head = (link.seq, link.sha256)
    return registry, head


def audit(
    past: Past,
    signers: list[SigningKey],
    *,
    sample: float | None = None,
    meanwhile: Callable[[Registry], object] = ignore,
    newest: int = 99,
) -> tuple[Audited, Recorded]:
    """What `verify --decrypt` does in one store once it has walked the ledger; `meanwhile` happens before the snapshots are opened."""
    registry, head = walked(past)
    meanwhile(registry)
    with closing(past.store()) as store, craft.reading(past, past.anchors) as reader:
        book = read_book(store, past.anchors)
        audited = Auditor(reader, registry, ignore, sample, book).run(list(reader.snapshots())[:newest])
        recorded = record_audit(store, past.anchors, signers, registry=registry, head=head, audited=audited, findings=audited.findings)
    return audited, recorded


def kinds(audited: Audited) -> set[FindingKind]:
    return {finding.kind for finding in audited.findings}


def book_of(past: Past) -> Book:
    with closing(past.store()) as store:
        return read_book(store, past.anchors)


def test_an_audit_that_finds_everything_in_order_leaves_a_record(past: Past) -> None:
    audited, recorded = audit(past, [past.admin])
    assert audited.findings == []
    assert recorded == Recorded(1)
    act = book_of(past).audit
    assert act is not None
    assert act.head is not None
    assert act.head.seq == craft.head_of(past)
    assert past.verify(decrypt=True).outcome == "clean"


def test_nothing_lives_for_nothing_after_a_complete_snapshot(past: Past) -> None:
    assert audit(past, [])[0].waste == 0


def test_what_no_tree_refers_to_is_counted_as_waste(past: Past) -> None:
    with craft.Craft(past) as run:
        unused = run.blob(b"nobody refers to this" * 100)
        seq = run.commit()
    wasted = past.live_in_ledger() - past.reached(seq)
    assert (unused.pack, unused.number) in wasted
    assert audit(past, [])[0].waste == len(wasted)


@pytest.mark.parametrize("signers", [[], [STRANGER]])
def test_without_a_key_that_may_sign_there_is_no_record(past: Past, signers: list[SigningKey]) -> None:
    assert "no key" in audit(past, signers)[1].why
    assert book_of(past).acts == []


def test_a_key_with_the_role_drill_may_sign_the_record(past: Past) -> None:
    craft.trust(past, grant=[STRANGER], role="drill")
    assert audit(past, [STRANGER])[1] == Recorded(1)


def test_the_writer_may_not(past: Past) -> None:
    assert audit(past, [craft.writer_key(past)])[1].act is None


def test_a_sample_leaves_no_record(past: Past) -> None:
    assert "sample" in audit(past, [past.admin], sample=0.5)[1].why


def test_a_snapshot_that_was_made_meanwhile_is_not_covered_by_the_record(past: Past) -> None:
    head = craft.head_of(past)
    past.deliver("99.late:2,S", b"Subject: late\n\nlate\n")
    audited, recorded = audit(past, [past.admin], meanwhile=lambda _: past.backup())
    act = book_of(past).audit
    assert recorded.act is not None
    assert act is not None
    assert act.head is not None
    assert act.head.seq == head < craft.head_of(past)
    assert past.committed()[-1] not in audited.snapshots


def test_a_snapshot_that_nobody_opened_leaves_no_record(past: Past) -> None:
    assert f"snapshot {past.committed()[0]}" in audit(past, [past.admin], newest=1)[1].why


def test_a_snapshot_that_is_not_the_one_of_the_ledger_is_found(past: Past) -> None:
    def other(registry: Registry) -> None:
        registry.objects |= {key: digest(b"another") for key in registry.objects if key.startswith("snapshots/")}

    audited, recorded = audit(past, [past.admin], meanwhile=other)
    assert kinds(audited) == {FindingKind.CHAIN_BROKEN}
    assert recorded.act is None


def test_a_stop_of_what_the_snapshots_own_trees_refer_to_is_found(past: Past) -> None:
    newest = past.committed()[-1]
    lie(past, newest, max(past.reached(newest)))
    refused(past)


def test_a_stop_of_what_a_later_snapshot_refers_to_is_found(past: Past) -> None:
    with craft.Craft(past) as run:
        empty = run.commit()
    needed = max(past.reached(past.committed()[0]))
    assert needed not in past.reached(empty)
    with craft.Craft(past) as run:
        kept = run.blob(b"k" * 5000)
        later = run.commit(directories={past.home: [run.directory(), run.file(b"kept", refs=[kept])]})
    with craft.Craft(past) as run:
        run.commit(directories={past.home: [run.directory(), run.file(b"kept", refs=[kept])]})
    lie(past, later, (kept.pack, kept.number))
    refused(past)


def refused(past: Past) -> None:
    """The lie is found by who can open the trees, and by nobody else; no record says that all is well."""
    assert past.verify().outcome == "clean"
    audited, recorded = audit(past, [past.admin])
    assert kinds(audited) == {FindingKind.NOT_LIVE}
    assert recorded.act is None
    assert book_of(past).acts == []
    assert FindingKind.NOT_LIVE in {finding.kind for finding in past.verify(decrypt=True).findings}


def test_a_true_stop_is_no_lie(past: Past) -> None:
    with craft.Craft(past) as run:
        unused = run.blob(b"u" * 5000)
        seq = run.commit()
    lie(past, seq, (unused.pack, unused.number))
    assert audit(past, [past.admin])[1] == Recorded(1)


def test_snapshots_whose_objects_a_prune_act_deleted_are_not_looked_at(past: Past) -> None:
    first = past.committed()[0]
    with closing(past.store()) as store:
        add_act(store, past.anchors, past.admin, "prune", lambda _: {"gone": (first,)})
        for key in [key for key, _ in store.list("snapshots/") if int(key[10:20]) == first]:
            os.unlink(f"{past.vault}/{key}")
    audited, recorded = audit(past, [past.admin])
    assert first not in audited.snapshots
    assert recorded == Recorded(2)


def test_a_writer_cannot_keep_a_snapshot_from_being_looked_at(past: Past) -> None:
    """It says that the store never got it; the store has it, and its trees refer to what a lie stopped."""
    newest = past.committed()[-1]
    lie(past, newest, max(past.reached(newest)))
    with closing(past.store()) as store:
        members = {"snapshots": tuple(past.committed()), "gone": tuple(past.committed())}
        add_act(store, past.anchors, craft.writer_key(past), "received-without", lambda _: dict(members))
    audited, recorded = audit(past, [past.admin])
    assert FindingKind.NOT_LIVE in kinds(audited)
    assert recorded.act is None


def test_a_snapshot_that_never_came_here_is_no_damage(past: Past) -> None:
    first = past.committed()[0]
    with closing(past.store()) as store:
        add_act(store, past.anchors, craft.writer_key(past), "received-without", lambda _: {"snapshots": (first,)})
        store.delete(next(key for key, _ in store.list("snapshots/") if int(key[10:20]) == first))
    assert audit(past, [past.admin])[1] == Recorded(2)
