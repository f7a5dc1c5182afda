"""How a command is declared: a function from `Run` and its own options to an `Answer`; this module adds the global options.

Commands import `mailbackup.app` when they run, not when they are declared, so that `--help` does not wait for cryptography.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import typer

from mailbackup.cli.answer import Answer, lines, write
from mailbackup.cli.progress import Reporter, reporter
from mailbackup.cli.settings import Settings, global_options

if TYPE_CHECKING:
    from mailbackup.access import Context
    from mailbackup.config import Config

GLOBAL_HELP = "Global options (see mailbackup --help) may stand here too: --config --state --store --identity --json -v -q."


@dataclass
class Run:
    """One run of a command: its global options, and what they lead to."""

    settings: Settings

    @cached_property
    def loaded(self) -> tuple[Config, str]:
        """The configuration and the path of its file."""
        from mailbackup.config import load

        return load(self.settings.config)

    @cached_property
    def progress(self) -> Reporter:
        """What draws events."""
        return reporter(self.settings)

    @cached_property
    def passphrase(self) -> str:
        """The passphrase of the identity file, asked for once."""
        from mailbackup.cli.secret import identity_passphrase

        self.progress.pause()
        return identity_passphrase(self.settings.identity)

    def context(self) -> Context:
        """What functions of `app` need."""
        from mailbackup.access import Context
        from mailbackup.config import state_dir

        config, path = self.loaded
        return Context(
            config=config,
            config_path=path,
            state_dir=state_dir(path, self.settings.state),
            store=self.settings.store,
            identity_file=self.settings.identity,
            passphrase=lambda: self.passphrase,
            on_event=self.progress,
        )

    def say(self, *texts: str) -> None:
        """Lines for people, now; for commands that report step by step."""
        if not (self.settings.json or self.settings.quiet):
            write(lines(texts))

    def close(self) -> None:
        """End the drawing of progress."""
        if "progress" in self.__dict__:
            self.progress.close()


Function = Callable[..., Answer]


def command(parent: typer.Typer, name: str, *, example: str) -> Callable[[Function], Function]:
    """Declare a command of `parent`. Its first parameter is the Run, the others are its own arguments and options."""

    def declare(function: Function) -> Function:
        _, *own = inspect.signature(function, eval_str=True).parameters.values()
        names = {parameter.name for parameter in own}
        shared = {option: about for option, about in global_options(hidden=True).items() if option not in names}

        def call(context: typer.Context, **values: Any) -> Answer:
            settings: Settings = context.find_root().obj
            settings.command = " ".join(context.command_path.split()[1:])
            settings.update({option: values.pop(option) for option in shared})
            run = Run(settings)
            try:
                return function(run, **values)
            finally:
                run.close()

        call.__doc__ = function.__doc__
        parent.command(name, epilog=f"Example: {example}\n\n{GLOBAL_HELP}")(dress(call, own, shared))
        return function

    return declare


def group(root: typer.Typer, name: str, about: str) -> typer.Typer:
    """Declare a group of commands, which takes the global options as well (`mailbackup key --json kit …`)."""

    def take(context: typer.Context, **values: Any) -> None:
        context.find_root().obj.update(values)

    made = typer.Typer(help=about)
    made.callback()(dress(take, [], global_options(hidden=True)))
    root.add_typer(made, name=name)
    return made


def dress(call: Any, own: list[inspect.Parameter], shared: dict[str, tuple[Any, Any]]) -> Any:
    """Give `call` the signature that typer reads: the context, the parameters `own`, the options `shared`."""
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    parameters += [parameter.replace(kind=kind) for parameter in own]
    parameters += [inspect.Parameter(name, kind, default=default, annotation=about) for name, (about, default) in shared.items()]
    call.__signature__ = inspect.Signature(parameters)
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call
