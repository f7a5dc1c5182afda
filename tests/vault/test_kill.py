"""Killed for real, by SIGKILL at whatever instant: the next run needs no repair, and no snapshot is lost or wrong."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.vault.past import ALICE, BOB, LARGE, Past, letter, write

KILLS = 200 if os.environ.get("MAILBACKUP_CAMPAIGN") else 25

PLAIN = ("-m", "mailbackup")
# The same program, that makes small packs and registers each of them at once: many commits in one run.
CHECKPOINTS = (
    "-c",
    "from mailbackup.content import writer as packing; from mailbackup.vault import writer; from mailbackup.cli.main import run;"
    "packing.PACK_TARGET = 60_000; writer.CHECKPOINT_BYTES = 0; run()",
)


class Host(Past):
    """A host whose mail changes all the time, and whose runs can be killed."""

    def __init__(self, root: object, program: tuple[str, ...], seed: int) -> None:
        super().__init__(root)
        self.program = program
        self.rng = random.Random(seed)
        self.number = 100

    def change(self) -> None:
        """Mail comes, is read, moved and deleted; about as much goes as comes."""
        for address in (ALICE, BOB):
            base = self.maildir(address)
            for _ in range(self.rng.randrange(4, 10)):
                self.number += 1
                body = self.rng.randbytes(self.rng.choice((300, 5_000, 40_000))) if self.number % 9 else LARGE
                self.deliver(f"{self.number}.x:2,", letter(f"message {self.number}", body), address)
            names = sorted(os.listdir(f"{base}/cur"))
            for name in self.rng.sample(names, 3):
                os.rename(f"{base}/cur/{name}", f"{base}/cur/{name.partition(':')[0]}:2,{self.rng.choice(('S', 'FS', 'R'))}")
            names = sorted(os.listdir(f"{base}/cur"))
            for name in self.rng.sample(names, 2):
                os.rename(f"{base}/cur/{name}", f"{self.folder('.Moved', address)}/cur/{name}")
            for folder in (base, f"{base}/.Moved"):
                names = sorted(os.listdir(f"{folder}/cur"))
                for name in self.rng.sample(names, max(0, len(names) - 18)):
                    os.unlink(f"{folder}/cur/{name}")
        write(f"{self.home}/notes", self.rng.randbytes(2_000))

    def start(self) -> subprocess.Popen[bytes]:
        """A run in a process of its own. Returns when it has opened the state: from there on it can do harm."""
        arguments = [*self.program, "--config", self.config_path, "--state", self.state, "backup"]
        seal = Path(f"{self.state}/state.db.sum")  # lies there as long as nobody uses the state
        assert seal.exists()
        run = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        while seal.exists() and run.poll() is None:
            time.sleep(0.0005)
        return run

    def run_length(self) -> float:
        """How long a run takes that nobody kills, from there on, in seconds."""
        self.change()
        with self.start() as run:
            began = time.monotonic()
            assert run.wait() == 0, run.stderr.read()
        self.remember()
        return time.monotonic() - began

    def kill_a_run(self, after: float) -> bool:
        """Start a run and kill it; whether it was still at work."""
        with self.start() as run:
            time.sleep(after)
            run.kill()
            status = run.wait()
        assert status in (0, -9)
        return status == -9


@pytest.mark.case("19")
@pytest.mark.parametrize("program", [PLAIN, CHECKPOINTS], ids=["plain", "checkpoints"])
def test_killed_at_any_instant(tmp_path, program):
    host = Host(tmp_path, program, seed=20261124)
    host.first_day()
    host.backup()
    length = max(host.run_length() for _ in range(3))
    at_work = left_an_entry = 0
    for _ in range(KILLS):
        host.change()
        seen, known = host.look(), set(host.committed())
        at_work += host.kill_a_run(host.rng.uniform(0, length))
        if host.rng.random() < 0.5:
            host.change()
        result = host.backup()
        assert (result.outcome, result.findings) == ("complete", ())
        others = set(host.committed()) - known - {result.seq}  # made by the killed run, or left pending by it
        assert len(others) <= 1
        host.past |= dict.fromkeys(others, seen)
        left_an_entry += len(others)
        host.check_no_waste()
    assert at_work > KILLS * 0.6
    assert left_an_entry < KILLS
    if program is CHECKPOINTS:
        assert "packs" in {entry["type"] for entry in host.ledger()}
    host.check()
