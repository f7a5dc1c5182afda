"""From a configuration to what commands work on: the store, the vault that is open for reading, the keys and trust anchors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mailbackup import kit as recovery
from mailbackup.config import Config
from mailbackup.crypto.age import AgeOpener, open_epoch
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import AnchorMismatch, ConfigInvalid, IdentityMissing, KeyMalformed, UsageError
from mailbackup.model.events import OnEvent, ignore
from mailbackup.model.ids import PublicKey, VaultId
from mailbackup.model.ledger import Anchors
from mailbackup.stores.counted import CountedStore
from mailbackup.stores.locate import open_store
from mailbackup.vault.epochs import EpochOpener
from mailbackup.vault.reader import VaultReader
from mailbackup.vault.statefile import FILE_NAME, remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every command gets: the configuration, where it and the state lie, and how to ask for what is secret."""

    config: Config
    config_path: str
    state_dir: str
    store: str | None = None  # name of the store to read from; None = the first that answers
    identity_file: str | None = None
    passphrase: Callable[[], str] | None = None  # asked when the identity file is protected by one
    on_event: OnEvent = ignore

    @property
    def anchors(self) -> Anchors:
        """The trust anchors: ids from the configuration, the highest entry seen from the state."""
        trust = self.config.trust
        vault = VaultId(trust.vault)
        return Anchors(vault=vault, admin=PublicKey(trust.admin), head=remembered(self.state_path, vault).head)

    @property
    def state_path(self) -> str:
        """File of the state."""
        return os.path.join(self.state_dir, FILE_NAME)


def store_dir(context: Context, name: str) -> str:
    """Where the store called `name` keeps what it needs on this host. It may be cleared at any time."""
    return os.path.join(context.state_dir, "stores", name)


def writer_key_path(config_path: str) -> str:
    """Where the host's signing key lies: beside the configuration, not in the state, which may be cleared at any time."""
    return os.path.splitext(config_path)[0] + ".key"


def writer_key(context: Context) -> SigningKey:
    """The host's signing key. Raises IdentityMissing, KeyMalformed, or AnchorMismatch when it is not the one that the configuration names."""
    path = writer_key_path(context.config_path)
    try:
        with open(path, encoding="ascii") as file:
            key = SigningKey.from_hex(file.read().strip())
    except OSError as error:
        raise IdentityMissing(
            f"cannot read this host's signing key {path}: {error.strerror}",
            hint="It was made by 'mailbackup init'. Run as the user who may read it.",
        ) from None
    except UnicodeDecodeError:
        raise KeyMalformed(f"{path} is not a signing key") from None
    if key.public != context.config.trust.writer:
        raise AnchorMismatch(f"{path} is not the signing key that the configuration names (trust.writer)")
    return key


@contextmanager
def use_store(context: Context, *, only: bool = False) -> Iterator[CountedStore]:
    """The store to use, open. `only`: for writing, where every configured store would have to get the same."""
    stores = context.config.stores
    if only and len(stores) > 1:
        raise ConfigInvalid("several [[store]] sections are not supported by this version yet", hint="Keep one of them.")
    chosen = [store for store in stores if context.store in (None, store.name)]
    if not chosen:
        raise UsageError(f"there is no store {context.store}", hint=f"Configured: {', '.join(store.name for store in stores)}.")
    store = CountedStore(open_store(chosen[0], work_dir=store_dir(context, chosen[0].name)))
    try:
        yield store
    finally:
        store.close()


@contextmanager
def use_vault(context: Context) -> Iterator[tuple[VaultReader, CountedStore]]:
    """The vault, open for reading with the identity that was given."""
    if context.identity_file is None:
        raise IdentityMissing("this needs an identity, since the contents of the vault are sealed")
    loaded = recovery.load_identity_file(context.identity_file, context.passphrase)
    anchors = common_anchors(context.anchors, loaded.anchors)
    with use_store(context) as store:
        opener = EpochOpener(store, lambda sealed: AgeOpener([open_epoch(sealed, loaded.identities)]))
        yield VaultReader(store, anchors, opener), store


def common_anchors(ours: Anchors, kits: Anchors | None) -> Anchors:
    """What configuration and kit say together; the higher pinned entry counts. Raises AnchorMismatch when they name different vaults."""
    if kits is None:
        return ours
    if (ours.vault, ours.admin) != (kits.vault, kits.admin):
        raise AnchorMismatch("the recovery kit belongs to another vault than the configuration", hint="Use the kit that was made with it.")
    heads = [head for head in (ours.head, kits.head) if head is not None]
    return Anchors(vault=ours.vault, admin=ours.admin, head=max(heads, default=None))
