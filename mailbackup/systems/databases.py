"""Databases that mail programs ask for accounts and addresses: saving the file that names them does not save what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from mailbackup.model.finding import Finding, FindingKind
from mailbackup.systems.ask import Ask, CannotAsk

_HOSTS = re.compile(r"(?:^|[\s{])(?:hosts?|server_host|uris?|ldap_uris)\s*=\s*([^\n]+)", re.MULTILINE)
_BLOCK = re.compile(r"^\s*(?:mysql|pgsql)\s+(\S+)\s*\{", re.MULTILINE)  # Dovecot 2.4
_LOCAL = re.compile(r"^(?:unix:.*|inet:)?(?:ldapi?://)?(?:localhost|127\.\d+\.\d+\.\d+|\[?::1\]?|/.*)?(?:[:/].*)?$")


def hosts_in(text: str) -> tuple[str, ...]:
    """Hosts of databases that a file names, in any of the ways of Postfix and Dovecot; "localhost" for those of this machine."""
    text = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found = [word for line in _HOSTS.findall(text) for word in _words(line)] + _BLOCK.findall(text)
    return tuple(dict.fromkeys("localhost" if _LOCAL.match(host) else host for host in found))


def _words(line: str) -> Iterator[str]:
    """`host=db1 dbname=mail user=x` and `hosts = db1 db2`, without comments."""
    for word in re.split(r"[\s,]+", line.split("#", maxsplit=1)[0].strip()):
        if "=" in word:
            name, _, value = word.partition("=")
            if name == "host":
                yield value
                continue
            return
        if word:
            yield word


def remote_findings(ask: Ask, system: str, files: Iterable[str], settings: str = "") -> Iterator[Finding]:
    """One finding per database that these files, or the settings themselves, name."""
    texts = {f"{system} configuration": settings}
    for path in dict.fromkeys(files):
        try:
            texts[path] = ask.read(path)
        except CannotAsk:
            continue
    for place, text in texts.items():
        for host in hosts_in(text):
            where = "on this host" if host == "localhost" else f"on {host}"
            yield Finding(FindingKind.CONFIG_DOUBT, place, f"asks a database {where}, whose contents are not part of this snapshot")
