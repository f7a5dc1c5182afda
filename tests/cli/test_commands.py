"""What commands hand to `app` and what people read. `app` is a stand-in here; test_end_to_end.py has the real one."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import pytest

from mailbackup import access, app
from mailbackup.cli import secret
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.results import BackupResult
from mailbackup.upkeep.rolling import Budget
from tests.cli.conftest import Cli
from tests.cli.reference import leaves
from tests.cli.samples import ANSWERS, BACKUP, EXPUNGED, PLANNED, UNREADABLE, changed

Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Calls:
    """Every call of `app` (function, arguments without the context, named arguments); the answers are the samples."""
    monkeypatch.chdir(tmp_path)
    seen: Calls = []

    def stand_in(name: str) -> Callable[..., Any]:
        def function(first: Any, *args: Any, **named: Any) -> Any:
            seen.append((name, args if name != "init" else (first,), named))
            return ANSWERS[name]

        return function

    for name in ANSWERS:
        monkeypatch.setattr(app, name, stand_in(name))
    return seen


def incomplete(*findings: Finding) -> BackupResult:
    result: BackupResult = changed(BACKUP, outcome="incomplete", findings=findings)
    return result


def test_backup(cli: Cli, config_file: str, calls: Calls):
    done = cli("backup", "--rescan", "--accept-shrink", "--config", config_file)
    assert calls == [("backup", (), {"rescan": True, "accept_shrink": True})]
    assert (done.status, done.err) == (0, "")
    assert done.text.splitlines() == [
        "snapshot 3 is complete: 1,204 messages in 2 mailboxes (7 new), 1 file",
        "read 2.0 KiB, stored 1.5 KiB in 4 requests, 0.25 s",
    ]


def test_quiet_leaves_out_reports_but_not_problems(cli: Cli, config_file: str, calls: Calls, monkeypatch: pytest.MonkeyPatch):
    assert cli("-q", "backup", "--config", config_file).text == ""
    assert cli("-q", "snapshots", "--config", config_file).text != ""
    monkeypatch.setattr(app, "backup", lambda *args, **named: incomplete(UNREADABLE, EXPUNGED))
    done = cli("backup", "-q", "--config", config_file)
    assert (done.status, done.text, done.err) == (3, "", "unreadable: /var/vmail/x: permission denied\n")
    loud = cli("backup", "--config", config_file)
    assert loud.err == "unreadable: /var/vmail/x: permission denied\n1 finding without need for action; --json lists all\n"


def test_many_findings_are_counted(cli: Cli, config_file: str, calls: Calls, monkeypatch: pytest.MonkeyPatch):
    many = [Finding(FindingKind.LOST, f"m{n}") for n in range(50)]
    monkeypatch.setattr(app, "backup", lambda *args, **named: incomplete(*many))
    shown = cli("backup", "--config", config_file).err.splitlines()
    assert (len(shown), shown[0], shown[-1]) == (21, "lost: m0", "… and 30 more; --json lists all")
    assert len(cli("backup", "--json", "--config", config_file).json["findings"]) == 50


def test_global_options_reach_the_context(cli: Cli, config_file: str, monkeypatch: pytest.MonkeyPatch):
    seen: list[access.Context] = []
    monkeypatch.setattr(app, "snapshots", lambda context: seen.append(context) or [])
    options = ("--config", config_file, "--store", "local", "--identity", "kit.txt", "--state", "here")
    cli(*options, "snapshots")
    cli("snapshots", *options)
    cli("--store", "other", "snapshots", *options)
    assert {(c.store, c.identity_file, c.config.host.name) for c in seen} == {("local", "kit.txt", "mx1")}
    assert {c.state_dir for c in seen} == {os.path.abspath("here")}


def test_snapshots(cli: Cli, config_file: str, calls: Calls, monkeypatch: pytest.MonkeyPatch):
    assert cli("snapshots", "--config", config_file).text.splitlines() == [
        "seq  time                  messages     size  outcome     stores",
        "  1  2026-01-01T02:30:00Z         -        -  complete    local",
        "  3  2026-01-02T02:30:00Z     1,204  2.0 KiB  incomplete  local far",
    ]
    monkeypatch.setattr(app, "snapshots", lambda context: [])
    assert cli("snapshots", "--config", config_file).text == "no snapshots yet\n"


def test_ls(cli: Cli, config_file: str, calls: Calls):
    mailboxes = cli("ls", "--config", config_file).text.splitlines()
    assert mailboxes[1:] == [
        "user@example.org      1,204  2.0 KiB  vmail",
        "other@example.org         1      1 B  vmail     stale",
    ]
    messages = cli("ls", "user@example.org/Sent/2026", "--at", "3", "--location", "vmail", "--config", config_file).text.splitlines()
    assert messages[1].startswith("3f2a3f2a3f2a3f2a  INBOX   2026-01-01T10:00:00+01:00  70 B  S")
    assert messages[2].split() == ["77aa77aa77aa77aa", "Sent", "-", "0", "B", "-"]
    assert calls == [
        ("mailboxes", (), {"at": "latest"}),
        ("messages", ("user@example.org",), {"folder": "Sent/2026", "at": "3", "location": "vmail"}),
    ]
    assert cli("ls", "--location", "elsewhere", "--config", config_file).text.count("\n") == 1


def test_show_snapshot(cli: Cli, config_file: str, calls: Calls):
    done = cli("show", "3", "--config", config_file)
    assert calls == [("show_snapshot", ("3",), {})]
    assert "outcome   explained" in done.text
    assert "source vmail (mail): 1,204 messages, 2 mailboxes, 2.0 KiB" in done.text


def test_restore_one_and_all(cli: Cli, config_file: str, calls: Calls, tmp_path):
    done = cli("restore", "mailbox", "user@example.org", "--to", "out", "--folder", "Sent", "--overwrite", "--config", config_file)
    cli("restore", "mailbox", "--all", "--to", "/abs", "--at", "yesterday", "--dry-run", "--location", "vmail", "--config", config_file)
    options = {"at": "latest", "location": None, "overwrite": True, "dry_run": False, "folder": "Sent", "to": f"{tmp_path}/out"}
    changed = {"at": "yesterday", "location": "vmail", "overwrite": False, "dry_run": True, "folder": None, "to": "/abs"}
    assert calls == [("restore_mailbox", ("user@example.org",), options), ("restore_mailbox", (None,), changed)]
    assert done.text.splitlines() == [
        f"restored 5 messages, 2 files, 700 B from snapshot 3 to {tmp_path}/out (1 were there already)",
        "fetched 900 B in 3 requests, 1.50 s",
    ]


def test_restore_several_gets_a_folder_each_and_adds_up(cli: Cli, config_file: str, calls: Calls, tmp_path):
    done = cli("restore", "mailbox", "user@example.org", "other@example.org", "--to", "out", "--json", "--config", config_file)
    assert [(name, named.get("to")) for name, _, named in calls] == [
        ("mailboxes", None),
        ("restore_mailbox", f"{tmp_path}/out/user@example.org"),
        ("restore_mailbox", f"{tmp_path}/out/other@example.org"),
    ]
    assert (done.json["messages"], done.json["fetched"], done.json["seconds"]) == (10, {"requests": 6, "bytes": 1800}, 3.0)


def test_restore_several_begins_only_when_all_exist(cli: Cli, config_file: str, calls: Calls):
    done = cli("restore", "mailbox", "user@example.org", "othr@example.org", "--to", "out", "--config", config_file)
    assert done.status == 2
    assert done.err.startswith("no mailbox othr@example.org in the snapshot [MB-U004]")
    assert [name for name, _, _ in calls] == ["mailboxes"]


def test_a_plan_is_shown_also_when_quiet(cli: Cli, config_file: str, calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(app, "restore_files", lambda *args, **named: PLANNED)
    done = cli("restore", "files", "/etc", "--to", "out", "--dry-run", "-q", "--config", config_file)
    assert done.text.splitlines() == [
        "write  cur/1.a:2,S",
        "keep   cur/2.b:2,   same content",
        f"snapshot 3 would put 1 message, 0 files, 70 B into {tmp_path}/out; nothing was changed",
    ]


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("100%", 1.0), ("0.5", 0.5), ("1", 1.0), ("2.5%", 0.025)])
def test_verify_takes_a_share(text: str, share: float, cli: Cli, config_file: str, calls: Calls):
    cli("verify", "--decrypt", "--sample", text, "--config", config_file)
    assert calls == [("verify", (), {"decrypt": True, "sample": pytest.approx(share), "budget": None, "sign": None})]


@pytest.mark.parametrize(
    ("text", "budget"),
    [("1%", Budget(share=0.01)), ("10GiB", Budget(bytes=10 << 30)), ("1.5 GB", Budget(bytes=1_500_000_000)), ("2h", Budget(seconds=7200))],
)
def test_verify_takes_a_budget(text: str, budget: Budget, cli: Cli, config_file: str, calls: Calls):
    cli("verify", "--budget", text, "--sign", "prune.key", "--config", config_file)
    assert calls == [("verify", (), {"decrypt": False, "sample": None, "budget": budget, "sign": "prune.key"})]


def test_init_makes_whole_paths(cli: Cli, calls: Calls, tmp_path):
    sources = "init --yes --mail v/{domain}/{user} --mail /w/{user} --directory etc --store file:///mnt/x --kit-out kit.txt --no-passphrase"
    done = cli(*f"{sources} --config c.toml --state s --host mx1 --domain d.example".split(), "--store", "backups dir")
    [(_, (options,), _)] = calls
    assert options == app.InitOptions(
        config_path=f"{tmp_path}/c.toml",
        state_dir=f"{tmp_path}/s",
        host="mx1",
        mail=(f"{tmp_path}/v/{{domain}}/{{user}}", "/w/{user}"),
        directories=(f"{tmp_path}/etc",),
        stores=("file:///mnt/x", f"file://{tmp_path}/backups%20dir"),
        kit_out=f"{tmp_path}/kit.txt",
        domain="d.example",
        passphrase=None,
    )
    assert "Next: mailbackup --config /c.toml --state s backup" in done.text


def test_init_asks_first(cli: Cli, calls: Calls, monkeypatch: pytest.MonkeyPatch):
    args = ("init", "--mail", "/v/{user}", "--kit-out", "kit.txt", "--no-passphrase")
    done = cli(*args)
    assert (done.status, done.out, calls) == (2, b"", [])
    assert "mail           /v/{user}\n" in done.err
    assert done.err.endswith("nothing was done: there is nobody to ask [MB-U001]\nHINT: Say --yes to do it.\n")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer, status, count in ((False, 2, 0), (True, 0, 1)):
        monkeypatch.setattr("typer.confirm", lambda *args, answer=answer, **named: answer)
        assert (cli(*args).status, len(calls)) == (status, count)


def test_passphrases(cli: Cli, calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path):
    args = ("init", "--yes", "--mail", "/v/{user}", "--kit-out", "kit.txt")
    done = cli(*args)
    assert (done.status, calls) == (2, [])
    assert done.err == (
        "no passphrase for the recovery kit [MB-U001]\n"
        "HINT: Name a file that holds it with $MAILBACKUP_PASSPHRASE_FILE, or say --no-passphrase.\n"
    )
    (tmp_path / "pass").write_text("correct horse \nsecond line\n")
    monkeypatch.setenv(secret.VARIABLE, str(tmp_path / "pass"))
    assert cli(*args).status == 0
    assert calls[0][1][0].passphrase == "correct horse "
    monkeypatch.setenv(secret.VARIABLE, str(tmp_path / "absent"))
    assert "cannot read the passphrase from" in cli(*args).err


def test_passphrases_are_asked_twice(monkeypatch: pytest.MonkeyPatch, cli: Cli, calls: Calls):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    args = ("init", "--yes", "--mail", "/v/{user}", "--kit-out", "kit.txt")
    for answers, status in ((["a", "a"], 0), (["a", "b"], 2), ([""], 2)):
        given = iter(answers)
        monkeypatch.setattr(secret, "getpass", lambda prompt, given=given: next(given))
        assert cli(*args).status == status
    assert len(calls) == 1


def test_the_identity_is_asked_for_once(cli: Cli, config_file: str, monkeypatch: pytest.MonkeyPatch):
    prompts: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(secret, "getpass", lambda prompt: prompts.append(prompt) or "open")
    monkeypatch.setattr(app, "snapshots", lambda context: [context.passphrase(), context.passphrase()][2:])
    assert cli("snapshots", "--identity", "kit.txt", "--config", config_file).status == 0
    assert prompts == ["Passphrase of kit.txt: "]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    done = cli("snapshots", "--identity", "kit.txt", "--config", config_file)
    assert (done.status, done.err.splitlines()[0]) == (7, "kit.txt is protected by a passphrase [MB-K002]")


def test_no_secret_is_taken_from_the_command_line():
    options = {name for _, command in leaves() for param in command.params for name in param.opts}
    assert {name for name in options if "pass" in name or "secret" in name} == {"--no-passphrase", "no_passphrase"} & options


def test_config_commands(cli: Cli, config_file: str):
    folder = os.path.dirname(config_file)
    os.mkdir(f"{folder}/etc")
    assert cli("config", "check", "--config", config_file).text.splitlines() == [
        f"{config_file} is valid: 2 sources, 1 store, 1 recipient",
        f"note: {folder}/vmail does not exist now",
    ]
    shown = cli("config", "show", "--config", config_file).text
    assert shown.startswith(f"# {config_file}\n[host]\n")
    assert cli("config", "show", "--json", "--config", config_file).json["config"]["host"] == {"name": "mx1"}


def test_names_that_are_not_text(cli: Cli, config_file: str, calls: Calls):
    odd = os.fsdecode(b"kit-\xff.txt")
    done = cli("key", "kit", "--out", odd, "--no-passphrase", "--config", config_file, "--json")
    assert json.loads(done.out)["kit"].endswith(odd)
    assert b"kit-\\udcff.txt" in cli("key", "kit", "--out", odd, "--no-passphrase", "--config", config_file).out


def test_version(cli: Cli, capfdbinary: pytest.CaptureFixture[bytes]):
    from mailbackup.cli.main import run

    assert run(["--version"]) == 0
    fast = capfdbinary.readouterr().out
    assert fast == f"mailbackup {metadata.version('mailbackup')}\n".encode()
    assert cli("-v", "--version").out == fast
