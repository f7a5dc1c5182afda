"""Dovecot: configuration, accounts, homes (sieve, subscriptions), and mailboxes that clients recognise again.

`doveadm user` is the only right way to a mailbox's place: `mail` and `home` may come from SQL or LDAP, one user after the other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from mailbackup.model import codec
from mailbackup.model.account import Account, Accounts
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.system import RANK_FILES, RANK_MAIL, RANK_START, Chosen, Dump, Inventory, LeftOut, Probe, ServerStep
from mailbackup.systems.ask import Ask, CannotAsk

ACCOUNTS = "dovecot/accounts.json"
_STATE = "/var/lib/dovecot"
_PATHS = re.compile(r"(?<![\w%])(/(?:etc|var/lib/dovecot|usr/local|srv|opt)/[^\s:;,<>%{}\"']+)")
_HOME_LEFT_OUT = (
    LeftOut("*.svbin", "compiled anew"),
    LeftOut("*/dovecot.index.cache*", "made anew"),
    LeftOut("*.lock", "a lock"),
    LeftOut("*/tmp/*", "half-written"),
)
_BATCH = 200  # accounts that one doveadm is asked for


class Dovecot:
    """Dovecot 2.3 and 2.4."""

    name = "dovecot"

    def find(self, ask: Ask) -> Inventory | None:
        """What `doveconf` and the user database name."""
        if not ask.has("doveconf"):
            return None
        said = ask.said("doveconf", "-n")
        config = re.search(r"^# \S+ \(\w+\): (\S+)", said.out)
        base = os.path.dirname(config[1]) if config else "/etc/dovecot"
        version = ask.said("dovecot", "--version").out.split()[0]
        paths = [*ask.chosen(base, "configuration"), *_named(ask, said.out, base)]
        if ask.exists(_STATE):
            paths += ask.chosen(_STATE, "data", LeftOut("instances", "of this machine"), LeftOut("ssl-parameters.dat", "made anew"))
        findings = [Finding(FindingKind.CONFIG_DOUBT, "dovecot", line) for line in said.err.splitlines() if "Warning" in line]
        try:
            homes = [account.home for account in accounts_of(ask).accounts if account.home]
        except CannotAsk as error:  # it does not run: what it holds is saved all the same
            homes = []
            findings.append(Finding(FindingKind.SYSTEM_UNREADABLE, "dovecot", f"its accounts are not known: {error}"))
        for home in common_homes([*homes, *_configured_homes(said.out)]):
            paths += ask.chosen(home, "homes of accounts: sieve, and what else is no mailbox", *_HOME_LEFT_OUT)
        return Inventory(
            system=self.name,
            version=version,
            paths=tuple(paths),
            dumps=(
                Dump("dovecot/doveconf.txt", "settings that differ from the defaults", ("doveconf", "-n")),
                Dump(ACCOUNTS, "what the user database says of each account"),
            ),
            facts={
                "config": (config[1] if config else "/etc/dovecot/dovecot.conf",),
                "ports": tuple(_ports(ask)),
                "scripts": tuple(_global_scripts(ask, said.out)),
            },
            findings=tuple(findings),
        )

    def dump(self, ask: Ask, dump: Dump) -> Iterator[bytes]:
        """The accounts."""
        yield codec.encode(accounts_of(ask))

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
        port = next(iter(inventory.facts.get("ports", ())), "143")
        config = inventory.facts["config"]
        return (
            Probe(name="dovecot.config", system=self.name, kind="config", tier="boot", settings={
                "argv": ("doveconf", "-n"), "dump": ("dovecot/doveconf.txt",), "config": config}),
            Probe(name="dovecot.accounts", system=self.name, kind="users", tier="boot", settings={"dump": (ACCOUNTS,)}),
            Probe(name="imap.mailboxes", system=self.name, kind="mailboxes", settings={"port": (port,)}),
        )  # fmt: skip

    def examine(self, ask: Ask, inventory: Inventory) -> list[Finding]:
        """What it says of its own configuration."""
        return list(inventory.findings)


# ---------------------------------------------------------------- accounts


def accounts_of(ask: Ask) -> Accounts:
    """Every account that the user database lists, with what it says of each; asked once a run. Raises CannotAsk."""
    return ask.once("accounts", lambda: _ask_accounts(ask))


def _ask_accounts(ask: Ask) -> Accounts:
    said = ask.run("doveadm", "user", "*", timeout=60)
    if said.status != 0:
        raise CannotAsk(f"'doveadm user *' ended with status {said.status}: {said.complaint}")
    names = sorted(set(said.lines))
    rows: list[Account] = []
    for at in range(0, len(names), _BATCH):
        rows += _rows(ask, names[at : at + _BATCH])
    return Accounts(accounts=tuple(rows))


def _rows(ask: Ask, names: list[str]) -> Iterator[Account]:
    for name in names:
        fields = {}
        for line in ask.said("doveadm", "user", name, timeout=60).lines[1:]:
            field, _, value = line.partition("\t")
            fields[field] = value
        yield Account(
            name=name,
            home=fields.pop("home", ""),
            mail=fields.pop("mail", ""),
            uid=fields.pop("uid", ""),
            gid=fields.pop("gid", ""),
            fields=fields,
        )


def common_homes(homes: list[str]) -> list[str]:
    """The directories that hold all homes: `/var/vmail/a/b`, `/var/vmail/c/d` → `/var/vmail`. Homes of login users are for `[[directory]]` to name."""
    own = [os.path.normpath(home) for home in homes if home.startswith("/") and not home.startswith(("/home/", "/root"))]
    tops: dict[str, list[str]] = {}
    for home in own:
        tops.setdefault("/".join(home.split("/")[:3]), []).append(home)
    return sorted(os.path.commonpath(below) if len(below) > 1 else below[0] for top, below in tops.items() if top.count("/") >= 2)


def _configured_homes(settings: str) -> Iterator[str]:
    """The literal beginning of `mail_location` and its like: `maildir:/var/vmail/%d/%n` → `/var/vmail`."""
    for value in re.findall(r"^\s*(?:mail_location|mail_home|mail_path) = (?:\w+:)?(/[^:%]*/)%", settings, re.MULTILINE):
        if value.count("/") >= 3:
            yield value.rstrip("/")


# ---------------------------------------------------------------- what the configuration names


def _named(ask: Ask, settings: str, base: str) -> Iterator[Chosen]:
    """Files and directories that settings name outside of the configuration: SQL and LDAP files, scripts, keys of mail_crypt."""
    seen = set()
    for line in settings.splitlines():
        key, _, value = line.strip().partition(" = ")
        if not value or key.startswith(
            ("mail_location", "mail_path", "base_dir", "log_path", "info_log_path", "debug_log_path", "location")
        ):
            continue
        for path in (named.rstrip("/") for named in _PATHS.findall(value)):
            if path not in seen and not f"{path}/".startswith((f"{base}/", f"{_STATE}/")) and ask.exists(path):
                seen.add(path)
                yield from ask.chosen(path, f"named as {key}")


def _global_scripts(ask: Ask, settings: str) -> Iterator[str]:
    """Sieve scripts of all users, which only root can compile."""
    for value in re.findall(r"^\s*sieve_(?:before|after|default|global)\w* = (?:file:)?(/[^\s;]+)", settings, re.MULTILINE):
        if ask.is_directory(value):
            yield from (f"{value}/{name}" for name in ask.names(value) if name.endswith(".sieve"))
        elif ask.exists(value):
            yield value


def _ports(ask: Ask) -> Iterator[str]:
    """Ports of IMAP that are open."""
    for listener, default in (("imap", "143"), ("imaps", "993")):
        said = ask.run("doveconf", "-h", f"service/imap-login/inet_listener/{listener}/port")
        port = said.out.strip() if said.status == 0 else default
        if port.isdigit() and port != "0":
            yield port
