"""Header block and body."""

from __future__ import annotations

import bz2
import gzip
import lzma
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailbackup.mail import message

HEADERS = b"From: alice@example.org\nSubject: x\n"

# What real mail is made of, so that random bytes meet the interesting places.
parts = st.sampled_from([b"\n", b"\r", b"\r\n", b"a", b"A: b", b" ", b"\0", b"\xff"])
line_ends = st.lists(parts, max_size=12).map(b"".join)
messages = st.one_of(line_ends, st.binary(max_size=200), st.tuples(line_ends, st.binary(max_size=50)).map(b"".join))

SPLITS = {
    "LF": (HEADERS + b"\n", b"body\n\nmore\n"),
    "CRLF": (HEADERS.replace(b"\n", b"\r\n") + b"\r\n", b"body\r\n\r\nmore\r\n"),
    "LF, then an empty CRLF line": (HEADERS + b"\r\n", b"body\n\n"),
    "CRLF, then an empty LF line": (HEADERS.replace(b"\n", b"\r\n") + b"\n", b"body\r\n\r\n"),
    "empty line first": (b"\n", HEADERS + b"\nbody"),
    "empty CRLF line first": (b"\r\n", HEADERS + b"\nbody"),
    "no body": (HEADERS + b"\n", b""),
    "no empty line": (HEADERS, b""),
    "no final newline": (b"Subject: x", b""),
    "bare CR": (b"A: b\rC: d\r\rbody\r", b""),
    "a line of blanks is not empty": (b"A: b\n \nC: d\n\n", b"body"),
    "CR CR LF is not empty": (b"A: b\n\r\r\nC: d\n\n", b"body"),
    "From_ line": (b"From alice Mon Jan  5 08:00:00 2026\n" + HEADERS + b"\n", b">From here\n"),
    "NUL": (b"A: \0\n\n", b"\0\0"),
    "nothing": (b"", b""),
}


@pytest.mark.parametrize("what", SPLITS)
def test_split(what: str) -> None:
    header, body = SPLITS[what]
    assert message.split(header + body) == (header, body)


@given(messages)
@example(b"\n")
@example(b"\r\n\n")
@example(b"a\n\r\n")
@example(b"a\n\r")
def test_join_is_the_inverse_of_split(data: bytes) -> None:
    header, body = message.split(data)
    assert message.join(header, body) == data
    assert len(header) == message.header_length(data)


@given(messages)
def test_headers_end_with_the_first_empty_line(data: bytes) -> None:
    """Against the definition, line by line."""
    if message.encoding(data) is not None:
        return
    expected = b""
    for line in data.splitlines(keepends=True) if b"\r" not in data.replace(b"\r\n", b"\n") else _lf_lines(data):
        expected += line
        if line in (b"\n", b"\r\n"):
            break
    assert message.split(data)[0] == expected


def _lf_lines(data: bytes) -> list[bytes]:
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines


@pytest.mark.parametrize("end", [b"\n\n", b"\n\r\n", b"\r\n\r\n", b"\r\n\n"])
@pytest.mark.parametrize("around", [65_536, message.HEADER_LIMIT])
def test_long_headers(end: bytes, around: int) -> None:
    """The empty line lies just before, across and just behind the borders of what is searched."""
    for length in range(around - 6, around + 1):
        header = b"x" * (length - len(end)) + end
        assert message.split(header + b"body\n\n") == (header, b"body\n\n")


def test_headers_without_end_are_not_split() -> None:
    assert message.header_length(b"x" * message.HEADER_LIMIT) == message.HEADER_LIMIT
    assert message.header_length(b"x" * message.HEADER_LIMIT + b"\n\nbody") == 0
    assert message.header_length(b"\0" * 6_000_000) == 0


PLAIN = HEADERS + b"\nbody\n" * 100
PACKED = {
    "gzip": gzip.compress(PLAIN),
    "bzip2": bz2.compress(PLAIN),
    "xz": lzma.compress(PLAIN),
}
CLOSED = {
    "zstd": b"\x28\xb5\x2f\xfd\x04\x00\n\n",
    "lz4": b"Dovecot-LZ4\x0d\x2a\x9b\xc5\x00\x01\x00\x00\n\n",
    "mail_crypt": b"CRYPTED\x03\x07\x02\n\n",
}


@pytest.mark.parametrize("kind", [*PACKED, *CLOSED])
def test_packed_messages_are_not_split(kind: str) -> None:
    data = (PACKED | CLOSED)[kind]
    assert message.encoding(data) == kind
    assert message.split(data) == (b"", data)


@pytest.mark.parametrize("data", [b"BZh9: header\n\nbody", b"BZ", b"CRYPTED: x\n\n", b"Dovecot-LZ4:\n\n", b"", b"\x1f"])
def test_not_packed(data: bytes) -> None:
    assert message.encoding(data) is None


@pytest.mark.parametrize("kind", PACKED)
def test_headers_of_packed_messages(kind: str) -> None:
    assert message.readable_headers(PACKED[kind]) == HEADERS + b"\n"


@pytest.mark.parametrize("kind", CLOSED)
def test_unreadable_headers(kind: str) -> None:
    assert message.readable_headers(CLOSED[kind]) is None


@given(st.sampled_from(sorted(PACKED)), st.integers(0, 60), st.integers(0, 255))
def test_damaged_packed_headers_never_raise(kind: str, place: int, value: int) -> None:
    damaged = bytearray(PACKED[kind])
    damaged[place] = value
    assert isinstance(message.readable_headers(bytes(damaged)), bytes | None)
    assert isinstance(message.readable_headers(bytes(damaged[:place])), bytes | None)


def test_readable_headers_of_plain_and_cut_starts() -> None:
    assert message.readable_headers(PLAIN) == HEADERS + b"\n"
    assert message.readable_headers(HEADERS[:-5]) == HEADERS[:-5]
    assert message.readable_headers(b"") == b""
    assert message.readable_headers(gzip.compress(PLAIN)[:-8]) == HEADERS + b"\n"
    assert message.readable_headers(gzip.compress(b"CRYPTED\x03\x07")) is None
    assert message.readable_headers(gzip.compress(b"")) is None


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_bomb_stops_at_the_limit(pack: object) -> None:
    assert callable(pack)
    assert message.readable_headers(pack(b"x" * 3_000_000)) == b"x" * message.READ_LIMIT


@given(st.binary(max_size=100), st.integers(1, 30))
def test_pieces_are_the_data(data: bytes, limit: int) -> None:
    pieces = message.pieces(data, limit)
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= limit for piece in pieces)
    assert all(len(piece) == limit for piece in pieces[:-1])


def test_pieces_do_not_copy() -> None:
    data = bytes(9 * 1024 * 1024)
    pieces = message.pieces(data)
    assert [len(piece) for piece in pieces] == [4194304, 4194304, 1048576]
    assert all(piece.obj is data for piece in pieces)


def test_large_messages_are_split_quickly() -> None:
    data = HEADERS.replace(b"\n", b"\r\n") + b"\r\n" + b"0123456789" * 3_000_000
    start = time.process_time()
    for _ in range(1000):
        message.header_length(data)
    assert time.process_time() - start < 0.5  # 0.01 s here: bodies are not looked through
