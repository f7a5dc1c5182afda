"""A reference server that has been backed up, and drills that run inside it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reference.namespace import ENVIRONMENT
from tests.reference.server import ReferenceServer

PATTERN = "/var/vmail/{domain}/{user}/Maildir"
KIT = "/root/kit.txt"
_INSIDE = Path(__file__).with_name("inside.py")


def set_up(server: ReferenceServer, *more: str) -> None:
    """`mailbackup init` for everything on the server."""
    server.mailbackup("init", "--yes", "--mail", PATTERN, "--directory", "/home", "--kit-out", KIT, "--no-passphrase", *more)
    config = server.path("/etc/mailbackup/mailbackup.toml")
    if 'use = "auto"' not in config.read_text().splitlines():
        config.write_text(config.read_text().replace("[systems]", '[systems]\nuse = "auto"'))


def popen(server: ReferenceServer, *argv: str, out: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """A program that runs inside the server, with this code on its path."""
    variables = [f"{name}={value}" for name, value in {**ENVIRONMENT, "PYTHONPATH": str(_INSIDE.parents[2])}.items()]
    enter = [
        "nsenter",
        f"--target={server.pid}",
        "--mount",
        "--uts",
        "--ipc",
        "--net",
        "--pid",
        "--root",
        "--wd",
        "--",
        "/usr/bin/env",
        "-i",
        *variables,
    ]
    return subprocess.Popen([*enter, *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReferenceServer]:
    """A running server with one snapshot."""
    with ReferenceServer.start(tmp_path_factory.mktemp("server")) as server:
        server.start_mail()
        set_up(server)
        server.mailbackup("backup")
        yield server


@pytest.fixture(scope="session")
def kept(saved: ReferenceServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is left when that server is gone: a copy of its vault, its kit, and a configuration made from the kit."""
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(saved.path("/var/backups/mailbackup"), folder / "vault")
    shutil.copy(saved.path(KIT), folder / "kit.txt")
    write_config(folder, str(folder))
    return folder


def write_config(folder: Path, place: str) -> None:
    """The lines of the kit that are a configuration, with the store at `place`/vault: what the kit tells its reader to do."""
    lines = [line.removeprefix("#").strip() for line in (folder / "kit.txt").read_text().splitlines()]
    first = lines.index("[host]")
    last = next(number for number, line in enumerate(lines) if number > first and line.startswith("path = "))
    text = "\n".join(lines[first : last + 1]) + "\n"
    (folder / "restore.toml").write_text(text.replace("file:///var/backups/mailbackup", f"file://{place}/vault"))


@pytest.fixture(scope="session")
def drilled(saved: ReferenceServer) -> Callable[..., dict[str, Any]]:
    """Runs a drill inside the server with something done between the rebuild and the daemons; returns its result."""
    shutil.copy(_INSIDE, saved.path("/root/inside.py"))

    def run(*args: str, timeout: float = 120) -> dict[str, Any]:
        done = saved.run(
            sys.executable, "/root/inside.py", *args, timeout=timeout, check=False, env={"PYTHONPATH": str(_INSIDE.parents[2])}
        )
        assert done.returncode == 0, done.stderr.decode()
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return result

    return run
