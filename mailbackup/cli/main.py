"""The entry point. Imports nothing heavy, so that `mailbackup --version` and a Ctrl-C during start are answered at once."""

from __future__ import annotations

import signal
import sys
from types import FrameType


def run(args: list[str] | None = None) -> int:
    """Run the program with `args` (default: those of the process) and return its exit status."""
    args = sys.argv[1:] if args is None else args
    if args == ["--version"]:
        from mailbackup.model.version import TOOL

        print(TOOL)
        return 0
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP on purpose
            signal.signal(number, _stop)
    try:
        from mailbackup.cli.program import main

        return main(args)
    except KeyboardInterrupt:  # before or after the program looks after itself
        return 130


def _stop(_number: int, _frame: FrameType | None) -> None:
    """Let SIGTERM and SIGHUP unwind the program as Ctrl-C does, so that what is open is closed properly."""
    raise KeyboardInterrupt
