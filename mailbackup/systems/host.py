"""The host around the mail programs: release, packages, accounts, and what an administrator changed in /etc.

Package files that are as the package brought them come back with the package; they are listed and not saved. What belongs to one machine (its disks, its
network cards) would break another one and is left out.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Iterator

from mailbackup.model.finding import Finding
from mailbackup.model.system import RANK_ACCOUNTS, RANK_FILES, Chosen, Dump, Inventory, Probe, ServerStep
from mailbackup.systems.ask import Ask, CannotAsk

ACCOUNT_FILES = ("/etc/passwd", "/etc/group", "/etc/shadow", "/etc/gshadow")
_ALSO = ("/var/spool/cron/crontabs", "/usr/local/etc", "/usr/local/sbin", "/usr/local/bin")
_OF_THIS_MACHINE = (
    "/etc/fstab", "/etc/crypttab", "/etc/mtab", "/etc/machine-id", "/etc/resolv.conf", "/etc/network/*", "/etc/netplan/*", "/etc/udev/*", "/etc/mdadm/*",
    "/etc/lvm/*", "/etc/initramfs-tools/*", "/etc/grub.d/*", "/etc/default/grub*", "/etc/modprobe.d/*", "/etc/NetworkManager/*", "/etc/systemd/network/*",
    "/etc/adjtime", "/etc/hostid", "/etc/kernel/*", "/etc/cloud/*",
)  # fmt: skip
_DERIVED = (
    "/etc/ld.so.cache", "/etc/alternatives/*", "/etc/rc?.d/*", "/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/certs/java/*", "/etc/.pwd.lock",
    "/etc/passwd-", "/etc/group-",
    "/etc/shadow-", "/etc/gshadow-", "/etc/subuid-", "/etc/subgid-", "/etc/*.dpkg-*", "/etc/*.ucf-*", "/etc/*~", "/etc/*.swp",
    "/etc/systemd/system/*.wants/*", "/etc/aliases.db", "/etc/os-release",
    "/etc/debconf.conf", "/etc/shells", "/etc/xattr.conf", "/etc/timezone",
)  # fmt: skip
_CONFFILE = re.compile(r"^ (/etc/\S.*) ([0-9a-f]{32})( obsolete)?$", re.MULTILINE)


class Host:
    """A Debian host; on others all of /etc counts as changed."""

    name = "host"

    def find(self, ask: Ask) -> Inventory | None:
        """Every host is one."""
        release = _release(ask)
        chosen = [*ACCOUNT_FILES, *_changed(ask), *(path for path in _ALSO if ask.names(path))]
        dumps: tuple[Dump, ...] = ()
        if ask.has("dpkg-query"):
            dumps = (
                Dump(
                    "host/packages.tsv",
                    "package, version, architecture",
                    ("dpkg-query", "-W", "-f=${Package}\t${Version}\t${Architecture}\t${Status}\n"),
                ),
                Dump("host/manual.txt", "packages that somebody asked for", ("apt-mark", "showmanual")),
            )
        return Inventory(
            system=self.name,
            version=" ".join(filter(None, (release.get("ID", "linux"), release.get("VERSION_ID", "")))),
            paths=tuple(Chosen(path, "accounts" if path in ACCOUNT_FILES else "changed, or not from a package") for path in chosen if ask.exists(path)),
            dumps=dumps,
            facts={
                "release": (release.get("ID", "linux"), release.get("VERSION_ID", ""), release.get("VERSION_CODENAME", "")),
                "hostname": (os.uname().nodename,),
                "machine": (os.uname().machine,),
            },
        )  # fmt: skip

    def dump(self, ask: Ask, dump: Dump) -> Iterator[bytes]:
        """All of its dumps are answers of programs."""
        raise CannotAsk(f"the host has no dump {dump.name}")

    def steps(self, inventory: Inventory) -> tuple[ServerStep, ...]:
        """Accounts first: whose files follow is told by their names."""
        files = tuple(row.path for row in inventory.paths if row.path not in ACCOUNT_FILES)
        return (
            ServerStep(system=self.name, name="users and groups", action="accounts", rank=RANK_ACCOUNTS, paths=ACCOUNT_FILES),
            ServerStep(system=self.name, name="changed files of /etc", action="files", rank=RANK_FILES - 10, paths=files),
        )

    def probes(self, inventory: Inventory) -> tuple[Probe, ...]:
        """Accounts with their numbers."""
        return (Probe(name="host.accounts", system=self.name, kind="accounts", tier="boot", settings={"paths": ACCOUNT_FILES[:2]}),)

    def examine(self, ask: Ask, inventory: Inventory) -> list[Finding]:
        """Nothing to say."""
        return []


def _release(ask: Ask) -> dict[str, str]:
    try:
        text = ask.read("/etc/os-release")
    except CannotAsk:
        return {}
    return {name: value.strip().strip('"') for name, _, value in (line.partition("=") for line in text.splitlines()) if value}


def _changed(ask: Ask) -> list[str]:
    """Files of /etc that differ from what their package brought, or that no package brought."""
    brought, listed = _brought(ask), _listed(ask)
    found = []
    for path in _files("/etc"):
        if path in ACCOUNT_FILES or why_not(path) is not None:
            continue
        if path in brought:
            if _md5(path) != brought[path]:
                found.append(path)
        elif path not in listed:
            found.append(path)
    return found


def why_not(path: str) -> str | None:
    """Why a path of /etc is left out whatever is in it; None when it is not."""
    if any(fnmatch.fnmatchcase(path, glob) for glob in _OF_THIS_MACHINE):
        return "it belongs to this machine (its disks, network or identity) and would break another one"
    if any(fnmatch.fnmatchcase(path, glob) for glob in _DERIVED):
        return "it is made anew by the system"
    if path.startswith("/etc/ssl/certs/") and os.path.islink(path):  # a file there is somebody's own
        return "it is made anew by update-ca-certificates"
    return None


def package_of(ask: Ask, path: str) -> str | None:
    """The package that brought a file; None when none did, or nobody can tell."""
    if not ask.has("dpkg-query"):
        return None
    try:
        said = ask.run("dpkg-query", "-S", path)
    except CannotAsk:
        return None
    return said.out.partition(": ")[0].split(",")[0] if said.status == 0 and ": " in said.out else None


def _brought(ask: Ask) -> dict[str, str]:
    """Configuration files of packages → MD5 as the package brought them."""
    if not ask.has("dpkg-query"):
        return {}
    said = ask.said("dpkg-query", "-W", "-f=${Conffiles}\n")
    return {path: md5 for path, md5, _ in _CONFFILE.findall(said.out)}


def _listed(ask: Ask) -> set[str]:
    """Paths below /etc that packages list."""
    place = "/var/lib/dpkg/info"
    paths: set[str] = set()
    for name in ask.names(place):
        if name.endswith(".list"):
            paths.update(line for line in ask.read(f"{place}/{name}").splitlines() if line.startswith("/etc/"))
    return paths


def _files(root: str) -> Iterator[str]:
    """Files and links below a directory, in order."""
    for place, directories, names in os.walk(root):
        directories.sort()
        for name in sorted([*names, *(d for d in directories if os.path.islink(os.path.join(place, d)))]):
            yield os.path.join(place, name)


def _md5(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.md5(file.read(), usedforsecurity=False).hexdigest()
    except OSError:
        return ""
