"""The benchmark's made-up store: the same bytes for everybody, and the percentages that it promises. Nothing is timed here."""

import hashlib
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.bench.generate import generate, listing, nightly

MESSAGES = 600


def contents(root: Path) -> dict[str, tuple[str, int]]:
    """Every file below root by name: hash and modification time."""
    found = {}
    for where, _, names in os.walk(root):
        for name in names:
            path = Path(where, name)
            found[str(path.relative_to(root))] = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
    return found


def bases(root: Path) -> dict[str, str]:
    """Base name -> path of every message."""
    return {path.rsplit("/", 1)[1].partition(":2,")[0]: path for path in listing(str(root))}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    generate(tmp_path / "mail", MESSAGES, users=12)
    return tmp_path / "mail"


def test_same_seed_gives_the_same_bytes(store: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again/mail", tmp_path / "other/mail"
    generate(again, MESSAGES, users=12)
    generate(other, MESSAGES, users=12, seed=2)
    assert contents(store) == contents(again)
    assert contents(store) != contents(other)
    assert nightly(store, 1) == nightly(again, 1)
    assert contents(store) == contents(again)


def test_small_profile_has_small_messages(tmp_path: Path) -> None:
    generate(tmp_path / "mail", MESSAGES, users=12, profile="small")
    sizes = [os.path.getsize(path) for path in listing(str(tmp_path / "mail"))]
    assert len(sizes) == MESSAGES
    assert 1_000 < sum(sizes) / len(sizes) < 4_000


def test_a_part_of_the_mails_goes_to_several_users(store: Path) -> None:
    bodies = Counter(Path(path).read_bytes().partition(b"\n\n")[2] for path in listing(str(store)))
    assert bodies.total() == MESSAGES
    assert 0.10 < sum(count > 1 for count in bodies.values()) / len(bodies) < 0.20
    assert max(bodies.values()) <= 8


def test_names_and_uidlists_are_as_dovecot_makes_them(store: Path) -> None:
    for base, path in bases(store).items():
        assert re.fullmatch(r"\d+\.M\d+P\d+\.mx1,S=\d+,W=\d+", base)
        assert int(re.search(r"S=(\d+)", base).group(1)) == os.path.getsize(path)  # type: ignore[union-attr]
        assert os.path.getmtime(path) // 1 == int(base.partition(".")[0])
    for uidlist in store.rglob("dovecot-uidlist"):
        head, *rows = uidlist.read_text().splitlines()
        listed = {row.partition(" :")[2] for row in rows}
        assert f" N{len(rows) + 1} " in head
        assert listed == {base for base, path in bases(store).items() if Path(path).parent.parent == uidlist.parent}


def test_a_night_changes_what_it_says(store: Path) -> None:
    before = bases(store)
    assert nightly(store, 1) == {"before": MESSAGES, "new": 9, "renamed": 42, "deleted": 3}
    after = bases(store)
    assert len(after.keys() - before.keys()) == 9
    assert len(before.keys() - after.keys()) == 3
    assert sum(before[base] != after[base] for base in before.keys() & after.keys()) == 42
    listed = [row.partition(" :")[2] for uidlist in store.rglob("dovecot-uidlist") for row in uidlist.read_text().splitlines()[1:]]
    assert sorted(listed) == sorted(after)
