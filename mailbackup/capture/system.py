"""What adapters chose: the files of one system as a source with the root `/`, and everything that programs had to be asked for as one more source."""

from __future__ import annotations

import fnmatch
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from mailbackup.capture.directory import DirectoryCapture
from mailbackup.capture.files import FileWalk
from mailbackup.content.cut import cut_stream
from mailbackup.model import codec
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import blob_id, show
from mailbackup.model.options import DirectoryConfig
from mailbackup.model.system import INVENTORY, Chosen, Dump, Inventories, Inventory
from mailbackup.model.tree import DUMPS, SYSTEM, Owner
from mailbackup.systems.ask import Ask, CannotAsk
from mailbackup.systems.known import Survey
from mailbackup.systems.known import system as adapter
from mailbackup.vault.cached import CachedUnit
from mailbackup.vault.state import State
from mailbackup.vault.trees import Item
from mailbackup.vault.units import Unit
from mailbackup.vault.writer import VaultWriter

_NOBODY = Owner(0o600, 0, "root", 0, "root")


@dataclass(slots=True)
class Selection:
    """Chosen paths as a walk needs them: which names to look at on the way to them, and what to leave out below them."""

    rows: tuple[Chosen, ...]
    _on_the_way: dict[bytes, set[bytes]] = field(default_factory=dict)  # directory relative to / → names to look at
    _whole: set[bytes] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._whole = {os.fsencode(row.path).strip(b"/") for row in self.rows}
        for path in self._whole:
            parts = path.split(b"/")
            for depth in range(len(parts)):
                self._on_the_way.setdefault(b"/".join(parts[:depth]) or b".", set()).add(parts[depth])

    def listed(self, path: bytes) -> list[bytes] | None:
        """The names to look at in a directory; None = all of them."""
        if self._inside(path):
            return None
        return sorted(self._on_the_way.get(path, ()))

    def _inside(self, path: bytes) -> bool:
        while path:
            if path in self._whole:
                return True
            path = os.path.dirname(path)
        return False

    def skip(self, path: bytes, _name: bytes, _is_directory: bool) -> bool:
        """Whether something is left out."""
        whole = "/" + os.fsdecode(path)
        return why_left_out(self.rows, whole) is not None


def why_left_out(rows: tuple[Chosen, ...], path: str) -> str | None:
    """Why a path below a chosen one is left out; None when it is not."""
    for row in rows:
        if row.left_out and path.startswith(row.path.rstrip("/") + "/"):
            below = path[len(row.path.rstrip("/")) + 1 :]
            for rule in row.left_out:
                if fnmatch.fnmatchcase(below, rule.pattern):
                    return rule.why
    return None


class SystemCapture(DirectoryCapture):
    """The files of one system."""

    guarded = False  # a queue that was delivered, or a table that was cleared, is no accident

    def __init__(
        self, inventory: Inventory, cached: CachedUnit | None, state: State, writer: VaultWriter, mailboxes: dict[bytes, str]
    ) -> None:
        config = DirectoryConfig(name=SYSTEM + inventory.system, path="/", one_file_system=False)
        super().__init__(config, cached, state, writer, mailboxes)
        self._selection = Selection(inventory.paths)

    def _walked(self) -> tuple[list[Item], int]:
        walk = FileWalk(
            b"/", "", self._unit_of, self._writer, self.findings, self._old, skip=self._selection.skip, one_file_system=False,
            mailboxes=self._mailboxes, leave=self._leave, listed=self._selection.listed,
        )  # fmt: skip
        return walk.run(), walk.read_bytes


class DumpsCapture(DirectoryCapture):
    """What programs say. One that fails keeps its dump of the last snapshot, with a finding; a dump that did not change sends nothing."""

    guarded = False

    def __init__(self, survey: Survey, ask: Ask, cached: CachedUnit | None, state: State, writer: VaultWriter) -> None:
        super().__init__(DirectoryConfig(name=DUMPS, path=DUMPS), cached, state, writer, {})
        self._survey = survey
        self._ask = ask
        self.contents: dict[str, bytes] = {}  # of this run, for checks that follow

    def _walked(self) -> tuple[list[Item], int]:
        items = [self._item(INVENTORY, codec.encode(self._inventories()))]
        for inventory in self._survey.inventories:
            items += filter(None, (self._dump(inventory, dump) for dump in inventory.dumps))
        for name in self._survey.failed:
            items += self._kept(f"{name}/")
        return sorted(items, key=Item.sort_key), sum(map(len, self.contents.values()))

    def _inventories(self) -> Inventories:
        """Those of now, and for a system that could not be asked the one of the last snapshot."""
        now, remembered = list(self._survey.inventories), self._state.get(INVENTORY)
        if remembered is not None and self._survey.failed:
            last = codec.decode(remembered.encode(), Inventories, INVENTORY)
            now += [inventory for inventory in last.systems if inventory.system in self._survey.failed]
        found = Inventories(systems=tuple(now))
        self._state.put(INVENTORY, codec.encode(found).decode())
        return found

    def _dump(self, inventory: Inventory, dump: Dump) -> Item | None:
        try:
            data = b"".join(self._asked(inventory, dump))
        except CannotAsk as error:
            self.findings.append(Finding(FindingKind.DUMP_FAILED, dump.name, str(error)))
            return next(iter(self._kept(dump.name)), None)
        return self._item(dump.name, data)

    def _asked(self, inventory: Inventory, dump: Dump) -> Iterator[bytes]:
        if dump.argv:
            yield self._ask.output(dump.argv, dump.timeout)
            return
        known = adapter(inventory.system)
        assert known is not None, "an inventory of an unknown system"
        yield from known.dump(self._ask, dump)

    def _item(self, name: str, data: bytes) -> Item:
        self.contents[name] = data
        pieces = list(cut_stream(iter([data])))
        path, unit = os.fsencode(name), self._unit_of(os.fsencode(name))
        cached = self._old.entries.get(path)
        if cached is not None and not cached.lost:
            if [ref.blob for ref in cached.entry.refs] == [blob_id(piece) for piece in pieces]:
                return Item.of(cached.segment, cached.entry)
            unit.add_refs(cached.segment.blocks, cached.entry.refs)
        item = Item(path, "f", _NOBODY, divmod(time.time_ns(), 1_000_000_000), len(data))
        item.places = [self._writer.add(unit, "files", piece) for piece in pieces]
        return item

    def _kept(self, prefix: str) -> Iterator[Item]:
        for name, cached in self._old.entries.items():
            if show(name).startswith(prefix):
                yield Item.of(cached.segment, cached.entry)

    def _unit_of(self, path: bytes) -> Unit:
        return super()._unit_of(b"dumps/" + path)
