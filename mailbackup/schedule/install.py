"""`schedule install`: the same jobs for cron or for systemd, as files that are ours by their first line. Nobody else's file is touched."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from mailbackup.errors import AlreadyExists, UsageError
from mailbackup.host import SEARCH_PATH, atomic_write, translated
from mailbackup.model.job import Job
from mailbackup.schedule.cron import Cron
from mailbackup.schedule.zone import host_zone

MARKER = "# Written by 'mailbackup schedule install', which writes it anew and removes it with --remove: do not edit."
CRON_FILE = "/etc/cron.d/mailbackup"
UNITS = "/etc/systemd/system"

Files = dict[str, str]


@dataclass(frozen=True, slots=True)
class Setting:
    """What the lines of all jobs share: the program's words with its global options, and what it must be able to write."""

    program: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """Files to write, ours that go, and commands that make it take effect."""

    write: Files
    remove: tuple[str, ...]
    commands: tuple[tuple[str, ...], ...] = ()


def program_words() -> tuple[str, ...]:
    """How this installation is called: by its own command where there is one. Without the folder that somebody happens to stand in (-P)."""
    command = os.path.join(os.path.dirname(sys.executable), "mailbackup")
    return (command,) if os.access(command, os.X_OK) else (sys.executable, "-P", "-m", "mailbackup")


# ---------------------------------------------------------------- cron


def cron_files(jobs: Iterable[Job], setting: Setting) -> Files:
    """The file for cron.d. Raises UsageError for a job in another zone than the host's, which cron does not know."""
    lines = [MARKER, "# Output means that something went wrong; cron mails it.", "SHELL=/bin/sh", f"PATH={SEARCH_PATH}"]
    for job in jobs:
        if job.zone and job.zone != host_zone():
            raise UsageError(
                f"job {job.name}: its zone is {job.zone}, and cron only knows that of this host, {host_zone()}",
                hint="Use --systemd or 'mailbackup schedule daemon', or take zone out of the job file.",
            )
        words = [*setting.program, "job", "run", job.name, *(["--jitter"] if job.jitter_seconds else []), "--quiet"]
        lines += [f"# {job.name}: {_plain(job.about)}", f"{Cron.parse(job.cron).text} root {_cron_command(words)}"]
    return {CRON_FILE: "\n".join(lines) + "\n"}


def _plain(text: str) -> str:
    return " ".join(text.split())


def _cron_command(words: list[str]) -> str:
    """For the shell that cron calls; cron itself makes a newline of each % that has no backslash."""
    return shlex.join(words).replace("%", r"\%")


# ---------------------------------------------------------------- systemd


def systemd_files(jobs: Iterable[Job], setting: Setting) -> Files:
    """A timer and a service for each job."""
    files = {}
    for job in jobs:
        files[f"{UNITS}/mailbackup-{job.name}.timer"] = _timer(job)
        files[f"{UNITS}/mailbackup-{job.name}.service"] = _service(job, setting)
    return files


def _timer(job: Job) -> str:
    return f"""{MARKER}
[Unit]
Description=mailbackup {job.name}: when

[Timer]
OnCalendar={Cron.parse(job.cron).on_calendar(job.zone)}
RandomizedDelaySec={job.jitter_seconds}
# A start that was missed, because the machine was off, is made up for.
Persistent=true

[Install]
WantedBy=timers.target
"""


def _service(job: Job, setting: Setting) -> str:
    words = [*setting.program, "job", "run", job.name]
    writes = " ".join(_unit_path(path) for path in setting.writes)
    return f"""{MARKER}
[Unit]
Description=mailbackup {job.name}: {_plain(job.about).replace("%", "%%") or "a job"}
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart={" ".join(_unit_word(word) for word in words)}
# SIGTERM goes to the program alone, which finishes the mailbox at hand and registers what was sent; its helpers end with it.
KillMode=mixed
TimeoutStopSec=5min
Nice=19
IOSchedulingClass=idle
UMask=0077
# It reads everything and writes little. Not set, and why: PrivateDevices and RestrictSUIDSGID, since hooks make volume snapshots and drills restore
# set-group-id folders; RestrictNamespaces and ProtectProc, since drills run in containers of their own.
ProtectSystem=full
ProtectHome=read-only
ReadWritePaths={writes}
PrivateTmp=true
NoNewPrivileges=true
ProtectControlGroups=true
ProtectKernelLogs=true
ProtectKernelModules=true
ProtectKernelTunables=true
ProtectClock=true
ProtectHostname=true
LockPersonality=true
RestrictRealtime=true
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
CapabilityBoundingSet=~CAP_SYS_BOOT CAP_SYS_MODULE CAP_SYS_TIME CAP_SYS_PACCT CAP_SYSLOG CAP_WAKE_ALARM CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_BPF
"""


def _unit_word(word: str) -> str:
    """A word of ExecStart=: quoted, and safe from what systemd replaces there."""
    return _quoted(word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$"))


def _unit_path(path: str) -> str:
    """A path of ReadWritePaths=, where variables are not replaced; "-" = it need not exist."""
    return _quoted("-" + path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%"))


def _quoted(word: str) -> str:
    return word if re.fullmatch(r"[\w/.,:@%$+=-]+", word, re.ASCII) else f'"{word}"'


# ---------------------------------------------------------------- putting them in place


def planned(files: Files, *, root: str = "/") -> Change:
    """What it takes to have these files and no others of ours, whichever kind they are.

    Raises AlreadyExists when somebody else's file stands where one of ours would go.
    """
    placed = {_below(root, path): text for path, text in files.items()}
    for path in placed:
        if os.path.lexists(path) and not _ours(path):
            raise AlreadyExists(f"{path} exists, and mailbackup did not write it", hint="Move it away; nothing was changed.")
    remove = tuple(path for path in installed(root=root) if path not in placed)
    gone = [os.path.basename(path) for path in remove if path.endswith(".timer")]
    timers = [os.path.basename(path) for path in placed if path.endswith(".timer")]
    commands: list[tuple[str, ...]] = []
    if gone:
        commands.append(("systemctl", "disable", "--now", *gone))
    if gone or timers:
        commands.append(("systemctl", "daemon-reload"))
    if timers:
        commands.append(("systemctl", "enable", "--now", *timers))
    return Change(placed, remove, tuple(commands))


def installed(*, root: str = "/") -> list[str]:
    """Paths of the files that are ours."""
    units = _below(root, UNITS)
    names = [name for name in (os.listdir(units) if os.path.isdir(units) else []) if name.startswith("mailbackup-")]
    candidates = [_below(root, CRON_FILE), *(os.path.join(units, name) for name in sorted(names) if name.endswith((".timer", ".service")))]
    return [path for path in candidates if _ours(path)]


def carry_out(change: Change) -> None:
    """Write and remove the files. Raises what `host.atomic_write` raises (StoreRefused: run as root)."""
    for path, text in change.write.items():
        with translated(f"make the folder of {path}"):
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        atomic_write(path, text.encode(), mode=0o644)
    for path in change.remove:
        with translated(f"remove {path}"):
            os.unlink(path)


def _below(root: str, path: str) -> str:
    return os.path.join(root, path.lstrip("/"))


def _ours(path: str) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return not os.path.islink(path) and file.readline().rstrip("\n") == MARKER
    except OSError:
        return False
