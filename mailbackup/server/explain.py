"""`systems explain PATH`: is this in my backup, why or why not. The rules are those of the capture, asked about one path."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from mailbackup.capture.directory import excluded
from mailbackup.capture.locate import locate
from mailbackup.capture.mailbox import FoundMailbox
from mailbackup.capture.reading import begins_with
from mailbackup.capture.system import why_left_out
from mailbackup.config import Config
from mailbackup.mail.maildir import is_message, left_out_inside, readable_folder, skipped
from mailbackup.mail.pattern import Pattern
from mailbackup.model.ids import show
from mailbackup.model.options import DirectoryConfig
from mailbackup.model.results import ExplainResult, ExplainRow
from mailbackup.model.system import Inventory
from mailbackup.server.survey import asking, used
from mailbackup.systems.host import package_of, why_not
from mailbackup.systems.known import Survey, survey

_TAG, _SIGNATURE = b"CACHEDIR.TAG", b"Signature: 8a477f597d28d172789f06886806bc55"


def explain(config: Config, path: str) -> ExplainResult:
    """What the sources of the configuration make of a path. Nothing is changed, and the vault is not asked."""
    whole = os.path.abspath(path)
    return _Explainer(config).explain(whole)


class _Explainer:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._ask = asking(config)
        self._survey: Survey = survey(self._ask, used(config))

    def explain(self, path: str) -> ExplainResult:
        """A path is looked at as it is written, and where the links on its way lead."""
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) if path != "/" else path
        rows = [row for place in dict.fromkeys((path, real)) for row in self._rows(os.fsencode(place))]
        rows = list(dict.fromkeys(rows))
        exists = os.path.lexists(path)
        if exists and stat.S_ISSOCK(os.lstat(path).st_mode):
            rows = [ExplainRow(source="everywhere", saved=False, why="a socket has no content; its program makes it anew")]
        if any(row.saved for row in rows):
            return ExplainResult(outcome="saved", path=path, exists=exists, rows=tuple(rows))
        below = list(self._below(os.fsencode(real))) if os.path.isdir(path) else []
        if below:
            return ExplainResult(outcome="partly", path=path, exists=exists, rows=(*rows, *below), advice=self._advice(path))
        rows += self._reasons(real) if not rows else []
        if rows:
            return ExplainResult(outcome="left-out", path=path, exists=exists, rows=tuple(rows))
        return ExplainResult(outcome="not-covered", path=path, exists=exists, rows=(), advice=self._advice(path))

    def _rows(self, path: bytes) -> Iterator[ExplainRow]:
        mailbox = list(self._mailboxes(path))
        yield from mailbox
        if mailbox:
            return  # where a directory or a system contains mail, mail wins
        for directory in self._config.directories:
            if _within(path, os.fsencode(directory.path)):
                yield _in_directory(directory, path)
        for inventory in self._survey.inventories:
            yield from _in_system(inventory, os.fsdecode(path))

    # -- mail

    def _mailboxes(self, path: bytes) -> Iterator[ExplainRow]:
        for config in self._config.mail:
            if _within(path, Pattern.parse(config.path).root):
                for box in locate(config, self._config.host.name).mailboxes:
                    if _within(path, box.path):
                        saved, why = _in_mailbox(box, path)
                        yield ExplainRow(source=f"[[mail]] {config.name}", saved=saved, why=why)

    # -- what lies below, and what to do

    def _below(self, path: bytes) -> Iterator[ExplainRow]:
        """Sources that save something below a directory that is not saved itself."""
        for config in self._config.mail:
            count = sum(_within(box.path, path) for box in locate(config, self._config.host.name).mailboxes)
            if count:
                yield ExplainRow(source=f"[[mail]] {config.name}", saved=True, why=f"saves {count} mailboxes below it")
        for directory in self._config.directories:
            if _within(os.fsencode(directory.path), path):
                yield ExplainRow(source=f"[[directory]] {directory.path}", saved=True, why=f"saves {directory.path}")
        for inventory in self._survey.inventories:
            inside = [row.path for row in inventory.paths if _within(os.fsencode(row.path), path)]
            if inside:
                more = f" and {len(inside) - 1} more" if len(inside) > 1 else ""
                yield ExplainRow(source=f"system {inventory.system}", saved=True, why=f"saves {inside[0]}{more}")

    def _reasons(self, path: str) -> Iterator[ExplainRow]:
        """Why the host, which looks at all of /etc, passes something over."""
        if "host" not in used(self._config):
            return
        why = why_not(path)
        package = package_of(self._ask, path) if why is None else None
        if package is not None:
            why = f"it is as package {package} brought it, and comes back with the package, which the snapshot lists"
        if why is not None:
            yield ExplainRow(source="system host", saved=False, why=why)

    def _advice(self, path: str) -> str:
        """What to add to the configuration, so that a path is saved."""
        place = path if os.path.isdir(path) else os.path.dirname(path)
        if not used(self._config):
            rows = [row for inventory in survey(self._ask).inventories for row in _in_system(inventory, path)]
            if any(row.saved for row in rows):
                return 'Add to the configuration:\n[systems]\nuse = "auto"'
        if _looks_like_mail(path):
            return f"This looks like a mailbox: add a [[mail]] section whose path fits {place}, with {{domain}} and {{user}} where they differ."
        return f'Add to the configuration:\n[[directory]]\npath = "{place}"'


def _within(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def _above(path: bytes, root: bytes) -> Iterator[bytes]:
    """`path` and the directories between it and `root`, relative to `root`, outermost first."""
    parts = os.path.relpath(path, root).split(b"/")
    if parts != [b"."]:
        yield from (b"/".join(parts[: depth + 1]) for depth in range(len(parts)))


def _in_mailbox(box: FoundMailbox, path: bytes) -> tuple[bool, str]:
    """Whether the capture of a mailbox takes a file, and as what."""
    parts = list(_above(path, box.path))
    if not parts:
        return True, f"the mailbox of {box.address}"
    folder, _, name = parts[-1].rpartition(b"/")
    above, _, place = folder.rpartition(b"/")
    if place in (b"cur", b"new") and is_message(name) and not os.path.isdir(path):
        return True, f"a message in {readable_folder(above)} of {box.address}"
    if os.path.isdir(path):
        return True, f"a directory of the mailbox of {box.address}" + ("; its contents are not" if left_out_inside(name) else "")
    why = skipped(name, folder)
    return (False, f"left out of the mailbox of {box.address}: {why}") if why else (True, f"a state file of the mailbox of {box.address}")


def _in_directory(config: DirectoryConfig, path: bytes) -> ExplainRow:
    why = _kept_out(config, path)
    return ExplainRow(source=f"[[directory]] {config.path}", saved=why is None, why=why or "lies below it")


def _kept_out(config: DirectoryConfig, path: bytes) -> str | None:
    root = os.fsencode(config.path)
    device = _device(root)
    for part in _above(path, root):
        whole = os.path.join(root, part)
        for glob in config.exclude:
            if excluded((glob,))(part, os.path.basename(part), False):
                return f"excluded by '{glob}'" + ("" if whole == path else f", which fits {show(whole)}")
        if os.path.islink(os.path.dirname(whole)) and os.path.dirname(whole) != root:
            return f"{show(os.path.dirname(whole))} is a symbolic link; the link is saved, not what it leads to"
        if config.one_file_system and _device(os.path.dirname(whole)) not in (device, None):
            return f"{show(os.path.dirname(whole))} is another file system (one_file_system = false includes it)"
        if os.path.dirname(part) and os.path.basename(part) != _TAG and _is_cache(os.path.dirname(whole)):
            return f"{show(os.path.dirname(whole))} is tagged as a cache (CACHEDIR.TAG)"
    return None


def _device(path: bytes) -> int | None:
    try:
        return os.lstat(path).st_dev
    except OSError:
        return None


def _is_cache(directory: bytes) -> bool:
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return begins_with(_TAG, fd, _SIGNATURE)
    finally:
        os.close(fd)


def _in_system(inventory: Inventory, path: str) -> Iterator[ExplainRow]:
    for row in inventory.paths:
        if not _within(os.fsencode(path), os.fsencode(row.path)):
            continue
        parts = [os.path.join(row.path, os.fsdecode(part)) for part in _above(os.fsencode(path), os.fsencode(row.path))]
        left_out = next((why for part in parts if (why := why_left_out(inventory.paths, part)) is not None), None)
        why = f"left out: {left_out}" if left_out else row.why
        yield ExplainRow(source=f"system {inventory.system}", saved=left_out is None, why=why)


def _looks_like_mail(path: str) -> bool:
    while path != "/":
        if os.path.isdir(f"{path}/cur") and os.path.isdir(f"{path}/new"):
            return True
        path = os.path.dirname(path)
    return False
