"""Global options. Each may stand before the command or after it; what stands later wins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer


@dataclass(slots=True)
class Settings:
    """The global options of one invocation, and the command they were given to."""

    config: str | None = None
    state: str | None = None
    store: str | None = None
    identity: str | None = None
    json: bool = False
    verbose: int = 0
    quiet: bool = False
    command: str = ""

    def update(self, values: dict[str, Any]) -> None:
        """Take over the options that were given."""
        for name, value in values.items():
            if name == "verbose":
                self.verbose += value
            elif value:
                setattr(self, name, value)


def global_options(*, hidden: bool) -> dict[str, tuple[Any, Any]]:
    """Name → (annotation for typer, default). Commands accept them `hidden`, so that their help shows what is their own."""
    text = str | None
    return {
        "config": (Annotated[text, _option("--config", metavar="FILE", help="Configuration file.", hidden=hidden)], None),
        "state": (Annotated[text, _option("--state", metavar="DIR", help="Directory of the local state.", hidden=hidden)], None),
        "store": (Annotated[text, _option("--store", metavar="NAME", help="Store to read from, by name.", hidden=hidden)], None),
        "identity": (Annotated[text, _option("--identity", metavar="FILE", help="Recovery kit, to read backups.", hidden=hidden)], None),
        "json": (Annotated[bool, _option("--json", help="Answer with one JSON object on stdout.", hidden=hidden)], False),
        "verbose": (Annotated[int, _option("-v", "--verbose", count=True, help="Say more.", hidden=hidden)], 0),
        "quiet": (Annotated[bool, _option("-q", "--quiet", help="Say only what went wrong or was asked for.", hidden=hidden)], False),
    }


def _option(*names: str, **settings: Any) -> Any:
    return typer.Option(*names, show_default=False, **settings)
