"""Packs: blocks one after another, then a footer (format section 6)."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from mailbackup.errors import ObjectDamaged
from mailbackup.model.ids import Digest
from mailbackup.model.tree import SEALED_LIMIT

MAGIC = b"MBPACK1\n"
_ROW = struct.Struct(">I32s")
_COUNT = struct.Struct(">I")
_TAIL = _COUNT.size + len(MAGIC)


@dataclass(frozen=True, slots=True)
class FooterRow:
    """A block as the footer lists it; `offset` follows from the lengths before it."""

    offset: int
    length: int
    sha256: bytes


def footer_size(blocks: int) -> int:
    """Bytes of a footer that lists `blocks` blocks."""
    return blocks * _ROW.size + _TAIL


def build_footer(blocks: list[tuple[int, bytes]]) -> bytes:
    """The footer for blocks given as (length, sha256)."""
    return b"".join(_ROW.pack(length, sha256) for length, sha256 in blocks) + _COUNT.pack(len(blocks)) + MAGIC


def parse_footer(footer: bytes, blocks: int, pack_size: int, what: str) -> list[FooterRow]:
    """The rows of a footer. Raises ObjectDamaged when it does not fit the registered number of blocks and size of its pack."""
    if len(footer) != footer_size(blocks) or footer[-_TAIL:] != _COUNT.pack(blocks) + MAGIC:
        raise ObjectDamaged(f"{what}: the footer is not one of {blocks} blocks")
    rows: list[FooterRow] = []
    offset = 0
    for length, sha256 in _ROW.iter_unpack(footer[:-_TAIL]):
        if length > SEALED_LIMIT:
            raise ObjectDamaged(f"{what}: block {len(rows)} is longer than the format allows")
        rows.append(FooterRow(offset, length, sha256))
        offset += length
    if offset + len(footer) != pack_size:
        raise ObjectDamaged(f"{what}: the blocks do not fill the pack")
    return rows


def check_footer(footer: bytes, expected: Digest, what: str) -> None:
    """Raises ObjectDamaged when the footer is not the one that the ledger registered."""
    if hashlib.sha256(footer).hexdigest() != expected:
        raise ObjectDamaged(f"{what}: the footer is not the registered one")
