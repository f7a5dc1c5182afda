"""A store in a Borg repository, through the borg program.

Objects are spooled on this host and shipped as one archive a batch (`shipping`), in pieces of at most 4 MiB (`spool`); which archive holds what is
read from the repository alone (`catalogue`), and a range takes only its pieces out (`pieces`).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from mailbackup.errors import MailbackupError, ObjectDamaged, ObjectMissing, StoreUnavailable
from mailbackup.host import scratch_directory, translated
from mailbackup.model.ids import ObjectKey
from mailbackup.model.options import StoreConfig
from mailbackup.stores.base import ObjectStat, ObjectWriter, Shadow, Store, StoreTraits
from mailbackup.stores.borg.answers import NO_REPOSITORY, REPOSITORY_EXISTS, Answered
from mailbackup.stores.borg.catalogue import Archive, Catalogue, files_of
from mailbackup.stores.borg.command import Borg
from mailbackup.stores.borg.pieces import Gate, PieceReader
from mailbackup.stores.borg.shipping import Shipper
from mailbackup.stores.borg.spool import PieceWriter, Spool
from mailbackup.stores.checks import checked_key, checked_range, missing, next_component, too_long, too_short

PARALLEL = 4  # calls that read at once: each is a program of its own, which mostly starts and waits


def open_borg(place: StoreConfig, *, create: bool, work_dir: str | None) -> Store:
    """The store in the repository at `place`; with `create` the repository is made when there is none. See `locate.open_store`."""
    store = BorgStore(place, work_dir)
    try:
        store.reach(create=create, encryption="repokey-blake2" if place.passphrase_command else "none")
    except BaseException:
        store.close()
        raise
    return store


class BorgStore:
    """A store in a Borg repository. `reach` comes first.

    `delete` takes an object away for this store at once, for others with the next flush, put of an entry, or close. Its bytes are freed when
    somebody compacts the repository, which this store never does.
    """

    traits = StoreTraits(range_reads=True, create_only=True, durable_after_put=False, delete_granularity="compaction", parallel=PARALLEL)

    def __init__(self, place: StoreConfig, work_dir: str | None) -> None:
        self.name = place.name
        self._closing = contextlib.ExitStack()
        with self._closing:
            home = work_dir or self._closing.enter_context(scratch_directory(tempfile.gettempdir(), "mailbackup-borg-"))
            with translated(f"make the directory {home}"):
                os.makedirs(home, mode=0o700, exist_ok=True)
            spool = Spool(self._closing.enter_context(scratch_directory(home, "spool-")))
            self.borg = Borg(place, home)
            self._gate = Gate(PARALLEL)
            self._catalogue = Catalogue(self.borg, os.path.join(home, "catalogue"))
            self._pieces = PieceReader(self.borg, self._gate)
            self._shipper = Shipper(self.borg, self._catalogue, self._gate, spool, self.name)
            self._closing = self._closing.pop_all()

    def reach(self, *, create: bool, encryption: str) -> None:
        """Look at the repository; with `create`, make it when there is none. Raises StoreUnavailable or StoreRefused."""
        try:
            self._catalogue.refresh(NO_REPOSITORY)
        except Answered:
            if not create:
                raise StoreUnavailable(
                    f"store {self.name}: there is no Borg repository at {self.borg.repository}",
                    hint="Check the address, and that its disk is mounted. 'mailbackup init' makes a repository.",
                ) from None
            with contextlib.suppress(Answered):  # somebody else was faster, or an answer was lost
                self.borg.run("init", "--encryption", encryption, "--make-parent-dirs", expected=(REPOSITORY_EXISTS,))
            self._catalogue.refresh()

    # ------------------------------------------------------------ writing

    def put(self, key: ObjectKey, data: bytes) -> None:
        """See `Store.put`."""
        self._shipper.refuse_existing(checked_key(key))
        with self.create(key) as writer:
            writer.write(data)
            writer.commit()

    def create(self, key: ObjectKey) -> AbstractContextManager[ObjectWriter]:
        """See `Store.create`. A commit that fills the spool ships it."""
        return self._writing(checked_key(key))

    @contextmanager
    def _writing(self, key: str) -> Iterator[ObjectWriter]:
        writer = _Writer(self._shipper, key)
        try:
            yield writer
        finally:
            writer.abort()

    def flush(self) -> None:
        """See `Store.flush`. Deletions too are carried out."""
        self._shipper.ship()

    def delete(self, key: ObjectKey) -> None:
        """See `Store.delete` and the class."""
        if self._shipper.waiting(checked_key(key)) is None and self._shipper.find(key) is None:
            self._refresh()
        self._shipper.delete(key)

    def close(self) -> None:
        """See `Store.close`. Deletions are carried out where that is possible."""
        with self._closing, contextlib.suppress(MailbackupError):
            for key in self._shipper.all_waiting():
                self._shipper.delete(key)
            if self._shipper.deleted():
                self._shipper.ship()

    # ------------------------------------------------------------ reading

    def get(self, key: ObjectKey, limit: int) -> bytes:
        """See `Store.get`."""
        if self.stat(key).size > limit:
            raise too_long(key, self.name, limit)
        return self._read(key, 0, None)

    def get_range(self, key: ObjectKey, offset: int, length: int) -> bytes:
        """See `Store.get_range`."""
        checked_range(offset, length)
        return self._read(key, offset, length)

    def stream(self, key: ObjectKey, chunk: int = 1 << 20) -> Iterator[bytes]:
        """See `Store.stream`."""
        found = self._locate(key)
        if isinstance(found, Archive):
            parts = self._streamed(key, found)
        else:
            parts = (self._read(key, at, min(chunk, found.size - at)) for at in range(0, found.size, chunk))
        for part in parts:
            for start in range(0, len(part), chunk):
                yield part[start : start + chunk]

    def _streamed(self, key: str, archive: Archive) -> Iterator[bytes]:
        try:
            yield from self._pieces.stream(archive, key)
        except Answered:
            raise ObjectDamaged(f"{key} in store {self.name} vanished while it was read") from None
        except ObjectDamaged as error:
            raise ObjectDamaged(f"{key} in store {self.name}: {error.message}", hint=error.hint) from None

    def stat(self, key: ObjectKey) -> ObjectStat:
        """See `Store.stat`. The time is the one at which borg made the archive, by the clock of the host that put it."""
        found = self._locate(key)
        return ObjectStat(found.objects[key], found.time) if isinstance(found, Archive) else found

    def list(self, prefix: str = "") -> Iterator[tuple[str, ObjectStat]]:
        """See `Store.list`: what is there when the listing begins."""
        yield from sorted((key, stat) for key, stat in self._all().items() if key.startswith(prefix))

    def prefixes(self, prefix: str) -> tuple[str, ...]:
        """See `Store.prefixes`."""
        found = {next_component(key, prefix) for key in self._all()}
        return tuple(sorted(component for component in found if component is not None))

    def now(self) -> float:
        """The clock of this host."""
        return time.time()

    def uncover(self, key: ObjectKey) -> bool:
        """See `Store.uncover`: what an append-only repository still holds of its past, only its owner can bring back."""
        return False

    def shadows(self, prefix: str = "") -> Iterator[tuple[str, Shadow]]:
        """See `Store.shadows`: there are no versions."""
        return iter(())

    def locked_until(self, key: ObjectKey) -> float | None:
        """See `Store.locked_until`: there are no locks."""
        return None

    def lock_until(self, key: ObjectKey, time: float) -> None:
        """See `Store.lock_until`: there are no locks."""

    def files(self) -> dict[str, int]:
        """Key and bytes of what the archives really hold, each archive listed: what their comments say is not believed."""
        self._refresh()
        found: dict[str, int] = {}
        with self._gate.reading():
            for archive in self._catalogue.archives():
                for key, size in files_of(self.borg, archive.name).items():
                    found.setdefault(key, size)
        return found

    # ------------------------------------------------------------ inside

    def _refresh(self) -> None:
        with self._gate.reading():
            self._catalogue.refresh()

    def _all(self) -> dict[str, ObjectStat]:
        self._refresh()
        waiting = {key: ObjectStat(found.size, found.time) for key, found in self._shipper.all_waiting().items()}
        deleted = self._shipper.deleted()
        return {key: stat for key, stat in self._catalogue.items() if key not in deleted} | waiting

    def _locate(self, key: str) -> Archive | ObjectStat:
        """Where an object is: an archive, or the spool. Looks at the repository when it is not known. Raises ObjectMissing."""
        checked_key(key)
        found = self._look(key)
        if found is None:
            self._refresh()
            found = self._look(key)
        if found is None:
            raise missing(key, self.name)
        return found

    def _look(self, key: str) -> Archive | ObjectStat | None:
        waiting = self._shipper.waiting(key)
        return self._shipper.find(key) if waiting is None else ObjectStat(waiting.size, waiting.time)

    def _read(self, key: str, offset: int, length: int | None) -> bytes:
        """A range of an object (length None = to its end). What moved or changed meanwhile is looked for again."""
        for last in (False, True):
            found = self._locate(key)
            size = found.objects[key] if isinstance(found, Archive) else found.size
            wanted = size - offset if length is None else length
            if offset + wanted > size:
                raise too_short(key, self.name, offset, wanted)
            data = self._try(key, found, offset, wanted, last=last)
            if data is not None:
                return data
        raise ObjectMissing(f"{key} is no longer in store {self.name}")

    def _try(self, key: str, found: Archive | ObjectStat, offset: int, length: int, *, last: bool) -> bytes | None:
        """The bytes; None when the object is not there any more, so that it must be located again."""
        if not isinstance(found, Archive):
            return self._shipper.spool.read(key, offset, length)
        try:
            return self._pieces.read(found, key, offset, length)
        except (Answered, ObjectDamaged) as error:
            self._refresh()
            if isinstance(error, ObjectDamaged) and (last or self._shipper.find(key) is found):
                raise ObjectDamaged(f"{key} in store {self.name}: {error.message}", hint=error.hint) from None
            return None


class _Writer:
    """An object on its way into the spool. For one thread."""

    def __init__(self, shipper: Shipper, key: str) -> None:
        self._shipper = shipper
        self._key = key
        self._written: PieceWriter | None = shipper.spool.start()

    def write(self, data: bytes | memoryview) -> None:
        """See `ObjectWriter.write`."""
        written = self._open()
        try:
            written.write(data)
        except BaseException:
            self.abort()
            raise

    def commit(self) -> None:
        """See `ObjectWriter.commit`; durable at once only where `Store.put` is."""
        written = self._open()
        try:
            written.close()
            self._shipper.add(self._key, written, urgent=self._key.startswith(("ledger/", "acts/")))
        finally:
            self.abort()

    def abort(self) -> None:
        """See `ObjectWriter.abort`."""
        written, self._written = self._written, None
        if written is not None:
            written.drop()

    def _open(self) -> PieceWriter:
        if self._written is None:
            raise ValueError(f"the writer of {self._key} was committed or aborted before")
        return self._written
