"""`init` at a terminal: a real one (a pseudo terminal), whose other end answers like a person."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
import tomllib
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

REPOSITORY = Path(__file__).parents[2]
DOVECONF = 'echo "mail_location = maildir:/x"'
ENTER = ""


class Terminal:
    """`mailbackup ARGS` at a terminal."""

    def __init__(self, args: list[str], environment: dict[str, str]) -> None:
        self.seen = ""
        self._looked = 0  # what was read with an earlier question counts for the next one
        self.status: int | None = None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:  # the child
            try:
                os.execve(sys.executable, [sys.executable, "-m", "mailbackup", *args], environment)
            finally:
                os._exit(127)

    def until(self, text: str, seconds: float = 30) -> None:
        """Read until `text` was written after what was waited for before."""
        end = time.monotonic() + seconds
        while text not in self.seen[self._looked :]:
            assert time.monotonic() < end, f"waited for {text!r}; seen: {self.seen!r}"
            if not self._read():
                raise AssertionError(f"it ended before {text!r}; seen: {self.seen!r}")
        self._looked = self.seen.index(text, self._looked) + len(text)

    def answer(self, question: str, text: str) -> None:
        """Wait for a question and type an answer."""
        self.until(question)
        os.write(self.fd, text.encode() + b"\n")

    def end(self, seconds: float = 60) -> int:
        """Read to the end; returns the exit status."""
        until = time.monotonic() + seconds
        while self._read():
            if time.monotonic() > until:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"it did not end; seen: {self.seen!r}")
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def interrupted(self) -> int:
        """Press Ctrl-C, and again as a person does: one that comes before the program has begun to read is noticed only after the read."""
        for _ in range(30):
            os.write(self.fd, b"\x03")
            until = time.monotonic() + 1
            while time.monotonic() < until:
                if not self._read():
                    return self.end()
        raise AssertionError(f"it did not end; seen: {self.seen!r}")

    def _read(self) -> bool:
        if not select.select([self.fd], [], [], 0.2)[0]:
            return True
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # the other end is closed
            return False
        self.seen += data.decode()
        return bool(data)


@pytest.fixture
def host(tmp_path: Path) -> dict[str, str]:
    """The environment of a person with a home of their own."""
    (tmp_path / "home").mkdir()
    (tmp_path / "mail" / "example.org" / "ann" / "cur").mkdir(parents=True)
    names = {name: value for name, value in os.environ.items() if not name.startswith(("MAILBACKUP", "XDG"))}
    return names | {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY), "TERM": "dumb", "COLUMNS": "200"}


def start(tmp_path: Path, host: dict[str, str], *args: str) -> Terminal:
    return Terminal(["init", "--config", f"{tmp_path}/c.toml", "--state", f"{tmp_path}/state", *args], host)


def test_all_questions(tmp_path: Path, host: dict[str, str]):
    terminal = start(tmp_path, host)
    terminal.answer("Mailboxes [", f"{tmp_path}/mail/{{domain}}/%n")
    terminal.until("write {user}, {domain}, {address}")
    terminal.answer("Mailboxes [", f"{tmp_path}/mail/{{domain}}/{{user}}")
    terminal.until("1 mailbox")
    terminal.answer("Directories besides [", f"{tmp_path}/absent")
    terminal.until("is not a directory")
    terminal.answer("Directories besides [", f"{tmp_path}/home")
    terminal.answer("Backups go to [", f"{tmp_path}/vault")
    terminal.answer("Recovery kit [", "-")
    terminal.until("without a kit nobody could read the backups")
    terminal.answer("Recovery kit [", f"{tmp_path}/kit.txt")
    terminal.until("recovery kit   ")
    terminal.answer("Set this up? [", "y")
    terminal.answer("nothing = none", "secret words")
    terminal.answer("once more", "other words")
    terminal.answer("nothing = none", "secret words")
    terminal.answer("once more", "secret words")
    assert terminal.end() == 0, terminal.seen
    assert "secret words" not in terminal.seen
    config = tomllib.loads((tmp_path / "c.toml").read_text())
    assert config["mail"][0]["path"] == f"{tmp_path}/mail/{{domain}}/{{user}}"
    assert [row["path"] for row in config["directory"]] == [f"{tmp_path}/home"]
    assert config["store"][0]["url"] == f"file://{tmp_path}/vault"
    assert (tmp_path / "kit.txt").read_text().startswith("-----BEGIN AGE ENCRYPTED FILE-----")
    assert (
        len(re.findall(r"^[A-Z][^\n]*\[[^\n]*\][:?]", terminal.seen.replace("\r", ""), re.MULTILINE)) <= 9
    )  # 6 questions, three of them twice


def test_what_was_said_is_not_asked(tmp_path: Path, host: dict[str, str]):
    terminal = start(tmp_path, host, "--directory", f"{tmp_path}/home", "--store", f"{tmp_path}/vault", "--no-passphrase")
    terminal.answer("Mailboxes [", "-")
    terminal.answer("Recovery kit [", ENTER)
    terminal.answer("Set this up? [", "y")
    assert terminal.end() == 0, terminal.seen
    assert "Directories besides" not in terminal.seen
    assert len(list((tmp_path / "home").glob("mailbackup-kit-*.txt"))) == 1


def test_no_means_no(tmp_path: Path, host: dict[str, str]):
    terminal = start(tmp_path, host, "--directory", f"{tmp_path}/home", "--store", f"{tmp_path}/vault", "--kit-out", f"{tmp_path}/kit.txt")
    terminal.answer("Set this up? [", "n")
    assert terminal.end() == 2
    assert "nothing was done" in terminal.seen
    assert sorted(os.listdir(tmp_path)) == ["home", "mail"]


def test_going_away_changes_nothing(tmp_path: Path, host: dict[str, str]):
    terminal = start(tmp_path, host)
    terminal.until("Mailboxes [")
    assert terminal.interrupted() == 130
    assert sorted(os.listdir(tmp_path)) == ["home", "mail"]


# -- without a terminal, on a mail server


def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *accounts: tuple[str, str]) -> None:
    """A Dovecot that knows these accounts (name, path of the Maildir), found by its programs alone."""
    for _, path in accounts:
        os.makedirs(f"{path}/cur", exist_ok=True)
    blocks = "\\n\\n".join(f"uid\\t1\\nhome\\t/x\\nmail\\tmaildir:{path}" for _, path in sorted(accounts))
    names = "\\n".join(name for name, _ in sorted(accounts))
    programs = {
        "doveconf": DOVECONF,
        "dovecot": "echo 2.3.19",
        "doveadm": f"if [ \"$2\" = '*' ]; then printf '{names}\\n'; else printf 'field\\tvalue\\n{blocks}\\n'; fi",
    }
    (tmp_path / "bin").mkdir()
    for name, script in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setattr("mailbackup.systems.ask.SEARCH_PATH", f"{tmp_path}/bin:/usr/bin:/bin")


def options(tmp_path: Path, *more: str) -> tuple[str, ...]:
    places = ("--config", f"{tmp_path}/c.toml", "--state", f"{tmp_path}/state", "--store", f"{tmp_path}/vault")
    return ("init", "--yes", *places, "--kit-out", f"{tmp_path}/kit.txt", "--no-passphrase", *more)


def test_yes_takes_what_is_certain(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    server(tmp_path, monkeypatch, ("ann@a.example", f"{tmp_path}/m/a.example/ann"), ("bo@b.example", f"{tmp_path}/m/b.example/bo"))
    assert cli(*options(tmp_path)).status == 0
    config = tomllib.loads((tmp_path / "c.toml").read_text())
    assert [row["path"] for row in config["mail"]] == [f"{tmp_path}/m/{{domain}}/{{user}}"]
    assert config.get("systems", {}).get("use") == ("auto" if os.geteuid() == 0 else None)


def test_yes_does_not_guess(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch):
    server(tmp_path, monkeypatch, ("ann@a.example", f"{tmp_path}/m/a.example/ann"), ("bo@b.example", f"{tmp_path}/other/b.example/x/bo"))
    done = cli(*options(tmp_path))
    assert done.status == 2
    assert f"--mail '{tmp_path}/m/{{domain}}/{{user}}'" in done.err
    assert not (tmp_path / "c.toml").exists()
    assert cli(*options(tmp_path, "--mail", f"{tmp_path}/m/{{domain}}/{{user}}")).status == 0
