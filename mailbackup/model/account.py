"""What a user database says of its accounts: a fact of each snapshot, for a rebuild and for the nightly coverage check."""

from __future__ import annotations

from typing import Literal

from mailbackup.model.codec import Record


class Account(Record, frozen=True, omit_defaults=True, kw_only=True):
    """One account. `mail` as Dovecot says it, expanded (`maildir:/var/vmail/…`); `fields` is the rest of its row (quota rules and such).

    `aliases` are the addresses whose mail goes to it, `quota` its use and limit in words, `sieve` the path of its active script.
    """

    name: str
    home: str = ""
    mail: str = ""
    uid: str = ""
    gid: str = ""
    fields: dict[str, str] = {}
    aliases: tuple[str, ...] = ()
    quota: str = ""
    sieve: str = ""

    @property
    def path(self) -> str:
        """Where its mailbox lies; empty when that cannot be told."""
        return self.absolute(self.mail.partition(":")[2].split(":")[0] if ":" in self.mail else self.mail)

    @property
    def parts(self) -> dict[str, str]:
        """Options of `mail` that name a place of their own (ALT, CONTROL, INDEX, INBOX) → path."""
        options = (option.partition("=") for option in self.mail.split(":")[2:])
        return {name: path for name, _, value in options if (path := self.absolute(value))}

    def absolute(self, place: str) -> str:
        """`~/x` below its home; empty when it is no absolute path then."""
        if place == "~" or place.startswith("~/"):
            place = self.home.rstrip("/") + place[1:]
        return place if place.startswith("/") else ""


class Accounts(Record, frozen=True, kw_only=True):
    """The dump of all accounts."""

    accounts: tuple[Account, ...]
    format: Literal[1] = 1
