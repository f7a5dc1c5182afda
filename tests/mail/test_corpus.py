"""Every file of the corpus of real mail: split and joined, summarised, and named."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailbackup.mail.headers import summary
from mailbackup.mail.maildir import is_message, split_name
from mailbackup.mail.message import header_length, join, readable_headers, split
from tests.corpus import corpus_dir

pytestmark = pytest.mark.corpus


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, bytes]:
    found = {path: path.read_bytes() for path in _walk(corpus_dir(tmp_path_factory, "mail"))}
    assert len(found) > 7000
    return found


def _walk(top: Path) -> Iterator[Path]:
    for directory, _, names in os.walk(top):
        yield from (Path(directory, name) for name in sorted(names))


def test_every_file_is_joined_again(files: dict[Path, bytes]) -> None:
    start = time.process_time()
    for path, data in files.items():
        assert join(*split(data)) == data, path
    assert time.process_time() - start < 5  # 0.1 s here


def test_every_mail_has_a_summary(files: dict[Path, bytes]) -> None:
    start = time.process_time()
    found = {path: summary(data[: header_length(data)]) for path, data in files.items()}
    assert time.process_time() - start < 15  # 0.7 s here
    ham = [found[path] for path in found if "easy_ham" in path.parts]
    assert len(ham) > 2000
    assert all(mail.from_ and mail.message_id and mail.date for mail in ham if mail.subject)
    assert sum(1 for mail in ham if not mail.subject) < 10
    for mail in found.values():
        assert not {"\n", "\r", "\0", "\x1b"} & set(mail.subject + mail.from_ + mail.message_id)


def test_every_start_has_readable_headers(files: dict[Path, bytes]) -> None:
    for path, data in files.items():
        headers = readable_headers(data)
        if headers is not None:
            assert len(headers) <= 1 << 20, path
    packed = [path.name for path, data in files.items() if data and readable_headers(data) is None]
    assert len(packed) < 10


def test_odd_headers(files: dict[Path, bytes]) -> None:
    def header_of(end: str) -> bytes:
        return split(next(data for path, data in files.items() if str(path).endswith(end)))[0]

    assert len(header_of("flanker-messages/long-header.eml")) == 209_871
    assert header_of("stack-overflow.txt").endswith((b"\n\n", b"\n\r\n"))
    multi_charset = summary(header_of("emails/multi_charset/japanese_attachment_long_name.eml"))
    assert multi_charset.subject.startswith("まみむめも")


def test_names_of_the_maildirs(files: dict[Path, bytes]) -> None:
    names = [path.name.encode() for path in files if path.parent.name in ("cur", "new")]
    assert len(names) > 250
    for name in names:
        base, rest = split_name(name)
        assert base + rest == name
        assert is_message(name) == (not name.startswith(b"."))
        assert not (b":2," in name and not rest)
