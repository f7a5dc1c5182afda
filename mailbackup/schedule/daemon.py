"""`schedule daemon`: starts jobs at their times, one after another, each as a child process, so that its memory is given back.

Signals: SIGTERM and SIGINT end it, and the job that runs is told to stop at its next checkpoint (a second one interrupts it); SIGHUP rereads the
job files. The daemon ends when its child has.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from mailbackup.errors import MailbackupError, UsageError
from mailbackup.model.events import Note, OnEvent, ignore
from mailbackup.model.job import Job
from mailbackup.schedule.cron import Cron
from mailbackup.schedule.zone import zone_of

_ENDING = (signal.SIGTERM, signal.SIGINT)
_CHILD_ENDED = 0  # in the stream of signal numbers


def trigger_of(job: Job) -> Any:
    """When a job starts, as the scheduler's library wants it."""
    from apscheduler.triggers.cron import CronTrigger

    fields = Cron.parse(job.cron).trigger_fields()
    return CronTrigger(**fields, timezone=zone_of(job.zone), jitter=job.jitter_seconds or None)


class Daemon:
    """Runs until it is told to end. `load` gives the jobs, again at each SIGHUP; `command` the arguments that run one."""

    def __init__(
        self,
        load: Callable[[], Iterable[Job]],
        command: Callable[[Job], list[str]],
        *,
        trigger: Callable[[Job], Any] = trigger_of,
        on_event: OnEvent = ignore,
    ) -> None:
        self._load = load
        self._command = command
        self._trigger = trigger
        self._on_event = on_event
        self._lock = threading.Lock()  # guards the two below
        self._child: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._scheduler = _scheduler(self._say)
        self._wake = -1

    def run(self) -> None:
        """Start jobs until a signal ends it. To be called in the main thread. Raises ConfigInvalid when the job files are wrong at the start."""
        with _signals((*_ENDING, signal.SIGHUP)) as (numbers, self._wake):
            self._take(self._load())
            self._scheduler.start()
            for number in numbers:
                if number == signal.SIGHUP:
                    self._reread()
                elif number in _ENDING:
                    break
            self._end(numbers)

    # -- jobs

    def _take(self, jobs: Iterable[Job]) -> None:
        wanted = {job.name: job for job in jobs if job.enabled}
        for known in self._scheduler.get_jobs():
            if known.id not in wanted:
                self._scheduler.remove_job(known.id)
        for name, job in wanted.items():
            self._scheduler.add_job(
                self._start, self._trigger(job), args=[job], id=name, name=name, replace_existing=True, coalesce=True, max_instances=1,
                misfire_grace_time=max(1, job.misfire_seconds),
            )  # fmt: skip
        self._say(f"jobs: {', '.join(wanted) or 'none is enabled'}")

    def _reread(self) -> None:
        """What is wrong now must not end what was right before."""
        try:
            self._take(self._load())
        except MailbackupError as error:
            self._say(f"the job files are not taken over: {error.message}")

    def _start(self, job: Job) -> None:
        """Run a job to its end. Called in the scheduler's one thread."""
        with self._lock:
            if self._ending:
                return
            self._say(f"{job.name} begins")
            try:
                child = self._child = subprocess.Popen(
                    self._command(job), stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), cwd="/", start_new_session=True
                )
            except OSError as error:
                self._say(f"{job.name} cannot be started: {error.strerror}")
                return
        status = child.wait()
        with self._lock:
            self._say(f"{job.name} ended with status {status}")
            self._child = None
            os.write(self._wake, bytes([_CHILD_ENDED]))  # under the lock: afterwards the pipe may be gone

    # -- the end

    def _end(self, numbers: Iterator[int]) -> None:
        with self._lock:
            self._ending = True
        self._scheduler.shutdown(wait=False)
        self._tell_child()
        while self._running():
            if next(numbers) in _ENDING:
                self._tell_child()

    def _running(self) -> bool:
        with self._lock:
            return self._child is not None

    def _tell_child(self) -> None:
        with self._lock:
            if self._child is not None:
                self._say("waiting for the running job, which was told to stop")
                self._child.send_signal(signal.SIGTERM)

    def _say(self, text: str) -> None:
        self._on_event(Note(text))


def _scheduler(say: Callable[[str], None]) -> Any:
    """The library's scheduler with one thread: jobs do not overlap, one that is due waits for the one that runs."""
    try:
        from apscheduler.events import EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED
        from apscheduler.executors.pool import ThreadPoolExecutor
        from apscheduler.schedulers.background import BackgroundScheduler
    except ImportError:
        raise UsageError(
            "the schedule daemon needs the library APScheduler, which is not installed",
            hint="Install it with: pip install 'mailbackup[schedule]'. Or do without: 'mailbackup schedule install --systemd' (or --cron).",
        ) from None
    logging.getLogger("apscheduler").addHandler(logging.NullHandler())  # it would warn on stderr; what matters is said by the listeners
    made = BackgroundScheduler(executors={"default": ThreadPoolExecutor(1)}, daemon=True)
    made.add_listener(lambda event: say(f"{event.job_id} could not begin in time, and waits for its next time"), EVENT_JOB_MISSED)
    made.add_listener(lambda event: say(f"{event.job_id} is due, and still runs: left out"), EVENT_JOB_MAX_INSTANCES)
    return made


@contextmanager
def _signals(wanted: tuple[signal.Signals, ...]) -> Iterator[tuple[Iterator[int], int]]:
    """The numbers of these signals as they come, and a descriptor to which other numbers may be written.

    Through a pipe: a handler that ran Python code could meet a lock that the interrupted code holds.
    """
    read, write = os.pipe()
    for end in (read, write):
        os.set_blocking(end, False)
    before = {number: signal.signal(number, lambda *_: None) for number in wanted}
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        yield _numbers(read), write
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


def _numbers(read: int) -> Iterator[int]:
    while True:
        select.select([read], [], [])
        yield from os.read(read, 64)
