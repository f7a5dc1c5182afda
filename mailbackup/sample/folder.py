"""A Maildir folder as Dovecot keeps it. Only for made-up stores: nothing here is locked."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

KEYWORDS = ("$Forwarded", "Invoice")
"""Keywords in the order of their letters a, b, …"""

_MODE = 0o700


@dataclass
class SampleFolder:
    """One folder. `rows` are (UID, base name) of the messages in cur, in the order of their UIDs."""

    path: str
    uidvalidity: int
    guid: str
    next_uid: int = 1
    rows: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def make(cls, path: str, uidvalidity: int, guid: str, *, inbox: bool) -> SampleFolder:
        """Create the directories of an empty folder."""
        for name in ("", "cur", "new", "tmp"):
            os.makedirs(os.path.join(path, name), _MODE, exist_ok=True)
        if not inbox:
            write_file(os.path.join(path, "maildirfolder"), b"")
        keywords = "".join(f"{number} {keyword}\n" for number, keyword in enumerate(KEYWORDS))
        write_file(os.path.join(path, "dovecot-keywords"), keywords.encode())
        return cls(path, uidvalidity, guid)

    @classmethod
    def open(cls, path: str) -> SampleFolder:
        """The folder that `make` and `save` wrote."""
        with open(os.path.join(path, "dovecot-uidlist"), encoding="ascii") as file:
            header, *lines = file.read().splitlines()
        _, validity, next_uid, guid = header.split(" ")
        rows = [(int(uid), name) for uid, name in (line.split(" :", 1) for line in lines)]
        return cls(path, int(validity[1:]), guid[1:], int(next_uid[1:]), rows)

    def save(self) -> None:
        """Write the list of UIDs, without the rows whose message is gone."""
        present = {base_name(name) for name in self.names("cur")}
        self.rows = [row for row in self.rows if row[1] in present]
        lines = [f"3 V{self.uidvalidity} N{self.next_uid} G{self.guid}", *(f"{uid} :{base}" for uid, base in self.rows)]
        path = os.path.join(self.path, "dovecot-uidlist")
        write_file(path + ".lock", ("\n".join(lines) + "\n").encode())
        os.replace(path + ".lock", path)

    def names(self, place: str) -> list[str]:
        """File names in cur or new, in order."""
        return sorted(os.listdir(os.path.join(self.path, place)))

    def deliver(self, data: bytes, when: int, micros: int, place: str = "new", flags: str = "") -> None:
        """Store a message as a delivery program does: under tmp first, then renamed. `when` in seconds since 1970."""
        virtual = len(data) + data.count(b"\n") - data.count(b"\r\n")
        base = f"{when}.M{micros:06}P{1000 + micros % 9000}.mx1,S={len(data)},W={virtual}"
        unfinished = os.path.join(self.path, "tmp", base)
        write_file(unfinished, data)
        os.utime(unfinished, ns=(when * 10**9, when * 10**9 + micros * 1000))
        if place == "new":
            os.rename(unfinished, os.path.join(self.path, "new", base))
        else:
            os.rename(unfinished, os.path.join(self.path, "cur", f"{base}:2,{flags}"))
            self.number(base)

    def number(self, base: str) -> None:
        """Give a message in cur the next UID."""
        self.rows.append((self.next_uid, base))
        self.next_uid += 1

    def rename(self, place: str, name: str, flags: str) -> str:
        """Give a message other flags; one in new is moved to cur and numbered. Returns its new name."""
        renamed = f"{base_name(name)}:2,{flags}"
        os.rename(os.path.join(self.path, place, name), os.path.join(self.path, "cur", renamed))
        if place == "new":
            self.number(base_name(name))
        return renamed

    def move(self, name: str, other: SampleFolder) -> None:
        """Move a message of cur to another folder, where it gets a new UID."""
        os.rename(os.path.join(self.path, "cur", name), os.path.join(other.path, "cur", name))
        other.number(base_name(name))

    def delete(self, name: str) -> None:
        """Expunge a message of cur."""
        os.unlink(os.path.join(self.path, "cur", name))


def base_name(name: str) -> str:
    """What comes before the flags."""
    return name.partition(":")[0]


def flags_of(name: str) -> str:
    """The flags of a message in cur."""
    return name.partition(":2,")[2]


def write_file(path: str, data: bytes) -> None:
    """Create a file that does not exist yet; a symbolic link in its place is an error."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
