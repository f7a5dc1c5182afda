"""Bringing to the repository what waits: puts as one archive a batch, deletions by writing the lists of archives anew.

What may happen meanwhile, and what follows:

- Another writer takes the number: borg refuses the name. The repository is looked at; when none of our keys was taken, the next number is tried.
- The answer is lost: the batch may be there or not. The random token in its comment tells, before anything is sent again.
- A kill: what waited is gone with the spool, and nobody was told that it was durable. borg removes its own lock, or finds that its process is dead.
"""

from __future__ import annotations

import contextlib
import itertools
import secrets
import threading

from mailbackup.errors import MailbackupError, StoreRefused, StoreUnavailable
from mailbackup.model.codec import Record, decode
from mailbackup.stores.borg.answers import ARCHIVE_EXISTS, ARCHIVE_MISSING, Answered
from mailbackup.stores.borg.catalogue import Archive, Catalogue, archive_name, comment_of, files_of, moment_of
from mailbackup.stores.borg.command import Borg
from mailbackup.stores.borg.pieces import Gate
from mailbackup.stores.borg.spool import PieceWriter, Spool, Waiting, paths_of
from mailbackup.stores.checks import key_exists

SPOOL_BOUND = 256 << 20  # bytes that wait before whoever commits has to ship them
COMMENT_BOUND = 64 << 10  # an argument may have 128 KiB
_SMALL = 8 << 10  # a ledger entry up to this size comes with the comment: a reader of a long ledger needs no call for each
_TRIES = 20  # numbers, while other writers are faster

_CREATE = (
    *("--json", "-C", "none", "--chunker-params", "fixed,4194304", "--files-cache", "disabled"),
    *("--noctime", "--nobirthtime", "--noflags", "--noacls", "--noxattrs", "--numeric-ids"),
    *("--checkpoint-interval", "1000000000", "--paths-from-stdin", "--paths-delimiter", "\\0"),
)


class _Made(Record, frozen=True):
    id: str
    start: str


class _Answer(Record, frozen=True):
    archive: _Made


class Shipper:
    """What waits for the repository, and the one who brings it. Safe to use from several threads."""

    def __init__(self, borg: Borg, catalogue: Catalogue, gate: Gate, spool: Spool, name: str) -> None:
        self.spool = spool
        self._borg = borg
        self._catalogue = catalogue
        self._gate = gate
        self._name = name
        self._lock = threading.RLock()  # of the spool and of what is to be deleted; never held during a call of borg
        self._turn = threading.Condition()
        self._shipping = False
        self._doomed: set[str] = set()
        self._urgent: set[str] = set()  # keys whose put is waiting for an answer
        self._tokens: set[str] = set()
        self._unsure = False  # an answer was lost

    # ------------------------------------------------------------ what is there

    def waiting(self, key: str) -> Waiting | None:
        """The object when it waits."""
        with self._lock:
            return self.spool.waiting.get(key)

    def all_waiting(self) -> dict[str, Waiting]:
        """All that waits."""
        with self._lock:
            return dict(self.spool.waiting)

    def find(self, key: str) -> Archive | None:
        """The archive that holds an object, unless it is to be deleted."""
        with self._lock:
            return None if key in self._doomed else self._catalogue.find(key)

    def deleted(self) -> set[str]:
        """Keys in the repository that are to be deleted."""
        with self._lock:
            return set(self._doomed)

    # ------------------------------------------------------------ what changes

    def refuse_existing(self, key: str) -> None:
        """Raises KeyExists when the key is known to be taken."""
        if self.waiting(key) is not None or self.find(key) is not None:
            raise key_exists(key, self._name)

    def add(self, key: str, written: PieceWriter, *, urgent: bool) -> None:
        """The object that was written waits; it and all before it are durable when it is urgent. Raises as `ObjectWriter.commit` does."""
        with self._lock:
            self.refuse_existing(key)
            self.spool.add(key, written)
            full = self.spool.size >= SPOOL_BOUND
            if urgent:
                self._urgent.add(key)
        try:
            if urgent or full:
                self.ship(key)
        finally:
            with self._lock:
                self._urgent.discard(key)

    def delete(self, key: str) -> None:
        """Forget an object that waits; one in the repository is deleted with the next `ship`."""
        if self.waiting(key) is not None:
            self._take_turn(None)  # not while borg reads it
            self._drop([key])
            self._end_turn()
        with self._lock:
            if self._catalogue.find(key) is not None:
                self._doomed.add(key)

    def ship(self, own: str | None = None) -> None:
        """Delete what is to be deleted, then bring all that waits, or all up to `own`. Raises as `Store.flush` does; then `own` waits no more."""
        if not self._take_turn(own):
            return
        try:
            with self._gate.writing():
                if self._unsure:
                    self._catalogue.refresh()
                    self._settle()
                self._delete_doomed()
                while (own is None or self.waiting(own) is not None) and (batch := self._next_batch()):
                    self._ship_batch(batch, own)
        except BaseException:
            self._drop([own] if own is not None else [])  # its put has failed; the rest goes on waiting
            raise
        finally:
            self._end_turn()

    def _take_turn(self, own: str | None) -> bool:
        """One thread ships at a time, and what others put meanwhile goes together. False when another thread has shipped `own`.

        Raises KeyExists when it was dropped by a conflict.
        """
        with self._turn:
            while self._shipping and (own is None or self.waiting(own) is not None):
                self._turn.wait()
            if own is None or self.waiting(own) is not None:
                self._shipping = True
                return True
        archive = self._catalogue.find(own)
        if archive is None or archive.token not in self._tokens:
            raise key_exists(own, self._name)
        return False

    def _end_turn(self) -> None:
        with self._turn:
            self._shipping = False
            self._turn.notify_all()

    # ------------------------------------------------------------ puts

    def _next_batch(self) -> dict[str, int]:
        """Keys and sizes of what waits longest, as many as one comment can name."""
        batch: dict[str, int] = {}
        room = COMMENT_BOUND
        with self._lock:
            for key, waiting in self.spool.waiting.items():
                room -= len(key) + 32 + (2 * waiting.size + len(key) if _is_small(key, waiting.size) else 0)
                if batch and room < 0:
                    break
                batch[key] = waiting.size
        return batch

    def _ship_batch(self, batch: dict[str, int], own: str | None) -> None:
        for _ in range(_TRIES):
            try:
                archive = self._create(self._catalogue.next_number, batch)
            except Answered:
                self._catalogue.refresh()
                self._settle()
                self._refuse_taken(own)
                batch = {key: size for key, size in batch.items() if self.waiting(key) is not None}
                if batch:
                    continue
            except StoreUnavailable:
                self._unsure = True
                raise
            except MailbackupError:
                self._unsure = True
                with contextlib.suppress(MailbackupError):  # now, since only this process knows which archives are its own
                    self._catalogue.refresh()
                    self._settle()
                raise
            else:
                self._catalogue.add(archive)
                self._drop(batch)
            return
        raise StoreUnavailable(f"store {self._name}: other writers were faster {_TRIES} times", hint="Only one host may write a vault.")

    def _create(self, number: int, batch: dict[str, int]) -> Archive:
        small = {key: self.spool.read(key, 0, size) or b"" for key, size in batch.items() if _is_small(key, size)}
        token = secrets.token_hex(8)
        self._tokens.add(token)
        answer = self._borg.run(
            "create",
            *(*_CREATE, "--comment", comment_of(token, batch.items(), small.items())),
            archive=archive_name(number),
            names="\0".join(paths_of(batch.items())).encode() + b"\0",
            folder=self.spool.folder,
            expected=(ARCHIVE_EXISTS,),
        )
        made = decode(answer, _Answer, "answer of borg create").archive
        return Archive(number, made.id, moment_of(made.start), token, dict(batch), small)

    def _settle(self) -> None:
        """What waits and is in the repository by our own hand waits no longer. To be called after a look at the repository.

        Our archive may lack what its comment names: borg goes on when it cannot read a file. So the archive itself is listed.
        """
        self._unsure = False
        for own in self._catalogue.archives():
            if own.token in self._tokens and any(self.waiting(key) is not None for key in own.objects):
                real = files_of(self._borg, own.name)
                if half := [key for key, size in own.objects.items() if real.get(key) != size]:
                    self._rewrite(own, half)
                    self._catalogue.refresh()
        for key in self.all_waiting():
            archive = self._catalogue.find(key)
            if archive is not None and archive.token in self._tokens and key not in self.deleted():
                self._drop([key])

    def _refuse_taken(self, own: str | None) -> None:
        """Drop what others have put first. Raises KeyExists when that is `own`, or what somebody believes to be put; then all is dropped."""
        taken = [key for key in self.all_waiting() if self.find(key) is not None]
        with self._lock:
            believed = [key for key in taken if key not in self._urgent]
        self._drop(self.all_waiting() if believed else taken)
        if own in taken or (believed and own is None):
            raise key_exists(own or believed[0], self._name)
        if believed:  # of another put: its caller was told that all is well
            raise StoreRefused(
                f"store {self._name}: {believed[0]} was put by somebody else meanwhile", hint="Only one host may write a vault."
            )

    def _drop(self, keys: dict[str, int] | dict[str, Waiting] | list[str]) -> None:
        with self._lock:
            for key in list(keys):
                self.spool.remove(key)

    # ------------------------------------------------------------ deletions

    def _delete_doomed(self) -> None:
        doomed = self.deleted()
        if not doomed:
            return
        self._catalogue.refresh()
        for archive in self._catalogue.archives():
            dead = [key for key in archive.objects if key in doomed]
            if dead:
                self._rewrite(archive, dead)
        self._catalogue.refresh()
        with self._lock:
            self._doomed -= doomed

    def _rewrite(self, archive: Archive, dead: list[str]) -> None:
        """Write the list of an archive anew without some objects. Its data is neither read nor moved."""
        left = {key: size for key, size in archive.objects.items() if key not in dead}
        small = {key: data for key, data in archive.small.items() if key in left}
        options = (
            *itertools.chain.from_iterable(("-e", f"pp:{key}") for key in dead),
            "--comment",
            comment_of(archive.token, left.items(), small.items()),
        )
        for _ in range(2):
            try:
                self._borg.run("recreate", *options, archive=archive.name, expected=(ARCHIVE_EXISTS, ARCHIVE_MISSING))
            except Answered as answer:
                if answer.msgid == ARCHIVE_MISSING:
                    return
                with contextlib.suppress(Answered):  # left by a kill
                    self._borg.run("delete", archive=archive.name + ".recreate", expected=(ARCHIVE_MISSING,))
            else:
                return


def _is_small(key: str, size: int) -> bool:
    return size <= _SMALL and key.startswith(("ledger/", "acts/"))
