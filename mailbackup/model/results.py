"""What commands answer. The members are the fields of `--json` (docs/reference/), so they are interface."""

from __future__ import annotations

from typing import Literal

from mailbackup.model.codec import Record
from mailbackup.model.finding import Finding
from mailbackup.model.ids import PublicKey, VaultId
from mailbackup.model.job import PartOutcome
from mailbackup.model.ledger import Role
from mailbackup.model.system import Inventory, Probe, ServerStep
from mailbackup.model.tree import Outcome


class InitResult(Record, frozen=True, kw_only=True):
    """`init`: where the configuration and the kit lie, the recovery recipient, the host's writer key and the vault id."""

    config: str
    recipient: str
    signer: PublicKey
    vault: VaultId
    kit: str


class StoreOutcome(Record, frozen=True, kw_only=True):
    """One store after a run: `current` holds everything, `behind` lacks the last `missing` entries, `failed` for the reason in `detail`.

    `head` is its last entry now, `before` that at the beginning. A listing counts as one request, however many pages it takes.
    """

    name: str
    outcome: Literal["current", "behind", "failed"]
    head: int
    before: int
    missing: int
    requests: int
    bytes_read: int
    bytes_written: int
    detail: str = ""
    hint: str = ""


class BackupResult(Record, frozen=True, kw_only=True):
    """`backup`. `bytes_read` were read from sources, `bytes_stored` of packs made; `requests` to all stores together."""

    seq: int
    outcome: Outcome
    mailboxes: int
    messages: int
    new_messages: int
    files: int
    bytes_read: int
    bytes_stored: int
    requests: int
    seconds: float
    stores: tuple[StoreOutcome, ...]
    findings: tuple[Finding, ...]


class CopyResult(Record, frozen=True, kw_only=True):
    """`copy`. `head` is the target's last entry now; `left_out` packs are in no source any more, and nothing needs them."""

    source: str
    target: str
    head: int
    copied_objects: int
    copied_bytes: int
    left_out: int
    requests: int
    seconds: float


class SnapshotRow(Record, frozen=True, kw_only=True):
    """A line of `snapshots`. Counts are None where the state does not know them; `stores` that hold it by name.

    In `dropped` ones it is kept no longer, and deleted when its grace period ends. `pinned`: why somebody keeps it; None = nobody does.
    """

    seq: int
    time: str
    messages: int | None
    bytes: int | None
    outcome: Outcome
    stores: tuple[str, ...]
    dropped: tuple[str, ...] = ()
    pinned: str | None = None


class MailboxLine(Record, frozen=True, kw_only=True):
    """A line of `ls` without an address."""

    address: str
    location: str
    key: str
    messages: int
    bytes: int
    stale: bool


class MessageLine(Record, frozen=True, kw_only=True):
    """A line of `ls ADDRESS`. `size` in bytes, `date` as the mail says it (ISO) or None."""

    id: str
    folder: str
    date: str | None
    from_: str
    subject: str
    message_id: str
    size: int
    flags: str


class Fetched(Record, frozen=True):
    """What a command read from the store."""

    requests: int
    bytes: int


class PlanLine(Record, frozen=True):
    """One thing a restore would do: `write`, `keep` (already whole), `skip`, `mkdir`, `link`."""

    action: str
    path: str
    detail: str = ""


class RestoreResult(Record, frozen=True, kw_only=True):
    """`restore …`. `outcome` is complete, incomplete (some things are not restored) or planned (--dry-run)."""

    outcome: Literal["complete", "incomplete", "planned"]
    seq: int
    messages: int
    files: int
    bytes: int
    kept: int
    fetched: Fetched
    seconds: float
    findings: tuple[Finding, ...]
    plan: tuple[PlanLine, ...] = ()


class ScrubRound(Record, frozen=True, kw_only=True):
    """How far the round of a store is: `bytes` of `whole` were read, a round takes `runs` like that. `last` is when one ended, "" = none yet."""

    store: str
    bytes: int
    whole: int
    runs: int | None
    since: str
    last: str


class VerifyResult(Record, frozen=True, kw_only=True):
    """`verify`. `objects` and `bytes` were read and checked; `decrypted` tells whether contents were opened.

    By store: `rounds` of a check with a budget, `acts` that say what is damaged, `audits` that record a sound vault; `unrecorded` = why there is no audit.
    """

    outcome: Literal["clean", "damaged"]
    decrypted: bool
    objects: int
    bytes: int
    blobs: int
    seconds: float
    findings: tuple[Finding, ...]
    rounds: tuple[ScrubRound, ...] = ()
    acts: dict[str, int] = {}
    audits: dict[str, int] = {}
    unrecorded: str = ""


class RebuildResult(Record, frozen=True, kw_only=True):
    """`state rebuild`."""

    seq: int
    mailboxes: int
    messages: int
    seconds: float


class JobPart(Record, frozen=True, kw_only=True):
    """A part of a job that ran, failed or was skipped, and in `detail` what came of it."""

    name: str
    outcome: PartOutcome
    exit_status: int
    seconds: float
    detail: str


class Head(Record, frozen=True, kw_only=True):
    """The head of the ledger."""

    seq: int
    sha256: str


class JobResult(Record, frozen=True, kw_only=True):
    """`job run`. `seq` of the snapshot that it made, `head` of the ledger afterwards; `exit_status` is that of the worst part."""

    job: str
    outcome: Literal["done", "incomplete", "failed"]
    exit_status: int
    parts: tuple[JobPart, ...]
    seq: int | None
    head: Head | None
    seconds: float
    findings: tuple[Finding, ...]


class SeenAge(Record, frozen=True, kw_only=True):
    """A snapshot and its age in seconds; `by` is what proved it ("read-back", "drill", or empty)."""

    seq: int
    time: str
    age_s: int
    by: str = ""


class Fact(Record, frozen=True, kw_only=True):
    """One thing that `status` knows. `good` false = somebody should look."""

    name: str
    good: bool
    text: str


class StatusResult(Record, frozen=True, kw_only=True):
    """`status`. `outcome` good, or late: there is no good snapshot, or it is too old."""

    outcome: Literal["good", "late"]
    newest_good: SeenAge | None
    newest_proven: SeenAge | None
    facts: tuple[Fact, ...]


class SystemRow(Record, frozen=True, kw_only=True):
    """A line of `systems list`. `error` says why a system that is there could not be asked; its counts are then 0."""

    name: str
    version: str
    used: bool
    paths: int
    dumps: int
    findings: int
    error: str = ""


class SystemsResult(Record, frozen=True, kw_only=True):
    """`systems list`. `configured` is false where the configuration saves no systems; all that are found are listed then."""

    configured: bool
    systems: tuple[SystemRow, ...]
    findings: tuple[Finding, ...]


class SystemResult(Record, frozen=True, kw_only=True):
    """`systems show`: all that one system contributes to a snapshot, how it comes back, and what proves it."""

    inventory: Inventory
    steps: tuple[ServerStep, ...]
    probes: tuple[Probe, ...]


class ExplainRow(Record, frozen=True, kw_only=True):
    """What one source makes of a path."""

    source: str
    saved: bool
    why: str


class ExplainResult(Record, frozen=True, kw_only=True):
    """`systems explain`. `outcome`: saved · partly (a directory that holds things which are saved) · left-out (by a rule) · not-covered (by no source)."""

    outcome: Literal["saved", "partly", "left-out", "not-covered"]
    path: str
    exists: bool
    rows: tuple[ExplainRow, ...]
    advice: str = ""


class Check(Record, frozen=True, kw_only=True):
    """One thing that `doctor` looked at. `next` is what to do about it; empty when it is ok."""

    name: str
    level: Literal["ok", "warning", "problem"]
    text: str
    next: str = ""


class DoctorResult(Record, frozen=True, kw_only=True):
    """`doctor`. `problems`: something keeps backups from working. `next` is the one thing to do first."""

    outcome: Literal["ready", "warnings", "problems"]
    checks: tuple[Check, ...]
    next: str


class DiffMailbox(Record, frozen=True, kw_only=True):
    """How a mailbox differs: it is new, gone, or so many of its messages were added, removed, moved to another folder, or got other flags."""

    address: str
    key: str
    change: Literal["added", "removed", "changed"]
    added: int
    removed: int
    moved: int
    flags: int


class DiffMessage(Record, frozen=True, kw_only=True):
    """A message that differs. `detail` says from which folder it came, or how its flags changed."""

    change: Literal["added", "removed", "moved", "flags"]
    id: str
    folder: str
    subject: str
    detail: str = ""


class DiffSource(Record, frozen=True, kw_only=True):
    """How many files of a directory, a system or the dumps differ."""

    name: str
    added: int
    removed: int
    changed: int


class DiffFile(Record, frozen=True, kw_only=True):
    """A file that differs; `what` of content, size, mode, owner, time, type, target, attributes."""

    path: str
    change: Literal["added", "removed", "changed"]
    what: tuple[str, ...] = ()


class DiffResult(Record, frozen=True, kw_only=True):
    """`diff`, from snapshot `first` to `second`. `messages` are listed for one ADDRESS, `files` for a PATH and of the dumps; `fetched` is what it read."""

    outcome: Literal["equal", "different"]
    first: int
    second: int
    mailboxes: tuple[DiffMailbox, ...]
    messages: tuple[DiffMessage, ...]
    sources: tuple[DiffSource, ...]
    files: tuple[DiffFile, ...]
    fetched: Fetched


class SnapshotReason(Record, frozen=True, kw_only=True):
    """What becomes of one snapshot in one store, and why."""

    store: str
    seq: int
    time: str
    keep: bool
    reasons: tuple[str, ...]


class PrunedStore(Record, frozen=True, kw_only=True):
    """One store after (or, planned, before) pruning. Sizes in bytes.

    `dropped` snapshots can be taken back until the grace period ends; `gone` ones cannot. `waiting` bytes wait for a keyed audit, `held` ones for a grace
    period or are needed by a snapshot that is kept. `locked` objects are tried again by each run; `extended` locks
    of what must stay were made longer, of `unlocked` objects they could not be. `guards` are what a human has to look at first.
    """

    name: str
    outcome: Literal["pruned", "planned", "refused", "failed"]
    exit_status: int = 0
    kept: int = 0
    dropped: tuple[int, ...] = ()
    gone: tuple[int, ...] = ()
    packs: int = 0
    deleted: int = 0
    freed_bytes: int = 0
    locked: int = 0
    extended: int = 0
    unlocked: int = 0
    waiting: int = 0
    held: int = 0
    live: int = 0
    guards: tuple[str, ...] = ()
    detail: str = ""
    hint: str = ""


class PruneResult(Record, frozen=True, kw_only=True):
    """`prune`: `kept` and `removed` snapshots (that are dropped from now on), and bytes that were freed, over all stores."""

    outcome: Literal["pruned", "planned", "refused", "failed"]
    kept: int
    removed: int
    freed_bytes: int
    seconds: float
    reasons: tuple[SnapshotReason, ...] = ()
    stores: tuple[PrunedStore, ...] = ()

    @property
    def exit_status(self) -> int:
        """That of the store with which most is wrong."""
        found = {store.exit_status for store in self.stores}
        return next((status for status in (4, 6, 7, 8, 5) if status in found), 0)


class ActResult(Record, frozen=True, kw_only=True):
    """`pin`, `undelete`, `ack`: the number of the act in each store that took it, and why those `without` did not."""

    acts: dict[str, int]
    without: dict[str, str] = {}
    snapshots: tuple[int, ...] = ()
    guards: tuple[str, ...] = ()


class GrowthRow(Record, frozen=True, kw_only=True):
    """What a period (`2026-11-24`, `2026-W48` or `2026-11`, UTC, by the writer's clock) added to a store, in bytes of packs.

    `freed` is what acts of the period let be deleted; `total` is what the store held in packs at its end.
    """

    period: str
    snapshots: int
    packs: int
    added: int
    freed: int
    total: int


class StoreStats(Record, frozen=True, kw_only=True):
    """What the ledger and the acts say of a store; nothing was counted in the store itself.

    `bytes` of `packs` are there: `live` ones, with a block that the newest snapshot needs or may need, and `dead` ones, which older snapshots
    need or which wait for `prune`. Of the `blocks` in live packs `stopped` ones are needed by older snapshots at most. `freed` were deleted, `absent`
    never came.
    `records` are bytes of the ledger, its lists and the snapshot objects, `dropped` snapshots are not kept any more.
    """

    name: str
    head: int
    snapshots: int
    dropped: int
    pinned: int
    acts: int
    packs: int
    bytes: int
    live: int
    blocks: int
    stopped: int
    dead: int
    freed: int
    absent: int
    records: int
    growth: tuple[GrowthRow, ...]


class Gains(Record, frozen=True, kw_only=True):
    """What deduplication and compression gain: `bytes` of snapshot `seq` as its owners see them, for each byte that lives in the store."""

    seq: int
    bytes: int
    live: int
    ratio: float | None


class StatsResult(Record, frozen=True, kw_only=True):
    """`stats`. `mailboxes` (the largest first) and `gains` of the newest snapshot, with `--mailboxes`."""

    stores: tuple[StoreStats, ...]
    mailboxes: tuple[MailboxLine, ...] = ()
    gains: Gains | None = None
    findings: tuple[Finding, ...] = ()


class SignerRow(Record, frozen=True, kw_only=True):
    """A key that the admin named, the entry that did, and the one that dismissed it, if one did."""

    role: Role
    key: PublicKey
    since: int
    time: str
    until: int | None


class TrustResult(Record, frozen=True, kw_only=True):
    """`vault trust add`, `vault trust revoke`: the new entry (None: nothing had to change), the stores that have it, and why the others lack it."""

    role: Role
    key: PublicKey
    seq: int | None
    stores: tuple[str, ...]
    without: dict[str, str]


class AdoptResult(Record, frozen=True, kw_only=True):
    """`vault adopt`: this host's writer key, those that were dismissed, the entry that says so (None: it was the writer already), and as `TrustResult`.

    `state`: whether the state has to be made anew, or everything is sent once more.
    """

    writer: PublicKey
    dismissed: tuple[PublicKey, ...]
    seq: int | None
    stores: tuple[str, ...]
    without: dict[str, str]
    state: bool


class RewrapResult(Record, frozen=True, kw_only=True):
    """`key rewrap`: epochs whose key was sealed anew, those for which that had been done, and those that this kit does not open; and as `TrustResult`."""

    rewrapped: tuple[int, ...]
    already: tuple[int, ...]
    unopened: tuple[int, ...]
    seq: int | None
    stores: tuple[str, ...]
    without: dict[str, str]
