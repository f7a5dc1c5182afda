"""Trees that take long to make are made once per machine and kept below $MAILBACKUP_TEST_CACHE (default /var/cache/mailbackup-tests)."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

_DEFAULT = "/var/cache/mailbackup-tests"


def folder() -> Path:
    """Where things are kept between test runs: `$MAILBACKUP_TEST_CACHE`, or the usual place."""
    return Path(os.environ.get("MAILBACKUP_TEST_CACHE") or _DEFAULT)


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The directory `name` of the cache, filled by `make(partial)` if it is not there. Read only for all who use it.

    It gets its name when it is whole, so what a killed run left never counts; one of several processes makes it while the others wait.
    """
    root = folder()
    target = root / name
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            _make(target, make)
    return target


def _make(target: Path, make: Callable[[Path], None]) -> None:
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        make(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.rename(target)
