"""What is written for cron and systemd, and the daemon as a real process."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mailbackup.errors import AlreadyExists, UsageError
from mailbackup.jobs.files import load_jobs
from mailbackup.model.job import Job
from mailbackup.schedule import zone
from mailbackup.schedule.install import (
    CRON_FILE,
    MARKER,
    UNITS,
    Setting,
    carry_out,
    cron_files,
    installed,
    planned,
    program_words,
    systemd_files,
)
from tests.nightly.conftest import Host

ODD = '/etc/mail backup/it\'s "100%" $HOME\\x.toml'
SETTING = Setting((*program_words(), "--config", ODD), ("/var/lib/mailbackup", '/srv/a "b" %n $x'))


def jobs(**members: object) -> list[Job]:
    return [Job(name="nightly", about="the\nnight 100%", cron="30 2 * * mon-fri", parts=("backup",), **members)]


# ---------------------------------------------------------------- cron


def test_the_cron_file():
    text = cron_files(jobs(jitter="15m"), SETTING)[CRON_FILE]
    head, *rest = text.splitlines()
    assert head == MARKER
    assert text.endswith("\n")
    assert not [line for line in rest if line.startswith("MAILTO")]
    (line,) = [line for line in rest if line.startswith("30 ")]
    when, command = line[: len("30 2 * * mon-fri")], line[len("30 2 * * mon-fri ") :]
    assert when == "30 2 * * mon-fri"
    user, _, words = command.partition(" ")
    assert user == "root"
    assert re.search(r"(?<!\\)%", words) is None  # cron would make a newline of it
    by_the_shell = shlex.split(words.replace(r"\%", "%"))
    assert by_the_shell == [*program_words(), "--config", ODD, "job", "run", "nightly", "--jitter", "--quiet"]
    assert "--jitter" not in cron_files(jobs(), SETTING)[CRON_FILE]


def test_cron_knows_one_zone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert zone.host_zone() == "Europe/Berlin"
    assert cron_files(jobs(zone="Europe/Berlin"), SETTING)
    with pytest.raises(UsageError, match=r"its zone is Asia/Tokyo, and cron only knows that of this host, Europe/Berlin"):
        cron_files(jobs(zone="Asia/Tokyo"), SETTING)


def test_the_installed_line_runs(host: Host):
    """As cron would: through sh, with a small environment, from elsewhere."""
    host.job_file("only", 'cron = "0 0 * * *"\nparts = ["backup"]\n')
    setting = Setting((*program_words(), "--config", host.config_path, "--state", host.state), ())
    job = load_jobs(host.config_path)["only"]
    line = cron_files([job], setting)[CRON_FILE].splitlines()[-1]
    command = line.split(" root ", 1)[1]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/root", "LOGNAME": "root"}
    done = subprocess.run(["/bin/sh", "-c", command], env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")  # silence is success
    os.rename(host.mail, f"{host.root}/away")
    done = subprocess.run(["/bin/sh", "-c", command], env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "snapshot 3 is incomplete" in done.stdout
    assert "source-missing" in done.stderr


# ---------------------------------------------------------------- systemd


def test_systemd_accepts_the_units(tmp_path: Path):
    carry_out(
        planned(systemd_files([*jobs(zone="Europe/Berlin", jitter=60), *load_jobs("/none/x.toml").values()], SETTING), root=str(tmp_path))
    )
    units = tmp_path / UNITS.lstrip("/")
    names = sorted(path.name for path in units.iterdir())
    assert len(names) == 8  # nightly is one of both
    environment = os.environ | {"SYSTEMD_UNIT_PATH": f"{units}:"}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, units.iterdir())], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    (units / "mailbackup-nightly.timer").write_text(
        (units / "mailbackup-nightly.timer").read_text().replace("OnCalendar=", "OnCalendar=x ")
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(units / "mailbackup-nightly.timer")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Failed to parse calendar" in done.stderr  # the check can fail


def test_the_units(tmp_path: Path):
    files = systemd_files(jobs(zone="Europe/Berlin", jitter="2m"), SETTING)
    timer, service = files[f"{UNITS}/mailbackup-nightly.timer"], files[f"{UNITS}/mailbackup-nightly.service"]
    for line in (
        "OnCalendar=Mon,Tue,Wed,Thu,Fri *-*-* 02:30:00 Europe/Berlin",
        "RandomizedDelaySec=120",
        "Persistent=true",
        "WantedBy=timers.target",
    ):
        assert line in timer.splitlines()
    for line in ("KillMode=mixed", "Nice=19", "IOSchedulingClass=idle", "UMask=0077", "ProtectSystem=full", "NoNewPrivileges=true"):
        assert line in service.splitlines()
    (exec_start,) = [line for line in service.splitlines() if line.startswith("ExecStart=")]
    assert exec_start.endswith('"/etc/mail backup/it\'s \\"100%%\\" $$HOME\\\\x.toml" job run nightly')
    assert 'ReadWritePaths=-/var/lib/mailbackup "-/srv/a \\"b\\" %%n $x"' in service.splitlines()
    assert "Description=mailbackup nightly: the night 100%%" in service.splitlines()


def test_the_service_is_hardened(tmp_path: Path):
    path = tmp_path / "mailbackup-nightly.service"
    path.write_text(systemd_files(jobs(), SETTING)[f"{UNITS}/mailbackup-nightly.service"])
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=75", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-300:]


# ---------------------------------------------------------------- putting in place


def test_install_replace_and_remove(tmp_path: Path):
    root = str(tmp_path)
    change = planned(cron_files(jobs(), SETTING), root=root)
    assert (change.remove, change.commands) == ((), ())
    carry_out(change)
    cron = f"{root}{CRON_FILE}"
    assert installed(root=root) == [cron]
    assert os.stat(cron).st_mode & 0o777 == 0o644
    other = Path(root, UNITS.lstrip("/"), "mailbackup-mine.service")
    other.parent.mkdir(parents=True)
    other.write_text("[Unit]\n")
    change = planned(systemd_files(jobs(), SETTING), root=root)  # from one to the other: never both
    assert change.remove == (cron,)
    assert change.commands == (("systemctl", "daemon-reload"), ("systemctl", "enable", "--now", "mailbackup-nightly.timer"))
    carry_out(change)
    assert [os.path.basename(path) for path in installed(root=root)] == ["mailbackup-nightly.service", "mailbackup-nightly.timer"]
    change = planned({}, root=root)
    assert change.commands == (("systemctl", "disable", "--now", "mailbackup-nightly.timer"), ("systemctl", "daemon-reload"))
    carry_out(change)
    assert installed(root=root) == []
    assert other.read_text() == "[Unit]\n"
    assert planned({}, root=root).commands == ()


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_somebody_else_wrote_stays(kind: str, tmp_path: Path):
    cron = tmp_path / CRON_FILE.lstrip("/")
    cron.parent.mkdir(parents=True)
    if kind == "file":
        cron.write_text("0 0 * * * root true\n")
    else:
        (tmp_path / "target").write_text(f"{MARKER}\n")
        cron.symlink_to(tmp_path / "target")
    with pytest.raises(AlreadyExists):
        planned(cron_files(jobs(), SETTING), root=str(tmp_path))
    assert installed(root=str(tmp_path)) == []


def command(host: Host, *args: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "mailbackup", "--config", host.config_path, "--state", host.state, *args]
    return subprocess.run(program, capture_output=True, text=True, check=False)


def test_the_commands(host: Host):
    done = command(host, "schedule", "install", "--systemd", "--print")
    assert done.returncode == 0
    assert f"# {UNITS}/mailbackup-nightly.timer\n{MARKER}\n" in done.stdout
    assert f"ReadWritePaths=-{host.state} -{host.vault}\n" in done.stdout
    assert "hourly-mail" not in done.stdout  # it is disabled
    answer = json.loads(command(host, "schedule", "install", "--cron", "--print", "--json").stdout)
    assert list(answer["files"]) == [CRON_FILE]
    assert not os.path.exists(CRON_FILE)
    assert command(host, "schedule", "install", "--cron", "--systemd").returncode == 2
    answer = json.loads(command(host, "schedule", "show", "--json").stdout)
    assert [row["name"] for row in answer["jobs"]] == ["nightly"]
    assert len(answer["jobs"][0]["next"]) == 3
    assert "nightly  30 2 * * *" in command(host, "schedule", "show").stdout


# ---------------------------------------------------------------- the daemon

EVERY_SECOND = """
import json, sys
from apscheduler.triggers.interval import IntervalTrigger
from mailbackup.jobs.files import load_jobs
from mailbackup.schedule.daemon import Daemon
config, words = sys.argv[1], json.loads(sys.argv[2])
def say(event):
    print(event.text, flush=True)
Daemon(lambda: load_jobs(config).values(), lambda job: [*words, job.name], trigger=lambda job: IntervalTrigger(seconds=1), on_event=say).run()
"""


class Running:
    """A daemon whose jobs are due every second; `words` is what it starts, with the name of the job behind."""

    def __init__(self, host: Host, words: list[str]) -> None:
        self.log = Path(host.root, "daemon.log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", EVERY_SECOND, host.config_path, json.dumps(words)], stdout=log, stderr=log
            )

    def wait_for(self, text: str, count: int = 1, seconds: float = 20) -> str:
        until = time.monotonic() + seconds
        while self.log.read_text().count(text) < count:
            assert time.monotonic() < until, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.02)
        return self.log.read_text()

    def end(self, seconds: float = 30) -> str:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(seconds) == 0
        return self.log.read_text()


@pytest.fixture
def quiet(host: Host) -> Host:
    """Only one job."""
    host.job_file("nightly", "enabled = false")
    host.job_file("only", 'cron = "0 0 * * *"\nparts = ["backup"]\n')
    return host


def test_jobs_run_again_and_again(quiet: Host):
    daemon = Running(quiet, [sys.executable, "-m", "mailbackup", "-q", "--config", quiet.config_path, "--state", quiet.state, "job", "run"])
    daemon.wait_for("only ended with status 0", 2)
    text = daemon.end()
    assert "jobs: only\n" in text
    assert len([key for key in quiet.objects() if key.startswith("snapshots/")]) >= 2


def test_no_overlap(quiet: Host):
    """Two jobs that each take longer than the time between two starts."""
    quiet.job_file("other", 'cron = "0 0 * * *"\nparts = ["backup"]\n')
    script = f"mkdir {quiet.root}/running || touch {quiet.root}/overlap; sleep 1.3; rmdir {quiet.root}/running"
    daemon = Running(quiet, ["/bin/sh", "-c", script])
    daemon.wait_for("ended with status 0", 3)
    daemon.end()
    assert not Path(quiet.root, "overlap").exists()


def test_sigterm_waits_for_the_job_and_starts_none(quiet: Host):
    """Nor one that was due, and waited for the other to end."""
    quiet.job_file("other", 'cron = "0 0 * * *"\nparts = ["backup"]\n')
    told = f"{quiet.root}/told"
    script = (
        f"trap 'echo told >> {told}; sleep 0.5; echo done >> {told}; exit 130' TERM; touch {quiet.root}/begun; while :; do sleep 0.05; done"
    )
    daemon = Running(quiet, ["/bin/sh", "-c", script])
    daemon.wait_for(" begins")
    while not Path(quiet.root, "begun").exists():
        time.sleep(0.01)
    time.sleep(1.2)
    text = daemon.end()
    assert Path(quiet.root, "told").read_text() == "told\ndone\n"
    assert text.rstrip().endswith(" ended with status 130")
    assert text.count(" begins") == 1


def test_a_second_sigterm_is_passed_on(quiet: Host):
    told = f"{quiet.root}/told"
    until = f'[ "$(grep -c told {told} 2>/dev/null)" = 2 ]'
    script = f"trap 'echo told >> {told}' TERM; touch {quiet.root}/begun; until {until}; do sleep 0.05; done"
    daemon = Running(quiet, ["/bin/sh", "-c", script])
    daemon.wait_for("only begins")
    while not Path(quiet.root, "begun").exists():
        time.sleep(0.01)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_for("waiting for the running job")
    time.sleep(0.3)
    assert daemon.process.poll() is None
    daemon.end()
    assert Path(quiet.root, "told").read_text() == "told\n" * 2


def test_sigterm_between_jobs(quiet: Host):
    daemon = Running(quiet, ["/bin/true"])
    daemon.wait_for("only ended with status 0")
    began = time.monotonic()
    daemon.end()
    assert time.monotonic() - began < 3


def test_sighup_rereads_the_files(quiet: Host):
    daemon = Running(quiet, ["/bin/true"])
    daemon.wait_for("only ended")
    quiet.job_file("only", "broken")
    daemon.process.send_signal(signal.SIGHUP)
    text = daemon.wait_for("the job files are not taken over")
    assert "only.toml" in text
    daemon.wait_for("only ended", text.count("only ended") + 1)  # what was right before still runs
    quiet.job_file("only", 'cron = "0 0 * * *"\nparts = ["backup"]\nenabled = false\n')
    quiet.job_file("new", 'cron = "0 0 * * *"\nparts = ["backup"]\n')
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for("new ended")
    text = daemon.end()
    assert "only begins" not in text.split("jobs: new\n")[1]


def test_a_job_that_cannot_be_started_is_said(quiet: Host):
    daemon = Running(quiet, ["/no/such/program"])
    daemon.wait_for("only cannot be started: No such file or directory", 2)
    daemon.end()


def test_a_real_minute(quiet: Host):
    """The command itself, with a job that is due every minute."""
    quiet.job_file("only", 'cron = "* * * * *"\nparts = ["backup"]\n')
    program = [sys.executable, "-m", "mailbackup", "--config", quiet.config_path, "--state", quiet.state, "schedule", "daemon"]
    log = Path(quiet.root, "log")
    with log.open("wb") as out:
        process = subprocess.Popen(program, stdout=out, stderr=out, cwd="/")
    until = time.monotonic() + 75
    while "only ended with status 0" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert "snapshot 2 is complete" in log.read_text()
    assert log.read_text().endswith("stopped\n")


def test_without_the_library(quiet: Host):
    code = "import sys; sys.modules['apscheduler.events'] = None\nfrom mailbackup.cli.main import run\nsys.exit(run())"
    program = [sys.executable, "-c", code, "--config", quiet.config_path, "--state", quiet.state, "schedule", "daemon"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs the library APScheduler" in done.stderr
    assert "mailbackup[schedule]" in done.stderr
    shown = [word if word != "daemon" else "show" for word in program]
    assert subprocess.run(shown, capture_output=True, check=False).returncode == 0  # everything else works without it
