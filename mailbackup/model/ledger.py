"""Records of the ledger, of lists and of acts: format sections 4, 10 and 11."""

from __future__ import annotations

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


class DamagedPack(Record, frozen=True, kw_only=True):
    """Blocks that a scrub found missing or damaged; None = the whole pack."""

    id: PackId
    blocks: str | None = None


class Act(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A record of upkeep on one store."""

    format: Literal[1]
    vault: VaultId
    chain: str
    seq: int
    prev: Digest | None
    type: Literal["prune", "undelete", "pin", "damage", "ack", "drill", "received-without", "erase", "move"]
    time: str
    signer: PublicKey
    packs: tuple[DamagedPack, ...] = ()
    details: ObjectRow | None = None  # of a drill: its sealed result


class Anchors(Record, frozen=True, kw_only=True):
    """Trust anchors: what a reader knows before it looks at a store. `head` is the highest (seq, hash) seen, if any."""

    vault: VaultId
    admin: PublicKey
    head: tuple[int, Digest] | None = None


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
