"""Writing content so that long runs of zeros take no room: a sparse file does not fill the disk that it is restored to.

A snapshot does not say which zeros were holes, and need not: a reader cannot tell them apart, and a file with too few holes may not fit where it came
from, while one with too many is only smaller. What needs its zeros allocated (a swap file) is made anew anyway.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

WINDOW = 64 * 1024
"""Zeros are looked for in aligned windows of so many bytes; shorter parts (nearly all messages) are written without a look."""

_ZEROS = bytes(WINDOW)


def write_parts(fd: int, parts: Iterable[bytes]) -> None:
    """Write the parts one after another into an open file that is empty. Where they hold zeros only, nothing is written."""
    size = written = 0
    for part in parts:
        if len(part) < WINDOW:
            _write(fd, part, size)
            written = size + len(part) if part else written
        else:
            for start, end in _stretches(part, size):
                _write(fd, memoryview(part)[start:end], size + start)
                written = size + end
        size += len(part)
    if written < size:
        os.ftruncate(fd, size)


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)


def _stretches(part: bytes, offset: int) -> Iterator[tuple[int, int]]:
    """Start and end, in the part, of what is to be written of it; `offset` is where it begins in the file."""
    start = position = 0
    while position < len(part):
        end = min(len(part), position + WINDOW - (offset + position) % WINDOW)
        if part.startswith(_ZEROS[: end - position], position):
            if start < position:
                yield start, position
            start = end
        position = end
    if start < len(part):
        yield start, len(part)
