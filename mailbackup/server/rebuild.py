"""`restore server`: the steps of a rebuild, shown or carried out below a root directory."""

from __future__ import annotations

import os
import time

from mailbackup.access import Context, use_vault
from mailbackup.errors import NotFound, UsageError
from mailbackup.host import forget_names
from mailbackup.model.drill import ServerResult, StepResult
from mailbackup.model.system import ServerStep
from mailbackup.restore.server import Rebuild, Runner
from mailbackup.restore.snapshot_source import SnapshotSource
from mailbackup.systems.ask import Ask, Said


def restore_server(context: Context, *, target: str | None, at: str = "latest") -> ServerResult:
    """Rebuild the server of a snapshot below `target` (`/` = this machine); None = only say what would be done. Needs an identity, and root.

    Daemons are not started: the steps that would do it are planned, for whoever has looked at the result. Raises NotFound when the snapshot holds no systems.
    """
    began = time.monotonic()
    if target is not None and os.geteuid() != 0:
        raise UsageError("only root can rebuild a server", hint="Run it as root; --plan needs no rights.")
    with use_vault(context) as (reader, _):
        snapshot = reader.snapshot(reader.find(at))
        source = SnapshotSource(reader, snapshot, context.on_event)
        root = "" if target is None else os.path.abspath(target).rstrip("/")
        rebuild = Rebuild(source, root, _runner(root), context.on_event)
        steps = [_planned(step) for step in rebuild.steps()]
        if not steps:
            raise NotFound(
                f"snapshot {snapshot.seq} holds no systems", hint="They are saved when [systems] use is set in the configuration."
            )
        if target is not None:
            _check_root(target)
            done = rebuild.execute()
            forget_names()
            steps = [*done, *(row for row in steps if row.action == "start")]
    failed = any(step.outcome == "failed" for step in steps)
    return ServerResult(
        outcome="planned" if target is None else ("incomplete" if failed else "complete"), seq=snapshot.seq, target=target or "", steps=tuple(steps),
        messages=rebuild.placed.messages, files=rebuild.placed.files, seconds=round(time.monotonic() - began, 3),
        findings=tuple(rebuild.placed.findings),
    )  # fmt: skip


def _check_root(target: str) -> None:
    """A root directory with a system in it: daemons' files need the accounts that packages make."""
    if not os.path.isfile(os.path.join(target, "etc/passwd")):
        raise UsageError(
            f"{target} holds no system (no etc/passwd)",
            hint="Install the release and the mail packages there first (docs/guides/rebuild-server.md), or name / for this machine.",
        )


def _runner(root: str) -> Runner:
    ask = Ask()

    def run(argv: tuple[str, ...], timeout: float) -> Said:
        return ask.run(*(("chroot", root, *argv) if root else argv), timeout=timeout)

    return run


def _planned(step: ServerStep) -> StepResult:
    detail = (
        " ".join(step.argv)
        if step.argv
        else ", ".join(step.paths[:4]) + (f" and {len(step.paths) - 4} more" if len(step.paths) > 4 else "")
    )
    needs = f" (needs {', '.join(step.needs)})" if step.needs else ""
    return StepResult(system=step.system, name=step.name, action=step.action, outcome="planned", detail=detail + needs)
