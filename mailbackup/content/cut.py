"""Where content is cut into blobs (format section 12)."""

from __future__ import annotations

from collections.abc import Iterator

from fastcdc import fastcdc

from mailbackup.model.tree import PIECE_LIMIT

_CUT_FROM = 1 << 20  # smaller files are one blob: nothing to gain, and their neighbours in the block compress with them
_WINDOW = 16 << 20  # bytes of a file in memory while it is cut


def cut_stream(source: Iterator[bytes]) -> Iterator[bytes]:
    """Any other file's content in blobs cut by content, so that a file that grows or is dumped anew deduplicates.

    Holds at most a window of 16 MiB and one piece. The last piece of a window is carried over, so cuts do not depend on the window.
    """
    rest = b""
    for part in source:
        rest += part
        if len(rest) >= _WINDOW:
            cut = _cut(rest)
            rest = cut.pop()
            yield from cut
    yield from _cut(rest) if rest else ()


def _cut(data: bytes) -> list[bytes]:
    if len(data) <= _CUT_FROM:
        return [data]
    return [data[c.offset : c.offset + c.length] for c in fastcdc(data, 1 << 18, 1 << 20, PIECE_LIMIT)]
