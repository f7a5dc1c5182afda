"""The reference mail server of the tests: a real Postfix, Dovecot and OpenDKIM with 20 users and about 2,000 real mails.

    with ReferenceServer.start(tmp_path) as server:
        server.start_mail()
        server.deliver("alice@example.test", b"Subject: hello\\n\\nhello\\n")
        before = server.uid_hashes("alice@example.test")
        server.mailbackup("backup", "--config", "/etc/mailbackup.toml")

Making it takes minutes, once per machine and state of this folder; each test starts from a copy.
"""

from __future__ import annotations

import hashlib
import imaplib
import json
import os
import re
import shutil
import smtplib
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.reference import rootfs
from tests.reference.accounts import HOST, password
from tests.reference.namespace import Machine

REPOSITORY = Path(__file__).resolve().parent.parent.parent
CA = "/etc/ssl/mx1/ca.crt"
"""Inside: the certificate of the authority that signed the server's."""

_PORTS = {8891: "127.0.0.1", 25: "127.0.0.1", 587: "127.0.0.1", 143: "127.0.0.1", 993: "127.0.0.1"}
_SOCKETS = ("/var/spool/postfix/private/auth", "/var/spool/postfix/private/dovecot-lmtp")
_LIST_LINE = re.compile(rb'\((?P<flags>[^)]*)\) "?[^" ]+"? (?P<name>.+)')


class ReferenceServer(Machine):
    """A running copy of the server, thrown away with `stop()`. Its mail services run between `start_mail()` and `stop_mail()`."""

    def __init__(self, tree: Path, scratch: Path | None) -> None:
        """Run the tree in place; `scratch` is removed at the end."""
        self._scratch = scratch
        # Python itself lies outside the environment. Both may be one, and the system's own is not taken along: the machine has one.
        python = {str(REPOSITORY), sys.prefix, sys.base_prefix} - {"/usr"}
        super().__init__(tree, rootfs.rootfs() / "usr", HOST, sorted(python))

    @classmethod
    def start(cls, tmp_path: Path, *, bare: bool = False) -> Self:
        """A new copy in a directory of its own below `tmp_path`, running, with no services started.

        `bare`: only what the packages bring, with the host's name but no configuration, users or mail: a machine to rebuild the server on.
        """
        from tests.reference.populate import populated  # which needs this module

        source = rootfs.rootfs() if bare else populated()
        scratch = Path(tempfile.mkdtemp(prefix="reference-", dir=tmp_path))
        try:
            rootfs.copy(source, scratch / "root")
            _settle_queue(scratch / "root/var/spool/postfix")
            return cls(scratch / "root", scratch)
        except BaseException:
            shutil.rmtree(scratch)
            raise

    def stop(self) -> None:
        """End every process and remove every file of it. May be called again."""
        super().stop()
        if self._scratch is not None and self._scratch.exists():
            shutil.rmtree(self._scratch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    # -- mailbackup

    def mailbackup(
        self,
        *args: str,
        input: bytes | None = None,  # noqa: A002 - as subprocess has it
        timeout: float = 120.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the command line inside, with the code and the Python of this test run. See `run` for the arguments."""
        variables = {"PYTHONPATH": str(REPOSITORY), **(env or {})}
        return self.run(sys.executable, "-m", "mailbackup", *args, input=input, timeout=timeout, check=check, env=variables)

    def mailbackup_json(self, *args: str, check: bool = True, timeout: float = 120.0) -> dict[str, Any]:
        """What `mailbackup ARGS --json` answers: the last line of its standard output."""
        done = self.mailbackup(*args, "--json", check=check, timeout=timeout)
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    # -- services

    def start_mail(self) -> None:
        """Start OpenDKIM, Dovecot and Postfix, and wait until each of their sockets takes connections."""
        self.run("install", "-d", "-o", "opendkim", "-g", "opendkim", "-m", "0750", "/run/opendkim")
        self.run("opendkim", "-x", "/etc/opendkim.conf")
        self.run("dovecot")
        self.run("postfix", "start")
        wait_for(lambda: all(map(self._answers, _PORTS)) and all(self.path(name).is_socket() for name in _SOCKETS), "the mail services")

    def _answers(self, port: int) -> bool:
        try:
            self.connect(port, address=_PORTS[port], timeout=5).close()
        except OSError:
            return False
        return True

    def stop_mail(self) -> None:
        """Stop them, and wait until their processes are gone. What does not run is left alone."""
        self.run("postfix", "stop", check=False)
        self.run("doveadm", "stop", check=False)
        self.run(
            "pkill", "-KILL", "-x", "opendkim", check=False
        )  # it keeps nothing, and would look for the friendlier signal every 5 s only
        wait_for(lambda: not self.processes("master", "dovecot", "opendkim"), "the end of the mail services")

    def start_cron(self) -> None:
        """Start the cron daemon. It looks for work at each full minute."""
        self.run("cron")

    def processes(self, *names: str) -> list[int]:
        """The numbers, as seen inside, of the running processes with one of these names."""
        found = self.run("pgrep", "-x", "|".join(names), check=False).stdout
        return [int(line) for line in found.split()]

    # -- mail

    def tls(self) -> ssl.SSLContext:
        """For clients: trusts the server's authority and nobody else."""
        return ssl.create_default_context(cafile=str(self.path(CA)))

    def imap(self, user: str, secret: str | None = None, *, starttls: bool = True) -> imaplib.IMAP4:
        """A client logged in as `user`, with the user's own password unless `secret` is given. Raises imaplib.IMAP4.error when it is refused.

        With `starttls` on port 143, else over TLS from the first byte on port 993. Log it out at the end (it is a context manager).
        """
        client = _Imap(self, 143) if starttls else _ImapTls(self, 993)
        try:
            if starttls:
                client.starttls(self.tls())
            client.login(user, password(user) if secret is None else secret)
        except BaseException:
            client.shutdown()
            raise
        return client

    def smtp(self, port: int = 25) -> smtplib.SMTP:
        """A client that has said EHLO, from an address that is not in mynetworks. STARTTLS: `client.starttls(context=server.tls())`."""
        client = _Smtp(self, port)
        client.ehlo()
        return client

    def deliver(self, to: str, message: bytes, *, sender: str = "sender@outside.example.net") -> None:
        """Hand a message (LF or CRLF lines) to the server's sendmail command. It arrives a moment later: see `wait_for`."""
        self.run("sendmail", "-i", "-f", sender, "--", to, input=message)

    def queue(self) -> list[dict[str, Any]]:
        """The entries of `postqueue -j`. Postfix must run."""
        return [json.loads(line) for line in self.run("postqueue", "-j").stdout.splitlines()]

    def uid_hashes(self, user: str) -> dict[str, dict[int, str]]:
        """Of each folder (IMAP name, undecoded) of a user: UID to SHA-256 of the message, as IMAP tells them. Changes no flags."""
        with self.imap(user) as client:
            return {folder: _hashes(client, folder) for folder in folders(client)}


def _settle_queue(spool: Path) -> None:
    """Make a copied queue one of a server that has just gone down: file names fit the inodes of this copy, and next tries lie an hour ahead.

    Postfix would rename the files itself at its start, but syncs all disks after that, which takes seconds; and its postsuper, no longer root
    by that time, could not tell the log file.
    """
    for path in (path for queue in ("deferred", "hold") for path in list((spool / queue).rglob("*")) if path.is_file()):
        name = f"{path.name[:5]}{path.stat().st_ino:X}"
        for reasons in list((spool / "defer").rglob(path.name)):
            reasons.rename(reasons.with_name(name))
        renamed = path.rename(path.with_name(name))
        os.utime(renamed, (time.time(), time.time() + 3600))


class _Imap(imaplib.IMAP4):
    """IMAP whose connection lies in the server's network."""

    def __init__(self, server: ReferenceServer, port: int) -> None:
        self._server = server
        super().__init__(HOST, port)

    def _create_socket(self, timeout: float | None) -> socket.socket:
        return self._server.connect(self.port)


class _ImapTls(_Imap):
    def _create_socket(self, timeout: float | None) -> socket.socket:
        return self._server.tls().wrap_socket(super()._create_socket(timeout), server_hostname=HOST)


class _Smtp(smtplib.SMTP):
    """SMTP whose connection lies in the server's network."""

    def __init__(self, server: ReferenceServer, port: int) -> None:
        self._server = server
        super().__init__(HOST, port, local_hostname="client.example.net")

    def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
        return self._server.connect(port)


def folders(client: imaplib.IMAP4) -> list[str]:
    """The names, undecoded, of the folders that can be selected."""
    found = []
    for line in client.list()[1]:
        assert isinstance(line, bytes), f"a name sent as a literal: {line!r}"
        match = _LIST_LINE.fullmatch(line)
        assert match, line
        if b"\\Noselect" not in match["flags"] and b"\\NonExistent" not in match["flags"]:
            found.append(match["name"].decode().strip('"'))
    return sorted(found)


def _hashes(client: imaplib.IMAP4, folder: str) -> dict[int, str]:
    status, _ = client.select(f'"{folder}"', readonly=True)
    assert status == "OK", folder
    _, parts = client.uid("FETCH", "1:*", "(UID BODY.PEEK[])")
    found = {}
    for part in parts:
        if isinstance(part, tuple):
            uid = re.search(rb"UID (\d+)", part[0])
            assert uid, part[0]
            found[int(uid[1])] = hashlib.sha256(part[1]).hexdigest()
    return found


def wait_for(done: Callable[[], bool], what: str, *, seconds: float = 30.0) -> None:
    """Ask `done` until it says yes. Raises AssertionError, which names `what` was waited for, after `seconds`."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)
