"""Probes of what lies in the machine, before any daemon runs: configuration, tables, accounts, files."""

from __future__ import annotations

import hashlib
import os
import stat
from itertools import islice

from mailbackup.drill.probes.bench import Bench, ProbeFailed, ProbeSkipped
from mailbackup.errors import MailbackupError
from mailbackup.model.ids import from_name, show
from mailbackup.model.system import Probe
from mailbackup.restore.accounts import RootAccounts, rows_of
from mailbackup.restore.snapshot_source import Located, SnapshotSource

_KEYS = 5  # of each table that are asked for
_HASHED = 200  # files whose content is compared


def config(probe: Probe, bench: Bench) -> str:
    """The program reads the settings that it read when it was captured, and has nothing to complain about."""
    argv = probe.settings["argv"]
    said = bench.run(*argv)
    if said.status != 0 or said.err.strip():
        raise ProbeFailed(f"'{' '.join(argv)}' complains: {said.complaint}")
    captured = bench.source.dump(probe.setting("dump")).decode("utf-8", "surrogateescape")
    then, now = _settings(captured), _settings(said.out)
    if then != now:
        lines = sorted(set(now) ^ set(then))
        raise ProbeFailed(f"{len(lines)} settings differ from those captured, first: {lines[0].strip()}")
    return f"{len(now)} settings as captured"


def _settings(text: str) -> list[str]:
    """Lines without comments, which tell of the machine (kernel, host name)."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip() and not line.startswith("#")]


def maps(probe: Probe, bench: Bench) -> str:
    """Tables answer with what stands in their texts."""
    asked = 0
    for name in dict.fromkeys((*probe.settings.get("maps", ()), *probe.settings.get("aliases", ()))):
        path = name.partition(":")[2]
        is_aliases = name in probe.settings.get("aliases", ())
        for key, value in islice(_rows(bench, path, aliases=is_aliases), _KEYS):
            said = bench.run("postmap", "-q", key, name)
            if said.out.split() != value.split():
                raise ProbeFailed(f"{name} answers {said.out.strip() or said.complaint!r} for {key}, expected {value!r}")
            asked += 1
    if not asked:
        raise ProbeSkipped("no table has an entry")
    return f"{asked} entries asked for"


def _rows(bench: Bench, path: str, *, aliases: bool) -> list[tuple[str, str]]:
    """Entries of a table's text, those that go over several lines left out."""
    try:
        text = bench.source.read(path).decode("utf-8", "replace")
    except MailbackupError as error:
        raise ProbeFailed(f"the snapshot has no text of {path}: {error}") from None
    lines = text.splitlines()
    found = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if not line.strip() or line[0] in "# \t" or following[:1] in (" ", "\t"):
            continue
        key, _, value = line.partition(":") if aliases else line.strip().partition(" " if " " in line.strip() else "\t")
        if key and value.strip() and '"' not in line and not (aliases and "," in value):
            found.append((key.strip().lower() if aliases else key, value.strip()))
    return found


def accounts(probe: Probe, bench: Bench) -> str:
    """Every user and group of the snapshot is there; persons and the like with their old numbers."""
    passwd, group = (bench.source.read(path).decode("utf-8", "surrogateescape") for path in probe.settings["paths"][:2])
    there = RootAccounts.of(bench.root)
    count = 0
    for text, known, what in ((passwd, there.users, "user"), (group, there.groups, "group")):
        for name, row in rows_of(text).items():
            if name not in known:
                raise ProbeFailed(f"{what} {name} is missing")
            if 1000 <= int(row[2]) < 65534 and known[name] != int(row[2]):
                raise ProbeFailed(f"{what} {name} has the number {known[name]}, it had {row[2]}")
            count += 1
    return f"{count} users and groups"


def files(probe: Probe, bench: Bench) -> str:
    """Files of directories are back with size, mode, owner and time; a share of them is compared byte for byte."""
    if not isinstance(bench.source, SnapshotSource):
        raise ProbeSkipped("only a snapshot has directories")
    known, count, hashed = RootAccounts.of(bench.root), 0, 0
    for row in bench.source.listing(probe.settings["paths"]):
        if row.found.entry.type == "m":
            continue
        _compare(row, os.fsencode(bench.root), known)
        if row.found.entry.type == "f" and row.found.entry.size and hashed < _HASHED:
            _compare_content(row, bench)
            hashed += 1
        count += 1
    return f"{count} entries as captured, {hashed} of them read"


_KINDS = {"f": stat.S_IFREG, "d": stat.S_IFDIR, "l": stat.S_IFLNK, "p": stat.S_IFIFO, "c": stat.S_IFCHR, "b": stat.S_IFBLK}


def _compare(row: Located, root: bytes, known: RootAccounts) -> None:
    entry, owner = row.found.entry, row.found.owner
    try:
        status = os.lstat(root + b"/" + row.path)
    except OSError as error:
        raise ProbeFailed(f"/{show(row.path)}: {error.strerror}") from None
    expected = (known.user_id(owner.user or "") or owner.uid, known.group_id(owner.group or "") or owner.gid)
    checks = [
        ("kind", stat.S_IFMT(status.st_mode), _KINDS[entry.type]),
        ("owner", (status.st_uid, status.st_gid), expected),
    ]
    if entry.type != "l":
        checks.append(("mode", stat.S_IMODE(status.st_mode), owner.mode))
    if entry.type == "f":
        checks += [("size", status.st_size, entry.size), ("time", divmod(status.st_mtime_ns, 1_000_000_000), tuple(entry.mtime))]
    for what, is_now, was in checks:
        if is_now != was:
            raise ProbeFailed(f"/{show(row.path)}: {what} is {is_now}, was {was}")
    if entry.type == "l" and entry.target is not None and os.readlink(root + b"/" + row.path) != from_name(entry.target):
        raise ProbeFailed(f"/{show(row.path)}: leads elsewhere")


def _compare_content(row: Located, bench: Bench) -> None:
    assert bench.reader is not None, "a snapshot has a reader"
    then, now = hashlib.sha256(), hashlib.sha256()
    for ref in row.found.refs:
        then.update(bench.reader.blocks.blob(ref))
    with open(os.fsencode(bench.root) + b"/" + row.path, "rb") as file:
        while part := file.read(1 << 20):
            now.update(part)
    if then.digest() != now.digest():
        raise ProbeFailed(f"/{show(row.path)}: another content")
