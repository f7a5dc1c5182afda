"""What `ls` and `find` show of a message: date, sender, subject, Message-ID.

The lines are found here and not by `email.parser`, which gives up at the first line that is no header, and real mail
has such lines; decoding is left to `email`. All input is hostile: nothing raises, everything is bounded, and nothing
that comes out can move a cursor.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from datetime import UTC
from email.errors import HeaderParseError
from email.header import decode_header
from email.utils import parsedate_to_datetime

from mailbackup.mail.text import one_line

TEXT_LIMIT = 200  # characters of sender and subject
ID_LIMIT = 998  # characters of a Message-ID: the longest line that RFC 5322 allows

_HEADER_LIMIT = 256 * 1024  # bytes looked at: the longest header block of a real mail seen had 210 KB
_VALUE_LIMIT = 4096  # bytes of one value: decoding may take time that grows faster than its input
_WANTED = (b"date", b"from", b"subject", b"message-id")

_WORD = r"=\?[^?\s]{1,80}\?[bBqQ]\?[^?]*\?="
_WORDS = re.compile(rf"{_WORD}(?:\s+{_WORD})*")  # blanks between encoded words are not text (RFC 2047 section 6.2)

# Names under which mail programs send a superset.
_SUPERSETS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "euc_kr": "cp949",
    "shift_jis": "cp932",
    "ascii": "utf-8",
    "iso8859-1": "cp1252",
}
# Python calls these encodings too, but they are no charsets; some warn or take long.
_NO_CHARSETS = {
    "idna",
    "punycode",
    "unicode-escape",
    "unicode_escape",
    "raw-unicode-escape",
    "raw_unicode_escape",
    "undefined",
}


@dataclass(frozen=True, slots=True)
class Summary:
    """What a list of messages shows.

    Texts are single lines without control characters, empty where there is no such header. `date` is UTC,
    `2026-11-24T02:30:00Z`; None = absent or not a date.
    """

    date: str | None
    from_: str
    subject: str
    message_id: str


def summary(header: bytes) -> Summary:
    """The summary of a header block. Never raises. Of headers that occur twice the first counts."""
    values = _values(header)
    return Summary(
        date=_date(values.get(b"date", b"")),
        from_=one_line(_decoded(values.get(b"from", b"")), TEXT_LIMIT),
        subject=one_line(_decoded(values.get(b"subject", b"")), TEXT_LIMIT),
        message_id=one_line(values.get(b"message-id", b"").decode("utf-8", "replace"), ID_LIMIT),
    )


def _values(header: bytes) -> dict[bytes, bytes]:
    """The first occurrence of each wanted header, unfolded and cut to a bounded length."""
    header = header[:_HEADER_LIMIT]
    lines = header.split(b"\n") if b"\n" in header else header.split(b"\r")  # bare CR: stores from old Macs
    found: dict[bytes, bytes] = {}
    current: bytes | None = None
    for line in lines:
        if line[:1] in (b" ", b"\t"):
            if current is not None:
                found[current] = (found[current] + line)[:_VALUE_LIMIT]
            continue
        name, colon, value = line.partition(b":")
        if not colon:
            current = None
            if line in (b"", b"\r"):
                break
            continue
        name = name.strip().lower()
        current = name if name in _WANTED and name not in found else None
        if current is not None:
            found[current] = value[:_VALUE_LIMIT]
    return found


def _date(value: bytes) -> str | None:
    try:
        when = parsedate_to_datetime(value[:TEXT_LIMIT].decode("ascii", "replace").strip())
        # No zone, or "-0000": the time is UTC (RFC 5322 section 3.3).
        when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return when.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def _decoded(value: bytes) -> str:
    """Encoded words and raw 8-bit text as characters."""
    text = value.decode("utf-8", "replace").replace("\r", "").replace("\n", "")
    return _WORDS.sub(_words, text) if "=?" in text else text


def _words(match: re.Match[str]) -> str:
    """A run of encoded words; as it stands there when it cannot be decoded."""
    try:
        return "".join(_characters(part, charset) for part, charset in decode_header(match[0]))
    except (HeaderParseError, ValueError):
        return match[0]


def _characters(part: bytes | str, charset: str | None) -> str:
    if isinstance(part, str):
        return part
    try:
        name = codecs.lookup((charset or "utf-8").partition("*")[0]).name  # "utf-8*en": RFC 2231 adds a language
        if name not in _NO_CHARSETS:
            return part.decode(_SUPERSETS.get(name, name), "replace")
    except (LookupError, ValueError):
        pass  # no such charset, or no charset at all ("hex")
    return part.decode("utf-8", "replace")
