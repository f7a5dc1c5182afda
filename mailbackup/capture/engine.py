"""A backup run: all sources into one snapshot."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from mailbackup.capture.anomaly import Limits, Losses
from mailbackup.capture.coverage import coverage
from mailbackup.capture.directory import DirectoryCapture
from mailbackup.capture.locate import Located, locate
from mailbackup.capture.mailbox import FoundMailbox, MailboxCapture
from mailbackup.capture.reading import Unreadable
from mailbackup.capture.system import DumpsCapture, SystemCapture
from mailbackup.capture.table import Table
from mailbackup.errors import Interrupted
from mailbackup.model import codec
from mailbackup.model.events import Found, OnEvent, Phase, Progress, Stop, ignore, never
from mailbackup.model.finding import Finding, FindingKind, outcome_of
from mailbackup.model.ids import show
from mailbackup.model.options import DirectoryConfig, MailConfig
from mailbackup.model.tree import DUMPS, SYSTEM, DirectoryRoot, Outcome, Root, SegmentRow, SourceCount
from mailbackup.systems.ask import Ask
from mailbackup.systems.known import Survey
from mailbackup.vault.cached import CachedUnit
from mailbackup.vault.gather import BUDGET, BlockName, choose
from mailbackup.vault.state import State
from mailbackup.vault.trees import RefTable, resolve
from mailbackup.vault.writer import SnapshotDraft, VaultWriter

GUARD_FLOOR = 50  # messages or files; a smaller source may fall as it likes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What is to be saved, and how careful to be."""

    host: str
    tool: str
    mail: tuple[MailConfig, ...]
    directories: tuple[DirectoryConfig, ...]
    max_shrink: float = 0.5
    limits: Limits = field(default_factory=Limits)
    gather_budget: int = BUDGET  # bytes of messages that may be read to be sent again; 0 = none
    rescan: bool = False
    accept_shrink: bool = False
    facts: dict[str, str] = field(default_factory=dict)
    survey: Survey | None = None  # None: no systems are configured
    ask: Ask = field(default_factory=Ask)


@dataclass(slots=True)
class RunTotals:
    """What a run did."""

    mailboxes: int = 0
    messages: int = 0
    new_messages: int = 0
    files: int = 0
    read_bytes: int = 0


class Run:
    """One backup run over an open writer. Use once."""

    def __init__(
        self, sources: Sources, state: State, writer: VaultWriter, findings: list[Finding], on_event: OnEvent = ignore, stop: Stop = never
    ) -> None:
        self._sources = sources
        self._state = state
        self._writer = writer
        self._on_event = on_event
        self._stop = stop
        self.findings: list[Finding] = []
        self.totals = RunTotals()
        self._counts: list[SourceCount] = []
        self._line: list[MailboxCapture | None] = []  # newest first
        self._table = Table(state, writer)
        self._done = self._bytes = 0
        self._shared: dict[str, str] = {}
        self._mailboxes: dict[bytes, str] = {}
        self._gather: dict[int, frozenset[BlockName]] = {}  # number of a mailbox in the state → blocks that it is to leave
        self._losses = Losses(state, sources.limits, 0)
        self._report(findings)

    def run(self) -> tuple[int, Outcome]:
        """Capture everything and commit the snapshot. Returns its seq and outcome."""
        units = self._state.units("mail")
        before = sum(unit.messages for unit in units.values())
        self._losses = Losses(self._state, self._sources.limits, before)
        self._on_event(Phase("reading mail", before or None))
        self._gather = choose(self._state, self._sources.gather_budget)
        for config in self._sources.mail:
            self._location(config, {key: unit for key, unit in units.items() if unit.location == config.name})
        names = {config.name for config in self._sources.mail}
        for unit in units.values():
            if unit.location not in names:  # the location was taken out of the configuration
                self._drop_mailbox(unit)
        self._on_event(Phase("reading files", None, "files"))
        directories = self._state.units("directory")
        for directory in self._sources.directories:
            cached = directories.pop(directory.name, None)
            self._directory(DirectoryCapture(directory, cached, self._state, self._writer, self._mailboxes))
        if self._sources.survey is not None:
            self._systems(self._sources.survey, directories)
        for unit in directories.values():
            self._table.drop(unit)
        return self._commit()

    # -- mail

    def _location(self, config: MailConfig, cached: dict[str, CachedUnit]) -> None:
        located = locate(config, self._sources.host)
        found = {mailbox.key: mailbox for mailbox in self._without_doubles(located.mailboxes)}
        self._mailboxes.update({os.path.realpath(mailbox.path): mailbox.key for mailbox in found.values()})
        held: list[FoundMailbox] = []
        now = 0
        for mailbox in found.values():
            count = self._mailbox(mailbox, cached.get(mailbox.key), held)
            now += count
            self._stop_if_asked()
        self._drain()
        missing = [unit for key, unit in cached.items() if key not in found]
        shrunk = self._guard(config.name, "messages", sum(unit.messages for unit in cached.values()), now)
        for mailbox in held:
            self._capture(mailbox, cached.get(mailbox.key), keep_gone=shrunk)
        self._drain()
        self._missing(config, located, missing, shrunk=shrunk)
        self._count_location(config.name)

    def _without_doubles(self, mailboxes: list[FoundMailbox]) -> Iterator[FoundMailbox]:
        """A key must name one mailbox; two with one address are both saved, and said."""
        keys: dict[str, bytes] = {}
        for mailbox in mailboxes:
            if mailbox.key in keys:
                detail = f"{show(mailbox.path)} and {show(keys[mailbox.key])} cannot be told apart by the pattern; only the latter is saved"
                self._report([Finding(FindingKind.MAILBOX_MISSING, mailbox.key, detail)])
                continue
            keys[mailbox.key] = mailbox.path
            other = self._shared.setdefault(mailbox.address, mailbox.key)
            if other != mailbox.key:
                self._report([Finding(FindingKind.ADDRESS_SHARED, mailbox.address, f"{other} and {mailbox.key} have the same address")])
            yield mailbox

    def _mailbox(self, mailbox: FoundMailbox, cached: CachedUnit | None, held: list[FoundMailbox]) -> int:
        """Read a mailbox. One that fell sharply is held back until the whole location was seen (fall guard). Returns its messages."""
        capture = self._read(mailbox, cached)
        if capture is None:
            return cached.messages if cached is not None else 0
        count = capture.messages
        if cached is not None and count < cached.messages * (1 - self._sources.max_shrink):
            held.append(mailbox)
        else:
            self._advance(capture)
        return count

    def _capture(self, mailbox: FoundMailbox, cached: CachedUnit | None, *, keep_gone: bool) -> None:
        capture = self._read(mailbox, cached, keep_gone=keep_gone)
        if capture is not None:
            self._advance(capture)

    def _read(self, mailbox: FoundMailbox, cached: CachedUnit | None, *, keep_gone: bool = False) -> MailboxCapture | None:
        """None when it cannot be read at all: its previous tree stays."""
        capture = MailboxCapture(
            mailbox, cached, self._state, self._writer, rescan=self._sources.rescan, keep_gone=keep_gone,
            gather=frozenset() if cached is None else self._gather.get(cached.no, frozenset()), on_messages=self._progress,
        )  # fmt: skip
        try:
            capture.read()
        except Unreadable as error:
            self._report([Finding(FindingKind.UNREADABLE, mailbox.address, f"{show(mailbox.path)}: {error}")])
            if cached is not None:
                self._table.keep_stale(cached)
            return None
        return capture

    def _progress(self, messages: int, size: int) -> None:
        self._done += messages
        self._bytes += size
        if self._done % 64 == 0:
            self._on_event(Progress(self._done, self._bytes))

    def _advance(self, capture: MailboxCapture) -> None:
        """Take on a mailbox that was read, and move those before it one step on: what they wait for is done by now."""
        self._line.insert(0, capture)
        self._step()

    def _drain(self) -> None:
        """Bring every mailbox that is under way to its end."""
        while self._line:
            self._line.insert(0, None)
            self._step()

    def _step(self) -> None:
        """The line holds, from the newest on: one that was just read, one to build, one whose root is next, one to finish."""
        if len(self._line) > 3:
            oldest = self._line.pop()
            if oldest is not None:
                self._finish(oldest)
        if len(self._line) > 2 and self._line[2] is not None:
            self._line[2].root()
        if len(self._line) > 1 and self._line[1] is not None:
            self._line[1].build()
        while self._line and self._line[-1] is None:
            self._line.pop()
        if self._writer.checkpoint_due():
            self._writer.checkpoint()

    def _finish(self, capture: MailboxCapture) -> None:
        ref = capture.finish()
        self._table.add(capture.found, ref, capture.totals.messages, capture.totals.size, stale=capture.kept_gone)
        self.totals.new_messages += capture.totals.new_messages
        self.totals.read_bytes += capture.totals.read_bytes
        self._report(capture.findings)
        gone, changed = capture.losses
        self._losses.add(gone, changed)
        self._report(self._losses.of_mailbox(capture.found.address, gone, capture.cached.messages if capture.cached is not None else 0))
        self._on_event(Progress(self._done, self._bytes, capture.found.address))

    def _guard(self, name: str, what: str, before: int, now: int) -> bool:
        """The fall guard: whether a source lost so much that it looks like an accident (an empty mount, a wrong path)."""
        fell = before >= GUARD_FLOOR and now < before * (1 - self._sources.max_shrink)
        if not fell or self._sources.accept_shrink:
            return False
        detail = f"{now} {what} where the last snapshot has {before}; what is gone stays in this snapshot. If it is meant, run with --accept-shrink"
        self._report([Finding(FindingKind.SHRUNK, name, detail)])
        return True

    def _missing(self, config: MailConfig, located: Located, missing: list[CachedUnit], *, shrunk: bool) -> None:
        """Mailboxes of the last snapshot that were not found: deleted accounts, unless their place could not be looked into."""
        for directory, why in located.failed.items():
            self._report([Finding(FindingKind.SOURCE_MISSING, config.name, f"{show(directory)}: {why}")])
        for unit in missing:
            hidden = any(unit.path.startswith(directory + b"/") or unit.path == directory for directory in located.failed)
            if shrunk or hidden:
                self._table.keep_stale(unit)
                if hidden:
                    self._report(
                        [Finding(FindingKind.MAILBOX_MISSING, unit.address, "its directory cannot be reached; its last state stays")]
                    )
            else:
                self._drop_mailbox(unit)

    def _drop_mailbox(self, unit: CachedUnit) -> None:
        self._losses.add(unit.messages)
        self._report(self._losses.of_mailbox(unit.address, unit.messages, unit.messages))
        self._table.drop(unit)

    def _count_location(self, name: str) -> None:
        rows = [row for row in self._table.rows.values() if row.location == name]
        messages, size = sum(row.messages for row in rows), sum(row.size for row in rows)
        self._counts.append(SourceCount(name=name, kind="mail", mailboxes=len(rows), messages=messages, bytes=size))
        self.totals.mailboxes += len(rows)
        self.totals.messages += messages

    def _stop_if_asked(self) -> None:
        """Between two mailboxes or directories: finish what was read and register it, so that the next run need not send it again."""
        if not self._stop():
            return
        self._on_event(Phase("stopping", None))
        self._drain()
        self._writer.checkpoint()
        raise Interrupted("stopped before the snapshot was made; what was sent is registered")

    # -- directories

    def _systems(self, survey: Survey, cached: dict[str, CachedUnit]) -> None:
        """Files and dumps of the mail programs. One that is there but cannot be asked keeps what the last snapshot has of it."""
        self._on_event(Phase("reading systems", None, "files"))
        for inventory in survey.inventories:
            self._report(list(inventory.findings))
            unit = cached.pop(SYSTEM + inventory.system, None)
            self._directory(SystemCapture(inventory, unit, self._state, self._writer, self._mailboxes))
        for name, why in survey.failed.items():
            self._report([Finding(FindingKind.SYSTEM_UNREADABLE, name, why)])
            unit = cached.pop(SYSTEM + name, None)
            if unit is not None:
                self._keep_stale(unit)
        dumps = DumpsCapture(survey, self._sources.ask, cached.pop(DUMPS, None), self._state, self._writer)
        self._directory(dumps)
        self._report(coverage(dumps.contents, self._table.rows.values(), self._mailboxes))

    def _directory(self, capture: DirectoryCapture) -> None:
        name, cached = capture.config.name, capture.cached
        files, size, stale = 0, 0, False
        try:
            capture.read()
            stale = cached is not None and capture.guarded and self._guard(capture.config.path, "files", cached.messages, capture.files)
        except Unreadable as error:
            self._report([Finding(FindingKind.SOURCE_MISSING, capture.config.path, str(error))])
            stale = True
        self._report(capture.findings)
        if not stale:
            capture.finish()
            files, size = capture.files, capture.size
        elif cached is not None:
            self._keep_stale(cached)
            files, size = cached.messages, cached.size
        self._counts.append(SourceCount(name=name, kind="directory", mailboxes=0, messages=files, bytes=size))
        self.totals.files += files
        self.totals.read_bytes += capture.read_bytes
        self._stop_if_asked()
        if self._writer.checkpoint_due():
            self._writer.checkpoint()

    def _keep_stale(self, cached: CachedUnit) -> None:
        """The last state of a source stays in the snapshot."""
        self._state.execute("UPDATE unit SET stale = 1 WHERE no = ?", (cached.no,))

    # -- the end

    def _commit(self) -> tuple[int, Outcome]:
        self._on_event(Phase("committing", None))
        table = RefTable()
        mailboxes = self._table.store(table)
        directories = self._directory_roots(table)
        root = Root(blocks=table.rows(), directories=directories, mailboxes=mailboxes)
        self._check_empty()
        self._report(self._losses.judge())
        draft = SnapshotDraft(
            host=self._sources.host,
            tool=self._sources.tool,
            outcome=outcome_of(self.findings),
            root=root,
            sources=self._counts,
            findings=self.findings,
            facts=self._sources.facts,
        )
        return self._writer.commit(draft)

    def _check_empty(self) -> None:
        """After a lost state there is nothing to compare with: an empty source is then an accident until somebody says otherwise."""
        if self._sources.accept_shrink or not any(f.kind is FindingKind.STATE_NEW for f in self.findings):
            return
        for count in self._counts:
            if count.messages == 0:
                self._report([Finding(FindingKind.SHRUNK, count.name, "is empty, and without a state nothing tells whether it should be")])

    def _directory_roots(self, table: RefTable) -> tuple[DirectoryRoot, ...]:
        roots = []
        for unit in sorted(self._state.units("directory").values(), key=lambda unit: unit.key):
            root = codec.decode(self._state.tree_of(unit.no), Root, "cached tree")
            row = root.directories[0]
            segments = tuple(SegmentRow(table.add(resolve(root.blocks, s.ref)), s.first, s.count) for s in row.segments)
            roots.append(DirectoryRoot(name=unit.key, path=row.path, segments=segments, files=row.files, bytes=row.bytes, stale=unit.stale))
        return tuple(roots)

    def _report(self, findings: list[Finding]) -> None:
        for finding in findings:
            self.findings.append(finding)
            self._on_event(Found(finding))
