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
    from mailbackup.cli.interview import Given
    from mailbackup.model.results import InitResult
    from mailbackup.server.found import FoundHere

Texts = list[str] | None


def _option(name: str, metavar: str, about: str) -> Any:
    return typer.Option(name, metavar=metavar, help=about, show_default=False)


def register(root: typer.Typer) -> None:
    """Add the command to the program."""
    example = "mailbackup init --mail '/var/vmail/{domain}/{user}/Maildir' --directory /home --kit-out kit.txt"
    command(root, "init", example=example)(init)


def init(
    run: Run,
    *,
    mail: Annotated[Texts, _option("--mail", "PATTERN", "Path of a mailbox, with {domain} and {user}; may be repeated.")] = None,
    directory: Annotated[Texts, _option("--directory", "DIR", "A directory to save as well; may be repeated.")] = None,
    store: Annotated[
        Texts, _option("--store", "URL", "Where backups go: a directory, or an address (file, s3, borg, borg+ssh; options behind a ?).")
    ] = None,
    kit_out: Annotated[
        str | None, _option("--kit-out", "FILE", "Where to write the recovery kit; needed where nobody can be asked.")
    ] = None,
    domain: Annotated[str | None, _option("--domain", "DOMAIN", "Domain of mailboxes whose path has none.")] = None,
    host: Annotated[str | None, _option("--host", "NAME", "Name of this host in snapshots.")] = None,
    no_passphrase: NoPassphrase = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask. Mailboxes are those that the mail server names, unless --mail says it.")
    ] = False,
) -> Answer:
    """Set up backups: make keys, the recovery kit, the vault and the configuration. At a terminal, what is not given is asked for."""
    from dataclasses import replace

    from mailbackup import app
    from mailbackup.cli import interview
    from mailbackup.cli.secret import new_passphrase
    from mailbackup.server.found import found_here

    given = interview.Given(mail or [], directory or [], store or [], kit_out, domain, host, no_passphrase=no_passphrase)
    someone = sys.stdin.isatty() and not (yes or run.settings.json)
    asked = someone and not ((mail or directory) and kit_out)
    if not asked and kit_out is None:
        raise UsageError("Missing option '--kit-out'", hint="Say where the recovery kit is to be written, for example --kit-out kit.txt.")
    found = found_here()
    given = interview.ask(given, found) if asked else _without_asking(given, found)
    options = _options(run, given, found)
    if not yes:
        _confirm(options, run)
    passphrase = interview.passphrase(no_passphrase) if asked else new_passphrase(none=no_passphrase)
    result = app.init(replace(options, passphrase=passphrase))
    return Answer(fields=fields_of(result), text=_summary(result, run))


def _without_asking(given: Given, found: FoundHere) -> Given:
    """Take what was found where it is certain. Raises UsageError where it is not, or where there is nothing to save."""
    from dataclasses import replace

    if given.mail:
        return given
    if found.certain:
        return replace(given, mail=[found.mail[0].pattern])
    if found.mail or found.doubt:
        if given.directories and not found.mail:
            return given
        seen = " ".join(f"--mail '{row.pattern}'" for row in found.mail)
        why = found.doubt or f"there are {len(found.mail)} patterns"
        text = f"where the mailboxes of this mail server lie is not certain: {why}"
        raise UsageError(text, hint=f"Say it yourself; found was: {seen}." if seen else "Say it yourself with --mail PATTERN.")
    if not given.directories:
        raise UsageError("nothing to save: name mailboxes with --mail or directories with --directory")
    return given


def _options(run: Run, given: Given, found: FoundHere) -> InitOptions:
    """What was asked for, with whole paths and defaults."""
    from mailbackup import config
    from mailbackup.app import InitOptions

    assert given.kit_out is not None, "a place for the kit"
    path = os.path.abspath(run.settings.config or config.default_path())
    plain = any("{domain}" not in pattern and "{address}" not in pattern for pattern in given.mail)
    return InitOptions(
        config_path=path,
        state_dir=config.state_dir(path, run.settings.state),
        host=given.host or socket.gethostname(),
        mail=tuple(map(os.path.abspath, given.mail)),
        directories=tuple(map(os.path.abspath, given.directories)),
        stores=tuple(url if "://" in url else config.file_url(url) for url in given.stores or [config.default_store_dir()]),
        kit_out=os.path.abspath(os.path.expanduser(given.kit_out)),
        domain=given.domain or (found.domain if plain else None),
        systems="auto" if found.programs and os.geteuid() == 0 else (),
    )


def _confirm(options: InitOptions, run: Run) -> None:
    """Show what would be done and ask. Raises UsageError when there is nobody to ask or the answer is no."""
    plan = [
        f"mail           {', '.join(options.mail) or '-'}",
        *([f"domain         {options.domain}, of mailboxes whose path has none"] if options.domain else []),
        f"directories    {', '.join(options.directories) or '-'}",
        *(["systems        all that are found: configuration, keys, queue, accounts"] if options.systems else []),
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
