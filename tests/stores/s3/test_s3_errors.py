"""What services and boto3 say, in our words: the whole table. None of it shows a secret."""

from __future__ import annotations

import traceback
from typing import Any

import botocore.exceptions as boto
import pytest
from botocore.parsers import ResponseParserError
from botocore.stub import Stubber
from urllib3.exceptions import ProtocolError

from mailbackup.errors import ConfigInvalid, KeyExists, MailbackupError, ObjectDamaged, ObjectMissing, StoreRefused, StoreUnavailable
from mailbackup.model.options import StoreConfig
from mailbackup.stores.locate import open_store
from mailbackup.stores.s3 import errors
from mailbackup.stores.s3.address import Address
from mailbackup.stores.s3.client import Client
from mailbackup.stores.s3.errors import Refusal, Translator
from mailbackup.testing.store_contract import KEY
from tests.stores.s3.conftest import Open
from tests.stores.s3.server import Weed

SAID = Translator("bucket", ["hush-hush"])

# (code, status) → error, what the hint must say
ANSWERS: list[tuple[str, int, type[MailbackupError], str]] = [
    ("NoSuchKey", 404, ObjectMissing, ""),
    ("NoSuchVersion", 404, ObjectMissing, ""),
    ("404", 404, ObjectMissing, ""),
    ("PreconditionFailed", 412, KeyExists, ""),
    ("412", 412, KeyExists, ""),
    ("InvalidRange", 416, ObjectDamaged, ""),
    ("SlowDown", 503, StoreUnavailable, ""),
    ("InternalError", 500, StoreUnavailable, ""),
    ("ServiceUnavailable", 503, StoreUnavailable, ""),
    ("WhoKnows", 502, StoreUnavailable, ""),
    ("TooManyRequests", 429, StoreUnavailable, ""),
    ("RequestTimeout", 400, StoreUnavailable, ""),
    ("ConditionalRequestConflict", 409, StoreUnavailable, ""),
    ("BadDigest", 400, StoreUnavailable, ""),
    ("AccessDenied", 403, StoreRefused, "policy"),
    ("403", 403, StoreRefused, "policy"),
    ("InvalidAccessKeyId", 403, StoreRefused, "access key"),
    ("SignatureDoesNotMatch", 403, StoreRefused, "access key"),
    ("ExpiredToken", 400, StoreRefused, "renew"),
    ("RequestTimeTooSkewed", 403, StoreRefused, "clocks"),
    ("NoSuchBucket", 404, StoreRefused, "bucket"),
    ("PermanentRedirect", 301, StoreRefused, "region"),
    ("AuthorizationHeaderMalformed", 400, StoreRefused, "region"),
    ("QuotaExceeded", 403, StoreRefused, "room"),
    ("XMinioStorageFull", 507, StoreRefused, "room"),
    ("507", 507, StoreRefused, "room"),
    ("NotImplemented", 501, StoreRefused, "create_only = false"),
    ("InvalidRequest", 400, StoreRefused, "lock_days"),
    ("KMS.DisabledException", 400, StoreRefused, "sse_key"),
    ("InvalidStorageClass", 400, StoreRefused, "storage_class"),
    ("InvalidObjectState", 403, StoreRefused, "archive"),
    ("NeverHeardOf", 418, StoreRefused, ""),
]


@pytest.mark.parametrize(("code", "status", "kind", "hint"), ANSWERS, ids=[row[0] for row in ANSWERS])
def test_answers(code: str, status: int, kind: type[MailbackupError], hint: str) -> None:
    found = SAID.answered(Refusal(code, status, "said so", "Tue, 24 Nov 2026 10:00:00 GMT"), "write x", "x")
    assert type(found) is kind
    assert hint in found.hint
    assert found.hint
    if kind in (StoreRefused, StoreUnavailable):
        assert code in found.message
        assert "bucket" in found.message


def test_a_skewed_clock_is_told_with_the_service_s_time() -> None:
    found = SAID.answered(Refusal("RequestTimeTooSkewed", 403, "", "Tue, 24 Nov 2026 10:00:00 GMT"), "write x", "x")
    assert "10:00:00" in found.message


def test_a_missing_thing_that_is_no_object_is_the_bucket() -> None:
    assert type(SAID.answered(Refusal("404", 404, "", ""), "list", None)) is StoreRefused


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (boto.EndpointConnectionError(endpoint_url="http://x"), StoreUnavailable),
        (boto.ConnectTimeoutError(endpoint_url="http://x"), StoreUnavailable),
        (boto.ReadTimeoutError(endpoint_url="http://x"), StoreUnavailable),
        (boto.ConnectionClosedError(endpoint_url="http://x"), StoreUnavailable),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), StoreUnavailable),
        (boto.ResponseStreamingError(error="cut"), StoreUnavailable),
        (boto.SSLError(endpoint_url="http://x", error="EOF occurred"), StoreUnavailable),
        (boto.SSLError(endpoint_url="http://x", error="CERTIFICATE_VERIFY_FAILED"), StoreRefused),
        (ProtocolError("broken"), StoreUnavailable),
        (ConnectionResetError("reset"), StoreUnavailable),
        (ResponseParserError("no element found"), StoreUnavailable),
        (boto.FlexibleChecksumError(error_msg="no"), ObjectDamaged),
        (boto.NoCredentialsError(), StoreRefused),
        (boto.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"), StoreRefused),
        (boto.CredentialRetrievalError(provider="role", error_msg="no"), StoreRefused),
        (boto.ProfileNotFound(profile="x"), StoreRefused),
        (boto.ParamValidationError(report="what"), StoreRefused),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_boto3_raises(error: Exception, kind: type[MailbackupError]) -> None:
    found = SAID.failed(error, "write x")
    assert type(found) is kind
    assert found.message.startswith("write x in store bucket")


def test_every_code_of_the_table_has_a_hint_where_it_refuses() -> None:
    assert all(hint for meaning, hint in errors.CODES.values() if meaning is errors.Meaning.REFUSED)
    assert set(errors.STATUS.values()) <= set(errors.CODES)


# ------------------------------------------------------------ opening


def test_without_credentials(weed: Weed, open_one: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreRefused, match="credentials") as caught:
        open_one()
    assert "AWS_ACCESS_KEY_ID" in caught.value.hint


def test_an_unknown_profile(open_one: Open) -> None:
    with pytest.raises(StoreRefused, match="nobody"):
        open_one(profile="nobody")


@pytest.mark.parametrize("variable", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_credentials_are_told_and_never_shown(open_one: Open, weed: Weed, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    wrong = "AKIAWRONGWRONGWRONG1"
    monkeypatch.setenv(variable, wrong)
    with pytest.raises(StoreRefused) as caught:
        open_one()
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caught.value.hint
    assert "access key" in caught.value.hint
    for secret in (wrong, weed.secret, weed.key):
        assert secret not in shown


def test_secrets_that_a_service_repeats_are_not_shown() -> None:
    answer = Refusal.of({"Error": {"Code": "X", "Message": "key hush-hush of ASIA1234567890123456\nfailed"}}, SAID.clean)
    assert answer.said == "key … of … failed"
    assert "hush" not in str(SAID.answered(answer, "write x", "x"))


def test_an_open_store_does_not_show_its_secrets(open_one: Open, weed: Weed) -> None:
    store = open_one()
    assert weed.secret not in repr(store) + repr(store._client) + repr(vars(store))


def test_a_bucket_that_does_not_exist(weed: Weed) -> None:
    place = StoreConfig(name="bucket", url="s3://no-such-bucket/mx", endpoint=weed.url, addressing="path", patience=1)
    for create in (False, True):
        with pytest.raises(StoreRefused) as caught:
            open_store(place, create=create)
        assert "bucket" in caught.value.hint


def test_a_bucket_that_vanished_is_not_missing_objects(weed: Weed, open_one: Open) -> None:
    bucket = weed.bucket()
    store = open_one(url=f"s3://{bucket}/mx")
    weed.client().delete_bucket(Bucket=bucket)
    for use in (lambda: store.stat(KEY), lambda: store.get(KEY, 1), lambda: list(store.list())):
        with pytest.raises(StoreRefused):
            use()


def test_a_service_that_is_not_there(weed: Weed) -> None:
    place = StoreConfig(name="bucket", url="s3://bucket/mx", endpoint="http://127.0.0.1:9", addressing="path", patience=1)
    with pytest.raises(StoreUnavailable):
        open_store(place)


@pytest.mark.parametrize(
    "url", ["s3://", "s3:///x", "s3://a:hush@b/x", "s3://bucket/../x", "s3://bucket/a//b", "s3://bucket/x?y=hush", "s3://bucket/a\nb"]
)
def test_impossible_addresses_are_not_repeated(url: str) -> None:
    with pytest.raises(ConfigInvalid, match="s3://bucket/folder") as caught:
        Address.of(StoreConfig(name="bucket", url=url))
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "bucket", "folder"),
    [
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        ("s3://my.bucket/mx1/", "my.bucket", "mx1/"),
        ("s3://b-1/a/b", "b-1", "a/b/"),
    ],
)
def test_addresses(url: str, bucket: str, folder: str) -> None:
    assert Address.of(StoreConfig(name="bucket", url=url)) == Address(bucket, folder)


@pytest.mark.parametrize("option", [{"endpoint": "nonsense"}, {"ca_bundle": "/nonexistent"}])
def test_impossible_options(open_one: Open, option: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid):
        open_one(**option)


# ------------------------------------------------------------ what this server cannot be made to say


@pytest.fixture
def stubbed(weed: Weed) -> Any:
    """A client whose answers the test writes."""
    place = StoreConfig(name="bucket", url="s3://bucket/mx", endpoint=weed.url, addressing="path", patience=1)
    client = Client(place, Address.of(place))
    with Stubber(client._boto) as stub:
        yield client, stub
    client.close()


def test_codes_that_only_other_services_use_come_through_the_client(stubbed: Any) -> None:
    client, stub = stubbed
    for code, status, kind, _ in ANSWERS:
        stub.add_client_error("put_object", code, "said so", status)
        with pytest.raises(kind):
            client.call("put_object", "write x", "x", Key="x", Body=b"")


@pytest.mark.parametrize("code", ["AccessDenied", "NotImplemented", "MethodNotAllowed"])
def test_what_may_not_be_asked(stubbed: Any, code: str) -> None:
    client, stub = stubbed
    stub.add_client_error("get_bucket_versioning", code, "no", 403)
    assert client.ask("get_bucket_versioning", "ask") is None
    stub.add_client_error("get_bucket_versioning", "InvalidAccessKeyId", "no", 403)
    with pytest.raises(StoreRefused):
        client.ask("get_bucket_versioning", "ask")
