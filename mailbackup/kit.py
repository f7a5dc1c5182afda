"""The recovery kit: everything that a restore needs besides the store, on one page that an age program takes as identity file.

Every line is a `#` comment except the AGE-SECRET-KEY line, so that `age -d -i kit.txt keys/…` works. The lines after `# mailbackup-kit: 1`
are `# name: value`; a value that is not plain printable text is written as a JSON string, so that one line stays one line. Unknown names
are for later versions; rescue-1.py reads `vault`, `admin-public` and `head`, wherever they stand, so that no other line may look like them.
With a passphrase the whole text is one armoured age file.
"""

from __future__ import annotations

import html
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mailbackup.crypto import age
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import IdentityMissing, KeyMalformed
from mailbackup.model.ids import Digest, PublicKey, VaultId
from mailbackup.model.ledger import Anchors
from mailbackup.model.options import StoreConfig, store_from_url

Passphrase = Callable[[], str]

SIZE_LIMIT = 1024 * 1024  # bytes of an identity file; a kit has some 4 KiB

_MARK = "# mailbackup-kit: 1"
_ANY_MARK = re.compile(r"^\s*# mailbackup-kit: ?(\S+)\s*$", re.MULTILINE)
_LINE = re.compile(r"# ([a-z0-9-]+): ?(.*)")
_HEX32, _HEX64 = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{64}")
_ANOTHER_COPY = "Use another copy of the kit, or an age identity file that holds its AGE-SECRET-KEY line."


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """A recovery kit. `stores` are (name, url); `files` hashes by object key (rescue-1.py, …); `head` the newest entry (seq, hash) then.

    Its repr shows neither the secrets nor the urls, as these may hold passwords.
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
        return self.kit.anchors if self.kit else None


# ---------------------------------------------------------------- writing

_Step = tuple[str, tuple[str, ...]]  # what to do, and the commands for it


def render(kit: Kit, passphrase: str | None) -> str:
    """The kit as a text file: for people first, then for programs. Locked with `passphrase` unless that is None (KeyMalformed if empty)."""
    text = "".join(f"{line}\n" for line in (*_for_people(kit), "#", *_for_programs(kit)))
    return text if passphrase is None else age.seal_passphrase(text, passphrase)


def page(kit: Kit) -> str:
    """The same as one HTML page to print: it holds the secrets in clear, needs nothing from elsewhere and runs nothing."""
    parts = [f"<h1>{html.escape(_title(kit))}</h1>", f"<p>{html.escape(_ABOUT)}</p>"]
    for heading, steps in _guide(kit):
        parts += [f"<h2>{html.escape(heading)}</h2>", "<ol>"]
        for what, commands in steps:
            shown = "".join(f"<pre>{html.escape(command)}</pre>" for command in commands)
            parts.append(f"<li>{html.escape(what)}{shown}</li>")
        parts.append("</ol>")
    lines = html.escape("\n".join(_for_programs(kit)))
    parts.append(f"<h2>The kit</h2><p>Typed into a file, exactly these lines are the kit again.</p>\n<pre>{lines}</pre>")
    return _PAGE.format(title=html.escape(_title(kit)), body="\n".join(parts))


def _title(kit: Kit) -> str:
    return f"Recovery kit of {_to_line(kit.host)}, written {_to_line(kit.created)}"


def _for_people(kit: Kit) -> Iterator[str]:
    yield f"# {_title(kit)}"
    yield "#"
    yield from _wrapped(_ABOUT, "# ")
    for heading, steps in _guide(kit):
        yield from ("#", f"# == {heading}")
        for number, (what, commands) in enumerate(steps, 1):
            yield from _wrapped(f"{number}. {what}", "#  ")
            yield from (f"#       {command}" for command in commands)


def _for_programs(kit: Kit) -> Iterator[str]:
    yield _MARK
    yield from (f"# vault: {kit.vault}", f"# created: {_to_line(kit.created)}", f"# host: {_to_line(kit.host)}")
    yield from (f"# recipient: {kit.recipient}", f"# admin-public: {kit.admin}", f"# admin-secret: {kit.admin_seed}")
    yield f"# writer: {kit.writer}"
    yield from (f"# store: {_to_line(name)} = {_to_line(url)}" for name, url in kit.stores)
    if kit.head:
        yield f"# head: {kit.head[0]} {kit.head[1]}"
    yield from (f"# file: {_to_line(name)} = {value}" for name, value in kit.files.items())
    yield kit.identity


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


# ---------------------------------------------------------------- what the person reads at 3 a.m.

_ABOUT = (
    "Whoever has this kit can read every backup of this host and decide which machine may write new ones; without it nobody can. "
    "Keep it secret and away from the server. There are three ways to get everything back; each works without the others. "
    "In the commands, kit.txt is this kit. If it is locked, each program asks for its passphrase."
)


def _guide(kit: Kit) -> tuple[tuple[str, tuple[_Step, ...]], ...]:
    # A line with a value in it begins with a word of ours, so that no value can look like a line of the kit.
    places = tuple(f"store {_to_line(name)} is at {_to_line(url)}" for name, url in kit.stores)
    run = "mailbackup --config restore.toml --identity kit.txt"
    rescue = "python3 rescue-1.py --vault VAULT --identity kit.txt"
    return (
        ("First", (("Make the backups reachable, read-only if you can.", places),)),
        (
            "With mailbackup",
            (
                ("Install it (Python 3.11 or newer).", ("python3 -m venv mb", "mb/bin/pip install mailbackup", "PATH=$PWD/mb/bin:$PATH")),
                ("Copy the following lines to restore.toml. Correct the address of a store that is elsewhere now.", (_COPY, *_config(kit))),
                ("Look at what is there.", (f"{run} snapshots", f"{run} ls")),
                (
                    "Get it back into new folders, look at it, then move it into place.",
                    (f"{run} restore mailbox --all --to /restore/mail", f"{run} restore files / --to /restore/files"),
                ),
            ),
        ),
        (
            "With the script in the vault (Python, age, zstd, openssl)",
            (
                ("VAULT is the folder of a store. Its script must have the SHA-256 that stands below.", ("sha256sum VAULT/rescue-1.py",)),
                ("Copy it, look, restore.", ("cp VAULT/rescue-1.py .", f"{rescue} --list", f"{rescue} --to /restore")),
            ),
        ),
        (
            "By hand (age, zstd)",
            (
                ("FORMAT-1.md in the vault explains all of it. Open the key of an epoch.", (f"age -d -i kit.txt {_KEY} > epoch",)),
                ("Open a snapshot; it says where everything else lies.", ("age -d -i epoch snapshots/NUMBER-HASH.age | zstd -d",)),
                (
                    "Open a block of LENGTH bytes at OFFSET of a pack.",
                    ("tail -c +$((OFFSET+1)) packs/XX/PACK | head -c LENGTH | age -d -i epoch | zstd -d",),
                ),
            ),
        ),
    )


def _config(kit: Kit) -> Iterator[str]:
    """A configuration that is good for reading. A source must be named, and none is read by a restore."""
    yield from ("[host]", f"name = {_toml(kit.host)}", "[[recipient]]", 'role = "recovery"', f"key = {_toml(kit.recipient)}", "[trust]")
    yield from (f"{name} = {_toml(value)}" for name, value in (("vault", kit.vault), ("admin", kit.admin), ("writer", kit.writer)))
    for name, url in kit.stores:
        yield from ("[[store]]", *_store(name, url))
    yield from ("[[directory]]", 'path = "/etc"')


def _store(name: str, url: str) -> Iterator[str]:
    """The options of a store; what stands behind the `?` of its address is one of them each."""
    try:
        store = store_from_url(name, url)
    except ValueError:  # a kit of a newer version: a person corrects it
        store = StoreConfig(name=name, url=url)
    defaults = StoreConfig(name="", url="")
    for option in StoreConfig.__struct_fields__:
        value = getattr(store, option)
        if value != getattr(defaults, option):
            yield f"{option} = {_toml(value) if isinstance(value, str) else json.dumps(value)}"


_COPY = r"sed -n '/^# *\[host\]/,/^# *path = /s/^# *//p' kit.txt > restore.toml"
_KEY = "keys/0000000001-0000000001.age"

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body {{ font: 11pt/1.35 serif; max-width: 45em; margin: 2em auto; color: #000; background: #fff }}
pre {{ font: 9.5pt/1.4 monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 0.3em 0 }}
h2 {{ margin: 1em 0 0.3em; page-break-after: avoid }}
li, pre {{ page-break-inside: avoid }}
</style></head><body>
{body}
</body></html>
"""


# ---------------------------------------------------------------- reading


def load_signing_key(path: str) -> SigningKey:
    """The signing key of a machine that prunes or drills. Raises IdentityMissing, KeyMalformed."""
    try:
        with open(path, encoding="ascii") as file:
            text = file.read(SIZE_LIMIT).strip()
    except OSError as error:
        raise IdentityMissing(f"cannot read the signing key {path}: {error.strerror}", hint="Run as the user who may read it.") from None
    except UnicodeDecodeError:
        raise KeyMalformed(f"{path} is not a signing key") from None
    if not _HEX64.fullmatch(text):
        raise KeyMalformed(f"{path} is not a signing key", hint="'mailbackup key new' makes one.")
    return SigningKey.from_hex(text)


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
    """The kit in `text`; `source` names it in errors. Raises KeyMalformed when it is no kit, or the passphrase is wrong."""
    return _parse(_unlocked(text.encode("utf-8", "surrogatepass"), passphrase, source), source)


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
        return data.decode("utf-8-sig")
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
    if age.recipient_of(kit.identity, f"recovery kit {source}") != kit.recipient:
        raise KeyMalformed(f"recovery kit {source}: the AGE-SECRET-KEY line and the recipient do not belong together", hint=_ANOTHER_COPY)
    if SigningKey.from_hex(kit.admin_seed).public != kit.admin:
        raise KeyMalformed(f"recovery kit {source}: admin-secret and admin-public do not belong together", hint=_ANOTHER_COPY)


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
            admin_seed=self._hex("admin-secret", _HEX64),
            admin=PublicKey(self._hex("admin-public", _HEX64)),
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
        if "head" not in self._values:
            return None
        found = re.fullmatch(r"([1-9][0-9]{0,9}) ([0-9a-f]{64})", self._one("head"))
        if not found:
            raise ValueError("the line '# head: …' must hold a number and 64 digits")
        return int(found[1]), Digest(found[2])


def _matching(form: re.Pattern[str], value: str, name: str) -> str:
    if not form.fullmatch(value):
        raise ValueError(f"the line '# {name}: …' must hold {'32' if form is _HEX32 else '64'} lower-case hexadecimal digits")
    return value


# ---------------------------------------------------------------- values on one line


def _to_line(value: str) -> str:
    """`value` itself when it is plain and cannot be mistaken, else a JSON string in ASCII and without `=`."""
    plain = value.isprintable() and value == value.strip() and not value.startswith('"') and " = " not in f" {value} "
    return value if value and plain else json.dumps(value).replace("=", "\\u003d")


def _from_line(text: str, name: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))  # what begins with a quotation mark is a string or an error
    except ValueError:
        raise ValueError(f"the line '# {name}: …' has a broken quotation") from None


def _toml(value: str) -> str:
    """`value` as a TOML string on one line. What is no character (a byte of a broken name) becomes `?`."""
    text = value.encode("utf-8", "replace").decode()
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08x}" for c in text) + '"'
