"""What somebody put in front of objects: versions and delete markers, in a store that keeps them.

The program itself never makes one: it creates each name once, and deletes with all versions. Readers look behind them; here a person hears of it.
"""

from __future__ import annotations

from mailbackup.model.finding import Finding, FindingKind
from mailbackup.stores.base import Shadow, Store

_SAID: dict[Shadow, str] = {
    "replaced": "somebody put another version in front of it; the oldest one is read",
    "hidden": "somebody put a delete marker in front of it; the version behind it is read",
    "lost": "a delete marker is all that is left of it",
}


def look(store: Store) -> list[Finding]:
    """A finding for each object that somebody replaced or hid. Raises what the store raises."""
    return [Finding(FindingKind.REPLACED, key, _SAID[shadow]) for key, shadow in store.shadows()]
