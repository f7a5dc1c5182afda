"""age: sealing, opening, and the keys of both. The only module that imports pyrage; its errors are translated here and only here.

pyrage has one DecryptError for everything, so that "no key of yours fits" and "these bytes are damaged" differ by message text alone.
`_opening_error` is the one function that reads it; tests/crypto/test_age_vectors.py runs it over all CCTV vectors and fixes each text.

pyrage 1.4 holds the GIL while it works (`pool` goes round that), wants `bytes` and no other buffer, and comes out of a Rust panic with an
exception that is not an Exception. What it returns is never longer than what it was given, so a hostile file cannot fill the memory;
only a passphrase file can (scrypt), and `open_passphrase` looks at its work factor first.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyrage

from mailbackup.errors import KeyMalformed, MailbackupError, ObjectDamaged, RecordInvalid, WrongIdentity

SECRET_PREFIX = "AGE-SECRET-KEY-1"  # noqa: S105
ARMOR_BEGIN = b"-----BEGIN AGE ENCRYPTED FILE-----"
BINARY_BEGIN = b"age-encryption.org/"
WORK_FACTOR_LIMIT = 22  # scrypt needs 2^22 KiB = 4 GiB there; the limit of the age program

_SECRET_SIGNS = ("AGE-SECRET-KEY-", "AGE-PLUGIN-", "PRIVATE KEY-----")
_SSH_BEGIN = re.compile(r"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----")
_SCRYPT = re.compile(rb"age-encryption\.org/v1\n-> scrypt \S+ (\d{1,4})\n")
_ISOLATES = dict.fromkeys((0x2068, 0x2069))

_NO_KEY_FITS = frozenset(
    {
        "No matching keys found",
        "Decryption failed",  # of the file key: a wrong passphrase, or an ssh key with the same four-byte tag
        "Failed to decrypt an encrypted key",
    }
)
_PLUGIN_SAYS = ("Plugin returned", "(")  # "(internal) wrong PIN": the kind of the error and the plugin's own words
_SSH_LOCKED = re.compile(r"ENCRYPTED|must be decrypted")


@dataclass(frozen=True, slots=True)
class Identity:
    """An age X25519 key pair. `secret` is shown by no repr."""

    secret: str = field(repr=False)
    recipient: str


@dataclass(frozen=True, slots=True)
class FreshEpoch:
    """What KeyMaker.new_epoch returns (content.ports.EpochKey, which this layer cannot import): public half, sealed identity file."""

    recipient: str
    sealed: bytes


@dataclass(frozen=True, slots=True)
class UserIdentities:
    """The keys of a person, from `source`; `recipients` are the public halves of those that are plain age keys."""

    source: str
    recipients: tuple[str, ...]
    keys: tuple[Any, ...] = field(repr=False, compare=False)


class PluginTalk:
    """How an age plugin (a hardware key) speaks with a person. In this one nobody is there: override what your screen can do.

    The arguments are texts of the plugin; None is "no answer". Methods must not raise.
    """

    def display_message(self, message: str) -> None:
        """Show it ("touch your key")."""

    def confirm(self, message: str, yes_string: str, no_string: str | None) -> bool | None:
        """Ask for yes or no."""

    def request_public_string(self, description: str) -> str | None:
        """Ask for a text that may be seen."""

    def request_passphrase(self, description: str) -> str | None:
        """Ask for a PIN."""


# ---------------------------------------------------------------- sealing and opening


class AgeSealer:
    """A Sealer to one X25519 recipient, in this process. Raises KeyMalformed when `recipient` is not one."""

    def __init__(self, recipient: str) -> None:
        self.recipient = recipient
        self._parsed = [_x25519_recipient(recipient)]

    def seal(self, data: bytes) -> bytes:
        """An age file of `data` (binary). Holds the GIL: about 3 ms a MiB."""
        return _encrypt(data, self._parsed)

    def close(self) -> None:
        """Nothing to release."""


class AgeOpener:
    """An Opener with the AGE-SECRET-KEY lines of any number of epochs. Raises KeyMalformed when one of them is not such a line."""

    def __init__(self, identities: Sequence[str]) -> None:
        self._keys = [_secret_key(secret, "an epoch identity") for secret in identities]

    def open(self, sealed: bytes) -> bytes:
        """The plaintext. Raises WrongIdentity when no key fits, ObjectDamaged when `sealed` is not a whole, authentic age file."""
        return _decrypt(sealed, self._keys)


class AgeKeyMaker:
    """A KeyMaker for the recipients of a vault, all of which can open what it seals. Raises KeyMalformed as `check_recipient` does."""

    def __init__(self, recipients: Sequence[str]) -> None:
        if not recipients:
            raise KeyMalformed("no recipient: nobody could open the backups", hint="Add a [[recipient]] with role recovery.")
        self._recipients = [_recipient(text) for text in recipients]

    def new_epoch(self, comment: str) -> FreshEpoch:
        """A fresh epoch whose identity file begins with `comment` (made one line). Nothing of it is kept here."""
        identity = generate_identity()
        text = f"# {' '.join(comment.split())}\n# public key: {identity.recipient}\n{identity.secret}\n"
        return FreshEpoch(identity.recipient, _encrypt(text.encode(), self._recipients))

    def seal(self, data: bytes) -> bytes:
        """An age file of `data` that all recipients can open."""
        return _encrypt(data, self._recipients)


def open_epoch(sealed: bytes, identities: UserIdentities) -> str:
    """The AGE-SECRET-KEY line in a key object (format section 5).

    Raises WrongIdentity when none of `identities` opens it, ObjectDamaged when it is not a whole, authentic age file, RecordInvalid when
    it holds anything but comments and one such line.
    """
    try:
        plain = _decrypt(sealed, list(identities.keys))
    except WrongIdentity as error:
        known = ", ".join(identities.recipients) or "no plain age key"
        raise WrongIdentity(f"{identities.source} ({known}) does not open this vault: {error.message}") from None
    lines = [line.strip() for line in plain.decode("utf-8", "replace").split("\n")]
    secrets = [line for line in lines if line and not line.startswith("#")]
    if len(secrets) != 1 or not secrets[0].startswith(SECRET_PREFIX):
        raise RecordInvalid("a key object must hold comment lines and one AGE-SECRET-KEY line")
    recipient_of(secrets[0])
    return secrets[0]


# ---------------------------------------------------------------- keys


def generate_identity() -> Identity:
    """A fresh X25519 key pair."""
    key = _call(pyrage.x25519.Identity.generate)
    return Identity(secret=str(key), recipient=str(key.to_public()))


def recipient_of(secret: str, where: str = "the identity") -> str:
    """The public half of an AGE-SECRET-KEY line. Raises KeyMalformed that begins with `where` and does not quote it."""
    return str(_secret_key(secret, where).to_public())


def check_recipient(text: str) -> None:
    """Raise KeyMalformed, saying which text and why, unless age files can be sealed to `text` on this machine.

    Good are age1… (X25519, tag and plugin recipients; for the latter the program age-plugin-NAME must be installed) and the ssh-ed25519
    and ssh-rsa lines of OpenSSH public key files. A secret given by mistake is not quoted.
    """
    _recipient(text)


def parse_identities(text: str, source: str, talk: PluginTalk | None = None) -> UserIdentities:
    """The keys in an age identity file or an unlocked OpenSSH private key. `source` names it in errors.

    An identity file holds comment lines and AGE-SECRET-KEY-1… or AGE-PLUGIN-… lines; plugins speak through `talk`. Raises KeyMalformed
    for anything else, naming the line but never its text.
    """
    if _SSH_BEGIN.match(text.lstrip()):
        return UserIdentities(source, (), (_ssh_key(text, source),))
    if is_sealed(text.encode("utf-8", "replace")):
        raise KeyMalformed(f"{source} is itself an encrypted age file", hint="Give its passphrase.")
    recipients: list[str] = []
    keys: list[Any] = []
    for number, line in enumerate((raw.strip() for raw in text.split("\n")), 1):
        if not line or line.startswith("#"):
            continue
        keys.append(_identity_key(line, f"{source}, line {number}", talk or PluginTalk()))
        if line.startswith(SECRET_PREFIX):
            recipients.append(str(keys[-1].to_public()))
    if not keys:
        raise KeyMalformed(f"{source} holds no age identity", hint="It must have a line that begins with AGE-SECRET-KEY-1.")
    return UserIdentities(source, tuple(recipients), tuple(keys))


def _identity_key(line: str, where: str, talk: PluginTalk) -> Any:
    if line.startswith(SECRET_PREFIX):
        return _secret_key(line, where)
    if line.startswith("AGE-PLUGIN-"):
        key = _parse(pyrage.plugin.Identity.from_str, line, f"{where}: not a plugin identity")
        return _parse(lambda one: pyrage.plugin.IdentityPluginV1(one.plugin(), [one], talk), key, f"{where}: plugin not usable")
    if line.startswith("AGE-SECRET-KEY-PQ-1"):
        raise KeyMalformed(f"{where}: post-quantum identities are not supported", hint="Use the age program to open keys/… by hand.")
    if line.startswith(("age1", "ssh-")):
        raise KeyMalformed(f"{where}: this is a public key", hint="Opening needs the secret half of it.")
    raise KeyMalformed(f"{where}: not an age identity")


def _secret_key(secret: str, where: str) -> Any:
    return _parse(pyrage.x25519.Identity.from_str, secret, f"{where}: not an AGE-SECRET-KEY line")


def _ssh_key(text: str, source: str) -> Any:
    try:
        return _parse(pyrage.ssh.Identity.from_buffer, text.encode("utf-8", "replace"), f"{source}: not a usable OpenSSH private key")
    except KeyMalformed as error:
        if not _SSH_LOCKED.search(error.message + text):
            raise
        hint = "Make an unlocked copy, use it, delete it: cp KEY COPY; ssh-keygen -p -N '' -f COPY."
        raise KeyMalformed(f"{source}: this OpenSSH key is locked with a passphrase", hint=hint) from None


def _recipient(text: str) -> Any:
    text = text.strip()
    if any(sign in text.upper() for sign in _SECRET_SIGNS):
        raise KeyMalformed("a secret key was given where a public recipient (age1… or ssh-…) belongs", hint="Give its public half.")
    what = f"recipient {text[:80]!r}"
    if text.startswith(("ssh-ed25519 ", "ssh-rsa ")):
        return _parse(pyrage.ssh.Recipient.from_str, text, what)
    kind = text.rpartition("1")[0]
    if kind == "age":
        return _x25519_recipient(text)
    if kind in ("age1tag", "age1tagpq"):
        return _parse(getattr(pyrage, kind[4:]).Recipient.from_str, text, what)
    if kind.startswith("age1"):
        key = _parse(pyrage.plugin.Recipient.from_str, text, what)
        return _parse(lambda one: pyrage.plugin.RecipientPluginV1(one.plugin(), [one], [], PluginTalk()), key, what)
    raise KeyMalformed(f"{what}: neither age1… nor an ssh-ed25519 or ssh-rsa public key")


def _x25519_recipient(text: str) -> Any:
    return _parse(pyrage.x25519.Recipient.from_str, text, f"recipient {text[:80]!r}")


# ---------------------------------------------------------------- passphrases


def seal_passphrase(text: str, passphrase: str) -> str:
    """An armoured age file of `text`, locked with `passphrase`; `age -d` opens it too.

    Takes about a second and 0.5 to 1 GiB of memory, which opening takes again: pyrage chooses the scrypt work factor by the speed of this
    machine. Raises KeyMalformed when the passphrase is empty.
    """
    if not passphrase:
        raise KeyMalformed("the passphrase is empty", hint="Choose one, or make the kit without a passphrase.")
    armored: bytes = _call(lambda: pyrage.passphrase.encrypt(text.encode(), passphrase, armored=True))
    return armored.decode()


def is_sealed(data: bytes) -> bool:
    """Whether `data` begins like an age file, armoured or binary."""
    return data.startswith(BINARY_BEGIN) or data.lstrip().startswith(ARMOR_BEGIN)


def open_passphrase(sealed: str | bytes, passphrase: str, source: str = "the file") -> str:
    """The text in an age file that is locked with a passphrase, armoured or binary. `source` names it in errors.

    Raises KeyMalformed when the passphrase is wrong, the file has none, is damaged, or asks for more than 4 GiB of memory.
    """
    data = sealed.encode("utf-8", "replace") if isinstance(sealed, str) else sealed
    if not data.startswith(BINARY_BEGIN):
        data = data.strip()  # people copy and paste
    factor = _work_factor(data)
    if factor is None:
        raise KeyMalformed(f"{source} is not an age file that a passphrase opens")
    if factor > WORK_FACTOR_LIMIT:
        raise KeyMalformed(f"{source} asks for more memory than a passphrase should", hint="mailbackup did not make it; use another copy.")
    try:
        plain: bytes = _call(pyrage.passphrase.decrypt, data, passphrase, failed=_opening_error)
        return plain.decode()
    except WrongIdentity:
        raise KeyMalformed(f"wrong passphrase for {source}", hint="Try again; mind the keyboard layout and the Caps Lock key.") from None
    except (ObjectDamaged, UnicodeDecodeError) as error:
        reason = "its content is not text" if isinstance(error, UnicodeDecodeError) else error
        raise KeyMalformed(f"{source} is damaged: {reason}", hint="Use another copy of it.") from None


def _work_factor(data: bytes) -> int | None:
    """log2 N of the scrypt stanza at the head of an age file; None when there is none."""
    if data.startswith(ARMOR_BEGIN):
        with contextlib.suppress(binascii.Error):  # what is not base64 pyrage will refuse
            data = base64.b64decode(b"".join(data.splitlines()[1:4]))  # 144 bytes: the version line and the first stanza
    found = _SCRYPT.match(data)
    return int(found[1]) if found else None


# ---------------------------------------------------------------- the border to pyrage


def _encrypt(data: bytes, recipients: list[Any]) -> bytes:
    sealed: bytes = _call(pyrage.encrypt, data, recipients)
    return sealed


def _decrypt(sealed: bytes, keys: list[Any]) -> bytes:
    plain: bytes = _call(pyrage.decrypt, sealed, keys, failed=_opening_error)
    return plain


def _parse(function: Callable[[Any], Any], value: Any, what: str) -> Any:
    """`function(value)`; when it fails, KeyMalformed that begins with `what`."""
    return _call(function, value, failed=lambda error: _ours(error) or KeyMalformed(f"{what}: {_first_line(error)}"))


def _call(function: Callable[..., Any], *arguments: Any, failed: Callable[[BaseException], BaseException] | None = None) -> Any:
    """`function(*arguments)`; whatever it raises becomes what `failed` makes of it."""
    try:
        return function(*arguments)
    except BaseException as error:  # a Rust panic is not an Exception
        raise (failed or _sealing_error)(error) from None


def _ours(error: BaseException) -> BaseException | None:
    """`error` when it is not pyrage's but Python's own or the caller's mistake, which must pass as they are."""
    return error if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError | TypeError) else None


def _sealing_error(error: BaseException) -> BaseException:
    return _ours(error) or MailbackupError(f"cannot seal: {_first_line(error)}")


def _opening_error(error: BaseException) -> BaseException:
    """WrongIdentity or ObjectDamaged for what pyrage raised while it opened a file. THE place that reads its message texts."""
    if _ours(error):
        return error
    text = _first_line(error)
    if text in _NO_KEY_FITS or "age-plugin-" in text or text.startswith(_PLUGIN_SAYS):
        return WrongIdentity(text)
    return ObjectDamaged(f"not a whole, authentic age file ({text})")


def _first_line(error: BaseException) -> str:
    """What pyrage says, without advice to its developers and without the marks that isolate names in its texts."""
    text = str(error).translate(_ISOLATES).strip() or type(error).__name__
    return text.splitlines()[0].partition(". Please report")[0]
