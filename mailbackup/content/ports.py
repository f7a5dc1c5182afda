"""What content needs from keys, so that it knows none (design section 9: Sealer, Opener, KeyMaker are protocols here)."""

from __future__ import annotations

from typing import Protocol


class Sealer(Protocol):
    """Seals bytes to one epoch recipient. Safe to use from several threads."""

    recipient: str

    def seal(self, data: bytes) -> bytes:
        """An age file of `data`."""

    def close(self) -> None:
        """Release helper processes, if any."""


class Opener(Protocol):
    """Opens what was sealed to any of the epochs whose identity it holds. Safe to use from several threads."""

    def open(self, sealed: bytes) -> bytes:
        """The plaintext. Raises WrongIdentity when no key fits, ObjectDamaged when the bytes are not a whole, authentic age file."""


class EpochKey(Protocol):
    """A fresh epoch: its public recipient and its identity file, sealed to all recipients of the vault."""

    @property
    def recipient(self) -> str: ...
    @property
    def sealed(self) -> bytes: ...


class KeyMaker(Protocol):
    """Makes epoch keys; keeps nothing of them."""

    def new_epoch(self, comment: str) -> EpochKey:
        """A fresh epoch key, its identity file (with `comment` as first line) sealed to the vault's recipients."""
