"""Rebuilding a server below a root directory: the steps that adapters name, carried out in their order.

The same code serves a new machine (`restore server --target /`), a root prepared for one, and drills. Each step may be repeated: a rebuild that was
interrupted is continued by running it again; what is in place already is kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from mailbackup.errors import DamageError, MailbackupError
from mailbackup.model.drill import StepResult
from mailbackup.model.events import OnEvent, Phase
from mailbackup.model.finding import Finding
from mailbackup.model.system import Inventory, ServerStep
from mailbackup.restore.accounts import RootAccounts, merge
from mailbackup.systems.ask import CannotAsk, Said
from mailbackup.systems.known import steps

Runner = Callable[[tuple[str, ...], float], Said]
"""Runs a program in the new root: argv, time limit in seconds. Raises CannotAsk when it cannot be run or takes too long."""

HELD = "hold"
_LOOSE = "maildrop"  # messages there are no queue files yet: they are set aside
_QUEUE_CONFIG = "/etc/postfix-restore"


@dataclass(slots=True)
class Placed:
    """What was put below the root."""

    files: int = 0
    messages: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: Placed) -> None:
        """Sum up."""
        self.files += other.files
        self.messages += other.messages
        self.bytes += other.bytes
        self.findings += other.findings


class Source(Protocol):
    """Where a server comes from: a snapshot, or for a rehearsal of the configuration this host itself."""

    @property
    def inventories(self) -> tuple[Inventory, ...]:
        """The systems that it has."""
        ...

    def dump(self, name: str) -> bytes:
        """What a program said then. Raises NotFound."""
        ...

    def read(self, path: str) -> bytes:
        """A small file. Raises NotFound."""
        ...

    def place(self, paths: tuple[str, ...], without: tuple[str, ...], root: str, accounts: RootAccounts) -> Placed:
        """Put files and directories below `root`, with the directories above them; below `without` only directories. What it does not hold is passed over."""
        ...

    def place_mail(self, root: str, accounts: RootAccounts) -> Placed:
        """Put the mailboxes where they were, below `root`."""
        ...


class Rebuild:
    """One rebuild below `root`. Steps that start daemons are left to whoever called it."""

    def __init__(self, source: Source, root: str, run: Runner, on_event: OnEvent) -> None:
        self.source = source
        self.root = root.rstrip("/")  # "" for the machine itself
        self.placed = Placed()
        self._run = run
        self._on_event = on_event
        self._actions: dict[str, Callable[[ServerStep], str]] = {
            "accounts": self._accounts, "files": self._files, "mail": self._mail, "queue": self._queue, "run": self._command, "check": self._check,
            "directory": self._directory,
        }  # fmt: skip

    def steps(self) -> tuple[ServerStep, ...]:
        """All steps, in order."""
        return steps(self.source.inventories)

    def execute(self) -> list[StepResult]:
        """Carry out every step that is no start of a daemon. One that fails does not stop the next ones: what can come back comes back."""
        return [self.step(step) for step in self.steps() if step.action != "start"]

    def step(self, step: ServerStep) -> StepResult:
        """Carry out one step."""
        began = time.monotonic()
        self._on_event(Phase(f"{step.system}: {step.name}", None, "files"))
        outcome, detail = "done", ""
        try:
            detail = self._actions[step.action](step)
        except CannotAsk as error:
            outcome, detail = "failed", str(error)
        except MailbackupError as error:
            if error.retryable:
                raise
            outcome, detail = "failed", error.message
        seconds = round(time.monotonic() - began, 3)
        return StepResult(system=step.system, name=step.name, action=step.action, outcome=outcome, seconds=seconds, detail=detail)  # type: ignore[arg-type]

    # -- actions

    def _accounts(self, step: ServerStep) -> str:
        saved = {os.path.basename(path): self.source.read(path).decode("utf-8", "surrogateescape") for path in step.paths}
        return "; ".join(merge(self.root, saved))

    def _files(self, step: ServerStep) -> str:
        placed = self._count(self.source.place(step.paths, step.without, self.root or "/", RootAccounts.of(self.root)))
        return f"{placed.files} files"

    def _mail(self, _step: ServerStep) -> str:
        placed = self._count(self.source.place_mail(self.root or "/", RootAccounts.of(self.root)))
        return f"{placed.messages} messages"

    def _count(self, placed: Placed) -> Placed:
        """Remember what was put in place. Raises DamageError when something was not: the step has failed then, though the rest of it is there."""
        self.placed.add(placed)
        lost = [finding for finding in placed.findings if not finding.harmless]
        if lost:
            raise DamageError(f"not restored: {len(lost)}, first {lost[0].subject}: {lost[0].detail}")
        return placed

    def _command(self, step: ServerStep) -> str:
        self._run(step.argv, step.timeout).check(step.argv, silent=step.silent)
        return ""

    def _directory(self, step: ServerStep) -> str:
        path = self.root + step.paths[0]
        os.makedirs(path, exist_ok=True)
        user, _, group = step.owner.partition(":")
        accounts = RootAccounts.of(self.root)
        os.chown(path, accounts.user_id(user) or 0, accounts.group_id(group or user) or 0)
        os.chmod(path, step.mode)
        return ""

    def _queue(self, step: ServerStep) -> str:
        """Messages that were on their way, all on hold: whether they still are to be sent is for a person to say."""
        queue, *places = step.paths
        accounts = RootAccounts.of(self.root)
        staging = f"{self.root}{queue}/.restored"
        shutil.rmtree(staging, ignore_errors=True)
        os.makedirs(staging, mode=0o700)
        try:
            placed = self.source.place(tuple(places), (), staging, accounts)
            held, loose = self._hold(staging, queue, places, accounts.user_id(step.owner) or 0)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        if held:
            self._rename_to_inodes()
        self._count(placed)
        aside = f"; {loose} that were not queued yet lie in {queue}/restored-maildrop" if loose else ""
        return f"{held} messages on hold{aside}"

    def _hold(self, staging: str, queue: str, places: list[str], uid: int) -> tuple[int, int]:
        """Move queue files into `hold`, whatever queue they were in. One that an earlier rebuild put there is not put there again, since it would be sent
        twice; by then it may have another name, or be gone because somebody released it."""
        journal, counts = _Journal.of(f"{self.root}/var/lib/mailbackup/restored-queue"), [0, 0]
        for place in places:
            loose = os.path.basename(place) == _LOOSE
            target = f"{self.root}{queue}/{'restored-maildrop' if loose else HELD}"
            os.makedirs(target, mode=0o700, exist_ok=True)
            os.chown(target, uid, -1)
            for path in _files_below(staging + place):
                counts[loose] += 1
                if journal.is_placed(os.path.basename(path), target):
                    continue
                os.chown(path, uid, -1)
                os.chmod(path, 0o700)
                journal.begin(os.path.basename(path), os.stat(path).st_ino)
                os.replace(path, f"{target}/{os.path.basename(path)}")
        journal.complete()
        return counts[0], counts[1]

    def _check(self, step: ServerStep) -> str:
        """Check Postfix, which makes the directories of its queue. What an interrupted rebuild left on hold gets its right names first: Postfix would do that
        itself here, and fail where its log is not writable yet."""
        if any(_files_below(f"{self.root}{step.paths[0]}/{HELD}")):
            self._rename_to_inodes()
        return self._command(step)

    def _rename_to_inodes(self) -> None:
        """A queue file is named by its inode, which is another one here. `postsuper` does it."""
        with self._own_log() as config:
            argv = ("postsuper", "-c", config, "-s")
            self._run(argv, 60).check(argv)

    @contextmanager
    def _own_log(self) -> Iterator[str]:
        """A copy of Postfix's configuration that logs elsewhere: its own log is not writable for `postsuper` before Postfix runs."""
        config = self.root + _QUEUE_CONFIG
        shutil.rmtree(config, ignore_errors=True)
        os.makedirs(config)
        try:
            for path in sorted(os.listdir(f"{self.root}/etc/postfix")):
                if os.path.isfile(f"{self.root}/etc/postfix/{path}"):
                    shutil.copyfile(f"{self.root}/etc/postfix/{path}", f"{config}/{path}")
            with open(f"{config}/main.cf", "a", encoding="utf-8") as file:
                file.write("\nmaillog_file =\n")
            yield _QUEUE_CONFIG
        finally:
            shutil.rmtree(config, ignore_errors=True)


def _files_below(root: str) -> Iterator[str]:
    for place, _, names in os.walk(root):
        yield from (os.path.join(place, name) for name in names)


@dataclass(slots=True)
class _Journal:
    """Queue files that were put on hold, by the name that they had in the snapshot: written before each, so that a repetition knows its inode."""

    path: str
    inodes: dict[str, int]
    finished: set[str]

    @classmethod
    def of(cls, path: str) -> _Journal:
        """What earlier rebuilds wrote."""
        found = cls(path, {}, set())
        with contextlib.suppress(FileNotFoundError), open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                name, _, inode = line.strip().partition(" ")
                if name == "complete":
                    found.finished |= set(found.inodes)
                elif inode.isdigit():
                    found.inodes[name] = int(inode)
        return found

    def is_placed(self, name: str, directory: str) -> bool:
        """Whether it was put there: by a rebuild that came to its end, or it still lies there under whatever name."""
        if name in self.finished:
            return True
        with os.scandir(directory) as entries:
            return name in self.inodes and any(entry.inode() == self.inodes[name] for entry in entries)

    def begin(self, name: str, inode: int) -> None:
        """A file is about to be put in place."""
        self.inodes[name] = inode
        self._append(f"{name} {inode}")

    def complete(self) -> None:
        """All are in place."""
        self._append("complete")

    def _append(self, line: str) -> None:
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        with open(self.path, "a", encoding="ascii") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
