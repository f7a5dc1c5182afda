"""age keys, sealing and opening, and the words in which pyrage's failures reach a person."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyrage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailbackup.crypto import age
from mailbackup.errors import KeyMalformed, KeyProblem, MailbackupError, ObjectDamaged, RecordInvalid, WrongIdentity

PLUGIN_RECIPIENT = "age1test1qypqxpqhuqytu"
PLUGIN_IDENTITY = "AGE-PLUGIN-TEST-1PG9SCRG4YANY9"
TAG_RECIPIENT = "age1tag1qt8lw0ual6avlwmwatk888yqnmdamm7xfd0wak53ut6elz5c4swx2yqdj4e"


@pytest.fixture(scope="module")
def identity() -> age.Identity:
    return age.generate_identity()


@pytest.fixture(scope="module")
def stranger() -> age.Identity:
    return age.generate_identity()


@pytest.fixture(scope="module")
def ssh_key(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes an OpenSSH key and gives the path of its private half."""
    folder = tmp_path_factory.mktemp("ssh")

    def make(kind: str, *more: str, passphrase: str = "") -> Path:
        path = folder / "-".join(("key", kind, *more, passphrase))
        if not path.exists():
            command = ["ssh-keygen", "-q", "-t", kind, *more, "-N", passphrase, "-C", "someone@example.org", "-f", str(path)]
            subprocess.run(command, check=True)
        return path

    return make


def public(path: Path) -> str:
    return path.with_name(path.name + ".pub").read_text()


# ---------------------------------------------------------------- sealing and opening


@settings(deadline=None)
@given(st.binary(max_size=200_000))
def test_what_is_sealed_can_be_opened(data: bytes) -> None:
    pair = age.generate_identity()
    sealed = age.AgeSealer(pair.recipient).seal(data)
    assert sealed.startswith(b"age-encryption.org/v1\n")
    assert age.AgeOpener([pair.secret]).open(sealed) == data


def test_an_opener_with_many_epochs_opens_them_all(identity: age.Identity, stranger: age.Identity) -> None:
    opener = age.AgeOpener([stranger.secret, identity.secret])
    assert opener.open(age.AgeSealer(identity.recipient).seal(b"one")) == b"one"
    assert opener.open(age.AgeSealer(stranger.recipient).seal(b"two")) == b"two"


def test_a_stranger_is_told_that_the_key_is_wrong(identity: age.Identity, stranger: age.Identity) -> None:
    sealed = age.AgeSealer(identity.recipient).seal(b"secret")
    with pytest.raises(WrongIdentity):
        age.AgeOpener([stranger.secret]).open(sealed)
    with pytest.raises(WrongIdentity):
        age.AgeOpener([]).open(sealed)


def test_every_cut_and_every_flipped_byte_is_noticed(identity: age.Identity) -> None:
    sealed = age.AgeSealer(identity.recipient).seal(b"secret")
    opener = age.AgeOpener([identity.secret])
    for place in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[place] ^= 1
        for bad in (sealed[:place], bytes(flipped)):
            with pytest.raises((ObjectDamaged, WrongIdentity)):
                opener.open(bad)
    with pytest.raises(ObjectDamaged):
        opener.open(sealed + b"\0")


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_make_anything_but_our_errors(data: bytes) -> None:
    opener = age.AgeOpener([age.generate_identity().secret])
    for bad in (
        data,
        b"age-encryption.org/v1\n" + data,
        b"age-encryption.org/v1\n-> X25519 " + data,
        b"-----BEGIN AGE ENCRYPTED FILE-----\n" + data,
    ):
        with pytest.raises((ObjectDamaged, WrongIdentity)):
            opener.open(bad)


def test_the_real_age_program_opens_what_we_seal(identity: age.Identity, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(identity.secret + "\n")
    sealed = age.AgeSealer(identity.recipient).seal(b"mail")
    done = subprocess.run(["age", "-d", "-i", str(tmp_path / "key")], input=sealed, capture_output=True, check=True)
    assert done.stdout == b"mail"


class PanicException(BaseException):  # the name that pyo3 gives it
    pass


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No matching keys found", WrongIdentity),
        ("Decryption failed", WrongIdentity),
        ("Failed to decrypt an encrypted key", WrongIdentity),
        ("Could not find '\u2068age-plugin-yubikey\u2069' on the PATH.\nHave you installed the plugin?", WrongIdentity),
        ("'\u2068age-plugin-yubikey\u2069' couldn't use an identity: gone", WrongIdentity),
        ("Plugin returned multiple errors:\n- one", WrongIdentity),
        ("(internal) wrong PIN", WrongIdentity),
        ("Header is invalid", ObjectDamaged),
        ("Header MAC is invalid", ObjectDamaged),
        ("Unknown age format.\nHave you tried upgrading to the latest version?", ObjectDamaged),
        ("decryption error", ObjectDamaged),
        ("age file is truncated", ObjectDamaged),
        ("failed to fill whole buffer", ObjectDamaged),
        ("last chunk has been processed", ObjectDamaged),
        ("Last STREAM chunk is empty. Please report this, and/or try an older rage version.", ObjectDamaged),
        ("stream did not contain valid UTF-8", ObjectDamaged),
        ("line contains CR", ObjectDamaged),
        ("invalid armor (last line is missing padding)", ObjectDamaged),
        ("DecodeError: Invalid symbol 58, offset 7.", ObjectDamaged),
        ("a text of the next version", ObjectDamaged),
        ("", ObjectDamaged),
    ],
)
def test_the_texts_of_pyrage(text: str, expected: type[MailbackupError], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise pyrage.DecryptError(text)

    monkeypatch.setattr(pyrage, "decrypt", fail)
    with pytest.raises(expected) as caught:
        age.AgeOpener([]).open(b"")
    assert "\u2068" not in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("raised", "expected"), [(PanicException("boom"), ObjectDamaged), (OSError("odd"), ObjectDamaged)])
def test_a_panic_of_the_library_is_an_error_of_ours(
    raised: BaseException, expected: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise raised

    monkeypatch.setattr(pyrage, "decrypt", fail)
    monkeypatch.setattr(pyrage, "encrypt", fail)
    with pytest.raises(expected):
        age.AgeOpener([]).open(b"")
    with pytest.raises(MailbackupError, match="cannot seal"):
        age.AgeSealer(age.generate_identity().recipient).seal(b"")


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_not_of_the_library_passes(raised: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise raised

    monkeypatch.setattr(pyrage, "decrypt", fail)
    with pytest.raises(raised):
        age.AgeOpener([]).open(b"")


# ---------------------------------------------------------------- keys


def test_a_secret_is_in_no_repr(identity: age.Identity) -> None:
    parsed = age.parse_identities(identity.secret, "kit.txt")
    for shown in (identity, parsed, age.AgeOpener([identity.secret])):
        assert identity.secret not in repr(shown)
        assert identity.secret not in str(shown)
    assert parsed.recipients == (identity.recipient,)


def test_recipients_that_are_good(identity: age.Identity, ssh_key: Callable[..., Path]) -> None:
    for text in (identity.recipient, TAG_RECIPIENT, public(ssh_key("ed25519")), public(ssh_key("rsa", "-b", "2048"))):
        age.check_recipient(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "neither"),
        ("bob@example.org", "neither"),
        ("age1", "invalid Bech32"),
        ("age1qqqq", "invalid Bech32"),
        ("age1\nage1", "invalid Bech32"),
        ("ssh-ed25519 AAAA", "invalid SSH recipient"),
        ("ssh-dss AAAAB3", "neither"),
        (PLUGIN_RECIPIENT, "age-plugin-test"),
        ("age1tag1qqqq", "invalid Bech32"),
    ],
)
def test_recipients_that_are_not(text: str, reason: str) -> None:
    with pytest.raises(KeyMalformed, match=reason) as caught:
        age.check_recipient(text)
    assert repr(text) in caught.value.message


def test_a_mistyped_recipient_is_refused(identity: age.Identity) -> None:
    wrong = identity.recipient[:-1] + ("q" if identity.recipient[-1] != "q" else "p")
    with pytest.raises(KeyMalformed, match="Bech32"):
        age.AgeSealer(wrong)
    with pytest.raises(KeyMalformed, match="Bech32"):
        age.AgeKeyMaker([identity.recipient, wrong])


def test_secrets_given_for_recipients_are_not_quoted(identity: age.Identity, ssh_key: Callable[..., Path]) -> None:
    private = ssh_key("ed25519").read_text()
    for secret in (identity.secret, identity.secret.lower(), f" {identity.secret}", PLUGIN_IDENTITY, private):
        with pytest.raises(KeyMalformed, match="secret key was given") as caught:
            age.check_recipient(secret)
        assert secret.strip()[20:40] not in caught.value.message


def test_an_identity_file(identity: age.Identity, stranger: age.Identity) -> None:
    text = f"# created: today\r\n# public key: {identity.recipient}\r\n\r\n  {identity.secret}\r\n{stranger.secret}"
    assert age.parse_identities(text, "kit.txt").recipients == (identity.recipient, stranger.recipient)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no age identity"),
        ("# only a comment\n", "holds no age identity"),
        ("\n\npassword\n", "kit.txt, line 3: not an age identity"),
        ("AGE-SECRET-KEY-1QQQQ", "kit.txt, line 1: not an AGE-SECRET-KEY line"),
        (PLUGIN_RECIPIENT, "public key"),
        ("ssh-ed25519 AAAA", "public key"),
        (PLUGIN_IDENTITY, "plugin not usable: Could not find 'age-plugin-test'"),
        ("AGE-PLUGIN-TEST-1QQQ", "not a plugin identity"),
        ("-----BEGIN AGE ENCRYPTED FILE-----\nAAAA\n", "itself an encrypted age file"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", "not a usable OpenSSH private key"),
    ],
)
def test_texts_that_are_no_identities(text: str, reason: str) -> None:
    with pytest.raises(KeyMalformed, match=reason):
        age.parse_identities(text, "kit.txt")


@settings(deadline=None)
@given(st.text())
def test_no_text_makes_anything_but_key_malformed(text: str) -> None:
    for bad in ("AGE-SECRET-KEY-1SECRET\n" + text, "AGE-SECRET-KEY-1" + text, "-----BEGIN OPENSSH PRIVATE KEY-----" + text):
        with pytest.raises(KeyMalformed) as caught:
            age.parse_identities(bad, "kit.txt")
        assert "KEY-1SECRET" not in caught.value.message
    with pytest.raises(KeyMalformed):
        age.check_recipient("age1" + text)


# ---------------------------------------------------------------- epochs


def test_every_recipient_opens_the_epoch(identity: age.Identity, stranger: age.Identity, ssh_key: Callable[..., Path]) -> None:
    keys = [ssh_key("ed25519"), ssh_key("rsa", "-b", "2048"), ssh_key("rsa", "-b", "2048", "-m", "PEM")]
    fresh = age.AgeKeyMaker([identity.recipient, stranger.recipient, *map(public, keys)]).new_epoch("epoch 1\nof vault 0123")
    texts = [identity.secret, stranger.secret, *(path.read_text() for path in keys)]
    opened = {age.open_epoch(fresh.sealed, age.parse_identities(text, "kit.txt")) for text in texts}
    assert len(opened) == 1
    assert age.recipient_of(opened.pop()) == fresh.recipient


def test_the_identity_file_of_an_epoch(identity: age.Identity) -> None:
    fresh = age.AgeKeyMaker([identity.recipient]).new_epoch("epoch 1\nAGE-SECRET-KEY-1X")
    first, second, third, end = age.AgeOpener([identity.secret]).open(fresh.sealed).decode().split("\n")
    assert first == "# epoch 1 AGE-SECRET-KEY-1X"
    assert second == f"# public key: {fresh.recipient}"
    assert age.recipient_of(third) == fresh.recipient
    assert end == ""


def test_epochs_differ(identity: age.Identity) -> None:
    maker = age.AgeKeyMaker([identity.recipient])
    assert maker.new_epoch("1").recipient != maker.new_epoch("2").recipient


def test_a_vault_without_recipients_is_refused() -> None:
    with pytest.raises(KeyMalformed, match="nobody"):
        age.AgeKeyMaker([])


def test_the_wrong_kit_is_named(identity: age.Identity, stranger: age.Identity) -> None:
    fresh = age.AgeKeyMaker([identity.recipient]).new_epoch("1")
    with pytest.raises(WrongIdentity, match=f"old-kit.txt .{stranger.recipient}. does not open this vault"):
        age.open_epoch(fresh.sealed, age.parse_identities(stranger.secret, "old-kit.txt"))


@pytest.mark.parametrize("text", ["", "# only\n", "something\n", "{secret}\n{secret}\n", "{secret}\nmore\n", "\xff"])
def test_a_key_object_that_holds_something_else(text: str, identity: age.Identity) -> None:
    sealed = age.AgeSealer(identity.recipient).seal(text.format(secret=identity.secret).encode("latin-1"))
    with pytest.raises(RecordInvalid):
        age.open_epoch(sealed, age.parse_identities(identity.secret, "kit.txt"))


def test_ssh_keys_that_cannot_be_used(ssh_key: Callable[..., Path]) -> None:
    for path in (ssh_key("ed25519", passphrase="secret word"), ssh_key("rsa", "-m", "PEM", passphrase="secret word")):
        with pytest.raises(KeyMalformed, match="locked with a passphrase") as caught:
            age.parse_identities(path.read_text(), str(path))
        assert "ssh-keygen -p" in caught.value.hint
    with pytest.raises(KeyMalformed, match="ecdsa"):
        age.parse_identities(ssh_key("ecdsa").read_text(), "key")


# ---------------------------------------------------------------- plugins


class Screen(age.PluginTalk):
    def __init__(self, pin: str | None) -> None:
        self.pin = pin
        self.shown: list[str] = []

    def display_message(self, message: str) -> None:
        self.shown.append(message)

    def request_passphrase(self, description: str) -> str | None:
        return self.pin


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "age-plugin-test"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("fake_plugin.py")}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("plugin")
def test_a_plugin_can_be_a_recipient_and_speaks_with_a_person() -> None:
    age.check_recipient(PLUGIN_RECIPIENT)
    fresh = age.AgeKeyMaker([PLUGIN_RECIPIENT]).new_epoch("1")
    screen = Screen("1234")
    opened = age.open_epoch(fresh.sealed, age.parse_identities(f"# yubikey\n{PLUGIN_IDENTITY}\n", "key.txt", screen))
    assert age.recipient_of(opened) == fresh.recipient
    assert screen.shown == ["touch the key"]


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("pin", [None, "9999"])
def test_a_plugin_without_its_pin(pin: str | None) -> None:
    fresh = age.AgeKeyMaker([PLUGIN_RECIPIENT]).new_epoch("1")
    with pytest.raises(KeyProblem, match="no plain age key"):
        age.open_epoch(fresh.sealed, age.parse_identities(PLUGIN_IDENTITY, "key.txt", Screen(pin)))


# ---------------------------------------------------------------- passphrases


def test_a_passphrase_locks_a_text() -> None:
    locked = age.seal_passphrase("the kit: ä\n", "correct horse")
    assert locked.startswith("-----BEGIN AGE ENCRYPTED FILE-----\n")
    assert age.is_sealed(locked.encode())
    assert age.open_passphrase(f"\r\n {locked} \n".replace("\n", "\r\n"), "correct horse") == "the kit: ä\n"
    with pytest.raises(KeyMalformed, match=r"wrong passphrase for kit\.txt"):
        age.open_passphrase(locked, "correct house", "kit.txt")
    with pytest.raises(KeyMalformed, match=r"kit\.txt is damaged"):
        age.open_passphrase(locked[:-60], "correct horse", "kit.txt")


def test_no_passphrase_is_no_lock(identity: age.Identity) -> None:
    with pytest.raises(KeyMalformed, match="empty"):
        age.seal_passphrase("text", "")
    sealed = age.AgeSealer(identity.recipient).seal(b"text")
    for data in (sealed, b"", b"text", b"-----BEGIN AGE ENCRYPTED FILE-----"):
        with pytest.raises(KeyMalformed, match="not an age file that a passphrase opens"):
            age.open_passphrase(data, "word")
