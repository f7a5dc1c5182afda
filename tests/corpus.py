"""The corpus of real mail and test vectors, which is too large and too foreign for the repository.

Two archives in `$MAILBACKUP_CORPUS` (default `../shared/corpus` beside the repository). Without them tests are skipped, with a reason
that says so; where the variable `CI` is set they fail instead, so that nobody takes a run without them for a whole one.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path
from typing import Literal, NoReturn

import pytest

Archive = Literal["mail", "vectors"]

_DEFAULT = Path(__file__).resolve().parent.parent.parent / "shared" / "corpus"


def corpus_dir(tmp_path_factory: pytest.TempPathFactory, archive: Archive) -> Path:
    """The unpacked `archive`. Read only: it is unpacked once for all xdist workers of a run. Skips (fails in CI) when it is absent."""
    packed = Path(os.environ.get("MAILBACKUP_CORPUS") or _DEFAULT) / f"{archive}.tar.zst"
    if not packed.is_file():
        _absent(packed)
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # the workers' own directories lie side by side in that of the run
    target = shared / f"corpus-{archive}"
    with open(shared / f"corpus-{archive}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _unpack(packed, target)
    return target


def _absent(packed: Path) -> NoReturn:
    reason = f"corpus absent: {packed} (set $MAILBACKUP_CORPUS)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _unpack(packed: Path, target: Path) -> None:
    """Into a directory that gets its name when it is whole."""
    partial = target.with_suffix(".partial")
    partial.mkdir(exist_ok=True)
    subprocess.run(["tar", "--no-same-owner", "-I", "zstd -d", "-xf", packed, "-C", partial], check=True)
    partial.rename(target)
