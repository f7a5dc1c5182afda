"""The nightly coverage check: accounts that the user database knows, compared with the mailboxes that were captured."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Protocol

from mailbackup.capture.locate import is_maildir
from mailbackup.model import codec
from mailbackup.model.account import Account, Accounts
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.systems.dovecot import ACCOUNTS


class Captured(Protocol):
    """A mailbox of this snapshot."""

    @property
    def key(self) -> str:
        """Its identity."""
        ...

    @property
    def address(self) -> str:
        """Its mail address."""
        ...


def coverage(dumps: Mapping[str, bytes], mailboxes: Iterable[Captured], places: Mapping[bytes, str] | None = None) -> list[Finding]:
    """Accounts whose mailbox exists and was not captured, and mailboxes of no account. Nothing is said where the accounts are not known.

    `places`: real path of each mailbox → its key. Where an account is called otherwise than its mailbox, only the place tells that they belong together.
    """
    if ACCOUNTS not in dumps:
        return []
    accounts = codec.decode(dumps[ACCOUNTS], Accounts, ACCOUNTS).accounts
    captured, places = list(mailboxes), places or {}
    found = [
        Finding(
            FindingKind.ACCOUNT_UNCOVERED, account.name, f"{account.path} belongs to no [[mail]] section, so it is not saved as a mailbox"
        )
        for account in uncovered(accounts, captured, places)
    ]
    if accounts:
        found += [
            Finding(FindingKind.ORPHANED, address, "no account has this mailbox; it is saved all the same")
            for address in sorted({row.address for row in _orphans(accounts, captured, places)})
        ]
    return found


def uncovered(accounts: Iterable[Account], mailboxes: Iterable[Captured], places: Mapping[bytes, str]) -> list[Account]:
    """The accounts with a mailbox that none of `mailboxes` is. An account that never got mail has no mailbox yet, and is none of them."""
    captured = list(mailboxes)
    keys, addresses = {row.key for row in captured}, {_plain(row.address) for row in captured}
    users = {address.rpartition("@")[0] for address in addresses}
    return [
        account
        for account in accounts
        if _place(account, places) not in keys and not _named(account.name, addresses, users) and _has_mailbox(account)
    ]


def _orphans(accounts: Iterable[Account], captured: list[Captured], places: Mapping[bytes, str]) -> list[Captured]:
    rows = list(accounts)
    names, keys = {_plain(account.name) for account in rows}, {_place(account, places) for account in rows}
    return [row for row in captured if row.key not in keys and not {_plain(row.address), _plain(row.address).rpartition("@")[0]} & names]


def _place(account: Account, places: Mapping[bytes, str]) -> str | None:
    """The key of the mailbox that lies where the account's does."""
    if not places or not account.path:
        return None
    return places.get(os.path.realpath(os.fsencode(account.path)))


def _named(name: str, addresses: set[str], users: set[str]) -> bool:
    """Whether a mailbox is called as an account. Accounts may be called without a domain; then any mailbox of that name counts."""
    plain = _plain(name)
    return plain in addresses or ("@" not in plain and plain in users)


def _has_mailbox(account: Account) -> bool:
    """Whether there is mail. Programs that only look make the directory of a Maildir, so a directory alone is none."""
    if any(_holds_mail(path) for option, path in account.parts.items() if option == "INBOX"):
        return True
    if not account.path:
        return False
    if account.mail.startswith("maildir:"):
        return os.path.isdir(account.path) and is_maildir(os.fsencode(account.path))
    return _holds_mail(account.path)


def _holds_mail(path: str) -> bool:
    """Whether a file (mbox) or a directory (of another format) is there and not empty."""
    try:
        return bool(os.listdir(path)) if os.path.isdir(path) else os.path.getsize(path) > 0
    except OSError:
        return False


def _plain(address: str) -> str:
    return address.lower()
