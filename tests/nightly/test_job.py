"""A job: its parts fail independently, its exit status is the worst, hooks and ping stand around it, and a stop loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mailbackup import app
from mailbackup.access import Context
from mailbackup.errors import Busy, ConfigInvalid, DrillImpossible, Interrupted, NoSpace, NotFound, StoreUnavailable, tree
from mailbackup.host import parse_stamp, run_lock
from mailbackup.jobs import parts
from mailbackup.jobs.files import PARTS, find_job, load_jobs
from mailbackup.jobs.parts import Done
from mailbackup.jobs.run import LOCK, WORST_FIRST, run_job, worst
from mailbackup.model.drill import DrillResult, ProbeResult
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.job import Job
from mailbackup.model.results import JobPart, JobResult
from mailbackup.upkeep.status import read_status
from tests.nightly.conftest import Host, Watchdog
from tests.nightly.test_upkeep import flip, live, nights
from tests.world import messages_in


def job(*names: str, **members: object) -> Job:
    return Job(name="nightly", cron="30 2 * * *", parts=names or ("backup", "read-back", "scrub"), **members)


def run(host: Host, *names: str, **named: object) -> JobResult:
    return run_job(host.context, job(*names), **named)


def outcomes(result: JobResult) -> dict[str, tuple[str, int]]:
    return {part.name: (part.outcome, part.exit_status) for part in result.parts}


def part(result: JobResult, name: str) -> JobPart:
    return next(part for part in result.parts if part.name == name)


GOOD = {"backup": ("done", 0), "read-back": ("done", 0), "scrub": ("done", 0)}


def test_a_good_night(host: Host):
    result = run(host)
    assert (result.outcome, result.exit_status, result.findings) == ("done", 0, ())
    assert outcomes(result) == GOOD
    assert result.seq == 2
    assert result.head is not None
    assert (result.head.seq, result.head.sha256) == host.context.anchors.head
    known = read_status(host.state)
    assert known.good is not None
    assert known.read_back is not None
    assert (known.good.seq, known.read_back.snapshot.seq, known.read_back.entry) == (2, 2, 2)
    assert [seen.part for seen in known.parts] == list(GOOD)
    assert os.stat(f"{host.state}/status.json").st_mode & 0o777 == 0o600


# ---------------------------------------------------------------- parts fail independently


@pytest.mark.parametrize("broken", ["backup", "read_back", "scrub", "boot"])
@pytest.mark.parametrize("error", [StoreUnavailable("gone"), ZeroDivisionError("oh")], ids=["known", "unexpected"])
def test_one_part_fails(broken: str, error: Exception, host: Host, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parts, "boot", lambda _context: Done("booted"))

    def fail(*_args: object) -> Done:
        raise error

    monkeypatch.setattr(parts, broken, fail)
    result = run(host, "backup", "read-back", "scrub", "boot")
    status = 5 if isinstance(error, StoreUnavailable) else 1
    expected = GOOD | {"boot": ("done", 0), broken.replace("_", "-"): ("failed", status)}
    if broken == "backup":
        expected["read-back"] = ("skipped", 0)
    assert outcomes(result) == expected
    assert (result.outcome, result.exit_status) == ("failed", status)
    assert ("gone [MB-O002] HINT:" if status == 5 else "unexpected ZeroDivisionError: oh [MB-X001]") in part(
        result, broken.replace("_", "-")
    ).detail
    assert {seen.part: seen.outcome for seen in read_status(host.state).parts} == {name: pair[0] for name, pair in expected.items()}


def test_a_store_that_is_away(host: Host):
    host.backup()
    os.rename(host.vault, f"{host.root}/away")
    result = run(host)
    assert outcomes(result) == {"backup": ("failed", 5), "read-back": ("skipped", 0), "scrub": ("failed", 5)}
    assert result.exit_status == 5


def test_the_scrub_goes_on_where_the_last_run_ended(host: Host):
    nights(host, 3)
    packs = live(host)
    seen = []
    for round_ended in (False, False, True, True):
        assert run_job(host.context, job("scrub", scrub_bytes=1)).exit_status == 0
        place = read_status(host.state).scrub["local"]
        seen.append(place.after)
        assert bool(place.round) is round_ended
        assert place.since
    assert seen == [*packs, packs[0]]


def test_damage_that_this_run_wrote(host: Host, monkeypatch: pytest.MonkeyPatch):
    real = parts.backup

    def lying(*args: object):
        answer = real(*args)
        flip(host.pack())
        return answer

    monkeypatch.setattr(parts, "backup", lying)
    result = run(host)
    assert outcomes(result) == {"backup": ("done", 0), "read-back": ("failed", 4), "scrub": ("failed", 4)}
    assert result.exit_status == 4
    assert {finding.kind for finding in result.findings} == {FindingKind.OBJECT_DAMAGED, FindingKind.BLOCK_DAMAGED}
    known = read_status(host.state)
    assert known.good is not None
    assert known.read_back is None


def test_what_the_scrub_found_is_sent_again_by_the_next_night(host: Host):
    host.fill(5, 40_000)
    host.backup()
    pack = host.pack()
    flip(pack)
    host.settle()
    first = run(host, "scrub")
    assert first.exit_status == 4
    assert "the next backup sends them again" in part(first, "scrub").detail
    second = run(host)
    assert outcomes(second) == GOOD
    assert [(finding.kind, finding.subject) for finding in second.findings] == [(FindingKind.HEALED, pack.name[:12])]
    host.restore("out")
    assert messages_in(f"{host.root}/out") == messages_in(host.maildir())
    assert run(host).findings == ()


def test_damage_is_said_also_when_it_cannot_be_healed_now(host: Host):
    host.backup()
    flip(host.pack())
    with run_lock(os.path.join(host.state, "lock")):
        result = run(host, "scrub")
    assert result.exit_status == 4
    assert "will not send them again: process" in part(result, "scrub").detail


def test_an_incomplete_snapshot_is_made_and_said(host: Host):
    Path(host.mail, "example.org", "alice", "Maildir", "cur", "9.x:2,").symlink_to("/nowhere/at/all")
    os.rename(host.mail, f"{host.root}/away")
    result = run(host)
    assert outcomes(result) == GOOD | {"backup": ("done", 3)}
    assert (result.outcome, result.exit_status) == ("incomplete", 3)
    assert read_status(host.state).incomplete_in_a_row == 1


def test_weights():
    assert worst([]) == 0
    for heavier, lighter in pairwise(WORST_FIRST):
        assert worst([lighter, heavier]) == worst([heavier, lighter]) == heavier
    assert set(WORST_FIRST) == {kind.exit_status for kind in tree()} | {0}


def test_what_an_interrupted_run_registered_is_read_back_later(host: Host):
    """The ledger decides, not the memory of the run: entries behind the last read-back are covered by the next."""
    run(host)
    host.fill(3, 60_000, "bob@example.org")
    host.backup()
    flip(host.pack())
    host.deliver("late.x:2,", b"Subject: late\n\nx")
    result = run(host, "backup", "read-back")
    assert part(result, "read-back").exit_status == 4
    known = read_status(host.state).read_back
    assert known is not None
    assert known.snapshot.seq == 2


# ---------------------------------------------------------------- the lock


def test_one_job_at_a_time(host: Host):
    os.makedirs(host.state)
    with run_lock(os.path.join(host.state, LOCK)), pytest.raises(Busy):
        run(host)
    assert Busy.exit_status == 6
    with run_lock(os.path.join(host.state, "lock")):  # somebody runs 'mailbackup backup'
        assert outcomes(run(host))["backup"] == ("failed", 6)


# ---------------------------------------------------------------- hooks around it


def test_hooks_in_their_order(host: Host):
    for phase in ("pre-snapshot", "post-snapshot", "failed"):
        host.hook(phase, "note", f'echo "$MAILBACKUP_PHASE $MAILBACKUP_SEQ $MAILBACKUP_OUTCOME" >> {host.root}/notes')
    result = run(host)
    assert list(outcomes(result)) == ["pre-snapshot hooks", "backup", "post-snapshot hooks", "read-back", "scrub"]
    assert Path(host.root, "notes").read_text().splitlines() == ["pre-snapshot  ", "post-snapshot 2 done"]


def test_a_broken_hook_costs_no_night(host: Host):
    host.hook("pre-snapshot", "dump", "echo no such database; exit 1")
    host.hook("failed", "tell", f"cat > {host.root}/told")
    result = run(host)
    assert outcomes(result) == {"pre-snapshot hooks": ("failed", 3)} | GOOD | {"backup": ("done", 3), "failed hooks": ("done", 0)}
    assert (result.outcome, result.exit_status) == ("incomplete", 3)
    assert [finding.kind for finding in result.findings] == [FindingKind.HOOK_FAILED]
    snapshot = app.show_snapshot(host.context, "latest")  # it stands where it is needed on the day of the restore
    assert snapshot.outcome == "incomplete"
    assert [(f.kind, f.detail) for f in snapshot.findings] == [("hook-failed", "exit status 1: no such database")]
    told = json.loads(Path(host.root, "told").read_text())
    assert (told["seq"], told["outcome"], told["findings"][0]["kind"]) == (2, "incomplete", "hook-failed")


def test_a_veto(host: Host):
    host.hook("pre-snapshot", "veto", "echo /var/vmail is not mounted; exit 99")
    host.hook("post-snapshot", "note", f'echo "$MAILBACKUP_OUTCOME $MAILBACKUP_SEQ" > {host.root}/post')
    host.hook("failed", "tell", f"touch {host.root}/failed")
    before = host.objects()
    result = run(host)
    assert outcomes(result) == {
        "pre-snapshot hooks": ("failed", 8),
        "backup": ("skipped", 0),
        "post-snapshot hooks": ("done", 0),
        "read-back": ("skipped", 0),
        "scrub": ("done", 0),
        "failed hooks": ("done", 0),
    }
    assert "hook veto refused the snapshot: /var/vmail is not mounted" in part(result, "pre-snapshot hooks").detail
    assert (result.exit_status, result.seq) == (8, None)
    assert host.objects() == before
    assert Path(host.root, "post").read_text() == "failed \n"  # what earlier hooks prepared is removed
    assert Path(host.root, "failed").exists()


def test_a_hook_of_a_failed_backup_is_told(host: Host, monkeypatch: pytest.MonkeyPatch):
    def full(*_args: object) -> None:
        raise NoSpace("the disk is full")

    monkeypatch.setattr(parts, "backup", full)
    host.hook("pre-snapshot", "bad", "exit 1")
    host.hook("post-snapshot", "note", f"touch {host.root}/post")
    result = run(host)
    assert outcomes(result)["backup"] == ("failed", 8)
    assert [finding.kind for finding in result.findings] == [FindingKind.HOOK_FAILED]  # it is not lost with the snapshot
    assert Path(host.root, "post").exists()


def test_a_broken_hook_afterwards(host: Host):
    host.hook("post-snapshot", "bad", "exit 1")
    result = run(host)
    assert outcomes(result) == GOOD | {"post-snapshot hooks": ("failed", 3)}
    assert result.exit_status == 3
    assert app.show_snapshot(host.context, "latest").outcome == "complete"


def test_the_limit_of_hooks_is_that_of_the_job(host: Host):
    host.hook("pre-snapshot", "slow", "sleep 20")
    result = run_job(host.context, job("backup", hook_limit="1s"))
    assert [finding.detail for finding in result.findings] == ["stopped after 1 s"]


def test_a_backup_by_hand_runs_no_hooks(host: Host):
    host.hook("pre-snapshot", "veto", "exit 99")
    assert host.backup().outcome == "complete"


# ---------------------------------------------------------------- the ping


def test_pings_of_a_good_night(host: Host, watchdog: Watchdog):
    host.set_ping(watchdog.url)
    result = run(host)
    assert watchdog.paths == ["/5ecret-uuid/start", "/5ecret-uuid"]
    assert result.head is not None
    assert watchdog.told[0][1] == {
        "job": "nightly",
        "outcome": "started",
        "exit_status": None,
        "snapshot": None,
        "seq": None,
        "sha256": None,
    }
    assert watchdog.told[1][1] == {
        "job": "nightly", "outcome": "done", "exit_status": 0, "snapshot": 2, "seq": 2, "sha256": result.head.sha256,
    }  # fmt: skip
    assert watchdog.told[1][1]["sha256"] == host.context.anchors.head[1]
    run(host)
    assert watchdog.told[2][1]["seq"] == 2


@pytest.mark.parametrize("hook", ["exit 1", "exit 99"])
def test_pings_of_a_bad_night(hook: str, host: Host, watchdog: Watchdog):
    host.set_ping(watchdog.url)
    host.hook("pre-snapshot", "h", hook)
    result = run(host)
    assert watchdog.paths == ["/5ecret-uuid/start", "/5ecret-uuid/fail"]
    assert watchdog.told[1][1]["exit_status"] == result.exit_status != 0


def test_a_dead_watchdog_costs_nothing(host: Host, watchdog: Watchdog):
    host.set_ping(watchdog.url)
    watchdog.answer = 500
    result = run(host)
    assert outcomes(result) == GOOD
    assert (result.outcome, result.exit_status) == ("done", 0)
    assert [(f.kind, f.subject) for f in result.findings] == [("ping-failed", "start"), ("ping-failed", "success")]
    assert "5ecret" not in repr(result)


# ---------------------------------------------------------------- drills


@pytest.fixture
def drills(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    from mailbackup import server

    made = SimpleNamespace()
    monkeypatch.setattr(server, "drills", made, raising=False)
    return made


def drilled(kind: Any = "light", outcome: Any = "proven", seq: int | None = 2) -> DrillResult:
    probes = tuple(
        ProbeResult(name=name, system="dovecot", tier="boot", outcome=how, seconds=0.1)
        for name, how in (("one", "passed"), ("two", "passed" if outcome == "proven" else "failed"))
    )
    return DrillResult(
        outcome=outcome, kind=kind, engine="bwrap", seq=seq, mailboxes=1, messages=3, probes=probes, steps=(), phases=(), rto_s=1.5, rpo_s=3600,
        findings=() if outcome == "proven" else (Finding(FindingKind.LOST, "two"),),
    )  # fmt: skip


def test_a_drill_without_an_identity_is_skipped(host: Host):
    result = run(host, "drill")
    assert outcomes(result) == {"drill": ("skipped", 0)}
    assert "no identity on this host" in part(result, "drill").detail


def test_a_drill_with_one(host: Host, drills: SimpleNamespace):
    host.backup()
    seen: list[Context] = []
    drills.light = lambda context: seen.append(context) or drilled()
    result = run_job(host.context, job("drill", identity="/etc/mailbackup/drill.key"))
    assert [context.identity_file for context in seen] == ["/etc/mailbackup/drill.key"]
    assert part(result, "drill").detail == "2 probes passed in 1.5 s"
    known = read_status(host.state).drill
    assert known is not None
    assert known.snapshot.seq == 2
    assert 3590 < (parse_stamp(known.time) - parse_stamp(known.snapshot.time)).total_seconds() < 3610


def test_a_drill_that_fails(host: Host, drills: SimpleNamespace):
    host.backup()
    drills.light = lambda _context: drilled(outcome="failed")
    result = run_job(host.context, job("drill", identity="/key"))
    assert outcomes(result) == {"drill": ("failed", 4)}
    assert part(result, "drill").detail == "failed: two (1 probes passed)"
    assert [finding.kind for finding in result.findings] == [FindingKind.LOST]
    assert read_status(host.state).drill is None


def test_boot(host: Host, drills: SimpleNamespace):
    drills.boot = lambda _context: drilled("boot", seq=None)
    assert outcomes(run(host, "backup", "boot"))["boot"] == ("done", 0)
    assert read_status(host.state).drill is None  # no snapshot was proven by it
    drills.boot = lambda _context: drilled("boot", "failed", None)
    assert outcomes(run(host, "backup", "boot"))["boot"] == ("failed", 4)

    def impossible(_context: Context) -> None:
        raise DrillImpossible("there is no bwrap here")

    drills.boot = impossible
    result = run(host, "backup", "boot")
    assert (outcomes(result)["boot"], result.exit_status) == (("skipped", 0), 0)
    assert part(result, "boot").detail == "there is no bwrap here"


# ---------------------------------------------------------------- stopping


def test_stopped_before_it_began(host: Host):
    result = run(host, stop=lambda: True)
    assert outcomes(result) == dict.fromkeys(GOOD, ("skipped", 130))
    assert (result.outcome, result.exit_status) == ("failed", 130)
    assert len(host.objects()) == 4


def test_stopped_between_mailboxes(host: Host):
    """What was read until then is registered; the next run sends the rest only, and nothing is lost."""
    boxes = [f"user{number}@example.org" for number in range(6)]
    for box in boxes:
        host.fill(5, 40_000, box)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 3

    with pytest.raises(Interrupted, match="what was sent is registered"):
        app.backup(host.context, stop=stop)
    with_packs = [key for key in host.objects() if key.startswith("packs/")]
    assert with_packs
    assert not [key for key in host.objects() if key.startswith("snapshots/")]
    assert host.verify().findings == ()
    result = host.backup()
    assert result.outcome == "complete"
    whole = 7 * 5 * 40_000
    assert result.bytes_stored < whole * 0.7
    for box in (*boxes, "alice@example.org"):
        host.restore(f"out/{box}", box)
        assert messages_in(f"{host.root}/out/{box}") == messages_in(host.maildir(box))
    assert host.verify(decrypt=True).outcome == "clean"


def test_stopped_when_nothing_was_sent(host: Host):
    host.backup()
    head = host.context.anchors.head
    with pytest.raises(Interrupted):
        app.backup(host.context, stop=lambda: True)
    assert host.context.anchors.head == head
    assert host.backup().outcome == "complete"


def program(host: Host, *args: str) -> list[str]:
    return [sys.executable, "-m", "mailbackup", "--config", host.config_path, "--state", host.state, *args]


def wait_for_bytes(host: Host, process: subprocess.Popen[bytes], least: int) -> None:
    """Until so much was written below the vault."""
    while sum(path.stat().st_size for path in Path(host.vault, ".tmp").glob("*") if path.exists()) < least:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


@pytest.mark.case("21")
def test_sigterm_in_a_backup_of_some_thousand_messages(host: Host):
    """A real process: the mailbox at hand is finished, what was sent is registered, and the next run sends less."""
    boxes = [f"user{number}@example.org" for number in range(40)]
    for box in boxes:
        host.fill(60, 12_000, box)
    host.job_file("only", 'cron = "0 0 * * *"\nparts = ["backup", "read-back"]\n')
    process = subprocess.Popen(program(host, "job", "run", "only", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_bytes(host, process, 4 << 20)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    answer = json.loads(out)
    assert (process.returncode, answer["exit_status"], err) == (130, 130, b"")
    assert {part["name"]: (part["outcome"], part["exit_status"]) for part in answer["parts"]} == {
        "backup": ("failed", 130), "read-back": ("skipped", 130),
    }  # fmt: skip
    sent = sum(Path(host.vault, key).stat().st_size for key in host.objects() if key.startswith("packs/"))
    assert sent > 4 << 20
    assert host.verify().findings == ()
    result = host.backup()
    assert result.outcome == "complete"
    assert result.messages == 40 * 60 + 3
    whole = 40 * 60 * 12_000
    assert result.bytes_stored < whole - sent * 0.9
    host.restore("out", None)
    for box in boxes:
        assert messages_in(f"{host.root}/out/{box}") == messages_in(host.maildir(box))


def test_the_second_sigterm_interrupts(host: Host):
    """The first waits for a checkpoint, which does not come inside one mailbox; the second does not wait."""
    host.hook("pre-snapshot", "slow", f"touch {host.root}/begun; sleep 30")
    host.job_file("only", 'cron = "0 0 * * *"\nparts = ["backup"]\n')
    process = subprocess.Popen(program(host, "job", "run", "only", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not Path(host.root, "begun").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert json.loads(out)["error"]["code"] == "MB-I001"


# ---------------------------------------------------------------- job files


def test_what_ships(host: Host):
    jobs = load_jobs(host.config_path)
    assert jobs.keys() == {"nightly", "hourly-mail", "prune", "weekly-drill"}
    assert jobs["nightly"].parts == ("backup", "read-back", "scrub", "boot")
    assert [name for name, made in jobs.items() if made.enabled] == ["nightly"]
    assert (jobs["nightly"].jitter_seconds, jobs["nightly"].misfire_seconds) == (900, 21600)


def test_a_file_of_the_administrator_changes_keys_and_adds_jobs(host: Host):
    host.job_file("nightly", 'cron = "0 4 * * *"\nzone = "Europe/Berlin"\n')
    host.job_file("often", 'cron = "*/5 * * * *"\nparts = ["backup"]\n')
    host.job_file(".hidden", "nonsense")
    jobs = load_jobs(host.config_path)
    assert (jobs["nightly"].cron, jobs["nightly"].zone, jobs["nightly"].jitter_seconds) == ("0 4 * * *", "Europe/Berlin", 900)
    assert jobs["often"].scrub_bytes == 2 << 30
    with pytest.raises(NotFound) as caught:
        find_job(host.config_path, "nigthly")
    assert caught.value.hint == "Did you mean 'nightly'?"


BAD = [
    ("crno = 1", "unknown key 'crno'", "Did you mean 'cron'?"),
    ("name = 'x'", "unknown key 'name'", ""),
    ("cron = 5", "cron: expected str, got int", ""),
    ('cron = "61 * * * *"', "cron: '61' is no minute: 61 is not between 0 and 59", ""),
    ('zone = "Mars/Olympus"', "zone: there is no time zone 'Mars/Olympus' here", ""),
    ("jitter = -1", "jitter: -1 is negative", ""),
    ('misfire = "6 weeks"', "misfire: '6 weeks' is no length of time", ""),
    ("parts = []", "parts: there is none", ""),
    ('parts = ["scrub", "backup"]', "parts: each may stand once, in this order", ""),
    ('parts = ["backup", "backup"]', "parts: each may stand once", ""),
    ('parts = ["read-back"]', "parts: read-back reads what the backup", ""),
    ('parts = ["bakup"]', "parts[0]: invalid enum value", ""),
    ('hook_limit = "0s"', "hook_limit: 0 is not above 0", ""),
    ("scrub_bytes = 0", "scrub_bytes: 0 is not above 0", ""),
    ('identity = "key"', "identity: 'key' is not an absolute path", ""),
    ("cron = ", "Invalid value", ""),
]


@pytest.mark.parametrize(("text", "message", "hint"), BAD)
def test_files_that_are_wrong(text: str, message: str, hint: str, host: Host):
    path = host.job_file("nightly", text)
    with pytest.raises(ConfigInvalid) as caught:
        load_jobs(host.config_path)
    assert caught.value.message.startswith(f"{path}: ")
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_new_job_needs_cron_and_parts(host: Host):
    host.job_file("new", 'parts = ["backup"]')
    with pytest.raises(ConfigInvalid, match="missing: cron"):
        load_jobs(host.config_path)


def test_names_of_files(host: Host):
    host.job_file("My Job", 'cron = "0 0 * * *"\nparts = ["backup"]')
    with pytest.raises(ConfigInvalid, match="a job's name has"):
        load_jobs(host.config_path)


def test_parts_are_all_known():
    assert set(PARTS) == {"backup", "read-back", "scrub", "prune", "boot", "drill"}


def test_threads_end(host: Host):
    before = threading.active_count()
    run(host)
    assert threading.active_count() <= before
