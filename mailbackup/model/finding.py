"""Findings: what a run, a check or a restore has to say, as named values."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from mailbackup.model.codec import Record


class FindingKind(StrEnum):
    """The name of a finding. Scripts depend on these words."""

    # capture, harmless: the snapshot is `explained`
    EXPUNGED = "expunged"  # deleted by its owner while the run was looking
    SOCKET_SKIPPED = "socket-skipped"
    ADDRESS_SHARED = "address-shared"  # two mailboxes have one address
    STATE_OLD = "state-older-than-vault"
    STATE_NEW = "state-lost"
    HEALED = "healed"  # blocks were missing or damaged in the store and are sent again
    OTHER_FILE_SYSTEM = "other-file-system"
    CACHE_SKIPPED = "cache-skipped"  # directories tagged as caches are kept without their content
    ORPHANED = "orphaned"  # a mailbox that belongs to no account
    CONFIG_DOUBT = "configuration-doubtful"  # of a mail program: it was captured as it is
    ANOMALY = "anomaly"  # so much mail is gone or changed that pruning waits for a human
    MAILBOX_SHRANK = "mailbox-shrank"  # most of one mailbox was deleted
    # capture, harmful: the snapshot is `incomplete`
    UNREADABLE = "unreadable"
    LOST = "lost"  # seen, but never captured
    CHANGED = "changed-while-read"
    SHRUNK = "shrunk"  # the fall guard kept the previous state of a source
    SOURCE_MISSING = "source-missing"
    MAILBOX_MISSING = "mailbox-missing"
    DUMP_FAILED = "dump-failed"
    SYSTEM_UNREADABLE = "system-unreadable"  # a mail program that is there, but could not be asked
    ACCOUNT_UNCOVERED = "account-uncovered"  # an account whose mailbox no source holds
    HOOK_FAILED = "hook-failed"  # what it was to prepare may be missing
    # jobs
    PING_FAILED = "ping-failed"  # whoever waits for it will notice
    # doctor
    SECRET_DOUBT = "secret-doubtful"  # a key or certificate that would keep mail from working  # noqa: S105
    # checks
    OBJECT_MISSING = "object-missing"
    OBJECT_DAMAGED = "object-damaged"
    OBJECT_MALFORMED = "key-malformed"  # a key that the format does not know
    OBJECT_UNKNOWN = "object-unregistered"  # well-formed, named by no entry: information
    BLOCK_DAMAGED = "block-damaged"
    PRUNE_UNFINISHED = "prune-unfinished"  # an act gave it up, and it is still there: the next prune removes it
    ACT_WRONG = "act-wrong"  # an act gives up what is still needed
    LOCK_ENDS = "lock-ends"  # objects that must stay can soon be removed, or could for some time
    LOCK_UNKNOWN = "lock-unknown"  # these credentials may not ask how long objects are locked
    CHAIN_BROKEN = "chain-broken"
    RECORD_INVALID = "record-invalid"
    BLOB_MISMATCH = "blob-mismatch"  # opens, but is not what its id says
    NOT_LIVE = "reference-not-live"  # a tree refers to a block that the ledger does not hold live
    COUNT_MISMATCH = "count-mismatch"
    # restore
    OWNER_KEPT = "owner-not-restored"
    ATTRIBUTE_KEPT = "attribute-not-restored"
    NAME_REFUSED = "name-refused"
    NOT_RESTORED = "not-restored"
    EXISTS = "exists"
    # stores
    OTHER_STORE = "read-from-elsewhere"  # an object was damaged or missing, and whole in another store
    REPLACED = "replaced-or-hidden"  # somebody put another object in front of one, or deleted it; an older version was read
    STORE_UNREACHABLE = "store-unreachable"  # one of several
    STORE_BEHIND = "store-behind"  # it lacks snapshots that another store has
    # drills
    NOT_RECORDED = "not-recorded"  # a drill was done, but its result could not be put into the store


HARMLESS = frozenset(
    {
        FindingKind.EXPUNGED,
        FindingKind.SOCKET_SKIPPED,
        FindingKind.ADDRESS_SHARED,
        FindingKind.STATE_OLD,
        FindingKind.STATE_NEW,
        FindingKind.HEALED,
        FindingKind.OTHER_FILE_SYSTEM,
        FindingKind.CACHE_SKIPPED,
        FindingKind.ORPHANED,
        FindingKind.CONFIG_DOUBT,
        FindingKind.ANOMALY,
        FindingKind.MAILBOX_SHRANK,
        FindingKind.OBJECT_UNKNOWN,
        FindingKind.PRUNE_UNFINISHED,
        FindingKind.LOCK_UNKNOWN,
        FindingKind.OWNER_KEPT,
        FindingKind.ATTRIBUTE_KEPT,
        FindingKind.EXISTS,
        FindingKind.OTHER_STORE,
        FindingKind.STORE_UNREACHABLE,
    }
)
"""Findings that need no action: they do not make a snapshot incomplete, nor a check red."""


class Finding(Record, frozen=True):
    """A named result: what kind, of what, and the detail for a person."""

    kind: FindingKind
    subject: str
    detail: str = ""
    snapshots: tuple[int, ...] = ()

    @property
    def harmless(self) -> bool:
        """Whether this finding needs no action."""
        return self.kind in HARMLESS


def outcome_of(findings: list[Finding]) -> Literal["complete", "explained", "incomplete"]:
    """What the findings of a run make of its snapshot."""
    if not findings:
        return "complete"
    return "explained" if all(finding.harmless for finding in findings) else "incomplete"
