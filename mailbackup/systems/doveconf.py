"""What `doveconf -n` prints, as a flat list. Dovecot 2.3 and 2.4 print the same form, but name almost everything differently."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Setting(NamedTuple):
    """`name = value` inside of `blocks`, outermost first (`namespace inbox`, `service auth`, `ssl_server`)."""

    blocks: tuple[str, ...]
    name: str
    value: str

    @property
    def whole(self) -> str:
        """The name with that of its block, as 2.4 documents it: `cert_file` in `ssl_server { }` → `ssl_server_cert_file`."""
        return f"{self.blocks[-1].split()[0]}_{self.name}" if self.blocks else self.name


def settings_of(text: str) -> list[Setting]:
    """The settings of a configuration. Lines that are none (comments, the rest of a value of several lines) are passed over."""
    return list(_settings(text))


def _settings(text: str) -> Iterator[Setting]:
    blocks: list[str] = []
    for line in text.splitlines():
        row = line.strip()
        if row.startswith("#"):
            continue
        if row == "}":
            del blocks[-1:]
        elif row.endswith("{"):
            blocks.append(row[:-1].strip() or "?")
        else:
            name, equals, value = row.partition("=")
            if equals and name.strip():
                yield Setting(tuple(blocks), name.strip(), value.strip())


def values(settings: list[Setting], *names: str) -> Iterator[str]:
    """The values, not empty, of all settings with one of these names, bare or with that of their block."""
    yield from (row.value for row in settings if row.value and (row.name in names or row.whole in names))
