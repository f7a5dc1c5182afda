"""The C2SP/CCTV vectors of the age format: what pyrage says about each becomes the right error of ours."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mailbackup.crypto import age
from mailbackup.errors import KeyMalformed, MailbackupError, ObjectDamaged, WrongIdentity
from tests.corpus import corpus_dir

pytestmark = pytest.mark.corpus

EXPECTED = {"success": None, "no match": WrongIdentity}  # all others: damaged

TOLERATED = {"stanza_missing_body", "stanza_missing_final_line"}
"""Header failures that pyrage opens, as old versions of age wrote such headers. Their MAC is right, so nobody has changed them."""

REFUSED = {"armor_whitespace_outside"}
"""A success that pyrage refuses. Objects are not armoured, and for kits we take the white space away ourselves."""

TOO_MUCH_WORK = {"scrypt_work_factor_23"}
"""pyrage would take 8 GiB for it; our own limit refuses it before that."""


@dataclass(frozen=True)
class Vector:
    name: str
    expect: str
    payload: str
    identities: list[str]
    passphrase: str | None
    data: bytes

    @property
    def damaged(self) -> bool:
        return self.expect not in EXPECTED


def read_vector(path: Path) -> Vector:
    head, _, data = path.read_bytes().partition(b"\n\n")
    fields: dict[str, list[str]] = {}
    for line in head.decode().splitlines():
        key, _, value = line.partition(": ")
        fields.setdefault(key, []).append(value)
    assert set(fields) <= {"expect", "payload", "identity", "passphrase", "armored", "compressed", "file key", "comment"}
    passphrases = fields.get("passphrase", [])
    return Vector(
        name=path.name,
        expect=fields["expect"][0],
        payload=fields.get("payload", [""])[0],
        identities=fields.get("identity", []),
        passphrase=passphrases[0] if passphrases else None,
        data=zlib.decompress(data) if "compressed" in fields else data,
    )


@pytest.fixture(scope="session")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> list[Vector]:
    folder = corpus_dir(tmp_path_factory, "vectors") / "age-testkit" / "testdata"
    found = [read_vector(path) for path in sorted(folder.iterdir())]
    assert len(found) == 143
    return found


def needs_hybrid(vector: Vector) -> bool:
    return any(one.startswith("AGE-SECRET-KEY-PQ-1") for one in vector.identities)


def keyed(vectors: list[Vector]) -> Iterator[Vector]:
    """Vectors for X25519 keys, which is what vaults are sealed with."""
    return (vector for vector in vectors if not vector.passphrase and not needs_hybrid(vector))


def open_with_keys(vector: Vector) -> bytes | type[MailbackupError]:
    try:
        return age.AgeOpener(vector.identities).open(vector.data)
    except (WrongIdentity, ObjectDamaged) as error:
        return type(error)


def open_with_passphrase(vector: Vector) -> str | None:
    assert vector.passphrase is not None
    try:
        age.open_passphrase(vector.data, vector.passphrase)
    except KeyMalformed as error:
        return error.message
    return None


def test_every_vector_for_keys(vectors: list[Vector]) -> None:
    wrong = {}
    for vector in keyed(vectors):
        expected = EXPECTED.get(vector.expect, ObjectDamaged)
        if vector.name in REFUSED:
            expected = ObjectDamaged
        outcome = open_with_keys(vector)
        if vector.name in TOLERATED:
            assert isinstance(outcome, bytes)
        elif isinstance(outcome, bytes):
            if expected or hashlib.sha256(outcome).hexdigest() != vector.payload:
                wrong[vector.name] = (vector.expect, "opened")
        elif outcome is not expected:
            wrong[vector.name] = (vector.expect, outcome.__name__)
    assert wrong == {}


def test_there_are_vectors_of_every_kind(vectors: list[Vector]) -> None:
    kinds = Counter(vector.expect for vector in keyed(vectors))
    assert kinds == {
        "header failure": 33,
        "success": 19,
        "armor failure": 22,
        "payload failure": 19,
        "no match": 4,
        "HMAC failure": 1,
    }


def test_a_damaged_payload_releases_nothing(vectors: list[Vector]) -> None:
    damaged = [vector for vector in keyed(vectors) if vector.expect in ("payload failure", "HMAC failure")]
    assert len(damaged) == 20
    for vector in damaged:
        with pytest.raises(ObjectDamaged):
            age.AgeOpener(vector.identities).open(vector.data)


def test_every_vector_for_passphrases(vectors: list[Vector]) -> None:
    wrong = {}
    locked = [vector for vector in vectors if vector.passphrase]
    for vector in locked:
        message = open_with_passphrase(vector)
        if (message is None) != (vector.expect == "success"):
            wrong[vector.name] = (vector.expect, message)
        if vector.name in TOO_MUCH_WORK:
            assert "memory" in str(message)
        if vector.name in ("scrypt_no_match", "scrypt_bad_tag", "scrypt_work_factor_wrong"):
            assert "wrong passphrase" in str(message)
    assert wrong == {}
    assert len(locked) == 26


def test_hybrid_identities_are_refused_with_a_reason(vectors: list[Vector]) -> None:
    hybrid = [vector for vector in vectors if needs_hybrid(vector)]
    assert len(hybrid) == 19
    for vector in hybrid:
        with pytest.raises(KeyMalformed, match="post-quantum"):
            age.parse_identities("\n".join(vector.identities), "kit.txt")
