"""The version of the program. A constant, since asking the installed package costs a tenth of a second; a test compares the two."""

from __future__ import annotations

VERSION = "0.1.0"
TOOL = f"mailbackup {VERSION}"
"""What `--version` prints and snapshots name as their tool."""
