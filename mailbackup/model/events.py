"""Events that engines emit. Engines never print, log or exit; the command line decides what is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mailbackup.model.finding import Finding


@dataclass(frozen=True, slots=True)
class Phase:
    """A run entered a phase, named for people; `total` messages or bytes are expected in it, if known."""

    name: str
    total: int | None = None
    unit: str = "messages"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the current phase is: messages (or objects) and bytes done so far, and what is being worked on."""

    done: int
    bytes: int
    subject: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """A finding, as soon as it is known."""

    finding: Finding


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence about what was done."""

    text: str


Stop = Callable[[], bool]
"""Asked between steps whether to end early, with what was done kept."""


def never() -> bool:
    """The answer of those who do not stop."""
    return False


Event = Phase | Progress | Found | Note
OnEvent = Callable[[Event], None]


def ignore(_event: Event) -> None:
    """The callback of those who do not look."""
