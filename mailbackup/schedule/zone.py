"""Time zones: that of a job, and that of the host."""

from __future__ import annotations

import os
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_LOCAL = "/etc/localtime"
_TIMEZONE = "/etc/timezone"


def host_zone() -> str:
    """Name of the host's zone: from $TZ, from where /etc/localtime leads, or from /etc/timezone; "UTC" when none tells."""
    given = os.environ.get("TZ", "").lstrip(":")
    for name in (given, os.path.realpath(_LOCAL).partition("/zoneinfo/")[2], _written()):
        try:
            if name:
                return ZoneInfo(name).key
        except (ZoneInfoNotFoundError, ValueError, OSError):
            continue
    return "UTC"


def zone_of(name: str) -> ZoneInfo:
    """The zone of a job; "" = the host's."""
    return ZoneInfo(name or host_zone())


def _written() -> str:
    try:
        with open(_TIMEZONE, encoding="ascii") as file:
            return file.read().strip()
    except (OSError, UnicodeDecodeError):
        return ""
