"""Sealers that use more than one processor, by helper processes: pyrage 1.4 holds the GIL, so that threads seal no faster than one.

Each helper shares a piece of memory (a memfd, on no disk and gone with the processes) with this process. A block is copied in, sealed in
place and copied out; only lengths travel through pipes, and the thread that waits for one holds no GIL. Helpers need no key: they see the
public recipient and the plaintext that this process sees anyway. They end with their stdin, so also when this process is killed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import queue
import subprocess
import sys
import threading

from mailbackup.crypto.age import AgeSealer
from mailbackup.crypto.worker import LENGTH
from mailbackup.errors import MailbackupError

MIB = 1024 * 1024
AREA = 18 * MIB
LARGEST = 17 * MIB  # what may be sealed in the area: age adds 16 bytes per 64 KiB and a header of some 200 bytes
PATIENCE = 10  # seconds that an idle helper may take to end

_PACKAGES = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_MEMORY_HINT = "Often the machine ran out of memory ('dmesg' tells). Run again; what was stored stays valid."


class PooledSealer:
    """A Sealer whose work is done by `workers` helper processes; as many threads can seal at a time, others wait.

    Raises KeyMalformed when `recipient` is not an X25519 recipient, MailbackupError when no process can be started.
    """

    def __init__(self, recipient: str, workers: int) -> None:
        self.recipient = recipient
        self._here = AgeSealer(recipient)
        self._free: queue.SimpleQueue[_Helper] = queue.SimpleQueue()
        self._helpers: list[_Helper] = []
        try:
            for _ in range(workers):
                self._helpers.append(_Helper(recipient))
                self._free.put(self._helpers[-1])
        except OSError as error:
            self.close()
            raise MailbackupError(f"cannot start a helper process that seals: {error.strerror}", hint=_MEMORY_HINT) from error

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the helpers."""
        return tuple(helper.pid for helper in self._helpers)

    def seal(self, data: bytes) -> bytes:
        """An age file of `data`; more than 17 MiB, which no block has, is sealed in this process.

        Raises MailbackupError when the helper has ended, or the sealer was closed.
        """
        if len(data) > LARGEST:
            return self._here.seal(data)
        helper = self._free.get()
        try:
            return helper.seal(data)
        finally:
            self._free.put(helper)  # also a dead one: whoever gets it is told, and nobody waits for ever

    def close(self) -> None:
        """End the helpers, after what they are sealing now. Closing again does nothing."""
        idle: list[_Helper] = []
        with contextlib.suppress(queue.Empty):
            while len(idle) < len(self._helpers):
                idle.append(self._free.get(timeout=PATIENCE))
        for helper in self._helpers:
            helper.end()
        for helper in idle:
            self._free.put(helper)


class AdaptiveSealer:
    """A Sealer that works in this process until `threshold_bytes` were sealed, then starts a pool of `workers` and uses that.

    A night that sealed little has then paid for no process. When none can be started it goes on in this process: slower, but the same.
    """

    def __init__(self, recipient: str, workers: int, threshold_bytes: int = 32 * MIB) -> None:
        self.recipient = recipient
        self._here = AgeSealer(recipient)
        self._pool: PooledSealer | None = None
        self._workers = workers
        self._left = threshold_bytes
        self._lock = threading.Lock()

    @property
    def pooled(self) -> bool:
        """Whether helper processes were started."""
        return self._pool is not None

    def seal(self, data: bytes) -> bytes:
        """An age file of `data`. Raises as PooledSealer does."""
        with self._lock:
            self._left -= len(data)
            if self._left < 0 and self._workers > 0:
                self._start()
            sealer = self._pool or self._here
        return sealer.seal(data)

    def _start(self) -> None:
        workers, self._workers = self._workers, 0
        with contextlib.suppress(MailbackupError):
            self._pool = PooledSealer(self.recipient, workers)

    def close(self) -> None:
        """End the helpers, if any. Closing again does nothing."""
        if self._pool:
            self._pool.close()


class _Helper:
    """One helper process, for one thread at a time."""

    def __init__(self, recipient: str) -> None:
        fd = os.memfd_create("mailbackup-seal")
        try:
            os.ftruncate(fd, AREA)
            self._area = mmap.mmap(fd, AREA)
            self._process = _spawn(fd, recipient)
        finally:
            os.close(fd)
        assert self._process.stdin
        assert self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._over: str | None = None  # why it can seal no more

    @property
    def pid(self) -> int:
        return self._process.pid

    def seal(self, data: bytes) -> bytes:
        if self._over:
            raise MailbackupError(self._over)
        try:
            answer = self._ask(data)
        except BaseException:
            # Its answer may still come, and must never be taken for that to the next question.
            self._over = "a helper process that seals was interrupted"
            self._process.kill()
            raise
        if not answer:
            self._over = f"a helper process that seals has ended ({self._cause()})"
            raise MailbackupError(self._over, hint=_MEMORY_HINT)
        return self._area[: LENGTH.unpack(answer)[0]]

    def _ask(self, data: bytes) -> bytes:
        """The answer, empty when the process is dead."""
        self._area[: len(data)] = data
        try:
            os.write(self._stdin.fileno(), LENGTH.pack(len(data)))
            return os.read(self._stdout.fileno(), LENGTH.size)
        except BrokenPipeError:
            return b""

    def _cause(self) -> str:
        status = self._process.wait(PATIENCE)
        return f"signal {-status}" if status < 0 else f"exit status {status}"

    def end(self) -> None:
        self._over = self._over or "this sealer was closed"
        self._stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()


def _spawn(fd: int, recipient: str) -> subprocess.Popen[bytes]:
    """The helper gets the memory `fd`, our own package whatever the working directory holds (-P), and its own process group: no Ctrl-C."""
    path = os.pathsep.join(filter(None, (_PACKAGES, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "mailbackup.crypto.worker", str(fd), str(AREA), recipient],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        pass_fds=(fd,),
        process_group=0,
        env={**os.environ, "PYTHONPATH": path},
    )
