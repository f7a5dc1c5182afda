"""The obligations of `mailbackup.systems.base`, one test each. An adapter's test subclasses `SystemContract` and names the adapter.

It runs on a host where the system is. What such a host must not be used for is faked here: programs that are missing, fail, hang, or talk nonsense.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest

from mailbackup.model import codec
from mailbackup.model.system import RANK_ACCOUNTS, RANK_START, Dump, Inventory, ProbeKind
from mailbackup.systems.ask import Ask, CannotAsk, Said
from mailbackup.systems.base import System
from mailbackup.systems.known import NAMES, survey, system

_HASTE = 0.5  # seconds: as long as a program may take here


class Hasty(Ask):
    """Waits for no program longer than half a second."""

    def run(self, *argv: str, timeout: float = 30) -> Said:
        """See `Ask.run`."""
        return super().run(*argv, timeout=min(timeout, _HASTE))


class SystemContract:
    """Passed by every adapter."""

    system: System
    programs: tuple[str, ...] = ()
    """What it asks; the first is the one without which there is no such system. None: it reads files alone."""

    def ask(self) -> Ask:
        """A host where the system is."""
        return Ask()

    @pytest.fixture
    def inventory(self) -> Inventory:
        """What there is."""
        found = self.system.find(self.ask())
        assert found is not None, f"{self.system.name} is not on this host"
        return found

    def _with(self, folder: Path, script: str) -> Ask:
        """A host whose programs all are `script`."""
        for name in self.programs:
            path = folder / name
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        return Hasty(environment={"PATH": str(folder)})

    # -- what is found

    def test_it_is_known_by_its_name(self, inventory: Inventory) -> None:
        assert system(self.system.name) is self.system
        assert self.system.name in NAMES
        assert inventory.system == self.system.name

    def test_an_inventory_comes_back_from_the_snapshot(self, inventory: Inventory) -> None:
        assert codec.decode(codec.encode(inventory), Inventory, "inventory") == inventory

    def test_two_looks_find_the_same(self, inventory: Inventory) -> None:
        assert self.system.find(self.ask()) == inventory

    def test_paths_are_absolute_plain_and_told_once(self, inventory: Inventory) -> None:
        paths = [row.path for row in inventory.paths]
        assert paths == [os.path.normpath(path) for path in paths]
        assert all(path.startswith("/") and path != "/" for path in paths)
        assert len(set(inventory.paths)) == len(inventory.paths)
        assert all(row.why and all(left.pattern and left.why for left in row.left_out) for row in inventory.paths)

    def test_dumps_have_names_of_their_own(self, inventory: Inventory) -> None:
        names = [dump.name for dump in inventory.dumps]
        assert len(set(names)) == len(names)
        assert all(name.startswith(f"{self.system.name}/") and ".." not in name for name in names)
        assert all(dump.why and dump.timeout > 0 for dump in inventory.dumps)

    def test_dumps_can_be_made(self, inventory: Inventory) -> None:
        ask = self.ask()
        for dump in inventory.dumps:
            data = ask.output(dump.argv, dump.timeout) if dump.argv else b"".join(self.system.dump(ask, dump))
            assert data or dump.name.endswith("queue.json"), dump.name

    def test_a_dump_that_it_does_not_know(self, inventory: Inventory) -> None:
        if not any(not dump.argv for dump in inventory.dumps):
            with pytest.raises(CannotAsk):
                list(self.system.dump(self.ask(), Dump("no/such", "nothing")))

    # -- what comes of it

    def test_steps_are_ranked_and_the_same_from_the_snapshot(self, inventory: Inventory) -> None:
        steps = self.system.steps(inventory)
        assert steps == self.system.steps(codec.decode(codec.encode(inventory), Inventory, "inventory"))
        assert all(RANK_ACCOUNTS <= step.rank <= RANK_START for step in steps)
        assert all(step.system == self.system.name and step.name and step.timeout > 0 for step in steps)
        assert all(step.argv for step in steps if step.action in ("run", "start"))
        assert all(step.ready for step in steps if step.action == "start")

    def test_probes_have_kinds_and_names_of_their_own(self, inventory: Inventory) -> None:
        probes = self.system.probes(inventory)
        assert all(probe.kind in get_args(ProbeKind) and probe.system == self.system.name for probe in probes)
        assert len({probe.name for probe in probes}) == len(probes)

    def test_examining_says_only_what_is_so(self, inventory: Inventory) -> None:
        ask = self.ask()
        found = self.system.examine(ask, inventory)
        assert found == self.system.examine(ask, inventory)
        assert all(finding.subject and finding.detail for finding in found)

    # -- programs that do not do what they should

    def test_without_its_program_there_is_none(self, tmp_path: Path) -> None:
        if self.programs:
            assert self.system.find(Ask(environment={"PATH": str(tmp_path)})) is None

    def test_a_program_that_fails(self, tmp_path: Path) -> None:
        if self.programs:
            with pytest.raises(CannotAsk, match="no such luck"):
                self.system.find(self._with(tmp_path, "echo fatal: no such luck >&2; exit 75"))

    def test_a_program_that_hangs(self, tmp_path: Path) -> None:
        if self.programs:
            with pytest.raises(CannotAsk, match="did not answer"):
                self.system.find(self._with(tmp_path, "exec /bin/sleep 60"))

    @pytest.mark.parametrize(
        "said", ["", "x", "= = {\\n}\\n}\\n\\n=", "\\377\\376\\001 {\\n /etc/\\377 = hash:/\\377\\n", "/a\\n/b\\n/c\\n/d\\n/e\\n/f\\n"]
    )
    def test_a_program_that_talks_nonsense(self, said: str, tmp_path: Path) -> None:
        found = survey(self._with(tmp_path, f"printf '{said}'"), (self.system.name,))
        for inventory in found.inventories:
            codec.encode(inventory)
            codec.encode((self.system.steps(inventory), self.system.probes(inventory)))
            self.system.examine(self._with(tmp_path, f"printf '{said}'"), inventory)
