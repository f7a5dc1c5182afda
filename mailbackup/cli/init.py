"""`init`."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mailbackup.cli.answer import Answer, fields_of, lines, write
from mailbackup.cli.command import Run, command
from mailbackup.cli.key import NoPassphrase
from mailbackup.errors import UsageError

if TYPE_CHECKING:
    from mailbackup.app import InitOptions
    from mailbackup.model.results import InitResult

Texts = list[str] | None


def _option(name: str, metavar: str, about: str) -> Any:
    return typer.Option(name, metavar=metavar, help=about, show_default=False)


def register(root: typer.Typer) -> None:
    """Add the command to the program."""
    example = "mailbackup init --mail '/var/vmail/{domain}/{user}/Maildir' --directory /etc --kit-out kit.txt"
    command(root, "init", example=example)(init)


def init(
    run: Run,
    *,
    kit_out: Annotated[str, typer.Option("--kit-out", metavar="FILE", help="Where to write the recovery kit.", show_default=False)],
    mail: Annotated[Texts, _option("--mail", "PATTERN", "Path of a mailbox, with {domain} and {user}; may be repeated.")] = None,
    directory: Annotated[Texts, _option("--directory", "DIR", "A directory to save as well; may be repeated.")] = None,
    store: Annotated[Texts, _option("--store", "URL", "Where backups go: a directory or file:// address.")] = None,
    domain: Annotated[str | None, _option("--domain", "DOMAIN", "Domain of mailboxes whose path has none.")] = None,
    host: Annotated[str | None, _option("--host", "NAME", "Name of this host in snapshots.")] = None,
    no_passphrase: NoPassphrase = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> Answer:
    """Set up backups: make keys, the recovery kit, the vault and the configuration."""
    from dataclasses import replace

    from mailbackup import app
    from mailbackup.cli.secret import new_passphrase

    if not mail and not directory:
        raise UsageError("nothing to save: name mailboxes with --mail or directories with --directory")
    options = _options(run, mail=mail or [], directories=directory or [], stores=store or [], kit_out=kit_out, domain=domain, host=host)
    if not yes:
        _confirm(options, run)
    result = app.init(replace(options, passphrase=new_passphrase(none=no_passphrase)))
    return Answer(fields=fields_of(result), text=_summary(result, run))


def _options(
    run: Run, *, mail: list[str], directories: list[str], stores: list[str], kit_out: str, domain: str | None, host: str | None
) -> InitOptions:
    """What was asked for, with whole paths and defaults."""
    from mailbackup import config
    from mailbackup.app import InitOptions

    path = os.path.abspath(run.settings.config or config.default_path())
    return InitOptions(
        config_path=path,
        state_dir=config.state_dir(path, run.settings.state),
        host=host or socket.gethostname(),
        mail=tuple(map(os.path.abspath, mail)),
        directories=tuple(map(os.path.abspath, directories)),
        stores=tuple(url if "://" in url else config.file_url(url) for url in stores or [config.default_store_dir()]),
        kit_out=os.path.abspath(kit_out),
        domain=domain,
    )


def _confirm(options: InitOptions, run: Run) -> None:
    """Show what would be done and ask. Raises UsageError when there is nobody to ask or the answer is no."""
    plan = [
        f"mail           {', '.join(options.mail) or '-'}",
        f"directories    {', '.join(options.directories) or '-'}",
        f"backups go to  {', '.join(options.stores)}",
        f"configuration  {options.config_path}",
        f"local state    {options.state_dir}",
        f"recovery kit   {options.kit_out}",
    ]
    write(lines(plan), sys.stderr)
    if run.settings.json or not sys.stdin.isatty():
        raise UsageError("nothing was done: there is nobody to ask", hint="Say --yes to do it.")
    if not typer.confirm("Set this up?", err=True):
        raise UsageError("nothing was done", hint="")


def _summary(result: InitResult, run: Run) -> list[str]:
    from mailbackup.config import default_path

    there = "" if result.config == default_path() else f" --config {result.config}"
    return [
        f"configuration  {result.config}",
        f"recovery kit   {result.kit}",
        f"vault          {result.vault}",
        "",
        "The kit is the only thing that can read the backups. Copy it to a safe place away from this machine, then delete it here.",
        f"Next: mailbackup{there}{f' --state {run.settings.state}' if run.settings.state else ''} backup",
    ]
