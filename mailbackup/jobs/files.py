"""Job files: those that come with the program, and the administrator's in `schedules/` beside the configuration.

A file of his with a name that ships changes the keys that it names; another name is a job of its own.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable
from typing import Any, get_args
from zoneinfo import ZoneInfoNotFoundError

from mailbackup.errors import ConfigInvalid, NotFound
from mailbackup.model.codec import convert
from mailbackup.model.job import Job, PartName
from mailbackup.schedule.cron import Cron
from mailbackup.schedule.zone import zone_of

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_KEYS = tuple(key for key in Job.__struct_fields__ if key != "name")
PARTS: tuple[PartName, ...] = get_args(PartName)


def shipped(kind: str) -> str:
    """Directory of the `schedules` or `hooks` that come with the program, installed or in a checkout."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    inside = os.path.join(package, "share", kind)
    return inside if os.path.isdir(inside) else os.path.join(os.path.dirname(package), kind)


def beside(config_path: str, kind: str) -> str:
    """Directory of the administrator's `schedules` or `hooks`: beside the configuration."""
    return os.path.join(os.path.dirname(os.path.abspath(config_path)), kind)


def load_jobs(config_path: str) -> dict[str, Job]:
    """All jobs by name. Raises ConfigInvalid with file and key."""
    tables: dict[str, dict[str, Any]] = {}
    places: dict[str, str] = {}
    for folder in (shipped("schedules"), beside(config_path, "schedules")):
        for path in _files(folder):
            name = os.path.basename(path).removesuffix(".toml")
            tables[name] = tables.get(name, {}) | _read(path, name)
            places[name] = path
    return {name: _job(name, table, places[name]) for name, table in sorted(tables.items())}


def find_job(config_path: str, name: str) -> Job:
    """One job. Raises NotFound with the names that there are."""
    jobs = load_jobs(config_path)
    if name not in jobs:
        near = difflib.get_close_matches(name, jobs, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"Jobs: {', '.join(jobs)}."
        raise NotFound(f"there is no job '{name}'", hint=hint)
    return jobs[name]


def _files(folder: str) -> list[str]:
    try:
        return sorted(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".toml") and not name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigInvalid(f"cannot list {folder}: {error.strerror}", hint="Run as a user who may read it.") from None


def _read(path: str, name: str) -> dict[str, Any]:
    if not _NAME.fullmatch(name):
        raise ConfigInvalid(f"{path}: a job's name has lower-case letters, digits and '-' only", hint="Rename the file.")
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigInvalid(f"cannot read {path}: {error.strerror}", hint="Run as a user who may read it.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{path}: {error}", hint="Correct the file.") from None
    for key in table:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            raise ConfigInvalid(
                f"{path}: unknown key '{key}'", hint=f"Did you mean '{near[0]}'?" if near else f"Known here: {', '.join(_KEYS)}."
            )
    return table


def _job(name: str, table: dict[str, Any], path: str) -> Job:
    try:
        job = convert(table | {"name": name}, Job)
    except ValueError as error:
        raise ConfigInvalid(f"{path}: {_in_words(str(error))}", hint="Correct the file.") from None
    for key, check in _CHECKS.items():
        try:
            check(job)
        except ValueError as error:
            raise ConfigInvalid(f"{path}: {key}: {error}", hint="Correct the file.") from None
    return job


def _in_words(error: str) -> str:
    message, _, place = error.replace("`", "").partition(" - at $.")
    message = message[:1].lower() + message[1:]
    return f"{place}: {message}" if place else message.replace("object missing required field", "missing:")


def _parts_fit(job: Job) -> None:
    if not job.parts:
        raise ValueError("there is none")
    if list(job.parts) != sorted(set(job.parts), key=PARTS.index):
        raise ValueError(f"each may stand once, in this order: {', '.join(PARTS)}")
    if "read-back" in job.parts and "backup" not in job.parts:
        raise ValueError("read-back reads what the backup of the same run wrote: add backup")


def _at_least_one(value: int) -> None:
    if value < 1:
        raise ValueError(f"{value} is not above 0")


def _zone_exists(job: Job) -> None:
    try:
        zone_of(job.zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"there is no time zone '{job.zone}' here; they are called as in Europe/Berlin") from None


def _absolute(job: Job) -> None:
    if job.identity is not None and not job.identity.startswith("/"):
        raise ValueError(f"'{job.identity}' is not an absolute path")


_CHECKS: dict[str, Callable[[Job], Any]] = {
    "cron": lambda job: Cron.parse(job.cron),
    "zone": _zone_exists,
    "jitter": lambda job: job.jitter_seconds,
    "misfire": lambda job: job.misfire_seconds,
    "parts": _parts_fit,
    "scrub_bytes": lambda job: _at_least_one(job.scrub_bytes),
    "hook_limit": lambda job: _at_least_one(job.hook_seconds),
    "identity": _absolute,
}
