"""Records of the ledger, of lists and of acts: format sections 4, 10 and 11."""

from __future__ import annotations

import hashlib
from typing import Literal

from mailbackup.model.codec import Record
from mailbackup.model.ids import Digest, ObjectKey, PackId, PublicKey, VaultId
from mailbackup.model.tree import Outcome

Role = Literal["writer", "prune", "drill"]

BlockList = tuple[tuple[PackId, str], ...]  # pack id, ranges such as "0-3,7"


class VaultInfo(Record, frozen=True, kw_only=True):
    """vault.json."""

    format: Literal[1]
    vault: VaultId
    created: str
    admin: PublicKey
    about: str = ""


class PackRow(Record, frozen=True, kw_only=True):
    """A registered pack. `sha256` covers the whole object, `footer` its footer; `blocks` is their number."""

    id: PackId
    size: int
    sha256: Digest
    blocks: int
    footer: Digest
    epoch: int


class EpochRow(Record, frozen=True, kw_only=True):
    """A registered epoch: its age recipient and the key object that holds its sealed identity."""

    epoch: int
    recipient: str
    key: ObjectKey
    sha256: Digest


class RewrapRow(Record, frozen=True, kw_only=True):
    """A further key object of an epoch."""

    epoch: int
    key: ObjectKey
    sha256: Digest


class ObjectRow(Record, frozen=True, kw_only=True, omit_defaults=True):
    """An object that an entry signs. `epoch` for sealed ones."""

    key: ObjectKey
    sha256: Digest
    size: int
    epoch: int = 0


class Lists(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Lists that are objects of their own."""

    stops: ObjectRow | None = None
    live: ObjectRow | None = None


class Grant(Record, frozen=True):
    """A key and what it may sign."""

    role: Role
    key: PublicKey


class ActsSeen(Record, frozen=True, kw_only=True):
    """The last act of a store when a signer was dismissed: what it signed up to there counts."""

    chain: str
    seq: int


class LedgerEntry(Record, frozen=True, kw_only=True, omit_defaults=True):
    """An entry of the ledger. Members that do not belong to its type are at their defaults."""

    format: Literal[1]
    vault: VaultId
    seq: int
    prev: Digest | None
    type: Literal["trust", "packs", "snapshot"]
    time: str
    signer: PublicKey
    packs: tuple[PackRow, ...] = ()
    epochs: tuple[EpochRow, ...] = ()
    snapshot: ObjectRow | None = None
    outcome: Outcome | None = None
    freeze: str | None = None
    stops: BlockList = ()
    lists: Lists | None = None
    trust: tuple[str, ...] = ()
    grant: tuple[Grant, ...] = ()
    revoke: tuple[Grant, ...] = ()
    acts: tuple[ActsSeen, ...] = ()
    files: dict[str, Digest] = {}
    rewrapped: tuple[RewrapRow, ...] = ()


class StopList(Record, frozen=True, kw_only=True):
    """A `stops` list object."""

    vault: VaultId
    seq: int
    blocks: BlockList
    kind: Literal["stops"] = "stops"


class LivePack(Record, frozen=True, kw_only=True):
    """A pack with at least one live block, in a `live` list."""

    id: PackId
    size: int
    sha256: Digest
    blocks: int
    footer: Digest
    epoch: int
    live: str


class LiveList(Record, frozen=True, kw_only=True):
    """A `live` list object: the live set after its entry."""

    vault: VaultId
    seq: int
    packs: tuple[LivePack, ...]
    epochs: tuple[EpochRow, ...]
    kind: Literal["live"] = "live"


class PackPart(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Blocks of a pack that an act is about; None = the whole pack."""

    id: PackId
    blocks: str | None = None


class Head(Record, frozen=True, kw_only=True):
    """The entry up to which whoever signs an act has read the ledger."""

    seq: int
    sha256: Digest


ActType = Literal["prune", "undelete", "pin", "damage", "ack", "drill", "received-without", "erase", "audit", "move"]


class Act(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A record of upkeep on one store: format section 11. Members that do not belong to its type are at their defaults."""

    format: Literal[1]
    vault: VaultId
    chain: str
    seq: int
    prev: Digest | None
    type: ActType
    time: str
    signer: PublicKey
    head: Head | None = None  # prune, ack, audit, received-without, erase
    snapshots: tuple[int, ...] = ()  # prune: dropped from now on; undelete, pin: these; received-without: whose objects are not here
    gone: tuple[int, ...] = ()  # prune: dropped long ago, their objects are deleted now
    packs: tuple[PackPart, ...] = ()  # prune: deleted now; damage; received-without; erase: blocks that no snapshot needs any more
    release: bool = False  # pin: let go again
    guards: tuple[str, ...] = ()  # ack: what a human looked at
    bytes: int = 0  # ack of `share`: how much may go
    note: str = ""  # pin, ack: the reason, in words
    mailbox: Digest | None = None  # erase: `tombstone` of its key
    details: ObjectRow | None = None  # drill: its sealed result


class Anchors(Record, frozen=True, kw_only=True):
    """Trust anchors: what a reader knows before it looks at a store. `head` is the highest (seq, hash) seen, if any."""

    vault: VaultId
    admin: PublicKey
    head: tuple[int, Digest] | None = None


def tombstone(vault: VaultId, mailbox: str) -> Digest:
    """The name of an erased mailbox in an act: it tells those who know the mailbox's key, and nobody else, that it is meant."""
    return Digest(hashlib.sha256(f"mailbackup-erase\n{vault}\n{mailbox}".encode("utf-8", "surrogateescape")).hexdigest())


def to_ranges(numbers: list[int]) -> str:
    """Sorted block numbers as `"0-3,7"`."""
    parts: list[str] = []
    start = last = -2
    for number in [*numbers, -1]:
        if number == last + 1:
            last = number
            continue
        if start >= 0:
            parts.append(str(start) if start == last else f"{start}-{last}")
        start = last = number
    return ",".join(parts)


def from_ranges(text: str, limit: int) -> list[int]:
    """Block numbers of `"0-3,7"`, all below `limit`. Raises ValueError for anything else."""
    numbers: list[int] = []
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        low, high = int(first), int(last or first)
        if not 0 <= low <= high < limit:
            raise ValueError(f"block range {part!r} is outside 0..{limit - 1}")
        numbers.extend(range(low, high + 1))
    return numbers
