"""The version of the installed program."""

from __future__ import annotations


def version() -> str:
    """`mailbackup 1.2.3`."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return f"mailbackup {installed('mailbackup')}"
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "mailbackup (not installed)"
