"""Certificates and keys that mail programs serve, and everything that renews them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator

from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.system import RANK_FILES, Chosen, Dump, Inventory, LeftOut, Probe, ServerStep
from mailbackup.systems.ask import Ask, CannotAsk

_LETSENCRYPT = "/etc/letsencrypt"
_LOCAL_CAS = "/usr/local/share/ca-certificates"
_OTHERS = ("smtpd_tls_CAfile", "smtp_tls_CAfile", "smtpd_tls_dh1024_param_file", "smtp_tls_cert_file", "smtp_tls_key_file")
DAYS = 14  # a certificate that ends sooner is told


class Tls:
    """TLS of Postfix and Dovecot."""

    name = "tls"

    def find(self, ask: Ask) -> Inventory | None:
        """What Postfix and Dovecot serve."""
        pairs = [*_postfix(ask), *_dovecot(ask)]
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
        """What is served is what was captured."""
        rows = [row.split(" ", 2) for row in inventory.facts.get("pairs", ())]
        return tuple(
            Probe(name=f"tls.{service}", system=self.name, kind="certificate", tier="boot", settings={"service": (service,), "path": (certificate,)})
            for service, certificate, _ in rows
        )  # fmt: skip

    def examine(self, ask: Ask, inventory: Inventory) -> list[Finding]:
        """Pairs that do not belong together, end soon, or lie open."""
        found: list[Finding] = []
        names = _names(ask)
        for row in inventory.facts.get("pairs", ()):
            service, certificate, key = row.split(" ", 2)
            found += _pair_problems(ask, service, certificate, key, names)
        return list(dict.fromkeys(found))


def _postfix(ask: Ask) -> Iterator[tuple[str, str, str]]:
    if not ask.has("postconf"):
        return
    chain, certificate, key = (
        ask.said("postconf", "-xh", "smtpd_tls_chain_files", "smtpd_tls_cert_file", "smtpd_tls_key_file").out.splitlines() + [""] * 3
    )[:3]
    for path in re.split(r"[\s,]+", chain):
        if path.startswith("/"):
            yield "smtp", path, path
    if certificate.startswith("/"):
        yield "smtp", certificate, key if key.startswith("/") else certificate


def _dovecot(ask: Ask) -> Iterator[tuple[str, str, str]]:
    if not ask.has("doveconf"):
        return
    settings = ask.said("doveconf", "-n").out  # 2.3: ssl_cert = </path; 2.4: ssl_server_cert_file = /path
    certificates = re.findall(r"^\s*ssl_(?:server_)?cert(?:_file)? = <?(/\S+)", settings, re.MULTILINE)
    keys = re.findall(r"^\s*ssl_(?:server_)?key_file = <?(/\S+)", settings, re.MULTILINE)
    if certificates and not keys:  # 2.3 hides keys unless told otherwise; only their paths are looked at
        keys = re.findall(r"^\s*ssl_key = <(/\S+)", ask.said("doveconf", "-n", "-P").out, re.MULTILINE)
    for certificate, key in zip(certificates, keys, strict=False):
        yield "imap", certificate, key


def _others(ask: Ask) -> Iterator[str]:
    if ask.has("postconf"):
        for value in ask.said("postconf", "-xh", *_OTHERS).lines:
            if value.startswith("/") and ask.exists(value) and not value.startswith("/etc/ssl/certs/ca-certificates"):
                yield value
    if ask.has("doveconf"):
        yield from (
            path
            for path in re.findall(r"^\s*ssl_(?:dh|ca)\w* = <?(/\S+)", ask.said("doveconf", "-n").out, re.MULTILINE)
            if ask.exists(path)
        )


# ---------------------------------------------------------------- examining


def _names(ask: Ask) -> list[str]:
    """Names under which clients reach this server."""
    if not ask.has("postconf"):
        return []
    return [name for name in ask.said("postconf", "-xh", "myhostname").lines if "." in name]


def _pair_problems(ask: Ask, service: str, certificate: str, key: str, names: list[str]) -> Iterator[Finding]:
    for path in dict.fromkeys((certificate, key)):
        if not os.path.exists(path):
            yield Finding(FindingKind.SECRET_DOUBT, path, f"{service} names it, but it is not there")
            return
    status = ask.status(key)
    if status is not None and stat.S_IMODE(status.st_mode) & 0o007:
        yield Finding(
            FindingKind.SECRET_DOUBT, key, f"mode {stat.S_IMODE(status.st_mode):04o}: every user may read this key. Run: chmod o= {key}"
        )
    try:
        mine = ask.said("openssl", "x509", "-in", certificate, "-noout", "-pubkey").out
        theirs = ask.said("openssl", "pkey", "-in", key, "-pubout").out
    except CannotAsk as error:
        yield Finding(FindingKind.SECRET_DOUBT, certificate, str(error))
        return
    if mine.strip() != theirs.strip():
        yield Finding(FindingKind.SECRET_DOUBT, certificate, f"{key} is not its key: {service} cannot start TLS")
    yield from _certificate_problems(ask, certificate, names)


def _certificate_problems(ask: Ask, certificate: str, names: list[str]) -> Iterator[Finding]:
    if ask.run("openssl", "x509", "-in", certificate, "-noout", "-checkend", "0").status != 0:
        yield Finding(FindingKind.SECRET_DOUBT, certificate, "has expired")
    elif ask.run("openssl", "x509", "-in", certificate, "-noout", "-checkend", str(DAYS * 86400)).status != 0:
        yield Finding(FindingKind.SECRET_DOUBT, certificate, f"ends within {DAYS} days")
    for name in names:
        said = ask.run("openssl", "x509", "-in", certificate, "-noout", "-checkhost", name)
        if "does NOT match" in said.out:
            yield Finding(FindingKind.SECRET_DOUBT, certificate, f"does not hold the name {name}, under which this server greets")
