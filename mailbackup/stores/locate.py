"""From a `[[store]]` of the configuration to the store."""

from __future__ import annotations

from mailbackup.errors import ConfigInvalid
from mailbackup.model.options import StoreConfig
from mailbackup.stores.base import Store
from mailbackup.stores.local import LocalStore

SUPPORTED = "Supported: file:///absolute/path, s3://bucket/folder, borg:///absolute/path, borg+ssh://user@host:port/./path."


def open_store(place: StoreConfig, *, create: bool = False, work_dir: str | None = None) -> Store:
    """The store at `place`; with `create` it is made first where that is possible and it is missing. `work_dir` is a private directory of this
    host for what a store keeps beside it (spool, what it knows of the other side); None = a temporary one.

    Raises ConfigInvalid for an address that no store understands, StoreUnavailable or StoreRefused as the store does when it is opened.
    """
    if "://" not in place.url:
        raise _invalid(place, f"{place.url!r} does not begin with a kind of store")
    if place.scheme == "file":
        return _open_local(place, create)
    if place.scheme == "s3":
        from mailbackup.stores.s3.store import open_s3  # late: boto3 takes half a second

        return open_s3(place, create=create)
    if place.scheme in ("borg", "borg+ssh"):
        from mailbackup.stores.borg.store import open_borg

        return open_borg(place, create=create, work_dir=work_dir)
    raise _invalid(place, f"unknown kind of store {place.scheme + '://'!r}")  # the rest may hold a password


def _open_local(place: StoreConfig, create: bool) -> Store:
    try:
        path = place.path
    except ValueError:
        raise _invalid(place, f"{place.url!r} does not hold an absolute path") from None
    if create:
        LocalStore.create_root(path)
    return LocalStore(path, place.name, place.reserve, place.quota)


def _invalid(place: StoreConfig, why: str) -> ConfigInvalid:
    return ConfigInvalid(f"url of store {place.name}: {why}", hint=SUPPORTED)
