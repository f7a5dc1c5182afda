"""The three uses on the reference server: cron runs the night, a deleted folder comes back, and the drill proves what was saved."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from tests.drill.conftest import KIT, set_up
from tests.reference.server import REPOSITORY, ReferenceServer

pytestmark = pytest.mark.root

ALICE = "alice@example.test"


def test_cron_runs_the_night_and_a_deleted_folder_is_back(tmp_path: Path) -> None:
    with ReferenceServer.start(tmp_path) as server:
        server.start_mail()
        set_up(server)
        _install_cron(server)
        night = _wait_for_night(server)
        outcomes = {part["part"]: part["outcome"] for part in night["parts"] if part["job"] == "nightly"}
        assert set(outcomes.values()) == {"done"}, night
        assert {"backup", "read-back", "scrub", "boot"} <= set(outcomes)
        assert server.mailbackup_json("status")["outcome"] == "good"
        before = server.uid_hashes(ALICE)
        gone = max((name for name in before if name != "INBOX"), key=lambda name: len(before[name]))
        with server.imap(ALICE) as client:
            assert client.delete(f'"{gone}"')[0] == "OK"
        server.mailbackup("restore", "mailbox", ALICE, "--folder", gone, "--to", "live", "--identity", KIT)
        after = server.uid_hashes(ALICE)
        assert {name: after[name] for name in before if name != gone and name in after} == {
            n: h for n, h in before.items() if n != gone and n in after
        }
        back = [set(messages.values()) for name, messages in after.items() if name.startswith("Recovered/")]
        assert set(before[gone].values()) in back
        assert server.mailbackup_json("drill", "light", "--identity", KIT)["outcome"] == "proven"


def _install_cron(server: ReferenceServer) -> None:
    """The line that `schedule install` writes, for each minute instead of each night."""
    program = server.path("/usr/local/bin/mailbackup")
    program.write_text(f'#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m mailbackup "$@"\n')
    program.chmod(0o755)
    server.mailbackup("schedule", "install", "--cron")
    table = server.path("/etc/cron.d/mailbackup")
    lines = table.read_text().splitlines()
    job = next(line for line in lines if "job run nightly" in line and not line.startswith("#"))
    words = job.split(None, 6)
    assert words[5] == "root"
    table.write_text(
        "\n".join("* * * * * root /usr/local/bin/mailbackup -q job run nightly" if line == job else line for line in lines) + "\n"
    )
    server.start_cron()


def _wait_for_night(server: ReferenceServer) -> dict:  # type: ignore[type-arg]
    status = server.path("/var/lib/mailbackup/status.json")
    until = time.monotonic() + 150
    while time.monotonic() < until:
        if status.exists() and (found := json.loads(status.read_text())).get("parts"):
            server.path("/etc/cron.d/mailbackup").unlink()
            return found
        time.sleep(0.5)
    raise AssertionError("cron did not run the job")
