"""Bringing a restored mailbox into the running Dovecot: as new folders below `Recovered/<date>`, with nothing touched that is there.

`doveadm import` copies into a living mailbox and gives new UIDs, so no client mistakes a message for one it knows. It is not idempotent (each run
adds everything once more), hence a parent folder of its own for every restore. Its exit status proves nothing, so everything is looked at again
over IMAP. `doveadm backup -R`, which would keep the UIDs, empties a mailbox that has moved on, and is not used.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from mailbackup import app
from mailbackup.access import Context
from mailbackup.errors import Interrupted, NoSpace, UsageError
from mailbackup.host import free_bytes, run_lock, scratch_directory, translated
from mailbackup.model.account import Account
from mailbackup.model.codec import Record
from mailbackup.model.events import OnEvent, Phase
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.results import Fetched, PlanLine
from mailbackup.restore.stream import Nowhere
from mailbackup.restore.target import Target
from mailbackup.server.dovecot import Dovecot, Status
from mailbackup.server.session import Mail, Session
from mailbackup.server.staged import compare, folders_of, narrow, read, take_over
from mailbackup.stores.local_room import reserve_of

STAGING = "/var/tmp"  # noqa: S108  its directories are made private, and no pattern of mailboxes looks here
PREFIX = "mailbackup-live-"
LOCKS = "/run/mailbackup"
PARENT = "Recovered"
_FILE = 4096  # bytes of the disk that a small file takes at least
_LIMIT, _BYTES_A_SECOND, _MESSAGES_A_SECOND = 120, 1 << 20, 50  # of the slowest disk that is waited for


class LiveMailbox(Record, frozen=True, kw_only=True):
    """One mailbox in a `LiveResult`: what lies below the new folder `into` (as users see its name), in how many folders."""

    address: str
    into: str
    folders: int
    messages: int
    bytes: int


class LiveResult(Record, frozen=True, kw_only=True):
    """`restore mailbox … --to live`. Members as in RestoreResult; `phases` in seconds."""

    outcome: Literal["complete", "incomplete", "planned"]
    seq: int
    messages: int
    bytes: int
    fetched: Fetched
    seconds: float
    findings: tuple[Finding, ...]
    mailboxes: tuple[LiveMailbox, ...]
    phases: dict[str, float]
    files: int = 0
    kept: int = 0
    plan: tuple[PlanLine, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """Which mailbox: its address or key as `name`, the account of another name as `user`, and what of it."""

    name: str
    user: str | None = None
    folder: str | None = None
    at: str = "latest"
    location: str | None = None
    dry_run: bool = False


@dataclass(slots=True)
class Phases:
    """How long each phase took, in seconds."""

    on_event: OnEvent
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """A phase, which lasts as long as the body."""
        self.on_event(Phase(name))
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - began, 3)


# ---------------------------------------------------------------- from a vault


def restore_live(context: Context, wish: Wish) -> LiveResult:
    """Restore a mailbox into the Dovecot of this machine. Needs an identity, and root.

    Raises UsageError without Dovecot, NotFound for an unknown account, StoreUnavailable when Dovecot does not answer, SafetyRefusal when the quota
    or the disk has no room: then nothing was changed.
    """
    began = time.monotonic()
    phases = Phases(context.on_event)
    with phases("asking Dovecot"):
        box = Mailbox(wish.user or wish.name, phases)
    with ExitStack() as stack:
        maildir = None if wish.dry_run else stack.enter_context(staging())
        with phases("planning"):
            target = Nowhere() if maildir is None else Target(maildir)
            planned = stack.enter_context(
                app.planned_mailbox(context, wish.name, target, folder=wish.folder, at=wish.at, location=wish.location)
            )
            narrow(planned.plan)
            box.check_room(planned.plan.bytes, planned.plan.messages)
        if maildir is None:
            return _planned(planned, box, phases)
        with phases("fetching"):
            done = planned.run()
        put, findings = box.put(maildir)
    findings = [*done.findings, *findings]
    return LiveResult(
        outcome=outcome_of(findings), seq=done.seq, messages=put.messages, bytes=done.bytes, fetched=done.fetched,
        seconds=round(time.monotonic() - began, 3), findings=tuple(findings), mailboxes=(put,), phases=phases.seconds,
    )  # fmt: skip


def check_accounts(users: list[str]) -> None:
    """Before anything is restored: raises as `restore_live` does when one of them is unknown."""
    for user in users:
        Dovecot(user).account()


def _planned(planned: app.PlannedMailbox, box: Mailbox, phases: Phases) -> LiveResult:
    result = planned.run(dry_run=True)
    into, folders, lines = box.free_parent(), folders_of(planned.plan), (*result.plan, *box.quota_lines())
    mailbox = LiveMailbox(address=box.user, into=into, folders=folders, messages=result.messages, bytes=result.bytes)
    return LiveResult(
        outcome="planned", seq=result.seq, messages=result.messages, bytes=result.bytes, fetched=result.fetched, seconds=result.seconds,
        findings=result.findings, mailboxes=(mailbox,), phases=phases.seconds, plan=lines,
    )  # fmt: skip


@contextmanager
def staging() -> Iterator[str]:
    """A place for a Maildir that the mailbox's user can reach, and nobody else can list."""
    with scratch_directory(STAGING, PREFIX) as top:
        with translated(f"prepare {top}"):
            os.chmod(top, 0o711)  # noqa: S103  to be passed through
        yield os.path.join(top, "Maildir")


# ---------------------------------------------------------------- into the mailbox


class Mailbox:
    """A mailbox of the running Dovecot. `Mailbox(user, phases)` asks whether it can be restored into, as `restore_live` says."""

    def __init__(self, user: str, phases: Phases) -> None:
        if os.geteuid() != 0:
            raise UsageError(
                "only root can put mail into the mailboxes of others", hint="Run this as root on the mail server, or restore --to DIR."
            )
        self.user = user
        self._phases = phases
        self._dovecot = Dovecot(user)
        self._account = self._dovecot.account()
        self._ids = _ids(self._account)
        self.quotas = self._dovecot.quotas()
        with Session(user, _LIMIT) as session:
            self._prefix, self._separator = session.namespace()

    def check_room(self, size: int, messages: int) -> None:
        """Raises SafetyRefusal when `size` bytes in so many messages do not fit the quota, NoSpace when they do not fit the disk."""
        for quota in self.quotas:
            quota.room(size, messages)
        needed: Counter[int] = Counter()
        places = {os.stat(path).st_dev: path for path in (STAGING, self._existing())}
        for path in (STAGING, self._existing()):
            needed[os.stat(path).st_dev] += size + messages * _FILE
        for device, path in places.items():
            check_disk(path, needed[device])

    def quota_lines(self) -> tuple[PlanLine, ...]:
        """The quotas, for a plan."""
        return tuple(PlanLine("quota", quota.name, f"{quota.kind}: {quota.value} of {quota.limit} used") for quota in self.quotas)

    def _existing(self) -> str:
        """The nearest existing directory to the mailbox."""
        path = self._account.path or self._account.home or "/"
        while not os.path.isdir(path):
            path = os.path.dirname(path) or "/"
        return path

    def free_parent(self) -> str:
        """A name for the new parent folder that no folder has, nor begins with."""
        taken = self._dovecot.folders()
        wanted = f"{self._prefix}{PARENT}{self._separator}{time.strftime('%Y-%m-%d')}"
        name, number = wanted, 2
        while any(folder == name or folder.startswith(name + self._separator) for folder in taken):
            name, number = f"{wanted}-{number}", number + 1
        return name

    def put(self, maildir: str) -> tuple[LiveMailbox, list[Finding]]:
        """Bring in a Maildir that is complete, and prove it. Nothing but new folders is written; what was proven wrong are findings."""
        with self._phases("preparing"), translated(f"prepare {maildir}"):
            os.makedirs(maildir, mode=0o700, exist_ok=True)
            take_over(maildir, *self._ids)
            staged = read(maildir)
        for quota in self.quotas:  # now the size is known as Dovecot will count it
            quota.room(staged.size, staged.messages)
        limit = _LIMIT + staged.size / _BYTES_A_SECOND + staged.messages / _MESSAGES_A_SECOND
        with self._alone():
            with self._phases("looking"):
                before = self._dovecot.statuses()
                parent = self.free_parent()
            with self._phases("importing"):
                failed = self._bring_in(f"maildir:{maildir}{staged.location}", parent, limit)
            with self._phases("proving"):
                live = self._live(parent, limit)
                findings = compare(staged, live, parent)
                findings += changed(before, self._dovecot.statuses())
        if failed and findings:
            findings.insert(0, Finding(FindingKind.NOT_RESTORED, parent, f"the import broke off: {failed}; the folder may be deleted"))
        messages = sum(mails.total() for mails in live)
        return LiveMailbox(address=self.user, into=parent, folders=len(live), messages=messages, bytes=staged.size), findings

    def _bring_in(self, location: str, parent: str, limit: float) -> str:
        try:
            return self._dovecot.bring_in(location, parent, limit)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted: {parent} of {self.user} may hold a part of the mailbox", hint="Delete that folder and run again."
            ) from None

    def _live(self, parent: str, limit: float) -> list[Counter[Mail]]:
        with Session(self.user, limit) as session:
            return [Counter(session.mails(folder)) for folder in session.folders(parent, self._separator)]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two restores at one time into one mailbox would choose the same parent."""
        with translated(f"make {LOCKS}"):
            os.makedirs(LOCKS, mode=0o700, exist_ok=True)
        name = hashlib.sha256(self.user.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        with run_lock(os.path.join(LOCKS, f"live-{name}.lock")):
            yield


def changed(before: dict[str, Status], after: dict[str, Status]) -> list[Finding]:
    """What happened to folders that were there before. More messages are new mail, and no finding."""
    findings = []
    for name, old in before.items():
        new = after.get(name)
        if new is None:
            findings.append(Finding(FindingKind.COUNT_MISMATCH, name, "this folder was there before the restore, and is not any more"))
        elif new.uidvalidity != old.uidvalidity:
            detail = f"UIDVALIDITY was {old.uidvalidity} before the restore and is {new.uidvalidity}"
            findings.append(Finding(FindingKind.COUNT_MISMATCH, name, detail))
        elif new.messages < old.messages or new.uidnext < old.uidnext:
            detail = f"{old.messages} messages before the restore, {new.messages} after it (next UID {old.uidnext}, {new.uidnext})"
            findings.append(Finding(FindingKind.COUNT_MISMATCH, name, detail))
    return findings


def _ids(account: Account) -> tuple[int, int]:
    if not (account.uid.isdigit() and account.gid.isdigit()):
        raise UsageError(
            f"Dovecot does not say which user owns the mailbox of {account.name} (uid and gid)",
            hint="'doveadm user ADDRESS' must show them: see mail_uid and mail_gid in its configuration.",
        )
    return int(account.uid), int(account.gid)


def check_disk(path: str, needed: int) -> None:
    """Raises NoSpace when writing `needed` bytes on the file system of `path` would use its reserve."""
    free, total = free_bytes(path)
    reserve = reserve_of(total)
    if total and free - reserve < needed:
        raise NoSpace(
            f"{path} has {free >> 20} MiB free, of which {reserve >> 20} MiB are kept in reserve: {-(-needed >> 20)} MiB more would use them",
            hint="Free space on this file system, or restore only one --folder. Nothing was changed.",
        )


def outcome_of(findings: list[Finding]) -> Literal["complete", "incomplete"]:
    """Whether everything is in place."""
    return "complete" if all(finding.harmless for finding in findings) else "incomplete"


def summed(results: list[LiveResult]) -> LiveResult:
    """Several restores as one."""
    first = results[0]
    outcomes = {result.outcome for result in results}
    phases: Counter[str] = Counter()
    for result in results:
        phases.update(result.phases)
    return LiveResult(
        outcome="incomplete" if "incomplete" in outcomes else first.outcome,
        seq=first.seq,
        messages=sum(result.messages for result in results),
        bytes=sum(result.bytes for result in results),
        fetched=Fetched(sum(result.fetched.requests for result in results), sum(result.fetched.bytes for result in results)),
        seconds=round(sum(result.seconds for result in results), 3),
        findings=tuple(finding for result in results for finding in result.findings),
        mailboxes=tuple(mailbox for result in results for mailbox in result.mailboxes),
        phases=dict(phases),
        plan=tuple(line for result in results for line in result.plan),
    )
