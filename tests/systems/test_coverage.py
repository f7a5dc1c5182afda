"""Accounts against mailboxes: each account's mailbox is saved, or it is told; each mailbox has an account, or it is told."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mailbackup.capture.coverage import coverage
from mailbackup.model import codec
from mailbackup.model.account import Account, Accounts
from mailbackup.model.finding import FindingKind
from mailbackup.systems.dovecot import ACCOUNTS


@dataclass
class Box:
    key: str
    address: str


def box(address: str) -> Box:
    return Box(f"vmail:{address}", address)


def mailbox(tmp_path: Path, name: str, *parts: str) -> str:
    path = tmp_path / name
    for part in parts or ("cur", "new", "tmp"):
        (path / part).mkdir(parents=True)
    return str(path)


def told(accounts: list[Account], *boxes: Box, places: dict[bytes, str] | None = None) -> set[tuple[FindingKind, str]]:
    dumps = {ACCOUNTS: codec.encode(Accounts(accounts=tuple(accounts)))}
    return {(row.kind, row.subject) for row in coverage(dumps, boxes, places)}


def account(name: str, path: str, kind: str = "maildir") -> Account:
    return Account(name=name, home=os.path.dirname(path), mail=f"{kind}:{path}")


def test_all_is_well(tmp_path: Path):
    assert told([account("a@x", mailbox(tmp_path, "a"))], box("a@x")) == set()


def test_an_account_outside_of_every_section(tmp_path: Path):
    accounts = [account("a@x", mailbox(tmp_path, "a")), account("b@x", mailbox(tmp_path, "b"))]
    assert told(accounts, box("a@x")) == {(FindingKind.ACCOUNT_UNCOVERED, "b@x")}


def test_a_mailbox_without_an_account(tmp_path: Path):
    assert told([account("a@x", mailbox(tmp_path, "a"))], box("a@x"), box("old@x")) == {(FindingKind.ORPHANED, "old@x")}


def test_a_new_account_has_no_mailbox_yet(tmp_path: Path):
    """Nor one whose directory was made by a program that only looked."""
    accounts = [account("a@x", str(tmp_path / "absent")), account("b@x", mailbox(tmp_path, "b", "sieve"))]
    assert told(accounts) == set()


def test_a_mailbox_with_folders_only(tmp_path: Path):
    assert told([account("a@x", mailbox(tmp_path, "a", ".Sent/cur"))]) == {(FindingKind.ACCOUNT_UNCOVERED, "a@x")}


def test_accounts_without_a_domain(tmp_path: Path):
    assert told([account("alice", mailbox(tmp_path, "a"))], box("alice@mx1.example")) == set()


def test_upper_case(tmp_path: Path):
    assert told([account("Alice@X.example", mailbox(tmp_path, "a"))], box("alice@x.example")) == set()


def test_an_account_that_is_called_otherwise_than_its_mailbox(tmp_path: Path):
    path = mailbox(tmp_path, "alice")
    os.symlink(path, tmp_path / "link")
    accounts = [account("u1001", str(tmp_path / "link"))]
    assert told(accounts, box("alice@x"), places={os.path.realpath(os.fsencode(path)): "vmail:alice@x"}) == set()
    assert told(accounts, box("alice@x")) == {(FindingKind.ACCOUNT_UNCOVERED, "u1001"), (FindingKind.ORPHANED, "alice@x")}


def test_mail_of_another_format(tmp_path: Path):
    (tmp_path / "inbox").write_text("From x\n\n")
    mbox = Account(name="a", home=str(tmp_path), mail=f"mbox:{tmp_path}/absent:INBOX={tmp_path}/inbox")
    assert told([mbox, account("b", mailbox(tmp_path, "b", "storage"), "mdbox")]) == {
        (FindingKind.ACCOUNT_UNCOVERED, "a"),
        (FindingKind.ACCOUNT_UNCOVERED, "b"),
    }


def test_nothing_is_said_where_accounts_are_not_known():
    assert coverage({}, [box("a@x")]) == []
    assert told([], box("a@x")) == set()
