"""Progress is drawn from events: rarely in a log, never with --json or -q, and only on stderr."""

from __future__ import annotations

import sys

import pytest

from mailbackup import access, app
from mailbackup.cli.progress import Plain, Silent, Terminal, describe, reporter
from mailbackup.cli.settings import Settings
from mailbackup.cli.text import duration, number, size, table
from mailbackup.model.events import Found, Note, Phase, Progress
from tests.cli.conftest import Cli
from tests.cli.samples import BACKUP, UNREADABLE


class Clock:
    """Time that stands still until it is told otherwise."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_each_ten_seconds_of_a_phase(capfd: pytest.CaptureFixture[str]):
    clock = Clock()
    draw = Plain(verbose=False, clock=clock)
    draw(Phase("reading mail", 300))
    for second in range(1, 26):
        clock.now = float(second)
        draw(Progress(second * 10, second * 1024 * 1024, "user@example.org"))
    draw(Phase("sealing", 10 * 1024, "bytes"))
    clock.now = 34.9
    draw(Progress(1, 1))
    clock.now = 35.0
    draw(Progress(1, 5 * 1024))
    draw(Found(UNREADABLE))
    draw(Note("a note"))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "reading mail: 100 of 300 messages, 10.0 MiB, 1.0 MiB/s, 20.0 s left",
        "reading mail: 200 of 300 messages, 20.0 MiB, 1.0 MiB/s, 10.0 s left",
        "sealing: 5.0 KiB of 10.0 KiB, 512 B/s, 10.0 s left",
    ]


def test_verbose_says_findings_and_notes(capfd: pytest.CaptureFixture[str]):
    draw = Plain(verbose=True)
    draw(Found(UNREADABLE))
    draw(Note("moved aside \x1b[0m"))
    draw.close()
    assert capfd.readouterr().err == "unreadable: /var/vmail/x: permission denied\nmoved aside \\x1b[0m\n"


def test_without_a_total_there_is_no_guess():
    assert describe(Phase("checking", None, "objects"), Progress(1200, 4096), 2.0) == "checking: 1,200 objects, 4.0 KiB, 2.0 KiB/s"
    assert describe(Phase("checking", 5, "objects"), Progress(0, 0), 0.0) == "checking: 0 of 5 objects, 0 B"
    assert "left" not in describe(Phase("checking", 5), Progress(9, 9), 1.0)


def test_which_reporter(monkeypatch: pytest.MonkeyPatch):
    assert isinstance(reporter(Settings(json=True)), Silent)
    assert isinstance(reporter(Settings(quiet=True)), Silent)
    assert isinstance(reporter(Settings()), Plain)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(reporter(Settings()), Terminal)
    assert isinstance(reporter(Settings(json=True)), Silent)


def test_bars(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    draw = Terminal(verbose=True)
    draw(Progress(1, 1))
    draw(Phase("reading [bold]mail", 10))
    draw(Progress(5, 2048, "a\x1bb"))
    draw(Note("a note [red]"))
    draw.pause()
    draw(Phase("sealing", None, "bytes"))
    draw(Progress(5, 2048))
    draw.close()
    draw.close()
    out, err = capfd.readouterr()
    assert out == ""
    for text in ("reading [bold]mail", "5 of 10 messages", "a\\x1bb", "a note [red]"):
        assert text in err


@pytest.mark.parametrize("option", ["--json", "-q"])
def test_nothing_is_drawn(option: str, cli: Cli, config_file: str, monkeypatch: pytest.MonkeyPatch):
    def backup(context: access.Context, **_named: object) -> object:
        context.on_event(Phase("reading", 1))
        context.on_event(Progress(1, 1))
        context.on_event(Note("x"))
        return BACKUP

    monkeypatch.setattr(app, "backup", backup)
    assert cli("backup", option, "-v", "--config", config_file).err == ""
    assert cli("backup", "-v", "--config", config_file).err == "x\n"


def test_words_for_numbers():
    assert [size(n) for n in (0, 1023, 1024, 1536, 1 << 20, 5 << 40, 1 << 60)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "1.0 MiB",
        "5.0 TiB",
        "1024.0 PiB",
    ]
    assert [duration(s) for s in (0, 9.99, 12.34, 59.9, 61, 3599, 3600, 90061)] == [
        "0.00 s",
        "9.99 s",
        "12.3 s",
        "59.9 s",
        "1 min 01 s",
        "59 min 59 s",
        "1 h 00 min",
        "25 h 01 min",
    ]
    assert [number(1, "mailbox", "mailboxes"), number(0, "mailbox", "mailboxes"), number(1204, "message")] == [
        "1 mailbox",
        "0 mailboxes",
        "1,204 messages",
    ]


def test_tables():
    assert table([("a", "1", "x y"), ("bbb", "22", "z\n w")], right=frozenset({1})) == ["a     1  x y", "bbb  22  z w"]
    assert table([]) == []
