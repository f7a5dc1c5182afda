"""Everything that is raised becomes a message, a hint and an exit status; with --json one object on stdout."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from mailbackup import app
from mailbackup.errors import Interrupted, MailbackupError, StoreUnavailable, tree
from tests.cli.conftest import Cli
from tests.cli.reference import schemas
from tests.cli.samples import COMMANDS
from tests.cli.schema import problems


def _raise(error: BaseException):
    def function(*_args: object, **_named: object) -> None:
        raise error

    return function


@pytest.mark.case("45")
@pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.__name__)
def test_every_error_has_its_status_and_its_texts(kind: type[MailbackupError], cli: Cli, config_file: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "backup", _raise(kind("store local: it is not there")))
    done = cli("backup", "--config", config_file)
    assert (done.status, done.out) == (kind.exit_status, b"")
    assert done.err == f"store local: it is not there [{kind.code}]\nHINT: {kind.default_hint}\n"
    answer = cli("backup", "--config", config_file, "--json")
    about = {"code": kind.code, "message": "store local: it is not there", "hint": kind.default_hint}
    assert answer.json == {"error": about, "command": "backup", "outcome": "error", "exit_status": kind.exit_status}
    assert problems(answer.json, {k: v for k, v in schemas()["error"].items() if k != "file"}) == []
    assert answer.err == ""


@pytest.mark.parametrize("function", COMMANDS)
def test_every_command_renders_errors(function: str, cli: Cli, config_file: str, monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(app, function, _raise(StoreUnavailable("gone")))
    done = cli("--config", config_file, *COMMANDS[function], "--json")
    assert (done.status, done.json["error"]["code"]) == (5, "MB-O002")
    assert COMMANDS[function][: len(done.json["command"].split())] == tuple(done.json["command"].split())


def test_own_hint_and_no_hint(cli: Cli, config_file: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "backup", _raise(StoreUnavailable("gone", hint="Mount it.")))
    assert cli("backup", "--config", config_file).err == "gone [MB-O002]\nHINT: Mount it.\n"
    monkeypatch.setattr(app, "backup", _raise(StoreUnavailable("gone", hint="")))
    assert cli("backup", "--config", config_file).err == "gone [MB-O002]\n"


def test_unexpected_is_one_line_and_a_hint(cli: Cli, config_file: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "backup", _raise(ZeroDivisionError("over\nthe top")))
    done = cli("backup", "--config", config_file)
    assert done.status == 1
    assert done.err == "unexpected ZeroDivisionError: over the top [MB-X001]\nHINT: Run again with -v and report the output.\n"
    assert cli("backup", "--config", config_file, "--json").json["error"]["code"] == "MB-X001"


def test_traceback_only_with_v(cli: Cli, config_file: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "backup", _raise(ZeroDivisionError("x")))
    done = cli("backup", "-v", "--config", config_file)
    assert "Traceback" in done.err
    assert done.err.endswith("HINT: Run again with -v and report the output.\n")
    monkeypatch.setattr(app, "backup", _raise(StoreUnavailable("gone")))
    assert "Traceback" not in cli("backup", "-v", "--config", config_file).err


def test_ctrl_c(cli: Cli, config_file: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "backup", _raise(KeyboardInterrupt()))
    done = cli("backup", "--config", config_file)
    assert (done.status, done.err) == (130, f"interrupted [MB-I001]\nHINT: {Interrupted.default_hint}\n")
    assert cli("backup", "--config", config_file, "--json").json["error"]["code"] == "MB-I001"


def test_texts_cannot_steer_the_terminal(cli: Cli, config_file: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "backup", _raise(StoreUnavailable("a\x1b[31mred\x9b31m \u202eback")))
    assert cli("backup", "--config", config_file).err.startswith("a\\x1b[31mred\\x9b31m \\u202eback [")


USAGE = [
    ((), "", ""),
    (("bakup",), "", "No such command 'bakup'"),
    (("backup", "--rescann"), "backup", "--rescann"),
    (("restore",), "restore", "Missing command"),
    (("restore", "mailbox", "user@example.org"), "restore mailbox", "'--to'"),
    (("restore", "mailbox", "--to", "x"), "restore mailbox", "name the mailboxes to restore, or say --all"),
    (("restore", "mailbox", "user@example.org", "--all", "--to", "x"), "restore mailbox", "name the mailboxes to restore, or say --all"),
    (("restore", "files", "--to", "x"), "restore files", "PATH"),
    (("show",), "show", "SEQ|ADDRESS"),
    (("verify", "--sample", "5"), "verify", "--sample 5: not a share"),
    (("verify", "--sample", "0%"), "verify", "--sample 0%: not a share"),
    (("verify", "--budget", "0%"), "verify", "--budget 0%: not a share"),
    (("verify", "--budget", "0h"), "verify", "--budget 0h: neither a share, nor bytes, nor a time"),
    (("verify", "--budget", "10"), "verify", "--budget 10: neither a share, nor bytes, nor a time"),
    (("verify", "--budget", "1%", "--decrypt"), "verify", "a budget goes with neither --decrypt nor --sample"),
    (("init",), "init", "--kit-out"),
    (("init", "--kit-out", "k"), "init", "nothing to save"),
    (("--json-please", "backup"), "", "--json-please"),
    (("quickstart", "--config", "x"), "quickstart", "quickstart makes its own configuration"),
]


@pytest.mark.case("45")
@pytest.mark.parametrize(("args", "command", "message"), USAGE, ids=lambda value: " ".join(value) if isinstance(value, tuple) else "")
def test_usage_errors(args: tuple[str, ...], command: str, message: str, cli: Cli, config_file: str):
    given = (*args, "--config", config_file) if args[:1] == ("verify",) else args
    done = cli(*given)
    assert done.status == 2
    assert "Traceback" not in done.err
    if args:
        assert done.out == b""
        assert message in done.err
        assert "\nHINT: " in done.err
        assert done.err.count("\n") == 2
        answer = cli(*given, "--json").json
        assert (answer["command"], answer["error"]["code"], answer["outcome"]) == (command, "MB-U001", "error")
        assert message in answer["error"]["message"]


def test_json_after_two_dashes_is_an_argument(cli: Cli):
    assert cli("restore", "files", "--", "--json").out == b""


def test_the_configuration_is_named_in_errors(cli: Cli, tmp_path):
    (tmp_path / "c.toml").write_text("[host\n")
    done = cli("config", "check", "--config", f"{tmp_path}/c.toml")
    assert done.status == 2
    assert done.err.startswith(f"{tmp_path}/c.toml:1: ")


def _process(body: str, *args: str, **options: object) -> subprocess.Popen[bytes]:
    """The program in a process of its own, with `body` run before it."""
    code = textwrap.dedent(body) + "\nimport sys\nfrom mailbackup.cli.main import run\nsys.exit(run())"
    return subprocess.Popen([sys.executable, "-c", code, *args], stderr=subprocess.PIPE, **{"stdout": subprocess.PIPE, **options})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_unwind_the_program(number: signal.Signals, config_file: str, tmp_path):
    waiting = f"""
        import os, time
        from mailbackup import app
        def backup(*args, **named):
            try:
                os.mkdir({str(tmp_path / "begun")!r})
                for _ in range(600):
                    time.sleep(0.1)  # a signal just before one long sleep would wait for its end
            finally:
                os.mkdir({str(tmp_path / "closed")!r})
        app.backup = backup
    """
    process = _process(waiting, "backup", "--json", "--config", config_file)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, b"")
    assert json.loads(out)["error"]["code"] == "MB-I001"
    assert (tmp_path / "closed").exists()


def test_a_reader_that_goes_away_is_no_error(config_file: str):
    many = """
        from mailbackup import app
        from tests.cli.samples import MAILBOXES
        app.mailboxes = lambda *args, **named: MAILBOXES * 100_000
    """
    read, write = os.pipe()
    process = _process(many, "ls", "--config", config_file, stdout=write)
    os.close(write)
    assert os.read(read, 7) == b"address"
    os.close(read)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
