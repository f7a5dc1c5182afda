"""Read-back: what the last entries of the ledger name is read from the store once more, and hashed.

A store that said "written" may be wrong: a disk that lies, a bucket of another account, a mount that fell away below the vault. The ledger decides what
must be there, not the memory of the run that wrote it, so what an interrupted run registered is read back by the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mailbackup.errors import ChainBroken, DamageError, ObjectMissing
from mailbackup.model.events import OnEvent, Phase, Progress, Stop
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import Digest, ObjectKey, entry_key, pack_key
from mailbackup.model.ledger import Anchors, LedgerEntry, ObjectRow
from mailbackup.stores.base import Store
from mailbackup.upkeep.page import from_page
from mailbackup.upkeep.parallel import in_order, threads_for
from mailbackup.upkeep.scrub import hash_object


@dataclass(slots=True)
class ReadBack:
    """What was read back: the entries behind `first` up to `last`, with everything they name. `whole` = nothing was left out."""

    first: int
    last: int = 0
    objects: int = 0
    bytes: int = 0
    whole: bool = True
    findings: list[Finding] = field(default_factory=list)

    @property
    def proven(self) -> bool:
        """Whether everything was read and is what the ledger says."""
        return self.whole and not self.findings


def read_back(store: Store, anchors: Anchors, *, after: int, stop: Stop, on_event: OnEvent) -> ReadBack:
    """Read and hash every object that the entries behind number `after` name. The anchors' pinned head must be in the store.

    `stop` is asked between objects. Raises what the store raises when it cannot be reached; damage is a finding.
    """
    result = ReadBack(after)
    objects: dict[ObjectKey, Digest] = {}
    try:
        for link in from_page(store, anchors, after + 1):
            result.objects += 1
            result.bytes += len(link.raw)
            result.last = link.seq
            if link.seq > after:
                objects.update(named_by(link.entry))
    except (ChainBroken, DamageError) as error:
        result.findings.append(Finding(FindingKind.CHAIN_BROKEN, entry_key((result.last or after) + 1), str(error)))
    on_event(Phase("reading back", len(objects), "objects"))
    for key, size, finding in _checked(store, objects, stop):
        result.objects += 1
        result.bytes += size
        result.findings += [finding] if finding is not None else []
        on_event(Progress(result.objects, result.bytes, key))
    result.whole = not stop()
    return result


def named_by(entry: LedgerEntry) -> dict[ObjectKey, Digest]:
    """Every object that an entry names, with its hash."""
    found = {pack_key(pack.id): pack.sha256 for pack in entry.packs}
    found |= {row.key: row.sha256 for row in entry.epochs}
    found |= {row.key: row.sha256 for row in entry.rewrapped}
    found |= {ObjectKey(key): sha256 for key, sha256 in entry.files.items()}
    rows = [entry.snapshot, *((entry.lists.stops, entry.lists.live) if entry.lists is not None else ())]
    return found | {row.key: row.sha256 for row in rows if isinstance(row, ObjectRow)}


def _checked(store: Store, objects: dict[ObjectKey, Digest], stop: Stop) -> Iterator[tuple[ObjectKey, int, Finding | None]]:
    yield from in_order(lambda row: check_object(store, *row), objects.items(), threads_for(store), stop)


def check_object(store: Store, key: ObjectKey, expected: Digest) -> tuple[ObjectKey, int, Finding | None]:
    """Read and hash one object. Returns its key, the bytes that were read, and what is wrong with it."""
    try:
        size, sha256 = hash_object(store, key)
    except ObjectMissing:
        return key, 0, Finding(FindingKind.OBJECT_MISSING, key, "the ledger names it, and it is not there")
    except DamageError as error:
        return key, 0, Finding(FindingKind.OBJECT_DAMAGED, key, str(error))
    if sha256 != expected:
        return key, size, Finding(FindingKind.OBJECT_DAMAGED, key, "its hash is not the registered one")
    return key, size, None
