"""Ed25519 and the two lines of a signed record (format section 10). The only module that imports cryptography."""

from __future__ import annotations

import base64
import binascii
import re

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mailbackup.errors import KeyMalformed, RecordInvalid
from mailbackup.model.ids import PublicKey

SIGNATURE_SIZE = 64  # bytes

_HEX_KEY = re.compile(r"[0-9a-f]{64}")


class SigningKey:
    """An Ed25519 key pair. Its repr shows the public half only."""

    __slots__ = ("_private", "public")

    public: PublicKey

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = PublicKey(private.public_key().public_bytes_raw().hex())

    @classmethod
    def generate(cls) -> SigningKey:
        """A fresh key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_hex(cls, seed_hex: str) -> SigningKey:
        """The key of a 32-byte seed in lower-case hexadecimal. Raises KeyMalformed, without quoting the seed."""
        if not _HEX_KEY.fullmatch(seed_hex):
            raise KeyMalformed(f"a signing key must be 64 lower-case hexadecimal digits, not {len(seed_hex)} characters of something else")
        return cls(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed_hex)))

    @property
    def seed_hex(self) -> str:
        """The secret seed, as `from_hex` takes it. Never log it."""
        return self._private.private_bytes_raw().hex()

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature of `message`; the same message always gives the same signature."""
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public!r})"


def verify(public: PublicKey, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of `message` by the holder of `public`. A malformed key or signature is False, not an error."""
    if not _HEX_KEY.fullmatch(public):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def seal_line(line: bytes, key: SigningKey) -> bytes:
    """The bytes of a signed record: `line`, and the base64 of its signature, each with a newline.

    Raises ValueError when `line` is empty or holds a newline, as no reader would accept the result.
    """
    if not line or b"\n" in line:
        raise ValueError("a signed record is one line of text")
    return line + b"\n" + base64.b64encode(key.sign(line)) + b"\n"


def split_signed(data: bytes) -> tuple[bytes, bytes]:
    """Line and decoded signature of a signed record; the signature is not verified here.

    Raises RecordInvalid unless the bytes are exactly what `seal_line` makes: two lines, a final newline, canonical base64 of 64 bytes.
    Only the canonical form is taken, so that nobody can change the bytes (and thus the hash) of a record and keep it valid.
    """
    parts = data.split(b"\n")
    if len(parts) != 3 or parts[2] or not parts[0]:
        raise RecordInvalid("a signed record must be two lines, each ending with a newline")
    line, encoded = parts[0], parts[1]
    try:
        signature = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        signature = b""
    if len(signature) != SIGNATURE_SIZE or base64.b64encode(signature) != encoded:
        raise RecordInvalid(f"the second line of a signed record must be base64 of {SIGNATURE_SIZE} bytes")
    return line, signature
