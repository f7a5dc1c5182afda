"""A machine for Borg repositories: an sshd on the loopback whose only key may do nothing but `borg serve` below one directory."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BORG = str(Path(sys.executable).parent / "borg")
_SSHD = "/usr/sbin/sshd"

_SSHD_CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {top}/host_key
PidFile {top}/sshd.pid
AuthorizedKeysFile {top}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin forced-commands-only
"""


@dataclass(frozen=True, slots=True)
class SshRepository:
    """Where a repository may be made, and how to get there. `path` is where it lies on this machine."""

    url: str
    rsh: str
    path: str
    port: int
    log: str


@contextlib.contextmanager
def ssh_repository(top: Path, *, append_only: bool = True, options: tuple[str, ...] = ()) -> Iterator[SshRepository]:
    """An address of a repository that does not exist yet (`create=True` makes it). `top` is an empty directory; `options` go to `borg serve`."""
    top.mkdir(parents=True, exist_ok=True)
    home = top / "repositories"
    home.mkdir()
    _make_keys(top)
    serve = [BORG, "serve", *(("--append-only",) if append_only else ()), "--restrict-to-path", str(home), *options]
    public = (top / "client_key.pub").read_text()
    (top / "authorized_keys").write_text(f'command="{shlex.join(serve)}",restrict {public}')
    with _sshd(top) as port:
        known = f"-o UserKnownHostsFile={top}/known_hosts -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR"
        rsh = f"ssh -F none -i {top}/client_key -o IdentitiesOnly=yes -o BatchMode=yes -o ConnectTimeout=5 {known}"
        url = f"borg+ssh://{getpass.getuser()}@127.0.0.1:{port}{home}/mx1"
        yield SshRepository(url, rsh, str(home / "mx1"), port, str(top / "sshd.log"))


def _make_keys(top: Path) -> None:
    for name in ("host_key", "client_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(top / name)], check=True, timeout=20)


@contextlib.contextmanager
def _sshd(top: Path) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd separates its privileges there
    (top / "sshd_config").write_text(_SSHD_CONFIG.format(port=port, top=top))
    server = subprocess.Popen(
        [_SSHD, "-D", "-f", str(top / "sshd_config"), "-E", str(top / "sshd.log")], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        _wait_for(port, server)
        yield port
    finally:
        server.terminate()
        server.wait(10)


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert server.poll() is None, "sshd ended"
        time.sleep(0.05)
    raise AssertionError("sshd does not answer")
