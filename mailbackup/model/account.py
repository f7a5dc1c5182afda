"""What a user database says of its accounts: a fact of each snapshot, for a rebuild and for the nightly coverage check."""

from __future__ import annotations

from typing import Literal

from mailbackup.model.codec import Record


class Account(Record, frozen=True, omit_defaults=True, kw_only=True):
    """One account. `mail` as Dovecot says it, expanded (`maildir:/var/vmail/…`); `fields` is the rest of its row (quota rules and such)."""

    name: str
    home: str = ""
    mail: str = ""
    uid: str = ""
    gid: str = ""
    fields: dict[str, str] = {}
    aliases: tuple[str, ...] = ()
    quota: str = ""
    sieve: str = ""  # the active script

    @property
    def path(self) -> str:
        """Where its mailbox lies; empty when that cannot be told."""
        place = self.mail.partition(":")[2].split(":")[0] if ":" in self.mail else self.mail
        if place.startswith("~"):
            place = self.home + place[1:]
        return place if place.startswith("/") else ""


class Accounts(Record, frozen=True, kw_only=True):
    """The dump of all accounts."""

    accounts: tuple[Account, ...]
    format: Literal[1] = 1
