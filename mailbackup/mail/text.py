"""Text from strangers, made fit to be shown on a terminal and in a table."""

from __future__ import annotations

import re

# Control characters, line and paragraph separators, the bidirectional overrides that make a line read otherwise than it
# is, and lone surrogates, which cannot be written as UTF-8.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    """`text` with each unsafe character as `\\uNNNN`: different names stay different."""
    return text if text.isprintable() else _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def one_line(text: str, limit: int) -> str:
    """`text` as one line of at most `limit` characters: blanks collapsed, unsafe characters replaced, "…" where
    cut."""
    # A hostile subject may be megabytes of blanks: collapse only what can possibly be shown.
    line = " ".join(text[: 16 * limit].split())
    if not line.isprintable():
        line = _UNSAFE.sub("\ufffd", line)
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"
