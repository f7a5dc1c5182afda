"""Carrying out a restore plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from mailbackup.errors import DamageError, NoSpace, SafetyRefusal, StoreError, WouldOverwrite, WrongIdentity
from mailbackup.model.events import OnEvent, Phase, Progress
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import Name, from_name, show
from mailbackup.model.tree import BlobRef
from mailbackup.restore.plan import Names, RestorePlan, Step
from mailbackup.restore.target import AttributeKept, Existing, Target
from mailbackup.restore.writers import Writers
from mailbackup.vault.blocks import BlockStream
from mailbackup.vault.reader import VaultReader

_THREADS = 3  # that write files
_IN_MEMORY = 16 << 20  # bytes; a larger file is written blob by blob


SpecialNames = tuple[bytes, str, Name | None, tuple[int, int] | None]
"""What the names of a link, FIFO or device have in common: the place of the first one below the target, kind, target and device."""


@dataclass(slots=True)
class Done:
    """What was put in place."""

    messages: int = 0
    files: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)


class Executor:
    """Executes one plan on one target. Stops at errors of the target; damage in the vault costs the file concerned and becomes a finding."""

    def __init__(self, reader: VaultReader, plan: RestorePlan, target: Target, *, overwrite: bool, on_event: OnEvent) -> None:
        self._reader = reader
        self._plan = plan
        self._target = target
        self._overwrite = overwrite
        self._on_event = on_event
        self._writers = Writers(self._written, _THREADS)
        self._links: dict[Names | SpecialNames, bytes] = {}  # hard-linked files that are in place → where
        self._owners_kept = 0
        self.done = Done(findings=list(plan.findings))

    def run(self) -> Done:
        """Directories, files in the order in which their bodies lie in the vault, links, then the directories' attributes."""
        self._refuse_overwriting()
        self._target.prepare()
        try:
            self._run()
        finally:
            self._target.close()
        return self.done

    def _refuse_overwriting(self) -> None:
        if self._plan.in_the_way:
            first = self._plan.in_the_way[0]
            raise WouldOverwrite(f"{len(self._plan.in_the_way)} files exist in the target with other content, first {show(first.path)}")

    def _run(self) -> None:
        plan = self._plan
        made = [step for step in plan.directories if self._guarded(step, lambda step=step: self._target.make_directory(step.path))]  # type: ignore[misc]
        for step in plan.kept:
            self._remember_name(step)
        plan.files.sort(key=lambda step: (step.refs[-1][:3] if step.refs else ("", 0, 0), step.path))
        total = len(plan.files)
        self._on_event(Phase("restoring", total, "files"))
        stream = self._reader.stream(ref for step in plan.files for ref in step.refs)
        try:
            for count, step in enumerate(plan.files, 1):
                self._file(step, stream)
                if count % 64 == 0:
                    self._on_event(Progress(count, self.done.bytes))
            self._writers.drain()
        finally:
            self._writers.close()
            stream.close()
        for step in plan.others:
            self.done.files += self._guarded(step, lambda step=step: self._special(step))  # type: ignore[misc]
        for step in sorted(made, key=lambda step: step.path.count(b"/") + bool(step.path), reverse=True):
            self._guarded(step, lambda step=step: self._target.finish_directory(step.path, step.entry, step.owner))  # type: ignore[misc]
        if self._owners_kept:
            detail = f"{self._owners_kept} files and directories belong to the user who restored them; only root can set owners"
            self.done.findings.append(Finding(FindingKind.OWNER_KEPT, "owners", detail))

    def _file(self, step: Step, stream: BlockStream) -> None:
        """Put a file in place, or have it put: only files with several names, and very large ones, are waited for."""
        try:
            first = None if step.names is None else self._links.get(step.names)
            if first is not None:
                self._written(step, lambda: self._target.link(step.path, first, replace=self._overwrite))
            elif step.names is None and step.entry.size <= _IN_MEMORY:
                self._submit(step, [stream.blob(ref) for ref in step.refs])
            else:
                self._written(step, lambda: self._write(step, _checked(stream, step.refs)))
        except (DamageError, WrongIdentity, StoreError, SafetyRefusal) as error:
            self._raise_if_general(error)
            self._not_restored(step, error)

    def _written(self, step: Step, outcome: Callable[[], None]) -> None:
        """Count a file if it is in place."""
        if self._guarded(step, outcome):
            self.done.messages += step.is_message
            self.done.files += not step.is_message
            self.done.bytes += step.entry.size

    def _submit(self, step: Step, parts: list[bytes]) -> None:
        place = self._target.place(step.path, _through(step))
        write = partial(self._target.write_file, place, parts, step.entry, step.owner, replace=self._overwrite)
        self._writers.submit(step, place, write)

    def _write(self, step: Step, parts: Iterator[bytes]) -> None:
        place = self._target.place(step.path, _through(step))
        try:
            self._target.write_file(place, parts, step.entry, step.owner, replace=self._overwrite)
        except AttributeKept:
            self._remember_name(step)
            raise
        finally:
            place.release()
        self._remember_name(step)

    def _remember_name(self, step: Step) -> None:
        """Further names of a hard-linked file become names of what lies there now."""
        names = step.names or _special_names(step)
        if names is not None:
            self._links.setdefault(names, step.path)

    def _special(self, step: Step) -> None:
        """A link, FIFO or device, or a further name of one that is in place: of a link, it is the link that gets the name, never what it points to."""
        names = _special_names(step)
        first = None if names is None else self._links.get(names)
        if first is not None and self._linked(step, first):
            return
        try:
            self._target.special(step.path, step.entry, step.owner, replace=self._overwrite)
        finally:
            if names is not None and self._target.look(step.path, step.entry) is Existing.WHOLE:
                self._remember_name(step)

    def _linked(self, step: Step, first: bytes) -> bool:
        """Give what is in place a further name. False where the file system has no such names: then it comes back as two."""
        try:
            self._target.link(step.path, first, replace=self._overwrite)
        except StoreError as error:
            self._raise_if_general(error)
            return False
        return True

    def _guarded(self, step: Step, action: Callable[[], None]) -> bool:
        """Run a step of the target, and return whether what it concerns is in place now. What concerns only this entry becomes a finding."""
        try:
            action()
        except AttributeKept as kept:
            if str(kept) == "owner":
                self._owners_kept += 1
            else:
                self.done.findings.append(Finding(FindingKind.ATTRIBUTE_KEPT, show(step.path), str(kept)))
        except (SafetyRefusal, DamageError, StoreError, WrongIdentity) as error:
            self._raise_if_general(error)
            self._not_restored(step, error)
            return False
        return True

    @staticmethod
    def _raise_if_general(error: Exception) -> None:
        """A full disk, or a store that does not answer, concerns everything that follows."""
        if isinstance(error, NoSpace) or (isinstance(error, StoreError) and error.retryable):
            raise error

    def _not_restored(self, step: Step, error: Exception) -> None:
        self.done.findings.append(Finding(FindingKind.NOT_RESTORED, show(step.path), str(error)))


def _special_names(step: Step) -> SpecialNames | None:
    """What a link, FIFO or device shares with its other names; None when it has none, and for what has content."""
    entry = step.entry
    if entry.hard is None or entry.type not in ("l", "p", "c", "b"):
        return None
    root = step.path.removesuffix(from_name(entry.name))
    return root + from_name(entry.hard), entry.type, entry.target, entry.device


def _through(step: Step) -> bytes | None:
    """A message goes through the tmp of its folder, as every delivery does."""
    if not step.is_message:
        return None
    folder = step.path.rsplit(b"/", 2)[:-2]
    return (folder[0] + b"/" if folder else b"") + b"tmp"


def _checked(stream: BlockStream, refs: tuple[BlobRef, ...]) -> Iterator[bytes]:
    """The content of a large file, blob by blob; it is renamed into place only when the last one was checked."""
    for ref in refs:
        yield stream.blob(ref)
