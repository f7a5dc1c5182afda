"""`erase`: what only one mailbox needs goes, what others refer to stays, and no restore brings the mailbox back."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from mailbackup import app, erasure
from mailbackup.audit.walk import Auditor
from mailbackup.content.pack import footer_size, parse_footer
from mailbackup.errors import IdentityMissing, KeyMalformed, NotFound, SafetyRefusal, UsageError
from mailbackup.model.erasure import EraseResult
from mailbackup.model.events import ignore
from mailbackup.model.ids import PackId, act_key, pack_key
from mailbackup.model.ledger import Act, Head, PackRow, from_ranges, tombstone
from mailbackup.model.retention import Policy
from mailbackup.model.tree import BlobRef
from mailbackup.restore.diff import diff
from mailbackup.upkeep.acts import Book, read_book
from mailbackup.upkeep.planning import Rules, plan
from mailbackup.upkeep.prune import look
from tests import craft
from tests.upkeep.lies import lie
from tests.vault.past import ALICE, BOB, LARGE, Past, letter

CAROL, DAVE = "carol@example.org", "dave@example.org"
_BODY = os.urandom(60_000)


@pytest.fixture
def past(tmp_path: Path) -> Past:
    """Carol has mail of her own and a large one that Alice has as well, in two snapshots; in the newest she is gone."""
    past = Past(tmp_path / "host")
    past.first_day()
    assert past.backup().outcome == "complete"
    past.deliver("1.own:2,S", letter("for carol", _BODY), CAROL)
    past.deliver("2.both:2,S", letter("large", LARGE), CAROL)
    past.settle()
    assert past.backup().outcome == "complete"
    past.deliver("3.more:2,S", letter("more for carol", _BODY[:50_000]), CAROL)
    past.settle()
    assert past.backup().outcome == "complete"
    remove(past)
    return past


def remove(past: Past, address: str = CAROL) -> None:
    """The mailbox goes from the mail server, and a snapshot says so."""
    shutil.rmtree(os.path.dirname(past.maildir(address)))
    past.settle()
    assert past.backup(accept_shrink=True).outcome in ("complete", "explained")


def erase(past: Past, address: str = CAROL, *, planned: bool = False) -> EraseResult:
    return erasure.erase(past.context, address, planned=planned)


def book_of(past: Past) -> Book:
    with closing(past.store()) as store:
        return read_book(store, past.anchors)


def key_of(address: str, past: Past, seq: int) -> str:
    with craft.reading(past) as reader:
        return next(row.key for row, _ in reader.table(reader.snapshot(reader.find(str(seq)))) if row.address == address)


def needed_by_others(past: Past) -> set[tuple[str, int]]:
    """Blocks that the trees reach once Carol's mailbox is left out, as the audit has it."""
    found: set[tuple[str, int]] = set()
    for seq in past.committed():
        found |= past.reached(seq)
    return found


def erased_blocks(past: Past) -> set[tuple[str, int]]:
    packs = past.registry()[0].packs
    rows = [(pack, ranges) for pack, parts in book_of(past).erased.items() for ranges in parts if ranges is not None]
    return {(pack, number) for pack, ranges in rows for number in from_ranges(ranges, packs[PackId(pack)].row.blocks)}


def test_the_plan_says_what_goes_and_changes_nothing(past: Past) -> None:
    before = past.objects()
    plan = erase(past, planned=True)
    (store,) = plan.stores
    assert (plan.outcome, store.outcome, store.snapshots, store.messages) == ("planned", "planned", 2, 3)
    assert store.bytes > len(_BODY)
    assert store.free == 0  # its packs hold what the snapshots themselves need
    assert store.shared > 0  # the large message that Alice has as well
    assert past.objects() == before


def test_what_only_this_mailbox_needs_is_named_by_an_act_of_the_admin(past: Past) -> None:
    everything = needed_by_others(past)
    result = erase(past)
    act = book_of(past).acts[-1].act
    assert (result.outcome, act.type, act.signer) == ("erased", "erase", past.admin.public)
    assert act.mailbox == tombstone(past.anchors.vault, key_of(CAROL, past, past.committed()[1]))
    assert act.head is not None
    assert act.head.seq == craft.head_of(past)
    gone = erased_blocks(past)
    assert len(gone) == result.stores[0].blocks > 0
    assert gone <= everything - past.live_in_ledger()


def test_everything_else_restores_when_the_erased_blocks_are_gone(past: Past) -> None:
    """The blocks are overwritten in their packs: harder than any prune."""
    seqs = past.committed()
    erase(past)
    packs = past.registry()[0].packs
    by_pack: dict[str, set[int]] = {}
    for pack, number in erased_blocks(past):
        by_pack.setdefault(pack, set()).add(number)
    for pack, numbers in by_pack.items():
        overwrite(past, packs[PackId(pack)].row, numbers)
    for seq in seqs:
        restored, held = past.restored(seq), past.recall(seq)
        assert restored.home == held.home
        assert restored.mail == {address: mail for address, mail in held.mail.items() if address != CAROL}


def overwrite(past: Past, pack: PackRow, numbers: set[int]) -> None:
    path = f"{past.vault}/{pack_key(pack.id)}"
    with open(path, "r+b") as file:
        file.seek(pack.size - footer_size(pack.blocks))
        rows = parse_footer(file.read(), pack.blocks, pack.size, path)
        for number in numbers:
            file.seek(rows[number].offset)
            file.write(bytes(rows[number].length))


def test_packs_that_nothing_else_needs_are_told_apart(past: Past) -> None:
    content = dave(past)
    (store,) = erase(past, DAVE, planned=True).stores
    assert store.packs == 2
    assert store.bytes > store.free == content.length


def test_prune_deletes_what_was_erased_though_its_snapshots_are_kept(past: Past) -> None:
    pack = dave(past).pack
    assert pack not in to_delete(past)
    erase(past, DAVE)
    assert to_delete(past) == [pack]


def to_delete(past: Past) -> list[PackId]:
    """What prune would delete, long after everything was seen and audited, when it keeps all snapshots."""
    with closing(past.store()) as store:
        history = look(store, past.anchors).history
    for entry in history.entries:
        entry.seen = entry.time
    history.book.audit = Act(
        format=1, vault=past.anchors.vault, chain="", seq=1, prev=None, type="audit", time="2026-11-24T00:00:00Z", signer=past.admin.public,
        head=Head(seq=history.head[0], sha256=history.head[1]),
    )  # fmt: skip
    now = history.entries[-1].time + timedelta(days=30)
    return plan(history, Rules(policy=Policy(last=99)), now).packs


def dave(past: Past) -> BlobRef:
    """A mailbox in one snapshot, with one message in a pack of its own. Returns where that lies."""
    with craft.Craft(past) as run:
        content = run.blob(_BODY)
        first = run.commit()
    with craft.Craft(past) as run:
        seq = run.commit(mailboxes=[run.mailbox([(run.file(b"1.m", refs=[content]), "")], address=DAVE)])
    with craft.Craft(past) as run:
        last = run.commit()
    blocks = past.reached(seq) - past.reached(first)
    lie(past, last, *blocks)
    return content


def test_no_restore_brings_it_back(past: Past) -> None:
    seq = str(past.committed()[1])
    assert past.restore("before", CAROL, at=seq).outcome == "complete"
    erase(past)
    with pytest.raises(NotFound, match=r"was erased on 20\d\d-\d\d-\d\d, act 1"):
        past.restore("after", CAROL, at=seq)
    assert past.restore("all", None, at=seq).outcome == "complete"
    assert sorted(os.listdir(f"{past.root}/all")) == [ALICE, BOB]
    assert [line.address for line in app.mailboxes(past.context, at=seq)] == [ALICE, BOB]
    with pytest.raises(NotFound):
        app.messages(past.context, CAROL, at=seq)


def test_a_difference_does_not_name_it(past: Past) -> None:
    assert CAROL in different(past)
    erase(past)
    assert CAROL not in different(past)


def different(past: Past) -> set[str]:
    """Addresses of the mailboxes that differ between the first two snapshots."""
    with craft.reading(past) as reader:
        first, second = (reader.snapshot(reader.find(str(seq))) for seq in past.committed()[:2])
        return {row.address for row in diff(reader, first, second).mailboxes}


def test_a_mailbox_that_came_back_is_another_one(past: Past) -> None:
    erase(past)
    past.deliver("9.back:2,S", letter("back"), CAROL)
    past.settle()
    past.backup()
    assert past.restore("back", CAROL).outcome == "complete"
    with pytest.raises(NotFound, match="erased"):
        past.restore("old", CAROL, at=str(past.committed()[1]))
    with pytest.raises(SafetyRefusal, match="newest"):
        erase(past)
    remove(past)
    assert erase(past).stores[0].snapshots == 1


def test_a_mailbox_in_the_newest_snapshot_is_refused(past: Past) -> None:
    before = past.objects()
    with pytest.raises(SafetyRefusal, match="newest snapshot"):
        erase(past, ALICE)
    assert past.objects() == before


def test_what_is_counted_as_live_is_refused(past: Past) -> None:
    """The newest snapshot does not hold the mailbox, but it is incomplete: it let go of nothing."""
    past.deliver("9.back:2,S", letter("back", _BODY), CAROL)
    past.settle()
    past.backup()
    with craft.Craft(past) as run:
        run.commit(outcome="incomplete")
    with pytest.raises(SafetyRefusal, match="live"):
        erase(past)
    assert book_of(past).acts == []


def test_an_unknown_mailbox_is_not_found(past: Past) -> None:
    with pytest.raises(NotFound):
        erase(past, "nobody@example.org")


def test_erasing_twice_finds_nothing_more(past: Past) -> None:
    erase(past)
    with pytest.raises(NotFound):
        erase(past)


def test_without_the_recovery_kit_nothing_is_erased(past: Past, tmp_path: Path) -> None:
    with pytest.raises(IdentityMissing):
        erasure.erase(replace(past.context, identity_file=None), CAROL)
    bare = tmp_path / "bare.txt"
    with open(past.kit, encoding="utf-8") as file:
        bare.write_text(next(line for line in file if line.startswith("AGE-SECRET-KEY")))
    with pytest.raises(KeyMalformed):
        erasure.erase(replace(past.context, identity_file=str(bare)), CAROL)


def test_an_act_of_somebody_else_hides_nothing(past: Past) -> None:
    """Only the admin erases; and acts that cannot be believed keep nobody from a restore."""
    seq = str(past.committed()[1])
    erase(past)
    raw = past.raw(act_key(1))
    craft.put_raw(past, act_key(1), raw.replace(past.admin.public.encode(), craft.writer_key(past).public.encode()))
    assert past.restore("again", CAROL, at=seq).outcome == "complete"
    assert past.verify().outcome == "damaged"


def test_the_audit_skips_what_was_erased(past: Past) -> None:
    erase(past)
    registry, packs = past.registry()[0], past.registry()[0].packs
    for pack, number in erased_blocks(past):
        overwrite(past, packs[PackId(pack)].row, {number})
    with craft.reading(past) as reader:
        audited = Auditor(reader, registry, ignore, None, book_of(past)).run(list(reader.snapshots()))
    assert audited.findings == []


def test_the_command_wants_a_yes(past: Past) -> None:
    from mailbackup.cli.main import run

    options = ["--config", past.config_path, "--state", past.state, "--identity", past.kit]
    if "erase" not in str(_commands()):
        pytest.skip("the command is not part of the program yet")
    assert run([*options, "erase", CAROL]) == UsageError.exit_status
    assert book_of(past).acts == []
    assert run([*options, "erase", CAROL, "--dry-run"]) == 0
    assert book_of(past).acts == []
    assert run([*options, "erase", CAROL, "--yes"]) == 0
    assert len(book_of(past).acts) == 1


def _commands() -> object:
    from mailbackup.cli.program import program

    return list(program().commands)
