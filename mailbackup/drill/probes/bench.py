"""What probes work on, and how they say what they found."""

from __future__ import annotations

import imaplib
import smtplib
import socket
import ssl
from dataclasses import dataclass, field
from typing import Any

from mailbackup.drill.scratch import Scratch
from mailbackup.model.account import Account
from mailbackup.model.system import Inventory
from mailbackup.model.tree import MailboxRow, MailboxTree
from mailbackup.restore.server import Source
from mailbackup.systems.ask import CannotAsk, Said
from mailbackup.vault.reader import VaultReader

MASTER = "mailbackup-drill"
_TIMEOUT = 15  # seconds that a server may take for one answer


class ProbeFailed(Exception):
    """What should work does not; the text says what was expected and what came."""


class ProbeSkipped(Exception):
    """There is nothing to prove here; the text says why."""


@dataclass(slots=True)
class Bench:
    """One scratch machine with what was restored into it. `password` is that of the master user, which exists only there."""

    scratch: Scratch
    source: Source
    root: str
    password: str
    reader: VaultReader | None = None
    mailboxes: list[tuple[MailboxRow, MailboxTree]] = field(default_factory=list)
    accounts: tuple[Account, ...] = ()
    memory: dict[str, Any] = field(default_factory=dict)  # what one probe learned and another can use

    # -- programs

    def run(self, *argv: str, timeout: float = 30, data: bytes | None = None) -> Said:
        """Run a program in the machine. Raises ProbeFailed when it cannot be run or takes too long; its status is for the caller."""
        try:
            return self.scratch.run(argv, timeout, data)
        except CannotAsk as error:
            raise ProbeFailed(str(error)) from None

    def inventory(self, system: str) -> Inventory | None:
        """A system of the source."""
        return next((inventory for inventory in self.source.inventories if inventory.system == system), None)

    # -- servers

    def imap(self, user: str, password: str | None = None, port: int | None = None) -> imaplib.IMAP4:
        """A session of `user`, opened by the master user unless a password is given. Raises ProbeFailed."""
        port = port or int(self._imap_port())
        try:
            session = _Imap(self.scratch, port)
            if "STARTTLS" in session.capabilities:
                session.starttls(unchecked())
            name, secret = (f"{user}*{MASTER}", self.password) if password is None else (user, password)
            session.login(name, secret)
        except (OSError, imaplib.IMAP4.error) as error:
            raise ProbeFailed(f"IMAP on port {port} as {user}: {_text(error)}") from None
        return session

    def _imap_port(self) -> str:
        dovecot = self.inventory("dovecot")
        return next(iter(dovecot.facts.get("ports", ())), "143") if dovecot is not None else "143"

    def smtp(self, port: int) -> smtplib.SMTP:
        """A greeted session. Raises ProbeFailed."""
        try:
            session = _Smtp(self.scratch, port)
            session.ehlo("drill.invalid")
        except (OSError, smtplib.SMTPException) as error:
            raise ProbeFailed(f"SMTP on port {port}: {_text(error)}") from None
        return session

    def recipient(self) -> str:
        """An address that mail can be delivered to. Raises ProbeSkipped."""
        names = [row.address for row, _ in self.mailboxes] or [account.name for account in self.accounts]
        if not names:
            raise ProbeSkipped("no account is known that mail could be sent to")
        return names[0]


def unchecked() -> ssl.SSLContext:
    """TLS without looking at the certificate: a probe of its own does that."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _text(error: BaseException) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{error.smtp_code} {error.smtp_error!r}"
    return str(error) or type(error).__name__


class _Smtp(smtplib.SMTP):
    """SMTP through the machine's own loopback."""

    def __init__(self, scratch: Scratch, port: int) -> None:
        self._scratch = scratch
        super().__init__("127.0.0.1", port, "drill.invalid", _TIMEOUT)

    def _get_socket(self, _host: str, port: int, timeout: float) -> socket.socket:
        connection = self._scratch.connect(port, timeout)
        return unchecked().wrap_socket(connection) if port == 465 else connection


class _Imap(imaplib.IMAP4):
    """IMAP through the machine's own loopback."""

    def __init__(self, scratch: Scratch, port: int) -> None:
        self._scratch = scratch
        super().__init__("127.0.0.1", port, _TIMEOUT)

    def _create_socket(self, timeout: float | None) -> socket.socket:
        connection = self._scratch.connect(self.port, timeout or _TIMEOUT)
        return unchecked().wrap_socket(connection) if self.port == 993 else connection
