"""The anomaly guard: a run in which much of the vault's mail left, or changed in place, is saved as it is, but freezes pruning until somebody looked.

The fall guard (`engine`) asks how much a source holds; this asks what became of the messages that the last snapshot has. Deleted while as many new ones
came, or each replaced by an encrypted one of the same name: both leave the counts as they were. A message that moved within its mailbox is not gone, also
when it got another name. One that moved to another mailbox is: whoever renames all mailboxes at once will be asked, too.

What was met is kept in the state beside the mailboxes that it was met in: after a checkpoint and a kill, the next run would not see it any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mailbackup.capture.folder import FolderWork
from mailbackup.model import codec
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import BlobId
from mailbackup.model.tree import Entry
from mailbackup.vault.replay import FREEZE_NEXT
from mailbackup.vault.state import State
from mailbackup.vault.trees import Item

FLOOR = 50  # messages; a smaller vault or mailbox may lose what it likes

_LOSSES = "losses"  # state: [messages before, gone, changed] since the last snapshot; None when there are none

_Content = tuple[BlobId | None, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """Shares of the messages of the last snapshot, 0 to 1: more of them gone, or changed under their name, is an anomaly."""

    gone: float = 0.5
    changed: float = 0.1


class Losses:
    """What became of the messages of the last snapshot, over all mailboxes. `before` = how many the state knows of at the start of the run."""

    def __init__(self, state: State, limits: Limits, before: int) -> None:
        self._state = state
        self._limits = limits
        known = state.get(_LOSSES)
        self.before, self.gone, self.changed = (before, 0, 0) if known is None else codec.decode(known, list[int], _LOSSES)

    def add(self, gone: int, changed: int = 0) -> None:
        """So many messages of a mailbox are gone, or changed."""
        if gone or changed:
            self.gone += gone
            self.changed += changed
            self._state.put(_LOSSES, codec.encode([self.before, self.gone, self.changed]).decode())

    def of_mailbox(self, address: str, gone: int, before: int) -> list[Finding]:
        """What there is to say when one mailbox lost so many."""
        if before < FLOOR or gone <= before * self._limits.gone:
            return []
        return [Finding(FindingKind.MAILBOX_SHRANK, address, f"{gone} of its {before} messages were deleted since the last snapshot")]

    def judge(self) -> list[Finding]:
        """The end of the run, before its commit: an anomaly is said, and freezes pruning from this snapshot on."""
        self._state.put(_LOSSES, None)
        reasons = list(self._reasons())
        if not reasons:
            return []
        reason = "; ".join(reasons)
        other = self._state.get(FREEZE_NEXT)
        self._state.put(FREEZE_NEXT, reason if other is None else f"{other}; {reason}")
        detail = f"{reason} since the last snapshot: prune deletes nothing until somebody looked and said so with 'mailbackup ack freeze'"
        return [Finding(FindingKind.ANOMALY, "all mailboxes", detail)]

    def _reasons(self) -> Iterator[str]:
        if self.before < FLOOR:
            return
        if self.gone > self.before * self._limits.gone:
            yield f"{self.gone} of {self.before} messages were deleted"
        if self.changed > self.before * self._limits.changed:
            yield f"{self.changed} of {self.before} messages have another body under the same name"


def losses_of(works: Iterable[FolderWork]) -> tuple[int, int]:
    """How many messages of these folders, which are all of one mailbox with those that it has no more, are gone and changed. All their pieces must
    be settled."""
    works = [work for work in works if not work.stale]
    left = [(pair.names[index], pair.segment.entries[index]) for work in works for pair in work.old for index in pair.gone]
    if not left:
        return 0, 0
    items = [item for work in works for item in work.items]
    here = Counter(_content(item) for item in items)
    bodies = {item.name: _content(item)[item.headers :] for item in items}
    gone = changed = 0
    for name, entry in left:
        content: _Content = tuple(ref.blob for ref in entry.refs)
        if here[content]:
            here[content] -= 1
        elif name not in bodies:
            gone += 1
        else:
            changed += bodies[name] != _body(entry)
    return gone, changed


def _content(item: Item) -> _Content:
    return tuple(place.blob for place in item.places)


def _body(entry: Entry) -> _Content:
    return tuple(ref.blob for ref in entry.refs[entry.headers :])
