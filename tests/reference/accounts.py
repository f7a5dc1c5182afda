"""Who has a mailbox on the reference server, and with which password."""

from __future__ import annotations

HOST = "mx1.example.test"
DOMAINS = ("example.test", "example.org")
SELECTOR = "s2026"
"""Of the DKIM keys of both domains."""

_NAMES = {
    "example.test": ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy"),
    "example.org": ("kim", "lena", "mika", "nora", "olaf", "petra", "quinn", "rosa", "sven", "tilda"),
}

ACCOUNTS = tuple(f"{name}@{domain}" for domain in DOMAINS for name in _NAMES[domain])
"""The addresses of all 20 mailboxes."""

ALIASES = {
    "postmaster@example.test": "alice@example.test",
    "sales@example.test": "bob@example.test, carol@example.test",
    "info@example.org": "kim@example.org",
}
"""The virtual aliases: alias to its targets."""


def password(address: str) -> str:
    """`pw-` and the local part."""
    return "pw-" + address.partition("@")[0]
