"""What a restore asks of the Dovecot that runs here, always with a time limit: a user database that is down lets it hang for a minute."""

from __future__ import annotations

from dataclasses import dataclass

from mailbackup.errors import NotFound, SafetyRefusal, StoreUnavailable, UsageError
from mailbackup.model.account import Account
from mailbackup.systems.accounts import account_of
from mailbackup.systems.ask import Ask, CannotAsk, Said

_LIMIT = 30  # seconds for a question
_LOOK = 600  # seconds to count all folders of a mailbox, whose indexes may have to be made first
_NO_SUCH_COMMAND, _NO_USER = 64, 67  # sysexits(3), as doveadm uses them
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Status:
    """A folder as IMAP counts it."""

    messages: int
    uidnext: int
    uidvalidity: int


@dataclass(frozen=True, slots=True)
class Quota:
    """A limit of a mailbox: `kind` STORAGE (value and limit in KiB) or MESSAGE."""

    name: str
    kind: str
    value: int
    limit: int

    def room(self, size: int, messages: int) -> None:
        """Raises SafetyRefusal, with the numbers, when `size` more bytes in so many messages would not fit."""
        more, unit = (-(-size // _KIB), " KiB") if self.kind == "STORAGE" else (messages, " messages")
        if self.value + more > self.limit:
            raise SafetyRefusal(
                f"the quota '{self.name}' has no room: {self.value}{unit} of {self.limit} are used, and the restore needs {more}{unit} more",
                hint="Raise the quota for the time being, restore only one --folder, or restore --to DIR. Nothing was changed.",
            )


class Dovecot:
    """The Dovecot of this host and one of its users. Raises StoreUnavailable when it does not answer."""

    def __init__(self, user: str, ask: Ask | None = None) -> None:
        self.user = user
        self._ask = Ask() if ask is None else ask

    def account(self) -> Account:
        """What the user database says of the user. Raises NotFound, and UsageError where there is no Dovecot."""
        if not self._ask.has("doveadm"):
            raise UsageError(
                "there is no Dovecot on this machine (no doveadm)",
                hint="Run this on the mail server, name it with --via ssh://HOST, or restore --to DIR.",
            )
        said = self._run(_LIMIT, "doveadm", "user", self.user)
        if said.status == _NO_USER:
            raise NotFound(
                f"Dovecot knows no user {self.user}", hint="Make the account first ('doveadm user ADDRESS' shows it), or restore --to DIR."
            )
        if said.status != 0:
            raise self._no_answer(said)
        return account_of(self.user, said.out)

    def quotas(self) -> list[Quota]:
        """The limits of the mailbox; none where no quota is configured."""
        said = self._run(_LIMIT, "doveadm", "-f", "tab", "quota", "get", "-u", self.user)
        if said.status == _NO_SUCH_COMMAND:
            return []
        if said.status != 0:
            raise self._no_answer(said)
        rows = [line.split("\t") for line in said.lines[1:]]
        return [Quota(row[0], row[1], int(row[2]), int(row[3])) for row in rows if len(row) > 3 and row[2].isdigit() and row[3].isdigit()]

    def statuses(self) -> dict[str, Status]:
        """Every folder by its name."""
        fields = "messages uidnext uidvalidity"
        said = self._run(_LOOK, "doveadm", "-f", "tab", "mailbox", "status", "-u", self.user, fields, "*")
        if said.status != 0 or not said.lines:
            raise self._no_answer(said)
        head, *rows = (line.split("\t") for line in said.lines)
        at = {name: head.index(name) for name in ("mailbox", *fields.split())}
        return {row[at["mailbox"]]: Status(*(int(row[at[name]]) for name in fields.split())) for row in rows}

    def folders(self) -> list[str]:
        """The names of all folders, also of those that only hold others."""
        said = self._run(_LOOK, "doveadm", "mailbox", "list", "-u", self.user)
        if said.status != 0:
            raise self._no_answer(said)
        return said.out.splitlines()

    def bring_in(self, location: str, parent: str, limit: float) -> str:
        """Copy all folders at a mail location below the folder `parent` and subscribe to them. Returns what went wrong, as far as doveadm says it.

        Its status is no proof: it is 0 also when nothing could be read.
        """
        try:
            said = self._ask.run("doveadm", "import", "-s", "-u", self.user, location, parent, "all", timeout=limit)
        except CannotAsk as error:
            return str(error)
        errors = [line for line in said.err.splitlines() if line.strip()]
        return _last(errors) if errors or said.status else ""

    def _run(self, limit: float, *argv: str) -> Said:
        try:
            return self._ask.run(*argv, timeout=limit)
        except CannotAsk as error:
            raise StoreUnavailable(f"Dovecot does not answer: {error}", hint=_HINT) from None

    @staticmethod
    def _no_answer(said: Said) -> StoreUnavailable:
        return StoreUnavailable(f"Dovecot does not answer: {_last(said.err.splitlines())}", hint=_HINT)


_HINT = "Check that Dovecot runs ('doveadm service status') and that its user database answers. Nothing was changed."


def _last(lines: list[str]) -> str:
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
