"""Where mailboxes lie: `/var/vmail/{domain}/{user}/Maildir`, and what a path says about whose mailbox it is.

| written | matches | captured |
|---|---|---|
| `{user}`, `{domain}` | any part of one component | as it is called |
| `{address}` | the same | as user and domain, when it holds an `@`; else as user |
| `{user:1}` | the first character (or more) of the user, in any case of letters | no; it must agree |
| `*` | one whole component | no |
| anything else | itself | no |

A pattern captures a user or an address. The same variable may occur again (`/srv/{user}/mail/{user}`) and must then
have the same value. With `*` two mailboxes may have the same key: the caller has to notice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from mailbackup.model.ids import show

_VARIABLE = re.compile(r"\{(?P<name>[^{}:]*)(?::(?P<count>[^{}]*))?\}")
_NAMES = ("domain", "user", "address")
_DOVECOT = re.compile(r"%\{|%L?\d*(?:\.\d+)?L?[und](?![A-Za-z0-9])")
_KEY_ORDER = ("domain", "user")
_KEY_SAFE = "@+"  # besides letters, digits and "_.-~"


@dataclass(frozen=True, slots=True)
class Component:
    """One component of a pattern. `literal` is its name when it can have only one: nobody needs to list the
    directory."""

    text: str
    literal: bytes | None
    form: re.Pattern[bytes]

    def matches(self, name: bytes) -> bool:
        """Whether a directory of this name can lie on the way to a mailbox."""
        return self.form.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Pattern:
    """`root` is the longest directory that is the same for all mailboxes, `components` what follows below it."""

    text: str
    root: bytes
    components: tuple[Component, ...]

    @staticmethod
    def parse(text: str) -> Pattern:
        """The pattern that is written as `text`. Raises ValueError with a sentence for the person who wrote it."""
        if not text.startswith("/"):
            raise ValueError(f"{text!r}: a path of mailboxes begins with /")
        if _DOVECOT.search(text):
            raise ValueError(f"{text!r}: write {{user}}, {{domain}}, {{address}} where Dovecot has %n, %d, %u")
        parts = [part for part in text.split("/") if part]
        components = [_component(part, text) for part in parts]
        _check_variables({name for part in parts for name in _variables(part)}, text)
        literals = 0
        while components[literals].literal is not None:
            literals += 1
        root = b"/" + b"/".join(component.literal or b"" for component in components[:literals])
        return Pattern(text, root, tuple(components[literals:]))

    def capture(self, names: Sequence[bytes]) -> dict[str, bytes] | None:
        """`user` and maybe `domain`, from the names of the directories below `root`; None = they do not fit."""
        if len(names) != len(self.components):
            return None
        found: dict[str, bytes] = {}
        for component, name in zip(self.components, names, strict=True):
            match = component.form.fullmatch(name)
            if match is None:
                return None
            for variable, value in match.groupdict().items():
                if found.setdefault(variable, value) != value:
                    return None
        return _settled(found)


def key(location: str, captured: Mapping[str, bytes]) -> str:
    """The identity of a mailbox: `location:domain/user`, or `location:user` when no domain is captured.

    Every byte but ASCII letters, digits and `_.-~@+` is percent-encoded, so different mailboxes have different keys.
    The order is fixed: keys stand in vaults.
    """
    values = [quote(captured[name], safe=_KEY_SAFE) for name in _KEY_ORDER if name in captured]
    return f"{quote(location, safe=_KEY_SAFE)}:{'/'.join(values)}"


def address(captured: Mapping[str, bytes], domain: str | None, host: str) -> str:
    """The mail address of a mailbox.

    Its domain is the captured one, else that in the user's own name, else `domain` (configured), else `host`. It is
    in lower case; the user as on disk. An attribute, not an identity: two mailboxes may have one address.
    """
    user = show(captured["user"])
    local, at, own = user.rpartition("@")
    known = show(captured["domain"]) if "domain" in captured else None
    if local and at and own and (known is None or known.lower() == own.lower()):
        return f"{local}@{own.lower()}"
    return f"{user}@{(known or domain or host).lower()}"


def _variables(part: str) -> list[str]:
    """Names of the variables of a component as groups of its form: `user`, and `user_1` for `{user:1}`."""
    return ["_".join(filter(None, match.groups())) for match in _VARIABLE.finditer(part)]


def _component(part: str, text: str) -> Component:
    if part in (".", "..") or "\0" in part:
        raise ValueError(f"{text!r}: {part!r} cannot be part of a path of mailboxes")
    if part == "*":
        return Component(part, None, re.compile(rb"[^/]+"))
    variables = _variables(part)
    literals = _VARIABLE.split(part)[::3]  # text, name, count, text, name, count, text …
    if any(char in literal for literal in literals for char in "*{}"):
        raise ValueError(f"{text!r}: {part!r}: * stands for a whole component, braces for a variable")
    for match in _VARIABLE.finditer(part):
        _check_variable(match, text)
    if len(set(variables)) < len(variables):
        raise ValueError(f"{text!r}: {part!r} names a variable twice")
    form = re.escape(_bytes(literals[0]))
    for variable, literal in zip(variables, literals[1:], strict=True):
        form += b"(?P<%b>[^/]+)" % variable.encode() + re.escape(_bytes(literal))
    return Component(part, None if variables else _bytes(part), re.compile(form))


def _check_variable(match: re.Match[str], text: str) -> None:
    if match["name"] not in _NAMES:
        raise ValueError(f"{text!r}: {match[0]} is not known; there are {{user}}, {{domain}}, {{address}}, {{user:1}}")
    count = match["count"]
    if count is not None and not (count.isascii() and count.isdigit() and len(count) < 3 and int(count)):
        raise ValueError(f"{text!r}: {match[0]}: the number of first characters is 1 to 99")


def _check_variables(names: set[str], text: str) -> None:
    """Mailboxes must be told apart, and what only abbreviates must have something to agree with."""
    if not names & {"user", "address"}:
        raise ValueError(f"{text!r}: needs {{user}} or {{address}}, so that mailboxes can be told apart")
    for name in names:
        whole, underscore, count = name.partition("_")
        if underscore and whole not in names and "address" not in names:
            raise ValueError(f"{text!r}: {{{whole}:{count}}} needs {{{whole}}}")


def _settled(found: dict[str, bytes]) -> dict[str, bytes] | None:
    """Captured groups as domain and user; None when they contradict each other."""
    values = {name: value for name, value in found.items() if name in _NAMES}
    if "address" in values:
        local, at, domain = values["address"].rpartition(b"@")
        whole = not (local and at and domain)
        if values.setdefault("user", values["address"] if whole else local) not in (local, values["address"]):
            return None
        if not whole and values.setdefault("domain", domain).lower() != domain.lower():
            return None
    for name, value in found.items():
        variable, underscore, count = name.partition("_")
        if underscore and value.lower() != _first(values.get(variable, b""), int(count)).lower():
            return None
    return {name: values[name] for name in _KEY_ORDER if name in values}


def _bytes(text: str) -> bytes:
    """Text as it stands in a path, also one that came from `os.fsdecode`."""
    return text.encode("utf-8", "surrogateescape")


def _first(value: bytes, count: int) -> bytes:
    """The first `count` characters of a name."""
    return _bytes(value.decode("utf-8", "surrogateescape")[:count])
