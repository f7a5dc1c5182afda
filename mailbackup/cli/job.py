"""`job run`, `job list`, `job show`."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command, group
from mailbackup.cli.text import duration, table
from mailbackup.errors import Interrupted
from mailbackup.model.codec import plain
from mailbackup.model.events import Stop

if TYPE_CHECKING:
    from mailbackup.model.job import Job
    from mailbackup.model.results import JobResult

Name = Annotated[str, typer.Argument(metavar="NAME", help="A job, as 'job list' names it.")]


def register(root: typer.Typer) -> None:
    """Add the commands to the program."""
    parent = group(root, "job", "Jobs: what runs by itself.")
    command(parent, "run", example="mailbackup job run nightly")(run_one)
    command(parent, "list", example="mailbackup job list")(list_all)
    command(parent, "show", example="mailbackup job show nightly")(show)


def run_one(
    run: Run,
    *,
    name: Name,
    jitter: Annotated[bool, typer.Option("--jitter", help="Wait first, for a random part of the job's jitter.")] = False,
) -> Answer:
    """Run a job now: its parts, one after another; the failure of one does not cost the others."""
    from mailbackup.host import be_nice
    from mailbackup.jobs.files import find_job
    from mailbackup.jobs.run import run_job

    context = run.context()
    job = find_job(context.config_path, name)
    with stopped_by_sigterm() as stop:
        if jitter:
            _wait(job.jitter_seconds, stop)
        be_nice()
        result = run_job(context, job, stop=stop)
    return Answer(
        outcome=result.outcome, exit_status=result.exit_status, fields=fields_of(result), text=summary(result),
        findings=result.findings, report=result.exit_status == 0,
    )  # fmt: skip


@contextmanager
def stopped_by_sigterm() -> Iterator[Stop]:
    """Whether SIGTERM came: the first asks for an end at the next checkpoint, the second interrupts as it does everywhere."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGTERM)

    def ask(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, before)
        asked.set()

    signal.signal(signal.SIGTERM, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait(most: int, stop: Stop) -> None:
    """Sleep for a random time; raises Interrupted when told to stop."""
    until = time.monotonic() + random.uniform(0, most)  # noqa: S311 - only to spread starts
    while (left := until - time.monotonic()) > 0:
        if stop():
            raise Interrupted("stopped before the job began")
        time.sleep(min(0.5, left))


def summary(result: JobResult) -> list[str]:
    """A job in a line per part."""
    rows = [[part.name, _word(part.outcome, part.exit_status), duration(part.seconds), part.detail] for part in result.parts]
    return [f"{result.job}: {result.outcome}, {duration(result.seconds)}", *table(rows, frozenset({2}))]


def _word(outcome: str, status: int) -> str:
    return f"{outcome} ({status})" if status else outcome


def list_all(run: Run) -> Answer:
    """List the jobs and when they run next by their files. Whether something starts them, 'schedule show' tells."""
    from mailbackup.jobs.files import load_jobs

    jobs = load_jobs(run.loaded[1])
    rows = [[job.name, "enabled" if job.enabled else "disabled", job.cron, ", ".join(job.parts), job.about] for job in jobs.values()]
    fields = {"jobs": [plain(job) | {"next": next_run(job)} for job in jobs.values()]}
    return Answer(fields=fields, text=table([["job", "", "cron", "parts", "about"], *rows]), report=False)


def next_run(job: Job) -> str | None:
    """When it is due next, UTC; None for a job that is disabled."""
    from mailbackup.host import stamp
    from mailbackup.schedule.cron import Cron
    from mailbackup.schedule.zone import zone_of

    following = Cron.parse(job.cron).following(datetime.now(UTC), zone_of(job.zone)) if job.enabled else iter(())
    due = next(following, None)
    return None if due is None else stamp(due)


def show(run: Run, *, name: Name) -> Answer:
    """Show a job: its keys, its hooks, and how its parts ended last."""
    from mailbackup.jobs.files import beside, find_job
    from mailbackup.upkeep.status import read_status

    context = run.context()
    job = find_job(context.config_path, name)
    last = [part for part in read_status(context.state_dir).parts if part.job == name]
    keys = [[key, ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)] for key, value in _keys(job)]
    text = [*table(keys), f"hooks     {beside(context.config_path, 'hooks')}"]
    text += table([[f"last {part.part}", f"{part.outcome} {part.time} {part.detail}"] for part in last])
    fields = {"job": plain(job) | {"next": next_run(job)}, "last": [plain(part) for part in last]}
    return Answer(fields=fields, text=text, report=False)


def _keys(job: Job) -> list[tuple[str, object]]:
    return [(key, getattr(job, key)) for key in job.__struct_fields__ if getattr(job, key) not in (None, "")]
