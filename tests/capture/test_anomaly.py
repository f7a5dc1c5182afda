"""The anomaly guard: mail that left or changed in masses freezes pruning; what moves about does not."""

from __future__ import annotations

import json
import os
import shutil
from typing import Any

import pytest

from mailbackup.jobs.status import status
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import entry_key
from mailbackup.model.results import BackupResult
from mailbackup.testing.crashpoints import Crash, CrashingStore, CrashPoint, count_operations
from mailbackup.vault import writer
from tests.capture.look import check, kinds
from tests.vault.past import BOB, Past
from tests.world import ALICE, World

ANOMALY, SHRANK = FindingKind.ANOMALY, FindingKind.MAILBOX_SHRANK


@pytest.fixture
def world(tmp_path: Any) -> World:
    return World(tmp_path)


def deliver(world: World, count: int, address: str = ALICE, first: int = 0) -> None:
    for n in range(first, first + count):
        world.deliver(f"{n}.M{n}P1.mx1:2,", b"Subject: %d\n\nwords %d for %s\n" % (n, n, address.encode()), address)


def names(world: World, address: str = ALICE) -> list[str]:
    cur = f"{world.maildir(address)}/cur"
    return [f"{cur}/{name}" for name in sorted(os.listdir(cur))]


def encrypt(path: str, *, headers: bool = False) -> None:
    """Another file takes the place of a message."""
    with open(path, "rb") as file:
        content = file.read()
    with open(path + "~", "wb") as file:
        file.write(content.partition(b"\n\n")[0] + b"\n\nsecret" + content[::-1] if headers else bytes(255 - c for c in content))
    os.rename(path + "~", path)


def freeze(world: World, result: BackupResult) -> str | None:
    """What the snapshot's entry asks of the pruning machine."""
    with open(f"{world.vault}/{entry_key(result.seq)}", "rb") as file:
        reason = json.loads(file.readline()).get("freeze")
    assert reason is None or isinstance(reason, str)
    return reason


def facts(world: World) -> list[str]:
    return [fact.text for fact in status(world.context).facts if fact.name == "anomaly"]


@pytest.mark.parametrize(("before", "left", "alarm"), [(49, 0, False), (50, 25, False), (50, 24, True), (200, 99, True)])
def test_how_much_may_be_deleted(world: World, before: int, left: int, alarm: bool) -> None:
    """More than half of at least 50, also where as many new messages came and where it is said to be meant."""
    deliver(world, before)
    world.backup()
    for path in names(world)[: before - left]:
        os.unlink(path)
    deliver(world, before - left, first=1000)
    result = world.backup()
    assert set(kinds(result)) == ({ANOMALY, SHRANK} if alarm else set())
    assert (result.outcome, result.messages) == ("explained" if alarm else "complete", before)
    reason = f"{before - left} of {before} messages were deleted"
    assert freeze(world, result) == (reason if alarm else None)
    assert [reason in text for text in facts(world)] == ([True] if alarm else [])
    quiet = world.backup()
    assert (kinds(quiet), freeze(world, quiet)) == ([], None)
    assert len(facts(world)) == alarm
    check(world, quiet)


@pytest.mark.parametrize(("count", "alarm"), [(10, False), (11, True)])
@pytest.mark.parametrize("headers", [False, True])
def test_how_much_may_change_in_place(world: World, count: int, alarm: bool, headers: bool) -> None:
    """More than a tenth with another text under the same name."""
    deliver(world, 100)
    world.backup()
    for path in names(world)[:count]:
        encrypt(path, headers=headers)
    result = world.backup()
    assert kinds(result) == ([ANOMALY] if alarm else [])
    assert freeze(world, result) == (f"{count} of 100 messages have another body under the same name" if alarm else None)
    check(world, result)


def test_encrypted_under_other_names(world: World) -> None:
    """Then the old ones are gone."""
    deliver(world, 60)
    world.backup()
    for path in names(world):
        encrypt(path)
        os.rename(path, path.replace(".mx1:", ".mx1.locked:"))
    result = world.backup()
    assert (set(kinds(result)), freeze(world, result)) == ({ANOMALY, SHRANK}, "60 of 60 messages were deleted")


def test_whole_folders_go(world: World) -> None:
    """What was in them is gone."""
    deliver(world, 50)
    for n in range(60):
        world.deliver(f"{n}.old:2,", b"Subject: old %d\n\nold %d\n" % (n, n), folder=".Old")
    world.backup()
    shutil.rmtree(world.folder(".Old"))
    result = world.backup(accept_shrink=True)
    assert (set(kinds(result)), freeze(world, result)) == ({ANOMALY, SHRANK}, "60 of 110 messages were deleted")


def test_what_moves_is_not_gone(world: World) -> None:
    """To another folder, with its name or another one; with its whole folder; other headers; other inodes."""
    deliver(world, 60)
    for n in range(60):
        world.deliver(f"{n}.old:2,", b"Subject: old %d\n\nold %d\n" % (n, n), folder=".Old")
    world.backup()
    archive = world.folder(".Archive")
    for number, path in enumerate(names(world)):
        name = os.path.basename(path)
        os.rename(path, f"{archive}/cur/{name if number % 10 else f'x{name}'}")
    os.rename(world.folder(".Old"), f"{world.maildir()}/.Older")
    for name in os.listdir(f"{world.maildir()}/.Older/cur"):
        os.rename(f"{world.maildir()}/.Older/cur/{name}", f"{world.maildir()}/.Older/cur/y{name}")
    moved = world.backup()
    assert (kinds(moved), moved.messages, freeze(world, moved)) == ([], 120, None)
    cur = f"{archive}/cur"
    for name in os.listdir(cur):
        with open(f"{cur}/{name}", "rb") as file:
            content = file.read()
        with open(f"{cur}/{name}~", "wb") as file:
            file.write(b"X-Seen: yes\n" + content if name[0] == "x" else content)
        os.rename(f"{cur}/{name}~", f"{cur}/{name}")
    again = world.backup()
    assert (kinds(again), freeze(world, again)) == ([], None)
    check(world, moved, again)


def test_one_mailbox_is_information(world: World) -> None:
    """Somebody cleans up, or leaves: that is said, and prune goes on."""
    deliver(world, 60)
    deliver(world, 70, BOB)
    deliver(world, 200, "carol@example.org")
    world.backup()
    for path in names(world)[:31]:
        os.unlink(path)
    os.rename(f"{world.mail}/example.org/bob", f"{world.root}/bob")
    result = world.backup()
    assert [(finding.kind, finding.subject) for finding in result.findings] == [(SHRANK, ALICE), (SHRANK, BOB)]
    assert "31 of its 60 messages" in result.findings[0].detail
    assert (result.outcome, freeze(world, result), facts(world)) == ("explained", None, [])
    check(world, result)


def test_what_the_fall_guard_keeps_is_not_gone(world: World) -> None:
    """It is in the snapshot; said to be meant, it goes, and pruning waits."""
    deliver(world, 80)
    world.backup()
    for path in names(world):
        os.unlink(path)
    kept = world.backup()
    assert (kinds(kept), freeze(world, kept)) == ([FindingKind.SHRUNK], None)
    meant = world.backup(accept_shrink=True)
    assert (set(kinds(meant)), freeze(world, meant)) == ({ANOMALY, SHRANK}, "80 of 80 messages were deleted")


def test_a_run_that_died_forgets_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a checkpoint the state has the emptied mailboxes as they are; what they lost still counts."""
    monkeypatch.setattr(writer, "CHECKPOINT_BYTES", 0)
    world = Past(tmp_path)
    boxes = [f"user{n}@example.org" for n in range(5)]
    for address in boxes:
        deliver(world, 40, address)
    world.backup()
    for address in boxes:
        for path in names(world, address)[:25]:
            os.unlink(path)
        deliver(world, 25, address, first=1000)

    def run(point: CrashPoint) -> BackupResult:
        world.store_hook = lambda store: CrashingStore(store, point)
        try:
            return world.backup()
        finally:
            world.store_hook = None

    world.save("before")
    total = count_operations(run)
    world.put_back("before")
    with pytest.raises(Crash):
        run(CrashPoint(total - 3))
    result = world.backup()
    assert freeze(world, result) == "125 of 200 messages were deleted"
    quiet = world.backup()
    assert (kinds(quiet), freeze(world, quiet)) == ([], None)
