"""`s3://bucket/folder`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mailbackup.errors import ConfigInvalid
from mailbackup.model.options import StoreConfig

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_PART = re.compile(r"(?!\.{1,2}$)[^\x00-\x1f\x7f/?#\\]+")


@dataclass(frozen=True)
class Address:
    """Where the objects of a store lie. `folder` is "" or ends with a slash."""

    bucket: str
    folder: str

    @classmethod
    def of(cls, place: StoreConfig) -> Address:
        """The address of a store. Raises ConfigInvalid; its text does not repeat the url, into which people write passwords."""
        bucket, _, folder = place.url.partition("://")[2].partition("/")
        parts = folder.strip("/").split("/") if folder.strip("/") else []
        if not _BUCKET.fullmatch(bucket) or not all(map(_PART.fullmatch, parts)):
            raise ConfigInvalid(
                f"url of store {place.name}: expected s3://bucket/folder", hint="Credentials and options do not belong into it."
            )
        return cls(bucket, "".join(f"{part}/" for part in parts))

    def name(self, key: str) -> str:
        """The name in the bucket of what has this key in the store."""
        return self.folder + key
