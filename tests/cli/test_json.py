"""--json: one line on stdout, as its schema says, wherever the option stands."""

from __future__ import annotations

from typing import Any

import pytest

from mailbackup import app
from mailbackup.model.drill import DrillResult, ServerResult
from mailbackup.model.results import (
    BackupResult,
    CopyResult,
    Fetched,
    InitResult,
    MailboxLine,
    MessageLine,
    PlanLine,
    RebuildResult,
    RestoreResult,
    SnapshotRow,
    StoreOutcome,
    VerifyResult,
)
from mailbackup.server.live import LiveResult
from tests.cli.conftest import Cli
from tests.cli.reference import leaves, schemas
from tests.cli.samples import ANSWERS, AWAY, BACKUP, COMMANDS, EXPUNGED, PLANNED, RESTORE, UNREADABLE, VERIFY, changed
from tests.cli.schema import problems


def check(answer: dict[str, Any]) -> None:
    """Fail unless the answer is as its schema says, and nothing else."""
    schema = dict(schemas()["error" if answer["outcome"] == "error" else answer["command"]])
    del schema["file"]
    assert problems(answer, schema) == []


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """`app` gives the sample answers; files that a command writes go into a folder of the test."""
    monkeypatch.chdir(tmp_path)
    for name, answer in ANSWERS.items():
        monkeypatch.setattr(app, name, lambda *args, answer=answer, **named: answer)
    return monkeypatch


@pytest.mark.parametrize("function", COMMANDS)
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_every_answer_fits_its_schema(function: str, before: bool, cli: Cli, config_file: str, stand_in):
    options = ("--json", "--identity", "kit.txt", "--config", config_file)
    done = cli(*options, *COMMANDS[function]) if before else cli(*COMMANDS[function], *options)
    assert done.status == 0
    assert done.err == ""
    check(done.json)


def test_config_answers_fit_their_schema(cli: Cli, config_file: str):
    for command in ("check", "show"):
        check(cli("config", command, "--json", "--config", config_file).json)


VARIANTS: list[tuple[str, Any, int]] = [
    ("backup", changed(BACKUP, outcome="explained", findings=(EXPUNGED,)), 0),
    ("backup", changed(BACKUP, outcome="incomplete", findings=(UNREADABLE,)), 3),
    ("backup", changed(BACKUP, stores=(*BACKUP.stores, AWAY)), 5),
    ("verify", changed(VERIFY, outcome="damaged", findings=(UNREADABLE,)), 4),
    ("restore_files", PLANNED, 0),
    ("restore_files", changed(RESTORE, outcome="incomplete"), 4),
    ("snapshots", [], 0),
    ("mailboxes", [], 0),
    ("messages", [], 0),
    ("show_message", b"plain text", 0),
]


@pytest.mark.parametrize(("function", "answer", "status"), VARIANTS)
def test_outcomes_and_statuses(function: str, answer: Any, status: int, cli: Cli, config_file: str, stand_in):
    stand_in.setattr(app, function, lambda *args, **named: answer)
    done = cli(*COMMANDS[function], "--json", "--config", config_file)
    assert done.json["exit_status"] == status
    check(done.json)
    assert cli(*COMMANDS[function], "--config", config_file).status == status


def test_from_is_called_from(cli: Cli, config_file: str, stand_in):
    first = cli("ls", "user@example.org", "--json", "--config", config_file).json["messages"][0]
    assert (first["from"], first["subject"]) == ("a@example.net", "naïve")


def test_a_message_keeps_its_bytes(cli: Cli, config_file: str, stand_in):
    raw = ANSWERS["show_message"]
    assert cli("show", "user@example.org", "3f", "--config", config_file).out == raw
    answer = cli("show", "user@example.org", "3f", "--json", "--config", config_file).json
    assert answer["message"] == {"b64": "U3ViamVjdDogeA0KDQr/AGJvZHk="}


RECORDS = [
    ("init", InitResult, None),
    ("backup", BackupResult, None),
    ("backup", StoreOutcome, "stores"),
    ("copy", CopyResult, None),
    ("snapshots", SnapshotRow, "snapshots"),
    ("ls", MailboxLine, "mailboxes"),
    ("ls", MessageLine, "messages"),
    ("restore mailbox", LiveResult, None),
    ("receive", LiveResult, None),
    ("restore server", ServerResult, None),
    ("drill light", DrillResult, None),
    ("restore files", RestoreResult, None),
    ("restore files", PlanLine, "plan"),
    ("restore files", Fetched, "fetched"),
    ("verify", VerifyResult, None),
    ("state rebuild", RebuildResult, None),
]


@pytest.mark.parametrize(("command", "record", "member"), RECORDS)
def test_schemas_have_the_fields_of_the_records(command: str, record: Any, member: str | None):
    schema = schemas()[command]
    about = schema if member is None else schema["properties"][member]
    about = about.get("items", about)
    extra = {"command", "exit_status", "outcome"} if member is None else set()
    assert set(about["properties"]) - extra == {name.rstrip("_") for name in record.__struct_fields__} - extra
    live = {"mailboxes", "phases"} if record is LiveResult else set()  # only with --to live
    assert set(about["required"]) == set(about["properties"]) - live


def test_every_command_has_a_versioned_schema():
    known = schemas()
    assert known.keys() == {" ".join(words) for words, _ in leaves()} | {"error"}
    for name, schema in known.items():
        assert schema["$id"] == f"urn:mailbackup:{name.replace(' ', '-')}-v1"
        assert schema["file"] == f"{name.replace(' ', '-')}-v1.json"
