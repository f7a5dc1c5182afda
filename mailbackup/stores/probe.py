"""What a store says of itself, tried: the traits are promises, and an object store, its server and its rights keep them or do not.

Works on a store that holds a vault, needs no right to delete, and leaves nothing behind. (One exception: where a store ignores the condition
of a create-only put, vault.json is written once more with its own bytes; in a store with versions that is one more version.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mailbackup.errors import KeyExists, MailbackupError, ObjectMissing, StoreRefused
from mailbackup.model.ids import VAULT_KEY, ObjectKey, new_pack_id, pack_key
from mailbackup.stores.base import Store

_VAULT_LIMIT = 1 << 20  # bytes; a vault.json has a few hundred
_FIRST, _LENGTH = 2, 9  # bytes 2..10
_DAMAGE = "Something between this host and the store alters what is read: try without proxies and caches, then run 'mailbackup verify'."
_SKEW = 300  # seconds that two clocks may differ before it is told


@dataclass(frozen=True, slots=True)
class StoreProbe:
    """What one trial showed. `unknown`: nothing is wrong, but the store lacks this, or it could not be shown here.

    `hint` is the next step: there is one when something failed, and may be one else.
    """

    name: str
    outcome: Literal["ok", "failed", "unknown"]
    detail: str
    hint: str = ""


def probe(store: Store) -> list[StoreProbe]:
    """All trials, always the same ones in the same order. Whatever goes wrong in one is its outcome; raises nothing but KeyboardInterrupt and the like."""
    return [_tried(name, trial, store) for name, trial in _TRIALS.items()]


_Found = tuple[Literal["ok", "failed", "unknown"], str, str]


def _tried(name: str, trial: Callable[[Store], _Found], store: Store) -> StoreProbe:
    try:
        outcome, detail, hint = trial(store)
    except MailbackupError as error:
        return StoreProbe(name, "failed", error.message, error.hint)
    except Exception as error:  # a bug in a store is an answer too, and must not hide the answers of other trials
        return StoreProbe(name, "failed", f"{type(error).__name__}: {error}", MailbackupError.default_hint)
    return StoreProbe(name, outcome, detail, hint)


_NOT_CREATE_ONLY: _Found = (
    "unknown",
    "this store cannot refuse to replace an object: a second writer would not be noticed",
    "Let only this host write there.",
)


def _create_only(store: Store) -> _Found:
    if not store.traits.create_only:  # trying would replace vault.json
        return _NOT_CREATE_ONLY
    data = store.get(VAULT_KEY, _VAULT_LIMIT)
    try:
        store.put(VAULT_KEY, data)
    except KeyExists:
        if not store.traits.create_only:  # a directory finds out when it is first written to
            return _NOT_CREATE_ONLY
        return "ok", "an object that exists is not replaced", ""
    detail = "the store accepted an object whose key exists: it ignores the condition, and a second writer would not be noticed"
    return "failed", detail, "Say 'create_only = false' for this store, and let only one host write there."


def _ranges(store: Store) -> _Found:
    whole = store.get(VAULT_KEY, _VAULT_LIMIT)
    found = store.get_range(VAULT_KEY, _FIRST, _LENGTH)
    if found != whole[_FIRST : _FIRST + _LENGTH]:
        return "failed", f"bytes {_FIRST} to {_FIRST + _LENGTH - 1} of {VAULT_KEY} are not those of the whole object", _DAMAGE
    if not store.traits.range_reads:
        return "unknown", "parts of objects are right, but cost more than they return", ""
    return "ok", "parts of objects can be read", ""


def _listing(store: Store) -> _Found:
    if VAULT_KEY not in {key for key, _ in store.list(VAULT_KEY)}:
        return "failed", f"{VAULT_KEY} is there, and is not listed", "Let this host list the objects of the store."
    if not store.prefixes("ledger/"):
        return "failed", "no page of the ledger is listed", "Look for where its files went: mailbackup verify"
    return "ok", "objects and folders are listed", ""


def _absent(store: Store) -> _Found:
    try:
        store.stat(pack_key(new_pack_id()))
    except ObjectMissing:
        return "ok", "an object that is not there is told from one that is refused", ""
    return "failed", "the store claims to have an object that was never written", _DAMAGE


def _clock(store: Store) -> _Found:
    ahead = store.stat(VAULT_KEY).time - time.time()
    if ahead > _SKEW:
        whose = (
            "the clock of this host or of the store"
            if store.traits.trusted_time
            else "the clock of a host that wrote there, or of this one,"
        )
        return "failed", f"{VAULT_KEY} was written {int(ahead)} seconds from now: {whose} is wrong", "Set it: timedatectl set-ntp true"
    return "ok", "times are the store's own" if store.traits.trusted_time else "times are plausible; they are those of the writing host", ""


def _versions(store: Store) -> _Found:
    if store.traits.versions:
        return "ok", "versions are kept", ""
    return "unknown", "not kept: whoever can write may overwrite", ""


def _object_lock(store: Store) -> _Found:
    if store.traits.object_lock:
        return "ok", "objects cannot be removed before a date", ""
    return "unknown", "not used: whoever can delete may delete", ""


def _packs(store: Store) -> _Found:
    folders = store.prefixes("packs/")
    packs = list(store.list(folders[-1])) if folders else []  # one of up to 256 folders: a listing of all could take minutes
    if not packs:
        return "unknown", "there is none yet", ""
    newest = max(packs, key=lambda row: row[1].time)[0]
    try:
        store.get_range(ObjectKey(newest), 0, 1)
    except StoreRefused as error:
        detail = f"this host may not read packs: restores and read-back need other credentials ({error.message})"
        return "unknown", detail, ""
    return "ok", "this host can read them", ""


_TRIALS: dict[str, Callable[[Store], _Found]] = {
    "create-only": _create_only,
    "ranges": _ranges,
    "listing": _listing,
    "absent objects": _absent,
    "clock": _clock,
    "versions": _versions,
    "object lock": _object_lock,
    "packs": _packs,
}
