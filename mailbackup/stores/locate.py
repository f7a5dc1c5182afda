"""From the address of a store, as it stands in the configuration, to the store."""

from __future__ import annotations

import os
from urllib.parse import unquote

from mailbackup.errors import ConfigInvalid
from mailbackup.stores.base import Store
from mailbackup.stores.local import LocalStore

SUPPORTED = "Supported: file:///absolute/path (a directory; percent-encoding is decoded)."


def open_store(url: str, name: str, *, create: bool = False, reserve: int | None = None) -> Store:
    """The store at `url`; with `create` its directory is made first where it is missing. `reserve` as in `LocalStore`.

    Raises ConfigInvalid for an address that no store understands, StoreUnavailable or StoreRefused as the store does when it is opened.
    """
    scheme, found, rest = url.partition("://")
    if not found:
        raise _invalid(name, f"{url!r} does not begin with a kind of store")
    if scheme.lower() != "file":
        raise _invalid(name, f"unknown kind of store {scheme + '://'!r}")  # the rest may hold a password
    path = unquote(rest, errors="surrogateescape")
    if not path.startswith("/") or "\0" in path:
        raise _invalid(name, f"{url!r} does not hold an absolute path")
    return _open_local(os.path.normpath(path), name, create, reserve)


def _open_local(path: str, name: str, create: bool, reserve: int | None) -> Store:
    if create:
        LocalStore.create_root(path)
    return LocalStore(path, name, reserve)


def _invalid(name: str, why: str) -> ConfigInvalid:
    return ConfigInvalid(f"url of store {name}: {why}", hint=SUPPORTED)
