"""Progress, drawn from events: bars on a terminal, a line now and then elsewhere, nothing with --json or -q. Always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from mailbackup.cli.answer import lines, write
from mailbackup.cli.settings import Settings
from mailbackup.cli.text import duration, one_line, printable, size
from mailbackup.model.events import Event, Found, Note, Phase, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

QUIET_SECONDS = 10.0  # between two plain lines of one phase


class Reporter(Protocol):
    """Draws events."""

    def __call__(self, event: Event, /) -> None:
        """Take one event."""

    def pause(self) -> None:
        """Leave the terminal to a prompt; the next phase draws again."""

    def close(self) -> None:
        """End drawing."""


def reporter(settings: Settings) -> Reporter:
    """The reporter that fits the options and what stderr is."""
    if settings.json or settings.quiet:
        return Silent()
    if sys.stderr.isatty():
        return Terminal(verbose=settings.verbose > 0)
    return Plain(verbose=settings.verbose > 0)


class Silent:
    """Draws nothing."""

    def __call__(self, event: Event, /) -> None:
        """Ignore it."""

    def pause(self) -> None:
        """Nothing to leave."""

    def close(self) -> None:
        """Nothing to end."""


class Plain:
    """At most one line every ten seconds in each phase, so that a log stays short and a short run says nothing."""

    def __init__(self, *, verbose: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._verbose = verbose
        self._clock = clock
        self._phase = Phase("working")
        self._begun = self._said = clock()

    def __call__(self, event: Event, /) -> None:
        """Draw one event."""
        now = self._clock()
        if isinstance(event, Phase):
            self._phase, self._begun, self._said = event, now, now
        elif isinstance(event, Progress):
            if now - self._said >= QUIET_SECONDS:
                self._said = now
                self._say(describe(self._phase, event, now - self._begun))
        elif self._verbose:
            self._say(sentence(event))

    def _say(self, text: str) -> None:
        write(lines([text]), sys.stderr)

    def pause(self) -> None:
        """Nothing to leave."""

    def close(self) -> None:
        """Nothing to end."""


class Terminal:
    """One live bar for the current phase."""

    def __init__(self, *, verbose: bool) -> None:
        self._verbose = verbose
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._phase = Phase("working")
        self._begun = time.monotonic()

    def __call__(self, event: Event, /) -> None:
        """Draw one event."""
        if isinstance(event, Phase):
            self._enter(event)
        elif isinstance(event, Progress):
            self._advance(event)
        elif self._verbose and self._bars is not None:
            self._bars.console.print(printable(sentence(event)), markup=False, highlight=False)

    def _enter(self, phase: Phase) -> None:
        self._phase, self._begun = phase, time.monotonic()
        if self._bars is None:
            self._bars = _new_bars()
            self._bars.start()
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(phase.name, total=phase.total, about="", subject="")

    def _advance(self, event: Progress) -> None:
        if self._bars is None or self._task is None:
            self._enter(self._phase)
        if self._bars is not None and self._task is not None:
            about = describe(self._phase, event, time.monotonic() - self._begun).partition(": ")[2]
            done = event.bytes if self._phase.unit == "bytes" else event.done
            self._bars.update(self._task, completed=done, about=about, subject=printable(one_line(event.subject)))

    def pause(self) -> None:
        """Leave the terminal to a prompt; the next phase draws again."""
        self.close()

    def close(self) -> None:
        """Erase the bar."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._task = None


def _new_bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[about]}", markup=False),
        TextColumn("{task.fields[subject]}", markup=False, style="dim"),
        console=Console(stderr=True),
        transient=True,
        refresh_per_second=5,
    )


def describe(phase: Phase, event: Progress, seconds: float) -> str:
    """`reading mail: 12,000 of 61,204 messages, 1.1 GiB, 95.0 MiB/s, 1 min 20 s left`."""
    done = event.bytes if phase.unit == "bytes" else event.done
    parts = []
    if phase.unit != "bytes":
        parts.append(f"{done:,}{f' of {phase.total:,}' if phase.total else ''} {phase.unit}")
    parts.append(f"{size(event.bytes)}{f' of {size(phase.total)}' if phase.unit == 'bytes' and phase.total else ''}")
    if seconds > 0:
        parts.append(f"{size(round(event.bytes / seconds))}/s")
    if phase.total and 0 < done <= phase.total and seconds > 0:
        parts.append(f"{duration(seconds / done * (phase.total - done))} left")
    return f"{phase.name}: {', '.join(parts)}"


def sentence(event: Found | Note) -> str:
    """A finding or a note as one line."""
    if isinstance(event, Note):
        return event.text
    finding = event.finding
    return f"{finding.kind}: {finding.subject}{': ' if finding.detail else ''}{finding.detail}"
