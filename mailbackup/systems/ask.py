"""Asking the host: programs, files, owners. The one way in which adapters see it, so that tests can give them another one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from mailbackup.host import SEARCH_PATH
from mailbackup.model.system import Chosen, LeftOut

T = TypeVar("T")

_SMALL = 16 << 20  # bytes of a configuration file


class CannotAsk(Exception):
    """A program is there, but does not say what it must; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a program answered."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines of its output that are not empty."""
        return [line for line in self.out.splitlines() if line.strip()]

    @property
    def complaint(self) -> str:
        """The first line in which it complains; what follows it is often a trace for developers."""
        rows = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        worst = [row for row in rows if re.search(r"\b(fatal|panic|error)\b", row, re.IGNORECASE)]
        return (worst or rows or ["it said nothing"])[0]

    def check(self, argv: Iterable[str], *, silent: bool = False) -> None:
        """Raises CannotAsk when it failed; with `silent` words on stderr are a failure too."""
        if self.status != 0 or (silent and self.err.strip()):
            raise CannotAsk(f"'{' '.join(argv)}' ended with status {self.status}: {self.complaint}")


class Ask:
    """The host as it is now. `directories` are the `[[directory]]` sources of the configuration."""

    def __init__(self, directories: tuple[str, ...] = (), environment: dict[str, str] | None = None) -> None:
        self.directories = directories
        self._answers: dict[str, Any] = {}
        self._environment = {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", "HOME": "/root", **(environment or {})}

    def once(self, name: str, question: Callable[[], T]) -> T:
        """The answer to a question that is dear, asked once in the life of this object."""
        if name not in self._answers:
            self._answers[name] = question()
        answer: T = self._answers[name]
        return answer

    # -- programs

    def has(self, program: str) -> bool:
        """Whether a program is installed."""
        return shutil.which(program, path=self._environment["PATH"]) is not None

    def run(self, *argv: str, timeout: float = 30) -> Said:
        """Run a program to its end. Raises CannotAsk when it cannot be started or takes too long; its status is for the caller to judge."""
        done = self._run(argv, timeout)
        return Said(done.returncode, done.stdout.decode("utf-8", "surrogateescape"), done.stderr.decode("utf-8", "replace"))

    def said(self, *argv: str, timeout: float = 30) -> Said:
        """As `run`, but a status other than 0 raises CannotAsk."""
        answer = self.run(*argv, timeout=timeout)
        answer.check(argv)
        return answer

    def output(self, argv: tuple[str, ...], timeout: float) -> bytes:
        """What a program wrote, byte for byte. Raises CannotAsk when it failed."""
        done = self._run(argv, timeout)
        Said(done.returncode, "", done.stderr.decode("utf-8", "replace")).check(argv)
        return done.stdout

    def _run(self, argv: tuple[str, ...], timeout: float) -> subprocess.CompletedProcess[bytes]:
        try:
            return subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, env=self._environment, timeout=timeout, check=False, cwd="/"
            )
        except subprocess.TimeoutExpired:
            raise CannotAsk(f"'{' '.join(argv)}' did not answer within {timeout:.0f} s") from None
        except OSError as error:
            raise CannotAsk(f"cannot run {argv[0]}: {error.strerror}") from None

    # -- files

    def exists(self, path: str) -> bool:
        """Whether something is there (a link that leads nowhere is)."""
        return os.path.lexists(path)

    def is_directory(self, path: str) -> bool:
        """Whether it is a directory, links followed."""
        return os.path.isdir(path)

    def read(self, path: str) -> str:
        """A small text file. Raises CannotAsk."""
        try:
            with open(path, "rb") as file:
                return file.read(_SMALL).decode("utf-8", "surrogateescape")
        except OSError as error:
            raise CannotAsk(f"cannot read {path}: {error.strerror}") from None

    def status(self, path: str) -> os.stat_result | None:
        """Its status, links followed; None when it is not there."""
        try:
            return os.stat(path)
        except OSError:
            return None

    def names(self, path: str) -> list[str]:
        """Names in a directory, in order; none when it cannot be listed."""
        try:
            return sorted(os.listdir(path))
        except OSError:
            return []

    def chosen(self, path: str, why: str, *left_out: LeftOut, queue: bool = False) -> list[Chosen]:
        """`path` to save, and everything that it leads to by links: the links on its way, and where it really lies."""
        path = os.path.normpath(path)
        rows = [Chosen(link, f"{why} (a link on its way)") for link in self._links(os.path.dirname(path))]
        real = os.path.realpath(path)
        rows.append(Chosen(path, why, left_out, queue))
        if real != path and os.path.lexists(real):
            rows.append(Chosen(real, f"{why} (where {path} leads)", left_out, queue))
        return rows

    def _links(self, directory: str) -> list[str]:
        """Symbolic links among the components of a path. Those of the system itself (/lib, /bin) come with every installation."""
        found = []
        while directory not in ("/", ""):
            if os.path.islink(directory) and os.path.dirname(directory) != "/":
                found.append(directory)
            directory = os.path.dirname(directory)
        return found
