"""Location patterns."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbackup.mail.pattern import Pattern, address, key

MATCHES = [
    # pattern, root, names below the root, captured
    (
        "/var/vmail/{domain}/{user}/Maildir",
        b"/var/vmail",
        b"example.org/alice/Maildir",
        {"domain": b"example.org", "user": b"alice"},
    ),
    ("/var/vmail/{domain}/{user}/Maildir", b"/var/vmail", b"example.org/alice/mail", None),
    ("/var/vmail/{domain}/{user}/Maildir", b"/var/vmail", b"example.org/alice", None),
    ("/home/{user}/Maildir", b"/home", b"alice/Maildir", {"user": b"alice"}),
    ("/home/{user}/Maildir/", b"/home", b"alice/Maildir", {"user": b"alice"}),
    ("//home//{user}", b"/home", b"alice", {"user": b"alice"}),
    ("/{user}/Maildir", b"/", b"alice/Maildir", {"user": b"alice"}),
    ("/m/{domain}/{user:1}/{user}", b"/m", b"d/a/alice", {"domain": b"d", "user": b"alice"}),
    ("/m/{domain}/{user:1}/{user}", b"/m", b"d/a/Alice", {"domain": b"d", "user": b"Alice"}),
    ("/m/{domain}/{user:1}/{user}", b"/m", b"d/A/alice", {"domain": b"d", "user": b"alice"}),
    ("/m/{domain}/{user:1}/{user}", b"/m", b"d/b/alice", None),
    ("/m/{user}/a.c", b"/m", b"alice/abc", None),
    ("/m/{user:2}/{user}", b"/m", b"x/x", {"user": b"x"}),
    ("/m/{user:2}/{user}", b"/m", b"xy/xyz", {"user": b"xyz"}),
    ("/m/{user:2}/{user}", b"/m", b"x/xyz", None),
    ("/m/{user:1}/{user}", b"/m", "ü/über".encode(), {"user": "über".encode()}),
    ("/m/{user:1}/{user:2}/{user}", b"/m", b"a/al/alice", {"user": b"alice"}),
    ("/m/{address}", b"/m", b"alice@example.org", {"domain": b"example.org", "user": b"alice"}),
    ("/m/{address}", b"/m", b"a@b@c", {"domain": b"c", "user": b"a@b"}),
    ("/m/{address}", b"/m", b"alice", {"user": b"alice"}),
    ("/m/{address}", b"/m", b"@example.org", {"user": b"@example.org"}),
    ("/m/{domain}/{address}", b"/m", b"Example.org/alice@example.org", {"domain": b"Example.org", "user": b"alice"}),
    ("/m/{domain}/{address}", b"/m", b"example.net/alice@example.org", None),
    ("/m/{domain}/{address}", b"/m", b"example.net/alice", {"domain": b"example.net", "user": b"alice"}),
    ("/m/{user:1}/{address}", b"/m", b"a/alice@d", {"domain": b"d", "user": b"alice"}),
    ("/m/{user}@{domain}/box", b"/m", b"alice@d/box", {"domain": b"d", "user": b"alice"}),
    ("/m/*/{user}", b"/m", b"disk1/alice", {"user": b"alice"}),
    ("/m/mail-{user}.d/x", b"/m", b"mail-alice.d/x", {"user": b"alice"}),
    ("/m/mail-{user}.d/x", b"/m", b"mail-alicexd/x", None),
    ("/m/{user}/mail/{user}", b"/m", b"alice/mail/alice", {"user": b"alice"}),
    ("/m/{user}/mail/{user}", b"/m", b"alice/mail/bob", None),
    ("/m/{user}", b"/m", b"\xff\n", {"user": b"\xff\n"}),
    ("/m/a+b/{user}", b"/m/a+b", b"alice", {"user": b"alice"}),
]


@pytest.mark.parametrize(("text", "root", "below", "captured"), MATCHES)
def test_capture(text: str, root: bytes, below: bytes, captured: dict[str, bytes] | None) -> None:
    pattern = Pattern.parse(text)
    assert pattern.root == root
    assert pattern.capture(below.split(b"/")) == captured


def test_components() -> None:
    domain, user, maildir = Pattern.parse("/var/vmail/{domain}/u-{user}/Maildir").components
    assert (domain.literal, user.literal, maildir.literal) == (None, None, b"Maildir")
    assert user.matches(b"u-alice")
    assert not user.matches(b"alice")
    assert maildir.matches(b"Maildir")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begins with /"),
        ("var/{user}", "begins with /"),
        ("/", "needs {user} or {address}"),
        ("/var/mail/Maildir", "needs {user} or {address}"),
        ("/var/{domain}", "needs {user} or {address}"),
        ("/var/{user:1}", "needs {user} or {address}"),
        ("/var/{domain:1}/{user}", "{domain:1} needs {domain}"),
        ("/var/{name}/{user}", "{name} is not known"),
        ("/var/{}/{user}", "{} is not known"),
        ("/var/{user:0}/{user}", "1 to 99"),
        ("/var/{user:}/{user}", "1 to 99"),
        ("/var/{user:x}/{user}", "1 to 99"),
        ("/var/{user:²}/{user}", "1 to 99"),
        ("/var/{user", "braces"),
        ("/var/user}", "braces"),
        ("/var/{{user}}", "braces"),
        ("/var/a*/{user}", "whole component"),
        ("/var/{user}{user}", "twice"),
        ("/var/../{user}", "'..'"),
        ("/var/./{user}", "'.'"),
        ("/var/a\0b/{user}", "cannot be part"),
        ("/var/%d/%n", "Dovecot"),
        ("/var/%{domain}/%{user}", "Dovecot"),
        ("/var/%1Ln/{user}", "Dovecot"),
    ],
)
def test_what_cannot_be_a_pattern(text: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        Pattern.parse(text)
    assert says in str(caught.value)


def test_a_path_that_is_no_utf_8() -> None:
    pattern = Pattern.parse(os.fsdecode(b"/srv/\xff/{user}/\xfe"))
    assert pattern.root == b"/srv/\xff"
    assert pattern.capture([b"alice", b"\xfe"]) == {"user": b"alice"}


def test_a_percent_sign_is_not_always_dovecot() -> None:
    assert Pattern.parse("/srv/100%/{user}").root == b"/srv/100%"


KEYS = [
    ({"user": b"alice"}, "home:alice"),
    ({"user": b"alice", "domain": b"example.org"}, "home:example.org/alice"),
    ({"user": b"a/b", "domain": b"c:d"}, "home:c%3Ad/a%2Fb"),
    ({"user": b"a@b+c.d-e_f~"}, "home:a@b+c.d-e_f~"),
    ({"user": b"\xff %"}, "home:%FF%20%25"),
    ({"user": "ü".encode()}, "home:%C3%BC"),
]


@pytest.mark.parametrize(("captured", "expected"), KEYS)
def test_key(captured: dict[str, bytes], expected: str) -> None:
    assert key("home", captured) == expected


def test_key_quotes_the_location_too() -> None:
    assert key("a:b/c", {"user": b"u"}) == "a%3Ab%2Fc:u"


values = st.dictionaries(st.sampled_from(["user", "domain"]), st.binary(min_size=1, max_size=8))


@given(st.text(min_size=1, max_size=5), values, st.text(min_size=1, max_size=5), values)
def test_different_mailboxes_have_different_keys(one: str, a: dict[str, bytes], two: str, b: dict[str, bytes]) -> None:
    a, b = {"user": b"u"} | a, {"user": b"u"} | b
    assert (key(one, a) == key(two, b)) == ((one, a) == (two, b))


@pytest.mark.parametrize(
    ("captured", "domain", "expected"),
    [
        ({"user": b"Alice", "domain": b"Example.ORG"}, None, "Alice@example.org"),
        ({"user": b"alice"}, "Example.net", "alice@example.net"),
        ({"user": b"alice"}, None, "alice@mx1.example.com"),
        ({"user": b"alice@Example.org"}, "example.net", "alice@example.org"),
        ({"user": b"alice@example.org", "domain": b"example.org"}, None, "alice@example.org"),
        ({"user": b"alice@old", "domain": b"example.org"}, None, "alice@old@example.org"),
        ({"user": b"@x"}, "d", "@x@d"),
        ({"user": b"\xff"}, "d", "\\xff@d"),
    ],
)
def test_address(captured: dict[str, bytes], domain: str | None, expected: str) -> None:
    assert address(captured, domain, "MX1.example.com") == expected
