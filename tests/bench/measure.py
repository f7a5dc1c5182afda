"""One measured command: wall time, processor time, memory. Linux only.

The harness itself must stay small: a child starts with the peak memory of the process that made it.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Command:
    argv: list[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    good: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Measured:
    seconds: float
    cpu_seconds: float  # user + system, of all processes
    rss: int  # bytes, the largest single process
    tree_rss: int  # bytes, all processes at one moment, sampled; shared pages count once for each
    status: int
    ok: bool
    said: str  # the last line of stdout
    complaint: str  # the end of stderr

    def json(self) -> dict[str, Any]:
        """The object on the last line of stdout, {} if there is none."""
        try:
            found = json.loads(self.said)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def record(self) -> dict[str, Any]:
        return asdict(self)


def run(command: Command, scratch: Path) -> Measured:
    """Run to the end; output goes to files below `scratch`, so no pipe slows the command."""
    scratch.mkdir(parents=True, exist_ok=True)
    out, err = scratch / "stdout", scratch / "stderr"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        os.sync()
        begin = time.perf_counter()
        process = subprocess.Popen(
            command.argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=command.cwd, env={**os.environ, **command.env}
        )
        sampler = TreeSampler(process.pid)
        sampler.start()
        _, wait_status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(wait_status)
    sampler.finish()
    return Measured(
        seconds=seconds,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        rss=usage.ru_maxrss * 1024,
        tree_rss=max(sampler.peak, usage.ru_maxrss * 1024),
        status=process.returncode,
        ok=process.returncode in command.good,
        said=tail(out, 200_000).rstrip("\n").rpartition("\n")[2],
        complaint=tail(err, 2_000).strip(),
    )


def tail(path: Path, size: int) -> str:
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - size))
        return handle.read().decode(errors="replace")


class TreeSampler(threading.Thread):
    """The summed resident memory of a process and its descendants, about ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self._stop_event = pid, 0, threading.Event()

    def run(self) -> None:
        while True:
            self.peak = max(self.peak, sum(resident(pid) for pid in descendants(self.pid)))
            if self._stop_event.wait(SAMPLE_SECONDS):
                return

    def finish(self) -> None:
        self._stop_event.set()
        self.join()


def descendants(root: int) -> Iterator[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            children.setdefault(parent(int(name)), []).append(int(name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, [])


def parent(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
            return int(handle.read().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return -1


def resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as handle:
            return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def warm(*roots: Path) -> None:
    """Read everything once, so that all tools find the page cache alike."""
    buffer = bytearray(1 << 20)
    for root in roots:
        for path in files(root):
            with open(path, "rb", buffering=0) as handle:
                while handle.readinto(buffer):
                    pass


def files(root: Path) -> Iterator[str]:
    for where, _, names in os.walk(root):
        yield from (os.path.join(where, name) for name in names)


def size(root: Path) -> int:
    """Bytes of all files, as `du --apparent-size` without the directories."""
    return sum(os.lstat(path).st_size for path in files(root))


def messages(root: Path) -> tuple[int, int]:
    """Files in cur/ and new/ below root, and their bytes: what a restore must bring back."""
    found = [os.lstat(path).st_size for path in files(root) if path.split("/")[-2] in {"cur", "new"}]
    return len(found), sum(found)
