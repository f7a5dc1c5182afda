"""Dovecot: configuration, accounts, homes (sieve, subscriptions), and mailboxes that clients recognise again.

`doveadm user` is the only right way to a mailbox's place: `mail` and `home` may come from SQL or LDAP, one user after the other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from mailbackup.model import codec
from mailbackup.model.account import Account
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.system import RANK_FILES, RANK_MAIL, RANK_START, Chosen, Dump, Inventory, LeftOut, Probe, ServerStep
from mailbackup.systems.accounts import account_facts, accounts_of, dovecot_settings
from mailbackup.systems.ask import Ask, CannotAsk
from mailbackup.systems.databases import remote_findings
from mailbackup.systems.doveconf import Setting, settings_of, values

ACCOUNTS = "dovecot/accounts.json"
_STATE = "/var/lib/dovecot"
_PATH = re.compile(r"(?<![\w%~.])(/[^\s:;,<>%{}\"']+)(?!%)(?=$|[\s:;,\"'])")
_NOT_NAMED = (
    "mail_location",
    "mail_home",
    "mail_path",
    "mail_inbox_path",
    "base_dir",
    "location",
    "state_dir",
    "login_chroot",
    "path",
    "inbox_path",
)
_MADE_ANEW = (
    "/run/", "/var/run/", "/proc/", "/dev/", "/sys/", "/tmp/", "/var/log/", "/usr/", "/bin/", "/sbin/", "/lib", "/home/",  # noqa: S108 - only compared
    "/var/spool/postfix/",
)  # fmt: skip
_HOME_LEFT_OUT = (
    LeftOut("*.svbin", "compiled anew"),
    LeftOut("*/dovecot.index.cache*", "made anew"),
    LeftOut("*.lock", "a lock"),
    LeftOut("*/tmp/*", "half-written"),
)
_SERIOUS = ("ALT", "CONTROL", "INBOX")  # parts of a mailbox without which messages, UIDs or subscriptions are lost


class Dovecot:
    """Dovecot 2.3 and 2.4."""

    name = "dovecot"

    def find(self, ask: Ask) -> Inventory | None:
        """What `doveconf` and the user database name."""
        if not ask.has("doveconf"):
            return None
        said = ask.said("doveconf", "-n")
        settings = settings_of(said.out)
        config = re.search(r"^# \S+ \([^)]*\): (/\S+)", said.out)
        base = os.path.dirname(config[1]) if config else "/etc/dovecot"
        paths = [*ask.chosen(base, "configuration"), *_named(ask, settings, base)]
        if ask.exists(_STATE):
            paths += ask.chosen(_STATE, "data", LeftOut("instances", "of this machine"), LeftOut("ssl-parameters.dat", "made anew"))
        findings = [Finding(FindingKind.CONFIG_DOUBT, "dovecot", line) for line in said.err.splitlines() if "Warning" in line]
        findings += remote_findings(ask, "dovecot", _lookup_files(settings), said.out)
        accounts: tuple[Account, ...] = ()
        try:
            accounts = accounts_of(ask).accounts
        except CannotAsk as error:  # it does not run: what it holds is saved all the same
            findings.append(Finding(FindingKind.SYSTEM_UNREADABLE, "dovecot", f"its accounts are not known: {error}"))
        for home in common_homes([*(account.home for account in accounts), *_configured_homes(settings)]):
            paths += ask.chosen(home, "homes of accounts: sieve, and what else is no mailbox", *_HOME_LEFT_OUT)
        findings += _parts_elsewhere(ask, accounts, settings)
        return Inventory(
            system=self.name,
            version=next(iter(ask.said("dovecot", "--version").out.split()), ""),
            paths=tuple(dict.fromkeys(paths)),
            dumps=(
                Dump("dovecot/doveconf.txt", "settings that differ from the defaults", ("doveconf", "-n")),
                Dump(ACCOUNTS, "what is known of each account", timeout=120),
            ),
            facts={
                "config": (config[1] if config else "/etc/dovecot/dovecot.conf",),
                "ports": tuple(_ports(ask)),
                "scripts": tuple(_global_scripts(ask, settings)),
            },
            findings=tuple(findings),
        )

    def dump(self, ask: Ask, dump: Dump) -> Iterator[bytes]:
        """The accounts."""
        yield codec.encode(account_facts(ask))

    def steps(self, inventory: Inventory) -> tuple[ServerStep, ...]:
        """Files, mailboxes, compiled scripts, the daemon."""
        name, config = self.name, inventory.fact("config")
        compile_scripts = tuple(
            ServerStep(system=name, name=f"compile {path}", action="run", rank=RANK_MAIL + 1, argv=("sievec", path), needs=("sievec",))
            for path in inventory.facts.get("scripts", ())
        )
        files = tuple(row.path for row in inventory.paths)
        return (
            ServerStep(system=name, name="configuration, users, homes", action="files", rank=RANK_FILES, paths=files),
            ServerStep(system=name, name="mailboxes", action="mail", rank=RANK_MAIL),
            *compile_scripts,
            ServerStep(
                system=name, name="start Dovecot", action="start", rank=RANK_START, argv=("dovecot", "-c", config), needs=("dovecot",),
                ready=f"tcp:{next(iter(inventory.facts.get('ports', ())), '143')}",
            ),
        )  # fmt: skip

    def probes(self, inventory: Inventory) -> tuple[Probe, ...]:
        """Configuration as captured, all accounts known, every mailbox as its clients know it."""
        return (
            Probe(name="dovecot.config", system=self.name, kind="config", tier="boot", settings={
                "argv": ("doveconf", "-n"), "dump": ("dovecot/doveconf.txt",)}),
            Probe(name="dovecot.accounts", system=self.name, kind="users", tier="boot", settings={"dump": (ACCOUNTS,)}),
            *(
                Probe(name=f"imap.{what}", system=self.name, kind="mailboxes", settings={"what": (what,)})
                for what in ("messages", "flags", "subscriptions")
            ),
        )  # fmt: skip

    def examine(self, ask: Ask, inventory: Inventory) -> list[Finding]:
        """What it says of its own configuration."""
        return list(inventory.findings)


# ---------------------------------------------------------------- homes


def common_homes(homes: list[str]) -> list[str]:
    """The directories that hold all homes: `/var/vmail/a/b`, `/var/vmail/c/d` → `/var/vmail`. Homes of login users are for `[[directory]]` to name."""
    own = [os.path.normpath(home) for home in homes if home.startswith("/") and not home.startswith(("/home/", "/root"))]
    tops: dict[str, list[str]] = {}
    for home in own:
        tops.setdefault("/".join(home.split("/")[:3]), []).append(home)
    return sorted(os.path.commonpath(below) if len(below) > 1 else below[0] for top, below in tops.items() if top.count("/") >= 2)


def _configured_homes(settings: list[Setting]) -> Iterator[str]:
    """The literal beginning of `mail_location` and its like: `maildir:/var/vmail/%d/%n` → `/var/vmail`."""
    for value in values(settings, "mail_location", "mail_home", "mail_path"):
        match = re.match(r"(?:\w+:)?(/[^:%~]*/)%", value)
        if match is not None and match[1].count("/") >= 3:
            yield match[1].rstrip("/")


def _parts_elsewhere(ask: Ask, accounts: tuple[Account, ...], settings: list[Setting]) -> Iterator[Finding]:
    """Parts of mailboxes that lie outside of them (ALT=, CONTROL=, INDEX=) and in no `[[directory]]`: what saves the mailbox does not save them."""
    places: dict[tuple[str, str], int] = {}
    for account in accounts:
        for option, path in account.parts.items():
            inside = any(_within(path, place) for place in (account.path, account.home, *ask.directories) if place)
            if option in (*_SERIOUS, "INDEX") and not inside:
                place = (option, path if option == "INBOX" else os.path.dirname(path))
                places[place] = places.get(place, 0) + 1
    for option in ("ALT", "CONTROL", "INDEX"):  # 2.4 has settings instead, which say it for all accounts at once
        for value in values(settings, f"mail_{option.lower()}_path"):
            literal = value.split("%")[0].rstrip("/")
            if literal.startswith("/") and not any(_within(literal, place) for place in ask.directories):
                places[option, literal] = len(accounts)
    for (option, path), count in places.items():
        kind = FindingKind.ACCOUNT_UNCOVERED if option in _SERIOUS else FindingKind.CONFIG_DOUBT
        detail = f"the {option} part of {count} mailboxes lies here and is not saved; name the directory as [[directory]]"
        yield Finding(kind, path, detail)


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


# ---------------------------------------------------------------- what the configuration names


def _named(ask: Ask, settings: list[Setting], base: str) -> Iterator[Chosen]:
    """Files and directories that settings name outside of the configuration: SQL and LDAP files, scripts, dictionaries, keys of mail_crypt."""
    seen = set()
    for row in settings:
        if row.name in _NOT_NAMED and not (row.blocks and row.blocks[-1].startswith("sieve_script")):
            continue
        for path in (os.path.normpath(named) for named in _PATH.findall(row.value)):
            if path in seen or path.count("/") < 2 or _within(path, base) or _within(path, _STATE) or _comes_anew(path):
                continue
            seen.add(path)
            if ask.exists(path):
                yield from ask.chosen(path, f"named as {row.whole}")


def _comes_anew(path: str) -> bool:
    return path.startswith(_MADE_ANEW) and not path.startswith("/usr/local/")


def _lookup_files(settings: list[Setting]) -> Iterator[str]:
    """Files that say which database is asked: `args = /etc/dovecot/dovecot-sql.conf.ext`."""
    for row in settings:
        if row.name in ("args", "uri") or row.value.startswith(("proxy:", "mysql:", "pgsql:", "ldap:", "sqlite:")):
            yield from (path for path in _PATH.findall(row.value) if path.endswith((".ext", ".conf")))


def _global_scripts(ask: Ask, settings: list[Setting]) -> Iterator[str]:
    """Sieve scripts of all users, which only root can compile."""
    for place in dict.fromkeys(_script_places(settings)):
        if ask.is_directory(place):
            yield from (f"{place}/{name}" for name in ask.names(place) if name.endswith(".sieve"))
        elif ask.exists(place):
            yield place


def _script_places(settings: list[Setting]) -> Iterator[str]:
    for row in settings:
        old = re.match(r"sieve_(before|after|default|global)\d*$", row.name)
        new = row.name == "path" and row.blocks and row.blocks[-1].startswith("sieve_script")
        if old or new:
            place = row.value.removeprefix("file:").split(";")[0].rstrip("/")
            if place.startswith("/") and "%" not in place:
                yield place


def _ports(ask: Ask) -> Iterator[str]:
    """Ports of IMAP that are open."""
    for listener, default in (("imap", "143"), ("imaps", "993")):
        said = ask.run("doveconf", "-h", f"service/imap-login/inet_listener/{listener}/port")
        port = said.out.strip() if said.status == 0 else default
        if port.isdigit() and port != "0":
            yield port


__all__ = ["ACCOUNTS", "Dovecot", "accounts_of", "common_homes", "dovecot_settings"]
