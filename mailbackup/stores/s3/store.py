"""A store in a bucket of an S3 service: an object is one object, made whole by one request, and its key is its name below the folder.

How an object is created, and why so:

1. large ones are spooled to a file first, so that their SHA-256 is known before the first byte leaves. Nothing is ever uploaded in parts: what
   was cut in the middle is no object, and one checksum covers all of it;
2. `If-None-Match: *` makes the service refuse a name that is taken;
3. a request that failed in a way that may pass is sent again. When *then* the name is taken, it may be by ourselves, the answer to the first try
   having been lost: what is there is compared with what was sent;
4. in a bucket with versions a name that somebody deleted is free for the service. For the ledger, the acts and the vault's card older versions are
   looked for first: those names must never get a second meaning.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from mailbackup.errors import KeyExists, MailbackupError, ObjectDamaged, ObjectMissing, StoreRefused, StoreUnavailable
from mailbackup.model.ids import ObjectKey
from mailbackup.model.options import StoreConfig
from mailbackup.stores.base import ObjectStat, ObjectWriter, Shadow, StoreTraits
from mailbackup.stores.checks import checked_key, checked_range, key_exists, missing, too_long, too_short
from mailbackup.stores.retry import Patience, Tries
from mailbackup.stores.s3.address import Address
from mailbackup.stores.s3.client import Client
from mailbackup.stores.s3.errors import LOCK, NO_LOCK, Refusal
from mailbackup.stores.s3.payload import Payload
from mailbackup.stores.s3.reading import Reading, part_of
from mailbackup.stores.s3.versions import Chosen, Version, by_name, oldest_first, shadow_of, versions_of
from mailbackup.stores.s3.writer import Writer

_ONCE_FOR_EVER = ("ledger/", "acts/", "vault.json")  # names that must never get a second meaning
REQUEST_COST = 128 << 10  # bytes: 20 ms at 50 Mbit/s
_LOCKED = "Nothing and nobody removes it before that day: that is what lock_days is for."


def open_s3(place: StoreConfig, *, create: bool) -> S3Store:
    """The store at `place`. With `create` the bucket, which must exist, is asked for one object.

    Raises ConfigInvalid for impossible options, StoreUnavailable when the service does not answer within `place.patience`, StoreRefused when it
    refuses, when there are no credentials, or when `lock_days` is set and the bucket has no Object Lock.
    """
    address = Address.of(place)
    store = S3Store(place, Client(place, address), address)
    try:
        store.begin()
        if create:
            store.knock()
    except BaseException:
        store.close()
        raise
    return store


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is known of an object without reading it: `sha256` in base64 where the service keeps it, `etag` without quotes."""

    size: int
    etag: str
    sha256: str | None


class S3Store:
    """See `open_s3`. Safe to use from several threads; of their requests at most `connections` are under way at once."""

    def __init__(self, place: StoreConfig, client: Client, address: Address) -> None:
        self.name = place.name
        self._place = place
        self._client = client
        self._address = address
        self._patience = Patience(place.patience)
        self._chosen = Chosen()
        self._lists_versions = False
        self.traits = self._traits(versions=False)

    def _traits(self, *, versions: bool) -> StoreTraits:
        return StoreTraits(
            range_reads=True,
            create_only=self._place.create_only,
            durable_after_put=True,
            trusted_time=True,
            versions=versions,
            object_lock=self._place.lock_days > 0,
            lock_days=self._place.lock_days,
            parallel=self._place.connections,
            request_cost=REQUEST_COST,
        )

    # ------------------------------------------------------------ opening

    def begin(self) -> None:
        """Ask what the bucket can do. A host that may not ask gets the careful answer: no versions."""
        answer = self._patience.run(lambda _: self._client.ask("get_bucket_versioning", "ask for versions"))
        status = None if answer is None else answer.get("Status")
        self.traits = self._traits(versions=status == "Enabled")
        self._lists_versions = answer is None or status is not None  # also where they were kept once, or may be
        if self._place.lock_days > 0:
            self._check_lock()

    def _check_lock(self) -> None:
        answer = self._patience.run(lambda _: self._client.ask("get_object_lock_configuration", "ask for Object Lock"))
        if answer is None:
            return  # these credentials may not ask: then the first put finds out
        if answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") != "Enabled":
            raise StoreRefused(f"the bucket of store {self.name} has no Object Lock, but lock_days is {self._place.lock_days}", hint=LOCK)

    def knock(self) -> None:
        """Raises when the bucket does not answer."""
        self._patience.run(lambda _: self._knock())

    def _knock(self) -> None:
        self._client.call("list_objects_v2", "list", Prefix=self._address.folder, MaxKeys=1)

    def close(self) -> None:
        """See `Store.close`."""
        self._client.close()

    # ------------------------------------------------------------ writing

    def put(self, key: ObjectKey, data: bytes) -> None:
        """See `Store.put`. One request, and one more for keys of the ledger and the like in a bucket with versions."""
        self.ship(checked_key(key), Payload.of(data))

    def create(self, key: ObjectKey) -> AbstractContextManager[ObjectWriter]:
        """See `Store.create`."""
        return self._writing(checked_key(key))

    @contextmanager
    def _writing(self, key: str) -> Iterator[ObjectWriter]:
        writer = Writer(key, self.ship)
        try:
            yield writer
        finally:
            writer.abort()

    def ship(self, key: str, payload: Payload) -> None:
        """Create an object of these bytes, see `Store.put`. After a failed try, one that is there with the same bytes is ours."""
        if self.traits.versions and key.startswith(_ONCE_FOR_EVER) and self._versions(key):
            raise key_exists(key, self.name)

        def attempt(number: int) -> None:
            try:
                self._send(key, payload)
            except KeyExists:
                if number == 0 or not self._is_there(key, payload):
                    raise

        self._patience.run(attempt)

    def _send(self, key: str, payload: Payload) -> None:
        """One try. Raises KeyExists."""
        careful = not self._place.create_only  # the service would replace what is there
        if careful and self._look(key) is not None:
            raise key_exists(key, self.name)
        if isinstance(payload.data, bytes):
            self._client.bandwidth.take(payload.size)  # a file waits piece by piece
        answer = self._client.call(
            *("put_object", f"write {key}", key),
            Key=self._address.name(key),
            Body=payload.body(self._client.bandwidth),
            ContentLength=payload.size,
            ChecksumSHA256=payload.checksum,
            **self._wishes(key),
        )
        if answer.get("ChecksumSHA256", payload.checksum) != payload.checksum:
            raise StoreRefused(f"store {self.name} says that it got other bytes of {key} than were sent")
        if careful and not self._is_there(key, payload):
            raise key_exists(key, self.name)

    def _wishes(self, key: str) -> dict[str, Any]:
        """What a new object is asked to be besides its bytes."""
        place = self._place
        found: dict[str, Any] = {
            "IfNoneMatch": "*" if place.create_only else None,
            "StorageClass": place.storage_class if key.startswith("packs/") else None,
            "ServerSideEncryption": place.sse,
            "SSEKMSKeyId": place.sse_key,
            "Tagging": urlencode(place.tags) or None,
        }
        if place.lock_days > 0:
            found["ObjectLockMode"] = place.lock_mode.upper()
            found["ObjectLockRetainUntilDate"] = self._client.now() + timedelta(days=place.lock_days)
        return {name: value for name, value in found.items() if value is not None}

    def _is_there(self, key: str, payload: Payload) -> bool:
        """Whether the object has exactly these bytes. Where the service keeps no SHA-256 its MD5 will do: this is not against forgers."""
        seen = self._look(key)
        if seen is None or seen.size != payload.size:
            return False
        if seen.sha256 is not None:
            return seen.sha256 == payload.checksum
        return seen.etag == payload.md5() or self._sha256(key) == payload.sha256

    def _look(self, key: str) -> _Seen | None:
        """What is known of an object. A host that may not read it learns a little less from the listing."""
        name = self._address.name(key)
        try:
            answer = self._client.ask("head_object", f"look at {key}", key, Key=name, ChecksumMode="ENABLED")
        except ObjectMissing:
            return None
        if answer is not None:
            return _Seen(answer["ContentLength"], answer["ETag"].strip('"'), answer.get("ChecksumSHA256"))
        page = self._client.call("list_objects_v2", f"look at {key}", Prefix=name, MaxKeys=1)
        return next((_Seen(raw["Size"], raw["ETag"].strip('"'), None) for raw in page.get("Contents", ()) if raw["Key"] == name), None)

    def _sha256(self, key: str) -> bytes:
        found = hashlib.sha256()
        for piece in self.stream(ObjectKey(key)):
            found.update(piece)
        return found.digest()

    def flush(self) -> None:
        """See `Store.flush`: every put was durable."""

    # ------------------------------------------------------------ reading

    def get(self, key: ObjectKey, limit: int) -> bytes:
        """See `Store.get`. Bytes that do not have the checksum which the service keeps are asked for once more: it may have been the line."""
        checked_key(key)
        garbled: list[ObjectDamaged] = []

        def attempt(_: int) -> bytes | None:
            try:
                return self._fetch(key, limit)
            except ObjectDamaged as damage:
                garbled.append(damage)
                if len(garbled) > 1:
                    raise
                raise StoreUnavailable(damage.message) from None

        data = self._patience.run(attempt)
        if data is None:
            raise too_long(key, self.name, limit)
        return data

    def _fetch(self, key: str, limit: int) -> bytes | None:
        """All bytes; None when they are more than `limit`. Raises ObjectDamaged for a wrong checksum."""
        with self._client.body("get_object", f"read {key}", key, **self._named(key), ChecksumMode="ENABLED") as answer:
            size: int = answer["ContentLength"]
            return None if size > limit else self._client.read(answer, size + 1)

    def get_range(self, key: ObjectKey, offset: int, length: int) -> bytes:
        """See `Store.get_range`. One request."""
        checked_range(offset, length)
        checked_key(key)
        if length > 0:
            return self._patience.run(lambda _: self._fetch_range(key, offset, length))
        if self.stat(key).size < offset:
            raise too_short(key, self.name, offset, length)
        return b""

    def _fetch_range(self, key: str, offset: int, length: int) -> bytes:
        wanted = f"bytes={offset}-{offset + length - 1}"
        with self._client.body("get_object", f"read {key}", key, **self._named(key), Range=wanted) as answer:
            skip, there = self._part(key, answer, offset)
            if there < length:
                raise too_short(key, self.name, offset, length)
            data = self._client.read(answer, skip + length)[skip:]
        if len(data) != length:
            raise StoreUnavailable(f"read {key} in store {self.name}: the answer was cut")
        return data

    def _part(self, key: str, answer: dict[str, Any], offset: int) -> tuple[int, int]:
        part = part_of(answer, offset)
        if part is None:
            raise StoreRefused(f"store {self.name} answers with other bytes of {key} than were asked for ({answer.get('ContentRange')})")
        return part

    def stream(self, key: ObjectKey, chunk: int = 1 << 20) -> Iterator[bytes]:
        """See `Store.stream`. A body that breaks off is taken up again where it broke, as long as the object is still the same."""
        checked_key(key)
        reading, tries = Reading(self._named(key)), Tries(self._patience)
        while not reading.done:
            before = reading.position
            try:
                yield from self._go_on(key, reading, chunk)
            except StoreUnavailable as error:
                if reading.position > before:
                    tries.progress()
                tries.failed(error)
            except KeyExists:
                raise ObjectDamaged(f"{key} in store {self.name} was replaced while it was read") from None

    def _go_on(self, key: str, reading: Reading, chunk: int) -> Iterator[bytes]:
        with self._client.body("get_object", f"read {key}", key, **reading.request()) as answer:
            reading.answered(answer)
            skip, _ = self._part(key, answer, reading.position)
            self._client.read(answer, skip)
            while piece := self._client.piece(answer, chunk):
                reading.got(len(piece))
                yield piece
            reading.done = True

    def stat(self, key: ObjectKey) -> ObjectStat:
        """See `Store.stat`."""
        checked_key(key)
        return self._patience.run(lambda _: self._stat(key))

    def _stat(self, key: str) -> ObjectStat:
        try:
            answer = self._client.call("head_object", f"look at {key}", key, **self._named(key))
        except ObjectMissing:
            self._knock()  # an answer to HEAD does not tell whether it is the bucket that is missing
            raise
        return ObjectStat(answer["ContentLength"], _seconds(answer["LastModified"]))

    def _named(self, key: str) -> dict[str, str]:
        name = self._address.name(key)
        return {"Key": name, **self._chosen.parameters(name)}

    # ------------------------------------------------------------ listing

    def list(self, prefix: str = "") -> Iterator[tuple[str, ObjectStat]]:
        """See `Store.list`. One request for a thousand objects; in a bucket with versions, for a thousand versions."""
        if not _possible(prefix):
            return
        start = len(self._address.folder)
        for name, found in by_name(self._found(self._address.name(prefix))):
            shown = self._chosen.listed(name, found)
            if shown is not None and len(name) > start:  # a console makes an object of the folder's own name
                yield name[start:], ObjectStat(shown.size, _seconds(shown.time))

    def prefixes(self, prefix: str) -> tuple[str, ...]:
        """See `Store.prefixes`."""
        if not _possible(prefix):
            return ()
        start, pages = len(self._address.folder), self._pages(self._address.name(prefix), Delimiter="/")
        found = {raw["Prefix"][start:] for page in pages for raw in page.get("CommonPrefixes", ())}
        return tuple(sorted(name for name in found if name.startswith(prefix)))

    def _found(self, prefix: str) -> Iterator[Version]:
        for page in self._pages(prefix):
            yield from (version for version in versions_of(page) if version.name.startswith(prefix))  # services take `a//b` for `a/b`

    def _pages(self, prefix: str, **parameters: str) -> Iterator[dict[str, Any]]:
        """All pages of a listing, each asked for with patience."""
        asked: dict[str, str] | None = {"Prefix": prefix, **parameters}
        while asked is not None:
            page = self._page(asked)
            yield page
            position = {name: page[said] for name, said in _POSITIONS.items() if page.get(said)}
            asked = {"Prefix": prefix, **parameters, **position} if page.get("IsTruncated") else None

    def _page(self, asked: dict[str, str]) -> dict[str, Any]:
        if self._lists_versions:
            page = self._patience.run(lambda _: self._client.ask("list_object_versions", "list versions", **asked))
            if page is not None:
                return page
            self._lists_versions = False  # these credentials may not: then what is current is all there is
            self.traits = self._traits(versions=False)
        return self._patience.run(lambda _: self._client.call("list_objects_v2", "list", **asked))

    def _versions(self, key: str) -> tuple[Version, ...]:
        """All versions and markers of an object, the newest first."""
        name = self._address.name(key)
        return tuple(version for version in self._found(name) if version.name == name)

    # ------------------------------------------------------------ versions, deleting

    def now(self) -> float:
        """See `Store.now`: the clock of the service, as its last answer told it."""
        return self._client.now().timestamp()

    def uncover(self, key: ObjectKey) -> bool:
        """See `Store.uncover`."""
        checked_key(key)
        return self._lists_versions and self._chosen.uncover(self._address.name(key), self._versions(key))

    def shadows(self, prefix: str = "") -> Iterator[tuple[str, Shadow]]:
        """See `Store.shadows`. Nothing where these credentials may not list versions."""
        if not self._lists_versions or not _possible(prefix):
            return
        start = len(self._address.folder)
        for name, found in by_name(self._found(self._address.name(prefix))):
            shadow = shadow_of(found)
            if shadow is not None and len(name) > start:
                yield name[start:], shadow

    def locked_until(self, key: ObjectKey) -> float | None:
        """See `Store.locked_until`. Two requests: what is current may be what somebody put in front, with a lock of its own."""
        if not self.traits.object_lock:
            return None
        held = self._retention(key, self._genuine(key))
        return None if held is None else held[1].timestamp()

    def lock_until(self, key: ObjectKey, time: float) -> None:
        """See `Store.lock_until`. Three requests, two where nothing is to be done. A lock in compliance mode stays in that mode."""
        if not self.traits.object_lock:
            return
        name, until = self._genuine(key), datetime.fromtimestamp(time, UTC)
        mode, held = self._retention(key, name) or ("", None)
        if held is not None and held >= until:
            return
        wanted = "COMPLIANCE" if mode == "COMPLIANCE" else self._place.lock_mode.upper()
        retention = {"Mode": wanted, "RetainUntilDate": until}
        self._patience.run(lambda _: self._client.call("put_object_retention", f"lock {key}", key, **name, Retention=retention))

    def _genuine(self, key: ObjectKey) -> dict[str, str]:
        """The oldest version of an object by its name and id. Raises ObjectMissing."""
        name = self._address.name(checked_key(key))
        if not self._lists_versions:
            return {"Key": name}
        versions = oldest_first(self._versions(key))
        if not versions:
            raise missing(key, self.name)
        return {"Key": name, "VersionId": versions[0].id} if versions[0].id else {"Key": name}

    def _retention(self, key: str, name: dict[str, str]) -> tuple[str, datetime] | None:
        """Mode and date of the lock of a version."""
        try:
            answer = self._patience.run(lambda _: self._client.call("get_object_retention", f"ask for the lock of {key}", **name))
        except StoreRefused as refusal:
            if isinstance(refusal.__cause__, Refusal) and refusal.__cause__.code in NO_LOCK:
                return None
            raise
        found = answer.get("Retention", {})
        until: datetime | None = found.get("RetainUntilDate")
        return None if until is None else (str(found.get("Mode", "")), until)

    def delete(self, key: ObjectKey) -> None:
        """See `Store.delete`: every version by its id, the newest first, so that what is left of a cut deletion is the genuine object. A marker
        alone would free nothing, and hide what a reader still needs.
        """
        checked_key(key)
        if not self._lists_versions:
            self._delete(key)
            return
        for version in self._versions(key):
            self._delete(key, **({"VersionId": version.id} if version.id else {}))
        self._chosen.forget(self._address.name(key))

    def _delete(self, key: str, **version: str) -> None:
        name = {"Key": self._address.name(key), **version}
        try:
            with contextlib.suppress(ObjectMissing):
                self._patience.run(lambda _: self._client.call("delete_object", f"delete {key}", key, **name))
        except StoreRefused as refusal:
            until = self._locked_until(key, name)
            if until is None:
                raise
            raise StoreRefused(f"{key} in store {self.name} is locked until {until:%Y-%m-%d %H:%M} UTC", hint=_LOCKED) from refusal

    def _locked_until(self, key: str, name: dict[str, str]) -> datetime | None:
        with contextlib.suppress(MailbackupError):
            answer = self._client.ask("head_object", f"look at {key}", key, **name) or {}
            until: datetime | None = answer.get("ObjectLockRetainUntilDate")
            return until
        return None


_POSITIONS = {"ContinuationToken": "NextContinuationToken", "KeyMarker": "NextKeyMarker", "VersionIdMarker": "NextVersionIdMarker"}
"""What the next page is asked by → what this page says."""


def _seconds(time: datetime) -> float:
    """Whole seconds: listings of some services say more than their answers to HEAD."""
    return time.replace(microsecond=0).timestamp()


def _possible(prefix: str) -> bool:
    """Whether the name of an object may begin with this."""
    try:
        return b"\0" not in prefix.encode()
    except UnicodeEncodeError:
        return False
