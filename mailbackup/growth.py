"""How large the stores are and how they grow: the composition behind `stats`."""

from __future__ import annotations

from mailbackup.access import Context, chosen_stores, use_store, use_vault
from mailbackup.errors import StoreError
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.results import MailboxLine, StatsResult, StoreStats
from mailbackup.restore.browse import mailbox_lines
from mailbackup.upkeep.stats import Period, gains, store_stats


def stats(context: Context, *, by: Period = "month", mailboxes: bool = False) -> StatsResult:
    """What each chosen store holds. With `mailboxes` (needs an identity) also those of the newest snapshot, the largest first, and what deduplication gains.

    A store that cannot be reached is a finding; raises its error when there is no other.
    """
    found: list[StoreStats] = []
    findings: list[Finding] = []
    first: StoreError | None = None
    for place in chosen_stores(context):
        try:
            with use_store(context, place.name) as store:
                found.append(store_stats(store, context.anchors_of(place.name), by))
        except StoreError as error:
            first = first or error
            findings.append(Finding(FindingKind.STORE_UNREACHABLE, place.name, error.message))
    if first is not None and not found:
        raise first
    if not mailboxes:
        return StatsResult(stores=tuple(found), findings=tuple(findings))
    seq, rows = _mailboxes(context)
    gained = gains(seq, sum(row.bytes for row in rows), max(found, key=lambda row: row.head))
    return StatsResult(stores=tuple(found), mailboxes=tuple(rows), gains=gained, findings=tuple(findings))


def _mailboxes(context: Context) -> tuple[int, list[MailboxLine]]:
    with use_vault(context) as (reader, _):
        snapshot = reader.snapshot(reader.find("latest"))
        return snapshot.seq, sorted(mailbox_lines(reader, snapshot), key=lambda row: (-row.bytes, row.address))
