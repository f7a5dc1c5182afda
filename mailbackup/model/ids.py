"""Names of things: ids, object keys, and file names as they stand in records.

Hashes and ids travel as lower-case hexadecimal strings, each with a type of its own, so that mypy catches the swapped argument.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from datetime import UTC, datetime
from typing import NewType

from mailbackup.errors import RecordInvalid, UnsafeName
from mailbackup.model.codec import Record

BlobId = NewType("BlobId", str)  # 64 hex: SHA-256 of a blob's plaintext
PackId = NewType("PackId", str)  # 32 hex: random
VaultId = NewType("VaultId", str)  # 32 hex: random
Digest = NewType("Digest", str)  # 64 hex: SHA-256 of an object's bytes
PublicKey = NewType("PublicKey", str)  # 64 hex: Ed25519
ObjectKey = NewType("ObjectKey", str)  # key of an object in a store

VAULT_KEY = ObjectKey("vault.json")
FORMAT_KEY = ObjectKey("FORMAT-1.md")
RESCUE_KEY = ObjectKey("rescue-1.py")

LEDGER_PAGE = 256  # entries of a page of the ledger (format section 10)

_KEY_FORMS = re.compile(
    r"vault\.json|FORMAT-1\.md|rescue-1\.py"
    r"|keys/\d{10}-\d{10}\.age"
    r"|packs/(?P<fan>[0-9a-f]{2})/(?P=fan)[0-9a-f]{30}"
    r"|snapshots/\d{10}-[0-9a-f]{16}\.age"
    r"|lists/\d{10}-[0-9a-f]{16}\.zst"
    r"|ledger/\d{10}/\d{10}\.json"
    r"|acts/\d{10}\.json"
    r"|drills/\d{8}T\d{6}Z(-[0-9a-f]{1,16})?\.age"
)


def digest(data: bytes | memoryview) -> Digest:
    """SHA-256 of `data` in hexadecimal."""
    return Digest(hashlib.sha256(data).hexdigest())


def blob_id(data: bytes | bytearray | memoryview) -> BlobId:
    """The name of a blob."""
    return BlobId(hashlib.sha256(data).hexdigest())


def new_pack_id() -> PackId:
    """A fresh random pack id."""
    return PackId(secrets.token_hex(16))


def new_vault_id() -> VaultId:
    """A fresh random vault id."""
    return VaultId(secrets.token_hex(16))


def is_object_key(key: str) -> bool:
    """Whether `key` has one of the forms of format section 3. Everything that goes into or comes out of a store is asked this."""
    return _KEY_FORMS.fullmatch(key) is not None


def pack_key(pack: PackId) -> ObjectKey:
    """Object key of a pack."""
    return ObjectKey(f"packs/{pack[:2]}/{pack}")


def entry_key(seq: int) -> ObjectKey:
    """Object key of a ledger entry."""
    return ObjectKey(f"ledger/{seq // LEDGER_PAGE:010d}/{seq:010d}.json")


def page_prefix(page: int) -> str:
    """Prefix under which one page of the ledger lies."""
    return f"ledger/{page:010d}/"


def act_key(seq: int) -> ObjectKey:
    """Object key of an act."""
    return ObjectKey(f"acts/{seq:010d}.json")


def drill_key(moment: datetime) -> ObjectKey:
    """A new object key for the details of a drill that ended at `moment`."""
    return ObjectKey(f"drills/{moment.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}.age")


def epoch_key(epoch: int, n: int = 1) -> ObjectKey:
    """Object key of a sealed epoch identity; n > 1 are re-wrapped ones."""
    return ObjectKey(f"keys/{epoch:010d}-{n:010d}.age")


def snapshot_key(seq: int, sha256: Digest) -> ObjectKey:
    """Object key of a snapshot."""
    return ObjectKey(f"snapshots/{seq:010d}-{sha256[:16]}.age")


def list_key(seq: int, sha256: Digest) -> ObjectKey:
    """Object key of a list of a ledger entry."""
    return ObjectKey(f"lists/{seq:010d}-{sha256[:16]}.zst")


def message_id(folder: bytes, base: bytes) -> str:
    """Name of a message on the command line: 64 hex, of which any unique prefix is accepted and 16 are shown."""
    return hashlib.sha256(folder + b"\0" + base).hexdigest()


class B64(Record, frozen=True, gc=False):
    """Bytes that are not UTF-8, as `{"b64": …}`."""

    b64: str


Name = str | B64
"""A byte string that is a name, as it stands in a record (format section 2)."""


def to_name(raw: bytes) -> Name:
    """Bytes as they stand in a record."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return B64(base64.b64encode(raw).decode())


def from_name(name: Name) -> bytes:
    """Bytes of a name in a record. Raises RecordInvalid for broken base64."""
    if isinstance(name, str):
        try:
            return name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RecordInvalid(f"name {name!r}: {error}") from None
    try:
        return base64.b64decode(name.b64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordInvalid(f"name {name.b64!r}: {error}") from None


def safe_path(name: Name, *, single: bool = False) -> bytes:
    """Bytes of a relative path that cannot lead out of the folder it is joined to.

    `single` allows one component only. Raises UnsafeName for absolute, empty, NUL, `.` and `..` components ("." alone, the root, is
    allowed when not `single`).
    """
    raw = from_name(name)
    if not single and raw == b".":
        return raw
    parts = raw.split(b"/")
    if b"\0" in raw or any(part in (b"", b".", b"..") for part in parts) or (single and len(parts) > 1):
        raise UnsafeName(f"unsafe name in the backup: {raw!r}")
    return raw


def show(raw: bytes) -> str:
    """A name for people and JSON output: UTF-8 where it is, `\\xNN` escapes where it is not."""
    return raw.decode("utf-8", "backslashreplace")
