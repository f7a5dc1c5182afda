"""What may go from a store: pure decisions over what its ledger and its acts say (design section 4.5, rule 6). Nothing here touches a store.

A block that is live at the head is untouchable. A pack goes when all its blocks are dead, no snapshot that is kept (or was dropped a short while ago) is
of the time when one of them lived, the entry that stopped the last of them is older than the grace period by a clock that the writer does not
hold, and a keyed audit has looked at that entry. What cannot be taken back waits for a human where something looks wrong.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from mailbackup.model.ids import Digest, PackId
from mailbackup.model.ledger import ActType
from mailbackup.model.retention import Decision, Moment, Policy, decide, effective_times
from mailbackup.model.tree import Outcome
from mailbackup.upkeep.acts import Book
from mailbackup.upkeep.needs import holds
from mailbackup.upkeep.registry import Registry

SLACK = timedelta(minutes=15)  # that clocks of two machines may differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the administrator decided: the policy, how long everything can be taken back, and when a human has to look."""

    policy: Policy
    grace: timedelta = timedelta(days=7)
    max_share: float = 0.2  # of the live bytes that one run may delete
    audit_age: timedelta = timedelta(days=35)  # of the last keyed audit, while something waits for the next
    silence: timedelta = timedelta(days=7)  # without a new snapshot: then nothing goes


@dataclass(slots=True)
class EntryFacts:
    """An entry as far as pruning needs it. `seen` is when somebody other than its writer says that it existed; None = nobody yet."""

    seq: int
    time: datetime
    seen: datetime | None
    outcome: Outcome | None = None  # of a snapshot
    freeze: str | None = None


@dataclass(slots=True)
class History:
    """What is known of one store. `entries` by number, from 1; `stray` are packs in the store that no entry and no act names, with their times."""

    registry: Registry
    book: Book
    entries: list[EntryFacts]
    head: tuple[int, Digest]
    stray: dict[PackId, datetime] = field(default_factory=dict)
    sizes: dict[PackId, int] | None = None  # of the packs that are in the store; None = as the writer says
    absent: set[int] = field(default_factory=set)  # snapshots whose objects are not in the store: none of them stands for a day

    def audited(self) -> int:
        """The last entry that a keyed audit covered; 0 if there is none."""
        audit = self.book.audit
        return 0 if audit is None or audit.head is None else min(audit.head.seq, self.head[0])


@dataclass(frozen=True, slots=True)
class Guard:
    """A reason why a human has to look first, with the next step. Those that an `ack` may lift are `ackable`."""

    name: str
    detail: str
    hint: str
    ackable: bool = True


@dataclass(slots=True)
class Plan:
    """What a run would do to a store, and why."""

    decisions: list[Decision] = field(default_factory=list)
    drop: list[int] = field(default_factory=list)  # snapshots that are kept no longer; until the grace period ends they can be taken back
    gone: list[int] = field(default_factory=list)  # snapshots that were dropped long ago: their objects are deleted
    packs: list[PackId] = field(default_factory=list)  # to delete
    stray: list[PackId] = field(default_factory=list)  # to delete: interrupted runs left them
    bytes: int = 0  # of `packs`
    waiting: int = 0  # bytes of packs that nothing needs, and that wait for an audit
    held: int = 0  # bytes of dead packs that wait for a grace period, or that a snapshot still needs
    live: int = 0  # bytes of packs with live blocks
    guards: list[Guard] = field(default_factory=list)

    @property
    def deletes(self) -> bool:
        """Whether anything would be gone for good."""
        return bool(self.gone or self.packs or self.stray)


def plan(history: History, rules: Rules, now: datetime, *, remove_last: bool = False) -> Plan:
    """What a run at `now` (the store's clock where it has one) would do. Raises UsageError for a policy that keeps nothing."""
    result = Plan(decisions=decide(rules.policy, _moments(history, now), now, remove_last=remove_last))
    kept = {decision.seq for decision in result.decisions if decision.keep}
    result.drop = [decision.seq for decision in result.decisions if not decision.keep]
    book, recent = history.book, set(result.drop)
    for seq, since in sorted(book.dropped.items()):
        if seq in book.gone:
            continue
        if _passed(since, rules.grace, now):
            result.gone.append(seq)
        else:
            recent.add(seq)
    lost = history.absent - book.not_here - set(book.dropped)  # damage: until somebody decides, what they need stays
    _choose_packs(history, rules, now, sorted(kept | recent | lost), result)
    result.stray = sorted(pack for pack, time in history.stray.items() if _passed(time, rules.grace, now))
    result.guards = list(_guards(history, rules, now, result))
    return result


def _moments(history: History, now: datetime) -> list[Moment]:
    """All snapshots; those that were dropped, and not taken back, count for the times of the others only."""
    book = history.book
    return [
        Moment(e.seq, e.time, e.seen or now, e.outcome, book.pinned.get(e.seq), dropped=e.seq in book.dropped or e.seq in history.absent)
        for e in history.entries
        if e.outcome is not None
    ]


def _passed(since: datetime | None, grace: timedelta, now: datetime) -> bool:
    return since is not None and now - since >= grace


# ---------------------------------------------------------------- packs


def _choose_packs(history: History, rules: Rules, now: datetime, hold: list[int], result: Plan) -> None:
    audited = history.audited()
    missing = given_up(history, "prune", "received-without")
    for pack, life in history.registry.packs.items():
        if pack in missing:
            continue
        size = life.row.size if history.sizes is None else history.sizes.get(pack, 0)
        if not life.is_dead:
            result.live += size
            continue
        if holds(hold, life, history.book.erased.get(pack, ())) or not _passed(history.entries[life.last - 1].seen, rules.grace, now):
            result.held += size
        elif life.last > audited:
            result.waiting += size
        else:
            result.packs.append(pack)
            result.bytes += size


def given_up(history: History, *kinds: ActType) -> set[PackId]:
    """The packs that acts of these kinds name, and that were dead in the ledger that the act rests on.

    One that an act named as a left-over, and that came to the ledger afterwards, is as any other: what an act said of the one says nothing of when the
    other may go.
    """
    found: set[PackId] = set()
    for act, _ in history.book.acts:
        if act.type in kinds and act.head is not None:
            lives = ((part.id, history.registry.packs.get(part.id)) for part in act.packs)
            found |= {pack for pack, life in lives if life is not None and life.is_dead and life.last <= act.head.seq}
    return found


# ---------------------------------------------------------------- guards


def _guards(history: History, rules: Rules, now: datetime, result: Plan) -> Iterable[Guard]:
    if not (result.drop or result.deletes or result.waiting):
        return
    yield from _clock(history, now)
    yield from _silence(history, rules, now)
    yield from _freeze(history)
    yield from _share(history, rules, result)
    yield from _audit(history, rules, now, result)


def _clock(history: History, now: datetime) -> Iterable[Guard]:
    ours = [link.act for link in history.book.acts if link.act.type != "received-without"]  # which a writer may sign, with any time
    if ours and datetime.fromisoformat(ours[-1].time) > now + SLACK:
        last = ours[-1]
        yield Guard("clock", f"it is {now:%Y-%m-%d %H:%M} UTC here, but act {last.seq} is of {last.time}", "Set the clock.", ackable=False)


def _silence(history: History, rules: Rules, now: datetime) -> Iterable[Guard]:
    """When backups have stopped, or a clock went ahead, what is there is all there is."""
    times = effective_times(_moments(history, now))
    if not times:
        return
    newest = times[-1]
    if now - newest > rules.silence and not _acked(history, "silence", history.head[0]):
        yield Guard(
            "silence",
            f"the newest snapshot is of {newest:%Y-%m-%d %H:%M} UTC, {(now - newest).days} days ago",
            "Find out why there is no newer one (or whether this machine's clock is right); if it is as it should be: 'mailbackup ack silence'.",
        )


def _freeze(history: History) -> Iterable[Guard]:
    frozen = [entry for entry in history.entries if entry.freeze is not None and not _acked(history, "freeze", entry.seq)]
    if frozen:
        first = frozen[0]
        yield Guard(
            "freeze",
            f"entry {first.seq} asks for a human: {first.freeze}" + (f" (and {len(frozen) - 1} more)" if len(frozen) > 1 else ""),
            "Look at that snapshot ('mailbackup show', 'mailbackup diff'); if all is well: 'mailbackup ack freeze'.",
        )


def _share(history: History, rules: Rules, result: Plan) -> Iterable[Guard]:
    limit = rules.max_share * result.live
    if result.bytes <= limit or result.bytes <= _acked_bytes(history):
        return
    yield Guard(
        "share",
        f"{result.bytes} bytes would be deleted, {100 * result.bytes / max(1, result.live):.0f} % of the {result.live} bytes that live",
        f"Look at 'mailbackup prune --dry-run'; if it is as it should be: 'mailbackup ack share --bytes {result.bytes}'.",
    )


def _audit(history: History, rules: Rules, now: datetime, result: Plan) -> Iterable[Guard]:
    """Only what an audit has looked at goes; that nothing has been looked at for long is for a human to know."""
    audit = history.book.audit
    if not result.waiting or (audit is not None and not _passed(datetime.fromisoformat(audit.time), rules.audit_age, now)):
        return
    when = "there was no keyed audit yet" if audit is None else f"the last keyed audit is of {audit.time}"
    yield Guard(
        "audit",
        f"{when}, and {result.waiting} bytes wait for one",
        "Where the recovery kit is: 'mailbackup verify --decrypt --identity KIT'. It leaves a signed record when all is well.",
        ackable=False,
    )


def _acked(history: History, guard: str, seq: int) -> bool:
    """Whether a human has looked at everything up to an entry."""
    return any(guard in act.guards and act.head is not None and act.head.seq >= seq for act in history.book.acks)


def _acked_bytes(history: History) -> int:
    """Bytes that a human let go, since the last run that deleted packs."""
    deleted = max((link.act.seq for link in history.book.acts if link.act.type == "prune" and link.act.packs), default=0)
    return max((act.bytes for act in history.book.acks if "share" in act.guards and act.seq > deleted), default=0)
