"""Running borg: one repository, one private directory for its caches, no terminal, no secret among the arguments."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import IO

from mailbackup.errors import ConfigInvalid, ObjectDamaged
from mailbackup.model.options import StoreConfig
from mailbackup.stores.borg.answers import Answered, Failure, failure_of

RSH = "ssh -o BatchMode=yes -o ConnectTimeout=20 -o ServerAliveInterval=30 -o ServerAliveCountMax=4"
LOCK_WAIT = 5  # seconds of one try: borg looks ten times in them, so a long wait would also look rarely. The rest of the patience is ours
LIMIT = 6 * 3600  # seconds for one call; a batch through a thin line may take hours, a hanging one must not take for ever
ANSWER = 256 << 20  # bytes of an answer: the listing of a million archives
_LONGEST_PAUSE = 10.0

_URL = re.compile(r"(?P<user>[^@/:\s-][^@/:\s]*@)?(?P<host>[A-Za-z0-9_.][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+\])(:\d+)?/.+")
_KEPT = {"BORG_KEYS_DIR", "BORG_KEY_FILE", "BORG_BASE_DIR"}  # where key files lie; everything else is said by the configuration alone


def repository_of(place: StoreConfig) -> str:
    """The address as borg wants it. Raises ConfigInvalid."""
    if place.scheme == "borg":
        with contextlib.suppress(ValueError):
            return _without_signs(place, place.path)
    else:
        rest = place.url.partition("://")[2]
        if _URL.fullmatch(rest):
            return _without_signs(place, "ssh://" + rest)
    raise ConfigInvalid(
        f"url of store {place.name} is not the address of a Borg repository",
        hint="borg:///absolute/path or borg+ssh://user@host:port/./path",
    )


def _without_signs(place: StoreConfig, address: str) -> str:
    path = address.partition("://")[2].partition("/")[2] or address  # the address of a host may hold colons
    if any(sign in path for sign in ("::", "{", "}")):
        raise ConfigInvalid(f"url of store {place.name} holds '::' or braces, which mean something to borg", hint="Choose another path.")
    return address


def program_of(place: StoreConfig) -> str:
    """Path of borg: on PATH, or beside this Python (the PATH of cron is poor). Raises ConfigInvalid."""
    found = shutil.which(place.borg_path) or shutil.which(place.borg_path, path=os.path.dirname(sys.executable))
    if found is None:
        raise ConfigInvalid(
            f"store {place.name}: there is no program {place.borg_path!r}", hint="Install borg (Debian: borgbackup), or set borg_path."
        )
    return found


class Borg:
    """Calls of borg for one repository. `home` is a private directory for borg's caches."""

    def __init__(self, place: StoreConfig, home: str) -> None:
        self.repository = repository_of(place)
        self._program = program_of(place)
        self._name = place.name
        self._patience = float(place.patience)
        self._environment = _environment(place, home)
        self._remote = ("--remote-path", place.remote_path) if place.remote_path else ()

    def run(
        self,
        verb: str,
        *options: str,
        archive: str | None = None,
        paths: tuple[str, ...] = (),
        names: bytes | None = None,
        folder: str | None = None,
        expected: tuple[str, ...] = (),
        limit: int = ANSWER,
    ) -> bytes:
        """What `borg verb options REPOSITORY[::archive] paths` prints, with `names` as its standard input, run in `folder`.

        What may pass by itself is tried again for `patience` seconds. Raises Answered for the message ids in `expected`, ObjectDamaged for more
        than `limit` bytes, StoreUnavailable, StoreRefused or NoSpace. A warning is a failure too: whatever borg left out is missing.
        """
        place = self.repository if archive is None else f"{self.repository}::{archive}"
        common = ("--log-json", "--lock-wait", str(LOCK_WAIT), *self._remote)
        command = [self._program, verb, *common, *options, place, *paths]
        deadline = time.monotonic() + self._patience
        pauses = _pauses()
        while True:
            result = self._once(command, names, folder, limit)
            if isinstance(result, bytes):
                return result
            if result.msgid in expected:
                raise Answered(result.msgid)
            pause = next(pauses)
            if not result.transient or time.monotonic() + pause > deadline:
                raise result.error(f"store {self._name}: borg {verb} {place}")
            time.sleep(pause)

    def _once(self, command: list[str], names: bytes | None, folder: str | None, limit: int) -> bytes | Failure:
        with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as complaints:
            if names is not None:
                told.write(names)
                told.seek(0)
            process = subprocess.Popen(
                command,
                stdin=told if names is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaints,
                cwd=folder,
                env=self._environment,
                start_new_session=True,  # no terminal: nothing down there can ask and wait
            )
            assert process.stdout is not None
            with _ended_after(process, process.stdout):
                answer = process.stdout.read(limit + 1)
                if len(answer) > limit:
                    raise ObjectDamaged(f"store {self._name}: borg {command[1]} gives more than the {limit} bytes that there should be")
                code = process.wait()
            complaints.seek(0)
            return answer if code == 0 else failure_of(code, complaints.read(1 << 20))


def _environment(place: StoreConfig, home: str) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("BORG_", "PYTHON")) or name in _KEPT}
    ours |= {
        "BORG_EXIT_CODES": "modern",
        "BORG_CACHE_DIR": os.path.join(home, "cache"),
        "BORG_SECURITY_DIR": os.path.join(home, "security"),
        "BORG_RSH": place.rsh or RSH,
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",  # what we store is sealed and signed
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        "BORG_DISPLAY_PASSPHRASE": "no",
        "LC_ALL": "C.UTF-8",  # the words of ssh are told apart
        "TZ": "UTC",  # borg's times are local ones
    }
    if place.passphrase_command:
        ours["BORG_PASSCOMMAND"] = place.passphrase_command
    return ours


def _pauses() -> Iterator[float]:
    pause = 0.5
    while True:
        yield pause
        pause = min(pause * 2, _LONGEST_PAUSE)


@contextlib.contextmanager
def _ended_after(process: subprocess.Popen[bytes], output: IO[bytes]) -> Iterator[None]:
    """Whatever happens in the body, borg and its ssh have ended after it; at the latest after LIMIT seconds."""
    timer = threading.Timer(LIMIT, _end, (process,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if process.poll() is None:
            _end(process)
        output.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End borg and all that it started: politely first, so that it gives back its locks."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
            return
