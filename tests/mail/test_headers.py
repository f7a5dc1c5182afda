"""Summaries of header blocks, of honest and of hostile mail."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailbackup.mail.headers import ID_LIMIT, TEXT_LIMIT, Summary, summary
from mailbackup.mail.text import escaped, one_line


def subject(raw: bytes) -> str:
    return summary(b"Subject: " + raw + b"\n\n").subject


def test_an_ordinary_mail() -> None:
    header = (
        b"From bob Mon Jan  5 08:00:00 2026\r\n"
        b"Received: by mx1\r\n\tfor <alice@example.org>; Mon, 5 Jan 2026 01:00:00 +0000\r\n"
        b"Date: Mon, 5 Jan 2026 09:30:05 +0100\r\nFrom: Bob <bob@example.org>\r\n"
        b"SUBJECT : Minutes of\r\n  the meeting\r\n"
        b"Message-Id: <1@example.org>\r\nSubject: second\r\n\r\n"
    )
    expected = Summary("2026-01-05T08:30:05Z", "Bob <bob@example.org>", "Minutes of the meeting", "<1@example.org>")
    assert summary(header) == expected


def test_nothing() -> None:
    assert summary(b"") == summary(b"\n") == summary(b"\r\n") == Summary(None, "", "", "")


SUBJECTS = {
    b"=?utf-8?B?R3LDvMOfZQ==?=": "Grüße",
    b"=?UTF-8?q?Gr=C3=BC=C3=9Fe_aus?= der =?iso-8859-1?Q?K=FCche?=": "Grüße aus der Küche",
    b"=?utf-8?B?R3LD?=\r\n =?utf-8?B?vMOfZQ==?=": "Grüße",  # a character cut in two words
    b"=?utf-8*en?Q?a=20b?=": "a b",
    b"=?gb2312?B?xOO6ww==?=": "你好",
    b"=?iso-2022-jp?B?GyRCRnxLXBsoQg==?=": "日本",
    b"=?x-unknown?Q?abc?=": "abc",
    b"=?hex?Q?616263?=": "616263",  # a codec of Python, no charset
    b"=?unicode_escape?Q?=5Cx1b?=": "\\x1b",
    b"=?idna?Q?xn--?=": "xn--",
    b"=?utf-8?B?abc?=": "i\ufffd",  # padding missing
    b"=?utf-8?B?a?=": "=?utf-8?B?a?=",
    b"=?utf-8?Q?no end": "=?utf-8?Q?no end",
    b"C:\\u1234 =?utf-8?Q?=E2=82=AC?=": "C:\\u1234 €",  # an escape of Python is not one of mail
    "Grüße".encode(): "Grüße",  # raw UTF-8 (RFC 6532)
    b"Gr\xfc\xdfe": "Gr\ufffd\ufffde",  # raw 8-bit without a charset
    b"=?utf-8?Q?a=0Ab=0Dc=00d=1B[2Je?=": "a b c\ufffdd\ufffd[2Je",
    b"=?utf-8?Q?=E2=80=AEcod.exe?=": "\ufffdcod.exe",  # right-to-left override
    b"\tmany   blanks \x0b here ": "many blanks here",
    b"": "",
}


@pytest.mark.parametrize("raw", SUBJECTS)
def test_subject(raw: bytes) -> None:
    assert subject(raw) == SUBJECTS[raw]


DATES = {
    b"Mon, 5 Jan 2026 09:30:05 +0100": "2026-01-05T08:30:05Z",
    b"5 Jan 2026 09:30 GMT": "2026-01-05T09:30:00Z",
    b"Mon, 5 Jan 2026 09:30:05 -0000": "2026-01-05T09:30:05Z",
    b"Mon, 5 Jan 2026 09:30:05 (no zone)": "2026-01-05T09:30:05Z",
    b"Mon, 05 Jan 98 09:30:05 EST": "1998-01-05T14:30:05Z",
    b"Mon, 5 Jan 2026 25:61:61 +0000": None,
    b"Fri, 31 Dec 9999 23:59:59 -1200": None,
    b"Mon, 5 Jan 2026 09:30:05 +9999": None,
    b"Fri, 1 Jan 0500 00:00:00 +0000": "0500-01-01T00:00:00Z",
    b"yesterday": None,
    b"": None,
    b"\xff\xfe": None,
    b"9" * 10_000: None,
}


@pytest.mark.parametrize("raw", DATES)
def test_date(raw: bytes) -> None:
    assert summary(b"Date: " + raw + b"\n\n").date == DATES[raw]


def test_lines_that_are_no_headers_do_not_end_the_search() -> None:
    odd = b" continuation first\nnonsense\n folded nonsense\nSubject: found\nmore\n\nSubject: body"
    assert summary(odd).subject == "found"
    assert summary(b"From: a@example.org\rSubject: bare CR\r\rSubject: body").subject == "bare CR"
    assert summary(b"X: 1\n\nSubject: in the body\n").subject == ""


def test_everything_is_bounded() -> None:
    long = b"x" * 100_000
    found = summary(b"From: " + long + b"\nSubject: " + long + b"\nMessage-ID: " + long + b"\n\n")
    assert len(found.subject) == len(found.from_) == TEXT_LIMIT
    assert found.subject.endswith("…")
    assert len(found.message_id) == ID_LIMIT
    assert summary(b"X: y\n" * 60_000 + b"Subject: beyond 256 KiB\n\n").subject == ""


@pytest.mark.parametrize(
    "hostile",
    [
        b"Subject: " + b"=?a?q?" * 40_000,
        b"Subject: " + b"=?utf-8?q?" + b"=" * 200_000 + b"?=",
        b"Subject: " + b" =?utf-8?b?YQ==?=" * 20_000,
        b"Subject: a" + b"\n =?utf-8?b?YQ==?=" * 20_000,
        b"Subject: a\n" + b" b\n" * 100_000,
        b"Subject: " + b" " * 250_000 + b"x",
        b"Date: " + b"(" * 200_000,
        b"\n".join(b"X-%d: y" % n for n in range(30_000)),
        b"a" * 250_000,
    ],
    ids=["open-words", "equals", "words", "folded-words", "folds", "blanks", "comments", "lines", "one-line"],
)
def test_hostile_headers_are_quick(hostile: bytes) -> None:
    start = time.process_time()
    summary(hostile + b"\n\n")
    assert time.process_time() - start < 0.2  # 0.02 s here; of the processor, so that a busy machine does not matter


fragments = st.sampled_from(
    [
        b"Subject:",
        b"From:",
        b"Date:",
        b"Message-ID:",
        b"\n",
        b"\r\n",
        b"\n ",
        b"=?",
        b"?=",
        b"utf-8?B?",
        b"?q?",
        b"=0A",
        b"\0",
    ]
)
headers = st.lists(st.one_of(fragments, st.binary(max_size=12)), max_size=25).map(b"".join)


@given(headers)
@settings(max_examples=300)
def test_any_bytes_give_clean_lines(header: bytes) -> None:
    found = summary(header)
    for text in (found.from_, found.subject, found.message_id, found.date or ""):
        assert not any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in text)
        text.encode("utf-8")
    assert len(found.subject) <= TEXT_LIMIT


def test_escaped_and_one_line() -> None:
    assert escaped("a\x1bb") == "a\\u001bb"
    assert escaped("日本 語") == "日本 語"
    assert one_line("a\x1b\n b", 10) == "a\ufffd b"
    assert one_line("abcdef", 4) == "abc…"
    assert one_line("abcd", 4) == "abcd"
