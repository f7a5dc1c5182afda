"""Podman: a scratch machine on a root file system of its own, so that nothing of this host is in it."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess

from mailbackup.drill.scratch import Scratch
from mailbackup.errors import DrillImpossible

PREFIX = "mailbackup-drill-"


class Podman:
    """Podman as root; containers are named by the directory of their root, so that what a killed run left is recognised."""

    name = "podman"

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise DrillImpossible("only root can make a scratch machine")
        for program in ("podman", "nsenter", "setpriv"):
            if shutil.which(program) is None:
                raise DrillImpossible(f"{program} is not installed", hint="apt install podman runc util-linux")

    def start(self, root: str, hostname: str) -> Scratch:
        """Start a machine on `root`, whose parent directory gives it its name."""
        name = os.path.basename(os.path.dirname(root))
        self.remove_abandoned(os.path.dirname(os.path.dirname(root)))
        said = subprocess.run(
            (*_podman(), "run", "--detach", "--name", name, "--network", "none", "--hostname", hostname, "--no-hosts", *_limits(), "--rootfs", root,
             "sleep", "infinity"), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        remove = (*_podman(), "rm", "--force", "--time", "0", "--volumes", name)
        if said.returncode != 0:
            subprocess.run(remove, capture_output=True, timeout=60, check=False)
            raise DrillImpossible(f"podman cannot start a container: {(said.stderr.strip().splitlines() or ['?'])[-1]}")
        pid = subprocess.run(
            (*_podman(), "inspect", "--format", "{{.State.Pid}}", name), capture_output=True, text=True, timeout=60, check=True
        )
        return Scratch(root, int(pid.stdout), remove=remove)

    @staticmethod
    def remove_abandoned(parent: str) -> None:
        """Containers whose directory is gone, or was left by a run that was killed."""
        said = subprocess.run(
            (*_podman(), "ps", "--all", "--format", "{{.Names}}"), capture_output=True, text=True, timeout=60, check=False
        )
        for name in said.stdout.split():
            if name.startswith(PREFIX) and not os.path.isdir(os.path.join(parent, name)):
                subprocess.run(
                    (*_podman(), "rm", "--force", "--time", "0", "--volumes", name), capture_output=True, timeout=60, check=False
                )


def _podman() -> tuple[str, ...]:
    """Its default runtime where that is installed, else runc."""
    return ("podman",) if shutil.which("crun") else ("podman", "--runtime", "runc")


def _limits() -> tuple[str, ...]:
    """Limits that this process may hand on; podman's own wishes may be higher than what is allowed here."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    processes = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    files = min(files, 1 << 20) if files > 0 else 1 << 20
    processes = min(processes, 4096) if processes > 0 else 4096
    return ("--ulimit", f"nofile={files}:{files}", "--ulimit", f"nproc={processes}:{processes}")
