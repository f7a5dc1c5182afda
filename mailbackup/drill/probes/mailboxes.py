"""Mailboxes as their clients see them, compared with what the snapshot says: UIDs, contents, flags, keywords, subscriptions.

A client's cache is right as long as every UID shows the message that it showed. UIDVALIDITY and the number of messages alone prove nothing: without its
uidlist a folder keeps both and gives every message a new UID.
"""

from __future__ import annotations

import contextlib
import hashlib
import imaplib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from mailbackup.drill.probes.bench import Bench, ProbeFailed
from mailbackup.mail.maildir import flag_parts, split_name
from mailbackup.mail.uidlist import parse
from mailbackup.model.ids import from_name, show
from mailbackup.model.system import Probe
from mailbackup.model.tree import Folder, MailboxRow, MailboxTree
from mailbackup.vault.reader import FoundEntry

_FLAGS = {b"S": "\\Seen", b"R": "\\Answered", b"F": "\\Flagged", b"D": "\\Draft", b"T": "\\Deleted"}
_BATCH = 200  # messages that are fetched at once


@dataclass(frozen=True, slots=True)
class Message:
    """A message: hashes of all of it and of its headers, and its flags and keywords."""

    whole: str
    head: str
    flags: frozenset[str]


@dataclass(slots=True)
class Seen:
    """A folder: UID → message; `loose` are messages without a UID yet."""

    uidvalidity: int = 0
    by_uid: dict[int, Message] = field(default_factory=dict)
    loose: list[Message] = field(default_factory=list)

    @property
    def all(self) -> list[Message]:
        """Every message."""
        return [*self.by_uid.values(), *self.loose]


@dataclass(slots=True)
class Box:
    """A mailbox: folder name as IMAP has it (without the namespace's prefix, levels parted by /) → what is in it; subscribed names."""

    folders: dict[str, Seen] = field(default_factory=dict)
    subscribed: set[str] = field(default_factory=set)


def mailboxes(probe: Probe, bench: Bench) -> str:
    """Compare every restored mailbox; the `what` of the probe chooses the aspect."""
    if not any(row.messages for row, _ in bench.mailboxes):
        raise ProbeFailed("no mailbox with a message was restored, so nothing is proven")
    compare = _ASPECTS[probe.setting("what") or "messages"]
    counts: Counter[str] = Counter()
    for row, tree in bench.mailboxes:
        then, now = _remembered(bench, row, tree)
        counts.update(compare(row.address, then, now))
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _remembered(bench: Bench, row: MailboxRow, tree: MailboxTree) -> tuple[Box, Box]:
    """Both sides, fetched once for all aspects."""
    key = f"mailbox {row.key}"
    if key not in bench.memory:
        bench.memory[key] = (expected(bench, tree), served(bench, row.address))
    pair: tuple[Box, Box] = bench.memory[key]
    return pair


# ---------------------------------------------------------------- aspects


def _messages(address: str, then: Box, now: Box) -> dict[str, int]:
    count = 0
    for name, folder in then.folders.items():
        there = now.folders.get(name)
        if there is None:
            if folder.all:
                raise ProbeFailed(f"{address}: folder {name or 'INBOX'} is missing")
            continue
        if folder.uidvalidity and folder.uidvalidity != there.uidvalidity:
            raise ProbeFailed(
                f"{address}/{name}: UIDVALIDITY is {there.uidvalidity}, was {folder.uidvalidity}: clients would download everything again"
            )
        for uid, message in folder.by_uid.items():
            found = there.by_uid.get(uid)
            if found is None:
                raise ProbeFailed(
                    f"{address}/{name}: UID {uid} is missing ({len(there.by_uid)} messages are there, expected {len(folder.all)})"
                )
            if not found.whole:
                raise ProbeFailed(f"{address}/{name}: Dovecot cannot read UID {uid}")
            if found.whole != message.whole:
                raise ProbeFailed(f"{address}/{name}: UID {uid} shows another message than before")
        lost = Counter(message.whole for message in folder.all) - Counter(message.whole for message in there.all)
        if lost:
            raise ProbeFailed(f"{address}/{name}: {lost.total()} messages are missing")
        count += len(folder.all)
    return {"messages with their UIDs": count}


def _flags(address: str, then: Box, now: Box) -> dict[str, int]:
    count = 0
    for name, folder in then.folders.items():
        there: dict[str, list[frozenset[str]]] = {}
        for message in now.folders.get(name, Seen()).all:
            there.setdefault(message.head, []).append(message.flags)
        for message in folder.all:
            candidates = there.get(message.head, [])
            if candidates and not any(_fits(message.flags, flags) for flags in candidates):
                raise ProbeFailed(f"{address}/{name}: a message has {_words(candidates[0])}, had {_words(message.flags)}")
            count += bool(candidates)
    return {"messages with their flags": count}


def _fits(then: frozenset[str], now: frozenset[str]) -> bool:
    """System flags are the same; keywords may have become more (a filter), not fewer."""
    return then <= now and {flag for flag in now if flag.startswith("\\")} <= then


def _words(flags: frozenset[str]) -> str:
    return " ".join(sorted(flags)) or "no flags"


def _subscriptions(address: str, then: Box, now: Box) -> dict[str, int]:
    missing = then.subscribed - now.subscribed
    if missing:
        raise ProbeFailed(f"{address}: not subscribed any more: {', '.join(sorted(missing))}")
    return {"subscriptions": len(then.subscribed)}


_ASPECTS: dict[str, Callable[[str, Box, Box], dict[str, int]]] = {"messages": _messages, "flags": _flags, "subscriptions": _subscriptions}


# ---------------------------------------------------------------- what the snapshot says


def expected(bench: Bench, tree: MailboxTree) -> Box:
    """A mailbox as the snapshot holds it."""
    assert bench.reader is not None, "mailboxes come from a snapshot"
    state = {entry.name: entry for entry in bench.reader.files(tree.blocks, tree.files, f"files of {tree.address}")}
    box = Box()
    for folder in tree.folders:
        box.folders[_imap_name(from_name(folder.name))] = _folder(bench, tree, folder, state)
    listed = _state(bench, state, b"", b"subscriptions")
    box.subscribed = set(_subscribed(listed))
    return box


def _imap_name(directory: bytes) -> str:
    """`.Archive.2026` → `Archive/2026`; a folder of LAYOUT=fs is called by its path."""
    name = directory[1:].replace(b".", b"/") if directory.startswith(b".") else directory
    return name.decode("ascii", "backslashreplace")


def _subscribed(listed: bytes) -> Iterator[str]:
    """Names in `subscriptions`: a line each, or (version 2) levels parted by tabs after a heading."""
    version_2 = listed.startswith(b"V\t2")
    for line in listed.splitlines()[2 if version_2 else 0 :]:
        if line:
            yield line.replace(b"\t" if version_2 else b".", b"/").decode("ascii", "backslashreplace")


def _state(bench: Bench, state: dict[bytes, FoundEntry], folder: bytes, name: bytes) -> bytes:
    found = state.get(folder + b"/" + name if folder else name)
    assert bench.reader is not None, "mailboxes come from a snapshot"
    return b"" if found is None else b"".join(bench.reader.blocks.blob(ref) for ref in found.refs)


def _folder(bench: Bench, tree: MailboxTree, folder: Folder, state: dict[bytes, FoundEntry]) -> Seen:
    assert bench.reader is not None, "mailboxes come from a snapshot"
    directory = from_name(folder.name)
    uids = parse(_state(bench, state, directory, b"dovecot-uidlist"))
    keywords = dict(_keywords(_state(bench, state, directory, b"dovecot-keywords")))
    seen = Seen(uids.uidvalidity if uids is not None else 0)
    messages = list(bench.reader.messages(tree, folder))
    stream = bench.reader.stream(ref for found in messages for ref in found.refs)
    try:
        for found in messages:
            message = _message(b"".join(stream.blob(ref) for ref in found.refs), _flags_of(found, keywords))
            uid = uids.rows.get(split_name(found.name)[0]) if uids is not None else None
            if uid is None:
                seen.loose.append(message)
            else:
                seen.by_uid[uid] = message
    finally:
        stream.close()
    return seen


def _keywords(listed: bytes) -> Iterator[tuple[bytes, str]]:
    for line in listed.splitlines():
        number, _, name = line.partition(b" ")
        if number.isdigit() and int(number) < 26:
            yield bytes([ord("a") + int(number)]), name.decode("ascii", "backslashreplace")


def _flags_of(found: FoundEntry, keywords: dict[bytes, str]) -> frozenset[str]:
    _, rest = flag_parts(found.flag if found.flag is not None else "n")
    letters = [rest[at : at + 1] for at in range(3, len(rest))] if rest.startswith(b":2,") else []
    return frozenset(name for letter in letters if (name := _FLAGS.get(letter) or keywords.get(letter)))


def _message(content: bytes, flags: frozenset[str]) -> Message:
    """Hashes of a message as IMAP delivers it: lines end with CR LF, and a NUL cannot be sent."""
    wire = re.sub(rb"\r?\n", b"\r\n", content).replace(b"\0", b"\x80")
    return Message(hashlib.sha256(wire).hexdigest(), hashlib.sha256(wire.partition(b"\r\n\r\n")[0]).hexdigest(), flags)


# ---------------------------------------------------------------- what IMAP says


class _Session:
    """One user's session. A message that Dovecot cannot read (its size is not what its name says) ends a session: another one is opened, and it is passed
    over."""

    def __init__(self, bench: Bench, address: str) -> None:
        self._bench = bench
        self._address = address
        self.imap = bench.imap(address)

    def close(self) -> None:
        """Log out."""
        with contextlib.suppress(OSError, imaplib.IMAP4.error):
            self.imap.logout()

    def open(self, name: str) -> tuple[int, int]:
        """Open a folder for reading. Returns its UIDVALIDITY and how many messages it holds."""
        status, told = self.imap.select(quoted(name), readonly=True)
        if status != "OK":
            raise ProbeFailed(f"folder {name} cannot be opened: {show(told[0] or b'')}")
        return int(self.imap.response("UIDVALIDITY")[1][0] or b"0"), int(told[0] or 0)

    def bodies(self, name: str, uids: list[int]) -> Iterator[tuple[int, bytes | None]]:
        """Messages by UID; None for one that cannot be read."""
        for at in range(0, len(uids), _BATCH):
            batch = uids[at : at + _BATCH]
            try:
                yield from list(self._bodies(batch))
            except (OSError, imaplib.IMAP4.error):
                yield from self._one_by_one(name, batch)

    def _one_by_one(self, name: str, uids: list[int]) -> Iterator[tuple[int, bytes | None]]:
        self._again(name)
        for uid in uids:
            try:
                yield from list(self._bodies([uid]))
            except (OSError, imaplib.IMAP4.error):
                yield uid, None
                self._again(name)

    def _again(self, name: str) -> None:
        self.close()
        self.imap = self._bench.imap(self._address)
        self.open(name)

    def _bodies(self, uids: list[int]) -> Iterator[tuple[int, bytes]]:
        for row in self.imap.uid("FETCH", ",".join(map(str, uids)), "(UID BODY.PEEK[])")[1]:
            if isinstance(row, tuple):
                uid = re.search(rb"UID (\d+)", row[0])
                if uid is not None:
                    yield int(uid[1]), row[1]


def served(bench: Bench, address: str) -> Box:
    """A mailbox as Dovecot serves it."""
    session = _Session(bench, address)
    try:
        return _served(session)
    except (OSError, imaplib.IMAP4.error) as error:
        raise ProbeFailed(f"IMAP as {address}: {error}") from None
    finally:
        session.close()


def _served(session: _Session) -> Box:
    box = Box()
    prefix, _ = _namespace(session.imap)
    for name, delimiter, attributes in listed(session.imap.list()[1]):
        if "\\noselect" not in attributes.lower() and "\\nonexistent" not in attributes.lower():
            box.folders[_own(name, prefix, delimiter)] = _fetched(session, name)
    box.subscribed = {_own(name, prefix, delimiter) for name, delimiter, _ in listed(session.imap.lsub()[1])}
    return box


def _namespace(session: imaplib.IMAP4) -> tuple[str, str]:
    """Prefix and delimiter of a person's own folders."""
    match = re.match(rb'\(\("([^"]*)" "([^"]*)"', session.namespace()[1][0] or b"")
    return (match[1].decode(), match[2].decode()) if match else ("", "/")


_LINE = re.compile(rb'\(([^)]*)\) (?:"(.)"|NIL) (?:"((?:[^"\\]|\\.)*)"|(\S+)|\{\d+\})$')


def listed(rows: Iterable[object]) -> Iterator[tuple[str, str, str]]:
    """(name, delimiter, attributes) of each row of LIST or LSUB."""
    for row in rows:
        line, literal = (row[0], row[1]) if isinstance(row, tuple) else (row, None)
        match = _LINE.match(line) if isinstance(line, bytes) else None
        if match:
            name = literal if literal is not None else (match[3] if match[3] is not None else match[4] or b"")
            yield re.sub(r"\\(.)", r"\1", name.decode("ascii", "backslashreplace")), (match[2] or b"/").decode(), match[1].decode()


def _own(name: str, prefix: str, delimiter: str) -> str:
    name = "" if name.upper() == "INBOX" else name.removeprefix(prefix)
    return name.replace(delimiter, "/")


def quoted(name: str) -> str:
    """A folder's name as an argument."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _fetched(session: _Session, name: str) -> Seen:
    uidvalidity, total = session.open(name)
    seen = Seen(uidvalidity)
    flags = dict(_flags_by_uid(session.imap)) if total else {}
    for uid, content in session.bodies(name, sorted(flags)):
        seen.by_uid[uid] = Message("", "", flags[uid]) if content is None else _message(content, flags[uid])
    return seen


def _flags_by_uid(session: imaplib.IMAP4) -> Iterator[tuple[int, frozenset[str]]]:
    for row in session.fetch("1:*", "(UID FLAGS)")[1]:
        line = row[0] if isinstance(row, tuple) else row
        uid, flags = re.search(rb"UID (\d+)", line or b""), re.search(rb"FLAGS \(([^)]*)\)", line or b"")
        if uid is not None and flags is not None:
            yield int(uid[1]), frozenset(flag for flag in flags[1].decode("ascii", "backslashreplace").split() if flag != "\\Recent")
