"""The reference mail server with a vault of its own, and a machine elsewhere that has the identity."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.reference.server import REPOSITORY, ReferenceServer

CONFIG, KIT = "/etc/mailbackup/mailbackup.toml", "/root/kit.txt"
_MAIL = ("--mail", "/var/vmail/{domain}/{user}/Maildir")
_BODY = re.compile(rb'UID (\d+) FLAGS \(([^)]*)\) INTERNALDATE "([^"]*)"')


class Seen(NamedTuple):
    """A message as a client sees it."""

    content: str
    flags: frozenset[bytes]
    date: bytes


@dataclass
class Live:
    """A running server whose mailboxes are in its vault."""

    server: ReferenceServer

    @classmethod
    def of(cls, server: ReferenceServer) -> Live:
        """Make the vault, and a first snapshot."""
        server.mailbackup(
            "init", "--yes", *_MAIL, "--store", "file:///var/backups/vault", "--kit-out", KIT, "--no-passphrase", "--config", CONFIG
        )
        live = cls(server)
        live.backup()
        return live

    def backup(self) -> int:
        """A snapshot of everything; its number."""
        answer = self.server.mailbackup_json("backup", "--config", CONFIG)
        assert answer["outcome"] in ("complete", "explained"), answer
        return int(answer["seq"])

    def restore(self, *args: str, status: int = 0, timeout: float = 120.0) -> dict[str, Any]:
        """`mailbackup restore mailbox ARGS --json`; its answer."""
        answer = self.server.mailbackup_json(
            "restore", "mailbox", *args, "--config", CONFIG, "--identity", KIT, check=False, timeout=timeout
        )
        assert answer["exit_status"] == status, answer
        return answer

    def staged(self) -> list[str]:
        """What lies where restores stage."""
        return sorted(name for name in os.listdir(self.server.path("/var/tmp")) if name.startswith("mailbackup-"))

    def seen(self, user: str, folder: str) -> list[Seen]:
        """The messages of a folder in their order."""
        with self.server.imap(user) as client:
            assert client.select(f'"{folder}"', readonly=True)[0] == "OK", folder
            parts = client.uid("FETCH", "1:*", "(FLAGS INTERNALDATE BODY.PEEK[])")[1]
        found = []
        for part in parts:
            if isinstance(part, tuple):
                match = _BODY.search(part[0])
                assert match, part[0]
                found.append(Seen(hashlib.sha256(part[1]).hexdigest(), frozenset(match[2].split()) - {rb"\Recent"}, match[3]))
        return found

    def subscribed(self, user: str) -> set[str]:
        """Its subscriptions."""
        return set(self.server.run("doveadm", "mailbox", "list", "-s", "-u", user).stdout.decode().splitlines())

    def program(self, name: str, body: str) -> None:
        """Put a shell script before a program of this name; it finds the real one as $REAL."""
        path = self.server.path(f"/usr/local/sbin/{name}")
        path.write_text(f"#!/bin/bash\nREAL=/usr/bin/{name}\n{body}\n")
        path.chmod(0o755)

    def no_program(self, name: str) -> None:
        """Take it away again."""
        self.server.path(f"/usr/local/sbin/{name}").unlink()


@dataclass
class Elsewhere:
    """Another machine: it reaches the vault and has the identity, which the server has not. ssh leads into the server."""

    live: Live
    place: Path

    def restore(self, *args: str, status: int = 0, host: str = "root@mx1", environment: dict[str, str] | None = None) -> dict[str, Any]:
        """`mailbackup restore mailbox ARGS --via ssh://HOST --json`; its answer. Nothing may be on stderr."""
        variables = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "MAILBACKUP_RSH": f"ssh -F {self.place}/ssh_config",
            **(environment or {}),
        }
        command = [sys.executable, "-m", "mailbackup", "restore", "mailbox", *args, f"--via=ssh://{host}", "--json"]
        where = ["--config", f"{self.place}/mailbackup.toml", "--state", f"{self.place}/state", "--identity", f"{self.place}/kit.txt"]
        done = subprocess.run([*command, *where], env=variables, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert (answer["exit_status"], done.returncode, done.stderr) == (status, status, b""), (answer, done.stderr)
        return answer


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """One server for all tests that leave its services as they are. Each test takes a user of its own."""
    with ReferenceServer.start(tmp_path_factory.mktemp("live")) as server:
        server.start_mail()
        yield Live.of(server)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Live]:
    """A server of the test's own, not yet started."""
    with ReferenceServer.start(tmp_path) as server:
        yield Live(server)


@pytest.fixture
def elsewhere(live: Live, tmp_path: Path) -> Iterator[Elsewhere]:
    """A machine with the identity. While it is there the server has none."""
    server = live.server
    (tmp_path / "mailbackup.toml").write_text(
        server.path(CONFIG).read_text().replace("file:///var/backups/vault", f"file://{server.path('/var/backups/vault')}")
    )
    kit = server.path(KIT).read_text()
    (tmp_path / "kit.txt").write_text(kit)
    server.path(KIT).unlink()
    _let_in(server, tmp_path)
    yield Elsewhere(live, tmp_path)
    server.path(KIT).write_text(kit)


def _let_in(server: ReferenceServer, place: Path) -> None:
    """A key for root, and a real sshd at the end of a pipe."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{place}/key"], check=True)
    server.run("install", "-d", "-m", "0700", "/root/.ssh")
    server.path("/root/.ssh/authorized_keys").write_text((place / "key.pub").read_text())
    server.run("ssh-keygen", "-A")
    server.run("install", "-d", "-m", "0755", "/run/sshd")
    program = server.path("/usr/local/bin/mailbackup")
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m mailbackup "$@"\n')
    program.chmod(0o755)
    inside = f"nsenter --target={server.pid} --mount --uts --ipc --net --pid --root --wd -- /usr/bin/env -i"
    (place / "ssh_config").write_text(
        "Host mx1\n"
        f"  IdentityFile {place}/key\n  StrictHostKeyChecking no\n  UserKnownHostsFile {place}/known_hosts\n  LogLevel ERROR\n"
        f"  ProxyCommand {inside} /usr/sbin/sshd -i -o UsePAM=no -E /var/log/sshd.log\n"
    )
