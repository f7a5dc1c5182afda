"""Throw-away machines without a network: a root directory, namespaces around it, programs that run in it.

A machine is entered with `nsenter` from outside, so nothing of mailbackup has to be in it; sockets to it are opened in its network namespace, which has
nothing but its own loopback. Capabilities that could undo that (mounting, network configuration, tracing, modules) are dropped before anything is run.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Protocol

from mailbackup.errors import DrillImpossible
from mailbackup.host import SEARCH_PATH
from mailbackup.systems.ask import CannotAsk, Said

_DROPPED = (
    "sys_admin", "sys_module", "sys_rawio", "sys_boot", "sys_time", "sys_ptrace", "sys_pacct", "net_admin", "net_raw", "mknod", "syslog", "audit_control",
    "mac_admin", "mac_override", "bpf", "perfmon",
)  # fmt: skip
_NEWNET = 0x40000000


class Engine(Protocol):
    """Makes scratch machines."""

    name: str

    def start(self, root: str, hostname: str) -> Scratch:
        """Start a machine on a root directory that is ready. Raises DrillImpossible."""


@dataclass(slots=True)
class Scratch:
    """A machine that runs. `pid` is a process in its namespaces, as this host numbers it."""

    root: str
    pid: int
    process: subprocess.Popen[bytes] | None = None  # ends with the machine
    remove: tuple[str, ...] = ()  # what else ends it

    def run(self, argv: tuple[str, ...], timeout: float = 30, data: bytes | None = None, /) -> Said:
        """Run a program in it to its end. Raises CannotAsk when it takes too long."""
        enter = ("nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-i", "-u", "-r", "-w", "--")
        less = ",".join(f"-{name}" for name in _DROPPED)
        drop = ("setpriv", f"--bounding-set={less}", f"--inh-caps={less}", "--")
        environment = {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", "HOME": "/root"}
        with subprocess.Popen(
            (*enter, *drop, *argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, start_new_session=True
        ) as process:  # fmt: skip
            try:
                out, err = _communicate(process, data or b"", timeout)
            except subprocess.TimeoutExpired:
                raise CannotAsk(f"'{' '.join(argv)}' did not end within {timeout:.0f} s") from None
            finally:
                process.kill()
        return Said(process.returncode, out.decode("utf-8", "surrogateescape"), err.decode("utf-8", "replace"))

    def connect(self, port: int, timeout: float = 10) -> socket.socket:
        """A connection to a port of its loopback. Raises OSError."""
        made: list[socket.socket | BaseException] = []
        thread = threading.Thread(target=self._connect, args=(port, timeout, made), daemon=True)
        thread.start()
        thread.join(timeout + 5)
        if not made:
            raise TimeoutError(f"no answer from port {port}")
        if isinstance(made[0], BaseException):
            raise made[0]
        return made[0]

    def _connect(self, port: int, timeout: float, made: list[socket.socket | BaseException]) -> None:
        """Runs in a thread of its own, which enters the network namespace and never leaves it."""
        try:
            enter_network(self.pid)
            made.append(socket.create_connection(("127.0.0.1", port), timeout))
        except BaseException as error:  # raised again in the thread that asked
            made.append(error)

    def wait_for(self, ready: str, timeout: float = 20) -> None:
        """Wait for a port (`tcp:25`) or the path of a socket. Raises CannotAsk when it does not come."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if self._is_ready(ready):
                return
            time.sleep(0.05)
        raise CannotAsk(f"{ready} did not come up within {timeout:.0f} s")

    def _is_ready(self, ready: str) -> bool:
        if not ready.startswith("tcp:"):
            return not ready or os.path.lexists(f"/proc/{self.pid}/root{ready}")
        try:
            self.connect(int(ready[4:]), 2).close()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """End everything in it."""
        if self.remove:
            subprocess.run(self.remove, capture_output=True, timeout=60, check=False)
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            with contextlib.suppress(OSError):
                os.kill(self.pid, 9)
        until = time.monotonic() + 10
        while os.path.exists(f"/proc/{self.pid}") and time.monotonic() < until:
            time.sleep(0.01)


def _communicate(process: subprocess.Popen[bytes], data: bytes, timeout: float) -> tuple[bytes, bytes]:
    """As `communicate`, but a daemon that keeps the pipes open does not hold it up: the program itself counts."""
    out: list[bytes] = []
    err: list[bytes] = []
    readers = [
        threading.Thread(target=_drain, args=(stream, into), daemon=True) for stream, into in ((process.stdout, out), (process.stderr, err))
    ]
    for reader in readers:
        reader.start()
    assert process.stdin is not None, "made with a pipe"
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(data)
        process.stdin.close()
    process.wait(timeout)
    for reader in readers:
        reader.join(0.5)
    return b"".join(out), b"".join(err)


def _drain(stream: object, into: list[bytes]) -> None:
    with contextlib.suppress(ValueError, OSError):
        while part := os.read(stream.fileno(), 65536):  # type: ignore[attr-defined]
            into.append(part)


def enter_network(pid: int) -> None:
    """Move the calling thread into the network namespace of a process, for good. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(fd, _NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot enter the network namespace: {os.strerror(number)}")
    finally:
        os.close(fd)


# ---------------------------------------------------------------- bubblewrap


class Bwrap:
    """Bubblewrap: the embedded default. `usr` is the /usr that the machine sees, read-only; None = the root has its own."""

    name = "bwrap"

    def __init__(self, usr: str | None = "/usr") -> None:
        if os.geteuid() != 0:
            raise DrillImpossible("only root can make a scratch machine", hint="Run it as root, or elsewhere.")
        for program in ("bwrap", "nsenter", "setpriv"):
            if shutil.which(program) is None:
                raise DrillImpossible(f"{program} is not installed", hint="apt install bubblewrap util-linux")
        self._usr = usr

    def start(self, root: str, hostname: str) -> Scratch:
        """Start a machine on `root`."""
        ends = os.pipe()
        argv = [
            "bwrap", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", hostname, "--die-with-parent", "--bind", root, "/",
            "--proc", "/proc", "--dev", "/dev", "--cap-add", "ALL", "--info-fd", str(ends[1]),
        ]  # fmt: skip
        if self._usr is not None:
            argv += ["--ro-bind", self._usr, "/usr"]
        none = subprocess.DEVNULL
        process = subprocess.Popen([*argv, "sleep", "infinity"], stdin=none, stdout=none, stderr=subprocess.PIPE, pass_fds=ends[1:])
        os.close(ends[1])
        try:
            return Scratch(root, _child_of(process, ends[0]), process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            os.close(ends[0])


def _child_of(process: subprocess.Popen[bytes], fd: int) -> int:
    """The process id that bwrap tells on its information pipe."""
    import json

    said = b""
    while part := os.read(fd, 4096):
        said += part
        if b"}" in said:
            break
    try:
        pid = int(json.loads(said)["child-pid"])
    except (ValueError, KeyError):
        process.kill()
        _, err = process.communicate(timeout=10)
        text = err.decode("utf-8", "replace").strip() or "it said nothing"
        raise DrillImpossible(f"bwrap cannot make a scratch machine: {text}", hint="'mailbackup doctor' says what is missing.") from None
    _wait_for_program(pid)
    return pid


def _wait_for_program(pid: int) -> None:
    """The machine is ready when its first program runs; before that its mounts are being made."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            children = _read(f"/proc/{pid}/task/{pid}/children").split()
            if any(_read(f"/proc/{child}/comm").strip() == "sleep" for child in [*children, str(pid)]):
                return
        time.sleep(0.005)
    raise DrillImpossible("the scratch machine did not start within 10 s")


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
