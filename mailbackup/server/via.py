"""Restoring on another machine: the vault is opened here, where the identity is, and a verified stream goes through ssh to `mailbackup receive`.

ssh does what it is configured for (~/.ssh/config: names, keys, jump hosts); another program or configuration is named by $MAILBACKUP_RSH, a command
line. Nothing secret is on the command line, which holds the mail address and the target only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TypeVar

from mailbackup import app
from mailbackup.access import Context
from mailbackup.errors import MailbackupError, RecordInvalid, StoreUnavailable, UsageError, tree
from mailbackup.model import codec
from mailbackup.model.codec import Record
from mailbackup.model.events import Phase
from mailbackup.model.results import RestoreResult
from mailbackup.restore.stream import Head, StreamTarget
from mailbackup.server.live import LiveResult, Phases, Wish, outcome_of
from mailbackup.server.staged import folders_of, narrow

VARIABLE = "MAILBACKUP_RSH"
_URL = re.compile(r"ssh://(?:(?P<user>\w[\w.@+-]*)@)?(?P<name>\w[\w.-]*|\[[0-9A-Fa-f:.]+(?:%\w+)?\])(?::(?P<port>\d{1,5}))?/?", re.ASCII)
_WAIT = 60  # seconds for ssh to end, once the other side has closed its output
_LOST = 255  # the status of ssh when it is ssh that failed

T = TypeVar("T", bound=Record)


@dataclass(frozen=True, slots=True)
class Host:
    """Where to go. An ssh configuration may know more about `name`."""

    name: str
    user: str | None = None
    port: str | None = None

    @classmethod
    def parse(cls, url: str) -> Host:
        """`ssh://[user@]host[:port]`. Raises UsageError, also for names that ssh would take for options."""
        match = _URL.fullmatch(url)
        if match is None:
            raise UsageError(f"--via {url}: no ssh://[user@]host[:port]", hint="For example: --via ssh://root@mail.example.org")
        return cls(match["name"].strip("[]"), match["user"], match["port"])

    def command(self, *remote: str) -> list[str]:
        """The arguments of ssh to run a command there."""
        port = [] if self.port is None else ["-p", self.port]
        user = [] if self.user is None else ["-l", self.user]
        alive = ["-o", "ServerAliveInterval=30"]  # else a connection that is gone is waited for without end
        return [*shlex.split(os.environ.get(VARIABLE) or "ssh"), "-T", *alive, *port, *user, "--", self.name, shlex.join(remote)]


class _Said(Record, frozen=True):
    code: str = "MB-X001"
    message: str = ""
    hint: str = ""


class _Error(Record, frozen=True):
    """What a command answers that failed."""

    error: _Said


@dataclass(frozen=True, slots=True)
class Remote:
    """`mailbackup receive` on another machine."""

    host: Host
    process: subprocess.Popen[bytes]
    stderr: IO[bytes]

    @property
    def stdin(self) -> IO[bytes]:
        """Where the stream goes."""
        assert self.process.stdin is not None
        return self.process.stdin

    def answer(self, kind: type[T]) -> T:
        """Its result, when the stream is at its end or was not wanted any more. Raises the error that it raised, and StoreUnavailable without one."""
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        assert self.process.stdout is not None
        lines = self.process.stdout.read().splitlines()
        status = self.process.wait(timeout=_WAIT)
        with contextlib.suppress(RecordInvalid):
            return codec.decode(lines[-1] if lines else b"", kind, "the answer")
        with contextlib.suppress(RecordInvalid):
            raise self._error(codec.decode(lines[-1] if lines else b"", _Error, "the answer").error)
        self.stderr.seek(0)
        last = self.stderr.read()[-4096:].decode("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
        raise StoreUnavailable(
            f"cannot restore on {self.host.name}: {last[0]}" + ("" if status == _LOST else f" (status {status})"),
            hint=f"Check 'ssh {self.host.name} mailbackup --version'; another ssh or configuration can be named with ${VARIABLE}.",
        )

    def _error(self, said: _Said) -> MailbackupError:
        kind = next((kind for kind in tree() if kind.code == said.code), MailbackupError)
        return kind(f"{self.host.name}: {said.message}", hint=said.hint)


@contextlib.contextmanager
def _receiving(host: Host, *options: str) -> Iterator[Remote]:
    with tempfile.TemporaryFile() as stderr:
        argv = host.command("mailbackup", "receive", *options, "--json", "--quiet")
        try:
            process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)
        except OSError as error:
            raise UsageError(f"cannot run {argv[0]}: {error.strerror}", hint=f"Install ssh, or name it with ${VARIABLE}.") from None
        try:
            yield Remote(host, process, stderr)
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()


def live_via(context: Context, host: Host, wish: Wish) -> LiveResult:
    """Restore a mailbox into the Dovecot of another machine. Needs an identity here, and root there.

    Raises what `receive` raises there, and StoreUnavailable when it cannot be reached. Nothing is changed there before everything has arrived.
    """
    began = time.monotonic()
    with _planned(context, wish) as (planned, target):
        narrow(planned.plan)
        with _receiving(host, "--to", "live", "--user", wish.user or planned.address, *_options(wish)) as remote:
            sent, seconds = _send(context, planned, target, remote, dry_run=wish.dry_run)
            got = remote.answer(LiveResult)
    findings = [*sent.findings, *got.findings]
    return LiveResult(
        outcome="planned" if wish.dry_run else outcome_of(findings), seq=sent.seq, messages=got.messages, bytes=got.bytes, fetched=sent.fetched,
        seconds=round(time.monotonic() - began, 3), findings=tuple(findings), mailboxes=got.mailboxes, phases={**seconds, **got.phases},
        plan=got.plan,
    )  # fmt: skip


def directory_via(context: Context, host: Host, wish: Wish, to: str) -> RestoreResult:
    """Restore a mailbox into a directory of another machine, a new or an empty one. Raises as `live_via` does."""
    began = time.monotonic()
    with _planned(context, wish) as (planned, target), _receiving(host, f"--to={to}", *_options(wish)) as remote:
        sent, _ = _send(context, planned, target, remote, dry_run=wish.dry_run)
        got = remote.answer(RestoreResult)
    findings = [*sent.findings, *got.findings]
    return RestoreResult(
        outcome="planned" if wish.dry_run else outcome_of(findings), seq=sent.seq, messages=got.messages, files=got.files, bytes=got.bytes, kept=0,
        fetched=sent.fetched, seconds=round(time.monotonic() - began, 3), findings=tuple(findings), plan=sent.plan,
    )  # fmt: skip


def _options(wish: Wish) -> list[str]:
    return ["--dry-run"] if wish.dry_run else []


@contextlib.contextmanager
def _planned(context: Context, wish: Wish) -> Iterator[tuple[app.PlannedMailbox, StreamTarget]]:
    target = StreamTarget()
    with app.planned_mailbox(context, wish.name, target, folder=wish.folder, at=wish.at, location=wish.location) as planned:
        yield planned, target


def _send(
    context: Context, planned: app.PlannedMailbox, target: StreamTarget, remote: Remote, *, dry_run: bool
) -> tuple[RestoreResult, dict[str, float]]:
    """Send what was planned; nothing but its size when `dry_run`. That the other side wants no more is no error here: it says why."""
    phases, plan = Phases(context.on_event), planned.plan
    head = Head(
        address=planned.address, seq=planned.seq, folders=folders_of(plan), messages=plan.messages,
        bytes=sum(step.entry.size for step in plan.files),
    )  # fmt: skip
    sent = planned.run(dry_run=True)
    try:
        with phases("sending"), contextlib.suppress(BrokenPipeError):
            target.begin(remote.stdin, head)
            if not dry_run:
                sent = planned.run()
            target.end()
            remote.stdin.flush()
    finally:
        target.abandon()
    context.on_event(Phase(f"waiting for {remote.host.name}"))
    return sent, phases.seconds
