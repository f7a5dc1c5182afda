"""What has to be looked at before anybody compacts a repository.

In an append-only repository whoever has the mail host's key can still say "delete": borg notes it and keeps the bytes. The next compaction makes it
final. So whoever compacts asks first whether all that should live is there.
"""

from __future__ import annotations

from collections.abc import Mapping

from mailbackup.stores.borg.store import BorgStore


def missing_before_compact(store: BorgStore, live: Mapping[str, int]) -> tuple[str, ...]:
    """The keys of `live` (key → size in bytes) that the repository does not hold with that size. Not empty: do not compact.

    The archives themselves are listed, one call each; their comments are not believed. That the bytes are the right ones only reading them
    shows ('mailbackup verify').
    """
    found = store.files()
    return tuple(sorted(key for key, size in live.items() if found.get(key) != size))
