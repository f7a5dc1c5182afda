"""Requests to one bucket: each with limits of its own, each error translated, and what has to be known of the service.

boto3 is asked for one try a request. Its own retries would hide whether a put was sent twice, and that decides what "exists" means; the store
tries again itself (`mailbackup.stores.retry`). In its adaptive mode boto3 still slows all threads down when the service asks for it.
"""

from __future__ import annotations

import email.utils
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import boto3
import botocore.exceptions
import botocore.parsers
from botocore.config import Config
from urllib3.exceptions import HTTPError

from mailbackup.errors import ConfigInvalid, StoreRefused
from mailbackup.model.options import StoreConfig
from mailbackup.stores.bandwidth import Bandwidth
from mailbackup.stores.s3.address import Address
from mailbackup.stores.s3.errors import CREDENTIALS, MAY_NOT, Refusal, Translator
from mailbackup.stores.s3.payload import Throttled

DEFAULT_REGION = "us-east-1"  # what services that know no regions accept
CONNECT_SECONDS = 10
READ_SECONDS = 60
MAX_AHEAD = 24 * 3600  # seconds that the service's clock is believed to be ahead of ours
_PIECE = 256 << 10  # bytes that are read at once where a bandwidth is kept to


class Client:
    """The bucket of one store. Safe to use from several threads. Raises StoreRefused without credentials, ConfigInvalid for impossible options."""

    def __init__(self, place: StoreConfig, address: Address) -> None:
        self.bandwidth = Bandwidth(place.bandwidth)
        self._bucket = address.bucket
        self._clock: tuple[float, float] | None = None  # the service's time, and ours when it said so
        self._slots = threading.BoundedSemaphore(place.connections)
        self._translator = Translator(place.name)
        with self.translating("open a session"):
            session = boto3.Session(profile_name=place.profile)
            credentials = session.get_credentials()
            if credentials is None:
                raise StoreRefused(f"no credentials for store {place.name}", hint=CREDENTIALS)
            self._translator.secrets = tuple(filter(None, credentials.get_frozen_credentials()[:3]))
            self._boto = self._connect(session, place)

    def _connect(self, session: Any, place: StoreConfig) -> Any:
        if place.ca_bundle is not None and not os.path.exists(place.ca_bundle):
            raise ConfigInvalid(f"ca_bundle of store {place.name}: there is no {place.ca_bundle}")
        config = Config(
            s3={"addressing_style": place.addressing},
            retries={"mode": "adaptive", "total_max_attempts": 1},
            connect_timeout=CONNECT_SECONDS,
            read_timeout=READ_SECONDS,
            max_pool_connections=place.connections,
            # checksums are asked for where they help: a whole object. A service that adds one of the object to a part would be "wrong" else
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        region = session.region_name or DEFAULT_REGION
        try:
            boto = session.client(
                "s3", endpoint_url=place.endpoint, region_name=place.region or region, verify=place.ca_bundle, config=config
            )
        except ValueError as error:
            raise ConfigInvalid(f"store {place.name}: {self._translator.clean(str(error))}") from None
        boto.meta.events.register("before-send.s3", _begin_to_send)
        return boto

    # ------------------------------------------------------------ requests

    def call(self, operation: str, doing: str, key: str | None = None, **parameters: Any) -> dict[str, Any]:
        """One request and its answer. `doing` and `key` are for the text of errors. Raises what `Translator` makes of errors."""
        with self.translating(doing, key), self._slots:
            answer: dict[str, Any] = getattr(self._boto, operation)(Bucket=self._bucket, **parameters)
        self._note(answer.get("ResponseMetadata", {}))
        return answer

    def ask(self, operation: str, doing: str, key: str | None = None, **parameters: Any) -> dict[str, Any] | None:
        """As `call`; None when the service does not let these credentials ask this."""
        try:
            return self.call(operation, doing, key, **parameters)
        except StoreRefused as refusal:
            if isinstance(refusal.__cause__, Refusal) and refusal.__cause__.code in MAY_NOT:
                return None
            raise

    @contextmanager
    def body(self, operation: str, doing: str, key: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """As `call`, for answers with a `Body`, which is closed at the end: a body not read to its end costs its connection."""
        answer = self.call(operation, doing, key, **parameters)
        try:
            with self.translating(doing, key):
                yield answer
        finally:
            answer["Body"].close()

    def piece(self, answer: dict[str, Any], size: int) -> bytes:
        """The next bytes of the body of an answer, at most `size`; none at its end, and then its checksum was right, if it has one."""
        self.bandwidth.take(size)
        data: bytes = answer["Body"].read(size)
        return data

    def read(self, answer: dict[str, Any], size: int) -> bytes:
        """At most `size` bytes of the body of an answer, fewer only at its end."""
        data = bytearray()
        step = _PIECE if self.bandwidth.limited else size
        while len(data) < size and (piece := self.piece(answer, min(step, size - len(data)))):
            data += piece
        return bytes(data)

    @contextmanager
    def translating(self, doing: str, key: str | None = None) -> Iterator[None]:
        """Every error of boto3 in the body leaves as one of ours; what the service answered, without the request, is its cause."""
        try:
            yield
        except botocore.exceptions.ClientError as error:
            self._note(error.response.get("ResponseMetadata", {}))
            answer = Refusal.of(error.response, self._translator.clean)
            raise self._translator.answered(answer, doing, key) from answer
        except (botocore.exceptions.BotoCoreError, botocore.parsers.ResponseParserError, HTTPError, OSError) as error:
            raise self._translator.failed(error, doing) from None

    # ------------------------------------------------------------ the service's clock

    def now(self) -> datetime:
        """The time by the service's last answer, at most a day ahead of ours: a wrong one must not lock objects for ever."""
        ours, clock = time.time(), self._clock
        theirs = ours if clock is None else clock[0] + time.monotonic() - clock[1]
        return datetime.fromtimestamp(min(theirs, ours + MAX_AHEAD), UTC)

    def _note(self, meta: dict[str, Any]) -> None:
        said = meta.get("HTTPHeaders", {}).get("date")
        try:
            self._clock = (email.utils.parsedate_to_datetime(said).timestamp(), time.monotonic())
        except (TypeError, ValueError):
            return  # no date, or none that can be read: the last one stays

    def close(self) -> None:
        """Close all connections."""
        self._boto.close()


def _begin_to_send(request: Any, **_: Any) -> None:
    """Bodies are read once to be signed, and once to be sent: only the second is what a bandwidth limits."""
    if isinstance(request.body, Throttled):
        request.body.sending = True
