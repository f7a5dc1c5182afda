"""Probes that send and fetch mail: delivery, authentication, signatures, certificates, the queue."""

from __future__ import annotations

import base64
import contextlib
import imaplib
import json
import secrets
import smtplib
import ssl
import time
from email.utils import formatdate

from mailbackup.drill.probes.bench import Bench, ProbeFailed, ProbeSkipped, unchecked
from mailbackup.drill.probes.mailboxes import listed, quoted
from mailbackup.errors import NotFound
from mailbackup.model.account import Accounts
from mailbackup.model.codec import decode
from mailbackup.model.system import Probe
from mailbackup.systems.dovecot import ACCOUNTS
from mailbackup.systems.opendkim import record_of

_ARRIVES = 20  # seconds that a delivery may take


def delivery(_probe: Probe, bench: Bench) -> str:
    """A message goes in by SMTP and comes out by IMAP, byte for byte but for headers that were added."""
    recipient = bench.recipient()
    sent = letter("drill@mailbackup.invalid", recipient)
    received = _through(bench, sent, "drill@mailbackup.invalid", recipient)
    if not _same_but_for_headers(sent, received):
        raise ProbeFailed("the message that came out is not the one that went in")
    return f"to {recipient}, {len(received)} bytes"


def letter(sender: str, recipient: str) -> bytes:
    """A message that no auto-responder answers, with lines that careless programs change."""
    name = f"{secrets.token_hex(12)}@mailbackup.invalid"
    head = [
        f"From: <{sender}>", f"To: <{recipient}>", "Subject: mailbackup drill", f"Date: {formatdate()}", f"Message-ID: <{name}>",
        "Auto-Submitted: auto-generated", "Precedence: bulk", "MIME-Version: 1.0", "Content-Type: text/plain; charset=us-ascii",
    ]  # fmt: skip
    body = ["A rehearsal of a restore.", "", ".", "..", "From the beginning", " indented", f"token {secrets.token_hex(16)}", "", ""]
    return "\r\n".join([*head, "", *body]).encode()


def _through(bench: Bench, message: bytes, sender: str, recipient: str) -> bytes:
    """Send by SMTP, wait, fetch by IMAP. Raises ProbeFailed."""
    with contextlib.closing(bench.smtp(25)) as session:
        try:
            session.sendmail(sender, [recipient], message)
        except smtplib.SMTPRecipientsRefused as error:
            raise ProbeFailed(f"Postfix refuses mail: {_first(error.recipients)}") from None
        except (smtplib.SMTPException, OSError) as error:
            raise ProbeFailed(f"Postfix does not take the message: {error}") from None
    return _fetch(bench, recipient, _field(message, b"message-id"))


def _first(recipients: object) -> str:
    code, text = next(iter(recipients.values()))  # type: ignore[attr-defined]
    return f"{code} {text.decode('utf-8', 'replace')}"


def _field(message: bytes, name: bytes) -> str:
    for line in message.split(b"\r\n\r\n")[0].split(b"\r\n"):
        if line.lower().startswith(name + b":"):
            return line.partition(b":")[2].strip().decode()
    return ""


def _fetch(bench: Bench, user: str, message_id: str) -> bytes:
    """The message, from whatever folder a filter put it into. Raises ProbeFailed when it does not arrive."""
    session = bench.imap(user)
    try:
        until = time.monotonic() + _ARRIVES
        folders = ["INBOX"]
        while time.monotonic() < until:
            for folder in folders:
                found = _search(session, folder, message_id)
                if found is not None:
                    return found
            folders = ["INBOX", *_folders(session)]
            time.sleep(0.1)
    except (OSError, imaplib.IMAP4.error) as error:
        raise ProbeFailed(f"IMAP as {user}: {error}") from None
    finally:
        with contextlib.suppress(OSError, imaplib.IMAP4.error):
            session.logout()
    log = bench.run("tail", "-n", "3", "/var/log/mail.log").out.strip().splitlines()
    raise ProbeFailed(f"the message did not arrive within {_ARRIVES} s{'; the log ends with: ' + log[-1] if log else ''}")


def _folders(session: imaplib.IMAP4) -> list[str]:
    return [name for name, _, attributes in listed(session.list()[1]) if "noselect" not in attributes.lower()]


def _search(session: imaplib.IMAP4, folder: str, message_id: str) -> bytes | None:
    status, _ = session.select(quoted(folder), readonly=True)
    if status != "OK":
        return None
    _, found = session.uid("SEARCH", "HEADER", "Message-ID", message_id)
    if not found or not found[0]:
        return None
    _, parts = session.uid("FETCH", found[0].split()[-1].decode(), "(BODY.PEEK[])")
    return next((part[1] for part in parts if isinstance(part, tuple)), None)


def _same_but_for_headers(sent: bytes, received: bytes) -> bool:
    """Headers may be added, in front or between; what was sent is there in its order, and the body is the same."""
    sent_head, _, sent_body = sent.partition(b"\r\n\r\n")
    head, _, body = received.partition(b"\r\n\r\n")
    lines = iter(head.split(b"\r\n"))
    return body == sent_body and all(any(line == wanted for line in lines) for wanted in sent_head.split(b"\r\n"))


def auth(probe: Probe, bench: Bench) -> str:
    """Right credentials open a session, wrong ones do not. The right ones are those of a master user made for the drill: the way from Postfix to Dovecot is
    proven, the stored passwords are not."""
    port = int(probe.setting("port"))
    user = f"{bench.recipient()}*mailbackup-drill"
    good, answer = _login(bench, port, user, bench.password)
    if not good:
        raise ProbeFailed(f"a right password is refused on port {port}: {answer}")
    bad, answer = _login(bench, port, user, "not " + bench.password)
    if bad:
        raise ProbeFailed(f"a wrong password is accepted on port {port}")
    return f"port {port}: right accepted, wrong refused ({answer})"


def _login(bench: Bench, port: int, user: str, password: str) -> tuple[bool, str]:
    with contextlib.closing(bench.smtp(port)) as session:
        try:
            if session.has_extn("starttls"):
                session.starttls(context=unchecked())
                session.ehlo("drill.invalid")
            code, text = session.docmd("AUTH", "PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()).decode())
        except (smtplib.SMTPException, OSError) as error:
            raise ProbeFailed(f"SMTP on port {port}: {error}") from None
    if code not in (235, 535):
        raise ProbeFailed(f"AUTH on port {port} answers {code} {text.decode('utf-8', 'replace')}")
    return code == 235, f"{code}"


def dkim(probe: Probe, bench: Bench) -> str:
    """A message from one of our domains carries a signature that the record derived from the restored key verifies; an altered copy does not verify."""
    rows = [row.split(" ", 2) for row in probe.settings["keys"]]
    selector, domain, _ = _signing(rows, bench.recipient())
    sender = f"drill@{domain}"
    received = _through(bench, letter(sender, bench.recipient()), sender, bench.recipient())
    if b"dkim-signature:" not in received.partition(b"\r\n\r\n")[0].lower():
        raise ProbeFailed(f"mail from {domain} goes out without a signature")
    records = {f"{one}._domainkey.{of}.": _record(bench, path) for one, of, path in rows}
    if not _verifies(received, records):
        raise ProbeFailed(f"the signature of {domain} ({selector}) does not verify with the restored key")
    if _verifies(received.replace(b"token ", b"tokeN ", 1), records):
        raise ProbeFailed("an altered message verifies as well")
    return f"{selector}._domainkey.{domain} verifies, an altered copy does not"


def _signing(rows: list[list[str]], recipient: str) -> list[str]:
    """The key of the recipient's domain, else the first one."""
    domain = recipient.rpartition("@")[2]
    return next((row for row in rows if row[1] == domain), rows[0])


def _record(bench: Bench, path: str) -> bytes:
    said = bench.run("openssl", "pkey", "-in", path, "-pubout")
    if said.status != 0:
        raise ProbeFailed(f"cannot read the restored key {path}: {said.complaint}")
    kind, public = record_of(said.out)
    return f"v=DKIM1; k={kind}; p={public}".encode()


def _verifies(message: bytes, records: dict[str, bytes]) -> bool:
    import dkim as library

    def answer(name: bytes | str, **_: object) -> bytes:
        text = name.decode() if isinstance(name, bytes) else name
        return records.get(text if text.endswith(".") else f"{text}.", b"")

    try:
        return bool(library.verify(message, dnsfunc=answer))
    except library.DKIMException:
        return False


_TLS = {"smtp": ((25, "smtp"), (587, "smtp"), (465, "tls")), "imap": ((143, "imap"), (993, "tls"))}


def certificate(probe: Probe, bench: Bench) -> str:
    """The certificate that is served is the one that was captured."""
    captured = ssl.PEM_cert_to_DER_cert(_first_certificate(bench.source.read(probe.setting("path")).decode()))
    asked = []
    for port, how in _TLS[probe.setting("service")]:
        try:
            served = _served(bench, port, how)
        except ConnectionRefusedError:
            continue
        if served != captured:
            raise ProbeFailed(f"port {port} serves another certificate than {probe.setting('path')}")
        asked.append(str(port))
    if not asked:
        raise ProbeFailed(f"{probe.setting('service')} offers TLS on no port")
    return f"served on {', '.join(asked)}"


def _first_certificate(text: str) -> str:
    start, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    if start not in text or end not in text:
        raise ProbeFailed("the captured file holds no certificate")
    return text[text.index(start) : text.index(end) + len(end)]


def _served(bench: Bench, port: int, how: str) -> bytes:
    connection = bench.scratch.connect(port)
    try:
        if how != "tls":
            _begin_tls(connection.makefile("rwb", buffering=0), how, port)
        with unchecked().wrap_socket(connection) as wrapped:
            return wrapped.getpeercert(binary_form=True) or b""
    except (OSError, ValueError) as error:
        raise ProbeFailed(f"TLS on port {port}: {error}") from None
    finally:
        connection.close()


def _begin_tls(stream: object, how: str, port: int) -> None:
    """STARTTLS by hand, so that the certificate can be had without a login."""
    words = {"smtp": ((b"EHLO drill.invalid\r\n", b"250 "), (b"STARTTLS\r\n", b"220 ")), "imap": ((b"a STARTTLS\r\n", b"a OK"),)}[how]
    stream.readline()  # type: ignore[attr-defined]  # the greeting
    for line, expected in words:
        stream.write(line)  # type: ignore[attr-defined]
        while answer := stream.readline():  # type: ignore[attr-defined]
            if answer.startswith(expected):
                break
            if answer[:1] in b"45" or answer.startswith((b"a NO", b"a BAD")):
                raise ProbeFailed(f"port {port} offers no TLS: {answer.decode('ascii', 'replace').strip()}")


def queue(probe: Probe, bench: Bench) -> str:
    """Everything that was on its way is on hold, and nothing of it is gone."""
    then = [json.loads(line) for line in bench.source.dump(probe.setting("dump")).splitlines() if line.strip()]
    said = bench.run("postqueue", "-j")
    now = [json.loads(line) for line in said.out.splitlines() if line.strip()]
    loose = [row for row in now if row["queue_name"] != "hold" and not str(row.get("sender", "")).endswith("@mailbackup.invalid")]
    if loose:
        raise ProbeFailed(f"{len(loose)} messages are not on hold, first {loose[0]['queue_id']} in {loose[0]['queue_name']}")
    missing = _facts_of(then, moved=True) - _facts_of(now)
    if missing:
        raise ProbeFailed(f"{len(missing)} of {len(then)} messages are missing, first from {min(missing)[0]}")
    return f"{len(now)} messages on hold"


def _facts_of(rows: list[dict[str, object]], *, moved: bool = False) -> set[tuple[str, str, str]]:
    """Queue ids change with the inode; sender, recipients and time of arrival do not. Of those then being delivered the next moment decides."""
    return {
        (str(row.get("sender")), str(sorted(to["address"] for to in row["recipients"])), str(row.get("arrival_time")))  # type: ignore[attr-defined]
        for row in rows
        if not (moved and row.get("queue_name") in ("active", "incoming", "maildrop"))
    }


def users(probe: Probe, bench: Bench) -> str:
    """Dovecot knows the accounts that it knew."""
    try:
        then = {account.name for account in decode(bench.source.dump(ACCOUNTS), Accounts, ACCOUNTS).accounts}
    except NotFound:
        raise ProbeSkipped("the accounts were not known when the snapshot was made") from None
    said = bench.run("doveadm", "-c", "/etc/dovecot/mailbackup-drill.conf", "user", "*")
    if said.status != 0:
        raise ProbeFailed(f"'doveadm user *' ended with status {said.status}: {said.complaint}")
    missing = then - set(said.out.split("\n"))
    if missing:
        raise ProbeFailed(f"{len(missing)} of {len(then)} accounts are unknown, first {min(missing)}")
    return f"{len(then)} accounts"
