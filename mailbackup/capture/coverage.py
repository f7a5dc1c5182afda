"""The nightly coverage check: accounts that the user database knows, compared with the mailboxes that were captured."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol

from mailbackup.model import codec
from mailbackup.model.account import Accounts
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.systems.dovecot import ACCOUNTS


class Captured(Protocol):
    """A mailbox of this snapshot."""

    @property
    def address(self) -> str:
        """Its mail address."""
        ...


def coverage(dumps: dict[str, bytes], mailboxes: Iterable[Captured]) -> list[Finding]:
    """Accounts whose mailbox exists and was not captured, and mailboxes of no account. Nothing is said where the accounts are not known.

    An account that never got mail has no mailbox yet: that is no finding.
    """
    if ACCOUNTS not in dumps:
        return []
    accounts = codec.decode(dumps[ACCOUNTS], Accounts, ACCOUNTS).accounts
    captured = {_plain(row.address) for row in mailboxes}
    known = {_plain(account.name) for account in accounts}
    found = []
    for account in accounts:
        if _covered(account.name, captured):
            continue
        if account.path and os.path.isdir(account.path):
            detail = f"its mailbox {account.path} belongs to no [[mail]] section, so it is not saved"
            found.append(Finding(FindingKind.ACCOUNT_UNCOVERED, account.name, detail))
    if known:
        found += [
            Finding(FindingKind.ORPHANED, address, "no account has this address; its mailbox is saved all the same")
            for address in sorted(captured)
            if address not in known and address.partition("@")[0] not in known
        ]
    return found


def _plain(address: str) -> str:
    return address.lower()


def _covered(name: str, captured: set[str]) -> bool:
    """Accounts may be called without a domain; then any mailbox of that name counts."""
    plain = _plain(name)
    return plain in captured or ("@" not in plain and any(address.partition("@")[0] == plain for address in captured))
