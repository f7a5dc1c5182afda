"""Records to JSON and back. The only place that knows msgspec (docs/decisions/002)."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec

from mailbackup.errors import RecordInvalid

T = TypeVar("T")

Record = msgspec.Struct
"""Base of every record: a frozen, typed struct whose members are the members of the JSON object."""

_encoder = msgspec.json.Encoder()
_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}
_building = threading.Lock()
"""Held while the library learns a type. It keeps what it learned in the type, and shows it to other threads before it is whole: they crash (seen with 0.22)."""


def encode(record: Any) -> bytes:
    """One line of UTF-8 JSON without a newline."""
    return _encoder.encode(record)


def decode(data: bytes | memoryview | str, kind: type[T], what: str) -> T:
    """The record in `data`, checked against its type; `what` names it in the error.

    Raises RecordInvalid when the bytes are not such a record. Unknown members are ignored (format section 2).
    """
    decoder = _decoders.get(kind) or _decoder(kind)
    try:
        return decoder.decode(data)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordInvalid(f"{what}: {error}") from None


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    with _building:
        if kind not in _decoders:
            _decoders[kind] = msgspec.json.Decoder(kind)
        return _decoders[kind]


def convert(value: Any, kind: type[T]) -> T:
    """`value` (from TOML) as a typed record. Raises ValueError with the path of what is wrong."""
    try:
        with _building:
            return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def changed(record: T, **members: Any) -> T:
    """The record with other values of some members."""
    return msgspec.structs.replace(record, **members)  # type: ignore[type-var]


def plain(record: Any) -> Any:
    """The record as dicts, lists, strings and numbers, for JSON output."""
    return msgspec.to_builtins(record)
