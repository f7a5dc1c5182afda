"""The recovery kit: everything that a restore needs besides the store, on one page that an age program takes as identity file.

Every line is a `#` comment except the AGE-SECRET-KEY line, so that `age -d -i kit.txt keys/…` works. The lines after `# mailbackup-kit: 1`
are `# name: value`; a value that is not plain printable text is written as a JSON string, so that one line stays one line. Unknown names
are for later versions. With a passphrase the whole text is one armoured age file.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mailbackup.crypto import age
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import IdentityMissing, KeyMalformed
from mailbackup.model.ids import Digest, PublicKey, VaultId
from mailbackup.model.ledger import Anchors

Passphrase = Callable[[], str]

SIZE_LIMIT = 1024 * 1024  # bytes of an identity file; a kit has some 4 KiB

_MARK = "# mailbackup-kit: 1"
_ANY_MARK = re.compile(r"^\s*# mailbackup-kit: ?(\S+)\s*$", re.MULTILINE)
_LINE = re.compile(r"# ([a-z0-9-]+): ?(.*)")
_HEX32, _HEX64 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")
_ANOTHER_COPY = "Use another copy of the kit, or an age identity file that holds its AGE-SECRET-KEY line."


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """A recovery kit. `stores` are (name, url), `files` hashes by object key (rescue-1.py, FORMAT-1.md, vault.json).

    `head` is the newest entry (seq, hash) when it was written. No repr shows `identity`, `admin_seed` or the urls, which may hold passwords.
    """

    vault: VaultId
    created: str
    host: str
    identity: str = field(repr=False)
    recipient: str
    admin_seed: str = field(repr=False)
    admin: PublicKey
    writer: PublicKey
    stores: tuple[tuple[str, str], ...] = field(repr=False)
    head: tuple[int, Digest] | None
    files: dict[str, Digest]

    @property
    def anchors(self) -> Anchors:
        """What a reader must know before it looks at a store."""
        return Anchors(vault=self.vault, admin=self.admin, head=self.head)


@dataclass(frozen=True, slots=True)
class KitOrIdentities:
    """What `--identity FILE` held: keys in any case, a kit and its anchors when it was one."""

    identities: age.UserIdentities
    kit: Kit | None = None

    @property
    def anchors(self) -> Anchors | None:
        """The anchors of the kit."""
        return self.kit and self.kit.anchors


# ---------------------------------------------------------------- reading


def load_identity_file(path: str, passphrase: Passphrase | None) -> KitOrIdentities:
    """The kit or age identity file (or unlocked OpenSSH private key) at `path`. `passphrase` is called only when the file is locked.

    Raises IdentityMissing when it cannot be read, KeyMalformed when it is neither, or the passphrase is wrong.
    """
    text = _unlocked(_read(path), passphrase, path)
    if not _ANY_MARK.search(text):
        return KitOrIdentities(age.parse_identities(text, path))
    kit = _parse(text, path)
    return KitOrIdentities(age.parse_identities(kit.identity, path), kit)


def parse(text: str, passphrase: Passphrase | None, source: str) -> Kit:
    """The kit in `text`; `source` names it in errors. Raises KeyMalformed when it is no kit, contradicts itself, or the passphrase is wrong."""
    return _parse(_unlocked(text.encode("utf-8", "surrogateescape"), passphrase, source), source)


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise IdentityMissing(f"cannot read the identity file {path}: {error.strerror}") from error
    if len(data) > SIZE_LIMIT:
        raise KeyMalformed(f"{path} is too long for an identity file")
    return data


def _unlocked(data: bytes, passphrase: Passphrase | None, source: str) -> str:
    """The text of an identity file, opened with the passphrase when it is an age file."""
    if age.is_sealed(data):
        if passphrase is None:
            raise KeyMalformed(f"{source} is locked with a passphrase and none was given", hint="Set $MAILBACKUP_PASSPHRASE_FILE.")
        return age.open_passphrase(data, passphrase(), source)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise KeyMalformed(f"{source} is neither a recovery kit nor an age identity file") from None


def _parse(text: str, source: str) -> Kit:
    version = _ANY_MARK.search(text)
    if version is None:
        raise KeyMalformed(f"{source} is not a recovery kit", hint="A kit has a line '# mailbackup-kit: 1'.")
    if version[1] != "1":
        raise KeyMalformed(f"{source} is a kit of version {version[1][:20]}, which this mailbackup does not know", hint="Use a newer one.")
    try:
        kit = _Fields(text[version.end() :]).kit()
    except ValueError as error:
        raise KeyMalformed(f"recovery kit {source}: {error}", hint=_ANOTHER_COPY) from None
    _check_pairs(kit, source)
    return kit


def _check_pairs(kit: Kit, source: str) -> None:
    """A kit that was typed from paper: a wrong digit in a key shows as halves that do not fit."""
    if age.recipient_of(kit.identity) != kit.recipient:
        raise KeyMalformed(f"recovery kit {source}: the AGE-SECRET-KEY line and the recipient do not belong together", hint=_ANOTHER_COPY)
    if SigningKey.from_hex(kit.admin_seed).public != kit.admin:
        raise KeyMalformed(f"recovery kit {source}: admin-key and admin do not belong together", hint=_ANOTHER_COPY)


class _Fields:
    """The lines after the mark. Its methods raise ValueError with a text that quotes no secret."""

    def __init__(self, text: str) -> None:
        self._values: dict[str, list[str]] = {}
        self._secrets: list[str] = []
        for line in (raw.strip() for raw in text.split("\n")):
            if found := _LINE.fullmatch(line):
                self._values.setdefault(found[1], []).append(found[2].strip())
            elif line and not line.startswith("#"):
                self._secrets.append(line)

    def kit(self) -> Kit:
        if len(self._secrets) != 1 or not self._secrets[0].startswith(age.SECRET_PREFIX):
            raise ValueError("it must have one AGE-SECRET-KEY line, and no other line without '#'")
        return Kit(
            vault=VaultId(self._hex("vault", _HEX32)),
            created=self._one("created"),
            host=self._one("host"),
            identity=self._secrets[0],
            recipient=self._one("recipient"),
            admin_seed=self._hex("admin-key", _HEX64),
            admin=PublicKey(self._hex("admin", _HEX64)),
            writer=PublicKey(self._hex("writer", _HEX64)),
            stores=tuple(self._pairs("store")),
            head=self._head(),
            files={name: Digest(_matching(_HEX64, value, "file")) for name, value in self._pairs("file")},
        )

    def _one(self, name: str) -> str:
        values = self._values.get(name, [])
        if len(values) != 1:
            raise ValueError(f"it must have one line '# {name}: …', and has {len(values)}")
        return _from_line(values[0], name)

    def _hex(self, name: str, form: re.Pattern[str]) -> str:
        return _matching(form, self._one(name), name)

    def _pairs(self, name: str) -> Iterator[tuple[str, str]]:
        for value in self._values.get(name, []):
            first, separator, second = value.partition(" = ")
            if not separator:
                raise ValueError(f"a line '# {name}: …' must have the form NAME = VALUE")
            yield _from_line(first, name), _from_line(second, name)

    def _head(self) -> tuple[int, Digest] | None:
        if self._one("head") == "none":
            return None
        found = re.fullmatch(r"([1-9][0-9]{0,9}) ([0-9a-f]{64})", self._one("head"))
        if not found:
            raise ValueError("the line '# head: …' must be a number and 64 hexadecimal digits, or none")
        return int(found[1]), Digest(found[2])


def _matching(form: re.Pattern[str], value: str, name: str) -> str:
    if not form.fullmatch(value):
        raise ValueError(f"the line '# {name}: …' must hold {'32' if form is _HEX32 else '64'} lower-case hexadecimal digits")
    return value


# ---------------------------------------------------------------- values on one line


def _to_line(value: str) -> str:
    """`value` itself when it is plain and cannot be mistaken, else a JSON string in ASCII."""
    plain = value.isprintable() and value == value.strip() and value and not value.startswith('"') and "=" not in value
    return value if plain else json.dumps(value)


def _from_line(text: str, name: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, str):
        raise ValueError(f"the line '# {name}: …' has a broken quotation")
    return value
