"""A command line that runs in this process, and a configuration to run it with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from mailbackup.cli.program import main
from mailbackup.config import Trust, compose, file_url, render
from mailbackup.crypto.age import generate_identity


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> dict[str, Any]:
        """The answer: the only line on stdout."""
        assert self.out.endswith(b"\n"), self.out
        assert self.out.count(b"\n") == 1, self.out
        answer: dict[str, Any] = json.loads(self.out)
        assert answer["exit_status"] == self.status
        return answer


Cli = Callable[..., Done]


@pytest.fixture
def cli(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run a command line; nobody sits at a terminal unless a test says so."""
    monkeypatch.delenv("MAILBACKUP_PASSPHRASE_FILE", raising=False)
    monkeypatch.delenv("MAILBACKUP_STATE", raising=False)

    def run(*args: str) -> Done:
        capfdbinary.readouterr()
        status = main(list(args))
        out, err = capfdbinary.readouterr()
        return Done(status, out, err.decode())

    return run


@pytest.fixture
def config_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a valid configuration; nothing of what it names exists."""
    folder = tmp_path_factory.mktemp("config")
    config = compose(
        host="mx1",
        recipient=generate_identity().recipient,
        trust=Trust(vault="1" * 32, admin="2" * 64, writer="3" * 64),
        mail=(f"{folder}/vmail/{{domain}}/{{user}}/Maildir",),
        directories=(f"{folder}/etc",),
        stores=(file_url(f"{folder}/vault"),),
    )
    path = folder / "mailbackup.toml"
    path.write_text(render(config))
    return str(path)
