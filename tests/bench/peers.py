"""The tools that are compared, all with the same verbs, and how the peers get onto this machine.

    python -m tests.bench.peers        finds or installs them and says which versions

borg 1.4 comes from PyPI into a virtual environment of its own below the bench directory (Debian 12 has 1.2), restic from apt.
Every tool encrypts, as ours does; the keys of a benchmark protect nothing and stand here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.bench.measure import Command, size

BORG_NEEDS = "libacl1-dev libssl-dev liblz4-dev libzstd-dev libxxhash-dev pkg-config build-essential python3-dev"
PASSPHRASE = "benchmark"


class UnavailableError(Exception):
    """A tool is missing and cannot be installed from here; the text says what to do."""


class Tool(Protocol):
    """One backup program. `fresh` and `size` are not measured; the other verbs return the command to be measured."""

    name: str

    def version(self) -> str: ...
    def version_command(self) -> Command: ...
    def fresh(self, store: Path) -> None: ...
    def first(self) -> Command: ...
    def nightly(self) -> Command: ...
    def restore_one(self, maildir: str, to: Path) -> Command: ...
    def restore_all(self, to: Path) -> Command: ...
    def verify(self) -> Command: ...
    def verify_deep(self) -> Command | None: ...
    def repository(self) -> Path: ...


@dataclass
class Borg:
    """borg 1.4, `-C zstd,3`, repokey-blake2."""

    program: str
    home: Path
    name: str = "borg"
    store: Path = Path()
    archives: int = 0

    @property
    def env(self) -> dict[str, str]:
        return {
            "BORG_BASE_DIR": str(self.home / "base"),
            "BORG_REPO": str(self.repository()),
            "BORG_PASSPHRASE": PASSPHRASE,
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }

    def version(self) -> str:
        return said(self.version_command())

    def version_command(self) -> Command:
        return Command([self.program, "--version"])

    def repository(self) -> Path:
        return self.home / "repo"

    def fresh(self, store: Path) -> None:
        remake(self.home)
        self.store, self.archives = store, 0
        prepare(self._command("init", "--encryption", "repokey-blake2"))

    def first(self) -> Command:
        self.archives += 1
        return self._command("create", "-C", "zstd,3", f"::{self.archives}", str(self.store))

    nightly = first

    def restore_one(self, maildir: str, to: Path) -> Command:
        return self._command("extract", f"::{self.archives}", f"{self.store}/{maildir}".lstrip("/"), cwd=to)

    def restore_all(self, to: Path) -> Command:
        return self._command("extract", f"::{self.archives}", cwd=to)

    def verify(self) -> Command:
        return self._command("check", "--repository-only")

    def verify_deep(self) -> Command | None:
        return self._command("check", "--verify-data")

    def _command(self, *words: str, cwd: Path | None = None) -> Command:
        return Command([self.program, *words], self.env, str(cwd) if cwd else None, good=(0, 1))


@dataclass
class Restic:
    """restic with a version 2 repository, `--compression auto` (zstd)."""

    program: str
    home: Path
    name: str = "restic"
    store: Path = Path()

    @property
    def env(self) -> dict[str, str]:
        return {
            "RESTIC_REPOSITORY": str(self.repository()),
            "RESTIC_PASSWORD_FILE": str(self.home / "password"),
            "RESTIC_CACHE_DIR": str(self.home / "cache"),
        }

    def version(self) -> str:
        return " ".join(said(Command([self.program, "version"])).split()[:2])

    def version_command(self) -> Command:
        return Command([self.program, "version"])

    def repository(self) -> Path:
        return self.home / "repo"

    def fresh(self, store: Path) -> None:
        remake(self.home)
        self.store = store
        (self.home / "password").write_text(PASSPHRASE)
        prepare(self._command("init", "--repository-version", "2"))

    def first(self) -> Command:
        return self._command("backup", "--quiet", "--compression", "auto", str(self.store))

    nightly = first

    def restore_one(self, maildir: str, to: Path) -> Command:
        return self._command("restore", "latest", "--quiet", "--include", f"{self.store}/{maildir}", "--target", str(to))

    def restore_all(self, to: Path) -> Command:
        return self._command("restore", "latest", "--quiet", "--target", str(to))

    def verify(self) -> Command:
        return self._command("check", "--quiet")

    def verify_deep(self) -> Command | None:
        return self._command("check", "--quiet", "--read-data")

    def _command(self, *words: str) -> Command:
        return Command([self.program, *words], self.env)


@dataclass
class Mailbackup:
    """This project, as an administrator runs it."""

    argv: list[str]
    home: Path
    name: str = "mailbackup"

    def version(self) -> str:
        return said(self.version_command())

    def version_command(self) -> Command:
        return Command([*self.argv, "--version"])

    def repository(self) -> Path:
        return self.home / "vault"

    def fresh(self, store: Path) -> None:
        remake(self.home)
        pattern, kit = f"{store}/{{domain}}/{{user}}/Maildir", str(self.home / "kit.txt")
        url = f"file://{self.repository()}"
        prepare(self._command("init", "--yes", "--mail", pattern, "--store", url, "--kit-out", kit, "--no-passphrase"))

    def first(self) -> Command:
        return self._command("backup", "--json")

    nightly = first

    def restore_one(self, maildir: str, to: Path) -> Command:
        domain, user, _ = maildir.split("/")
        return self._restore(f"{user}@{domain}", to)

    def restore_all(self, to: Path) -> Command:
        return self._restore("--all", to)

    def verify(self) -> Command:
        return self._command("verify", "--json")

    def verify_deep(self) -> Command | None:
        return self._command("verify", "--decrypt", "--identity", str(self.home / "kit.txt"), "--json")

    def _restore(self, what: str, to: Path) -> Command:
        return self._command("restore", "mailbox", what, "--identity", str(self.home / "kit.txt"), "--to", str(to), "--json")

    def _command(self, *words: str) -> Command:
        places = ["--config", str(self.home / "mailbackup.toml"), "--state", str(self.home / "state")]
        return Command([*self.argv, *places, *words])


def remake(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)


def said(command: Command) -> str:
    done = subprocess.run(command.argv, env={**os.environ, **command.env}, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().rpartition("\n")[2]


def prepare(command: Command) -> None:
    done = subprocess.run(
        command.argv, env={**os.environ, **command.env}, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode not in command.good:
        raise UnavailableError(f"init: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}")


# --- getting them --------------------------------------------------------------------------------------------------------------


def apt(packages: str) -> None:
    line = f"apt-get install -y --no-install-recommends {packages}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise UnavailableError(f"missing packages; as root run:\n  {line}")
    print(f"installing: {packages}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(line.split(), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"{line}\n  failed (try apt-get update first): {done.stderr.strip()[-300:]}")


def missing_for_borg() -> bool:
    headers = ("sys/acl.h", "openssl/evp.h", "lz4.h", "zstd.h", "xxhash.h")
    present = all(any(Path(base, name).is_file() for base in ("/usr/include", *multiarch())) for name in headers)
    python = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return not (present and python and shutil.which("pkg-config") and shutil.which("cc"))


def multiarch() -> list[str]:
    found = sysconfig.get_config_var("MULTIARCH")
    return [f"/usr/include/{found}"] if found else []


def borg(bench: Path) -> str:
    program = bench / "borg-venv/bin/borg"
    if not program.exists():
        if missing_for_borg():
            apt(BORG_NEEDS)
        venv.create(program.parent.parent, with_pip=True, clear=True)
        pip = [str(program.parent / "pip"), "install", "--quiet", "borgbackup>=1.4,<1.5"]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnavailableError(f"{' '.join(pip)}\n  failed: {done.stderr.strip()[-500:]}\n  it needs: apt-get install {BORG_NEEDS}")
    return str(program)


def from_apt(program: str, package: str) -> str:
    if not shutil.which(program):
        apt(package)
    return shutil.which(program) or program


def ours() -> list[str]:
    beside = Path(sys.executable).parent / "mailbackup"
    return [str(beside)] if beside.exists() else [sys.executable, "-m", "mailbackup"]


def tool(name: str, bench: Path) -> Tool:
    """The adapter of a name of `--tools`; raises UnavailableError."""
    home = bench / "work" / name
    if name == "borg":
        return Borg(borg(bench), home)
    if name == "restic":
        return Restic(from_apt("restic", "restic"), home)
    if name == "mailbackup":
        return Mailbackup(ours(), home)
    raise UnavailableError(f"no such tool: {name} (borg, restic, mailbackup, floor)")


def floor(bench: Path, store: Path, to: Path) -> Command | None:
    """`tar | zstd | age`: reading, compressing and sealing, with nothing remembered and nothing shared. None without age and zstd."""
    if not all(map(shutil.which, ("tar", "zstd", "age", "age-keygen"))):
        return None
    key = bench / "floor.key"
    if not key.exists():
        subprocess.run(["age-keygen", "-o", str(key)], check=True, capture_output=True)
    recipient = subprocess.run(["age-keygen", "-y", str(key)], check=True, capture_output=True, text=True).stdout.strip()
    script = 'tar -C "$1" -cf - . | zstd -q -T2 -3 | age -r "$2" -o "$3"'
    return Command(["bash", "-o", "pipefail", "-c", script, "floor", str(store), recipient, str(to)])


def sha256(root: Path) -> Command:
    """Plain SHA-256 of every file below root, one after another: the measure for verify."""
    script = (
        "import hashlib, os, sys\n"
        "for where, _, names in os.walk(sys.argv[1]):\n"
        "    for name in names:\n"
        "        with open(os.path.join(where, name), 'rb', buffering=0) as handle:\n"
        "            hashlib.file_digest(handle, 'sha256')\n"
    )
    return Command([sys.executable, "-c", script, str(root)])


def repository_size(found: Tool) -> int:
    return size(found.repository())


def main() -> None:
    from tests.bench.run import bench_dir

    for name in ("borg", "restic", "mailbackup"):
        try:
            print(f"{name}: {tool(name, bench_dir()).version()}")
        except UnavailableError as error:
            print(f"{name}: {error}")


if __name__ == "__main__":
    main()
