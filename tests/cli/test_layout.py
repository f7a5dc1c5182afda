"""Which pattern quickstart finds in a directory with mail, and how it compares two Maildirs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mailbackup.cli.layout import Comparison, compare, find_layout
from mailbackup.errors import NotFound

HERE = os.path.dirname(__file__)


def maildir(path: Path, *folders: str) -> Path:
    for folder in ("", *folders):
        for name in ("cur", "new", "tmp"):
            (path / folder / name).mkdir(parents=True)
    return path


LAYOUTS = [
    (("a.example/x/Maildir", "a.example/y/Maildir", "b.example/x/Maildir"), "{domain}/{user}/Maildir", 3, 0),
    (("a.example/x", "b.example/y"), "{domain}/{user}", 2, 0),
    (("x/Maildir", "y/Maildir"), "{user}/Maildir", 2, 0),
    (("x", "y"), "{user}", 2, 0),
    (("a.example/x/Maildir", "a.example/y/Maildir", "old"), "{domain}/{user}/Maildir", 2, 1),
    (("a.example/x/.maildir",), "{domain}/{user}/.maildir", 1, 0),
]


@pytest.mark.parametrize(("mailboxes", "pattern", "count", "others"), LAYOUTS)
def test_patterns(mailboxes: tuple[str, ...], pattern: str, count: int, others: int, tmp_path: Path):
    for name in mailboxes:
        maildir(tmp_path / name, ".Sent", ".Archive.2026", "Maildir")  # folders of a mailbox are no mailboxes
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / mailboxes[0])
    (tmp_path / "file").touch()
    found = find_layout(str(tmp_path))
    assert (found.pattern.text, len(found.mailboxes), found.others) == (f"{tmp_path}/{pattern}", count, others)
    for names, path in found.mailboxes.items():
        assert found.pattern.capture(names) is not None
        assert os.path.isdir(path + b"/cur")


def test_a_single_maildir(tmp_path: Path):
    maildir(tmp_path / "home" / "x" / "Maildir", ".Sent")
    (tmp_path / "home" / "y").mkdir()
    found = find_layout(f"{tmp_path}/home/x/Maildir")
    assert found.pattern.text == f"{tmp_path}/home/{{user}}/Maildir"
    maildir(tmp_path / "home" / "y" / "Maildir")  # somebody else's mail is not asked for
    found = find_layout(f"{tmp_path}/home/x/Maildir/")
    assert found.pattern.text == f"{tmp_path}/home/x/{{user}}"
    assert list(found.mailboxes) == [(b"Maildir",)]
    maildir(tmp_path / "home" / "x" / "Old")
    with pytest.raises(NotFound, match="lies beside other Maildirs"):
        find_layout(f"{tmp_path}/home/x/Maildir")


def test_nothing_there(tmp_path: Path):
    with pytest.raises(NotFound, match="no Maildir below"):
        find_layout(str(tmp_path))
    with pytest.raises(NotFound, match="is not a directory"):
        find_layout(f"{tmp_path}/absent")


def test_compare(tmp_path: Path):
    source, copy = maildir(tmp_path / "a", ".Sent"), maildir(tmp_path / "b", ".Sent")
    for folder, name, left, right in (
        ("cur", "1.same:2,S", b"x" * 100, b"x" * 100),
        ("cur", "2.differs:2,", b"a", b"b"),
        (".Sent/cur", "3.lost:2,", b"a", None),
        (".Sent/cur", "4.added:2,", None, b"a"),
    ):
        if left is not None:
            (source / folder / name).write_bytes(left)
        if right is not None:
            (copy / folder / name).write_bytes(right)
    (source / "new" / "5.flags").write_bytes(b"y")
    (copy / "cur" / "5.flags:2,RS").write_bytes(b"y")
    (source / "tmp" / "6.unfinished").write_bytes(b"y")
    (source / "cur" / ".nfs01").write_bytes(b"y")
    assert compare(os.fsencode(source), os.fsencode(copy)) == Comparison(2, 102, 1, 1, 1)
