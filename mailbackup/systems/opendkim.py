"""OpenDKIM: keys, tables, and signatures that verify.

With a key that others may read, or that belongs to somebody else, the daemon starts, `opendkim -n` is content, and every mail is refused or goes out
unsigned: only a signed message proves anything.
"""

from __future__ import annotations

import base64
import os
import re
import stat
from collections.abc import Iterator

from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.system import RANK_FILES, RANK_RUN, RANK_START, Chosen, Dump, Inventory, Probe, ServerStep
from mailbackup.systems.ask import Ask, CannotAsk

_CONFIG = "/etc/opendkim.conf"
_DEFAULTS = "/etc/default/opendkim"
_FILES = ("keytable", "signingtable", "externalignorelist", "internalhosts", "peerlist", "exemptdomains", "keyfile")
_PREFIX = re.compile(r"^(refile|file|csl|db|bdb):")


class Opendkim:
    """OpenDKIM 2."""

    name = "opendkim"

    def find(self, ask: Ask) -> Inventory | None:
        """What its configuration names."""
        if not ask.has("opendkim") or not ask.exists(_CONFIG):
            return None
        settings = _settings(ask.read(_CONFIG))
        paths = [*ask.chosen(_CONFIG, "configuration")]
        if ask.exists(_DEFAULTS):
            paths += ask.chosen(_DEFAULTS, "how it is started")
        for option in _FILES:
            path = _PREFIX.sub("", settings.get(option, ""))
            if path.startswith("/"):
                paths += ask.chosen(path, f"named as {option}")
        keys = list(_keys(ask, settings))
        paths += [row for _, _, path in keys for row in _with_record(ask, path)]
        if ask.is_directory("/etc/dkimkeys"):
            paths += ask.chosen("/etc/dkimkeys", "keys")
        user = settings.get("userid", "opendkim").partition(":")[0]
        return Inventory(
            system=self.name,
            version=_version(ask),
            paths=tuple(dict.fromkeys(paths)),
            facts={
                "keys": tuple(f"{selector} {domain} {path}" for selector, domain, path in keys),
                "user": (user,),
                "socket": (_socket(ask, settings),),
                "run": tuple(dict.fromkeys(os.path.dirname(path) for path in _run_files(ask, settings))),
            },
        )

    def dump(self, ask: Ask, dump: Dump) -> Iterator[bytes]:
        """It has none."""
        raise CannotAsk(f"opendkim has no dump {dump.name}")

    def steps(self, inventory: Inventory) -> tuple[ServerStep, ...]:
        """Files with their owners by name, the directory of its socket, the daemon."""
        user, name = inventory.fact("user"), self.name
        return (
            ServerStep(system=name, name="configuration, tables and keys", action="files", rank=RANK_FILES, paths=tuple(row.path for row in inventory.paths)),
            *(
                ServerStep(system=name, name=f"make {path}", action="directory", rank=RANK_RUN, paths=(path,), owner=f"{user}:{user}", mode=0o750)
                for path in inventory.facts.get("run", ())
            ),
            ServerStep(
                system=name, name="start OpenDKIM", action="start", rank=RANK_START, argv=("opendkim", "-x", _CONFIG), needs=("opendkim",),
                ready=_ready(inventory.fact("socket")),
            ),
        )  # fmt: skip

    def probes(self, inventory: Inventory) -> tuple[Probe, ...]:
        """A message that was signed with the restored key, and an altered copy."""
        keys = inventory.facts.get("keys", ())
        return (Probe(name="dkim.signature", system=self.name, kind="dkim", tier="boot", settings={"keys": keys}),) if keys else ()

    def examine(self, ask: Ask, inventory: Inventory) -> list[Finding]:
        """Keys that the daemon would refuse, and records that do not belong to them."""
        found: list[Finding] = []
        for row in inventory.facts.get("keys", ()):
            selector, domain, path = row.split(" ", 2)
            found += _key_problems(ask, path, inventory.fact("user"))
            found += _record_problems(ask, selector, domain, path)
        return found


def _settings(text: str) -> dict[str, str]:
    """`Socket  inet:8891@localhost` → {"socket": …}; the last of a name counts."""
    rows = (line.split(None, 1) for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    return {row[0].lower(): row[1].strip() for row in rows if len(row) == 2}


def _version(ask: Ask) -> str:
    match = re.search(r"v(\S+)", ask.run("opendkim", "-V").out)
    return match[1] if match else ""


def _keys(ask: Ask, settings: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """(selector, domain, path) of every private key."""
    if settings.get("keyfile", "").startswith("/"):
        for domain in re.split(r"[\s,]+", settings.get("domain", "")):
            if domain:
                yield settings.get("selector", "default"), domain, settings["keyfile"]
    table = _PREFIX.sub("", settings.get("keytable", ""))
    if not table.startswith("/") or not ask.exists(table):
        return
    for line in ask.read(table).splitlines():
        words = line.split("#")[0].split()
        if len(words) >= 2:
            domain, selector, path = [*words[1].split(":", 2), "", ""][:3]
            if path.startswith("/"):
                yield selector, domain if domain != "%" else words[0].partition("._domainkey.")[2], path


def _with_record(ask: Ask, key: str) -> list[Chosen]:
    record = os.path.splitext(key)[0] + ".txt"
    rows = ask.chosen(key, "a private DKIM key")
    return [*rows, *ask.chosen(record, "the record to publish for it")] if ask.exists(record) else rows


def _socket(ask: Ask, settings: dict[str, str]) -> str:
    """Its socket; what /etc/default says does not count when the daemon is started with -x."""
    return settings.get("socket", "local:/run/opendkim/opendkim.sock")


def _run_files(ask: Ask, settings: dict[str, str]) -> Iterator[str]:
    """Files that it makes below /run or /var/run (and below the queue, for a chrooted Postfix)."""
    place = _socket(ask, settings)
    for path in (place.partition(":")[2] if place.startswith(("local:", "unix:")) else place, settings.get("pidfile", "")):
        if path.startswith("/"):
            yield path


def _ready(socket: str) -> str:
    if socket.startswith("inet"):
        return f"tcp:{socket.partition(':')[2].partition('@')[0]}"
    return socket.partition(":")[2] if ":" in socket else socket


# ---------------------------------------------------------------- examining


def _key_problems(ask: Ask, path: str, user: str) -> Iterator[Finding]:
    status = ask.status(path)
    if status is None:
        yield Finding(FindingKind.SECRET_DOUBT, path, "the key is not there: mail is refused or goes out unsigned")
        return
    if stat.S_IMODE(status.st_mode) & 0o007:
        yield Finding(
            FindingKind.SECRET_DOUBT,
            path,
            f"mode {stat.S_IMODE(status.st_mode):04o}: others may read it, so OpenDKIM refuses to sign. Run: chmod 0600 {path}",
        )
    owner = _owner(status.st_uid)
    if owner != user and not (stat.S_IMODE(status.st_mode) & 0o040):
        yield Finding(
            FindingKind.SECRET_DOUBT, path, f"belongs to {owner}, but OpenDKIM runs as {user} and cannot read it. Run: chown {user}: {path}"
        )


def _owner(uid: int) -> str:
    from mailbackup.host import user_name

    return user_name(uid) or str(uid)


def _record_problems(ask: Ask, selector: str, domain: str, path: str) -> Iterator[Finding]:
    """Whether the record beside the key is that of the key. What is published is asked for by `doctor --dns`."""
    beside = os.path.splitext(path)[0] + ".txt"
    if not ask.exists(path) or not ask.exists(beside):
        return
    try:
        mine = public_half(ask, path)
    except CannotAsk as error:
        yield Finding(FindingKind.SECRET_DOUBT, path, str(error))
        return
    if record_key(ask.read(beside)) != mine:
        yield Finding(
            FindingKind.SECRET_DOUBT,
            path,
            f"{beside} holds the record of another key: what is signed for {domain} ({selector}) may not verify",
        )


def public_half(ask: Ask, path: str) -> str:
    """The `p=` of the record for a private key, in base64. Raises CannotAsk."""
    kind = ask.said("openssl", "pkey", "-in", path, "-noout", "-text").out[:40].lower()
    pem = ask.said("openssl", "pkey", "-in", path, "-pubout").out
    der = "".join(line for line in pem.splitlines() if not line.startswith("-"))
    if "ed25519" in kind:
        return base64.b64encode(base64.b64decode(der)[-32:]).decode()  # the bare key, not the structure around it
    return der


def record_key(text: str) -> str:
    """The `p=` of a record in a zone file: quoted pieces joined."""
    joined = "".join(re.findall(r'"([^"]*)"', text)) or text
    match = re.search(r"p=([A-Za-z0-9+/=\s]+)", joined)
    return re.sub(r"\s", "", match[1]) if match else ""
