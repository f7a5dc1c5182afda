"""The generated pages of docs/reference. `python -m tests.cli.reference` writes them; test_reference.py compares."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mailbackup.cli.program import program
from mailbackup.errors import MailbackupError, tree

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
ERROR_HEAD = """\
# Errors

Every error has a stable code. In text it stands in brackets after the message, with `--json` in `error.code`. *Retry* tells whether trying
the same again may help. The hint is the default one; where more is known, the error says more.

| code | name | exit status | retry | meaning | hint |
|---|---|---|---|---|---|
"""
JSON_HEAD = """\
# JSON output

With `--json` a command writes nothing to stdout but one line: one JSON object, which always has `command`, `outcome` and
`exit_status` (see [exit-status.md](exit-status.md)). Names that are not UTF-8 stand as `{"b64": …}` where this is said, else with
`\\xNN` escapes. Progress is not shown, and nothing is asked for but a passphrase, on the terminal. Scripts may rely on these members;
more may be added, and the version in the name of a schema rises when one changes its meaning or goes.

"""
CLI_HEAD = """\
# Commands

Global options may stand before or after the command. `mailbackup --install-completion` sets up completion for the current shell,
`mailbackup --show-completion` prints the script that does it.

"""


def leaves(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(words, command) of every command that does something."""
    command = command or program()
    if not hasattr(command, "commands"):
        yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from leaves(below, (*path, name))


def usage(words: tuple[str, ...], command: Any) -> str:
    """`mailbackup restore mailbox --to DIR [OPTIONS] [ADDRESS]...`: own words, since those of the library change with its version."""
    options = [param for param in command.params if param.param_type_name == "option"]
    needed = [f"{param.opts[0]} {param.metavar}" for param in options if param.required]
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    named = [f"{param.metavar if param.required else f'[{param.metavar}]'}{'...' if param.nargs == -1 else ''}" for param in arguments]
    return " ".join(["mailbackup", *words, *needed, "[OPTIONS]", *named])


def example(command: Any) -> str:
    """The example of a command, as its help shows it."""
    return str(command.epilog).splitlines()[0].removeprefix("Example: ")


def options_of(command: Any) -> list[str]:
    """A line per argument and option that is shown in the help."""
    rows = []
    for param in command.params:
        if getattr(param, "hidden", False) or "completion" in param.name:
            continue
        takes = f" {param.metavar}" if param.metavar and param.param_type_name == "option" else ""
        name = ", ".join(param.opts) if param.param_type_name == "option" else param.metavar
        needed = " (required)" if param.required else ""
        rows.append(f"- `{name}{takes}`{needed}: {param.help}")
    return rows


def documented() -> list[type[MailbackupError]]:
    """The errors that people meet. One that an engine refines for itself has no code of its own and is shown as its parent."""
    return [kind for kind in tree() if "code" in vars(kind)]


def errors_page() -> str:
    """docs/reference/errors.md"""
    return ERROR_HEAD + "".join(_error_row(kind) for kind in sorted(documented(), key=lambda kind: (kind.exit_status, kind.code)))


def _error_row(kind: type[MailbackupError]) -> str:
    meaning = " ".join((kind.__doc__ or "").split())
    retry = "yes" if kind.retryable else "no"
    return f"| {kind.code} | {kind.__name__} | {kind.exit_status} | {retry} | {meaning} | {kind.default_hint} |\n"


def schemas() -> dict[str, dict[str, Any]]:
    """Words of a command (or `error`) → its schema."""
    found = {}
    for path in sorted((REFERENCE / "schemas").glob("*.json")):
        schema = json.loads(path.read_text())
        found[schema["properties"]["command"].get("const", "error")] = schema | {"file": path.name}
    return found


def json_page() -> str:
    """docs/reference/json.md"""
    known = schemas()
    order = [" ".join(words) for words, _ in leaves()] + ["error"]
    return JSON_HEAD + "\n".join(_json_section(name, known[name]) for name in order)


def _json_section(name: str, schema: dict[str, Any]) -> str:
    title = "Errors" if name == "error" else f"`mailbackup {name}`"
    rows = [row for key, about in schema["properties"].items() if key != "command" for row in _json_rows(key, about)]
    table = "".join(f"| `{key}` | {kind} | {text} |\n" for key, kind, text in rows)
    link = f"[{schema['$id']}](schemas/{schema['file']})"
    return f"## {title}\n\n{schema['description']} Schema: {link}.\n\n| member | type | meaning |\n|---|---|---|\n{table}"


def _json_rows(key: str, about: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    yield key, _kind(about), about.get("description", "")
    inner = about.get("items", about) if about.get("type") == "array" else about
    if key in ("snapshots", "verified") and "exit_status" not in inner.get("properties", {}) and "findings" in inner.get("properties", {}):
        return  # its fields are those of another command
    for name, member in inner.get("properties", {}).items():
        yield f"{key}{'[]' if inner is not about else ''}.{name}", _kind(member), member.get("description", "")


def _kind(about: dict[str, Any]) -> str:
    if "enum" in about:
        return " or ".join(f"`{json.dumps(value)}`" for value in about["enum"])
    if "const" in about:
        return f"`{json.dumps(about['const'])}`"
    if "anyOf" in about:
        return " or ".join(_kind(part) for part in about["anyOf"])
    if about.get("$ref"):
        return "object (kind, subject, detail, snapshots)"
    return f"array of {_kind(about['items'])}" if about.get("type") == "array" and "items" in about else str(about.get("type", "any"))


def cli_page() -> str:
    """docs/reference/cli.md"""
    head = CLI_HEAD + "\n".join(options_of(program())) + "\n"
    return head + "".join(_cli_section(words, command) for words, command in leaves())


def _cli_section(words: tuple[str, ...], command: Any) -> str:
    about, listed = inspect.cleandoc(command.help), "\n".join(options_of(command))
    options = f"\n{listed}\n" if listed else ""
    return f"\n## {' '.join(words)}\n\n{about}\n\n```\n{usage(words, command)}\n```\n{options}\nExample:\n\n```\n{example(command)}\n```\n"


PAGES = {"errors.md": errors_page, "json.md": json_page, "cli.md": cli_page}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (REFERENCE / page).write_text(make())
