"""Root file systems for full drills: a fresh installation of the snapshot's release with its mail programs, made by mmdebstrap and kept for the next drill."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess

from mailbackup.errors import DrillImpossible, NotFound
from mailbackup.host import run_lock
from mailbackup.restore.server import Source

_OF = {"postfix": ("postfix",), "dovecot": ("dovecot-",), "opendkim": ("opendkim",)}
_ALWAYS = ("openssl", "ca-certificates")
_TIME = 1800  # seconds that an installation may take


def packages_of(source: Source) -> list[str]:
    """Installed packages of the systems in a snapshot. Raises DrillImpossible when they are not known."""
    try:
        rows = [line.split("\t") for line in source.dump("host/packages.tsv").decode().splitlines()]
    except NotFound:
        raise DrillImpossible(
            "the snapshot does not hold a list of packages", hint="Full drills need a Debian host with [systems] use set."
        ) from None
    prefixes = tuple(prefix for inventory in source.inventories for prefix in _OF.get(inventory.system, ()))
    installed = {row[0] for row in rows if len(row) > 3 and row[3].endswith(" installed")}
    return sorted(
        {name for name in installed if name.startswith(prefixes) and not name.endswith(("-dbg", "-dev", "-doc"))}
        | (installed & set(_ALWAYS))
    )


def release_of(source: Source) -> str:
    """Code name of the release. Raises DrillImpossible."""
    host = next((inventory for inventory in source.inventories if inventory.system == "host"), None)
    release = host.facts.get("release", ()) if host is not None else ()
    if len(release) < 3 or release[0] != "debian" or not release[2]:
        raise DrillImpossible(f"full drills are for Debian; the snapshot is of {' '.join(release) or 'an unknown system'}")
    return release[2]


def unpack(source: Source, cache: str, root: str) -> None:
    """Fill `root` with the installation, made once and kept in `cache`. Raises DrillImpossible."""
    release, packages = release_of(source), packages_of(source)
    name = hashlib.sha256("\n".join([release, *packages]).encode()).hexdigest()[:16]
    archive = os.path.join(cache, f"rootfs-{release}-{name}.tar")
    os.makedirs(cache, mode=0o700, exist_ok=True)
    if not os.path.exists(archive):
        with run_lock(f"{archive}.lock"):
            _install(release, packages, archive)
    done = subprocess.run(("tar", "-C", root, "--numeric-owner", "-xpf", archive), capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise DrillImpossible(f"cannot unpack {archive}: {done.stderr.strip().splitlines()[-1]}")


def _install(release: str, packages: list[str], archive: str) -> None:
    if shutil.which("mmdebstrap") is None:
        raise DrillImpossible("mmdebstrap is not installed", hint="apt install mmdebstrap")
    half = f"{archive}.part.tar"
    argv = ("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(packages)}", release, half)
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIME, check=False)
    except subprocess.TimeoutExpired:
        raise DrillImpossible(f"the installation of {release} took longer than {_TIME} s") from None
    if done.returncode != 0:
        raise DrillImpossible(
            f"cannot install {release}: {(done.stderr.strip().splitlines() or ['?'])[-1]}", hint="It needs the package archive of Debian."
        )
    os.replace(half, archive)
