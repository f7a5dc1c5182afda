"""Looking into snapshots without restoring: mailboxes, messages, one message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mailbackup.errors import DamageError, NotFound
from mailbackup.mail.headers import summary
from mailbackup.mail.maildir import flag_parts, folder_matches, readable_folder
from mailbackup.model.ids import from_name, message_id, show
from mailbackup.model.results import MailboxLine, MessageLine
from mailbackup.model.tree import BlobRef, Folder, MailboxTree, Snapshot
from mailbackup.vault.reader import FoundEntry, VaultReader

_SHOWN_ID = 16  # digits of a message's id that are shown


def mailbox_lines(reader: VaultReader, snapshot: Snapshot) -> list[MailboxLine]:
    """The mailboxes of a snapshot, by address."""
    lines = [
        MailboxLine(address=row.address, location=row.location, key=row.key, messages=row.messages, bytes=row.bytes, stale=row.stale)
        for row, _ in reader.mailboxes(snapshot)
    ]
    return sorted(lines, key=lambda line: (line.address, line.key))


def message_lines(reader: VaultReader, tree: MailboxTree, folder: str | None) -> list[MessageLine]:
    """The messages of a mailbox (of one folder), folder by folder. Reads header blocks only, never bodies."""
    return described(reader, [entry for row in _folders(tree, folder) for entry in reader.messages(tree, row)])


def described(reader: VaultReader, found: Sequence[FoundEntry]) -> list[MessageLine]:
    """A line per message, in the same order. Reads their header blocks."""
    stream = reader.stream(ref for entry in found for ref in _header_refs(entry))
    try:
        return [_line(entry, _headers(entry, stream.blob)) for entry in found]
    finally:
        stream.close()


def message_bytes(reader: VaultReader, tree: MailboxTree, wanted: str) -> bytes:
    """One message, byte for byte. `wanted` is a prefix of its id that fits no other message. Raises NotFound."""
    reader.prefetch(tree)
    hits = [
        entry
        for row in tree.folders
        for entry in reader.messages(tree, row)
        if message_id(entry.folder or b"", entry.name).startswith(wanted)
    ]
    if len(hits) != 1:
        what = "no message" if not hits else f"{len(hits)} messages"
        raise NotFound(f"{tree.address} has {what} whose id begins with {wanted}", hint=f"'mailbackup ls {tree.address}' lists the ids.")
    reader.blocks.prefetch(hits[0].refs)
    return b"".join(reader.blocks.blob(ref) for ref in hits[0].refs)


def _folders(tree: MailboxTree, wanted: str | None) -> Iterator[Folder]:
    chosen = [folder for folder in tree.folders if wanted is None or folder_matches(from_name(folder.name), wanted)]
    if not chosen:
        names = ", ".join(readable_folder(from_name(folder.name)) for folder in tree.folders)
        raise NotFound(f"{tree.address} has no folder {wanted}", hint=f"Its folders: {names}.")
    yield from chosen


def _header_refs(found: FoundEntry) -> tuple[BlobRef, ...]:
    if found.entry.headers:
        return found.refs[: found.entry.headers]
    return () if found.head is None else (found.head,)


def _headers(found: FoundEntry, blob: Callable[[BlobRef], bytes]) -> bytes | None:
    """The header block; None when there is none to read, or it is damaged."""
    refs = _header_refs(found)
    if not refs:
        return None
    try:
        return b"".join(blob(ref) for ref in refs)
    except DamageError:
        return None


def _line(found: FoundEntry, headers: bytes | None) -> MessageLine:
    what = summary(headers or b"")
    place, rest = flag_parts(found.flag) if found.flag is not None else (b"", b"")
    return MessageLine(
        id=message_id(found.folder or b"", found.name)[:_SHOWN_ID],
        folder=readable_folder(found.folder or b""),
        date=what.date,
        from_=what.from_,
        subject=what.subject if headers is not None else "(headers unreadable)",
        message_id=what.message_id,
        size=found.entry.size,
        flags=show(rest.removeprefix(b":2,")) if place == b"c" else "new",
    )
