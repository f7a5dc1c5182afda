"""`status`: what is remembered, and what is made of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mailbackup.errors import NoSpace, RecordInvalid, UsageError
from mailbackup.host import stamp, utc_now
from mailbackup.jobs.run import run_job
from mailbackup.jobs.status import NOTHING_FREED, age, judge
from mailbackup.jobs.status import status as status_of
from mailbackup.model.job import Job, Proof, Seen, Status
from mailbackup.model.results import Fact, StatusResult
from mailbackup.upkeep import status as remembered
from mailbackup.upkeep.status import read_status, remember_drill, replaced
from tests.nightly.conftest import Host
from tests.nightly.test_job import drilled

NOW = utc_now()


def ago(**named: float) -> str:
    return stamp(NOW - timedelta(**named))


def fact(result: StatusResult, name: str) -> Fact:
    return next(fact for fact in result.facts if fact.name == name)


@pytest.mark.parametrize(("hours", "outcome"), [(0, "good"), (25.9, "good"), (26.1, "late"), (500, "late"), (-1, "good")])
def test_the_age_of_the_newest_good(hours: float, outcome: str):
    result = judge(Status(good=Seen(seq=3, time=ago(hours=hours))), NOW)
    assert result.outcome == outcome
    assert result.newest_good is not None
    assert abs(result.newest_good.age_s - max(0, hours) * 3600) < 5
    assert fact(result, "newest good").good is (outcome == "good")


def test_nothing_remembered():
    result = judge(Status(), NOW)
    assert (result.outcome, result.newest_good, result.newest_proven) == ("late", None, None)


@pytest.mark.parametrize(("count", "freed"), [(1, True), (NOTHING_FREED - 1, True), (NOTHING_FREED, False)])
def test_incomplete_in_a_row(count: int, freed: bool):
    text = fact(judge(Status(incomplete_in_a_row=count), NOW), "incomplete in a row").text
    assert ("nothing that was deleted is being freed" in text) is not freed
    assert NOTHING_FREED == 14


@pytest.mark.parametrize(
    ("read_back", "drill", "expected"),
    [(None, None, None), (5, None, (5, "read-back")), (5, 4, (5, "read-back")), (5, 5, (5, "drill")), (None, 2, (2, "drill"))],
)
def test_the_newest_proven(read_back: int | None, drill: int | None, expected: tuple[int, str] | None):
    def proof(by: Any, seq: int | None) -> Proof | None:
        return None if seq is None else Proof(by=by, snapshot=Seen(seq=seq, time=ago(hours=9)), time=ago(hours=1), entry=seq)

    proven = judge(Status(read_back=proof("read-back", read_back), drill=proof("drill", drill)), NOW).newest_proven
    assert (proven and (proven.seq, proven.by)) == expected


def test_ages():
    assert [age(seconds) for seconds in (59, 119 * 60, 3 * 3600, 71 * 3600, 80 * 3600)] == ["0 min", "119 min", "3 h", "71 h", "3 days"]


# ---------------------------------------------------------------- what is remembered


def test_any_backup_counts(host: Host):
    host.backup()
    known = read_status(host.state)
    assert known.good is not None
    assert (known.good.seq, known.newest == known.good, known.incomplete_in_a_row) == (2, True, 0)
    os.rename(host.mail, f"{host.root}/away")
    assert [host.backup().outcome for _ in range(2)] == ["incomplete"] * 2
    known = read_status(host.state)
    assert known.good is not None
    assert known.newest is not None
    assert (known.good.seq, known.newest.seq, known.incomplete_in_a_row) == (2, 4, 2)
    os.rename(f"{host.root}/away", host.mail)
    host.backup()
    assert read_status(host.state).incomplete_in_a_row == 0


def test_what_cannot_be_remembered_costs_no_backup(host: Host, monkeypatch: pytest.MonkeyPatch):
    def full(*_args: object, **_named: object) -> None:
        raise NoSpace("full")

    monkeypatch.setattr(remembered, "atomic_write", full)
    assert host.backup().outcome == "complete"


def test_a_damaged_file_is_made_anew(host: Host):
    host.backup()
    path = Path(host.state, "status.json")
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(RecordInvalid, match=r"status\.json"):
        read_status(host.state)
    assert run_job(host.context, Job(name="n", cron="0 0 * * *", parts=("backup", "read-back", "scrub"))).exit_status == 0
    assert read_status(host.state).good is not None


def test_a_newer_version_is_not_misread(host: Host):
    host.backup()
    path = Path(host.state, "status.json")
    path.write_bytes(path.read_bytes().replace(b'"format":1', b'"format":2'))
    with pytest.raises(RecordInvalid):
        read_status(host.state)


def test_drills_are_remembered(host: Host):
    host.backup()
    remember_drill(host.state, drilled())
    proven = status_of(host.context).newest_proven
    assert proven is not None
    assert (proven.seq, proven.by) == (2, "drill")


def test_a_job_that_is_no_more_is_not_told(host: Host):
    run_job(host.context, Job(name="gone", cron="0 0 * * *", parts=("backup",)))
    run_job(host.context, Job(name="nightly", cron="0 0 * * *", parts=("backup",)))
    assert {fact.name for fact in status_of(host.context).facts} >= {"nightly, backup"}
    assert "gone, backup" not in {fact.name for fact in status_of(host.context).facts}


def test_what_a_job_no_longer_does_is_forgotten(host: Host):
    host.hook("pre-snapshot", "bad", "exit 1")
    made = Job(name="nightly", cron="0 0 * * *", parts=("backup",))
    run_job(host.context, made)
    os.unlink(f"{host.root}/hooks/pre-snapshot.d/bad")
    run_job(host.context, made)
    assert all(fact.good for fact in status_of(host.context).facts if fact.name.startswith("nightly"))


# ---------------------------------------------------------------- the command


def command(host: Host, *args: str, **options: Any) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "mailbackup", "--config", host.config_path, "--state", host.state, *args]
    return subprocess.run(program, capture_output=True, text=True, check=False, **options)


def test_the_command(host: Host):
    done = command(host, "status")
    assert done.returncode == 4
    assert done.stdout.startswith("late\n! ")
    assert "Run 'mailbackup job run nightly'" in done.stdout
    assert command(host, "job", "run", "nightly", "-q").returncode in (0, 1)  # whether the configuration boots depends on the host
    done = command(host, "status", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == answer["exit_status"] == 0
    assert answer["outcome"] == "good"
    assert answer["newest_good"].keys() == {"seq", "time", "age_s", "by"}
    assert answer["newest_proven"]["by"] == "read-back"
    old = replaced(read_status(host.state), good=Seen(seq=2, time=ago(hours=30)))
    remembered.remember(host.state, lambda _: {"good": old.good})
    done = command(host, "status", "--json")
    assert (done.returncode, json.loads(done.stdout)["outcome"]) == (4, "late")


@pytest.mark.root
def test_without_permission_it_says_so(host: Host):
    host.backup()
    os.seteuid(12345)
    try:
        with pytest.raises(UsageError, match="cannot read") as caught:
            read_status(host.state)
    finally:
        os.seteuid(0)
    assert "run as that user (root)" in caught.value.hint
