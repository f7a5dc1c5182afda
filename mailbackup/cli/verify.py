"""`verify`."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from mailbackup.cli.answer import Answer, fields_of
from mailbackup.cli.command import Run, command
from mailbackup.cli.text import duration, number, size
from mailbackup.errors import DamageError, UsageError
from mailbackup.model.results import VerifyResult


def register(root: typer.Typer) -> None:
    """Add the command to the program."""
    command(root, "verify", example="mailbackup verify --decrypt --sample 5% --identity kit.txt")(verify)


def verify(
    run: Run,
    *,
    decrypt: Annotated[bool, typer.Option("--decrypt", help="Also open what is sealed; needs --identity.")] = False,
    sample: Annotated[str | None, typer.Option("--sample", metavar="SHARE", help="Read only a share: 5%.", show_default=False)] = None,
) -> Answer:
    """Check the vault: signatures, chain, and every stored byte. Without a key everything but the contents."""
    from mailbackup import app

    result = app.verify(run.context(), decrypt=decrypt, sample=share(sample))
    return Answer(
        outcome=result.outcome,
        exit_status=DamageError.exit_status if result.outcome == "damaged" else 0,
        fields=fields_of(result),
        text=summary(result),
        findings=result.findings,
    )


def share(text: str | None) -> float | None:
    """`5%` or `0.05` as 0.05. Raises UsageError for anything that is not above 0 and at most 100 %."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0 < value <= 1:
        raise UsageError(f"--sample {text}: not a share", hint="Give a share such as 5% or 0.05.")
    return value


def summary(result: VerifyResult) -> list[str]:
    """A verification in one line."""
    opened = f", {number(result.blobs, 'piece')} of content opened" if result.decrypted else ", without a key"
    return [f"{result.outcome}: {number(result.objects, 'object')}, {size(result.bytes)} checked{opened}, {duration(result.seconds)}"]
