"""Hooks: executables of the administrator that run before and after a snapshot. The contract is `hooks/README.md`.

They run as root with what is about to be saved, so a hook that somebody else could have written is never run.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import subprocess
import tempfile
import threading
from collections import deque
from dataclasses import dataclass
from typing import IO, Literal

from mailbackup.errors import SafetyRefusal
from mailbackup.host import SEARCH_PATH
from mailbackup.model import codec
from mailbackup.model.codec import Record
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import show

Phase = Literal["pre-snapshot", "post-snapshot", "failed"]

VETO = 99
_IGNORED = re.compile(r"\..*|.*(~|\.bak|\.orig|\.swp|\.dpkg-[a-z]+|\.rpm(save|new|orig))")
_TAIL = 4096  # bytes of output that are kept
_QUOTED = 5  # lines of it that are quoted
_GRACE = 2.0  # seconds between SIGTERM and SIGKILL
_LINKS = 40  # symbolic links that are followed, as the kernel does
_FINDINGS = 100  # that are told to a hook


class About(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What a hook is told, as JSON on its standard input. Nothing in it is secret."""

    phase: Phase
    job: str
    host: str
    vault: str
    seq: int | None = None
    outcome: str | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a phase: the hooks that ran by name, and what there is to say."""

    names: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def run_phase(folder: str, about: About, *, limit: float) -> Ran:
    """Run the hooks of `folder`/<phase>.d in the order of their names, each for at most `limit` seconds.

    A hook that fails or is refused becomes a finding, and the next one runs. Raises SafetyRefusal when a hook of `pre-snapshot` vetoes.
    """
    place = os.path.join(os.path.abspath(folder), f"{about.phase}.d")
    if not os.path.lexists(place):
        return Ran()
    problem = refusal(place)
    if problem is not None:
        return Ran((), (_failed(place, f"not run: {problem}"),))
    names: list[str] = []
    findings: list[Finding] = []
    told = _told(about)
    try:
        paths = hooks_of(place)
    except OSError as error:
        return Ran((), (_failed(place, f"not run: {error.strerror}"),))
    for path in paths:
        found = _one(path, about, told, limit)
        names.append(os.path.basename(path))
        findings += [found] if found is not None else []
    return Ran(tuple(names), tuple(findings))


def hooks_of(place: str) -> list[str]:
    """The executables of a directory in the order of their names; left-overs of editors and packages, and what cannot be executed, are none."""
    names = sorted(name for name in os.listdir(place) if not _IGNORED.fullmatch(name))
    paths = [os.path.join(place, name) for name in names]
    return [path for path in paths if os.path.islink(path) or (os.path.isfile(path) and os.stat(path).st_mode & 0o111)]


def _told(about: About) -> bytes:
    cut = About(
        phase=about.phase, job=about.job, host=about.host, vault=about.vault, seq=about.seq, outcome=about.outcome,
        findings=about.findings[:_FINDINGS],
    )  # fmt: skip
    return codec.encode(cut) + b"\n"


# ---------------------------------------------------------------- who could have written it


def refusal(path: str) -> str | None:
    """Why nothing below or at `path` may be run; None when only root (or the user who runs this) could have changed it.

    Everything on the way to it, symbolic links included, must belong to one of them, and may not be writable by others. A directory above it may
    be one like /tmp, where others may add names but not replace ours.
    """
    todo = deque(os.path.abspath(path).split("/"))
    here, links = "/", 0
    while todo:
        name = todo.popleft()
        here = os.path.normpath(os.path.join(here, name))
        try:
            status = os.lstat(here)
        except OSError as error:
            return f"{_shown(here)}: {error.strerror}"
        problem = _mistrust(here, status, last=not todo)
        if problem is not None:
            return problem
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _LINKS:
                return f"{_shown(here)}: too many symbolic links"
            target = os.readlink(here)
            todo.extendleft(reversed(target.split("/")))
            here = "/" if target.startswith("/") else os.path.dirname(here)
    return None


def _mistrust(path: str, status: os.stat_result, *, last: bool) -> str | None:
    if status.st_uid not in (0, os.geteuid()):
        return f"{_shown(path)} belongs to user {status.st_uid}, not to root"
    if stat.S_ISLNK(status.st_mode) or not status.st_mode & 0o022:
        return None
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX and not last:
        return None
    return f"{_shown(path)} can be written by others (mode {stat.S_IMODE(status.st_mode):04o})"


def _shown(path: str) -> str:
    return show(os.fsencode(path))


# ---------------------------------------------------------------- running one


def _one(path: str, about: About, told: bytes, limit: float) -> Finding | None:
    """Run one hook. Returns what there is to say about it; raises SafetyRefusal for a veto."""
    problem = refusal(path)
    if problem is not None:
        return _failed(path, f"not run: {problem}")
    try:
        status, words = _execute(path, told, _environment(about), limit)
    except OSError as error:
        return _failed(path, f"cannot be run: {error.strerror}")
    if status == 0:
        return None
    if status == VETO and about.phase == "pre-snapshot":
        name = os.path.basename(path)
        raise SafetyRefusal(
            f"hook {name} refused the snapshot: {words or 'it gave no reason'}",
            hint=f"Remove what {path} objects to, then run again. No snapshot was made.",
        )
    if status is None:
        why = f"stopped after {limit:g} s"
    else:
        why = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
    return _failed(path, f"{why}: {words}" if words else why)


def _failed(path: str, detail: str) -> Finding:
    return Finding(FindingKind.HOOK_FAILED, _shown(path), detail)


def _execute(path: str, told: bytes, environment: dict[str, str], limit: float) -> tuple[int | None, str]:
    """Exit status (None = the time was up) and last words. The hook and all that it started die with the limit, or when we are interrupted."""
    with tempfile.TemporaryFile() as given:  # not a pipe: a hook need not read it
        given.write(told)
        given.seek(0)
        process = subprocess.Popen(
            [path], stdin=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, cwd="/", start_new_session=True
        )
    assert process.stdout is not None, "a pipe was asked for"
    tail = bytearray()
    reader = threading.Thread(target=_keep_tail, args=(process.stdout, tail), daemon=True)
    reader.start()
    try:
        status: int | None = process.wait(limit)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        if process.returncode is None:
            _kill_group(process)
        reader.join(1.0)  # something that the hook left running may hold the pipe
    return status, _words(bytes(tail))


def _environment(about: About) -> dict[str, str]:
    told = {"PHASE": about.phase, "JOB": about.job, "HOST": about.host, "OUTCOME": about.outcome, "SEQ": about.seq}
    named = {f"MAILBACKUP_{name}": str(value) for name, value in told.items() if value is not None}
    return {"PATH": SEARCH_PATH, "LANG": "C.UTF-8", "HOME": os.path.expanduser("~")} | named


def _keep_tail(pipe: IO[bytes], tail: bytearray) -> None:
    with contextlib.suppress(OSError, ValueError), pipe:
        while part := os.read(pipe.fileno(), 1 << 16):
            tail += part
            del tail[:-_TAIL]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, a moment to clean up, SIGKILL: to the whole group, also when its leader is gone by then."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _words(output: bytes) -> str:
    lines = [line.strip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]
    return " / ".join(lines[-_QUOTED:])
