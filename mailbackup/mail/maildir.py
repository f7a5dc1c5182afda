"""What names in a Maildir mean.

A message is a file in `cur` or `new`. Its name is (blanks added)

    1767600000.M20046P93.mx1,S=2301,W=2350 : 2,FS
    └──────────── base name ─────────────┘ └ rest ┘

Delivery writes it under a unique name in `tmp` and renames it into `new`, so a file in `new` is complete from its
first moment, while one in `tmp` may be half a mail. A client that looks moves it to `cur` and appends `:2,` and the
flags, one letter each. From then on **every change of a flag is a rename**: reading, answering, marking a message
changes neither its bytes, nor its inode, nor its mtime, only its name and its ctime. So the base name, up to the
*first* colon, is the identity of a message within its folder, and the rest is metadata that changes daily. Lower-case
letters are keywords; what they mean stands in `dovecot-keywords`. A rest that is not `2,` and letters is somebody's
own and is kept as it is.

What follows from that for whoever lists such a folder:

- *The rename race.* Between the listing and the opening of a file it may have another name. "No such file" therefore
  means "look again for the base name", never "deleted". Listing `cur` first and `new` second misses everything that a
  client moves in between; the order is `new`, `cur`, then both again until no new base name turns up. readdir itself
  may return a file twice, or not at all, while it is renamed.
- *Time.* The mtime of the message is IMAP's INTERNALDATE and is kept to the nanosecond. The mtime of the directory
  tells that names changed, but file systems and kernels stamp it with a granularity up to 2 s: equal mtimes prove
  nothing about changes of the last two seconds.
- *State files.* `dovecot-uidlist` maps base names to UIDs. Without it every client downloads everything again. It is
  copied after the messages: a row without a file is harmless, a file without a row gets a new UID.

Rejected:

- *The inode, or a hash of the content, as identity*: inodes change with every restore and move between disks, and
  equal messages are common (lists, sent copies). Both are good hints that content is known already, and are used as
  such.
- *The name alone as proof of the content*: old delivery programs reuse `pid_counter` names, so equality needs name
  and inode (or the content).
- *Parsing `,S=`*: it is the size before compression and is often wrong; the real size counts, and the name is never
  "repaired".
- *Other separators* (`!`, `;`, from stores made on Windows): no server that runs on Linux writes them. Such names
  count as base name throughout, so nothing is lost, and their flags come back with the name.
- *An empty base name* (`:2,S`, a delivery program gone wrong): Dovecot renames such files. Here the whole name is the
  base name, so that two of them are two messages.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata

from mailbackup.errors import RecordInvalid
from mailbackup.mail.text import escaped
from mailbackup.model.ids import Name, from_name, show, to_name

MESSAGE_DIRECTORIES = (b"new", b"cur")
"""In the order in which they are listed: see the rename race above."""

# Full-text indexes: fts_xapian and fts_lucene at the root of a mailbox, flatcurve in each folder.
_SEARCH_DIRECTORIES = frozenset({b"xapian-indexes", b"lucene-indexes", b"fts-flatcurve"})
# Locks of programs that work on mail, whatever the directory; elsewhere a `*.lock` may be somebody's poetry.lock.
_LOCK_OWNERS = (b"dovecot", b".dovecot", b"subscriptions", b"courier", b".mbsync", b".isync", b"maildirsize")
_CAPTURED_LAST = (b"dovecot", b"courierimap", b".uidvalidity", b".isyncuidmap", b".mbsyncstate", b"maildirsize")
_NFS_LEFTOVER = re.compile(rb"\.nfs[0-9A-Fa-f]{8,}")
_SHIFTED = re.compile(r"&([^&-]*)-")  # a run of modified UTF-7 (RFC 3501 section 5.1.3)


def split_name(name: bytes) -> tuple[bytes, bytes]:
    """Base name and rest of a message's file name. The rest begins with its colon, or is empty; joined they are the
    name."""
    colon = name.find(b":")
    return (name[:colon], name[colon:]) if colon > 0 else (name, b"")


def is_message(name: bytes) -> bool:
    """Whether a file of this name in `cur` or `new` is a message. Dot files are not (`.nfs…`)."""
    return name[:1] not in (b".", b"")


def flag_text(place: bytes, rest: bytes) -> Name:
    """A flag as it stands in a record (format section 8.2). `place` is `b"c"` (in cur) or `b"n"` (in new)."""
    if place not in (b"c", b"n"):
        raise ValueError(f"neither c nor n: {place!r}")
    return to_name(place + rest)


def flag_parts(flag: Name) -> tuple[bytes, bytes]:
    """(place, rest) of a flag in a record. Raises RecordInvalid when it says no place, or holds a slash or NUL."""
    raw = from_name(flag)
    if raw[:1] not in (b"c", b"n") or b"/" in raw or b"\0" in raw:
        raise RecordInvalid(f"flag {raw!r}")
    return raw[:1], raw[1:]


def place_of(directory: bytes) -> bytes:
    """`b"c"` or `b"n"` for the directory `cur` or `new`."""
    return directory[:1]


def directory_of(place: bytes) -> bytes:
    """`cur` or `new` for `b"c"` or `b"n"`."""
    return b"cur" if place == b"c" else b"new"


def left_out_inside(directory: bytes, *, in_folder: bool = True) -> str | None:
    """Why nothing in a directory of this name is saved; None = look into it. The directory itself is always kept.

    `in_folder` says that it lies directly in a mail folder (beside `cur` and `new`); a `tmp` elsewhere is somebody's
    own. The caller asks only about directories that are no mail folders themselves: a user may call a folder
    `xapian-indexes`.
    """
    if directory == b"tmp" and in_folder:
        return "unfinished delivery"
    if directory in _SEARCH_DIRECTORIES:
        return "full-text index"
    return None


def skipped(name: bytes, parent: bytes = b"", *, in_folder: bool = True) -> str | None:
    """Why a file that is not a message is left out; None = it is kept, as is everything that is not named here.

    `name` is its file name, `parent` the path of its directory relative to the mailbox. `in_folder` says that it lies
    in or below a mail folder, not elsewhere in a home directory. Not for messages, and not for directories: a folder
    may be called `.old.lock`.

    Left out is what a server makes anew without a client noticing. `dovecot.index*` and its logs are *kept*: without
    them HIGHESTMODSEQ falls, and flags that could not be written into names are lost. Compiled sieve scripts
    (`.svbin`) are derived too, but kept: they are small, and where the user may not write beside the script, as with
    global ones, nothing would compile them again.
    """
    for directory in parent.split(b"/"):
        reason = left_out_inside(directory, in_folder=in_folder)
        if reason is not None:
            return reason
    if name.endswith((b".lock", b".newlock")) and (in_folder or name.startswith(_LOCK_OWNERS)):
        return "lock"
    if name.startswith((b"dovecot.index.cache", b"dovecot.index.thread")):
        return "cache"
    if name.startswith(b"dovecot.index.search"):
        return "full-text index"
    if _NFS_LEFTOVER.fullmatch(name):
        return "deleted, but still open"
    return None


def captured_last(name: bytes) -> bool:
    """Whether a state file speaks about messages (uidlist, keywords, indexes), so that it is copied after them.

    For a directory (`courierimapkeywords`) the answer holds for everything in it.
    """
    return name.startswith(_CAPTURED_LAST)


def readable_folder(name: bytes) -> str:
    """A folder's name for people. `name` is its directory relative to the mailbox, `b""` is INBOX. Never raises.

    Maildir++ (`.Archive.2026`) and LAYOUT=fs (`Archive/2026`) both become `Archive/2026`, and modified UTF-7 is
    decoded. A folder `.INBOX` beside the real INBOX keeps its dot, so that the two can be told apart.
    """
    if not name:
        return "INBOX"
    shown = "/".join(_level(part) for part in show(name).split("/"))
    return escaped(shown) if shown.upper() != "INBOX" or name[:1] != b"." else escaped(show(name))


def folder_matches(name: bytes, wanted: str) -> bool:
    """Whether a person who says `wanted` means this folder.

    Accepted are its shown name, its directory, and its directory without the first dot. Case matters, except for
    INBOX. Several folders may match when they differ only in their spelling on disk.
    """
    if not name:
        return wanted.upper() in ("INBOX", "")
    shown = readable_folder(name)
    raw = show(name)
    # A person's terminal composes an umlaut; the client that made the folder may have decomposed it.
    if unicodedata.normalize("NFC", wanted) == unicodedata.normalize("NFC", shown):
        return True
    return wanted == raw or (raw[:1] == "." and wanted == raw[1:] and wanted.upper() != "INBOX")


def _level(part: str) -> str:
    decoded = _SHIFTED.sub(_unshift, part)
    return decoded[1:].replace(".", "/") if decoded[:1] == "." else decoded


def _unshift(match: re.Match[str]) -> str:
    """The characters of a run of modified UTF-7; the run itself if it is not canonical, so that no two names look
    alike."""
    run = match[1]
    if not run:
        return "&"
    try:
        raw = base64.b64decode(run.replace(",", "/") + "=" * (-len(run) % 4), validate=True)
        text = raw.decode("utf-16-be")
    except (binascii.Error, ValueError):
        return match[0]
    canonical = base64.b64encode(raw).decode().rstrip("=").replace("/", ",") == run
    # Printable ASCII stands for itself: an encoded "/" or "." would make up a hierarchy.
    return text if canonical and not any(" " <= char <= "~" for char in text) else match[0]
