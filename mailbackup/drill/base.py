"""The root directory of a scratch machine before anything is restored into it: the little of a system that programs need and no backup holds."""

from __future__ import annotations

import os
import shutil

_USED = (
    "alternatives", "ca-certificates", "ca-certificates.conf", "bash.bashrc", "debian_version", "gai.conf", "host.conf", "ld.so.cache", "ld.so.conf",
    "ld.so.conf.d", "login.defs", "nsswitch.conf", "os-release", "pam.conf", "pam.d", "perl", "profile", "protocols", "python3", "rpc", "security", "services",
    "ssl/certs", "ssl/openssl.cnf", "timezone", "localtime", "mime.types", "shells", "pki/tls", "crypto-policies",
)  # fmt: skip
"""Below /etc: brought by packages, or made by the installation, and the same on every machine of a release."""

_EMPTY = (
    "dev",
    "proc",
    "sys",
    "run",
    "usr",
    "root",
    "home",
    "srv",
    "mnt",
    "opt",
    "var/lib",
    "var/log",
    "var/spool",
    "var/cache",
    "var/mail",
    "var/backups",
)
_FIRST_PERSON = 1000
_NOBODY = 65534


def make_base(root: str, hostname: str) -> None:
    """Fill an empty directory: links into /usr, the shared part of this host's /etc, accounts of its packages, empty directories."""
    for name in os.listdir("/"):
        if os.path.islink(f"/{name}"):  # /bin, /lib … of a merged /usr
            os.symlink(os.readlink(f"/{name}"), f"{root}/{name}")
    for name in _EMPTY:
        os.makedirs(f"{root}/{name}", exist_ok=True)
    for name in ("tmp", "var/tmp"):
        os.makedirs(f"{root}/{name}", exist_ok=True)
        os.chmod(f"{root}/{name}", 0o1777)  # noqa: S103 (as everywhere)
    os.symlink("/run", f"{root}/var/run")
    os.symlink("/run/lock", f"{root}/var/lock")
    os.makedirs(f"{root}/run/lock")
    for name in _USED:
        _copy(f"/etc/{name}", f"{root}/etc/{name}")
    _accounts(root)
    make_alone(root, hostname)


def make_alone(root: str, hostname: str) -> None:
    """What a machine of its own needs besides files: its name, and the table of mounts (programs ask for it, installations make it at boot)."""
    if not os.path.lexists(f"{root}/etc/mtab"):
        os.symlink("/proc/self/mounts", f"{root}/etc/mtab")
    short = hostname.partition(".")[0]
    _write(f"{root}/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {hostname} {short}\n::1 localhost\n")
    _write(f"{root}/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    _write(f"{root}/etc/hostname", f"{hostname}\n")


def _copy(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(source) or os.path.isfile(source):
        shutil.copy2(source, target, follow_symlinks=False)
    elif os.path.isdir(source):
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)


def _accounts(root: str) -> None:
    """Accounts that packages made: their programs in /usr carry these numbers. Persons and their like have to come from the backup."""
    for name, column in (("passwd", 2), ("group", 2)):
        with open(f"/etc/{name}", encoding="utf-8", errors="surrogateescape") as file:
            rows = [line for line in file if line.count(":") >= column]
        kept = [row for row in rows if _of_packages(row.split(":")[column])]
        _write(f"{root}/etc/{name}", "".join(kept))
    names = [row.split(":")[0] for row in _lines(f"{root}/etc/passwd")]
    _write(f"{root}/etc/shadow", "".join(f"{name}:*:20000:0:99999:7:::\n" for name in names))


def _of_packages(number: str) -> bool:
    return number.isdigit() and (int(number) < _FIRST_PERSON or int(number) == _NOBODY)


def _lines(path: str) -> list[str]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read().splitlines()


def _write(path: str, text: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
