"""Postfix: what `postconf` says it reads, its queue, and that mail goes in.

`postconf -n` and `postfix check` end with status 0 when a parameter does not exist, and only say so on stderr: words there count as failures.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial

from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.system import (
    RANK_DERIVED,
    RANK_FILES,
    RANK_QUEUE,
    RANK_START,
    Chosen,
    Dump,
    Inventory,
    LeftOut,
    Probe,
    ServerStep,
)
from mailbackup.systems.ask import Ask, CannotAsk
from mailbackup.systems.databases import remote_findings
from mailbackup.systems.maps import BUILT, tables_in, text_rows

_QUEUES = ("maildrop", "hold", "incoming", "active", "deferred")  # where messages lie
_MADE = ("private", "public", "pid", "dev", "etc", "lib", "usr", "var", "run", "bounce", "defer", "trace", "flush", "corrupt")
_DATABASES = ("mysql", "pgsql", "ldap", "mongodb")
_NO_TABLES = ("unix", "inet", "inet6", "local", "tcp", "socketmap", "lmtp", "smtp", "relay", "http", "https", "file", "fifo", "exec")
_CACHE = re.compile(r"_cache_(database|map)|address_verify_map|_random_")  # made anew by daemons, and no tables that anybody wrote
_CACHES = ("smtp", "prng_exch", "verify", "postscreen", "master", "lmtp_", "smtpd_")
_PLAIN = re.compile(r"(?<![\w:$}%/.-])(/[^\s,{}:|]+)")
_OF_PACKAGES = (
    "/usr/bin/",
    "/usr/lib",
    "/usr/sbin/",
    "/usr/share/",
    "/bin/",
    "/sbin/",
    "/lib",
    "/dev/",
    "/proc/",
    "/run/",
    "/var/run/",
    "/var/log/",
)
_CYRUS = ("/etc/sasldb2", "/etc/default/saslauthd", "/etc/saslauthd.conf", "/etc/sasl2", "/etc/pam.d/smtp", "/usr/lib/sasl2/smtpd.conf")
_SERVICES = {"smtp": "25", "submission": "587", "smtps": "465", "submissions": "465"}


class Postfix:
    """Postfix 3."""

    name = "postfix"

    def find(self, ask: Ask) -> Inventory | None:
        """What `postconf` names."""
        if not ask.has("postconf") or not ask.exists("/etc/postfix/main.cf"):
            return None
        said = ask.said(
            "postconf", "-h", "mail_version", "config_directory", "queue_directory", "data_directory", "mail_owner"
        ).out.splitlines()
        if len(said) < 5 or not all(place.startswith("/") for place in said[1:4]):
            raise CannotAsk("'postconf -h' does not say where Postfix keeps its files")
        version, config, queue, data, owner = said[:5]
        settings, services = ask.said("postconf", "-xn"), ask.said("postconf", "-xP")
        maps = _tables(ask, settings.out + services.out)
        findings = [Finding(FindingKind.CONFIG_DOUBT, "postfix", line) for line in settings.err.splitlines() if line.strip()]
        findings += _instances(ask)
        findings += remote_findings(ask, "postfix", (path for kind, path in maps if kind in _DATABASES))
        paths = [
            *ask.chosen(config, "configuration", *_built_anew(ask, maps, config)),
            *_map_files(ask, maps, config, findings),
            *(
                row
                for path in _plain_files(ask, settings.out + services.out, config)
                for row in ask.chosen(path, "named by the configuration")
            ),
            *_sasl(ask),
            *ask.chosen(data, "data", *(LeftOut(f"{name}*", "a cache") for name in _CACHES)),
            *ask.chosen(queue, "queue directory", *(LeftOut(f"{name}/*", "sockets, and what Postfix makes anew") for name in _MADE)),
            *(row for name in _QUEUES for row in ask.chosen(f"{queue}/{name}", "mail on its way", queue=True)),
        ]
        aliases = _aliases(ask)
        return Inventory(
            system=self.name,
            version=version,
            paths=tuple(dict.fromkeys(paths)),
            dumps=(
                Dump("postfix/main.cf", "settings that differ from the defaults", ("postconf", "-n")),
                Dump("postfix/master.cf", "services", ("postconf", "-M")),
                Dump("postfix/queue.json", "list of the mail on its way"),
            ),
            facts={
                "config": (config,),
                "queue": (queue,),
                "owner": (owner,),
                "maps": tuple(
                    name for kind, path in maps if (name := f"{kind}:{path}") not in aliases and kind in BUILT and ask.exists(path)
                ),
                "aliases": aliases,
                "ports": tuple(dict.fromkeys(_ports(ask.said("postconf", "-M").out))),
                "auth": ("yes",) if re.search(r"smtpd_sasl_auth_enable\s*=\s*yes\b", settings.out + services.out) else (),
                "domains": _domains(ask),
                "milters": _milters(settings.out + services.out),
            },
            findings=tuple(findings),
        )

    def dump(self, ask: Ask, dump: Dump) -> Iterator[bytes]:
        """The queue; `postqueue` cannot answer where Postfix does not run, and then the files speak for themselves."""
        said = ask.run("postqueue", "-j")
        if said.status not in (0, 69):  # 69: the mail system is down
            raise CannotAsk(f"'postqueue -j' ended with status {said.status}: {said.err.strip()}")
        yield said.out.encode("utf-8", "surrogateescape")

    def steps(self, inventory: Inventory) -> tuple[ServerStep, ...]:
        """Files, derived maps, the queue on hold, the daemon last."""
        queues = tuple(row.path for row in inventory.paths if row.queue)
        files = tuple(row.path for row in inventory.paths if not row.queue)
        step = partial(ServerStep, system=self.name)
        built = [("postmap", one) for one in inventory.facts.get("maps", ())] + [
            ("postalias", one) for one in inventory.facts.get("aliases", ())
        ]
        return (
            step(name="configuration, maps and data", action="files", rank=RANK_FILES, paths=files, without=queues),
            *(step(name=f"build {argv[1]}", action="run", rank=RANK_DERIVED, argv=argv, needs=argv[:1]) for argv in built),
            step(
                name="check the configuration",
                action="check",
                paths=(inventory.fact("queue"),),
                rank=RANK_QUEUE - 1,
                argv=("postfix", "check"),
                needs=("postfix",),
                silent=True,
            ),
            step(
                name="mail on its way, on hold",
                action="queue",
                rank=RANK_QUEUE,
                paths=(inventory.fact("queue"), *queues),
                owner=inventory.fact("owner"),
            ),
            step(name="start Postfix", action="start", rank=RANK_START, argv=("postfix", "start"), needs=("postfix",), ready="tcp:25"),
        )

    def probes(self, inventory: Inventory) -> tuple[Probe, ...]:
        """Configuration as captured, maps that answer, AUTH, and a message that goes all the way."""
        facts = inventory.facts
        rows = [
            Probe(name="postfix.config", system=self.name, kind="config", tier="boot", settings={
                "argv": ("postconf", "-n"), "dump": ("postfix/main.cf",)}),
            Probe(name="postfix.services", system=self.name, kind="config", tier="boot", settings={
                "argv": ("postconf", "-M"), "dump": ("postfix/master.cf",)}),
            Probe(name="postfix.maps", system=self.name, kind="maps", tier="boot", settings={
                "maps": facts.get("maps", ()), "aliases": facts.get("aliases", ())}),
            Probe(name="mail.delivery", system=self.name, kind="mail", tier="boot"),
            Probe(name="postfix.queue", system=self.name, kind="queue", settings={"dump": ("postfix/queue.json",)}),
        ]  # fmt: skip
        submission = [port for port in facts.get("ports", ()) if port != "25"] or ["25"]
        if facts.get("auth"):
            rows.append(Probe(name="mail.auth", system=self.name, kind="auth", tier="boot", settings={"port": (submission[0],)}))
        return tuple(rows)

    def examine(self, ask: Ask, inventory: Inventory) -> list[Finding]:
        """Maps whose built form is older than their text, or missing."""
        found = list(inventory.findings)
        aliases = inventory.facts.get("aliases", ())
        for name in (*inventory.facts.get("maps", ()), *aliases):
            kind, _, path = name.partition(":")
            build = f"{'postalias' if name in aliases else 'postmap'} {name}"
            text, built = ask.status(path), ask.status(path + BUILT[kind])
            if built is None:
                found.append(
                    Finding(FindingKind.CONFIG_DOUBT, path, f"there is no {path}{BUILT[kind]}: Postfix refuses mail. Run: {build}")
                )
            elif text is not None and built.st_mtime < text.st_mtime:
                found.append(
                    Finding(FindingKind.CONFIG_DOUBT, path, f"changed after it was built: its last changes are not in use. Run: {build}")
                )
        return found


def _tables(ask: Ask, settings: str) -> list[tuple[str, str]]:
    """(kind, path) of all tables; caches are none. `alias_maps` also where it is left at its default."""
    lines = [line for line in settings.splitlines() if not _CACHE.search(line.partition("=")[0])]
    text = "\n".join([*lines, ask.said("postconf", "-xh", "alias_maps", "alias_database").out])
    return sorted({(kind, os.path.normpath(path)) for kind, path in tables_in(text) if kind not in _NO_TABLES})


def _built_anew(ask: Ask, maps: list[tuple[str, str]], config: str) -> Iterator[LeftOut]:
    """Built tables of the configuration whose text is there; without it they are all that there is."""
    for kind, path in maps:
        if kind in BUILT and path.startswith(config + "/") and ask.exists(path):
            yield LeftOut(path[len(config) + 1 :] + BUILT[kind], "built anew from its text")


def _map_files(ask: Ask, maps: list[tuple[str, str]], config: str, findings: list[Finding]) -> Iterator[Chosen]:
    """Files that tables are read from. Of one without its text the built form is all that there is."""
    for kind, path in maps:
        built = path + BUILT.get(kind, "")
        if ask.exists(path):
            if not path.startswith(config + "/"):
                yield from ask.chosen(path, f"a table ({kind})")
        elif kind in BUILT and ask.exists(built):
            yield from ask.chosen(built, f"a table ({kind}) whose text is gone")
        else:
            findings.append(Finding(FindingKind.CONFIG_DOUBT, path, f"the configuration names it as a table ({kind}), but it is not there"))


def _plain_files(ask: Ask, settings: str, config: str) -> Iterator[str]:
    """Lists that stand in a file of their own (`mydestination = /etc/postfix/domains`), and programs that master.cf starts."""
    for line in (*settings.splitlines(), *(f"x = {word}" for word in re.findall(r"argv=(\S+)", ask.said("postconf", "-M").out))):
        name, _, value = line.partition("=")
        if "_tls_" in name or "command" in name:
            continue
        for path in _PLAIN.findall(value):
            if not path.startswith((*_OF_PACKAGES, config + "/")) and ask.exists(path) and not ask.is_directory(path):
                yield path


def _sasl(ask: Ask) -> Iterator[Chosen]:
    """What Cyrus SASL needs, where it checks the passwords. Dovecot needs nothing besides its own."""
    if ask.said("postconf", "-h", "smtpd_sasl_type").out.strip() == "cyrus":
        for path in _CYRUS:
            if ask.exists(path):
                yield from ask.chosen(path, "Cyrus SASL: passwords, or how they are checked")


def _instances(ask: Ask) -> Iterator[Finding]:
    """Further instances: they have a configuration and a queue of their own."""
    for place in ask.said("postconf", "-xh", "multi_instance_directories").out.replace(",", " ").split():
        detail = "a further Postfix instance; its queue is not saved, and of its files only what stands in /etc"
        yield Finding(FindingKind.CONFIG_DOUBT, place, detail)


def _milters(settings: str) -> tuple[str, ...]:
    """Sockets of mail filters, as Postfix writes them (`inet:127.0.0.1:8891`, `unix:/run/x`)."""
    lines = re.findall(r"(?:smtpd_milters|non_smtpd_milters)\s*=\s*(.*)", settings)
    return tuple(dict.fromkeys(word for line in lines for word in re.findall(r"\b(?:inet6?|unix|local):[^\s,{}]+", line)))


def _aliases(ask: Ask) -> tuple[str, ...]:
    """Tables in the form of `aliases`, which `postalias` builds; `postmap` would take `root:` for a key."""
    names = tables_in(ask.said("postconf", "-xh", "alias_maps", "alias_database").out)
    return tuple(dict.fromkeys(f"{kind}:{os.path.normpath(path)}" for kind, path in names if kind in BUILT and ask.exists(path)))


def _ports(services: str) -> Iterator[str]:
    """Ports of the SMTP servers of master.cf that listen on all addresses."""
    for line in services.splitlines():
        words = line.split()
        if len(words) >= 8 and words[1] == "inet" and words[7].startswith(("smtpd", "postscreen")):
            port = words[0].rpartition(":")[2]
            yield _SERVICES.get(port, port)


def _domains(ask: Ask) -> tuple[str, ...]:
    """Domains whose mail ends here, as far as they are written out, in the settings or in the text of a table."""
    said = ask.said("postconf", "-xh", "virtual_mailbox_domains", "mydestination").out
    keys = (key for key, _ in text_rows(ask, tables_in(said)))
    words = (word for word in re.split(r"[\s,]+", said) if ":" not in word and "/" not in word)
    return tuple(dict.fromkeys(word for word in (*words, *keys) if "." in word and not word.startswith(("!", "."))))
