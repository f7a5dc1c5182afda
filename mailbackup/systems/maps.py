"""The text of Postfix tables: `key value` as `postmap` reads it, `key: value` as `newaliases` does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from mailbackup.systems.ask import Ask, CannotAsk

BUILT = {"hash": ".db", "btree": ".db", "lmdb": ".lmdb", "cdb": ".cdb", "dbm": ".pag"}
"""Kinds of tables that are built from a text, and the end of the built file's name."""
_TABLE = re.compile(r"(?:proxy:)?\b([a-z]+):(/[^\s,{}]+)")
_ROW = re.compile(r'(?:"([^"]*)"|([^\s:"]+))\s*:?\s*(.*)')
_WORD = re.compile(r'"([^"]*)"|([^\s,]+)')


def tables_in(text: str) -> list[tuple[str, str]]:
    """(kind, path) of all tables that a setting names: `hash:/etc/aliases`, also inside of `unionmap:{…}`."""
    found: list[tuple[str, str]] = _TABLE.findall(text)
    return found


def rows(text: str) -> Iterator[tuple[str, str]]:
    """(key, value) of a table, lines that are continued joined."""
    joined: list[str] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if line[0].isspace() and joined:
            joined[-1] += " " + line.strip()
        else:
            joined.append(line.strip())
    for line in joined:
        match = _ROW.match(line)
        if match is not None:
            yield match[1] or match[2], match[3].strip()


def text_rows(ask: Ask, tables: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """The rows of those tables that have a text which can be read."""
    for kind, path in tables:
        if kind in BUILT or kind == "texthash":
            try:
                yield from rows(ask.read(path))
            except CannotAsk:
                continue  # that it is missing is told by whoever lists tables


def leading_to(aliases: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Of each target, in lower case: the keys whose mail goes to it, through any number of other keys."""
    direct: dict[str, set[str]] = {}
    for key, value in aliases:
        for quoted, plain in _WORD.findall(value):
            direct.setdefault((quoted or plain).lower(), set()).add(key)
    return {target: _closure(direct, target) for target in direct}


def _closure(direct: dict[str, set[str]], target: str) -> set[str]:
    found: set[str] = set()
    pending = [target]
    while pending:
        for key in direct.get(pending.pop(), ()):
            if key.lower() != target and key not in found:
                found.add(key)
                pending.append(key.lower())
    return found
