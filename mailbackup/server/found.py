"""What `init` proposes: where mailboxes lie, by asking Dovecot for its accounts, and what else a mail server has that should be saved."""

from __future__ import annotations

import os
import pwd
import re
from collections import Counter
from dataclasses import dataclass

from mailbackup.capture.locate import is_maildir, locate
from mailbackup.mail.pattern import Pattern
from mailbackup.model.account import Account
from mailbackup.model.options import MailConfig
from mailbackup.systems.accounts import accounts_of, dovecot_settings
from mailbackup.systems.ask import Ask, CannotAsk
from mailbackup.systems.doveconf import values
from mailbackup.systems.known import SYSTEMS

_PROGRAMS = ("dovecot", "postfix", "opendkim")
_NO_LOGIN = ("nologin", "false", "sync", "shutdown", "halt")
_VARIABLES = (
    (re.compile(r"%\{(?:user *\| *)?domain\}|%L?d"), "{domain}"),
    (re.compile(r"%\{(?:user *\| *)?username\}|%L?n"), "{user}"),
    (re.compile(r"%\{user\}|%L?u"), "{address}"),
    (re.compile(r"%(\d)n"), r"{user:\1}"),
)


@dataclass(frozen=True, slots=True)
class FoundMail:
    """A pattern, how many accounts lie where it says (0 = nobody could be asked), and how many mailboxes it finds."""

    pattern: str
    accounts: int
    mailboxes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundHere:
    """What there is on this host. `doubt` says why the patterns are not certain; `domain` is that of accounts without one."""

    mail: tuple[FoundMail, ...] = ()
    domain: str | None = None
    programs: tuple[str, ...] = ()
    directories: tuple[str, ...] = ()
    doubt: str = ""

    @property
    def certain(self) -> bool:
        """Whether one pattern holds all mailboxes of this server."""
        return len(self.mail) == 1 and not self.doubt


def found_here(ask: Ask | None = None) -> FoundHere:
    """Look at this host. Asks `doveadm` and `postconf`, changes nothing, and raises nothing: what does not answer is a doubt."""
    ask = ask or Ask()
    mail, doubt = _mail(ask)
    return FoundHere(mail=mail, domain=_domain(ask), programs=_programs(ask), directories=_homes(mail), doubt=doubt)


def _programs(ask: Ask) -> tuple[str, ...]:
    found = []
    for known in SYSTEMS:
        if known.name in _PROGRAMS:
            try:
                if known.find(ask) is not None:
                    found.append(known.name)
            except CannotAsk:
                found.append(known.name)  # it is there
    return tuple(found)


# ---------------------------------------------------------------- mail


def _mail(ask: Ask) -> tuple[tuple[FoundMail, ...], str]:
    """Patterns, those of most accounts first, and what is doubtful about them."""
    if not ask.has("doveconf"):
        return (), ""
    try:
        accounts = accounts_of(ask).accounts
    except CannotAsk as error:
        return _configured(ask), f"Dovecot does not list its accounts: {error}"
    maildirs = [account for account in accounts if account.path and is_maildir(os.fsencode(account.path))]
    if not maildirs:
        other = next((account for account in accounts if account.mail and not account.mail.startswith("maildir:")), None)
        if other is not None and os.path.lexists(other.path):
            return (), f"the mail of {other.name} is no Maildir ({other.mail.partition(':')[0]}), which this version does not save"
        return _configured(ask), "no account has a Maildir yet" if accounts else "Dovecot lists no accounts"
    return _of_accounts(maildirs)


def _of_accounts(accounts: list[Account]) -> tuple[tuple[FoundMail, ...], str]:
    left, found = list(accounts), []
    while left:
        counts = Counter(pattern for account in left for pattern in patterns_of(account))
        if not counts:
            break
        best = max(counts, key=lambda pattern: (counts[pattern], "{domain}" in pattern, -len(pattern)))
        fitting = [account for account in left if fits(best, account.path)]
        if not fitting:
            break
        found.append(FoundMail(best, len(fitting), count(best)))
        left = [account for account in left if not fits(best, account.path)]
    return tuple(found), f"{len(left)} mailboxes fit no pattern, first {left[0].path}" if left else ""


def patterns_of(account: Account) -> list[str]:
    """The patterns that hold the path of an account's mailbox: the last components that are its domain, user or address become variables."""
    parts = account.path.strip("/").split("/")
    user, at, domain = account.name.rpartition("@") if "@" in account.name else (account.name, "", "")
    made = []
    for names in ({account.name: "{address}"} if at else {}, {user: "{user}", domain: "{domain}"} if at else {user: "{user}"}):
        shaped, used = list(parts), set[str]()
        for place in reversed(range(len(parts))):
            variable = names.get(parts[place]) or next(
                (v for name, v in names.items() if name and parts[place].lower() == name.lower()), None
            )
            if variable and variable not in used:
                shaped[place] = variable
                used.add(variable)
            elif "{user}" in used and parts[place].lower() == user[: len(parts[place])].lower() and len(parts[place]) <= 2:
                shaped[place] = f"{{user:{len(parts[place])}}}"
        if used & {"{user}", "{address}"} and not any(re.search(r"[{}*]", part) for part in parts):
            made.append("/" + "/".join(shaped))
    return made


def fits(pattern: str, path: str) -> bool:
    """Whether a mailbox lies where a pattern says."""
    try:
        parsed = Pattern.parse(pattern)
    except ValueError:
        return False
    names, root = os.fsencode(path).strip(b"/").split(b"/"), parsed.root.strip(b"/")
    above = root.split(b"/") if root else []
    return names[: len(above)] == above and parsed.capture(names[len(above) :]) is not None


def count(pattern: str) -> int:
    """How many mailboxes a pattern finds now."""
    try:
        return len(locate(MailConfig(name="found", path=pattern), "localhost").mailboxes)
    except ValueError:
        return 0


def _configured(ask: Ask) -> tuple[FoundMail, ...]:
    """The pattern that the setting means, where no account can be asked: `maildir:/var/vmail/%d/%n/Maildir`."""
    try:
        settings = dovecot_settings(ask)
    except CannotAsk:
        return ()
    home = next(values(settings, "mail_home"), "/home/%u" if not next(values(settings, "mail_uid"), "") else "")
    for value in values(settings, "mail_location", "mail_path"):
        place = value.removeprefix("maildir:").split(":")[0].replace("%{home}", "~").replace("%h", "~")
        pattern = (home.rstrip("/") + place[1:]) if place.startswith("~") else place
        for form, variable in _VARIABLES:
            pattern = form.sub(variable, pattern)
        if pattern.startswith("/") and "%" not in pattern and _parses(pattern):
            return (FoundMail(pattern, 0, count(pattern)),)
    return ()


def _parses(pattern: str) -> bool:
    try:
        Pattern.parse(pattern)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------- the rest


def _domain(ask: Ask) -> str | None:
    """The domain of local users' mail."""
    if not ask.has("postconf"):
        return None
    try:
        said = ask.said("postconf", "-xh", "myorigin", "mydomain").lines
        domain = ask.read(said[0]).strip() if said and said[0].startswith("/") else next(iter(said), "")
    except CannotAsk:
        return None
    return domain if "." in domain and "/" not in domain else None


def _homes(mail: tuple[FoundMail, ...]) -> tuple[str, ...]:
    """/home when somebody who may log in lives there. Mail in it is saved as mail, wherever it lies."""
    people = [row for row in pwd.getpwall() if row.pw_dir.startswith("/home/") and os.path.basename(row.pw_shell) not in _NO_LOGIN]
    lives = any(os.path.isdir(row.pw_dir) for row in people) or any(row.pattern.startswith("/home/") for row in mail)
    return ("/home",) if lives else ()
