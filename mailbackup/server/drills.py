"""Drills: rehearsed restores in a throw-away machine without a network.

`boot` starts this host's own configuration and needs no key; `light` takes configuration, keys and a sample of the mail from the vault, on this host's own
/usr; `full` rebuilds the whole server on a fresh installation.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from mailbackup import kit as recovery
from mailbackup.access import Context, use_vault
from mailbackup.content.zstd import compress
from mailbackup.crypto.age import AgeKeyMaker
from mailbackup.crypto.signing import SigningKey
from mailbackup.drill.base import make_alone, make_base
from mailbackup.drill.live_source import LiveSource
from mailbackup.drill.podman import PREFIX, Podman
from mailbackup.drill.rootfs import unpack
from mailbackup.drill.run import Between, Drill, Rehearsal
from mailbackup.drill.scratch import Bwrap, Engine
from mailbackup.errors import DrillImpossible, MailbackupError
from mailbackup.host import parse_stamp, scratch_directory, utc_now
from mailbackup.model import codec
from mailbackup.model.drill import DrillResult, PhaseTime
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import digest, drill_key
from mailbackup.model.ledger import ObjectRow
from mailbackup.model.tree import MailboxRow, Snapshot
from mailbackup.restore.server import Source
from mailbackup.restore.snapshot_source import SnapshotSource
from mailbackup.systems.ask import Ask, CannotAsk
from mailbackup.systems.known import names
from mailbackup.upkeep.acts import add_drill
from mailbackup.vault.reader import VaultReader

SAMPLE_MESSAGES, SAMPLE_BYTES, SAMPLE_MAILBOXES = 2000, 64 << 20, 5
_DAEMONS = {"postfix", "dovecot", "opendkim"}


def boot(context: Context, *, between: Between | None = None) -> DrillResult:
    """Start the configuration of this host in a scratch machine. Raises DrillImpossible where there is nothing to start, or no way to."""
    if not context.config.systems.use:
        raise DrillImpossible("no systems are configured", hint='Set use = "auto" in [systems].')
    source = LiveSource(Ask(), names(context.config.systems.use))
    began = time.monotonic()
    try:
        _refuse_nothing(source)
    except CannotAsk as error:
        raise DrillImpossible(str(error)) from None
    with _scratch(context) as root:
        make_base(root, _hostname(source, context))
        drill = Drill(source, Bwrap(), root, _hostname(source, context), "boot", context.on_event, between=between)
        done = drill.run()
    return _result("boot", "bwrap", done, began)


def light(context: Context, *, at: str = "latest", between: Between | None = None) -> DrillResult:
    """Restore configuration, keys and a sample of the mail of a snapshot, start it, prove it. Needs an identity, root and the mail programs in /usr."""

    def prepare(source: SnapshotSource, root: str) -> None:
        make_base(root, _hostname(source, context))

    return _from_vault(context, "light", Bwrap(), prepare, at=at, between=between)


def full(
    context: Context, *, at: str = "latest", engine: Literal["auto", "podman", "bwrap"] = "auto", between: Between | None = None
) -> DrillResult:
    """Rebuild the whole server of a snapshot on a fresh installation of its release, start it, prove it. Needs an identity and root."""
    chosen = _engine(engine)

    def prepare(source: SnapshotSource, root: str) -> None:
        unpack(source, os.path.join(context.state_dir, "rootfs"), root)
        make_alone(root, _hostname(source, context))

    return _from_vault(context, "full", chosen, prepare, at=at, between=between)


def _engine(name: str) -> Engine:
    if name != "bwrap":
        try:
            return Podman()
        except DrillImpossible:
            if name == "podman":
                raise
    return Bwrap(usr=None)


def _from_vault(
    context: Context, kind: Literal["light", "full"], engine: Engine, prepare: Callable[[SnapshotSource, str], None], *, at: str,
    between: Between | None,
) -> DrillResult:  # fmt: skip
    began = time.monotonic()
    with use_vault(context) as (reader, _):
        snapshot = reader.snapshot(reader.find(at))
        source = SnapshotSource(reader, snapshot, context.on_event, durable=False)
        source.choose(sample([row for row, _ in reader.mailboxes(snapshot)], snapshot.seq) if kind == "light" else None)
        _refuse_nothing(source)
        with _scratch(context) as root:
            first = time.monotonic()
            prepare(source, root)
            base = PhaseTime(name="base", seconds=round(time.monotonic() - first, 3))
            leave_out = ("directories",) if kind == "light" else ()
            done = Drill(source, engine, root, _hostname(source, context), "full", context.on_event, leave_out, between).run()
        done.phases.insert(0, base)
        result = _result(kind, engine.name, done, began, snapshot, len(source.mailboxes))
        return _recorded(context, reader, result)


def sample(rows: list[MailboxRow], seed: int) -> set[str]:
    """Keys of the mailboxes for a light drill: others for each snapshot, few enough to be quick, and one with messages if there is any."""
    full = sorted((row for row in rows if row.messages), key=lambda row: row.key)
    random.Random(seed).shuffle(full)  # noqa: S311 (a sample, no secret)
    chosen: list[MailboxRow] = []
    for row in full:
        size, count = sum(one.bytes for one in chosen) + row.bytes, sum(one.messages for one in chosen) + row.messages
        if len(chosen) < SAMPLE_MAILBOXES and size <= SAMPLE_BYTES and count <= SAMPLE_MESSAGES:
            chosen.append(row)
    smallest = sorted(full, key=lambda row: row.bytes)[:1]
    return {row.key for row in chosen or smallest}


def _refuse_nothing(source: Source) -> None:
    """A drill that starts nothing would be green for nothing."""
    if not any(inventory.system in _DAEMONS for inventory in source.inventories):
        raise DrillImpossible("there is no mail program to start", hint="Set [systems] use in the configuration, then back up.")


def _hostname(source: Source, context: Context) -> str:
    """The name of the original machine: mail programs greet with it."""
    host = next((inventory for inventory in source.inventories if inventory.system == "host"), None)
    return (host.fact("hostname") if host is not None else "") or context.config.host.name


@contextmanager
def _scratch(context: Context) -> Iterator[str]:
    """The root directory of a scratch machine. What killed drills left behind is removed first."""
    parent = os.path.join(context.state_dir, "drill")
    os.makedirs(parent, mode=0o700, exist_ok=True)
    with scratch_directory(parent, PREFIX) as path:
        root = os.path.join(path, "root")
        os.mkdir(root, 0o755)
        yield root


def _result(
    kind: Literal["boot", "light", "full"], engine: str, done: Rehearsal, began: float, snapshot: Snapshot | None = None, mailboxes: int = 0
) -> DrillResult:  # fmt: skip
    findings: tuple[Finding, ...] = ()
    if snapshot is not None and not done.messages:
        findings = (Finding(FindingKind.NOT_RESTORED, "mail", "no message was restored, so nothing is proven of the mail"),)
    age = None if snapshot is None else int((utc_now() - parse_stamp(snapshot.time)).total_seconds())
    return DrillResult(
        outcome="proven" if done.proven and not findings else "failed", kind=kind, engine=engine, seq=None if snapshot is None else snapshot.seq,
        mailboxes=mailboxes,
        messages=done.messages, probes=tuple(done.probes), steps=tuple(done.steps), phases=tuple(done.phases),
        rto_s=round(time.monotonic() - began, 3), rpo_s=age, findings=findings,
    )  # fmt: skip


# ---------------------------------------------------------------- the record


def _recorded(context: Context, reader: VaultReader, result: DrillResult) -> DrillResult:
    """Sign the result into the acts of the store, when the identity is a recovery kit (it holds the admin key). A store that cannot be written keeps the
    drill from being recorded, not from having been done."""
    signer = _signer(context)
    if signer is None:
        return result
    try:
        sealed = AgeKeyMaker([recipient.key for recipient in context.config.recipients]).seal(compress(codec.encode(result), 3))
        row = ObjectRow(key=drill_key(utc_now()), sha256=digest(sealed), size=len(sealed))
        reader.store.put(row.key, sealed)
        act = add_drill(reader.store, reader.anchors, signer, row)
    except MailbackupError as error:
        found = Finding(FindingKind.NOT_RECORDED, "drill", f"the result is not in the store: {error.message}")
        return codec.changed(result, findings=(*result.findings, found))
    return codec.changed(result, act=act)


def _signer(context: Context) -> SigningKey | None:
    if context.identity_file is None:
        return None
    kit = recovery.load_identity_file(context.identity_file, context.passphrase).kit
    return None if kit is None else SigningKey.from_hex(kit.admin_seed)
