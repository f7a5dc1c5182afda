"""`config check`, `config show`."""

from __future__ import annotations

import os

import typer

from mailbackup.cli.answer import Answer
from mailbackup.cli.command import Run, command, group
from mailbackup.cli.text import number
from mailbackup.model.codec import plain


def register(root: typer.Typer) -> None:
    """Add the commands to the program."""
    parent = group(root, "config", "The configuration.")
    command(parent, "check", example="mailbackup config check")(check)
    command(parent, "show", example="mailbackup config show --json")(show)


def check(run: Run) -> Answer:
    """Say whether the configuration is valid, and which of its places do not exist now."""
    from mailbackup.config import literal_root

    config, path = run.loaded
    roots = [*(literal_root(mail.path) for mail in config.mail), *(directory.path for directory in config.directories)]
    missing = [root for root in roots if not os.path.isdir(root)]
    stores, sources, keys = number(len(config.stores), "store"), number(len(roots), "source"), number(len(config.recipients), "recipient")
    text = [f"{path} is valid: {sources}, {stores}, {keys}", *(f"note: {root} does not exist now" for root in missing)]
    return Answer(outcome="valid", fields={"config": path, "missing": missing}, text=text, report=False)


def show(run: Run) -> Answer:
    """Print the configuration as it is understood. What is secret in it is not shown."""
    from mailbackup.config import render, without_secrets

    config, path = without_secrets(run.loaded[0]), run.loaded[1]
    text = [f"# {path}", *render(config, comments=False).splitlines()]
    return Answer(fields={"file": path, "config": plain(config)}, text=text, report=False)
