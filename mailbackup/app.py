"""The composition root: builds stores, keys, state and engines from a configuration, one function per command.

Functions here return records of `model.results`, emit events, and raise errors of `errors`; they never print or exit.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from mailbackup import config as configuration
from mailbackup import kit as recovery
from mailbackup import verifying
from mailbackup.access import (
    Context,
    Traffic,
    common_anchors,
    use_nearest,
    use_replicas,
    use_vault,
    writer_key,
    writer_key_path,
)
from mailbackup.capture.anomaly import Limits
from mailbackup.capture.engine import Run, Sources
from mailbackup.config import Config, SystemsConfig, Trust
from mailbackup.crypto.age import AgeKeyMaker, generate_identity
from mailbackup.crypto.pool import AdaptiveSealer
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import (
    AlreadyExists,
    DamageError,
    IdentityMissing,
    KeyMalformed,
    StateUnusable,
)
from mailbackup.host import atomic_write, forget_names, run_lock, stamp, utc_now
from mailbackup.model.events import Phase, Stop, never
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import PublicKey, VaultId, new_vault_id
from mailbackup.model.ledger import Anchors
from mailbackup.model.options import store_to_url
from mailbackup.model.results import (
    BackupResult,
    Fetched,
    InitResult,
    MailboxLine,
    MessageLine,
    RebuildResult,
    RestoreResult,
    SnapshotRow,
)
from mailbackup.model.tree import MailboxTree, Snapshot
from mailbackup.model.version import TOOL, VERSION
from mailbackup.replication import Replication
from mailbackup.restore.browse import mailbox_lines, message_bytes, message_lines
from mailbackup.restore.execute import Executor
from mailbackup.restore.plan import Planner, RestorePlan, plan_files, plan_mailbox
from mailbackup.restore.target import Target
from mailbackup.stores.base import Store
from mailbackup.stores.locate import open_store
from mailbackup.systems.ask import Ask
from mailbackup.systems.known import names, survey
from mailbackup.upkeep.acts import Book, read_book
from mailbackup.upkeep.status import remember_backup
from mailbackup.vault.create import check_empty, new_vault, put_vault
from mailbackup.vault.epochs import EpochOpener
from mailbackup.vault.reader import VaultReader
from mailbackup.vault.rebuild import rebuild
from mailbackup.vault.state import State
from mailbackup.vault.statefile import FILE_NAME, move_aside, remembered
from mailbackup.vault.writer import VaultWriter, WriterKeys, ensure_epoch

_RESCANNED = "rescanned_at"
_DAY = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class InitOptions:
    """What `init` needs to know. `mail` are patterns, `stores` urls, `passphrase` None = a kit without one."""

    config_path: str
    state_dir: str
    host: str
    mail: tuple[str, ...]
    directories: tuple[str, ...]
    stores: tuple[str, ...]
    kit_out: str
    domain: str | None = None
    systems: Literal["auto"] | tuple[str, ...] = ()
    passphrase: str | None = field(default=None, repr=False)


# ---------------------------------------------------------------- init


def init(options: InitOptions) -> InitResult:
    """Make keys, kit, vault and configuration. Refuses to overwrite any of them (AlreadyExists), and then changes nothing."""
    identity, admin, writer = generate_identity(), SigningKey.generate(), SigningKey.generate()
    vault, created = new_vault_id(), stamp(utc_now())
    config = configuration.compose(
        host=options.host,
        recipient=identity.recipient,
        trust=Trust(vault=vault, admin=admin.public, writer=writer.public),
        mail=options.mail,
        directories=options.directories,
        stores=options.stores,
        domain=options.domain,
        systems=SystemsConfig(use=options.systems),
    )
    key_path = writer_key_path(options.config_path)
    for path in (options.config_path, key_path, options.kit_out, os.path.join(options.state_dir, FILE_NAME)):
        if os.path.lexists(path):
            raise AlreadyExists(
                f"{path} exists", hint="init makes a new vault and overwrites nothing. Choose other places, or move it away."
            )
    made = new_vault(vault, created, admin, writer.public)
    kit = recovery.Kit(
        vault=vault, created=created, host=options.host, identity=identity.secret, recipient=identity.recipient, admin_seed=admin.seed_hex,
        admin=admin.public, writer=writer.public, stores=tuple((store.name, store_to_url(store)) for store in config.stores), head=made.head,
        files=dict(made.files),
    )  # fmt: skip
    with ExitStack() as stack, ExitStack() as undo:
        stores = [
            stack.enter_context(contextlib.closing(open_store(s, create=True, work_dir=os.path.join(options.state_dir, "stores", s.name))))
            for s in config.stores
        ]
        for store in stores:
            check_empty(store)
        _write_new(undo, options.kit_out, recovery.render(kit, options.passphrase).encode())
        _write_new(undo, key_path, f"{writer.seed_hex}\n".encode())
        for store in stores:
            put_vault(store, made)
        _write_new(undo, options.config_path, configuration.render(config).encode())
        undo.pop_all()
    return InitResult(config=options.config_path, recipient=identity.recipient, signer=writer.public, vault=vault, kit=options.kit_out)


def _write_new(undo: ExitStack, path: str, data: bytes) -> None:
    """A new private file, removed again if a later step fails."""
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    atomic_write(path, data, mode=0o600, replace=False)
    undo.callback(os.unlink, path)


# ---------------------------------------------------------------- backup


def backup(
    context: Context, *, rescan: bool = False, accept_shrink: bool = False, findings: tuple[Finding, ...] = (), stop: Stop = never
) -> BackupResult:
    """One snapshot of everything configured. Raises ConflictError, StoreError, ChainBroken …; then nothing was committed.

    `findings` were made before and belong to the snapshot. When `stop` says so, the run registers what it has shipped and raises Interrupted.
    """
    os.makedirs(context.state_dir, mode=0o700, exist_ok=True)
    with run_lock(os.path.join(context.state_dir, "lock")):
        try:
            result = _backup(context, list(findings), rescan=rescan, accept_shrink=accept_shrink, stop=stop)
        except StateUnusable as error:
            aside = move_aside(context.state_path)
            found = Finding(FindingKind.STATE_NEW, context.state_path, f"{error.message}; it was moved to {aside}")
            result = _backup(context, [*findings, found], rescan=True, accept_shrink=accept_shrink, stop=stop)
        remember_backup(context.state_dir, result)
        return result


def _backup(context: Context, findings: list[Finding], *, rescan: bool, accept_shrink: bool, stop: Stop) -> BackupResult:
    began = time.monotonic()
    config = context.config
    forget_names()
    context.on_event(Phase("looking at the vault"))
    anchors = context.anchors
    with ExitStack() as stack:
        replicas, traffic = stack.enter_context(use_replicas(context))
        state = stack.enter_context(contextlib.closing(State(context.state_path, anchors.vault)))
        anchors = context.anchors  # anew: a state that was damaged, and is moved aside by now, pins nothing
        if state.moved_aside is not None:
            found = Finding(FindingKind.STATE_NEW, context.state_path, f"the state was damaged; it was moved to {state.moved_aside}")
            findings = [*findings, found]
        keys = WriterKeys(
            writer_key(context), anchors, tuple(r.key for r in config.recipients), AgeKeyMaker([r.key for r in config.recipients])
        )
        replication = Replication(context, replicas, traffic, anchors, stop)
        findings = findings + replication.begin(state, keys.signer.public)
        epoch = ensure_epoch(replicas, state, keys)
        workers = _workers(config)
        threads = workers + 1 if workers else 0  # no workers: everything happens in this thread, in one order
        with ExitStack() as line:
            sealer = line.enter_context(contextlib.closing(AdaptiveSealer(epoch.recipient, workers)))
            writer = VaultWriter(replicas, state, keys, sealer, epoch, level=config.backup.level, threads=threads)
            line.enter_context(contextlib.closing(writer))
            rescan = rescan or _rescan_due(state, config.backup.rescan_days)
            run = Run(_sources(config, rescan=rescan, accept_shrink=accept_shrink), state, writer, findings, context.on_event, stop)
            seq, outcome = run.run()
        stores, behind = replication.finish()
        return BackupResult(
            seq=seq, outcome=outcome, mailboxes=run.totals.mailboxes, messages=run.totals.messages, new_messages=run.totals.new_messages,
            files=run.totals.files, bytes_read=run.totals.read_bytes, bytes_stored=writer.bytes_stored, requests=traffic.requests,
            seconds=round(time.monotonic() - began, 3), stores=stores, findings=(*run.findings, *behind),
        )  # fmt: skip


def _sources(config: Config, *, rescan: bool, accept_shrink: bool) -> Sources:
    ask = Ask(tuple(directory.path for directory in config.directories))
    return Sources(
        host=config.host.name,
        tool=f"{TOOL} {VERSION}",
        mail=config.mail,
        directories=config.directories,
        max_shrink=config.backup.max_shrink,
        limits=Limits(gone=config.backup.freeze_gone, changed=config.backup.freeze_changed),
        gather_budget=config.backup.gather_budget,
        rescan=rescan,
        accept_shrink=accept_shrink,
        facts={"config": configuration.render(config)},
        survey=survey(ask, names(config.systems.use)) if config.systems.use else None,
        ask=ask,
    )


def _rescan_due(state: State, days: int) -> bool:
    """Whether everything should be asked for its status again; remembers it in the run's transaction if so."""
    now = int(time.time())
    last = state.get(_RESCANNED)
    if last is not None and now - int(last) < days * _DAY:
        return False
    state.put(_RESCANNED, now)
    return last is not None


def _workers(config: Config) -> int:
    if isinstance(config.backup.workers, int):
        return config.backup.workers
    return max(1, len(os.sched_getaffinity(0)))


# ---------------------------------------------------------------- reading


def snapshots(context: Context) -> list[SnapshotRow]:
    """All snapshots that a store still has, oldest first. Needs no identity; counts are known only for those that this host made."""
    known = remembered(context.state_path, VaultId(context.config.trust.vault)).counts
    with use_nearest(context) as (nearest, _):
        reader = VaultReader(
            nearest, context.anchors, EpochOpener(nearest, None), remembered(context.state_path, context.anchors.vault).stores
        )
        heads = reader.heads()
        books = {store.name: _book_of(store, reader.anchors_of(store)) for store in nearest.stores()}
        rows = []
        for link in reader.snapshots():
            messages, size = known.get(link.seq, (None, None))
            entry = link.entry
            stores = tuple(name for name, book in books.items() if heads.get(name, 0) >= link.seq and link.seq not in book.not_here)
            if not stores:
                continue
            row = SnapshotRow(
                seq=link.seq, time=entry.time, messages=messages, bytes=size, outcome=entry.outcome or "incomplete", stores=stores,
                dropped=tuple(name for name in stores if link.seq in books[name].dropped),
                pinned=next((books[name].pinned[link.seq] or "pinned" for name in stores if link.seq in books[name].pinned), None),
            )  # fmt: skip
            rows.append(row)
        return rows[::-1]


def _book_of(store: Store, anchors: Anchors) -> Book:
    """The acts of a store; broken ones keep nobody from seeing the snapshots, and `verify` names them."""
    try:
        return read_book(store, anchors)
    except DamageError:
        return Book()


def mailboxes(context: Context, *, at: str = "latest") -> list[MailboxLine]:
    """The mailboxes of a snapshot. Needs an identity."""
    with use_vault(context) as (reader, _):
        return mailbox_lines(reader, reader.snapshot(reader.find(at)))


def messages(
    context: Context, address: str, *, folder: str | None = None, at: str = "latest", location: str | None = None
) -> list[MessageLine]:
    """The messages of a mailbox, from header blocks only. Needs an identity."""
    with use_vault(context) as (reader, _):
        _, tree = reader.mailbox(reader.snapshot(reader.find(at)), address, location)
        return message_lines(reader, tree, folder)


def show_snapshot(context: Context, at: str) -> Snapshot:
    """A snapshot object. Needs an identity."""
    with use_vault(context) as (reader, _):
        return reader.snapshot(reader.find(at))


def show_message(context: Context, address: str, message: str, *, at: str = "latest", location: str | None = None) -> bytes:
    """One message, byte for byte; `message` is a unique prefix of its id. Needs an identity."""
    with use_vault(context) as (reader, _):
        _, tree = reader.mailbox(reader.snapshot(reader.find(at)), address, location)
        return message_bytes(reader, tree, message)


# ---------------------------------------------------------------- restore


def restore_mailbox(
    context: Context,
    address: str | None,
    *,
    to: str,
    folder: str | None = None,
    at: str = "latest",
    location: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
) -> RestoreResult:
    """Put a mailbox (None = every mailbox, one folder per address) under the directory `to`. Needs an identity."""
    began = time.monotonic()
    with use_vault(context) as (reader, traffic):
        snapshot = reader.snapshot(reader.find(at))
        if address is not None:
            _, tree = reader.mailbox(snapshot, address, location)
            return _restore_tree(context, reader, traffic, tree, snapshot.seq, to, folder, overwrite=overwrite, dry_run=dry_run)
        if not dry_run:
            Target(to).prepare()  # also when there is no mailbox: what was asked for exists then, empty
        results, taken = [], set()
        for row, ref in reader.mailboxes(snapshot):
            if location in (None, row.location):
                tree = reader.record(ref, MailboxTree, f"tree of {row.address}")
                name = row.address if row.address not in taken else f"{row.address} {row.key}"  # two mailboxes may have one address
                taken.add(name)
                place = os.path.join(to, _folder_of(name))
                results.append(
                    _restore_tree(context, reader, traffic, tree, snapshot.seq, place, folder, overwrite=overwrite, dry_run=dry_run)
                )
        return _summed(results, snapshot.seq, traffic, began)


def _restore_tree(
    context: Context, reader: VaultReader, traffic: Traffic, tree: MailboxTree, seq: int, to: str, folder: str | None, *, overwrite: bool,
    dry_run: bool,
) -> RestoreResult:  # fmt: skip
    """Restore one mailbox."""
    began = time.monotonic()
    context.on_event(Phase("reading the listing"))
    target = Target(to)
    planner = Planner(target, overwrite=overwrite)
    plan_mailbox(reader, tree, planner, folder=folder)
    return _executed(context, reader, traffic, planner.plan, target, seq, began, overwrite=overwrite, dry_run=dry_run)


@dataclass(frozen=True, slots=True)
class PlannedMailbox:
    """A mailbox that can be put in place while its vault is open. Its plan may be narrowed before `run(dry_run=…)`."""

    seq: int
    address: str
    plan: RestorePlan
    run: Callable[..., RestoreResult]


@contextlib.contextmanager
def planned_mailbox(
    context: Context, address: str, target: Target, *, folder: str | None = None, at: str = "latest", location: str | None = None
) -> Iterator[PlannedMailbox]:
    """A mailbox planned for a target of the caller's choice, which is empty. Needs an identity."""
    began = time.monotonic()
    with use_vault(context) as (reader, traffic):
        snapshot = reader.snapshot(reader.find(at))
        _, tree = reader.mailbox(snapshot, address, location)
        context.on_event(Phase("reading the listing"))
        planner = Planner(target, overwrite=False)
        plan_mailbox(reader, tree, planner, folder=folder)
        run = partial(_executed, context, reader, traffic, planner.plan, target, snapshot.seq, began, overwrite=False)
        yield PlannedMailbox(snapshot.seq, tree.address, planner.plan, run)


def restore_files(
    context: Context, paths: list[str], *, to: str, at: str = "latest", overwrite: bool = False, dry_run: bool = False
) -> RestoreResult:
    """Put files and directories of `[[directory]]` sources under `to`, with their whole paths. Needs an identity."""
    began = time.monotonic()
    with use_vault(context) as (reader, traffic):
        snapshot = reader.snapshot(reader.find(at))
        target = Target(to)
        planner = Planner(target, overwrite=overwrite)
        plan_files(reader, snapshot, planner, [os.fsencode(os.path.abspath(path)) for path in paths])
        return _executed(context, reader, traffic, planner.plan, target, snapshot.seq, began, overwrite=overwrite, dry_run=dry_run)


def _executed(
    context: Context,
    reader: VaultReader,
    traffic: Traffic,
    plan: RestorePlan,
    target: Target,
    seq: int,
    began: float,
    *,
    overwrite: bool,
    dry_run: bool = False,
) -> RestoreResult:
    result = RestoreResult(
        outcome="planned", seq=seq, messages=plan.messages, files=len(plan.files) + len(plan.others) - sum(s.is_message for s in plan.files),
        bytes=plan.bytes, kept=len(plan.kept), fetched=Fetched(0, 0), seconds=0.0, findings=tuple(plan.findings), plan=plan.lines(),
    )  # fmt: skip
    if dry_run:
        return result
    done = Executor(reader, plan, target, overwrite=overwrite, on_event=context.on_event).run()
    kept = sum(step.is_message for step in plan.kept)
    behind = any(finding.kind is FindingKind.STORE_BEHIND for finding in reader.stores.findings)  # newer snapshots were seen
    return RestoreResult(
        outcome="incomplete" if behind or not all(finding.harmless for finding in done.findings) else "complete", seq=seq, messages=done.messages + kept,
        files=done.files, bytes=done.bytes, kept=len(plan.kept), fetched=Fetched(traffic.requests, traffic.bytes_read),
        seconds=round(time.monotonic() - began, 3), findings=(*done.findings, *reader.stores.findings),
    )  # fmt: skip


def _folder_of(name: str) -> str:
    """A folder name for a mailbox: its address (and key), made harmless."""
    safe = name.replace("/", "%2F").replace("\0", "%00")
    return safe if safe.strip(".") else safe.replace(".", "%2E")


def _summed(results: list[RestoreResult], seq: int, traffic: Traffic, began: float) -> RestoreResult:
    outcomes = {result.outcome for result in results}
    outcome: Literal["planned", "incomplete", "complete"] = "complete"
    if outcomes == {"planned"}:
        outcome = "planned"
    elif "incomplete" in outcomes:
        outcome = "incomplete"
    return RestoreResult(
        outcome=outcome, seq=seq, messages=sum(r.messages for r in results), files=sum(r.files for r in results),
        bytes=sum(r.bytes for r in results), kept=sum(r.kept for r in results),
        fetched=Fetched(traffic.requests, traffic.bytes_read),
        seconds=round(time.monotonic() - began, 3), findings=tuple(dict.fromkeys(f for r in results for f in r.findings)),
        plan=tuple(p for r in results for p in r.plan),
    )  # fmt: skip


# ---------------------------------------------------------------- verify, state, kit


verify = verifying.verify


def state_rebuild(context: Context) -> RebuildResult:
    """Make the local state anew from the latest snapshot. Needs an identity."""
    began = time.monotonic()
    os.makedirs(context.state_dir, mode=0o700, exist_ok=True)
    with run_lock(os.path.join(context.state_dir, "lock")), use_vault(context) as (reader, _):
        if os.path.exists(context.state_path):
            move_aside(context.state_path)
        with contextlib.closing(State(context.state_path, reader.anchors.vault)) as state:
            seq, boxes, count = rebuild(reader.store, state, reader, PublicKey(context.config.trust.writer), context.on_event)
    return RebuildResult(seq=seq, mailboxes=boxes, messages=count, seconds=round(time.monotonic() - began, 3))


def write_kit(context: Context, *, out: str, page: str | None = None, passphrase: str | None = None) -> None:
    """Write the recovery kit anew with today's stores and head; `page` also as a printable page. Needs the old kit as identity."""
    if context.identity_file is None:
        raise IdentityMissing("a new kit is made from the old one", hint="Give the old kit with --identity KIT-FILE.")
    old = recovery.load_identity_file(context.identity_file, context.passphrase).kit
    if old is None:
        raise KeyMalformed(
            f"{context.identity_file} is not a recovery kit", hint="A bare identity lacks the admin key; the old kit is needed."
        )
    anchors = common_anchors(context.anchors, old.anchors)
    stores = tuple((store.name, store_to_url(store)) for store in context.config.stores)
    kit = replace(old, created=stamp(utc_now()), stores=stores, head=anchors.head, writer=PublicKey(context.config.trust.writer))
    with ExitStack() as undo:
        _write_new(undo, os.path.abspath(out), recovery.render(kit, passphrase).encode())
        if page is not None:
            _write_new(undo, os.path.abspath(page), recovery.page(kit).encode())
        undo.pop_all()
