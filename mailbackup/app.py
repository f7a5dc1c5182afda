"""The composition root: builds stores, keys, state and engines from a configuration, one function per command.

Functions here return records of `model.results`, emit events, and raise errors of `errors`; they never print or exit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mailbackup.config import Config
from mailbackup.model.events import OnEvent, ignore
from mailbackup.model.results import (
    BackupResult,
    InitResult,
    MailboxLine,
    MessageLine,
    RebuildResult,
    RestoreResult,
    SnapshotRow,
    VerifyResult,
)
from mailbackup.model.tree import Snapshot


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
    passphrase: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every command gets: the configuration, where the state lies, and how to ask for what is secret."""

    config: Config
    state_dir: str
    store: str | None = None  # name of the store to read from; None = the first that answers
    identity_file: str | None = None
    passphrase: Callable[[], str] | None = None  # asked when the identity file is protected by one
    on_event: OnEvent = ignore


def init(options: InitOptions) -> InitResult:
    """Make keys, kit, vault and configuration. Refuses to overwrite any of them (AlreadyExists), and then changes nothing."""
    raise NotImplementedError


def backup(context: Context, *, rescan: bool = False, accept_shrink: bool = False) -> BackupResult:
    """One snapshot of everything configured."""
    raise NotImplementedError


def snapshots(context: Context) -> list[SnapshotRow]:
    """All snapshots of the vault, oldest first."""
    raise NotImplementedError


def mailboxes(context: Context, *, at: str = "latest") -> list[MailboxLine]:
    """The mailboxes of a snapshot. Needs an identity."""
    raise NotImplementedError


def messages(context: Context, address: str, *, folder: str | None = None, at: str = "latest", location: str | None = None) -> list[MessageLine]:
    """The messages of a mailbox, from header blocks only. Needs an identity."""
    raise NotImplementedError


def show_snapshot(context: Context, at: str) -> Snapshot:
    """A snapshot object. Needs an identity."""
    raise NotImplementedError


def show_message(context: Context, address: str, message: str, *, at: str = "latest", location: str | None = None) -> bytes:
    """One message, byte for byte; `message` is a unique prefix of its id. Needs an identity."""
    raise NotImplementedError


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
    raise NotImplementedError


def restore_files(
    context: Context, paths: list[str], *, to: str, at: str = "latest", overwrite: bool = False, dry_run: bool = False
) -> RestoreResult:
    """Put files and directories of `[[directory]]` sources under `to`, with their whole paths. Needs an identity."""
    raise NotImplementedError


def verify(context: Context, *, decrypt: bool = False, sample: float | None = None) -> VerifyResult:
    """Check the vault: without a key everything that is public, with `decrypt` also what is sealed. `sample` is a share, 0 < s <= 1."""
    raise NotImplementedError


def state_rebuild(context: Context) -> RebuildResult:
    """Make the local state anew from the latest snapshot. Needs an identity."""
    raise NotImplementedError


def write_kit(context: Context, *, out: str, page: str | None = None, passphrase: str | None = None) -> None:
    """Write the recovery kit anew with today's stores and head; `page` also as a printable page. Needs the old kit as identity."""
    raise NotImplementedError
