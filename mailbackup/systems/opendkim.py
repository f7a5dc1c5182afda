"""OpenDKIM: keys, tables, and signatures that verify.

With a key that others may read, or that belongs to somebody else, the daemon starts, `opendkim -n` is content, and every mail is refused or goes out
unsigned: only a signed message proves anything.
"""

from __future__ import annotations

import base64
import binascii
import grp
import os
import pwd
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from mailbackup.host import group_name, user_name
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.system import RANK_FILES, RANK_RUN, RANK_START, Chosen, Dump, Inventory, Probe, ServerStep
from mailbackup.systems.ask import Ask, CannotAsk

_CONFIG = "/etc/opendkim.conf"
_DEFAULTS = "/etc/default/opendkim"
_ED25519_BYTES = 44  # of its structure; an RSA key has more than a hundred
_KINDS = ("refile", "file", "csl", "db", "bdb", "dsn", "ldap", "ldapi", "ldaps", "lua", "memcache", "mdb", "erlang", "socket", "reprd")
_LOOKUPS = ("ldap", "ldapi", "ldaps", "dsn", "memcache", "erlang", "socket", "reprd")


class Key(NamedTuple):
    """A private key and what it signs for; `domain` is empty where only a sender tells it."""

    selector: str
    domain: str
    path: str


class Opendkim:
    """OpenDKIM 2."""

    name = "opendkim"

    def find(self, ask: Ask) -> Inventory | None:
        """What its configuration names."""
        if not ask.has("opendkim") or not ask.exists(_CONFIG):
            return None
        settings, included = _settings(ask)
        paths = [row for path in (_CONFIG, *included) for row in ask.chosen(path, "configuration")]
        if ask.exists(_DEFAULTS):
            paths += ask.chosen(_DEFAULTS, "how it is started")
        findings: list[Finding] = []
        for option, value in settings.items():
            kind, place = _kind(value)
            if (
                place.startswith("/")
                and not place.startswith("/usr/share/")
                and ask.exists(place)
                and option not in ("pidfile", "socket", "basedirectory", "temporarydirectory")
            ):
                paths += ask.chosen(place, f"named as {option}")
            elif kind in _LOOKUPS:
                findings.append(
                    Finding(
                        FindingKind.CONFIG_DOUBT, _CONFIG, f"{option} asks a server ({kind}) whose contents are not part of this snapshot"
                    )
                )
        keys = list(dict.fromkeys(_keys(ask, settings, findings)))
        paths += [row for key in keys for row in _with_record(ask, key.path)]
        if ask.is_directory("/etc/dkimkeys"):
            paths += ask.chosen("/etc/dkimkeys", "keys")
        return Inventory(
            system=self.name,
            version=_version(ask),
            paths=tuple(dict.fromkeys(paths)),
            facts={
                "keys": tuple(f"{key.selector} {key.domain} {key.path}" for key in keys if key.domain),
                "user": (settings.get("userid", "opendkim").partition(":")[0],),
                "socket": (_socket(settings),),
                "run": tuple(dict.fromkeys(os.path.dirname(path) for path in _run_files(settings))),
                "owner": (_run_owner(ask, settings),),
            },
            findings=tuple(findings),
        )  # fmt: skip

    def dump(self, ask: Ask, dump: Dump) -> Iterator[bytes]:
        """It has none."""
        raise CannotAsk(f"opendkim has no dump {dump.name}")

    def steps(self, inventory: Inventory) -> tuple[ServerStep, ...]:
        """Files with their owners by name, the directory of its socket, the daemon."""
        name, owner = self.name, inventory.fact("owner") or f"{inventory.fact('user')}:{inventory.fact('user')}"
        return (
            ServerStep(system=name, name="configuration, tables and keys", action="files", rank=RANK_FILES, paths=tuple(row.path for row in inventory.paths)),
            *(
                ServerStep(system=name, name=f"make {path}", action="directory", rank=RANK_RUN, paths=(path,), owner=owner, mode=0o750)
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
        found: list[Finding] = list(inventory.findings)
        for row in inventory.facts.get("keys", ()):
            selector, domain, path = row.split(" ", 2)
            found += _key_problems(path, inventory.fact("user"))
            found += _record_problems(ask, selector, domain, path)
        return found


def _settings(ask: Ask) -> tuple[dict[str, str], list[str]]:
    """`Socket  inet:8891@localhost` → {"socket": …}, and the files that were included; the last of a name counts. Raises CannotAsk."""
    found: dict[str, str] = {}
    pending, seen = [_CONFIG], [_CONFIG]
    while pending:
        for line in ask.read(pending.pop(0)).splitlines():
            words = line.split("#")[0].split(None, 1)
            if len(words) == 2 and words[0].lower() == "include" and words[1].strip() not in seen:
                seen.append(words[1].strip())
                pending.append(words[1].strip())
            elif len(words) == 2:
                found[words[0].lower()] = words[1].strip()
    return found, seen[1:]


def _kind(value: str) -> tuple[str, str]:
    """(kind, the rest) of a data set: `refile:/etc/x` → ("refile", "/etc/x"). Without a kind, what begins with a slash is a file, else a list."""
    kind, colon, rest = value.partition(":")
    if colon and kind.lower() in _KINDS:
        return kind.lower(), rest
    return ("file" if value.startswith("/") else "csl"), value


def _rows(ask: Ask, value: str, findings: list[Finding]) -> Iterator[tuple[str, str]]:
    """(key, value) of a table that is a text: a file, or written out (`csl:a=b,c=d`)."""
    kind, place = _kind(value)
    if kind in ("file", "refile"):
        try:
            lines = ask.read(place).splitlines()
        except CannotAsk as error:
            findings.append(Finding(FindingKind.CONFIG_DOUBT, place, str(error)))
            return
        for line in lines:
            words = line.split("#")[0].split(None, 1)
            if words:
                yield words[0], words[1].strip() if len(words) == 2 else ""
    elif kind == "csl":
        for word in place.split(","):
            key, _, rest = word.strip().partition("=")
            if key:
                yield key, rest


def _version(ask: Ask) -> str:
    match = re.search(r"v(\d\S*)", ask.run("opendkim", "-V").out)
    return match[1] if match else ""


def _keys(ask: Ask, settings: dict[str, str], findings: list[Finding]) -> Iterator[Key]:
    """Every private key that is a file."""
    key_file = settings.get("keyfile", "")
    if key_file.startswith("/"):
        for domain, _ in _rows(ask, settings.get("domain", ""), findings):
            yield Key(settings.get("selector", "default"), domain, key_file)
    if "keytable" not in settings:
        return
    signing = [(value, name) for name, value in _rows(ask, settings["signingtable"], findings)] if "signingtable" in settings else []
    for name, value in _rows(ask, settings["keytable"], findings):
        domain, selector, path = [*value.split(":", 2), "", ""][:3]
        if not path.startswith(("/", "./")):
            continue  # the key itself stands in the table
        for real in [domain] if "%" not in domain + path else _signers(name, signing):
            place = os.path.normpath(os.path.join("/", path.replace("%", real)))
            yield Key(selector, domain.replace("%", real) if real else "", place)


def _signers(name: str, signing: list[tuple[str, str]]) -> list[str]:
    """The domains whose mail is signed with the key `name`; [""] when no table says so: a `%` stands for whatever domain sends."""
    own = name.partition("._domainkey.")[2]
    rows = [sender.rpartition("@")[2] for key, sender in signing if key == name]
    domains = [row for row in rows if row and "*" not in row and "%" not in row]
    return list(dict.fromkeys(domains)) or [own if "%" not in own else ""]


def _with_record(ask: Ask, key: str) -> list[Chosen]:
    record = os.path.splitext(key)[0] + ".txt"
    rows = ask.chosen(key, "a private DKIM key")
    return [*rows, *ask.chosen(record, "the record to publish for it")] if ask.exists(record) else rows


def _socket(settings: dict[str, str]) -> str:
    """Its socket; what /etc/default says does not count when the daemon is started with -x."""
    return settings.get("socket", "local:/run/opendkim/opendkim.sock")


def _run_files(settings: dict[str, str]) -> Iterator[str]:
    """Files that it makes below /run or /var/run (and below the queue, for a chrooted Postfix)."""
    place = _socket(settings)
    for path in (place.partition(":")[2] if place.startswith(("local:", "unix:")) else place, settings.get("pidfile", "")):
        if path.startswith("/"):
            yield path


def _run_owner(ask: Ask, settings: dict[str, str]) -> str:
    """`user:group` of the directory of its socket: Postfix may reach it by the group. As it is now, else that of the daemon."""
    user, _, group = settings.get("userid", "opendkim").partition(":")
    for path in _run_files(settings):
        status = ask.status(os.path.dirname(path))
        if status is not None and status.st_uid:
            return f"{user_name(status.st_uid) or user}:{group_name(status.st_gid) or group or user}"
    return f"{user}:{group or user}"


def _ready(socket: str) -> str:
    if socket.startswith("inet"):
        return f"tcp:{socket.partition(':')[2].partition('@')[0]}"
    return socket.partition(":")[2] if ":" in socket else socket


# ---------------------------------------------------------------- examining


def _key_problems(path: str, user: str) -> Iterator[Finding]:
    """What makes OpenDKIM refuse a key (seen with 2.11): others may read it, its group holds others and may read it, it belongs to somebody else."""
    try:
        status = os.stat(path)
    except OSError as error:
        yield Finding(
            FindingKind.SECRET_DOUBT, path, f"the key cannot be looked at ({error.strerror}): mail is refused or goes out unsigned"
        )
        return
    mode, owner = stat.S_IMODE(status.st_mode), user_name(status.st_uid) or str(status.st_uid)
    if mode & 0o007:
        detail = f"mode {mode:04o}: others may read it, so OpenDKIM refuses to sign. Run: chmod 0600 {path}"
        yield Finding(FindingKind.SECRET_DOUBT, path, detail)
    elif mode & 0o070 and (others := _others_in(status.st_gid, user)):
        group = group_name(status.st_gid) or str(status.st_gid)
        detail = (
            f"mode {mode:04o}, and group {group} holds {', '.join(others[:3])} too, so OpenDKIM refuses to sign. Run: chmod 0600 {path}"
        )
        yield Finding(FindingKind.SECRET_DOUBT, path, detail)
    if owner != user and not (mode & 0o040):
        detail = f"belongs to {owner}, but OpenDKIM runs as {user} and cannot read it. Run: chown {user}: {path}"
        yield Finding(FindingKind.SECRET_DOUBT, path, detail)


def _others_in(gid: int, user: str) -> list[str]:
    """Members of a group besides the daemon, also those whose first group it is."""
    try:
        members = set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        members = set()
    members |= {row.pw_name for row in pwd.getpwall() if row.pw_gid == gid}
    return sorted(members - {user, "root"})


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
    try:
        return record_of(ask.said("openssl", "pkey", "-in", path, "-pubout").out)[1]
    except binascii.Error:
        raise CannotAsk(f"openssl does not say what the public half of {path} is") from None


def record_of(pem: str) -> tuple[str, str]:
    """`k=` and `p=` of the record for a public key: RSA in its structure, Ed25519 bare (RFC 8463). Raises binascii.Error when it is none."""
    text = "".join(line for line in pem.splitlines() if not line.startswith("-"))
    der = base64.b64decode(text)
    return ("ed25519", base64.b64encode(der[-32:]).decode()) if len(der) == _ED25519_BYTES else ("rsa", text)


def record_key(text: str) -> str:
    """The `p=` of a record in a zone file: quoted pieces joined."""
    joined = "".join(re.findall(r'"([^"]*)"', text)) or text
    match = re.search(r"(?:^|[;\s])p=([A-Za-z0-9+/=\s]+)", joined)
    return re.sub(r"\s", "", match[1]) if match else ""
