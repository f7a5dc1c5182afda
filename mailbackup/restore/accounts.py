"""Users and groups of a root file system that is being rebuilt.

The packages of the new machine have made their users with numbers of their own: those stay, and files come back by name. Everybody else gets the old
number, since user databases and file systems hold numbers (a `vmail` of 5000 is written into userdbs). What belongs to a person or to root (password,
shell, home) comes from the backup.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from mailbackup.host import atomic_write

_FIRST_PERSON = 1000
_NOBODY = 65534
_MODES = {"passwd": 0o644, "group": 0o644, "shadow": 0o640, "gshadow": 0o640}

Rows = dict[str, list[str]]
"""Name → its fields, in the order of the file."""


@dataclass(slots=True)
class RootAccounts:
    """Accounts of the system below `root`, read from its files."""

    root: str
    users: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, root: str) -> RootAccounts:
        """Those that are there now; none where the files are missing."""
        found = cls(root)
        found.users = {name: int(row[2]) for name, row in rows_of(_read(root, "passwd")).items()}
        found.groups = {name: int(row[2]) for name, row in rows_of(_read(root, "group")).items()}
        return found

    def user_id(self, name: str, /) -> int | None:
        """Number of a user there."""
        return self.users.get(name)

    def group_id(self, name: str, /) -> int | None:
        """Number of a group there."""
        return self.groups.get(name)


def rows_of(text: str) -> Rows:
    """The rows of passwd, group, shadow or gshadow; lines that are none are passed over."""
    rows = (line.split(":") for line in text.splitlines())
    return {row[0]: row for row in rows if row[0] and (len(row) in (4, 7, 9)) and not row[0].startswith(("+", "-", "#"))}


def _read(root: str, name: str) -> str:
    try:
        with open(f"{root}/etc/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def merge(root: str, saved: dict[str, str]) -> list[str]:
    """Bring the saved accounts into the files below `root/etc`. `saved`: passwd, group, shadow, gshadow → text. Returns what could not stay as it was."""
    notes: list[str] = []
    have = {name: rows_of(_read(root, name)) for name in _MODES}
    want = {name: rows_of(saved.get(name, "")) for name in _MODES}
    names = _merge_groups(have["group"], want["group"], notes)
    _merge_users(have["passwd"], want["passwd"], names, have["group"], notes)
    for secret, public in (("shadow", "passwd"), ("gshadow", "group")):
        _merge_secrets(have[secret], want[secret], have[public])
    _write(root, have)
    return notes


def _merge_groups(have: Rows, want: Rows, notes: list[str]) -> dict[int, str]:
    """Groups that are missing come with their old number; members are added. Returns the saved number → name."""
    for name, row in want.items():
        if name not in have:
            have[name] = [name, row[1], str(_free(int(row[2]), have, f"group {name}", notes)), ""]
        members = [member for member in have[name][3].split(",") if member]
        members += [member for member in row[3].split(",") if member and member not in members]
        have[name][3] = ",".join(members)
    return {int(row[2]): name for name, row in want.items()}


def _merge_users(have: Rows, want: Rows, names: dict[int, str], groups: Rows, notes: list[str]) -> None:
    for name, row in want.items():
        group = names.get(int(row[3]), "")
        gid = groups[group][2] if group in groups else row[3]
        if name not in have:
            have[name] = [name, row[1], str(_free(int(row[2]), have, f"user {name}", notes)), gid, *row[4:]]
        elif _is_person(name, int(row[2])):
            have[name] = [*have[name][:4], *row[4:]]


def _is_person(name: str, uid: int) -> bool:
    return name == "root" or _FIRST_PERSON <= uid < _NOBODY


def _free(number: int, have: Rows, what: str, notes: list[str]) -> int:
    """The old number, or another one where somebody else has it."""
    used = {int(row[2]) for row in have.values()}
    if number not in used:
        return number
    other = next(candidate for candidate in range(max(number, 100), 1 << 31) if candidate not in used)
    notes.append(f"{what} had the number {number}, which is taken: it is {other} now")
    return other


def _merge_secrets(have: Rows, want: Rows, public: Rows) -> None:
    for name, row in want.items():
        if name in public and (name not in have or _is_person(name, int(public[name][2]))):
            have[name] = row


def _write(root: str, have: dict[str, Rows]) -> None:
    os.makedirs(f"{root}/etc", exist_ok=True)
    shadow = int(have["group"]["shadow"][2]) if "shadow" in have["group"] else 0
    for name, mode in _MODES.items():
        if have[name]:
            path = f"{root}/etc/{name}"
            text = "".join(":".join(row) + "\n" for row in have[name].values())
            atomic_write(path, text.encode("utf-8", "surrogateescape"), mode=mode)
            os.chown(path, 0, shadow if mode == 0o640 else 0)
