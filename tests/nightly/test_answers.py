"""What the commands of the night answer with --json is what their schemas say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mailbackup.jobs.run import WORST_FIRST
from mailbackup.model.job import Job, PartSeen
from mailbackup.model.results import Fact, Head, JobPart, JobResult, SeenAge, StatusResult
from tests.cli.reference import REFERENCE, schemas
from tests.cli.schema import problems
from tests.nightly.conftest import Host

ANSWERS = [
    "job run nightly", "job run hourly-mail", "job list", "job show nightly", "schedule show", "schedule install --cron --print",
    "schedule install --systemd --print", "status",
]  # fmt: skip


def test_every_answer_fits_its_schema(host: Host):
    """One host, one after another: what is remembered is told by the later ones."""
    host.hook("pre-snapshot", "bad", "exit 1")
    for words in ANSWERS:
        program = [sys.executable, "-m", "mailbackup", "--config", host.config_path, "--state", host.state, *words.split(), "--json"]
        done = subprocess.run(program, capture_output=True, text=True, check=False)
        answer = json.loads(done.stdout)
        assert answer["exit_status"] == done.returncode
        schema = {key: value for key, value in schemas()[answer["command"]].items() if key != "file"}
        assert problems(answer, schema) == [], words


SEEN = ("properties", "newest_good", "anyOf", 0)
RECORDS = [
    ("job run", (), JobResult, {"command"}),
    ("job run", ("properties", "parts", "items"), JobPart, set()),
    ("job run", ("properties", "head", "anyOf", 0), Head, set()),
    ("job list", ("properties", "jobs", "items"), Job, {"next"}),
    ("job show", ("properties", "job"), Job, {"next"}),
    ("job show", ("properties", "last", "items"), PartSeen, set()),
    ("status", (), StatusResult, {"command", "exit_status"}),
    ("status", SEEN, SeenAge, set()),
    ("status", ("properties", "facts", "items"), Fact, set()),
]


@pytest.mark.parametrize(("command", "place", "record", "more"), RECORDS)
def test_schemas_have_the_fields_of_the_records(command: str, place: tuple[str | int, ...], record: type, more: set[str]):
    about = schemas()[command]
    for step in place:
        about = about[step]
    assert set(about["required"]) == set(about["properties"]) == set(record.__struct_fields__) | more


def test_the_order_of_statuses_is_documented():
    assert ", ".join(map(str, WORST_FIRST)) in (REFERENCE / "exit-status.md").read_text()
