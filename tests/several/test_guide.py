"""The commands of docs/guides/two-stores.md, run as they stand: two directories, and what happens to them between the sections.

And what the documents say is shown by a test: whether there is such a test.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.reference.server import REPOSITORY

GUIDE = REPOSITORY / "docs/guides/two-stores.md"
ABSOLUTE = re.compile(r"(?:(?<=file://)|(?<![\w/}]))/(?=(?:var|etc|mnt|root)/)")


def blocks(section: str = "") -> list[str]:
    """The `sh` blocks of a section, whole: a here-document has several lines."""
    found = re.findall(rf"^ *```sh{section and ' ' + section}\n(.*?)^ *```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    assert found, f"the guide has no block 'sh {section}'"
    return [textwrap.dedent(block) for block in found]


class Machine:
    """A mail server whose root directory is a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.near, self.distant = folder / "var/backups/mailbackup", folder / "mnt/distant/mailbackup"
        self.config = folder / "etc/mailbackup/mailbackup.toml"
        for path in ("bin", "root", "var/lib", "var/backups", "etc/mailbackup", "mnt/distant"):
            (folder / path).mkdir(parents=True)
        program = folder / "bin/mailbackup"
        program.write_text(f"#!/bin/sh\nPYTHONPATH={REPOSITORY} exec {sys.executable} -m mailbackup {self._places()}\n")
        program.chmod(0o755)

    def _places(self) -> str:
        """Where this machine keeps what the guide leaves to the defaults. What the guide says comes later, and counts."""
        return f'--config {self.config} --state {self.folder}/var/lib/mailbackup "$@"'

    def run(self, script: str, *, status: int = 0) -> str:
        """Run a script of the guide below the folder. What it says, on both channels."""
        script = self._here(script)
        if " init " in script:
            script = script.replace(" init ", f" init --store {self.near} ")  # the default lies in the real /var
        done = subprocess.run(
            ["sh", "-e", "-c", script],
            cwd=self.folder,
            env={"PATH": f"{self.folder}/bin:/usr/bin:/bin", "HOME": f"{self.folder}/root"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )
        said = done.stdout.decode()
        assert done.returncode == status, f"{script}\nended with {done.returncode}\n{said}"
        return said

    def _here(self, script: str) -> str:
        """The script with this machine's places. Nothing may be left that leads to the real ones."""
        script = ABSOLUTE.sub(f"{self.folder}/", script)
        assert not re.search(r"/(var|etc|mnt|root)/", script.replace(f"{self.folder}/", "HERE:")), script
        return script

    def follow(self, section: str = "") -> str:
        """Run all blocks of a section; what the last one said."""
        return [self.run(block) for block in blocks(section)][-1]

    def deliver(self, number: int) -> None:
        box = self.folder / "var/vmail/example.test/alice/Maildir"
        for place in ("cur", "new", "tmp"):
            (box / place).mkdir(parents=True, exist_ok=True)
        (box / f"cur/{1_700_000_000 + number}.M{number}.mx1:2,S").write_bytes(b"Subject: %d\n\n" % number + os.urandom(5000).hex().encode())

    def mail(self) -> dict[str, bytes]:
        """All messages, by name."""
        return messages(self.folder / "var/vmail")


def messages(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("cur/*")}


def entries(store: Path) -> dict[str, bytes]:
    """The ledger of a store."""
    return {path.name: path.read_bytes() for path in (store / "ledger").rglob("*.json")}


def rows(said: str) -> list[list[str]]:
    """Of what `snapshots` said: the stores of each."""
    lines = said[said.index("seq ") :].splitlines()
    column = lines[0].index("stores")
    return [line[column:].split() for line in lines[1:]]


def test_the_guide(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.deliver(1)
    machine.deliver(2)
    kept = _two_stores(machine)
    _away(machine)
    _burnt(machine)
    _lost(machine)
    assert kept.items() <= entries(machine.distant).items(), "what was there at the beginning is still the beginning"


def _two_stores(machine: Machine) -> dict[str, bytes]:
    for block in blocks():
        said = machine.run(block)
        if "snapshots" in block:
            assert rows(said) == [["local", "distant"]] * 2
    assert messages(machine.folder / "root/tried") == machine.mail()
    assert entries(machine.near) == entries(machine.distant)
    return entries(machine.near)


def _away(machine: Machine) -> None:
    """The example of the guide, and the catching up."""
    machine.deliver(3)
    machine.distant.rename(machine.folder / "away")
    said = machine.run("mailbackup backup", status=5)
    assert "store-behind: distant: lacks" in said
    assert rows(machine.run("mailbackup snapshots")) == [["local"]] * 3
    (machine.folder / "away").rename(machine.distant)
    assert rows(machine.run("mailbackup snapshots")) == [["local", "distant"]] * 2 + [["local"]]
    machine.follow("away")
    assert entries(machine.near) == entries(machine.distant)


def _burnt(machine: Machine) -> None:
    machine.near.rename(machine.folder / "burnt")
    machine.follow("burnt")
    for place in ("restored", "elsewhere"):
        assert messages(machine.folder / "root" / place) == machine.mail(), place
    assert entries(machine.near) == entries(machine.distant)


def _lost(machine: Machine) -> None:
    """The near store alone got a snapshot, then burns; the distant one is back."""
    with_both = machine.config.read_text()
    machine.distant.rename(machine.folder / "away")
    machine.deliver(4)
    machine.run("mailbackup backup", status=5)
    machine.near.rename(machine.folder / "lost")
    (machine.folder / "away").rename(machine.distant)
    machine.run("mailbackup backup", status=5)
    machine.config.write_text(_without(with_both, "local"))
    said = machine.run("mailbackup backup", status=5)
    assert "move the state (state.db*) aside" in said
    machine.follow("lost")
    machine.run("mailbackup --identity /root/kit-3.txt restore mailbox alice@example.test --to /root/last")
    assert messages(machine.folder / "root/last") == machine.mail()
    machine.config.write_text(with_both)
    machine.run("mailbackup copy --to local && mailbackup backup && mailbackup verify")
    assert entries(machine.near) == entries(machine.distant)


def _without(config: str, name: str) -> str:
    """The configuration without the section of a store."""
    sections = re.split(r"^(?=\[)", config, flags=re.MULTILINE)
    left = [section for section in sections if f'\nname = "{name}"\n' not in section]
    assert len(left) == len(sections) - 1
    return "".join(left)


@pytest.mark.parametrize("document", ["stores.md", "threat-model.md"])
def test_every_test_that_a_document_names_is_there(document: str) -> None:
    file, found = "", 0
    for name in re.findall(r"`([\w/]*(?:::test_\w+|test_\w+\.py(?:::\w+)?))`", (REPOSITORY / "docs" / document).read_text()):
        named, _, test = name.partition("::")
        file = named or file  # `::test_x` is in the file that was named last
        text = (REPOSITORY / "tests" / file).read_text()
        assert not test or f"\ndef {test}(" in text, f"{document} names {file}::{test}"
        found += bool(test)
    assert found > 15
