"""Makes the populated server: configures the root file system, runs it, and lets mail come in the ways it comes to a server.

What lies on disk afterwards was written by Postfix, Dovecot and OpenDKIM themselves: file names with sizes, UID lists, keywords, indexes, ACLs.
"""

from __future__ import annotations

import hashlib
import imaplib
import itertools
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import corpus
from tests.reference import rootfs
from tests.reference.accounts import ACCOUNTS, ALIASES, DOMAINS, HOST, SELECTOR, password
from tests.reference.cache import cached
from tests.reference.server import CA, ReferenceServer, wait_for

HERE = Path(__file__).resolve().parent
CORPUS_PARTS = ("easy_ham", "easy_ham_2", "hard_ham", "spam", "spam_2")

ARRIVED, UNSEEN = 20, 3
"""Messages per user that came in by SMTP (LMTP and sieve filed them): before a client looked, and after that, so that they lie in `new`."""

FILED = {"INBOX": 30, "Archive": 10, "Archive/2023": 15, "Archive/2024": 10, "Sent": 10, "Entw&APw-rfe": 3, "Junk": 2}
"""Messages per user and folder that a client stored there."""

COPIED = 3
"""Messages per user that a client copied from INBOX to Archive: one file with two names."""

DEFERRED, HELD = 4, 1
"""Mails to the outside that wait in the queue."""

SUBSCRIBED = ("Archive", "Archive/2023", "Sent", "Entw&APw-rfe")
KEYWORDS = ("$Label1", "NonJunk", "projekt-x", "$Forwarded")
FLAG_SETS = ("", r"\Seen", r"\Seen \Answered", r"\Seen \Flagged", r"\Draft", r"\Seen \Deleted")

SIEVE_USER = "alice@example.test"
ACTIVE_SIEVE = b"""require ["fileinto", "mailbox"];
if exists "List-Id" {
  fileinto :create "Lists";
}
"""
OTHER_SIEVE = b"""require "vacation";
vacation :days 7 "Away until Monday.";
"""

SHARED_FOLDER, SHARED_WITH = "Archive/2024", "bob@example.test"
"""A folder of `SIEVE_USER` that another user may read, by ACL."""

_FIRST_DATE = 1_700_000_000


def populated() -> Path:
    """The tree (without /usr) of the configured server with its mail, stopped. Skips without the corpus (fails in CI)."""
    return cached(f"populated-{_key()}", _make) / "root"


def _key() -> str:
    """Of what decides the content, and of the date: made anew every 60 days, since mail in the queue bounces after 100."""
    digest = hashlib.sha256(f"{rootfs.KEY} {time.time() // (60 * 86400)}".encode())
    for path in (HERE / "accounts.py", HERE / "populate.py", *sorted((HERE / "files").rglob("*"))):
        if path.is_file():
            digest.update(f"{path.relative_to(HERE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _make(partial: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        mails = _mails(_corpus(work))
        rootfs.copy(rootfs.rootfs(), partial / "root")
        install(partial / "root")
        with ReferenceServer(partial / "root", None) as server:
            _configure(server)
            server.start_mail()
            _give_sieve(server)
            _arrive(server, mails, ARRIVED)
            for address in ACCOUNTS:
                _file(server, address, mails)
            _arrive(server, mails, UNSEEN)
            _share(server)
            _fill_queue(server)
            server.stop_mail()


def install(root: Path) -> None:
    """Put the configuration files of this folder into a root. Those are plain: what must be made or owned by a service is made by `_configure`.

    They get the modes that such files have on a server, whatever the umask of the checkout was.
    """
    for source in sorted((HERE / "files").rglob("*")):
        target = root / source.relative_to(HERE / "files")
        if source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.unlink(missing_ok=True)
            target.write_bytes(source.read_bytes())
            target.chmod(0o644)
    (root / "etc/mtab").symlink_to("../proc/self/mounts")


# -- configuration that has to be made


def _configure(server: ReferenceServer) -> None:
    _make_users(server)
    _make_certificate(server)
    for domain in DOMAINS:
        keys = f"/etc/dkimkeys/{domain}"
        server.run("install", "-d", "-o", "opendkim", "-g", "opendkim", "-m", "0700", keys)
        server.run("opendkim-genkey", "-b", "2048", "-d", domain, "-s", SELECTOR, "-D", keys)
        server.run("chown", "opendkim:opendkim", f"{keys}/{SELECTOR}.private", f"{keys}/{SELECTOR}.txt")
    for table in ("vmailbox", "virtual"):
        server.run("postmap", f"hash:/etc/postfix/{table}")
    server.run("newaliases")
    server.run("postfix", "check")


def _make_users(server: ReferenceServer) -> None:
    server.run("groupadd", "-g", "5000", "vmail")
    server.run("useradd", "-u", "5000", "-g", "5000", "-d", "/var/vmail", "-s", "/usr/sbin/nologin", "vmail")
    for place in ("/var/vmail", "/var/lib/dovecot-shared"):
        server.run("install", "-d", "-o", "vmail", "-g", "vmail", "-m", "0750", place)
    secrets = "".join(f"{password(address)}\n" for address in ACCOUNTS).encode()
    hashes = server.run("openssl", "passwd", "-6", "-stdin", input=secrets).stdout.decode().split()
    rows = [f"{address}:{{SHA512-CRYPT}}{hashed}:5000:5000::{home(address)}::\n" for address, hashed in zip(ACCOUNTS, hashes, strict=True)]
    server.path("/etc/dovecot/users").write_text("".join(rows))
    server.run("chown", "root:dovecot", "/etc/dovecot/users")
    server.run("chmod", "0640", "/etc/dovecot/users")
    boxes = [f"{address} {address.partition('@')[2]}/{address.partition('@')[0]}/\n" for address in ACCOUNTS]
    server.path("/etc/postfix/vmailbox").write_text("".join(boxes))
    server.path("/etc/postfix/virtual").write_text("".join(f"{alias} {targets}\n" for alias, targets in ALIASES.items()))


def home(address: str) -> str:
    """The directory, inside, of a user's mail, sieve scripts and other state."""
    user, _, domain = address.partition("@")
    return f"/var/vmail/{domain}/{user}"


def _make_certificate(server: ReferenceServer) -> None:
    """An authority of its own and the certificate that it signed, for the host and both domains."""
    place = os.path.dirname(CA)
    server.run("install", "-d", "-m", "0755", place)
    names = ",".join(f"DNS:{name}" for name in (HOST, *(f"mail.{domain}" for domain in DOMAINS)))
    request = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650")
    signs = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    server.run(*request, "-subj", "/CN=Reference CA", *signs, "-keyout", f"{place}/ca.key", "-out", CA)
    signed = ("-CA", CA, "-CAkey", f"{place}/ca.key", "-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"subjectAltName={names}")
    server.run(*request, "-subj", f"/CN={HOST}", *signed, "-keyout", f"{place}/mx1.key", "-out", f"{place}/mx1.crt")
    server.run("chmod", "0600", f"{place}/ca.key", f"{place}/mx1.key")
    server.path(f"{place}/fullchain.pem").write_bytes(server.path(f"{place}/mx1.crt").read_bytes() + server.path(CA).read_bytes())


# -- mail


def _corpus(work: str) -> Path:
    """The folder of real mail, unpacked into `work`."""
    packed = Path(os.environ.get("MAILBACKUP_CORPUS") or corpus._DEFAULT) / "mail.tar.zst"
    if not packed.is_file():
        corpus._absent(packed)
    subprocess.run(["tar", "--no-same-owner", "-I", "zstd -d", "-xf", packed, "-C", work, "spamassassin-publiccorpus"], check=True)
    return Path(work, "spamassassin-publiccorpus")


def _mails(source: Path) -> Iterator[bytes]:
    """Real mails in a fixed order, wanted and unwanted mixed, without the separator lines of the mbox files they come from."""
    parts = (sorted((source / part).iterdir()) for part in CORPUS_PARTS)
    for path in itertools.chain.from_iterable(itertools.zip_longest(*parts)):
        if path is not None:
            yield re.sub(rb"\AFrom [^\n]*\n", b"", path.read_bytes())


def _arrive(server: ReferenceServer, mails: Iterator[bytes], count: int) -> None:
    """Mail from outside for each user, by SMTP."""
    with server.smtp(25) as client:
        for address in ACCOUNTS:
            for mail in itertools.islice(mails, count):
                client.sendmail("sender@outside.example.net", [address], mail)
    wait_for(lambda: not server.queue(), "the delivery of all mail", seconds=300)


def _give_sieve(server: ReferenceServer) -> None:
    for name, text in (("main", ACTIVE_SIEVE), ("away", OTHER_SIEVE)):
        as_vmail(server, "mkdir", "-p", f"{home(SIEVE_USER)}/sieve")
        as_vmail(server, "tee", f"{home(SIEVE_USER)}/sieve/{name}.sieve", input=text)
        as_vmail(server, "sievec", f"{home(SIEVE_USER)}/sieve/{name}.sieve")
    as_vmail(server, "ln", "-s", "sieve/main.sieve", f"{home(SIEVE_USER)}/.dovecot.sieve")


def as_vmail(server: ReferenceServer, *argv: str, input: bytes = b"") -> None:  # noqa: A002 - as subprocess has it
    """Run a program as the owner of all mail."""
    server.run("setpriv", "--reuid=vmail", "--regid=vmail", "--clear-groups", "--", *argv, input=input)


def _file(server: ReferenceServer, address: str, mails: Iterator[bytes]) -> None:
    """What a client does over time: folders, mail with flags and dates, keywords, copies, and some mail removed, so that UIDs have gaps."""
    with server.imap(address) as client:
        for folder, count in FILED.items():
            client.create(f'"{folder}"')  # those that exist already stay as they are
            for number, mail in enumerate(itertools.islice(mails, count)):
                when = imaplib.Time2Internaldate(_FIRST_DATE + 3600 * number)
                _ok(client.append(f'"{folder}"', FLAG_SETS[number % 5], when, mail))
        for folder in SUBSCRIBED:
            _ok(client.subscribe(f'"{folder}"'))
        _ok(client.select("INBOX"))
        for number, keyword in enumerate(KEYWORDS):
            _ok(client.store(f"{10 * number + 1}:{10 * number + 5}", "+FLAGS", f"({keyword})"))
        _ok(client.copy(f"1:{COPIED}", "Archive"))
        _ok(client.store("8,12", "+FLAGS", r"(\Deleted)"))
        _ok(client.expunge())


def _ok(answer: tuple[str, object]) -> None:
    assert answer[0] == "OK", answer


def _share(server: ReferenceServer) -> None:
    server.run("doveadm", "acl", "set", "-u", SIEVE_USER, SHARED_FOLDER, f"user={SHARED_WITH}", "lookup", "read")


def _fill_queue(server: ReferenceServer) -> None:
    """Mail to the outside, where no way leads: it stays deferred, and the last of it on hold."""
    for number in range(DEFERRED + HELD):
        text = f"From: {SIEVE_USER}\nTo: someone{number}@outside.example.net\nSubject: waiting {number}\n\nwaiting {number}\n"
        server.deliver(f"someone{number}@outside.example.net", text.encode(), sender=SIEVE_USER)
    wait_for(
        lambda: [entry["queue_name"] for entry in server.queue()].count("deferred") == DEFERRED + HELD,
        "the deferral of mail to the outside",
    )
    held = [entry["queue_id"] for entry in server.queue()][-HELD:]
    server.run("postsuper", "-h", *held)
