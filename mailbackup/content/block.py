"""Blocks: sealed and compressed runs of bytes, and what in memory stands for a place in one before it is known."""

from __future__ import annotations

from mailbackup.content.ports import Opener, Sealer
from mailbackup.content.zstd import compress, decompress
from mailbackup.errors import ObjectDamaged
from mailbackup.model.ids import BlobId, PackId, blob_id
from mailbackup.model.tree import BLOCK_LIMIT, SEALED_LIMIT, BlobRef


class Block:
    """A block on its way into a pack; its place is known once `pack` is not None. Bytes from `offset` on, `length` of them."""

    __slots__ = ("length", "number", "offset", "pack")

    def __init__(self, pack: PackId | None = None, number: int = -1, offset: int = -1, length: int = -1) -> None:
        self.pack = pack
        self.number = number
        self.offset = offset
        self.length = length


class Piece:
    """A blob on its way: which block holds it, and where in the block's plaintext."""

    __slots__ = ("blob", "block", "size", "start")

    def __init__(self, block: Block | None, start: int, size: int, blob: BlobId | None) -> None:
        self.block = block
        self.start = start
        self.size = size
        self.blob = blob

    @classmethod
    def of(cls, ref: BlobRef) -> Piece:
        """A blob that is in the vault already."""
        return cls(Block(ref.pack, ref.number, ref.offset, ref.length), ref.start, ref.size, ref.blob)

    @property
    def placed(self) -> bool:
        """Whether its place is known."""
        return self.block is not None and self.block.pack is not None

    def ref(self) -> BlobRef:
        """Where the blob lies. Only for placed pieces."""
        block = self.block
        assert block is not None, "a piece without a block"
        assert block.pack is not None, "a piece whose block is not placed"
        assert self.blob is not None, "a piece without an id"
        return BlobRef(block.pack, block.number, block.offset, block.length, self.start, self.size, self.blob)


def seal_block(sealer: Sealer, plain: bytes | bytearray | memoryview, level: int) -> bytes:
    """age(zstd(plain))."""
    return sealer.seal(compress(plain, level))


def open_block(opener: Opener, sealed: bytes, what: str, limit: int = BLOCK_LIMIT) -> bytes:
    """The plaintext of a sealed block or object. Raises WrongIdentity, or ObjectDamaged also for what is larger than the format allows."""
    if limit <= BLOCK_LIMIT and len(sealed) > SEALED_LIMIT:
        raise ObjectDamaged(f"{what}: longer than the format allows")
    return decompress(opener.open(sealed), limit, what)


def blob_of(plain: bytes, ref: BlobRef) -> bytes:
    """The blob in a block's plaintext. Raises ObjectDamaged when it is not there or not what its id says."""
    data = plain[ref.start : ref.start + ref.size]
    if len(data) != ref.size or blob_id(data) != ref.blob:
        raise ObjectDamaged(f"block {ref.number} of pack {ref.pack}: blob {ref.blob[:16]} is not what its id says")
    return data
