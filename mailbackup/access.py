"""From a configuration to what commands work on: the store, the vault that is open for reading, the keys and trust anchors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial

from mailbackup import kit as recovery
from mailbackup.config import Config
from mailbackup.crypto.age import AgeOpener, open_epoch
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import AnchorMismatch, IdentityMissing, KeyMalformed, KeyProblem, StoreError, UsageError
from mailbackup.model.events import OnEvent, ignore
from mailbackup.model.ids import PublicKey, VaultId
from mailbackup.model.ledger import Anchors
from mailbackup.model.options import StoreConfig
from mailbackup.stores.counted import CountedStore
from mailbackup.stores.locate import open_store
from mailbackup.vault.epochs import EpochOpener
from mailbackup.vault.nearest import Nearest
from mailbackup.vault.reader import VaultReader
from mailbackup.vault.replicas import Replica, Replicas
from mailbackup.vault.statefile import FILE_NAME, remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every command gets: the configuration, where it and the state lie, and how to ask for what is secret."""

    config: Config
    config_path: str
    state_dir: str
    store: str | None = None  # name of the only store to use; None = all
    identity_file: str | None = None
    passphrase: Callable[[], str] | None = None  # asked when the identity file is protected by one
    on_event: OnEvent = ignore

    @property
    def anchors(self) -> Anchors:
        """The trust anchors: ids from the configuration, the highest entry seen from the state."""
        trust = self.config.trust
        vault = VaultId(trust.vault)
        return Anchors(vault=vault, admin=PublicKey(trust.admin), head=remembered(self.state_path, vault).head)

    def anchors_of(self, store: str) -> Anchors:
        """The trust anchors for one store, which may be behind what was seen in another."""
        anchors = self.anchors
        if len(self.config.stores) == 1:
            return anchors
        pin = remembered(self.state_path, anchors.vault).stores.get(store)
        return Anchors(vault=anchors.vault, admin=anchors.admin, head=pin)

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


def chosen_stores(context: Context) -> tuple[StoreConfig, ...]:
    """The stores that a command works on: the one that was named, or all. Raises UsageError when there is none of that name."""
    stores = context.config.stores
    chosen = tuple(store for store in stores if context.store in (None, store.name))
    if not chosen:
        raise UsageError(f"there is no store {context.store}", hint=f"Configured: {', '.join(store.name for store in stores)}.")
    return chosen


def open_place(context: Context, place: StoreConfig) -> CountedStore:
    """A configured store, open."""
    return CountedStore(open_store(place, work_dir=store_dir(context, place.name)))


@contextmanager
def use_store(context: Context, name: str | None = None) -> Iterator[CountedStore]:
    """One store, open: `name`, or the nearest that was chosen."""
    places = chosen_stores(context)
    place = next((place for place in places if place.name == name), places[0])
    with closing(open_place(context, place)) as store:
        yield store


class Traffic:
    """What went to and came from all stores that a command used."""

    def __init__(self) -> None:
        self.stores: list[CountedStore] = []

    @property
    def requests(self) -> int:
        """Requests so far."""
        return sum(store.requests for store in self.stores)

    @property
    def bytes_read(self) -> int:
        """Bytes that came so far."""
        return sum(store.bytes_read for store in self.stores)


@contextmanager
def use_replicas(context: Context) -> Iterator[tuple[Replicas, Traffic]]:
    """Every configured store, for a run that writes. One that cannot be opened is left out with its error."""
    traffic = Traffic()
    with ExitStack() as stack:
        replicas = []
        for place in context.config.stores:
            try:
                store = stack.enter_context(closing(open_place(context, place)))
            except (StoreError, KeyProblem) as error:
                replicas.append(Replica(place.name, None, error))
            else:
                traffic.stores.append(store)
                replicas.append(Replica(place.name, store))
        yield Replicas(replicas), traffic


@contextmanager
def use_nearest(context: Context) -> Iterator[tuple[Nearest, Traffic]]:
    """The chosen stores, for reading: each is opened when it is first needed."""
    traffic = Traffic()

    def opened(place: StoreConfig) -> CountedStore:
        store = open_place(context, place)
        traffic.stores.append(store)
        return store

    nearest = Nearest([(place.name, partial(opened, place)) for place in chosen_stores(context)])
    try:
        yield nearest, traffic
    finally:
        nearest.close()


@contextmanager
def use_vault(context: Context) -> Iterator[tuple[VaultReader, Traffic]]:
    """The vault, open for reading with the identity that was given."""
    if context.identity_file is None:
        raise IdentityMissing("this needs an identity, since the contents of the vault are sealed")
    loaded = recovery.load_identity_file(context.identity_file, context.passphrase)
    anchors = common_anchors(context.anchors, loaded.anchors)
    with use_nearest(context) as (nearest, traffic):
        opener = EpochOpener(nearest, lambda sealed: AgeOpener([open_epoch(sealed, loaded.identities)]))
        yield open_reader(context, nearest, anchors, opener), traffic


def open_reader(context: Context, nearest: Nearest, anchors: Anchors, opener: EpochOpener) -> VaultReader:
    """A reader that knows what this host has seen in each store."""
    known = remembered(context.state_path, anchors.vault)
    pins = known.stores if len(context.config.stores) > 1 else {}
    return VaultReader(nearest, anchors, opener, pins, None if known.head is None else known.head[0])


@dataclass(frozen=True, slots=True)
class Admin:
    """The admin key, and what the kit that holds it and the configuration say of the vault."""

    kit: recovery.KitOrIdentities
    key: SigningKey
    anchors: Anchors


def admin_of(context: Context) -> Admin:
    """From the recovery kit. Raises IdentityMissing, KeyMalformed (also for a bare identity) and AnchorMismatch."""
    if context.identity_file is None:
        raise IdentityMissing("this needs the admin key, which is in the recovery kit", hint="Give it with --identity KIT-FILE.")
    loaded = recovery.load_identity_file(context.identity_file, context.passphrase)
    if loaded.kit is None:
        raise KeyMalformed(
            f"{context.identity_file} is not a recovery kit", hint="A bare identity lacks the admin key; the recovery kit is needed."
        )
    return Admin(loaded, SigningKey.from_hex(loaded.kit.admin_seed), common_anchors(context.anchors, loaded.anchors))


def common_anchors(ours: Anchors, kits: Anchors | None) -> Anchors:
    """What configuration and kit say together; the higher pinned entry counts. Raises AnchorMismatch when they name different vaults."""
    if kits is None:
        return ours
    if (ours.vault, ours.admin) != (kits.vault, kits.admin):
        raise AnchorMismatch("the recovery kit belongs to another vault than the configuration", hint="Use the kit that was made with it.")
    heads = [head for head in (ours.head, kits.head) if head is not None]
    return Anchors(vault=ours.vault, admin=ours.admin, head=max(heads, default=None))
