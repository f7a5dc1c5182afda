"""`verify`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command
from mailbackup.cli.text import duration, number, size
from mailbackup.errors import DamageError, UsageError
from mailbackup.model.results import ScrubRound, VerifyResult

if TYPE_CHECKING:
    from mailbackup.upkeep.rolling import Budget

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_TIMES = {"min": 60, "m": 60, "h": 3600, "d": 86400, "s": 1}


def register(root: typer.Typer) -> None:
    """Add the command to the program."""
    command(root, "verify", example="mailbackup verify --decrypt --sample 5% --identity kit.txt")(verify)


def verify(
    run: Run,
    *,
    decrypt: Annotated[bool, typer.Option("--decrypt", help="Also open what is sealed; needs --identity.")] = False,
    sample: Annotated[str | None, typer.Option("--sample", metavar="SHARE", help="Read only a share: 5%.", show_default=False)] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", metavar="1%|10GiB|2h", help="Read so much, and go on there the next time.", show_default=False),
    ] = None,
    sign: Annotated[
        str | None,
        typer.Option("--sign", metavar="KEYFILE", help="Sign what is damaged, so that the next backup sends it again.", show_default=False),
    ] = None,
) -> Answer:
    """Check the vault: signatures, chain, and every stored byte. Without a key everything but the contents."""
    from mailbackup import app

    result = app.verify(run.context(), decrypt=decrypt, sample=share(sample), budget=budget_of(budget), sign=sign)
    return Answer(
        outcome=result.outcome,
        exit_status=DamageError.exit_status if result.outcome == "damaged" else 0,
        fields=fields_of(result),
        text=summary(result),
        findings=result.findings,
    )


def share(text: str | None, option: str = "--sample") -> float | None:
    """`5%` or `0.05` as 0.05. Raises UsageError for anything that is not above 0 and at most 100 %."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value <= 1:
        raise UsageError(f"{option} {text}: not a share", hint="Give a share such as 5% or 0.05.")
    return value


def budget_of(text: str | None) -> Budget | None:
    """`1%`, `10GiB` or `2h`. Raises UsageError for anything else, and for nothing at all (`0h`)."""
    from mailbackup.upkeep.rolling import Budget

    if text is None:
        return None
    if text.strip().endswith("%"):
        return Budget(share=share(text, "--budget"))
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip())
    value, unit = (float(match[1]), match[2]) if match else (0.0, "")
    if value > 0 and unit in _UNITS:
        return Budget(bytes=max(1, round(value * _UNITS[unit])))
    if value > 0 and unit in _TIMES:
        return Budget(seconds=value * _TIMES[unit])
    raise UsageError(f"--budget {text}: neither a share, nor bytes, nor a time", hint="Give for example 1%, 10GiB or 2h.")


def summary(result: VerifyResult) -> list[str]:
    """A verification in one line, and one for each store of which a share was read or which got an act."""
    opened = f", {number(result.blobs, 'piece')} of content opened" if result.decrypted else ", without a key"
    lines = [f"{result.outcome}: {number(result.objects, 'object')}, {size(result.bytes)} checked{opened}, {duration(result.seconds)}"]
    lines += [_round(found) for found in result.rounds]
    lines += [f"store {store}: act {act} says what is damaged; the next backup sends it again" for store, act in result.acts.items()]
    lines += [f"store {store}: act {act} records the audit" for store, act in result.audits.items()]
    return lines + ([f"no audit was recorded: {result.unrecorded}"] if result.unrecorded else [])


def _round(found: ScrubRound) -> str:
    pace = f"a whole round takes {number(found.runs, 'run')} like this" if found.runs is not None else "nothing was read"
    last = f"the last one ended {found.last}" if found.last else f"none has ended yet, the first began {found.since}"
    return f"store {found.store}: {size(found.bytes)} of {size(found.whole)} read; {pace}; {last}"
