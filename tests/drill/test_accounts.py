"""Merging the users and groups of a snapshot into those of a new machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbackup.restore.accounts import RootAccounts, merge, rows_of

pytestmark = pytest.mark.root  # owners of the files are set

NEW = {
    "passwd": "root:x:0:0:root:/root:/bin/bash\nopendkim:x:100:101::/run/opendkim:/usr/sbin/nologin\n",
    "group": "root:x:0:\nshadow:x:42:\nopendkim:x:101:\n",
    "shadow": "root:*:1:0:99999:7:::\nopendkim:!:1:0:99999:7:::\n",
    "gshadow": "root:*::\n",
}
OLD = {
    "passwd": "root:x:0:0:root:/root:/bin/zsh\nopendkim:x:105:110::/run/opendkim:/usr/sbin/nologin\nvmail:x:5000:5000::/var/vmail:/usr/sbin/nologin\n"
    "ann:x:1000:1000:Ann:/home/ann:/bin/bash\n",
    "group": "root:x:0:\nopendkim:x:110:postfix\nvmail:x:5000:\nann:x:1000:\n",
    "shadow": "root:$6$secret:1:0:99999:7:::\nopendkim:!:1:0:99999:7:::\nvmail:!:1:0:99999:7:::\nann:$6$hers:1:0:99999:7:::\n",
    "gshadow": "root:*::\n",
}


def machine(root: Path, files: dict[str, str]) -> str:
    (root / "etc").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / "etc" / name).write_text(text)
    return str(root)


def test_daemons_keep_the_numbers_of_the_new_machine_and_others_get_their_old_ones(tmp_path: Path) -> None:
    root = machine(tmp_path, NEW)
    assert merge(root, OLD) == []
    found = RootAccounts.of(root)
    assert found.users == {"root": 0, "opendkim": 100, "vmail": 5000, "ann": 1000}
    assert found.groups == {"root": 0, "shadow": 42, "opendkim": 101, "vmail": 5000, "ann": 1000}
    group = rows_of((tmp_path / "etc/group").read_text())
    assert group["opendkim"][3] == "postfix"


def test_passwords_of_persons_and_root_come_back(tmp_path: Path) -> None:
    root = machine(tmp_path, NEW)
    merge(root, OLD)
    shadow = rows_of((tmp_path / "etc/shadow").read_text())
    assert shadow["root"][1] == "$6$secret"
    assert shadow["ann"][1] == "$6$hers"
    assert rows_of((tmp_path / "etc/passwd").read_text())["root"][6] == "/bin/zsh"
    status = os.stat(tmp_path / "etc/shadow")
    assert (status.st_mode & 0o777, status.st_gid) == (0o640, 42)


def test_a_number_that_is_taken_is_said(tmp_path: Path) -> None:
    root = machine(tmp_path, {**NEW, "passwd": NEW["passwd"] + "other:x:5000:0::/:/bin/false\n"})
    notes = merge(root, OLD)
    assert notes == ["user vmail had the number 5000, which is taken: it is 5001 now"]
    assert RootAccounts.of(root).users["vmail"] == 5001


def test_merging_again_changes_nothing(tmp_path: Path) -> None:
    root = machine(tmp_path, NEW)
    merge(root, OLD)
    first = {name: (tmp_path / "etc" / name).read_text() for name in NEW}
    assert merge(root, OLD) == []
    assert {name: (tmp_path / "etc" / name).read_text() for name in NEW} == first


_NAME = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
_ACCOUNTS = st.dictionaries(_NAME, st.integers(1, 70000), max_size=8)


@given(new=_ACCOUNTS, old=_ACCOUNTS)
def test_no_account_is_lost_and_no_number_is_used_twice(
    tmp_path_factory: pytest.TempPathFactory, new: dict[str, int], old: dict[str, int]
) -> None:
    def text(accounts: dict[str, int]) -> dict[str, str]:
        unique = {number: name for name, number in accounts.items()}
        rows = {name: number for number, name in unique.items()}
        return {
            "passwd": "".join(f"{name}:x:{number}:{number}::/:/bin/false\n" for name, number in rows.items()),
            "group": "".join(f"{name}:x:{number}:\n" for name, number in rows.items()),
        }

    root = machine(tmp_path_factory.mktemp("root"), text(new))
    before = RootAccounts.of(root)
    saved = text(old)
    merge(root, saved)
    found = RootAccounts.of(root)
    assert set(found.users) == set(before.users) | set(rows_of(saved["passwd"]))
    assert len(set(found.users.values())) == len(found.users)
    assert len(set(found.groups.values())) == len(found.groups)
    assert before.users.items() <= found.users.items()
