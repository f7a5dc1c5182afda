"""Opening what the epochs sealed: their identities lie in the vault, sealed to the recipients, and are opened when a block first needs them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from mailbackup.content.ports import Opener
from mailbackup.errors import DamageError, IdentityMissing, ObjectDamaged, StoreError, WrongIdentity
from mailbackup.model.ids import ObjectKey, epoch_key, is_object_key
from mailbackup.vault.nearest import Nearest

KEY_LIMIT = 1 << 20  # bytes of a key object

Unwrap = Callable[[bytes], Opener]
"""Opens a key object with the user's identity and gives an opener for its epoch. Raises WrongIdentity or ObjectDamaged."""


class EpochOpener:
    """An Opener for the whole vault. Tries the epochs it knows, newest first, and loads further ones as needed."""

    def __init__(self, stores: Nearest, unwrap: Unwrap | None) -> None:
        self._stores = stores
        self._unwrap = unwrap
        self._openers: dict[int, Opener] = {}
        self._failed: dict[int, WrongIdentity | DamageError] = {}  # epochs that cannot be opened, and why
        self._lock = threading.Lock()

    def load(self, epoch: int) -> None:
        """Open the identity of an epoch now. Raises IdentityMissing, WrongIdentity, ObjectMissing or ObjectDamaged, or what the store raises."""
        with self._lock:
            self._load(epoch)

    def open(self, sealed: bytes) -> bytes:
        """The plaintext. Raises WrongIdentity only when an epoch's key is not for this identity; else ObjectDamaged."""
        tried: set[int] = set()
        plain = self._by_known(sealed, tried)
        if plain is not None:
            return plain
        with self._lock:
            plain = self._by_known(sealed, tried)  # another thread may have loaded one meanwhile
            for epoch in self._others() if plain is None else ():
                try:
                    self._load(epoch)
                except (WrongIdentity, DamageError):
                    continue
                plain = self._by_known(sealed, tried)
                if plain is not None:
                    break
            if plain is None:
                raise self._why()
            return plain

    def _by_known(self, sealed: bytes, tried: set[int]) -> bytes | None:
        """The plaintext, if an epoch that is loaded and not in `tried` opens it."""
        for epoch, opener in list(self._openers.items()):
            if epoch not in tried:
                tried.add(epoch)
                with contextlib.suppress(WrongIdentity):
                    return opener.open(sealed)
        return None

    def _why(self) -> WrongIdentity | DamageError:
        """Why no epoch opens a block. That its header is damaged looks just like a key that does not fit."""
        if not self._openers or any(isinstance(error, WrongIdentity) for error in self._failed.values()):
            return WrongIdentity("a block is sealed to an epoch that this identity does not open")
        damaged = "".join(f"; {error.message}" for error in self._failed.values())
        return ObjectDamaged(f"no key of the vault opens it: it is damaged, or the key of its epoch is missing or damaged{damaged}")

    def _others(self) -> list[int]:
        return sorted({int(key[5:15]) for key in self._keys("keys/")} - set(self._openers), reverse=True)

    def _keys(self, prefix: str) -> list[ObjectKey]:
        """Key objects below a prefix, in whatever store."""
        found: set[ObjectKey] = set()
        for store in self._stores.stores():
            try:
                found |= {ObjectKey(key) for key, _ in store.list(prefix) if is_object_key(key)}
            except StoreError as error:
                if not self._stores.several:
                    raise
                self._stores.gave_up(store, error)
        return sorted(found)

    def _candidates(self, epoch: int) -> Iterator[ObjectKey]:
        """Key objects of an epoch, the first without asking what there is."""
        yield epoch_key(epoch)
        yield from (key for key in self._keys(f"keys/{epoch:010d}-") if key != epoch_key(epoch))

    def _load(self, epoch: int) -> None:
        if epoch in self._openers:
            return
        if epoch in self._failed:
            raise self._failed[epoch]
        if self._unwrap is None:
            raise IdentityMissing("reading the contents of a vault needs an identity")
        error: WrongIdentity | DamageError = WrongIdentity(f"the identity does not open {epoch_key(epoch)}")
        for key in self._candidates(epoch):
            try:
                self._openers[epoch] = self._opened(key, self._unwrap)
                return
            except WrongIdentity:
                continue
            except DamageError as damage:
                error = damage
        self._failed[epoch] = error
        raise error

    def _opened(self, key: ObjectKey, unwrap: Unwrap) -> Opener:
        """The opener in a key object. Raises WrongIdentity or DamageError, which names it."""
        try:
            return self._stores.read(key, lambda store: unwrap(store.get(key, KEY_LIMIT)))
        except DamageError as damage:
            raise type(damage)(f"{key}: {damage.message}") from None
