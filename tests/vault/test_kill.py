"""The real command, really killed (SIGKILL), again and again, at random moments, while the source goes on changing."""

import os
import subprocess
import sys
import time
from random import Random

import pytest

from tests.vault.past import BOB, LARGE, Past, letter, write

KILLS = 200 if os.environ.get("MAILBACKUP_CAMPAIGN") else 40
SEED = 20261124


def start(world: Past) -> subprocess.Popen[bytes]:
    """`mailbackup backup`, running: it has the lock."""
    arguments = [sys.executable, "-m", "mailbackup", "--config", world.config_path, "--state", world.state, "--json", "backup"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    while process.poll() is None and holder(world) != process.pid:
        time.sleep(0.001)
    return process


def holder(world: Past) -> int | None:
    """The process that last took the lock."""
    try:
        with open(f"{world.state}/lock", encoding="ascii") as file:
            return int(file.read() or 0)
    except FileNotFoundError:
        return None


def run_to_the_end(world: Past) -> float:
    """A whole run. Returns how long it took from the lock on."""
    process = start(world)
    began = time.monotonic()
    assert process.wait() == 0
    world.remember()
    return time.monotonic() - began


def run_and_kill(world: Past, after: float) -> bool:
    """Whether the run was still going on when it was killed."""
    process = start(world)
    time.sleep(after)
    process.kill()
    killed = process.wait() < 0
    world.remember()
    return killed


def change(world: Past, rng: Random, day: int) -> None:
    """Some mail comes, some goes, some is looked at, a file changes."""
    cur = f"{world.maildir()}/cur"
    for number in range(3):
        body = LARGE if number == 1 else rng.randbytes(rng.choice((50, 3_000, 60_000)))
        world.deliver(f"{day}{number}.mail:2,", letter(f"mail {day}", body), rng.choice(("alice@example.org", BOB)))
    for name in rng.sample(sorted(os.listdir(cur)), min(4, len(os.listdir(cur)))):
        match rng.randrange(4):
            case 0:
                os.unlink(f"{cur}/{name}")
            case 1:
                os.rename(f"{cur}/{name}", f"{world.folder('.Archive')}/cur/{name}")
            case _:
                os.rename(f"{cur}/{name}", f"{cur}/{name.partition(':')[0]}:2,{rng.choice(('', 'S', 'FS', 'RS'))}")
    for name in sorted(os.listdir(cur))[60:]:
        os.unlink(f"{cur}/{name}")  # the vault stays small
    write(f"{world.home}/notes", b"day %d" % day)


def check(world: Past, new: list[int]) -> None:
    """The next run succeeds, without help; the vault is sound, and these snapshots hold what they should."""
    result = world.backup()
    assert (result.outcome, result.findings) == ("complete", ())
    world.check_clean()
    world.check_no_waste()
    for seq in (*new, result.seq):
        world.check_restores(seq)


@pytest.mark.case("19")
def test_killed_at_random_moments(tmp_path):
    world, rng = Past(tmp_path), Random(SEED)
    for day in range(20):
        change(world, rng, day)
    took = run_to_the_end(world)
    killed, checked = 0, 1
    for day in range(20, 20 + KILLS):
        change(world, rng, day)
        killed += run_and_kill(world, rng.uniform(0, took))
        if day % 8 == 0:
            check(world, world.committed()[checked:])
            checked = len(world.committed())
    check(world, world.committed())
    assert killed > KILLS // 4
