"""The program: all commands, and the border at which everything that is raised becomes a message and an exit status."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer

from mailbackup.cli import (
    backup,
    browse,
    configuration,
    copy,
    doctor,
    drill,
    erase,
    init,
    job,
    key,
    prune,
    quickstart,
    receive,
    restore,
    schedule,
    state,
    stats,
    status,
    systems,
    vault,
    verify,
)
from mailbackup.cli.answer import Answer, show_answer, show_error, write
from mailbackup.cli.command import dress
from mailbackup.cli.settings import Settings, global_options
from mailbackup.cli.text import one_line
from mailbackup.errors import Interrupted, MailbackupError, UsageError
from mailbackup.model.version import TOOL

HELP = "Backup for Linux mail servers: sealed to keys that are not on the server, signed, and proven by restoring."
COMPLETE = "_MAILBACKUP_COMPLETE"  # set by the completion scripts of shells


def program() -> Any:
    """The whole command line as one command object."""
    root = typer.Typer(rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]})
    root.callback(help=HELP)(_root())
    for module in (
        quickstart,
        init,
        systems,
        backup,
        browse,
        restore,
        receive,
        verify,
        prune,
        erase,
        doctor,
        drill,
        job,
        schedule,
        status,
        stats,
        state,
        key,
        vault,
        configuration,
        copy,
    ):
        module.register(root)
    return typer.main.get_command(root)


def _root() -> Any:
    """The callback that takes the global options standing before the command."""

    def take(context: typer.Context, *, version: bool, **values: Any) -> None:
        context.obj.update(values)

    about = typer.Option("--version", help="Print the version.", show_default=False, is_eager=True, callback=_print_version)
    return dress(take, [], {**global_options(hidden=False), "version": (Annotated[bool, about], False)})


def _print_version(value: bool) -> None:
    if value:
        write(f"{TOOL}\n".encode())
        raise typer.Exit


def main(args: list[str]) -> int:
    """Run one command line and return its exit status; nothing is raised."""
    settings = Settings(json="--json" in args[: args.index("--")] if "--" in args else "--json" in args)
    try:
        if COMPLETE in os.environ:
            program().main(args=[], prog_name="mailbackup", complete_var=COMPLETE)
        if not args:
            _invoke(["--help"], settings)
            return UsageError.exit_status
        answer = _invoke(args, settings)
        show_answer(answer, settings.command, as_json=settings.json, quiet=settings.quiet)
    except SystemExit as end:  # how completion ends
        return int(end.code or 0)
    except KeyboardInterrupt:
        return _fail(Interrupted("interrupted"), settings)
    except Exception as error:  # the border: nothing may pass it as a traceback
        return _fail(error, settings)
    return answer.exit_status


def _invoke(args: list[str], settings: Settings) -> Answer:
    """Parse and run. Not the library's own `main`, which would print errors and exit by its own rules."""
    root = program()
    try:
        with root.make_context("mailbackup", list(args), obj=settings) as context:
            answer: Answer = root.invoke(context)
    except typer.Exit as end:  # after --help and --version
        return Answer(exit_status=end.exit_code, raw=b"")
    return answer


def _fail(error: BaseException, settings: Settings) -> int:
    """Show what was raised and return its exit status."""
    known = translate(error)
    if settings.verbose and (type(known) is MailbackupError or settings.verbose > 1):
        traceback.print_exception(error, file=sys.stderr)
    show_error(known, settings.command or _command_of(error), as_json=settings.json)
    return known.exit_status


def translate(error: BaseException) -> MailbackupError:
    """Any exception as one of ours."""
    if isinstance(error, MailbackupError):
        return error
    if hasattr(error, "format_message"):  # usage errors of typer, whose class lies in different places in different versions of it
        path = context.command_path if (context := getattr(error, "ctx", None)) else "mailbackup"
        return UsageError(one_line(error.format_message()), hint=f"See '{path} --help'.")
    if isinstance(error, typer.Abort | EOFError):
        return Interrupted("stopped: no answer", hint="Nothing was changed.")
    return MailbackupError(one_line(f"unexpected {type(error).__name__}: {error}").removesuffix(":"))


def _command_of(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    return " ".join(context.command_path.split()[1:]) if context else ""
