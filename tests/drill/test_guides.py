"""The commands of the guides, run as they stand."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.drill.conftest import KIT
from tests.reference.server import REPOSITORY, ReferenceServer

pytestmark = pytest.mark.root

_GUIDES = REPOSITORY / "docs/guides"


def commands(name: str) -> list[str]:
    """The lines of a guide's `sh` blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", (_GUIDES / name).read_text(), re.DOTALL)
    found = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    assert found
    return found


def follow(server: ReferenceServer, name: str) -> None:
    """Run a guide, each command in a shell of its own."""
    program = server.path("/usr/local/bin/mailbackup")
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m mailbackup "$@"\n')
    program.chmod(0o755)
    for command in commands(name):
        done = server.run("sh", "-c", command, timeout=180, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout.decode()}{done.stderr.decode()}"


def test_first_hour_and_one_mailbox(tmp_path: Path) -> None:
    with ReferenceServer.start(tmp_path) as server:
        server.start_mail()
        follow(server, "first-hour.md")
        assert "job run nightly" in server.path("/etc/cron.d/mailbackup").read_text()
        before = server.uid_hashes("alice@example.test")
        follow(server, "restore-one-mailbox.md")
        after = server.uid_hashes("alice@example.test")
        assert {folder: after[folder] for folder in before} == before
        assert any(folder.startswith("Recovered/") for folder in after)


def test_rebuild_server(saved: ReferenceServer, kept: Path, tmp_path: Path) -> None:
    with ReferenceServer.start(tmp_path, bare=True) as server:
        shutil.copytree(kept / "vault", server.path("/var/backups/mailbackup"))
        shutil.copy(kept / "kit.txt", server.path(KIT))
        follow(server, "rebuild-server.md")
        server.start_mail()
        assert server.uid_hashes("nora@example.org") == saved.uid_hashes("nora@example.org")
