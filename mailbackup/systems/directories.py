"""The `[[directory]]` sources: user homes, web roots, what else an administrator names. They are captured as such; here they come back and are proven."""

from __future__ import annotations

from collections.abc import Iterator

from mailbackup.model.finding import Finding
from mailbackup.model.system import RANK_FILES, Dump, Inventory, Probe, ServerStep
from mailbackup.systems.ask import Ask, CannotAsk


class Directories:
    """What the configuration names as `[[directory]]`."""

    name = "directories"

    def find(self, ask: Ask) -> Inventory | None:
        """The configured directories; they are no `paths` of an inventory, since each is a source of its own."""
        return Inventory(system=self.name, facts={"paths": ask.directories}) if ask.directories else None

    def dump(self, ask: Ask, dump: Dump) -> Iterator[bytes]:
        """It has none."""
        raise CannotAsk(f"directories have no dump {dump.name}")

    def steps(self, inventory: Inventory) -> tuple[ServerStep, ...]:
        """Back to where they were."""
        paths = inventory.facts.get("paths", ())
        return (ServerStep(system=self.name, name="directories", action="files", rank=RANK_FILES + 20, paths=paths),)

    def probes(self, inventory: Inventory) -> tuple[Probe, ...]:
        """Every file is there, with owner, mode and time."""
        return (Probe(name="directories.files", system=self.name, kind="files", settings={"paths": inventory.facts.get("paths", ())}),)

    def examine(self, ask: Ask, inventory: Inventory) -> list[Finding]:
        """Nothing to say."""
        return []
