"""`diff`: two snapshots of the vault compared."""

from __future__ import annotations

from mailbackup.access import Context, use_vault
from mailbackup.model.results import DiffResult, Fetched
from mailbackup.restore.diff import diff


def compare(context: Context, first: str, second: str, what: str | None = None) -> DiffResult:
    """What differs from snapshot `first` to `second`. Needs an identity. Raises NotFound for what neither of them holds."""
    with use_vault(context) as (reader, traffic):
        old, new = reader.snapshot(reader.find(first)), reader.snapshot(reader.find(second))
        found = diff(reader, old, new, what)
        return DiffResult(
            outcome="different" if found.mailboxes or found.sources else "equal", first=old.seq, second=new.seq,
            mailboxes=tuple(found.mailboxes), messages=tuple(found.messages), sources=tuple(found.sources), files=tuple(found.files),
            fetched=Fetched(traffic.requests, traffic.bytes_read),
        )  # fmt: skip
