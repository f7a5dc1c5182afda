"""`schedule daemon`, `schedule show`, `schedule install`."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import typer

from mailbackup.cli.answer import Answer
from mailbackup.cli.command import Run, command, group
from mailbackup.cli.text import table
from mailbackup.errors import MailbackupError, UsageError
from mailbackup.model.events import Event, Note

if TYPE_CHECKING:
    from mailbackup.model.job import Job
    from mailbackup.schedule.install import Setting

_SHOWN = 3  # next runs
_SYSTEMCTL_SECONDS = 60


def register(root: typer.Typer) -> None:
    """Add the commands to the program."""
    parent = group(root, "schedule", "What starts the jobs: cron, systemd, or a daemon of our own. One of them is enough.")
    command(parent, "daemon", example="mailbackup schedule daemon")(daemon)
    command(parent, "show", example="mailbackup schedule show")(show)
    command(parent, "install", example="mailbackup schedule install --systemd")(install)


def daemon(run: Run) -> Answer:
    """Start the enabled jobs at their times until SIGTERM. SIGHUP rereads the job files."""
    from mailbackup.jobs.files import load_jobs
    from mailbackup.schedule.daemon import Daemon

    context = run.context()

    def say(event: Event) -> None:
        if isinstance(event, Note):
            run.say(event.text)

    def words(job: Job) -> list[str]:
        quiet = ["--quiet"] if run.settings.quiet else []
        options = ["--config", context.config_path, "--state", context.state_dir, *quiet]
        return [sys.executable, "-P", "-m", "mailbackup", *options, "job", "run", job.name]

    Daemon(lambda: load_jobs(context.config_path).values(), words, on_event=say).run()
    return Answer(outcome="stopped", text=["stopped"])


def show(run: Run) -> Answer:
    """Show when the enabled jobs run next, and what starts them."""
    from mailbackup.host import stamp, utc_now
    from mailbackup.jobs.files import load_jobs
    from mailbackup.schedule.cron import Cron
    from mailbackup.schedule.install import installed
    from mailbackup.schedule.zone import host_zone, zone_of

    jobs = [job for job in load_jobs(run.loaded[1]).values() if job.enabled]
    rows, fields = [], []
    for job in jobs:
        zone = zone_of(job.zone)
        following = list(islice(Cron.parse(job.cron).following(utc_now(), zone), _SHOWN))
        rows.append([job.name, job.cron, job.zone or host_zone(), *(f"{moment.astimezone(zone):%a %d %b %H:%M}" for moment in following)])
        fields.append({"name": job.name, "next": [stamp(moment) for moment in following]})
    places = installed()
    about = [f"started by {path}" for path in places] or [
        "no file of cron or systemd starts them: 'mailbackup schedule install', or the daemon"
    ]
    return Answer(fields={"jobs": fields, "installed": places}, text=[*_even(rows), *about], report=False)


def _even(rows: list[list[str]]) -> list[str]:
    width = max((len(row) for row in rows), default=0)
    return table([[*row, *[""] * (width - len(row))] for row in rows])


def install(
    run: Run,
    *,
    cron: Annotated[bool, typer.Option("--cron", help="Write /etc/cron.d/mailbackup.")] = False,
    systemd: Annotated[bool, typer.Option("--systemd", help="Write a timer and a service for each job, and enable them.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Remove what this command installed.")] = False,
    print_only: Annotated[bool, typer.Option("--print", help="Print the files and change nothing.")] = False,
) -> Answer:
    """Have cron or systemd start the enabled jobs. Replaces what this command installed before, of either kind; other files are not touched."""
    from mailbackup.jobs.files import load_jobs
    from mailbackup.schedule.install import carry_out, cron_files, planned, systemd_files

    if [cron, systemd, remove].count(True) != 1:
        raise UsageError("say one of --cron, --systemd and --remove", hint="See 'mailbackup schedule install --help'.")
    files = {}
    if not remove:
        jobs = [job for job in load_jobs(run.loaded[1]).values() if job.enabled]
        files = (cron_files if cron else systemd_files)(jobs, _setting(run))
    change = planned(files)
    fields = {"files": change.write, "removed": list(change.remove), "commands": [shlex.join(words) for words in change.commands]}
    if print_only:
        text = [line for path, content in change.write.items() for line in (f"# {path}", *content.splitlines(), "")]
        return Answer(
            outcome="planned", fields=fields, text=[*text, *(f"# would be removed: {path}" for path in change.remove)], report=False
        )
    disable = [words for words in change.commands if "disable" in words]
    _systemctl(disable)
    carry_out(change)
    done = _systemctl([words for words in change.commands if words not in disable])
    text = [*(f"wrote {path}" for path in change.write), *(f"removed {path}" for path in change.remove)]
    text += [] if done else [f"systemd does not run here; where it does: {shlex.join(words)}" for words in change.commands]
    return Answer(outcome="installed" if files else "removed", fields=fields, text=text)


def _setting(run: Run) -> Setting:
    """What the installed lines need to know of this invocation."""
    from mailbackup.schedule.install import Setting, program_words

    context = run.context()
    stores = [store.path for store in context.config.stores if store.url.startswith("file:")]
    words = (*program_words(), "--config", context.config_path, "--state", context.state_dir)
    return Setting(words, (context.state_dir, *stores))


def _systemctl(commands: list[tuple[str, ...]]) -> bool:
    """Run the commands if systemd is what runs this machine. Returns whether it is; raises MailbackupError with its words when one fails."""
    if not os.path.isdir("/run/systemd/system"):
        return not commands
    for words in commands:
        try:
            subprocess.run(words, check=True, capture_output=True, text=True, timeout=_SYSTEMCTL_SECONDS)
        except (subprocess.SubprocessError, OSError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise MailbackupError(f"{shlex.join(words)}: {said.strip()}", hint="The files are in place; run the command by hand.") from None
    return True
