"""What a server knows of its accounts: the user database by `doveadm`, aliases by Postfix's tables, quota, the active sieve script.

Nothing here may change the server. `doveadm quota get -A` and `doveadm sieve list -A` make directories in the home of an account that never got mail, so
quota is asked only where a mailbox is, and scripts are looked for as files.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from mailbackup.errors import RecordInvalid
from mailbackup.model import codec
from mailbackup.model.account import Account, Accounts
from mailbackup.systems.ask import Ask, CannotAsk, Said
from mailbackup.systems.doveconf import Setting, settings_of, values
from mailbackup.systems.maps import leading_to, tables_in, text_rows

_BATCH = 200  # accounts that one doveadm is asked for: 1,000 accounts take 0.3 s, one by one 8 s
_QUOTA_AT_MOST = 2000  # accounts; asking opens each mailbox
_SECONDS = 60


def accounts_of(ask: Ask) -> Accounts:
    """Every account that the user database lists, with its row; asked once a run. Raises CannotAsk."""
    return ask.once("accounts", lambda: _ask_accounts(ask))


def account_facts(ask: Ask) -> Accounts:
    """The accounts with everything that is known of them. What cannot be told of quota or aliases is left out. Raises CannotAsk."""
    known = accounts_of(ask).accounts
    settings = dovecot_settings(ask)
    aliases, local = _aliases(ask)
    quota = _quota(ask, settings, known)
    return Accounts(
        accounts=tuple(
            Account(
                name=row.name, home=row.home, mail=row.mail, uid=row.uid, gid=row.gid, fields=row.fields,
                aliases=_leading_to(row.name, aliases, local), quota=quota.get(row.name, ""), sieve=_active_script(row, settings),
            )
            for row in known
        )
    )  # fmt: skip


def dovecot_settings(ask: Ask) -> list[Setting]:
    """Settings that differ from the defaults, keys included; asked once a run. Raises CannotAsk."""
    return ask.once("doveconf", lambda: settings_of(ask.said("doveconf", "-n", "-P").out))


# ---------------------------------------------------------------- the user database


def _ask_accounts(ask: Ask) -> Accounts:
    said = _patiently(ask, "doveadm", "user", "*")
    if said.status != 0:
        raise CannotAsk(f"'doveadm user *' ended with status {said.status}: {said.complaint}")
    names = sorted(set(said.lines))
    driver = next(values(dovecot_settings(ask), "mail_driver"), "")  # 2.4 says it here, and of each account the path alone
    found: list[Account] = []
    for at in range(0, len(names), _BATCH):
        found += _rows(ask, names[at : at + _BATCH], driver)
    return Accounts(accounts=tuple(found))


def _rows(ask: Ask, names: list[str], driver: str) -> list[Account]:
    """Their rows; of a name that its own list does not lead to (it was deleted meanwhile) there is none."""
    said = _patiently(ask, "doveadm", "user", *names)
    blocks = said.out.removeprefix("field\tvalue\n").rstrip("\n").split("\n\n")  # an empty line stands between two of them
    if said.status == 0 and len(blocks) == len(names):
        return [account_of(name, block, driver) for name, block in zip(names, blocks, strict=True)]
    if len(names) == 1:
        if "doesn't exist" in said.out + said.err:
            return []
        raise CannotAsk(f"'doveadm user {names[0]}' ended with status {said.status}: {said.complaint}")
    half = len(names) // 2
    return _rows(ask, names[:half], driver) + _rows(ask, names[half:], driver)


def _patiently(ask: Ask, *words: str) -> Said:
    """What a program says, asked again twice while it says "later": Dovecot's auth process hangs up where it is just being replaced."""
    for pause in (0.2, 1.0):
        said = ask.run(*words, timeout=_SECONDS)
        if said.status != os.EX_TEMPFAIL:
            return said
        time.sleep(pause)
    return ask.run(*words, timeout=_SECONDS)


def account_of(name: str, block: str, driver: str = "") -> Account:
    """The account in what `doveadm user` says of one; `driver` for 2.4, which gives the path alone."""
    fields = dict(line.split("\t", 1) for line in block.splitlines() if "\t" in line)
    fields.pop("field", None)
    path = fields.pop("mail_path", "")  # 2.4; the driver is a setting there and no field
    mail = fields.pop("mail", "") or (f"{fields.pop('mail_driver', driver)}:{path}" if path else "")
    return Account(
        name=name, home=fields.pop("home", ""), mail=mail, uid=fields.pop("uid", ""), gid=fields.pop("gid", ""), fields=fields
    )  # fmt: skip


# ---------------------------------------------------------------- aliases


def _aliases(ask: Ask) -> tuple[dict[str, set[str]], frozenset[str]]:
    """What leads to each address, and the domains whose addresses are local names."""
    if not ask.has("postconf"):
        return {}, frozenset()
    try:
        said = ask.said("postconf", "-xh", "virtual_alias_maps", "alias_maps", "mydestination")
    except CannotAsk:
        return {}, frozenset()
    local = said.out.splitlines()[2:]
    return leading_to(text_rows(ask, tables_in(said.out))), frozenset(
        word.lower() for line in local for word in line.replace(",", " ").split()
    )


def _leading_to(name: str, aliases: dict[str, set[str]], local: frozenset[str]) -> tuple[str, ...]:
    plain = name.lower()
    user, at, domain = plain.rpartition("@")
    names = {plain, *((user,) if at and domain in local else ()), *(() if at else (f"{plain}@{domain}" for domain in local))}
    return tuple(sorted({key for known in names for key in aliases.get(known, ())} - {name, *names}))


# ---------------------------------------------------------------- quota and scripts


def _quota(ask: Ask, settings: list[Setting], accounts: tuple[Account, ...]) -> dict[str, str]:
    """Use and limit in words, of accounts that have a mailbox."""
    here = [row.name for row in accounts if row.path and ask.is_directory(row.path)]
    if not here or len(here) > _QUOTA_AT_MOST or not _has_quota(settings):
        return {}
    with tempfile.NamedTemporaryFile("w", prefix="mailbackup-", encoding="utf-8", errors="surrogateescape") as names:
        names.write("".join(f"{name}\n" for name in here))
        names.flush()
        try:
            said = ask.run("doveadm", "-f", "json", "quota", "get", "-F", names.name, timeout=_SECONDS)
            found = codec.decode(said.out, list[dict[str, str]], "quota")
        except (CannotAsk, RecordInvalid, ValueError):
            return {}
    words: dict[str, list[str]] = {}
    for row in found:
        words.setdefault(row.get("username", ""), []).append(_in_words(row))
    return {name: ", ".join(filter(None, rows)) for name, rows in words.items()}


def _has_quota(settings: list[Setting]) -> bool:
    return any("quota" in row.value.split() or row.name == "quota" for row in settings if "mail_plugins" in (row.name, *row.blocks[-1:]))


def _in_words(row: dict[str, Any]) -> str:
    unit = "KiB" if row.get("type") == "STORAGE" else "messages"
    limit = row.get("limit", "-")
    return f"{row.get('value', '?')}{'' if limit == '-' else f' of {limit}'} {unit}"


def _active_script(account: Account, settings: list[Setting]) -> str:
    """The script that the link of a user leads to. Read as a link only: what it leads to is the user's own business."""
    for link in _script_links(account, settings):
        try:
            return os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)))
        except OSError:
            if os.path.isfile(link) and not os.path.islink(link):
                return link
    return ""


def _script_links(account: Account, settings: list[Setting]) -> Iterator[str]:
    """Where the active script of an account is looked for: its own field, the setting, the default."""
    for value in (account.fields.get("sieve", ""), *values(settings, "sieve", "active_path", "sieve_script_active_path")):
        place, *options = value.removeprefix("file:").split(";")
        for text in (*(option.removeprefix("active=") for option in options if option.startswith("active=")), place):
            path = account.absolute(text)
            if path and not os.path.isdir(path):
                yield path
    yield account.absolute("~/.dovecot.sieve")
