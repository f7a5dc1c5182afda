"""What the state remembers of trees, and how it stands in the database: compressed, with a checksum, since a flipped bit must not become a listing."""

from __future__ import annotations

import zlib
from array import array
from dataclasses import dataclass
from typing import Any

from mailbackup.content.zstd import compress, decompress
from mailbackup.errors import DamageError, StateUnusable
from mailbackup.model import codec
from mailbackup.model.ids import BlobId, blob_id
from mailbackup.model.tree import RECORD_LIMIT, BlobRef


@dataclass(slots=True)
class CachedSegment:
    """A `facts` or `files` segment as the host remembers it. `inodes` and `ctimes` (ns) stand in the order of its entries; inode 0 = unknown,
    so the entry is read again. `dirty`: its blob (or its flags' blob) is no longer in the vault."""

    id: BlobId
    data: bytes  # plaintext
    inodes: array[int]
    ctimes: array[int]
    flags: bytes  # plaintext of the flags blob; empty for `files`
    dirty: bool


@dataclass(slots=True)
class CachedUnit:
    """A mailbox or directory source as it stands in the vault. `tree` is the plaintext of its root record."""

    no: int
    kind: str
    key: str
    location: str
    address: str
    path: bytes
    messages: int
    size: int
    stale: bool
    dirty: bool
    tree: bytes
    ref: BlobRef | None


def to_segment(row: tuple[Any, ...]) -> CachedSegment:
    """A segment from its columns id, data, inodes, ctimes, flags, dirty. Raises StateUnusable when it is not what its id says."""
    inodes, ctimes = array("Q"), array("Q")
    try:
        inodes.frombytes(row[2])
        ctimes.frombytes(row[3])
    except ValueError as error:
        raise StateUnusable(f"the state is unusable: {error}") from None
    blob, data = BlobId(row[0].hex()), unpacked(row[1])
    if blob_id(data) != blob:
        raise StateUnusable(f"the state is unusable: segment {blob[:16]} is not what its id says")
    return CachedSegment(blob, data, inodes, ctimes, unpacked(row[4]), bool(row[5]))


def packed(data: bytes) -> bytes:
    """A record as it stands in the database."""
    return zlib.crc32(data).to_bytes(4, "big") + compress(data, 1)


def unpacked(data: bytes) -> bytes:
    """A record from the database. Raises StateUnusable when it is not what was written."""
    try:
        plain = decompress(memoryview(data)[4:], RECORD_LIMIT, "state")
    except DamageError as error:
        raise StateUnusable(f"the state is unusable: {error}") from None
    if zlib.crc32(plain).to_bytes(4, "big") != data[:4]:
        raise StateUnusable("the state is unusable: a record in it is not what it was")
    return plain


def to_ref(data: bytes | None) -> BlobRef | None:
    """A packed ref; None stays None."""
    return None if data is None else BlobRef(*codec.decode(unpacked(data), list, "state"))
