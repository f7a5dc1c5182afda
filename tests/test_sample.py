"""The made-up mail store."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from mailbackup.errors import AlreadyExists, NotFound
from mailbackup.mail.headers import summary
from mailbackup.mail.maildir import is_message, readable_folder, split_name
from mailbackup.mail.message import header_length, split
from mailbackup.mail.pattern import Pattern
from mailbackup.mail.uidlist import parse
from mailbackup.sample.mailstore import ACCOUNTS, FOLDERS, make_sample, simulate_day


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sample") / "vmail"
    make_sample(str(root))
    return root


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "vmail"))


def folders(root: Path) -> list[Path]:
    return [root / domain / user / "Maildir" / name for domain, user in ACCOUNTS for name in FOLDERS]


def messages(root: Path) -> dict[str, bytes]:
    """Path below the root -> bytes."""
    found = [path for folder in folders(root) for place in ("cur", "new") for path in (folder / place).iterdir()]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


def state(root: Path) -> dict[str, tuple[str, int, int]]:
    """Everything below the root: hash, mode, and for messages the mtime in nanoseconds."""
    found = {}
    for path in sorted(root.rglob("*")):
        stat = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[str(path.relative_to(root))] = (digest, stat.st_mode, stat.st_mtime_ns)
    return found


def test_what_is_in_it(made: Path) -> None:
    found = messages(made)
    assert len(found) == 121
    assert sum(path.stat().st_size for path in made.rglob("*") if path.is_file()) < 12_000_000
    assert max(map(len, found.values())) > 6_000_000
    assert any(b"\r\n\r\n" in data for data in found.values())
    assert any(data.count(b"\n\n") and max(data) > 127 for data in found.values())
    assert all(is_message(os.path.basename(path).encode()) for path in found)
    assert {readable_folder(name.encode()) for name in FOLDERS} == {"INBOX", "Sent", "Archive/2026", "Entwürfe"}


def test_every_mail_has_headers_and_is_invented(made: Path) -> None:
    for path, data in messages(made).items():
        header, body = split(data)
        assert body, path
        mail = summary(header)
        assert mail.date is not None, path
        assert mail.date.startswith("2026-"), path
        assert mail.subject, path
        assert "@example." in mail.from_, path


def test_one_body_is_shared_by_all_mailboxes(made: Path) -> None:
    bodies: dict[bytes, set[str]] = {}
    for path, data in messages(made).items():
        body = split(data)[1]
        if 32 * 1024 < len(body) < 1_000_000:
            bodies.setdefault(body, set()).add(path.split("/")[1])
    assert list(bodies.values()) == [{"alice", "bob", "carol", "dave"}]


def test_names_say_the_truth(made: Path) -> None:
    for path, data in messages(made).items():
        base = split_name(os.path.basename(path).encode())[0].decode()
        fields = dict(field.split("=") for field in base.split(",")[1:])
        assert int(fields["S"]) == len(data)
        assert int(fields["W"]) == len(data) + data.count(b"\n") - data.count(b"\r\n")
        assert int(base.split(".")[0]) == (made / path).stat().st_mtime_ns // 10**9


def check_uidlists(root: Path) -> None:
    """Each message of cur has a row and each row a message; UIDs never exceed the next one; keywords have names."""
    for folder in folders(root):
        found = parse((folder / "dovecot-uidlist").read_bytes())
        assert found is not None
        names = [name.encode() for name in os.listdir(folder / "cur")]
        assert set(found.rows) == {split_name(name)[0] for name in names}
        assert all(uid < found.next_uid for uid in found.rows.values())
        assert len(set(found.rows.values())) == len(found.rows)
        letters = {letter for name in names for letter in split_name(name)[1].decode()[3:] if letter.islower()}
        assert letters <= set("ab"[: (folder / "dovecot-keywords").read_text().count("\n")])


def test_uidlists_fit(made: Path) -> None:
    check_uidlists(made)
    assert any(name.endswith(":2,RSab") for name in messages(made))


def test_it_fits_the_pattern(made: Path) -> None:
    pattern = Pattern.parse(f"{made}/{{domain}}/{{user}}/Maildir")
    assert pattern.root == bytes(made)
    captured = [pattern.capture([domain.encode(), user.encode(), b"Maildir"]) for domain, user in ACCOUNTS]
    assert len(captured) == 4
    assert None not in captured


def test_the_same_seed_makes_the_same_store(made: Path, tmp_path: Path) -> None:
    make_sample(str(tmp_path / "again"))
    make_sample(str(tmp_path / "other"), seed=2)
    assert state(tmp_path / "again") == state(made)
    assert messages(tmp_path / "other").keys() != messages(made).keys()


def test_a_day(store: Path, made: Path, tmp_path: Path) -> None:
    before = messages(store)
    simulate_day(str(store), 1)
    after = messages(store)
    check_uidlists(store)
    old, new = set(before.values()), set(after.values())
    assert len(new - old) == 4 * 4  # three mails arrive and one is sent, in each mailbox
    assert len(old - new) == 4 * 2  # one is deleted from INBOX and one from Sent
    moved = [path for path in after if "Archive" in path and path.split(":")[0] not in _bases(before)]
    assert all(after[path] in old for path in moved)
    assert len(moved) == 4
    assert set(after) & set(before), "most files keep their names"
    assert set(before) - set(after) - set(moved), "some flags changed"
    again = Path(shutil.copytree(made, tmp_path / "again"))
    simulate_day(str(again), 1)
    assert messages(again) == after


def _bases(paths: dict[str, bytes]) -> set[str]:
    return {path.split(":")[0] for path in paths}


def test_many_days(store: Path) -> None:
    seen: set[str] = set()
    for day in range(12):
        simulate_day(str(store), 1)
        check_uidlists(store)
        arrived = {path for path in messages(store) if "/new/" in path}
        assert len(arrived) == 12, day
        assert not arrived & seen
        seen |= arrived


def test_messages_keep_bytes_and_time(store: Path) -> None:
    def by_base() -> dict[str, tuple[bytes, int]]:
        found = messages(store)
        times = {path: (store / path).stat().st_mtime_ns for path in found}
        return {os.path.basename(path).split(":")[0]: (found[path], times[path]) for path in found}

    before = by_base()
    simulate_day(str(store), 3)
    after = by_base()
    kept = before.keys() & after.keys()
    assert len(kept) > 100
    assert {base: before[base] for base in kept} == {base: after[base] for base in kept}


@pytest.mark.parametrize("what", ["file inside", "file", "dangling link"])
def test_a_place_in_use_is_refused(tmp_path: Path, what: str) -> None:
    root = tmp_path / "root"
    if what == "file inside":
        root.mkdir()
        (root / "mine").write_text("x")
    elif what == "file":
        root.write_text("x")
    else:
        root.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AlreadyExists):
        make_sample(str(root))
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_directory_is_accepted(tmp_path: Path) -> None:
    make_sample(str(tmp_path / "deep" / "root"))
    assert len(messages(tmp_path / "deep" / "root")) == 121


def test_a_day_happens_only_in_a_sample(store: Path) -> None:
    (store / "README-sample").unlink()
    before = state(store)
    with pytest.raises(NotFound):
        simulate_day(str(store), 1)
    assert state(store) == before


@pytest.mark.parametrize("linked", ["example.org", "example.net/dave/Maildir", "example.net/dave/Maildir/.Sent/cur"])
def test_a_link_out_of_the_root_is_not_followed(store: Path, tmp_path: Path, linked: str) -> None:
    outside = tmp_path / "outside"
    (store / linked).rename(outside)
    (store / linked).symlink_to(outside)
    before = state(outside)
    with pytest.raises(NotFound):
        simulate_day(str(store), 1)
    assert state(outside) == before


def test_header_blocks_are_small(made: Path) -> None:
    assert all(0 < header_length(data) < 2048 for data in messages(made).values())
