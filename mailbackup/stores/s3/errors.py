"""From what S3 services and boto3 say to the errors of mailbackup: the whole table, in one place.

Sources of the codes: the S3 API reference ("Error responses"), and what SeaweedFS, MinIO, Ceph, Garage, B2 and R2 add to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import botocore.exceptions as boto
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from mailbackup.errors import MailbackupError, ObjectDamaged, StoreRefused, StoreUnavailable
from mailbackup.stores.checks import key_exists, missing


class Meaning(Enum):
    """What an answer means for the one who asked."""

    MISSING = auto()
    EXISTS = auto()
    TOO_SHORT = auto()
    AGAIN = auto()
    REFUSED = auto()


PERMISSION = "Check the policy of these credentials: the guide docs/guides/s3.md shows what each host needs."
CREDENTIALS = "Check the access key and its secret (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or `profile` and ~/.aws/credentials)."
EXPIRED = "The credentials are no longer valid: renew them, or use an access key that does not expire."
CLOCK = "Compare the clocks: `timedatectl` on this host; the service allows a few minutes of difference."
BUCKET = "Make the bucket, or correct `url` and `endpoint` of the store."
REGION = "Correct `region` and `endpoint` of the store."
QUOTA = "Give the bucket or the account more room, or prune."
UNKNOWN_HEADER = (
    "If the service does not know If-None-Match, set create_only = false for this store; sse, tags, storage_class and lock_days are others."
)
LOCK = "The bucket must be made with Object Lock; else set lock_days = 0."
KMS = "Check `sse_key` and whether these credentials may use that key."
CLASS = "Correct `storage_class`."
ARCHIVED = "The object lies in an archive class: have the service restore it first."
CERTIFICATE = "Check the certificate of the service, or name its authority with `ca_bundle`."

CODES: dict[str, tuple[Meaning, str]] = {
    **dict.fromkeys(("NoSuchKey", "NoSuchVersion", "NotFound"), (Meaning.MISSING, "")),
    **dict.fromkeys(("PreconditionFailed",), (Meaning.EXISTS, "")),
    **dict.fromkeys(("InvalidRange",), (Meaning.TOO_SHORT, "")),
    **dict.fromkeys(
        (
            *("SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "InternalError", "RequestTimeout", "Busy", "ServerBusy"),
            *("Throttling", "ThrottlingException", "RequestThrottled", "TooManyRequests", "RequestLimitExceeded", "BandwidthLimitExceeded"),
            *("OperationAborted", "ConditionalRequestConflict", "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"),
            *("IncompleteBody", "XMinioServerNotInitialized", "XMinioReadQuorum", "XMinioWriteQuorum"),
        ),
        (Meaning.AGAIN, ""),
    ),
    **dict.fromkeys(
        ("AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "UnauthorizedAccess"), (Meaning.REFUSED, PERMISSION)
    ),
    **dict.fromkeys(
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity", "NotSignedUp", "InvalidClientTokenId", "MissingSecurityHeader"),
        (Meaning.REFUSED, CREDENTIALS),
    ),
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "RequestExpired"), (Meaning.REFUSED, EXPIRED)
    ),
    **dict.fromkeys(("RequestTimeTooSkewed", "RequestInTheFuture"), (Meaning.REFUSED, CLOCK)),
    **dict.fromkeys(("NoSuchBucket", "InvalidBucketName"), (Meaning.REFUSED, BUCKET)),
    **dict.fromkeys(
        (
            *("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
            *("InvalidRegion", "InvalidLocationConstraint"),
        ),
        (Meaning.REFUSED, REGION),
    ),
    **dict.fromkeys(
        (
            "QuotaExceeded",
            "ServiceQuotaExceeded",
            "XMinioAdminBucketQuotaExceeded",
            "XMinioStorageFull",
            "StorageFull",
            "InsufficientStorage",
        ),
        (Meaning.REFUSED, QUOTA),
    ),
    **dict.fromkeys(("NotImplemented",), (Meaning.REFUSED, UNKNOWN_HEADER)),
    **dict.fromkeys(("ObjectLockConfigurationNotFoundError", "InvalidRetentionPeriod"), (Meaning.REFUSED, LOCK)),
    **dict.fromkeys(("InvalidStorageClass",), (Meaning.REFUSED, CLASS)),
    **dict.fromkeys(("InvalidObjectState",), (Meaning.REFUSED, ARCHIVED)),
}
"""Code of an answer → its meaning, and the next step for the reader."""

STATUS: dict[int, str] = {
    301: "PermanentRedirect",
    307: "TemporaryRedirect",
    401: "InvalidAccessKeyId",
    403: "AccessDenied",
    404: "NoSuchKey",
    408: "RequestTimeout",
    409: "OperationAborted",
    412: "PreconditionFailed",
    416: "InvalidRange",
    429: "TooManyRequests",
    500: "InternalError",
    501: "NotImplemented",
    502: "ServiceUnavailable",
    503: "ServiceUnavailable",
    504: "ServiceUnavailable",
    507: "InsufficientStorage",
}
"""Status of an answer whose code is not known (answers to HEAD have none) → the code that it amounts to."""

MAY_NOT = frozenset({"AccessDenied", "Forbidden", "UnauthorizedAccess", "NotImplemented", "MethodNotAllowed", "403", "405", "501"})
"""Codes by which a service says that it knows who asks and does not answer this: there may be another way to find out."""

NO_LOCK = frozenset({"NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError"})
"""Codes by which a service says that a version has no lock."""

_AGAIN = (
    *(boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.ResponseStreamingError, boto.ReadTimeoutError),
    *(boto.ConnectTimeoutError, boto.ProxyConnectionError, HTTPError, ConnectionError, TimeoutError),
    ResponseParserError,  # an answer that was cut
)
_NO_CREDENTIALS = (
    *(boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError, boto.ProfileNotFound, boto.NoAuthTokenError),
    *(boto.TokenRetrievalError, boto.SSOError, boto.MetadataRetrievalError, boto.ConfigParseError, boto.ConfigNotFound),
)


_KEY_ID = re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{12,}\b")  # also of credentials that were renewed since


@dataclass(frozen=True)
class Refusal(Exception):
    """What a service answered instead of doing what it was asked. `said` and `date` are its own words."""

    code: str
    status: int
    said: str
    date: str

    @classmethod
    def of(cls, response: dict[str, Any], clean: Callable[[str], str]) -> Refusal:
        """From the answer as boto3 gives it, its words as `clean` leaves them."""
        error, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
        date = meta.get("HTTPHeaders", {}).get("date", "unknown")
        return cls(clean(str(error.get("Code", ""))), int(meta.get("HTTPStatusCode", 0)), clean(str(error.get("Message", ""))), clean(date))


class Translator:
    """Translates for one store. `secrets` never appear in what it says."""

    def __init__(self, store: str, secrets: Iterable[str] = ()) -> None:
        self.store = store
        self.secrets = tuple(secrets)

    def answered(self, answer: Refusal, doing: str, key: str | None = None) -> MailbackupError:
        """The error for what the service answered while `doing`. `key` is the object that was asked for, if one was."""
        meaning, hint = self._meaning(answer, key)
        if key is not None and meaning is Meaning.MISSING:
            return missing(key, self.store)
        if key is not None and meaning is Meaning.EXISTS:
            return key_exists(key, self.store)
        if key is not None and meaning is Meaning.TOO_SHORT:
            return ObjectDamaged(f"{key} in store {self.store} ends before the bytes that were asked for")
        what = f"{doing} in store {self.store}: the service says {f'{answer.code}: {answer.said}'[:300]}"
        if meaning is Meaning.AGAIN:
            return StoreUnavailable(what)
        if hint is CLOCK:
            what += f" (its time: {answer.date})"
        return StoreRefused(what, hint=hint or None)

    @staticmethod
    def _meaning(answer: Refusal, key: str | None) -> tuple[Meaning, str]:
        if answer.code == "InvalidRequest":  # says many things; what we can ask for wrongly is a lock
            return (Meaning.REFUSED, LOCK)
        if answer.code.upper().startswith("KMS"):
            return (Meaning.REFUSED, KMS)
        if answer.code in CODES:
            return CODES[answer.code]
        if answer.status == 404 and key is None:
            return CODES["NoSuchBucket"]
        return CODES.get(STATUS.get(answer.status, ""), (Meaning.REFUSED, ""))

    def failed(self, error: Exception, doing: str) -> MailbackupError:
        """The error for what went wrong before, or instead of, an answer."""
        what = f"{doing} in store {self.store}: {self.clean(str(error)) or type(error).__name__}"
        if isinstance(error, boto.FlexibleChecksumError):
            return ObjectDamaged(f"{doing} in store {self.store}: the bytes that came do not have the checksum that the service keeps")
        if isinstance(error, _NO_CREDENTIALS):
            return StoreRefused(what, hint=CREDENTIALS)
        if isinstance(error, boto.SSLError) and "CERTIFICATE_VERIFY_FAILED" in what:
            return StoreRefused(what, hint=CERTIFICATE)
        if isinstance(error, _AGAIN):
            return StoreUnavailable(what)
        return StoreRefused(what)

    def clean(self, text: str) -> str:
        """`text` on one line, without the secrets."""
        for secret in self.secrets:
            text = text.replace(secret, "…")
        return re.sub(r"\s+", " ", _KEY_ID.sub("…", text)).strip()
