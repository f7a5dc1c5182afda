"""`python -m mailbackup`."""

from __future__ import annotations

import sys

from mailbackup.cli.main import run

if __name__ == "__main__":
    sys.exit(run())
