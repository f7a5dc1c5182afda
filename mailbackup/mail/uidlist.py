"""`dovecot-uidlist`, and Courier's `courierimapuiddb`, which is its version 1: which message has which UID.

    3 V1275660208 N25022 G3085f01b7f11094c501100008c4a11c1      version, UIDVALIDITY, next UID, GUID of the folder
    25006 :1276528487.M364837P9451.mx,S=1355,W=1394:2,S         UID, fields (often none), colon, file name
    25017 W2481 :1276533073.M242911P3632.mx

    1 1173189136 20221                                          version, UIDVALIDITY, next UID
    20209 1276528487.M364837P9451.mx:2,S                        UID, file name

Read as Dovecot's `maildir-uidlist.c` reads it, but tolerantly: where Dovecot discards the whole file, lines that make
no sense are passed over, since here it is evidence (was every message captured? what may clients have seen?) and not
instructions.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailbackup.mail.maildir import split_name

_LAST_UID = 2**32 - 1  # UIDs and UIDVALIDITY are 32-bit and not 0 (RFC 3501 section 2.3.1.1)


@dataclass(frozen=True, slots=True)
class Uidlist:
    """`rows` maps base names to UIDs. Rows without a file are normal: they are removed late."""

    uidvalidity: int
    next_uid: int
    rows: dict[bytes, int]


def parse(data: bytes) -> Uidlist | None:
    """The list in `data`; None when it is none. Never raises.

    `next_uid` is the larger of what the header says and the highest UID + 1: headers were seen that say 1 while UIDs
    up to 6 exist.
    """
    lines = data.split(b"\n")
    header = _header(lines[0])
    if header is None:
        return None
    version, uidvalidity, next_uid = header
    rows: dict[bytes, int] = {}
    for line in lines[1:]:
        number, _, rest = line.partition(b" ")
        uid = _number(number)
        name = _file_name(rest) if version == 3 else rest.lstrip(b" ")
        if uid and name and b"/" not in name:
            rows[split_name(name)[0]] = uid  # a name listed twice was expunged and moved back: its last UID counts
            next_uid = max(next_uid, uid + 1)
    return Uidlist(uidvalidity, next_uid, rows)


def _header(line: bytes) -> tuple[int, int, int] | None:
    """(version, UIDVALIDITY, next UID), 0 where the latter does not say; None = not the header of a uidlist."""
    fields = line.split()
    if not fields or fields[0] not in (b"1", b"3"):
        return None
    if fields[0] == b"1":
        values = fields[1:3]
    else:
        by_key = {field[:1]: field[1:] for field in reversed(fields[1:])}
        values = [by_key.get(b"V", b""), by_key.get(b"N", b"")]
    uidvalidity, next_uid = (*map(_number, values), 0, 0)[:2]
    return (int(fields[0]), uidvalidity, next_uid) if uidvalidity else None


def _file_name(rest: bytes) -> bytes:
    """The file name of a version 3 row: what follows the first field that begins with a colon."""
    if rest.startswith(b":"):
        return rest[1:]
    return rest.partition(b" :")[2]


def _number(digits: bytes) -> int:
    """A UID or UIDVALIDITY; 0 when it is none."""
    if not digits.isdigit() or len(digits) > 10:
        return 0
    value = int(digits)
    return value if value <= _LAST_UID else 0
