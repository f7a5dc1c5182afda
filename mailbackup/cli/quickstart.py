"""`quickstart`: everything once, in a folder of its own, with real numbers. Asks nothing, needs no rights, touches no source."""

from __future__ import annotations

import os
import shlex
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mailbackup.cli.answer import Answer
from mailbackup.cli.command import Run, command
from mailbackup.cli.text import duration, number, size
from mailbackup.errors import AlreadyExists, DamageError, SourceError, UsageError
from mailbackup.model.codec import plain
from mailbackup.model.finding import Finding

if TYPE_CHECKING:
    from mailbackup.access import Context
    from mailbackup.cli.layout import Comparison, Layout
    from mailbackup.model.results import BackupResult, MailboxLine, VerifyResult

SMALL_ENOUGH = 64 << 20  # bytes of the mailbox that is restored, so that a large server's trial stays short


def register(root: typer.Typer) -> None:
    """Add the command to the program."""
    command(root, "quickstart", example="mailbackup quickstart /var/vmail")(quickstart)


def quickstart(
    run: Run,
    *,
    mail_root: Annotated[str | None, typer.Argument(metavar="MAIL-ROOT", help="Mail to try it with.", show_default=False)] = None,
) -> Answer:
    """Try everything in half a minute: kit, vault, two snapshots, a restore, a check. Without MAIL-ROOT with made-up mail.

    Everything is written into a new folder below the current one; your mail is only read.
    """
    settings = run.settings
    if settings.config or settings.state or settings.store or settings.identity:
        raise UsageError("quickstart makes its own configuration, state, store and kit", hint="Leave out these options.")
    layout = _look(mail_root) if mail_root else None
    trial = Trial(run, _new_folder(), layout)
    trial.perform()
    return trial.answer()


def _look(mail_root: str) -> Layout:
    """What is in the given mail; before anything is made, since it may be nothing."""
    from mailbackup.cli.layout import find_layout

    source = os.path.realpath(mail_root)
    if os.path.commonpath((os.path.realpath("."), source)) == source:
        raise UsageError(f"{os.getcwd()} lies inside {mail_root}, which is only to be read", hint="Run it in another folder.")
    return find_layout(mail_root)


def _new_folder() -> str:
    """A new folder for everything, readable for its owner only since the kit lies in it."""
    folder = os.path.abspath(time.strftime("mailbackup-quickstart-%Y%m%d-%H%M%S"))
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        raise AlreadyExists(f"{folder} exists already", hint="Wait a second and run again.") from None
    except OSError as error:
        raise UsageError(f"cannot make {folder}: {error.strerror}", hint="Run it in a folder that you may write to.") from None
    return folder


@dataclass
class Trial:
    """One quickstart: what was asked for, and what came of it step by step."""

    run: Run
    folder: str
    given: Layout | None  # of somebody's own mail
    begun: float = field(default_factory=time.monotonic)
    steps: int = 0
    results: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    exit_status: int = 0

    def place(self, name: str) -> str:
        """A path in the folder."""
        return os.path.join(self.folder, name)

    def perform(self) -> None:
        """All steps, in order."""
        from mailbackup import app

        self.run.say(f"Everything is written into {self.folder}")
        layout = self._mail()
        context = self._keys(layout)
        self._backup(context, "first")
        self._day_passes()
        self._backup(context, "second")
        reader = replace(context, identity_file=self.place("kit.txt"))
        self._restore(reader, layout, app.mailboxes(reader))
        self._verify(context, decrypt=False)
        self._verify(reader, decrypt=True)

    @contextmanager
    def _step(self) -> Iterator[list[str]]:
        """A numbered step: what it appends becomes its line, with the time that it took."""
        about: list[str] = []
        begun = time.monotonic()
        yield about
        took = time.monotonic() - begun
        self.steps += 1
        self.run.progress.pause()
        self.run.say(f"{self.steps:2}. {''.join(about)}{f' ({duration(took)})' if took >= 0.1 else ''}")

    def _mail(self) -> Layout:
        from mailbackup.cli.layout import find_layout
        from mailbackup.sample.mailstore import make_sample

        with self._step() as about:
            if self.given is None:
                make_sample(self.place("mail"))
            layout = self.given or find_layout(self.place("mail"))
            found = f"{'your mail' if self.given else 'made-up mail'}: {number(len(layout.mailboxes), 'mailbox', 'mailboxes')}"
            others = f"; {layout.others:,} others do not fit it and are left out" if layout.others else ""
            about.append(f"{found}, pattern {layout.pattern.text}{others}")
        self.results["pattern"] = layout.pattern.text
        return layout

    def _keys(self, layout: Layout) -> Context:
        from mailbackup import app, config
        from mailbackup.access import Context

        options = app.InitOptions(
            config_path=self.place("mailbackup.toml"),
            state_dir=self.place("mailbackup.state"),
            host=socket.gethostname(),
            mail=(layout.pattern.text,),
            directories=(),
            stores=(config.file_url(self.place("vault")),),
            kit_out=self.place("kit.txt"),
        )
        with self._step() as about:
            made = app.init(options)
            about.append("keys, local vault and recovery kit made; this machine can write backups, only the kit can read them")
        self.results["vault"] = made.vault
        loaded, _ = config.load(options.config_path)
        return Context(config=loaded, config_path=options.config_path, state_dir=options.state_dir, on_event=self.run.progress)

    def _backup(self, context: Context, which: str) -> None:
        from mailbackup import app

        with self._step() as about:
            result = app.backup(context)
            about.append(f"{which} snapshot ({result.outcome}): {_costs(result)}")
        self._note(result.findings, SourceError.exit_status if result.outcome == "incomplete" else 0)
        self.results.setdefault("snapshots", []).append(plain(result))

    def _day_passes(self) -> None:
        from mailbackup.sample.mailstore import simulate_day

        with self._step() as about:
            if self.given is None:
                simulate_day(self.place("mail"), seed=1)
                about.append("a day passes: mail arrives, is read, flagged, moved and deleted")
            else:
                about.append("no day is simulated, since your mail is only read; the second snapshot shows what an unchanged night costs")

    def _restore(self, reader: Context, layout: Layout, mailboxes: list[MailboxLine]) -> None:
        from mailbackup import app
        from mailbackup.cli.layout import compare

        chosen = _choose(mailboxes)
        target = os.path.join(self.place("restored"), chosen.address)
        with self._step() as about:
            result = app.restore_mailbox(reader, chosen.address, to=target, location=chosen.location)
            seen = compare(_source_of(chosen, layout), os.fsencode(target))
            about.append(f"{chosen.address} restored: {_verdict(seen, live=self.given is not None)}")
        missing = 0 if self.given else seen.only_source + seen.only_copy
        self._note(result.findings, DamageError.exit_status if seen.different or missing or result.outcome == "incomplete" else 0)
        self.results["restored"] = {"address": chosen.address, "to": target, **{name: getattr(seen, name) for name in seen.__slots__}}

    def _verify(self, context: Context, *, decrypt: bool) -> None:
        from mailbackup import app

        with self._step() as about:
            result = app.verify(context, decrypt=decrypt)
            about.append(_checked(result))
        self._note(result.findings, DamageError.exit_status if result.outcome == "damaged" else 0)
        self.results.setdefault("verified", []).append(plain(result))

    def _note(self, findings: tuple[Finding, ...], status: int) -> None:
        self.findings += findings
        self.exit_status = max(self.exit_status, status)

    def answer(self) -> Answer:
        """What came of it, where things lie, and what to do next."""
        outcome = {0: "done", SourceError.exit_status: "incomplete"}.get(self.exit_status, "damaged")
        places = {name: self.place(file) for name, file in (("config", "mailbackup.toml"), ("kit", "kit.txt"), ("store", "vault"))}
        seconds = round(time.monotonic() - self.begun, 3)
        fields = {"folder": self.folder, **places, **self.results, "seconds": seconds}
        findings = tuple(dict.fromkeys(self.findings))
        return Answer(outcome=outcome, exit_status=self.exit_status, fields=fields, text=self._closing(seconds), findings=findings)

    def _closing(self, seconds: float) -> list[str]:
        here = os.path.relpath(self.folder)
        program, key = f"mailbackup --config {here}/mailbackup.toml", f"--identity {here}/kit.txt"
        pattern = shlex.quote(self.results["pattern"] if self.given else "/var/vmail/{domain}/{user}/Maildir")
        return [
            f"Done in {duration(seconds)}.",
            "",
            "Where things lie:",
            f"  configuration  {here}/mailbackup.toml, and mailbackup.key, with which this host signs",
            f"  recovery kit   {here}/kit.txt (without a passphrase, since this is a trial)",
            f"  vault          {here}/vault",
            f"  local state    {here}/mailbackup.state",
            f"  restored mail  {here}/restored",
            "",
            "Next:",
            f"  {program} snapshots",
            f"  {program} ls {self.results['restored']['address']} {key}",
            f"  mailbackup init --mail {pattern} --kit-out kit.txt      # in earnest",
        ]


def _costs(result: BackupResult) -> str:
    held = f"{number(result.messages, 'message')} in {number(result.mailboxes, 'mailbox', 'mailboxes')}, {result.new_messages:,} new"
    return f"{held}; read {size(result.bytes_read)}, stored {size(result.bytes_stored)}"


def _choose(mailboxes: list[MailboxLine]) -> MailboxLine:
    """The fullest mailbox that is quickly restored, else the smallest one."""
    if not mailboxes:
        raise SourceError("the snapshot holds no mailbox")
    small = [line for line in mailboxes if line.bytes <= SMALL_ENOUGH]
    return max(small, key=lambda line: line.messages) if small else min(mailboxes, key=lambda line: line.bytes)


def _source_of(chosen: MailboxLine, layout: Layout) -> bytes:
    from mailbackup.mail.pattern import key

    for names, path in layout.mailboxes.items():
        captured = layout.pattern.capture(names)
        if captured is not None and key(chosen.location, captured) == chosen.key:
            return path
    raise SourceError(f"the source of {chosen.address} is not there any more")


def _verdict(seen: Comparison, *, live: bool) -> str:
    text = f"{number(seen.equal, 'message')}, {size(seen.bytes)}"
    if seen.different:
        return f"{text}, but {seen.different:,} DIFFER from the source"
    moved = seen.only_source + seen.only_copy
    if moved:
        return f"{text} equal to the source; {moved:,} {'came or went since' if live else 'MISSING on one side'}"
    return f"{text}, compared byte for byte with the source: equal"


def _checked(result: VerifyResult) -> str:
    held = f"{number(result.objects, 'object')}, {size(result.bytes)}"
    how = f"with the key: {held}, {number(result.blobs, 'piece')} of content opened" if result.decrypted else f"without a key: {held}"
    return f"verified {how}: {result.outcome}"
