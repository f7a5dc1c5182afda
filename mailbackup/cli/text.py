"""Words and numbers for people."""

from __future__ import annotations

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # with the marks that turn the direction of text


def printable(text: str) -> str:
    """`text` without anything that could steer a terminal; tabs and newlines stay."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}" if ord(match[0]) < 256 else f"\\u{ord(match[0]):04x}", text)


def one_line(text: str) -> str:
    """`text` with its line breaks and runs of blanks made single blanks."""
    return " ".join(text.split())


def size(count: int) -> str:
    """Bytes as `310.4 MiB`."""
    value, units = float(count), iter(("KiB", "MiB", "GiB", "TiB", "PiB"))
    if count < 1024:
        return f"{count} B"
    unit = ""
    while value >= 1024 and (following := next(units, "")):
        value, unit = value / 1024, following
    return f"{value:.1f} {unit}"


def number(count: int, singular: str, plural: str | None = None) -> str:
    """`1 message`, `1,204 messages`."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def duration(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def table(rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> list[str]:
    """Rows of equal length as aligned lines; columns in `right` are right-aligned, the last one is not padded."""
    if not rows:
        return []
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
    return ["  ".join(_fit(cell, widths[n], n in right) for n, cell in enumerate(row)).rstrip() for row in cells]


def _fit(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)
