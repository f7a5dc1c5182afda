"""A message file as header block and body.

The two are stored apart because they behave apart: headers are what `ls` and `find` read, and differ from recipient
to recipient; bodies are large, and the same in all copies of a mail. Nothing is parsed further and nothing is ever
re-encoded: signatures depend on every byte, so the law is `join(*split(m)) == m` for arbitrary bytes.

The header block ends with the first empty line, which belongs to it. A line ends with LF; LF and CRLF may be mixed,
as they are in real stores. Decisions:

- no empty line: all of it is header block, as IMAP servers see it (a mail without a body; a store with bare CR);
- the first line is empty: it alone is the header block;
- no end of the headers within 4 MiB: not split. A header block is so always a single blob, and a disk image that fell
  into a mail folder does not become something to search headers in;
- compressed or encrypted by the server: not split. There is nothing to read in it, and such files never share a body.
"""

from __future__ import annotations

import bz2
import lzma
import zlib

from mailbackup.model.tree import PIECE_LIMIT

HEADER_LIMIT = PIECE_LIMIT  # bytes of a header block
READ_LIMIT = 1 << 20  # bytes that are decompressed at most to find the headers

_FIRST_LOOK = 1 << 16  # nearly all headers end within: saves looking through a large CRLF body for LF LF
_UNPACK_MEMORY = 64 << 20  # bytes that an xz stream may ask for

# As Dovecot's mail-compress (zlib) and mail-crypt plugins write them, and lz4 frames of the lz4 program.
_MAGICS = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"Dovecot-LZ4\x0d\x2a\x9b\xc5", "lz4"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"CRYPTED\x03\x07", "mail_crypt"),
)
_ANY_MAGIC = tuple(magic for magic, _ in _MAGICS)
_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # what follows BZh and the digit: a block, or the end of an empty file


def encoding(start: bytes) -> str | None:
    """What a message file that begins with `start` (16 bytes are enough) is packed with.

    `gzip`, `bzip2`, `xz`, `zstd`, `lz4` or `mail_crypt`; None = it lies there as it is.
    """
    if not start.startswith(_ANY_MAGIC):
        return None
    name = next(name for magic, name in _MAGICS if start.startswith(magic))
    if name == "bzip2" and not (start[3:4].isdigit() and start[4:10] in _BZIP2_BLOCKS):
        return None  # "BZh" alone is also good ASCII
    return name


def header_length(message: bytes) -> int:
    """Length of the header block in bytes, 0 = not split. What `split` does, without copying."""
    if encoding(message) is not None:
        return 0
    if message.startswith((b"\n", b"\r\n")):
        return message.index(b"\n") + 1
    for end in (_FIRST_LOOK, HEADER_LIMIT):
        length = _through_empty_line(message, end)
        if length:
            return length
        if len(message) <= end:
            return len(message)
    return 0


def split(message: bytes) -> tuple[bytes, bytes]:
    """(header block, body); the header block is empty when the message is not split. See the head of this module."""
    length = header_length(message)
    return message[:length], message[length:]


def join(header: bytes, body: bytes) -> bytes:
    """The message again, byte for byte."""
    return header + body


def pieces(data: bytes | memoryview, limit: int = PIECE_LIMIT) -> list[memoryview]:
    """`data` cut every `limit` bytes, without copying; no piece for no bytes."""
    view = memoryview(data)
    return [view[start : start + limit] for start in range(0, len(view), limit)]


def readable_headers(start: bytes) -> bytes | None:
    """The header block of a message file that begins with `start`, decompressed if need be; None = unreadable.

    At most the first MiB of the (decompressed) message is looked at; if the headers are longer, or `start` ends
    within them, what there is of them. zstd, lz4 and mail_crypt are unreadable here: a caller that can open them
    passes the opened start.
    """
    name = encoding(start)
    plain = start[:READ_LIMIT] if name is None else _unpack(start, name)
    if not plain or encoding(plain) is not None:
        return None if start else b""
    return plain[: header_length(plain)]


def _through_empty_line(message: bytes, end: int) -> int:
    """Length up to and including the first empty line within the first `end` bytes; 0 = none there."""
    lf = message.find(b"\n\n", 0, end)
    crlf = message.find(b"\n\r\n", 0, end if lf < 0 else lf + 1)
    if crlf >= 0:
        return crlf + 3
    return lf + 2 if lf >= 0 else 0


def _unpack(start: bytes, name: str) -> bytes | None:
    try:
        match name:
            case "gzip":
                return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(start, READ_LIMIT)
            case "bzip2":
                return bz2.BZ2Decompressor().decompress(start, READ_LIMIT)
            case "xz":
                return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_UNPACK_MEMORY).decompress(start, READ_LIMIT)
    except (zlib.error, lzma.LZMAError, OSError, ValueError):
        pass  # damaged: the message is saved all the same, only its headers cannot be shown
    return None
