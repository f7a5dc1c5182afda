"""A Maildir that was restored beside the mailbox it will be brought into: made its owner's, and read once more for the proof."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Any

from mailbackup.mail.maildir import MESSAGE_DIRECTORIES, is_message, split_name
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.tree import Entry, Owner
from mailbackup.restore.plan import RestorePlan, Step
from mailbackup.server.session import ContentHash, Mail

_CHUNK = 1 << 20
_STATE = (b"dovecot-uidlist", b"dovecot-keywords", b"maildirfolder", b"dovecot.index", b"dovecot.index.log", b"dovecot.index.log.2")
_FLAGS = {"D": "\\Draft", "F": "\\Flagged", "R": "\\Answered", "S": "\\Seen", "T": "\\Deleted"}
_PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_OPAQUE = (b"CRYPTED\x03\x07", b"Dovecot-LZ4", b"\x28\xb5\x2f\xfd")  # only Dovecot can open these


def narrow(plan: RestorePlan) -> None:
    """Leave in a plan what a mailbox needs that is brought into another one: directories, messages, and what tells their flags and keywords.

    Links are left out, as they could lead into the mailboxes of others, and ACLs, as they could keep the owner out.
    """
    plan.directories = [_plain_step(step) for step in plan.directories]
    plan.files = [_plain_step(step) for step in plan.files if step.is_message or is_state(step.path)]
    plan.others = []
    plan.bytes = sum(step.entry.size for step in plan.files)


def folders_of(plan: RestorePlan) -> int:
    """In how many folders the messages of a plan lie."""
    return len({os.path.dirname(os.path.dirname(step.path)) for step in plan.files if step.is_message})


def is_state(path: bytes) -> bool:
    """Whether the file tells flags and keywords of messages."""
    return os.path.basename(path) in _STATE


def plain(entry: Entry, owner: Owner) -> tuple[Entry, Owner]:
    """The entry without attributes, and belonging to root until it is handed over."""
    bare = Entry(name=entry.name, type="d" if entry.type in ("d", "m") else "f", mtime=entry.mtime, size=entry.size)
    return bare, Owner(owner.mode & 0o777, 0, None, 0, None)


def _plain_step(step: Step) -> Step:
    entry, owner = plain(step.entry, step.owner)
    return replace(step, entry=entry, owner=owner)


@dataclass(slots=True)
class Staged:
    """What lies in the Maildir. `size` in bytes as IMAP counts them (CRLF); `opaque` messages are stored in a way that only Dovecot can open."""

    folders: dict[bytes, Counter[Mail]] = field(default_factory=dict)
    messages: int = 0
    size: int = 0
    opaque: int = 0

    @property
    def location(self) -> str:
        """Options of a mail location that fit the layout of these folders."""
        names = [name for name in self.folders if name]
        layout = ":LAYOUT=fs" if any(name[:1] != b"." for name in names) else ""
        return layout + (":UTF-8" if any(not name.isascii() for name in names) else "")


def take_over(maildir: str, uid: int, gid: int) -> None:
    """Make everything in it belong to the mailbox's user, who can then read and write it. What is neither directory nor file is removed."""
    for folder, below, names in os.walk(os.fsencode(maildir)):
        for name in (b"", *below, *names):
            path = os.path.join(folder, name) if name else folder
            mode = os.lstat(path).st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                os.unlink(path)
                continue
            os.chown(path, uid, gid, follow_symlinks=False)
            os.chmod(path, stat.S_IMODE(mode) & 0o770 | (0o700 if stat.S_ISDIR(mode) else 0o600))


def read(maildir: str) -> Staged:
    """Read and hash every message."""
    found = Staged()
    root = os.fsencode(maildir)
    for folder, below, _ in os.walk(root):
        if not set(MESSAGE_DIRECTORIES) & set(below):
            continue
        keywords = _keywords(folder)
        mails = found.folders[os.path.relpath(folder, root) if folder != root else b""] = Counter()
        for directory in MESSAGE_DIRECTORIES:
            for name in _names(os.path.join(folder, directory)):
                mails[_mail(os.path.join(folder, directory, name), keywords, found)] += 1
                found.messages += 1
        below[:] = [name for name in below if name not in (*MESSAGE_DIRECTORIES, b"tmp")]
    return found


def compare(staged: Staged, live: list[Counter[Mail]], parent: str) -> list[Finding]:
    """What is not in the live folders as it was staged. Names of folders do not count: their contents tell them apart."""
    put, found = _together(staged.folders.values()), _together(live)
    missing = sum((_digests(put) - _digests(found)).values())
    if missing > staged.opaque or put.total() != found.total():
        detail = f"{found.total()} messages, of {put.total()}; {missing} are not there, or not byte for byte"
        return [Finding(FindingKind.NOT_RESTORED, parent, detail)]
    if missing:
        return []
    if _bags(staged.folders.values()) != _bags(live):
        return [Finding(FindingKind.NOT_RESTORED, parent, "messages lie in other folders than they did")]
    changed = sum((put - found).values())
    if changed:
        return [Finding(FindingKind.ATTRIBUTE_KEPT, parent, f"flags or dates of {changed} messages")]
    return []


def _together(folders: Iterable[Counter[Mail]]) -> Counter[Mail]:
    total: Counter[Mail] = Counter()
    for mails in folders:
        total.update(mails)
    return total


def _digests(mails: Counter[Mail]) -> Counter[str]:
    found: Counter[str] = Counter()
    for mail, count in mails.items():
        found[mail.digest] += count
    return found


def _bags(folders: Iterable[Counter[Mail]]) -> Counter[frozenset[tuple[str, int]]]:
    return Counter(frozenset(_digests(mails).items()) for mails in folders if mails)


def _names(directory: bytes) -> Iterator[bytes]:
    if os.path.isdir(directory):
        with os.scandir(directory) as entries:
            yield from (entry.name for entry in entries if is_message(entry.name) and entry.is_file(follow_symlinks=False))


def _keywords(folder: bytes) -> dict[str, str]:
    """Letter → keyword."""
    try:
        with open(os.path.join(folder, b"dovecot-keywords"), encoding="utf-8", errors="replace") as file:
            rows = [line.rstrip("\n").partition(" ") for line in file]
    except OSError:
        return {}
    return {chr(ord("a") + int(number)): keyword for number, _, keyword in rows if number.isdigit() and int(number) < 26}


def _mail(path: bytes, keywords: dict[str, str], found: Staged) -> Mail:
    with open(path, "rb") as raw:
        digest, size = _read_content(raw, found)
        date = os.fstat(raw.fileno()).st_mtime_ns // 1_000_000_000
    found.size += size
    rest = split_name(os.path.basename(path))[1].removeprefix(b":2,").decode("ascii", "replace")
    flags = frozenset(flag for letter in rest if (flag := _FLAGS.get(letter) or keywords.get(letter)))
    return Mail(digest, flags, date)


def _read_content(raw: IO[bytes], found: Staged) -> tuple[str, int]:
    """Digest of the message and its size with CRLF; of one that cannot be opened here, those of the file."""
    start = raw.read(16)
    raw.seek(0)
    opener = next((opener for magic, opener in _PACKED.items() if start.startswith(magic)), None)
    if opener is not None:
        try:
            return _measure(opener(raw))
        except (OSError, EOFError, zlib.error, lzma.LZMAError):
            raw.seek(0)
    found.opaque += opener is not None or start.startswith(_OPAQUE)
    return _measure(raw)


def _measure(file: IO[bytes]) -> tuple[str, int]:
    content, size, last = ContentHash(), 0, b""
    while data := file.read(_CHUNK):
        content.update(data)
        size += len(data) + data.count(b"\n") - data.count(b"\r\n") - (last == b"\r" and data[:1] == b"\n")
        last = data[-1:]
    return content.hexdigest(), size
