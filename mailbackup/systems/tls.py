"""Certificates and keys that mail programs serve, and everything that renews them."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator

from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.system import RANK_FILES, Chosen, Dump, Inventory, LeftOut, Probe, ServerStep
from mailbackup.systems.accounts import dovecot_settings
from mailbackup.systems.ask import Ask, CannotAsk
from mailbackup.systems.maps import tables_in, text_rows

Pair = tuple[str, str, str]
"""Service, certificate, key."""

_LETSENCRYPT = "/etc/letsencrypt"
_LOCAL_CAS = "/usr/local/share/ca-certificates"
_RENEWERS = (
    "/root/.acme.sh",
    "/etc/acme",
    "/etc/acme.sh",
    "/var/lib/acme",
    "/etc/dehydrated",
    "/var/lib/dehydrated",
    "/root/.lego",
    "/etc/lego",
    "/etc/pki/dovecot",
)
_PAIRS = (
    ("smtpd_tls_cert_file", "smtpd_tls_key_file"),
    ("smtpd_tls_eccert_file", "smtpd_tls_eckey_file"),
    ("smtpd_tls_dcert_file", "smtpd_tls_dkey_file"),
)
_CHAIN = "smtpd_tls_chain_files"
_OTHERS = ("smtpd_tls_CAfile", "smtp_tls_CAfile", "smtpd_tls_dh1024_param_file", "smtp_tls_cert_file", "smtp_tls_key_file")
DAYS = 14  # a certificate that ends sooner is told


class Tls:
    """TLS of Postfix and Dovecot."""

    name = "tls"

    def find(self, ask: Ask) -> Inventory | None:
        """What Postfix and Dovecot serve."""
        pairs = list(dict.fromkeys([*_postfix(ask), *_dovecot(ask)]))
        if not pairs and not ask.exists(_LETSENCRYPT):
            return None
        paths: list[Chosen] = []
        for service, certificate, key in pairs:
            paths += ask.chosen(certificate, f"the certificate of {service}")
            paths += ask.chosen(key, f"the key of {service}")
        for path in _others(ask):
            paths += ask.chosen(path, "named by the configuration")
        if ask.exists(_LETSENCRYPT):
            paths += ask.chosen(_LETSENCRYPT, "accounts, keys and renewal", LeftOut("csr/*", "made anew at each renewal"))
        for path in filter(ask.names, _RENEWERS):
            paths += ask.chosen(path, "accounts, keys and renewal")
        if ask.names(_LOCAL_CAS):
            paths += ask.chosen(_LOCAL_CAS, "certificate authorities of this site")
        rows = tuple(dict.fromkeys(f"{service} {certificate} {key}" for service, certificate, key in pairs))
        return Inventory(system=self.name, paths=tuple(dict.fromkeys(paths)), facts={"pairs": rows})

    def dump(self, ask: Ask, dump: Dump) -> Iterator[bytes]:
        """It has none."""
        raise CannotAsk(f"tls has no dump {dump.name}")

    def steps(self, inventory: Inventory) -> tuple[ServerStep, ...]:
        """Files; they come before the programs that serve them."""
        paths = tuple(row.path for row in inventory.paths)
        return (ServerStep(system=self.name, name="certificates and keys", action="files", rank=RANK_FILES - 5, paths=paths),)

    def probes(self, inventory: Inventory) -> tuple[Probe, ...]:
        """What is served is what was captured: the first certificate of each service, which is what a client without SNI gets."""
        served: dict[str, str] = {}
        for row in inventory.facts.get("pairs", ()):
            service, certificate, _ = row.split(" ", 2)
            if "." not in service:
                served.setdefault(service, certificate)
        return tuple(
            Probe(name=f"tls.{service}", system=self.name, kind="certificate", tier="boot", settings={"service": (service,), "path": (certificate,)})
            for service, certificate in served.items()
        )  # fmt: skip

    def examine(self, ask: Ask, inventory: Inventory) -> list[Finding]:
        """Pairs that do not belong together, end soon, or lie open."""
        found: list[Finding] = []
        names = _names(ask)
        for row in inventory.facts.get("pairs", ()):
            service, certificate, key = row.split(" ", 2)
            found += _pair_problems(ask, service, certificate, key, names)
        return list(dict.fromkeys(found))


def _postfix(ask: Ask) -> Iterator[Pair]:
    """What Postfix serves: by its main settings, and by those that master.cf gives single services."""
    if not ask.has("postconf") or not ask.exists("/etc/postfix/main.cf"):
        return
    settings = _parameters(ask.said("postconf", "-xn").out)
    services: dict[str, dict[str, str]] = {"": settings}
    for line in ask.said("postconf", "-xP").out.splitlines():
        service, _, rest = line.partition("=")[0].strip().rpartition("/")
        services.setdefault(service, {})[rest] = line.partition("=")[2].strip()
    for own in services.values():
        chain = re.split(r"[\s,]+", own.get(_CHAIN, ""))
        yield from (("smtp", certificate, key) for certificate, key in chained(ask, [path for path in chain if path.startswith("/")]))
        for certificate, key in _PAIRS:
            place = own.get(certificate, "")
            if place.startswith("/") and not own.get(_CHAIN):
                named = own.get(key) or settings.get(key, "")
                yield "smtp", place, named if named.startswith("/") else place
    for kind, path in tables_in(settings.get("tls_server_sni_maps", "")):
        for name, value in text_rows(ask, [(kind, path)]):
            files = [word for word in re.split(r"[\s,]+", value) if word.startswith("/")]
            yield from ((f"smtp.{name}", certificate, key) for certificate, key in chained(ask, files))


def _parameters(text: str) -> dict[str, str]:
    return {name.strip(): value.strip() for name, _, value in (line.partition("=") for line in text.splitlines())}


def chained(ask: Ask, files: list[str]) -> Iterator[tuple[str, str]]:
    """(certificate, key) of chain files: each key comes first, and its certificates follow it, in the same file or in the next ones."""
    key = ""
    paired: set[str] = set()
    for path in files:
        try:
            text = ask.read(path)
        except CannotAsk:  # whoever examines them tells that it cannot be read
            text = ""
        if "PRIVATE KEY-----" in text or not text:
            key = path
        if key not in paired and ("BEGIN CERTIFICATE-----" in text or not text):
            paired.add(key)
            yield path, key


def _dovecot(ask: Ask) -> Iterator[Pair]:
    """What Dovecot serves. 2.3: `ssl_cert = </path`, 2.4: `ssl_server { cert_file = /path }`; each key follows its certificate."""
    if not ask.has("doveconf"):
        return
    certificates: dict[tuple[str, ...], str] = {}
    for row in dovecot_settings(ask):
        place = row.value.removeprefix("<").strip()
        if not place.startswith("/"):
            continue
        name = row.name if row.name in (*_DOVECOT_CERTIFICATES, *_DOVECOT_KEYS) else row.whole
        if name in _DOVECOT_CERTIFICATES:
            certificates[*row.blocks, name.replace("cert", "")] = place
        elif name in _DOVECOT_KEYS and (certificate := certificates.get((*row.blocks, name.replace("key", "")))):
            yield "imap", certificate, place


_DOVECOT_CERTIFICATES = ("ssl_cert", "ssl_alt_cert", "ssl_server_cert_file", "ssl_server_alt_cert_file")
_DOVECOT_KEYS = ("ssl_key", "ssl_alt_key", "ssl_server_key_file", "ssl_server_alt_key_file")


def _others(ask: Ask) -> Iterator[str]:
    """What else belongs to TLS: authorities, parameters, keys for sending."""
    found: list[str] = []
    if ask.has("postconf") and ask.exists("/etc/postfix/main.cf"):
        found += ask.said("postconf", "-xh", *_OTHERS).lines
    if ask.has("doveconf"):
        rows = (
            row
            for row in dovecot_settings(ask)
            if re.match(r"ssl_(server_|client_)?(dh|ca)", row.whole) or re.match(r"ssl_(dh|ca)", row.name)
        )
        found += [row.value.removeprefix("<").strip() for row in rows]
    for path in found:
        own = path.startswith("/") and not path.startswith(("/etc/ssl/certs/ca-certificates", "/usr/share/"))
        if own and ask.exists(path) and not ask.is_directory(path):
            yield path


# ---------------------------------------------------------------- examining


def _names(ask: Ask) -> list[str]:
    """Names under which clients reach this server."""
    if not ask.has("postconf") or not ask.exists("/etc/postfix/main.cf"):
        return []
    return [name for name in ask.said("postconf", "-xh", "myhostname").lines if "." in name]


def _pair_problems(ask: Ask, service: str, certificate: str, key: str, names: list[str]) -> Iterator[Finding]:
    for path in dict.fromkeys((certificate, key)):
        if ask.status(path) is None:
            yield Finding(FindingKind.SECRET_DOUBT, path, f"{service} names it, but it is not there, or cannot be looked at by this user")
            return
    yield from _open_key(ask, key)
    try:
        mine = ask.said("openssl", "x509", "-in", certificate, "-noout", "-pubkey").out
    except CannotAsk:
        yield Finding(FindingKind.SECRET_DOUBT, certificate, f"holds no certificate that openssl can read: {service} cannot start TLS")
        return
    try:
        theirs = ask.said("openssl", "pkey", "-in", key, "-passin", "pass:", "-pubout").out
    except CannotAsk:
        yield Finding(
            FindingKind.SECRET_DOUBT,
            key,
            f"holds no private key that openssl can read, or one with a passphrase, or this user may not: {service}",
        )
        return
    if mine.strip() != theirs.strip():
        yield Finding(FindingKind.SECRET_DOUBT, certificate, f"{key} is not its key: {service} cannot start TLS")
    yield from _certificate_problems(ask, certificate, names if "." not in service else [service.partition(".")[2]])


def _open_key(ask: Ask, key: str) -> Iterator[Finding]:
    status = ask.status(key)
    if status is not None and stat.S_IMODE(status.st_mode) & 0o007:
        mode = stat.S_IMODE(status.st_mode)
        yield Finding(FindingKind.SECRET_DOUBT, key, f"mode {mode:04o}: every user of this host may use this key. Run: chmod o= {key}")


def _certificate_problems(ask: Ask, certificate: str, names: list[str]) -> Iterator[Finding]:
    if ask.run("openssl", "x509", "-in", certificate, "-noout", "-checkend", "0").status != 0:
        yield Finding(FindingKind.SECRET_DOUBT, certificate, "has expired")
    elif ask.run("openssl", "x509", "-in", certificate, "-noout", "-checkend", str(DAYS * 86400)).status != 0:
        yield Finding(FindingKind.SECRET_DOUBT, certificate, f"ends within {DAYS} days")
    for name in names:
        said = ask.run("openssl", "x509", "-in", certificate, "-noout", "-checkhost", name)
        if "does NOT match" in said.out:
            yield Finding(FindingKind.SECRET_DOUBT, certificate, f"does not hold the name {name}, under which this server greets")
