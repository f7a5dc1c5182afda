"""The commands of the guide "Borg storage box", run as they stand. One machine plays all three: only its name differs."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from mailbackup.config import store_problems
from mailbackup.model.codec import convert
from mailbackup.model.options import StoreConfig
from tests.drill.test_guides import commands
from tests.reference.server import REPOSITORY, ReferenceServer
from tests.stores.borg.server import BORG

pytestmark = pytest.mark.root


@pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="needs mmdebstrap")
def test_borg_storage_box(tmp_path: Path) -> None:
    with ReferenceServer.start(tmp_path) as server:
        for name, line in (
            ("mailbackup", f'PYTHONPATH={REPOSITORY} exec {sys.executable} -m mailbackup "$@"'),
            ("borg", f'exec {BORG} "$@"'),
        ):
            program = server.path(f"/usr/local/bin/{name}")
            program.write_text(f"#!/bin/sh\n{line}\n")
            program.chmod(0o755)
        with server.path("/etc/hosts").open("a") as hosts:
            hosts.write("127.0.0.1 box.example.net\n")
        for folder in Path(BORG).parents, Path(sys.base_prefix).parents:  # the user of the box has to reach the Python of this test run
            server.run("chmod", "a+x", *map(str, folder), check=False)  # what is shown from outside is as it is
        server.run("install", "-d", "-m", "0700", "/root/.ssh")
        server.run("sh", "-c", "ssh-keygen -A && install -d /run/sshd && /usr/sbin/sshd")
        server.start_mail()
        for command in commands("borg.md"):
            done = server.run("sh", "-c", command, timeout=240, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout.decode()}{done.stderr.decode()}"
        assert list(server.path("/tmp/alice").rglob("cur/*"))
        answer = server.run("sh", "-c", "ssh -o BatchMode=yes mx1@box.example.net id", check=False, timeout=30)
        assert b"uid=" not in answer.stdout, "the key can do more than serve"


def test_the_sections_of_the_guide_are_configuration() -> None:
    text = (REPOSITORY / "docs/guides/borg.md").read_text()
    sections = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert sections
    for section in sections:
        for table in tomllib.loads(textwrap.dedent(section))["store"]:
            assert not list(store_problems(convert(table, StoreConfig)))
