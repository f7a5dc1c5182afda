"""A Debian root file system with the programs of a mail server, as its packages leave it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.reference.cache import cached

RELEASE = "bookworm"
PACKAGES = (
    "postfix", "dovecot-imapd", "dovecot-lmtpd", "dovecot-sieve", "opendkim", "opendkim-tools", "openssl", "ca-certificates", "cron", "python3",
    "openssh-server", "acl", "attr", "bubblewrap", "util-linux", "procps", "iproute2",
)  # fmt: skip

KEY = hashlib.sha256("\n".join((RELEASE, *PACKAGES)).encode()).hexdigest()[:16]


def rootfs() -> Path:
    """The unpacked tree, made with mmdebstrap when the cache does not have it. Skips without mmdebstrap (fails in CI)."""
    return cached(f"rootfs-{KEY}", _build) / "root"


def _build(partial: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        reason = "no mmdebstrap: the reference mail server cannot be built"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}", RELEASE, str(partial / "root")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=900)
    if done.returncode:
        pytest.fail(f"mmdebstrap: {done.stderr.decode(errors='replace')[-2000:]}")


def copy(source: Path, target: Path) -> None:
    """Make `target` a copy of the tree `source` with owners, links, times and attributes, but with an empty /usr: that is shared, see `namespace`."""
    target.mkdir()
    parts = [str(source / name) for name in sorted(os.listdir(source)) if name != "usr"]
    subprocess.run(["cp", "-a", "--reflink=auto", "-t", str(target), "--", *parts], check=True, timeout=300)
    shutil.copystat(source, target)
    (target / "usr").mkdir()
