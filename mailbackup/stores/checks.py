"""What all stores check and say in the same words."""

from __future__ import annotations

from mailbackup.errors import KeyExists, ObjectDamaged, ObjectMissing
from mailbackup.model.ids import is_object_key


def checked_key(key: str) -> str:
    """`key` if it has one of the forms of format section 3; else ValueError: that is a bug of the caller, not of the user."""
    if not is_object_key(key):
        raise ValueError(f"malformed object key: {key!r}")
    return key


def checked_range(offset: int, length: int) -> None:
    """ValueError for a negative range."""
    if offset < 0 or length < 0:
        raise ValueError(f"range of {length} bytes from {offset}")


def missing(key: str, store: str) -> ObjectMissing:
    """The error for an absent object."""
    return ObjectMissing(f"{key} is not in store {store}")


def too_long(key: str, store: str, limit: int) -> ObjectDamaged:
    """The error for an object of more bytes than its reader allows."""
    return ObjectDamaged(f"{key} in store {store} is longer than the {limit} bytes that it may have")


def too_short(key: str, store: str, offset: int, length: int) -> ObjectDamaged:
    """The error for an object that ends within or before a range."""
    return ObjectDamaged(f"{key} in store {store} ends before byte {offset + length} (wanted {length} bytes from {offset})")


def next_component(key: str, prefix: str) -> str | None:
    """`prefix` and the next path component of `key` with its slash; None when `key` is not below one."""
    if not key.startswith(prefix) or "/" not in key[len(prefix) :]:
        return None
    return key[: key.index("/", len(prefix)) + 1]


def key_exists(key: str, store: str) -> KeyExists:
    """The answer to a create-only put of a key that is taken."""
    return KeyExists(f"{key} exists in store {store}")
