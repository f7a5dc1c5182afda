"""The result of erasing a mailbox."""

from __future__ import annotations

from typing import Literal

from mailbackup.model.codec import Record


class ErasedStore(Record, frozen=True, kw_only=True):
    """What erasing a mailbox does to one store, in blocks and bytes. `act` is the last act that says so, None when nothing was done.

    `bytes` is what the mailbox alone needed: `free` of it goes with the next prune, the rest when the other blocks of its packs are needed no more.
    `shared` stays since others refer to it as well; `locked` packs stay until their lock ends.
    """

    name: str
    outcome: Literal["planned", "erased", "unreachable"]
    snapshots: int = 0
    messages: int = 0
    blocks: int = 0
    bytes: int = 0
    free: int = 0
    packs: int = 0
    shared_blocks: int = 0
    shared: int = 0
    locked: int = 0
    act: int | None = None
    detail: str = ""


class EraseResult(Record, frozen=True, kw_only=True):
    """`erase`. `mailboxes` are keys; `others` are configured stores that were not chosen."""

    outcome: Literal["planned", "erased", "partial"]
    address: str
    mailboxes: tuple[str, ...]
    stores: tuple[ErasedStore, ...]
    others: tuple[str, ...]
    seconds: float
