"""Answers of `mailbackup.app` as a stand-in gives them, for tests of what the command line makes of them."""

from __future__ import annotations

from typing import Any

from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.results import (
    BackupResult,
    Fetched,
    InitResult,
    MailboxLine,
    MessageLine,
    PlanLine,
    RebuildResult,
    RestoreResult,
    SnapshotRow,
    StoreOutcome,
    VerifyResult,
)
from mailbackup.model.tree import Root, Snapshot, SourceCount


def changed(record: Any, **members: Any) -> Any:
    """The record with other members."""
    return type(record)(**{name: getattr(record, name) for name in record.__struct_fields__} | members)


UNREADABLE = Finding(FindingKind.UNREADABLE, "/var/vmail/x", "permission denied")
EXPUNGED = Finding(FindingKind.EXPUNGED, "user@example.org", snapshots=(3,))
BACKUP = BackupResult(
    seq=3,
    outcome="complete",
    mailboxes=2,
    messages=1204,
    new_messages=7,
    files=1,
    bytes_read=2048,
    bytes_stored=1536,
    requests=4,
    seconds=0.25,
    stores=(StoreOutcome(name="local", outcome="current", head=3, before=2, missing=0, requests=9, bytes_read=700, bytes_written=4096),),
    findings=(),
)
AWAY = StoreOutcome(
    name="off", outcome="behind", head=1, before=1, missing=2, requests=1, bytes_read=0, bytes_written=0, detail="away", hint="wait"
)
RESTORE = RestoreResult(
    outcome="complete", seq=3, messages=5, files=2, bytes=700, kept=1, fetched=Fetched(3, 900), seconds=1.5, findings=()
)
PLANNED = RestoreResult(
    outcome="planned",
    seq=3,
    messages=1,
    files=0,
    bytes=70,
    kept=0,
    fetched=Fetched(0, 0),
    seconds=0.1,
    findings=(),
    plan=(PlanLine("write", "cur/1.a:2,S"), PlanLine("keep", "cur/2.b:2,", "same content")),
)
VERIFY = VerifyResult(outcome="clean", decrypted=False, objects=9, bytes=4096, blobs=0, seconds=0.5, findings=())
SNAPSHOT = Snapshot(
    format=1,
    vault="1" * 32,
    seq=3,
    time="2026-01-02T03:04:05Z",
    host="mx1",
    tool="mailbackup 0.1.0",
    outcome="explained",
    root=Root(blocks=(), directories=(), mailboxes=()),
    sources=(SourceCount(name="vmail", kind="mail", mailboxes=2, messages=1204, bytes=2048),),
    findings=(EXPUNGED,),
)
ROWS = [
    SnapshotRow(seq=1, time="2026-01-01T02:30:00Z", messages=None, bytes=None, outcome="complete", stores=("local",)),
    SnapshotRow(seq=3, time="2026-01-02T02:30:00Z", messages=1204, bytes=2048, outcome="incomplete", stores=("local", "far")),
]
MAILBOXES = [
    MailboxLine(address="user@example.org", location="vmail", key="vmail:example.org/user", messages=1204, bytes=2048, stale=False),
    MailboxLine(address="other@example.org", location="vmail", key="vmail:example.org/other", messages=1, bytes=1, stale=True),
]
MESSAGES = [
    MessageLine(
        id="3f2a" * 16,
        folder="",
        date="2026-01-01T10:00:00+01:00",
        from_="a@example.net",
        subject="naïve",
        message_id="<1@x>",
        size=70,
        flags="S",
    ),
    MessageLine(id="77aa" * 16, folder="Sent", date=None, from_="", subject="", message_id="", size=0, flags=""),
]

ANSWERS: dict[str, Any] = {
    "init": InitResult(config="/c.toml", recipient="age1x", signer="3" * 64, vault="1" * 32, kit="/kit.txt"),
    "backup": BACKUP,
    "snapshots": ROWS,
    "mailboxes": MAILBOXES,
    "messages": MESSAGES,
    "show_snapshot": SNAPSHOT,
    "show_message": b"Subject: x\r\n\r\n\xff\x00body",
    "restore_mailbox": RESTORE,
    "restore_files": RESTORE,
    "verify": VERIFY,
    "state_rebuild": RebuildResult(seq=3, mailboxes=2, messages=1204, seconds=0.1),
    "write_kit": None,
}
"""Function of `app` → what its stand-in returns."""

COMMANDS: dict[str, tuple[str, ...]] = {
    "init": ("init", "--yes", "--mail", "/v/{domain}/{user}", "--kit-out", "kit.txt", "--no-passphrase"),
    "backup": ("backup",),
    "snapshots": ("snapshots",),
    "mailboxes": ("ls",),
    "messages": ("ls", "user@example.org/Sent"),
    "show_snapshot": ("show", "3"),
    "show_message": ("show", "user@example.org", "3f2a"),
    "restore_mailbox": ("restore", "mailbox", "user@example.org", "--to", "out"),
    "restore_files": ("restore", "files", "/etc/postfix", "--to", "out"),
    "verify": ("verify",),
    "state_rebuild": ("state", "rebuild"),
    "write_kit": ("key", "kit", "--out", "kit.txt", "--no-passphrase"),
}
"""Function of `app` → a command line that calls it."""
