"""The folders of one mailbox, read while clients go on working in it.

Each folder is listed and read by itself; then follows the look back. A message that moves from folder B to folder A between the listing of A and that
of B is in neither, and one that moves while it is about to be read is not where it was listed. So folders that changed since are listed again, until
nothing changes any more or nothing is missing any more. *Expunged* is only what all folders, each by a quiet listing or five times in a row, do not
have; *lost* what is there but could not be caught.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from mailbackup.capture.dirfacts import DirFacts
from mailbackup.capture.folder import FolderWork, OldPair
from mailbackup.capture.messages import FolderReader
from mailbackup.capture.reading import Gone, Unreadable
from mailbackup.capture.scan import FolderScan, Seen
from mailbackup.mail.maildir import MESSAGE_DIRECTORIES, left_out_inside, readable_folder, split_name
from mailbackup.mail.uidlist import parse as parse_uidlist
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import from_name, show
from mailbackup.model.tree import MailboxTree
from mailbackup.vault.gather import BlockName
from mailbackup.vault.state import State
from mailbackup.vault.trees import Item, resolve
from mailbackup.vault.units import Unit
from mailbackup.vault.writer import VaultWriter

_LOOKS_AT_MOST = 60
_LOOKS_WITHOUT_NEWS = 10  # in a row, at folders that go on changing: nothing more is expected
_FOLDER_LISTINGS_AT_MOST = 5
_ABSENT_LOOKS = 5  # in a row, in all folders: expunged


class MailFolders:
    """Reads the folders of one mailbox. `unit` is its number in the state, `tree` its cached tree; both None for a new mailbox."""

    def __init__(
        self,
        root: bytes,
        label: str,
        unit_number: int | None,
        tree: MailboxTree | None,
        unit: Unit,
        state: State,
        writer: VaultWriter,
        findings: list[Finding],
        *,
        volume: str | None,
        rescan: bool,
        keep_gone: bool,
        gather: frozenset[BlockName] = frozenset(),
        on_messages: Callable[[int, int], None],
    ) -> None:
        self.work: dict[bytes, FolderWork] = {}
        self.new_messages = 0
        self.read_bytes = 0
        self._root = root
        self._label = label
        self._unit_number = unit_number
        self._tree = tree
        self._unit = unit
        self._state = state
        self._writer = writer
        self._findings = findings
        self._volume = volume
        self._rescan = rescan
        self._keep_gone = keep_gone
        self._gather = gather
        self._on_messages = on_messages
        self._offered = False
        self._torn: list[Item] = []
        self._known = {from_name(f.name): f for f in tree.folders} if tree else {}
        self._vanished: dict[bytes, bytes] = {}  # base name → folder in which it was seen first

    def read(self) -> None:
        """List and read what is new. Raises Unreadable when the mailbox itself cannot be listed."""
        names, failed = folders(self._root)
        facts = DirFacts(self._state, None if self._rescan or self._gather else self._unit_number)
        for _ in range(_FOLDER_LISTINGS_AT_MOST):
            for name in names:
                work = self.work[name] = FolderWork(name, FolderScan(self._path(name)), self._known.get(name))
                self._folder(work, facts)
            if not any(self.work[name].vanished for name in names):
                break
            names = [name for name in folders(self._root)[0] if name not in self.work]  # it has another name now, most likely
        self._look_back()
        self._keep_unreadable(failed)
        if self._keep_gone:
            for name in set(self._known) - set(self.work):
                self._keep_folder(name)
        for item in self._torn:
            item.inode = 0  # not known: the next run reads it again

    def _path(self, folder: bytes) -> bytes:
        return self._root + b"/" + folder if folder else self._root

    # -- one folder

    def _folder(self, work: FolderWork, facts: DirFacts) -> None:
        """List, compare and read one folder, unless its directories' stamps prove that it is as it was."""
        try:
            work.scan.stamps = work.scan.now()
            if work.cached is not None and not work.cached.stale and facts.prove(work.name, self._volume, work.scan.stamps):
                work.untouched = True
            else:
                self._changed_folder(work)
        except Unreadable as error:
            self._find(FindingKind.UNREADABLE, work.name, str(error))
            work.stale = work.flawed = True
            work.items.clear()

    def _changed_folder(self, work: FolderWork) -> None:
        work.untouched = False
        self.load_old(work)
        work.scan.stabilise(lambda: (name for pair in work.old for name in pair.live_names()))
        present = dict(work.scan.seen)
        for pair in work.old:
            pair.compare(present)
            for double in work.scan.doubles:
                pair.match(split_name(double.name)[0], double)
        doubtful = self._restated(work) if self._rescan else []
        present.update(self._again(work, [*doubtful, *self._gathered(work)]))
        self._read_messages(work, present)
        if self._keep_gone:
            self._keep_all(work)

    @staticmethod
    def _keep_all(work: FolderWork) -> None:
        again = {item.name for item in work.items}
        for pair in work.old:
            for index in list(pair.gone):
                if pair.names[index] not in again:
                    pair.keep(index)
                    work.flawed = True  # or the stamps of the emptied directory would prove the next night that nothing is missing

    def load_old(self, work: FolderWork) -> None:
        """Load the cached segments of a folder."""
        if work.cached is None or self._tree is None or self._unit_number is None or work.old:
            return
        for row in work.cached.segments:
            segment = self._state.segment(self._unit_number, work.name, row.facts.blob)
            if segment is not None:
                blocks = self._tree.blocks
                work.old.append(OldPair(segment, resolve(blocks, row.facts), resolve(blocks, row.flags), from_name(row.first)))

    @staticmethod
    def _restated(work: FolderWork) -> Iterator[tuple[OldPair, int]]:
        """For a rescan: messages whose size, mtime, mode or owner is not what the vault has, although name and inode are."""
        doubles = _by_inode(work)
        for pair in work.old:
            for index, flag in enumerate(pair.flags):
                seen = _seen_as(work, doubles, pair, index)
                if flag is None or seen is None:
                    continue
                try:
                    status = os.lstat(work.scan.path + (b"/new/" if seen.place == b"n" else b"/cur/") + seen.name)
                except OSError:
                    continue  # renamed since; name and inode were the same a moment ago
                if not pair.describes(index, status):
                    yield pair, index

    def _gathered(self, work: FolderWork) -> Iterator[tuple[OldPair, int]]:
        """Messages with a blob in a block that this mailbox is to leave."""
        for pair in work.old if self._gather else ():
            for index in pair.lying_in(self._gather):
                yield pair, index

    @staticmethod
    def _again(work: FolderWork, doubtful: Iterable[tuple[OldPair, int]]) -> dict[bytes, Seen]:
        """Take these messages out of their segments. Returns what is to be read for them; doubles are left to `_doubles`."""
        again: dict[bytes, Seen] = {}
        doubles = _by_inode(work)
        for pair, index in doubtful:
            seen = _seen_as(work, doubles, pair, index)
            if pair.flags[index] is None or seen is None:
                continue
            pair.drop(index)
            if seen is work.scan.seen.get(pair.names[index]):
                again[pair.names[index]] = seen
        return again

    def _read_messages(self, work: FolderWork, present: dict[bytes, Seen]) -> None:
        """Read these messages into `work.items`."""
        if not present and not work.scan.doubles:
            return
        self._offer_old_blobs()
        found = len(self._findings)
        reader = FolderReader(work.scan, self._folder_label(work.name), self._unit, self._writer, self._findings)

        again = {pair.names[index] for pair in work.old for index in pair.gone}

        def take(item: Item) -> None:
            work.items.append(item)
            self.new_messages += item.name not in again
            self._on_messages(1, item.size)

        before = {item.name for item in work.items}
        with reader.directories():
            vanished = reader.read((base for base in present if base not in before), take)
            for double in self._doubles(work):
                self._read_double(reader, double, take)
        self.read_bytes += reader.read_bytes
        self._torn += reader.torn
        if len(self._findings) > found:
            work.flawed = True
            captured = {item.name for item in work.items}
            for base in present:
                if base not in captured and base not in vanished:
                    work.keep(base)
        for base in vanished:
            self._vanished.setdefault(base, work.name)

    @staticmethod
    def _doubles(work: FolderWork) -> list[Seen]:
        """Files that share their base name with another one, and that this run does not have yet: which of them a listing calls the double may change."""
        if not work.scan.doubles:
            return []
        known = {(item.name, item.inode) for item in work.items}
        known.update(work.kept_inodes())
        bases = [split_name(double.name)[0] for double in work.scan.doubles]
        found = [*zip(bases, work.scan.doubles, strict=True), *((base, work.scan.last[base]) for base in dict.fromkeys(bases))]
        return [seen for base, seen in found if (base, seen.inode) not in known]

    @staticmethod
    def _read_double(reader: FolderReader, seen: Seen, take: Callable[[Item], None]) -> None:
        """A second file with the base name of another one: both are kept."""
        try:
            item = reader.message(split_name(seen.name)[0], seen)
        except Gone:
            return  # it was the same message after all, renamed between two looks
        if item is not None:
            take(item)

    def _offer_old_blobs(self) -> None:
        """Small blobs that the mailbox has in the vault may be referred to again; loaded when the first new message comes."""
        if self._offered or self._tree is None or self._unit_number is None:
            return
        self._offered = True
        for folder in self._tree.folders:
            name = from_name(folder.name)
            work = self.work.get(name)
            if work is not None and work.old:
                for pair in work.old:
                    pair.offer(self._unit)
                continue
            for row in folder.segments:
                cached = self._state.segment(self._unit_number, name, row.facts.blob)
                if cached is not None:
                    pair = OldPair(cached, resolve(self._tree.blocks, row.facts), resolve(self._tree.blocks, row.flags), b"")
                    pair.offer(self._unit)

    # -- the look back

    def _look_back(self) -> None:
        absent: Counter[bytes] = Counter()
        without_news = 0
        for attempt in range(_LOOKS_AT_MOST):
            missing = self._missing()
            again = [work for work in self.work.values() if not work.stale and (missing or self._moved_on(work, doubtful=attempt == 0))]
            if not again or (not missing and without_news >= _LOOKS_WITHOUT_NEWS):
                break
            news = self._look_again(again if attempt % 2 else again[::-1])
            without_news = 0 if news else without_news + 1
            self._judge(self._missing(), absent)
        for base in self._missing():
            self._find(FindingKind.LOST, self._vanished[base], f"{show(base)} moved faster than it could be read")
            self.work[self._vanished[base]].flawed = True

    def _look_again(self, works: list[FolderWork]) -> bool:
        """List these folders one right after the other, then read what is new in them. Returns whether anything was.

        The shorter the time between two listings, the less can slip from one folder to the other in it; and the order alternates, since a message
        slips through only if it moves in the direction of the listing.
        """
        listed = [work for work in works if self._list_again(work)]
        found = [self._read_news(work) for work in listed]  # all of them, also when the first has some
        return any(found)

    def _missing(self) -> list[bytes]:
        """Messages that were seen in some folder, were not there when they were to be read, and were not captured elsewhere."""
        if not self._vanished:
            return []
        captured = {item.name for work in self.work.values() for item in work.items}
        for work in self.work.values():
            if any(base not in captured for base in self._vanished):
                captured.update(work.kept_names())
        for base in [base for base in self._vanished if base in captured]:
            del self._vanished[base]
        return list(self._vanished)

    def _judge(self, missing: list[bytes], absent: Counter[bytes]) -> None:
        """What no folder has is expunged."""
        works = [work for work in self.work.values() if not work.stale]
        quiet = all(work.scan.quiet or work.untouched for work in works)
        for base in missing:
            absent[base] = 0 if any(base in work.scan.last for work in works) else absent[base] + 1
            if absent[base] and (quiet or absent[base] >= _ABSENT_LOOKS):
                self._find(FindingKind.EXPUNGED, self._vanished.pop(base), f"{show(base)} was deleted while the mailbox was read")

    def _moved_on(self, work: FolderWork, *, doubtful: bool) -> bool:
        """Whether a folder changed since its listing; or, once, whether its listing was no proof and its uidlist names more than it saw."""
        try:
            if work.scan.young or work.scan.now() != work.scan.stamps:
                return True
        except Unreadable:
            return False
        return doubtful and not work.untouched and not work.scan.quiet and self._uidlist_knows_more(work)

    @staticmethod
    def _uidlist_knows_more(work: FolderWork) -> bool:
        """Whether the server lists messages that no listing saw. Rows of deleted messages are normal, so this only asks for another look."""
        try:
            with open(work.scan.path + b"/dovecot-uidlist", "rb") as file:
                uidlist = parse_uidlist(file.read())
        except OSError:
            return True
        return uidlist is None or any(base not in work.scan.seen for base in uidlist.rows)

    def _list_again(self, work: FolderWork) -> bool:
        try:
            work.scan.list_once()
        except Unreadable as error:
            self._find(FindingKind.UNREADABLE, work.name, str(error))
            work.flawed = True
            return False
        return True

    def _read_news(self, work: FolderWork) -> bool:
        """Read what the last listing of a folder has and this run does not."""
        before = len(work.items)
        try:
            if work.untouched:
                self._changed_folder(work)
                return len(work.items) > before
            here = {item.name for item in work.items}
            here.update(work.kept_names())
            news = {base: seen for base, seen in work.scan.last.items() if base not in here}
            if news:
                elsewhere = self._captured_inodes(work)
                self._read_messages(work, {base: seen for base, seen in news.items() if (base, seen.inode) not in elsewhere})
        except Unreadable as error:
            self._find(FindingKind.UNREADABLE, work.name, str(error))
            work.flawed = True
        return len(work.items) > before

    def _captured_inodes(self, here: FolderWork) -> set[tuple[bytes, int]]:
        """Messages that were captured in another folder: one that moved since then is not captured twice."""
        found: set[tuple[bytes, int]] = set()
        for work in self.work.values():
            if work is not here:
                found.update((item.name, item.inode) for item in work.items)
                found.update(work.kept_inodes())
        return found

    # -- what cannot be read

    def _keep_unreadable(self, failed: dict[bytes, str]) -> None:
        """Folders in a directory that could not be looked into keep what the last snapshot had of them."""
        for directory, why in failed.items():
            self._find(FindingKind.UNREADABLE, directory, why)
            for name in self._known:
                if name not in self.work and (name == directory or name.startswith(directory + b"/")):
                    self._keep_folder(name)

    def _keep_folder(self, name: bytes) -> None:
        self.work[name] = FolderWork(name, FolderScan(self._path(name)), self._known[name], stale=True, flawed=True)

    def _folder_label(self, folder: bytes) -> str:
        return f"{self._label}/{readable_folder(folder)}"

    def _find(self, kind: FindingKind, folder: bytes, detail: str) -> None:
        self._findings.append(Finding(kind, self._folder_label(folder), detail))


def folders(root: bytes) -> tuple[list[bytes], dict[bytes, str]]:
    """Directories below a mailbox that hold messages (they have a `cur` or a `new`), relative to it, b"" being the mailbox itself; and
    directories that could not be looked into, with the reason.

    Maildir++ and LAYOUT=fs alike. Raises Unreadable when the mailbox itself cannot be listed.
    """
    found: list[bytes] = []
    failed: dict[bytes, str] = {}
    pending: list[bytes] = [b""]
    while pending:
        folder = pending.pop()
        try:
            with os.scandir(root + b"/" + folder if folder else root) as entries:
                below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False) or _linked(entry)]
        except FileNotFoundError:
            if not folder:
                raise Unreadable("is not there") from None
            continue
        except OSError as error:
            if not folder:
                raise Unreadable(error.strerror or str(error)) from None
            failed[folder] = error.strerror or str(error)
            continue
        if b"cur" in below or b"new" in below:
            found.append(folder)
        path = folder + b"/" if folder else b""
        pending += [
            path + name
            for name in below
            if name not in (b"cur", b"new", b"tmp")
            and (left_out_inside(name) is None or os.path.isdir(root + b"/" + path + name + b"/cur"))
        ]
    return sorted(found), failed


def _by_inode(work: FolderWork) -> dict[tuple[bytes, int], Seen]:
    """Files that share their base name with another one, by base name and inode."""
    return {(split_name(seen.name)[0], seen.inode): seen for seen in work.scan.doubles}


def _seen_as(work: FolderWork, doubles: dict[tuple[bytes, int], Seen], pair: OldPair, index: int) -> Seen | None:
    """The file of an entry, as the folder's listing has it."""
    name, inode = pair.names[index], pair.cached.inodes[index]
    first = work.scan.seen.get(name)
    return first if first is not None and first.inode == inode else doubles.get((name, inode))


def _linked(entry: os.DirEntry[bytes]) -> bool:
    """Whether this is a `cur` or `new` that leads elsewhere: it is not followed, and reading the folder says so."""
    return entry.name in MESSAGE_DIRECTORIES and entry.is_symlink() and os.path.isdir(entry.path)
