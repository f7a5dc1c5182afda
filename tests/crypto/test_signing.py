"""Signatures and the two lines of a signed record."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbackup.crypto.signing import SigningKey, seal_line, split_signed, verify
from mailbackup.errors import KeyMalformed, RecordInvalid
from mailbackup.model.ids import PublicKey

KEY = SigningKey.from_hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
LINES = st.binary(min_size=1, max_size=200).filter(lambda line: b"\n" not in line)


def test_the_first_vector_of_rfc_8032() -> None:
    assert KEY.public == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    expected = "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
    assert KEY.sign(b"").hex() == expected + "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"


def test_openssl_verifies_as_the_format_says(tmp_path: Path) -> None:
    line, signature = split_signed(seal_line(b'{"format":1}', KEY))
    der = bytes.fromhex("302a300506032b6570032100" + KEY.public)  # the DER head of an Ed25519 public key
    pem = f"-----BEGIN PUBLIC KEY-----\n{base64.b64encode(der).decode()}\n-----END PUBLIC KEY-----\n"
    (tmp_path / "key.pem").write_text(pem)
    (tmp_path / "sig").write_bytes(signature)
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin", "-in", "line", "-sigfile", "sig"]
    for content, status in ((line, 0), (line + b" ", 1)):
        (tmp_path / "line").write_bytes(content)
        assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == status


@given(LINES)
def test_a_signed_line_comes_back_and_verifies(line: bytes) -> None:
    data = seal_line(line, KEY)
    back, signature = split_signed(data)
    assert back == line
    assert verify(KEY.public, line, signature)
    assert not verify(SigningKey.generate().public, line, signature)
    assert not verify(KEY.public, line + b"x", signature)


@given(LINES, st.data())
def test_no_other_bytes_are_the_same_record(line: bytes, data: st.DataObject) -> None:
    """Whatever one byte is changed, removed or added: not a record, or not a valid signature. So the hash of a record is unique too."""
    good = seal_line(line, KEY)
    place = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.binary(min_size=1, max_size=1))
    for bad in (good[:place] + byte + good[place + 1 :], good[:place] + good[place + 1 :], good[:place] + byte + good[place:]):
        if bad == good:
            continue
        try:
            back, signature = split_signed(bad)
        except RecordInvalid:
            continue
        assert not verify(KEY.public, back, signature)


SIGNATURE = base64.b64encode(bytes(64))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\n\n",
        b"{}",
        b"{}\n",
        b"{}\n" + SIGNATURE,
        b"\n" + SIGNATURE + b"\n",
        b"{}\n" + SIGNATURE + b"\n\n",
        b"{}\n\n" + SIGNATURE + b"\n",
        b"{}\n" + SIGNATURE + b"\nmore\n",
        b"{}\n" + SIGNATURE + b"\r\n",
        b"{}\n " + SIGNATURE + b"\n",
        b"{}\n" + SIGNATURE[:-2] + b"\n",
        b"{}\n" + base64.b64encode(bytes(63)) + b"\n",
        b"{}\n" + base64.b64encode(bytes(65)) + b"\n",
        b"{}\n" + SIGNATURE[:-3] + b"B==\n",  # another spelling of the same 64 bytes
        b"{}\n" + base64.urlsafe_b64encode(b"\xff" * 64) + b"\n",
        b"{}\n" + b"\xff" * 88 + b"\n",
    ],
)
def test_what_is_not_two_lines_is_refused(data: bytes) -> None:
    with pytest.raises(RecordInvalid):
        split_signed(data)


def test_the_frame_of_these_cases_is_good() -> None:
    assert split_signed(b"{}\n" + SIGNATURE + b"\n") == (b"{}", bytes(64))


@pytest.mark.parametrize("line", [b"", b"two\nlines", b"end\n"])
def test_only_one_line_can_be_signed(line: bytes) -> None:
    with pytest.raises(ValueError, match="one line"):
        seal_line(line, KEY)


@pytest.mark.parametrize("public", ["", "00", "zz" * 32, KEY.public.upper(), KEY.public + " ", " " + KEY.public[1:], "é" * 64])
def test_a_malformed_public_key_verifies_nothing(public: str) -> None:
    assert not verify(PublicKey(public), b"x", KEY.sign(b"x"))


@pytest.mark.parametrize("signature", [b"", bytes(63), bytes(64), bytes(65)])
def test_a_malformed_signature_is_false(signature: bytes) -> None:
    assert not verify(KEY.public, b"x", signature)


def test_a_seed_comes_back() -> None:
    key = SigningKey.generate()
    assert SigningKey.from_hex(key.seed_hex).public == key.public
    assert key.seed_hex not in repr(key)
    assert key.public in repr(key)


@pytest.mark.parametrize("seed", ["", "secretsecret", "AB" * 32, " " + "ab" * 31 + " ", "ab" * 33])
def test_a_malformed_seed_is_not_quoted(seed: str) -> None:
    with pytest.raises(KeyMalformed) as caught:
        SigningKey.from_hex(seed)
    assert not seed or seed not in caught.value.message


def test_signing_does_not_load_the_age_library() -> None:
    code = "import sys, mailbackup.crypto.signing; sys.exit('pyrage' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
