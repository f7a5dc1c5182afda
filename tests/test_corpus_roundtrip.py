"""Real mail: every file of the corpus comes back byte for byte, by mailbackup and by the rescue script that travels in the vault."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mailbackup.testing.faults import flip_bit
from tests.corpus import corpus_dir
from tests.world import World, messages_in, tree_of

ACCOUNTS = ("alice@example.org", "bob@example.org", "carol@example.net")
FOLDERS = ("", ".Sent", ".Archive.2026", ".Entw&APw-rfe")
FLAGS = (":2,", ":2,S", ":2,FRS", ":2,Sab", ":2,These-are-not-flags", "")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Every file of the corpus in some Maildir, under various names, with mtimes to the nanosecond; and a directory source with odd names."""
    made = World(tmp_path_factory.mktemp("corpus"), directories=True)
    number = 0
    for path, _, names in sorted(os.walk(corpus_dir(tmp_path_factory, "mail"))):
        for name in sorted(names):
            with open(os.path.join(path, name), "rb") as file:
                content = file.read()
            number += 1
            place = "new" if number % 17 == 0 else "cur"
            rest = "" if place == "new" else FLAGS[number % len(FLAGS)]
            message = f"{1700000000 + number}.M{number}P7.mx1,S={len(content)}{rest}"
            where = made.deliver(message, content, ACCOUNTS[number % 3], folder=FOLDERS[number % 4], place=place)
            os.utime(where, ns=(0, 1_000_000_007 * number))
    for address in ACCOUNTS:
        with open(f"{made.maildir(address)}/dovecot-uidlist", "w") as file:
            file.write(f"3 V1700000000 N{number + 1} G1234\n")
    os.makedirs(f"{made.home}/user/deep")
    with open(os.path.join(os.fsencode(made.home), b"user/\xe2\x28\xa1"), "wb") as file:
        file.write(b"not UTF-8\0")
    os.symlink("../nowhere", f"{made.home}/user/deep/link")
    made.count = number
    result = made.backup()
    assert (result.outcome, result.messages) == ("complete", number)
    return made


@pytest.mark.corpus
@pytest.mark.case("M8", "M9", "M12", "M17")
def test_every_message_comes_back_identical(world):
    result = world.restore("out", None)
    assert (result.outcome, result.messages, result.findings) == ("complete", world.count, ())
    for address in ACCOUNTS:
        assert messages_in(f"{world.root}/out/{address}") == messages_in(world.maildir(address))
        assert tree_of(f"{world.root}/out/{address}") == tree_of(world.maildir(address))


@pytest.mark.corpus
@pytest.mark.case("12", "M17")
def test_the_rescue_script_brings_everything_back(world):
    """In an environment where the package is not importable, with the script that lies in the vault."""
    to = f"{world.root}/rescued"
    isolated = [sys.executable, "-I", "-S"]
    assert subprocess.run([*isolated, "-c", "import mailbackup"], capture_output=True).returncode != 0
    script = [*isolated, f"{world.vault}/rescue-1.py", "--vault", world.vault, "--identity", world.kit, "--to", to]
    done = subprocess.run(script, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    for address in ACCOUNTS:
        assert messages_in(f"{to}/mail/{address}") == messages_in(world.maildir(address))
        assert tree_of(f"{to}/mail/{address}") == tree_of(world.maildir(address))
    assert tree_of(f"{to}/files{world.home}") == tree_of(world.home)


@pytest.mark.corpus
def test_the_second_night_reads_no_message(world):
    result = world.backup()
    assert (result.outcome, result.new_messages, result.messages) == ("complete", 0, world.count)
    assert world.verify(decrypt=True).outcome == "clean"


@pytest.mark.corpus
def test_the_comparison_can_fail(world, tmp_path):
    """One flipped bit of one restored message is seen."""
    world.restore("flipped", ACCOUNTS[0])
    victim = next(path for path, (content, _) in messages_in(f"{world.root}/flipped").items() if content)
    flip_bit(os.path.join(f"{world.root}/flipped", os.fsdecode(victim)), 0)
    assert messages_in(f"{world.root}/flipped") != messages_in(world.maildir(ACCOUNTS[0]))
