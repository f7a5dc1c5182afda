"""A root file system as a machine of its own: own processes, mounts, host name and network, which is nothing but the loopback interface.

All lives in namespaces, so the outside sees no mount, and the end of the first process ends everything. That process waits on a pipe from
the test: however the test ends, the pipe closes. Capabilities are kept, no user namespace is entered: the machine's root can mount and make
namespaces (bubblewrap works). /usr is the shared tree under a layer in memory, since copying it for each test would take most of the time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

ADDRESS = "192.0.2.25"
"""The machine's address besides 127.0.0.1. A connection to it comes from it, so that the machine sees a client that is not "localhost"."""

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}

_OWN_MOUNTS = ("usr", "run", "proc", "dev", "sys")
_CLONE_NEWNET = 0x40000000
_START_SECONDS = 30.0

# Runs as the first process of the namespaces, with the programs of the outside until the root is changed.
_ENTER = f"""
set -eu
read -r pid rest </proc/self/stat
tree=$1 usr=$2 name=$3
shift 3
mount --bind "$tree" "$tree"
mount -t tmpfs -o mode=755 tmpfs "$tree/run"
mkdir "$tree/run/upper" "$tree/run/work"
mount -t overlay -o "lowerdir=$usr,upperdir=$tree/run/upper,workdir=$tree/run/work" overlay "$tree/usr"
mount -t tmpfs -o mode=755 tmpfs "$tree/run"
mount -t proc proc "$tree/proc"
mount -t sysfs -o ro sysfs "$tree/sys"
mount -t tmpfs -o mode=755 tmpfs "$tree/dev"
mkdir -m 1777 "$tree/run/lock" "$tree/dev/shm"
mkdir "$tree/dev/pts" "$tree/run/outside"
for node in null zero full random urandom tty; do
  : >"$tree/dev/$node"
  mount --bind "/dev/$node" "$tree/dev/$node"
done
mount -t tmpfs -o mode=1777 tmpfs "$tree/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts "$tree/dev/pts"
ln -s pts/ptmx "$tree/dev/ptmx"
ln -s /proc/self/fd "$tree/dev/fd"
ln -s fd/0 "$tree/dev/stdin"
ln -s fd/1 "$tree/dev/stdout"
ln -s fd/2 "$tree/dev/stderr"
for place; do
  mkdir -p "$tree$place"
  mount --bind "$place" "$tree$place"
  mount -o remount,bind,ro "$tree$place"
done
cd "$tree"
pivot_root . run/outside
cd /
export PATH={ENVIRONMENT["PATH"]}
umount -l /run/outside
rmdir /run/outside
hostname "$name"
ip link set lo up
ip address add {ADDRESS}/32 dev lo
exec env -i PATH="$PATH" python3 -I -S -c "$INIT" "$pid"
"""

# The first process: tells its number as the outside sees it, collects the dead, and ends when the pipe closes.
_INIT = """
import os, select, signal, sys
wake, signalled = os.pipe()
os.set_blocking(wake, False), os.set_blocking(signalled, False)
signal.signal(signal.SIGCHLD, lambda *_: None)
signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
os.write(1, sys.argv[1].encode() + b"\\n")
while 0 not in (ready := select.select([0, wake], [], [])[0]):
    os.read(wake, 4096)
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""


class Machine:
    """A running machine. `tree` is its root, `usr` the shared /usr; the paths of `shown` are seen inside where they are outside, read only."""

    def __init__(self, tree: Path, usr: Path, name: str, shown: Sequence[str]) -> None:
        """Start it. Raises RuntimeError with what the start wrote when it cannot."""
        self.tree = tree
        self._first = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--net", "--uts", "--ipc", "--propagation=private", "--",
             "sh", "-c", _ENTER, "enter", str(tree), str(usr), name, *shown],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "INIT": _INIT},
        )  # fmt: skip
        assert self._first.stdout is not None
        answer = self._first.stdout.readline()
        if not answer:
            told = self._first.communicate(timeout=_START_SECONDS)[1]
            raise RuntimeError(f"the machine did not start: {told.decode(errors='replace')}")
        self.pid = int(answer)

    def stop(self) -> None:
        """End all its processes; its mounts and network end with them. May be called again."""
        try:
            self._first.communicate(timeout=_START_SECONDS)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            self._first.communicate(timeout=_START_SECONDS)

    def path(self, inside: str) -> Path:
        """Where the outside finds the absolute path `inside`. Symbolic links to absolute places lead astray: they mean the outside.

        What lies below /usr, /run, /proc, /dev and /sys is there only while the machine runs.
        """
        relative = inside.lstrip("/")
        if relative.split("/")[0] in _OWN_MOUNTS:
            return Path(f"/proc/{self.pid}/root", relative)
        return self.tree / relative

    def run(
        self,
        *argv: str,
        input: bytes | None = None,  # noqa: A002 - as subprocess has it
        timeout: float = 60.0,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program inside as root, in / and with `ENVIRONMENT` and `env` alone. `timeout` in seconds; what it started in its group ends with it.

        Raises AssertionError with what it wrote when `check` and its status is not 0, and subprocess.TimeoutExpired.
        """
        variables = [f"{name}={value}" for name, value in {**ENVIRONMENT, **(env or {})}.items()]
        inside = ["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd", "--", "/usr/bin/env", "-i", *variables]
        done = _finish(["nsenter", f"--target={self.pid}", *inside, *argv], input or b"", timeout)
        if check and done.returncode:
            raise AssertionError(f"{argv}: status {done.returncode}\n{(done.stdout + done.stderr).decode(errors='replace')}")
        return done

    def run_beside(self, *argv: str, timeout: float = 60.0) -> subprocess.CompletedProcess[bytes]:
        """Run a program of the outside (such as an IMAP client) in the machine's network. Its status is the caller's to judge."""
        return _finish(["nsenter", f"--target={self.pid}", "--net", "--", *argv], b"", timeout)

    def connect(self, port: int, *, address: str = ADDRESS, timeout: float | None = 30.0) -> socket.socket:
        """A connection inside the machine's network, to be used from outside."""
        return self._in_network(lambda: socket.create_connection((address, port), timeout))

    def _in_network(self, work: Callable[[], Result]) -> Result:
        """What `work` returns when a thread of its own runs it there: threads can enter a network one by one, and sockets stay where they were made."""

        def enter() -> Result:
            with open(f"/proc/{self.pid}/ns/net") as network:
                if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return work()

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(enter).result()


def _finish(command: list[str], given: bytes, timeout: float) -> subprocess.CompletedProcess[bytes]:
    """subprocess.run, but through files, since daemons keep what they inherited open and a pipe of theirs would never end.

    At the time limit the whole process group ends, not only nsenter, whose child is the program.
    """
    with tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        source.write(given)
        source.seek(0)
        process = subprocess.Popen(command, stdin=source, stdout=out, stderr=err, process_group=0)
        try:
            process.wait(timeout)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, out.read(), err.read())
