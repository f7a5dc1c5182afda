"""The reference is what the program does."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest

from mailbackup.cli.program import program
from mailbackup.cli.settings import Settings
from mailbackup.errors import tree
from tests.cli.conftest import Cli
from tests.cli.reference import PAGES, REFERENCE, documented, example, leaves

LEAVES = [pytest.param(words, command, id="-".join(words)) for words, command in leaves()]


@pytest.mark.parametrize("page", PAGES)
def test_generated_pages_are_current(page: str):
    assert (REFERENCE / page).read_text() == PAGES[page](), "run: python -m tests.cli.reference"


def test_codes_are_unique_and_well_formed():
    codes = [kind.code for kind in documented()]
    assert len(set(codes)) == len(codes)
    assert {kind for kind in tree() if kind.__module__ == "mailbackup.errors"} == set(documented())
    assert all(re.fullmatch(r"MB-[A-Z]\d{3}", code) for code in codes)


ROWS = re.findall(r"^\| (\d+) \| ([^|]+) \|([^|]*)\|$", (REFERENCE / "exit-status.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("status", "meaning", "names"), ROWS)
def test_exit_statuses(status: str, meaning: str, names: str):
    assert meaning.strip()
    listed = {name for name in names.replace(" ", "").split(",") if name}
    assert listed == {kind.__name__ for kind in documented() if kind.exit_status == int(status)}


def test_the_table_of_statuses_is_whole():
    assert {int(status) for status, _, _ in ROWS} == {0} | {kind.exit_status for kind in tree()}


@pytest.mark.parametrize(("words", "command"), LEAVES)
def test_help(words: tuple[str, ...], command: object, cli: Cli):
    done = cli(*words, "--help")
    assert (done.status, done.err) == (0, "")
    assert done.text.startswith(f"Usage: mailbackup {' '.join(words)}")
    assert "Example: mailbackup" in done.text
    assert cli(*words, "-h").out == done.out


def test_help_of_groups(cli: Cli):
    for words in ((), ("restore",), ("state",), ("key",), ("config",)):
        assert cli(*words, "--help").status == 0


@pytest.mark.parametrize(("words", "command"), LEAVES)
def test_examples_can_be_parsed(words: tuple[str, ...], command: object):
    name, *args = shlex.split(example(command).partition(" > ")[0])
    assert (name, tuple(args[: len(words)])) == ("mailbackup", words)
    assert command.make_context("mailbackup", args[len(words) :], obj=Settings()) is not None


@pytest.mark.case("48")
def test_completion(tmp_path):
    """The script for bash loads, and completes commands and options."""
    program_dir = os.path.dirname(sys.executable)
    script = tmp_path / "test.sh"
    script.write_text("""
        eval "$(_MAILBACKUP_COMPLETE=source_bash mailbackup)" || exit 1
        complete -p mailbackup >/dev/null || exit 2
        for line in "mailbackup restore " "mailbackup ba" "mailbackup backup --re"; do
            COMP_WORDS=($line); [ "${line% }" = "$line" ] || COMP_WORDS+=(""); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _mailbackup_completion mailbackup
            echo "${COMPREPLY[@]}"
        done
    """)
    environment = os.environ | {"PATH": f"{program_dir}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (["mailbox files server", "backup", "--rescan"], "")


def test_every_option_has_words():
    for words, command in [((), program()), *leaves()]:
        for param in command.params:
            assert getattr(param, "help", None), (words, param.name)
