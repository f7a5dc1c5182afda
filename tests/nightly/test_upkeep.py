"""Read-back and rolling scrub: they find what was damaged, and nothing where nothing was."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from mailbackup.model.events import ignore, never
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import LEDGER_PAGE, pack_key
from mailbackup.upkeep import page
from mailbackup.upkeep.readback import ReadBack, read_back
from mailbackup.upkeep.rolling import Rolled, rolling_scrub
from mailbackup.vault.chain import find_head
from tests.nightly.conftest import Host


def back(host: Host, after: int = 0) -> ReadBack:
    with contextlib.closing(host.store()) as store:
        return read_back(store, host.context.anchors, after=after, stop=never, on_event=ignore)


def roll(host: Host, after: str = "", budget: int = 1 << 30) -> Rolled:
    with contextlib.closing(host.store()) as store:
        return rolling_scrub(store, host.context.anchors, after=after, budget=budget, stop=never, on_event=ignore)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def nights(host: Host, count: int, size: int = 40_000) -> None:
    """Snapshots with a pack each."""
    for night in range(count):
        host.deliver(f"{night}.night:2,", b"Subject: %d\n\n" % night + os.urandom(size))
        assert host.backup().outcome == "complete"


def test_everything_that_was_written_is_read_back(host: Host):
    nights(host, 2)
    found = back(host)
    assert (found.findings, found.last, found.proven) == ([], 3, True)
    assert found.objects == len(host.objects())  # nothing of a fresh vault is left out
    later = back(host, after=2)
    assert (later.last, later.proven) == (3, True)
    assert later.bytes < found.bytes


KINDS = ["packs/", "snapshots/", "keys/", "vault.json", "rescue-1.py"]


@pytest.mark.parametrize("damage", ["flip", "cut", "lose"])
@pytest.mark.parametrize("kind", KINDS)
def test_read_back_finds_damage(kind: str, damage: str, host: Host):
    nights(host, 1)
    key = next(key for key in host.objects() if key.startswith(kind))
    path = Path(host.vault, key)
    path.chmod(0o600)
    if damage == "flip":
        flip(path)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    found = back(host)
    assert [(finding.kind, finding.subject) for finding in found.findings] == [
        (FindingKind.OBJECT_MISSING if damage == "lose" else FindingKind.OBJECT_DAMAGED, key)
    ]
    assert not found.proven


def test_read_back_finds_a_damaged_or_missing_entry(host: Host):
    nights(host, 2)
    entry = next(Path(host.vault, key) for key in host.objects() if key.endswith("0000000003.json"))
    raw = entry.read_bytes()
    flip(entry)
    assert [finding.kind for finding in back(host).findings] == [FindingKind.CHAIN_BROKEN]
    entry.unlink()
    assert [finding.kind for finding in back(host).findings] == [FindingKind.CHAIN_BROKEN]  # the state remembers it
    entry.write_bytes(raw)
    assert back(host).proven


def test_told_to_stop_it_proves_nothing(host: Host):
    nights(host, 1)
    with contextlib.closing(host.store()) as store:
        found = read_back(store, host.context.anchors, after=0, stop=lambda: True, on_event=ignore)
    assert (found.findings, found.whole, found.proven) == ([], False, False)


def live(host: Host) -> list[str]:
    with contextlib.closing(host.store()) as store:
        return sorted(page.live_registry(store, host.context.anchors).packs)


def test_the_scrub_goes_round(host: Host):
    nights(host, 5)
    packs = live(host)
    assert len(packs) == 5
    seen, after, wraps = [], "", []
    for _ in range(10):
        rolled = roll(host, after, budget=1)
        assert (rolled.packs, rolled.findings) == (1, [])
        seen.append(rolled.after)
        wraps.append(rolled.wrapped)
        after = rolled.after
    assert seen == packs * 2
    assert wraps == [False] * 4 + [True] + [False] * 4 + [True]
    whole = roll(host, packs[2])
    assert (whole.packs, whole.after, whole.wrapped) == (5, packs[2], True)
    assert whole.bytes == whole.live == sum(Path(host.vault, pack_key(pack)).stat().st_size for pack in packs)


def test_the_budget_holds(host: Host):
    nights(host, 5)
    size = Path(host.vault, pack_key(live(host)[0])).stat().st_size
    assert roll(host, budget=size * 5 // 2).packs == 2
    assert roll(host, "f" * 32, budget=1).after == live(host)[0]  # behind the last it begins anew


def test_the_scrub_finds_damage_when_it_comes_there(host: Host):
    nights(host, 4)
    packs = live(host)
    flip(Path(host.vault, pack_key(packs[2])))
    assert roll(host, "", budget=1).findings == []
    (finding,) = roll(host, packs[1], budget=1).findings
    assert (finding.kind, finding.subject) == (FindingKind.BLOCK_DAMAGED, pack_key(packs[2]))
    assert finding.snapshots


@pytest.mark.parametrize("damage", ["lose", "cut"])
def test_missing_packs_are_found_at_once(damage: str, host: Host):
    nights(host, 4)
    packs = live(host)
    path = Path(host.vault, pack_key(packs[3]))
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1]) if damage == "cut" else path.unlink()
    (finding,) = roll(host, "", budget=1).findings
    assert finding.kind is (FindingKind.OBJECT_DAMAGED if damage == "cut" else FindingKind.OBJECT_MISSING)
    assert finding.subject == pack_key(packs[3])


def test_a_lost_key_is_found_at_once(host: Host):
    nights(host, 1)
    key = next(key for key in host.objects() if key.startswith("keys/"))
    Path(host.vault, key).unlink()
    assert [(f.kind, f.subject) for f in roll(host).findings] == [(FindingKind.OBJECT_MISSING, key)]


def test_dead_packs_are_left_alone(host: Host):
    nights(host, 3)
    before = live(host)
    for path in Path(host.mail).rglob("*.night*"):
        path.unlink()
    host.settle()
    host.backup(accept_shrink=True)
    after = live(host)
    gone = set(before) - set(after)
    assert gone
    for pack in gone:
        Path(host.vault, pack_key(pack)).unlink()
    assert roll(host).findings == []


def test_a_broken_ledger_is_a_finding(host: Host):
    nights(host, 2)
    entry = next(Path(host.vault, key) for key in host.objects() if key.endswith("0000000002.json"))
    flip(entry)
    assert [finding.kind for finding in roll(host).findings] == [FindingKind.CHAIN_BROKEN]


def test_a_second_page(host: Host):
    """Behind entry 256 both begin with the live set of the page, and read nothing before it."""
    nights(host, 2)
    passing = ""
    while len([key for key in host.objects() if key.startswith("ledger/")]) <= LEDGER_PAGE + 3:
        if passing:
            os.unlink(passing)  # each run kills what the one before wrote, also the one that makes entry 256
        passing = host.deliver(f"{os.urandom(4).hex()}.passing:2,", b"Subject: x\n\n" + os.urandom(100))
        host.settle()
        host.backup()
    with contextlib.closing(host.store()) as store:
        anchors, head = host.context.anchors, find_head(store)
        assert next(page.from_page(store, anchors, head)).seq == LEDGER_PAGE
        on_page = live(host)
        first_page = Path(host.vault, "ledger", "0000000000")
        from_one = [link.seq for link in page.from_page(store, anchors, 1)]
        assert from_one == list(range(1, head + 1))
        for path in first_page.iterdir():
            path.unlink()
        assert live(host) == on_page
        assert len(on_page) >= 2
        assert roll(host).findings == []
        assert back(host, after=head - 2).proven
        assert back(host, after=LEDGER_PAGE - 1).proven
        assert [f.kind for f in back(host, after=3).findings] == [FindingKind.CHAIN_BROKEN]
        lost = Path(host.vault, pack_key(on_page[0]))
        lost.unlink()
        assert [f.kind for f in roll(host).findings] == [FindingKind.OBJECT_MISSING]
