"""Lists of UIDs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbackup.mail.uidlist import Uidlist, parse

V3 = b"""3 V1275660208 N25022 G3085f01b7f11094c501100008c4a11c1
25006 :1276528487.M364837P9451.kurkku,S=1355,W=1394:2,
25017 W2481 :1276533073.M242911P3632.kurkku:2,F
25020 P123 Gabc O3 :with space :2,S
"""


def test_version_3() -> None:
    rows = {
        b"1276528487.M364837P9451.kurkku,S=1355,W=1394": 25006,
        b"1276533073.M242911P3632.kurkku": 25017,
        b"with space ": 25020,
    }
    assert parse(V3) == Uidlist(1275660208, 25022, rows)


def test_version_1_and_courier() -> None:
    assert parse(b"1 1173189136 20221\n20209 1276528487.mx:2,S\n20220 name with space\n") == Uidlist(
        1173189136, 20221, {b"1276528487.mx": 20209, b"name with space": 20220}
    )


@pytest.mark.parametrize(
    ("data", "next_uid"),
    [
        (b"3 V7 N1 G0\n5 :a\n6 :b\n", 7),  # seen in a real store: the header is not to be believed alone
        (b"3 V7 N9 G0\n5 :a\n6 :b\n", 9),
        (b"3 V7\n6 :b\n5 :a\n", 7),  # no next UID in the header; rows in no order
        (b"3 V7 N9", 9),
        (b"3 V7 Nx\n", 0),
        (b"1 7\n3 a\n", 4),
        (b"1 7 2\n4294967295 a\n", 4294967296),
    ],
)
def test_next_uid(data: bytes, next_uid: int) -> None:
    found = parse(data)
    assert found is not None
    assert found.uidvalidity == 7
    assert found.next_uid == next_uid


def test_rows_that_make_no_sense_are_passed_over() -> None:
    junk = b"\n\nnonsense\n0 :zero\n-1 :minus\n99999999999 :high\n1 no colon\n1\n1 :\n1 :../up\n\xff :x\n"
    data = b"3 V7 N3" + junk + b"2 :good:2,S\n2"
    assert parse(data) == Uidlist(7, 3, {b"good": 2})


def test_a_name_listed_twice_has_its_last_uid() -> None:
    found = parse(b"3 V7 N3\n1 :a:2,\n2 :a:2,S\n")
    assert found is not None
    assert found.rows == {b"a": 2}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"2 V1 N1\n",
        b"3\n",
        b"3 N5 G0\n",
        b"3 V0 N5\n",
        b"3 V4294967296 N5\n",
        b"1 x 5\n",
        b"1\n",
        b"\0" * 50,
        b"<html>",
    ],
)
def test_no_list(data: bytes) -> None:
    assert parse(data) is None


@given(st.binary(max_size=200), st.sampled_from([b"", b"3 V7 N3 G0\n", b"1 7 3\n"]))
def test_junk_never_raises(data: bytes, header: bytes) -> None:
    found = parse(header + data)
    assert found is None or all(0 < uid < found.next_uid for uid in found.rows.values())
