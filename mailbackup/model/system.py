"""What an adapter knows of one mail program, as plain values: what to save, what to do at a restore, what to prove afterwards.

Adapters (`mailbackup.systems`) make these; capture, restore and drills use them. An inventory is saved with every snapshot, so a restore needs to ask
nobody, least of all a server that is gone.
"""

from __future__ import annotations

from typing import Literal

from mailbackup.model.codec import Record
from mailbackup.model.finding import Finding

INVENTORY = "inventory.json"
"""Name of the dump that holds all inventories of a snapshot."""


class LeftOut(Record, frozen=True):
    """Something below a chosen path that is not saved. `pattern` is a glob of the path below it (`*` also matches `/`)."""

    pattern: str
    why: str


class Chosen(Record, frozen=True, omit_defaults=True):
    """A file or directory to save with everything below it. Absolute path; `why` for the person who asks."""

    path: str
    why: str
    left_out: tuple[LeftOut, ...] = ()
    queue: bool = False  # mail that is on its way: a restore puts it on hold


class Dump(Record, frozen=True, omit_defaults=True):
    """Something that a program must be asked for. Without `argv` the adapter makes it itself (`System.dump`)."""

    name: str
    why: str
    argv: tuple[str, ...] = ()
    timeout: int = 60  # seconds


class Inventory(Record, frozen=True, omit_defaults=True, kw_only=True):
    """One system on one host. `facts` are what steps and probes need: name → values."""

    system: str
    version: str = ""
    paths: tuple[Chosen, ...] = ()
    dumps: tuple[Dump, ...] = ()
    facts: dict[str, tuple[str, ...]] = {}
    findings: tuple[Finding, ...] = ()

    def fact(self, name: str) -> str:
        """The first value of a fact, or an empty text."""
        values = self.facts.get(name, ())
        return values[0] if values else ""


class Inventories(Record, frozen=True, kw_only=True):
    """The dump `inventory.json`."""

    systems: tuple[Inventory, ...]
    format: Literal[1] = 1


Action = Literal["accounts", "files", "mail", "queue", "run", "directory", "start", "check"]


class ServerStep(Record, frozen=True, omit_defaults=True, kw_only=True):
    """One step of rebuilding a server. Steps run in the order of `rank`, then of the systems; each may be repeated without harm.

    accounts: users and groups · files: `paths` come back · mail: mailboxes · queue: `paths` go on hold · run: `argv` in the new root (with `silent`,
    words on stderr are a failure too) · directory: `paths[0]` with `mode` and `owner` · start: `argv` starts a daemon; only drills do it by themselves.
    `needs` are programs that must be there; below `without`, directories come back but no files.
    """

    system: str
    name: str
    action: Action
    rank: int
    paths: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    argv: tuple[str, ...] = ()
    owner: str = "root:root"
    mode: int = 0o755
    needs: tuple[str, ...] = ()
    silent: bool = False
    timeout: int = 60
    ready: str = ""  # start: "tcp:25" or the path of a socket that appears when it is up


RANK_ACCOUNTS, RANK_FILES, RANK_MAIL, RANK_QUEUE, RANK_DERIVED, RANK_RUN, RANK_START = 20, 30, 80, 85, 90, 100, 110
"""Ranks of the restore order: accounts, files and keys, mail, what is on its way, derived files, /run, daemons (the mail transfer agent is the last)."""

ProbeKind = Literal["config", "maps", "mail", "auth", "dkim", "certificate", "accounts", "users", "mailboxes", "queue", "files"]


class Probe(Record, frozen=True, omit_defaults=True, kw_only=True):
    """Something that a drill proves. `settings` belong to its kind (see `mailbackup.drill.probes`). `tier` boot: needs no mailbox of the snapshot."""

    name: str
    system: str
    kind: ProbeKind
    tier: Literal["boot", "full"] = "full"
    settings: dict[str, tuple[str, ...]] = {}

    def setting(self, name: str) -> str:
        """The first value of a setting, or an empty text."""
        values = self.settings.get(name, ())
        return values[0] if values else ""
