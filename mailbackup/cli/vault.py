"""`vault trust` and `vault adopt`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command, group
from mailbackup.cli.text import duration, number

if TYPE_CHECKING:
    from mailbackup.access import Context

Role = Annotated[Literal["writer", "prune", "drill"], typer.Argument(help="What the key may sign.", show_default=False)]
Key = Annotated[str, typer.Argument(metavar="KEY", help="The public key, as 'mailbackup key new' printed it.", show_default=False)]
Yes = Annotated[bool, typer.Option("--yes", help="Also if the host that writes now may write no more.")]


def register(root: typer.Typer) -> None:
    """Add the commands to the program."""
    parent = group(root, "vault", "Who may write, prune and drill. What changes it needs the recovery kit.")
    trust = group(parent, "trust", "The keys that the admin named.")
    command(trust, "add", example="mailbackup vault trust add prune 4f0c…9a --identity kit.txt")(add)
    command(trust, "revoke", example="mailbackup vault trust revoke prune 4f0c…9a --identity kit.txt")(revoke)
    command(trust, "list", example="mailbackup vault trust list")(list_)
    command(parent, "adopt", example="mailbackup vault adopt --identity kit.txt --as /etc/mailbackup/mailbackup.toml")(adopt)


def add(run: Run, role: Role, key: Key, *, yes: Yes = False) -> Answer:
    """Let a key sign: that of a machine that prunes or drills, or of another host that takes over the writing. Needs the recovery kit."""
    from mailbackup import trust

    result = trust.add_signer(run.context(), role, key, sure=yes)
    return _changed(result, f"{result.key[:16]}… may sign as {role}")


def revoke(run: Run, role: Role, key: Key, *, yes: Yes = False) -> Answer:
    """Let a key sign no more. What it signed so far stays valid. Needs the recovery kit."""
    from mailbackup import trust

    result = trust.revoke_signer(run.context(), role, key, sure=yes)
    return _changed(result, f"{result.key[:16]}… may no more sign as {role}")


def list_(run: Run) -> Answer:
    """Every key that was ever named, and which of them count. Needs no key."""
    from mailbackup import trust

    rows = trust.signers(run.context())
    text = [f"{row.role:<7} {row.key}  {row.time}  {'trusted' if row.until is None else f'until entry {row.until}'}" for row in rows]
    return Answer(fields={"signers": [fields_of(row) for row in rows]}, text=text)


def adopt(
    run: Run,
    *,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Put a signing key that is here aside and make another: it may be in wrong hands.")
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            "--as", metavar="FILE", help="Write the configuration of the old host there, and go on with that.", show_default=False
        ),
    ] = None,
) -> Answer:
    """Make this host, rebuilt or new, the writer of the vault: the chain goes on here, and the old host is refused. Needs the recovery kit."""
    from mailbackup import trust

    context = run.context() if target is None else _taken(run, target)
    result = trust.adopt(context, new_key=new_key)
    first = "this host is the writer of the vault" + (" already" if result.seq is None else f" from entry {result.seq} on")
    lines = [first, *(f"dismissed: {key[:16]}…: a host with this key is refused from now on" for key in result.dismissed)]
    lines += _places(result)
    if result.state:
        lines.append(_state_made(context))
    return Answer(
        fields={"config": context.config_path, **fields_of(result)},
        text=[*lines, "Write a new kit now: mailbackup key kit --out FILE --identity OLD-KIT"],
    )


def _taken(run: Run, target: str) -> Context:
    """The context of the host that goes on, with the old host's configuration."""
    from dataclasses import replace

    from mailbackup import trust
    from mailbackup.config import load, state_dir

    path = trust.take_configuration(run.context(), target)
    return replace(run.context(), config=load(path)[0], config_path=path, state_dir=state_dir(path, run.settings.state))


def _state_made(context: Context) -> str:
    """Make the state anew, so that the first backup need not send everything. The configuration names another writer now: it is read again."""
    from dataclasses import replace

    from mailbackup import app
    from mailbackup.config import load
    from mailbackup.errors import NotFound

    config, _ = load(context.config_path)
    try:
        made = app.state_rebuild(replace(context, config=config))
    except NotFound:
        return "there is no complete snapshot yet: the next backup makes the first"
    return f"state made anew from snapshot {made.seq}: {number(made.messages, 'message')}, {duration(made.seconds)}"


def _changed(result: Any, what: str) -> Answer:
    """The answer to a change of trust."""
    first = f"{what} already: nothing had to change" if result.seq is None else f"{what} from entry {result.seq} on"
    return Answer(fields=fields_of(result), text=[first, *_places(result)])


def _places(result: Any) -> list[str]:
    """What is to be said of stores that lack the entry."""
    return [f"store {name} lacks this, and gets it with the next backup: {why}" for name, why in result.without.items()]
