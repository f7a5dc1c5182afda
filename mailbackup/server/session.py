"""Looking at a mailbox as its owner's mail program would: a session of IMAP, opened by root without a password, that changes nothing.

What a client sees is what counts after a restore, whatever format the mailbox has on disk, compressed or encrypted. Messages are hashed as they
come and never held in memory.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import threading
from collections.abc import Iterator
from datetime import datetime
from types import TracebackType
from typing import IO, NamedTuple, Self

from mailbackup.errors import StoreUnavailable
from mailbackup.host import SEARCH_PATH

_CHUNK = 1 << 20
_LITERAL = re.compile(rb"\{(\d+)\}\r\n\Z")
_NAMESPACE = re.compile(rb'\* NAMESPACE \(\("((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.))"', re.IGNORECASE)
_LIST = re.compile(rb'\* LIST \(([^)]*)\) (?:NIL|"(?:[^"\\]|\\.)*") (.+)\r\n', re.IGNORECASE | re.DOTALL)
_FLAGS = re.compile(rb"FLAGS \(([^)]*)\)")
_DATE = re.compile(rb'INTERNALDATE "([^"]+)"')
_BODY = b"BODY[] "


class Mail(NamedTuple):
    """A message as a client sees it: `digest` of its content (see `ContentHash`), flags and keywords, INTERNALDATE in seconds."""

    digest: str
    flags: frozenset[str]
    date: int


class ContentHash:
    """SHA-256 of a message however it is stored: line ends count as LF, and a NUL as the 0x80 that IMAP must send for it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._held = b""

    def update(self, data: bytes) -> None:
        """The next bytes."""
        data = self._held + data
        self._held = b"\r" if data.endswith(b"\r") else b""
        self._hash.update(data[: len(data) - len(self._held)].replace(b"\r\n", b"\n").replace(b"\0", b"\x80"))

    def hexdigest(self) -> str:
        """The digest, when all was given."""
        self._hash.update(self._held)
        self._held = b""
        return self._hash.hexdigest()


class Session:
    """A session as `user`. It may last `limit` seconds; a later answer, or none, is StoreUnavailable."""

    def __init__(self, user: str, limit: float) -> None:
        self._user = user
        self._process = subprocess.Popen(
            ["doveadm", "exec", "imap", "-u", user],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"}, cwd="/",
        )  # fmt: skip
        self._watch = threading.Timer(limit, self._process.kill)
        self._watch.daemon = True
        self._watch.start()
        try:
            greeting = self._line()
            if not greeting.startswith(b"* PREAUTH"):
                raise self._broken(greeting)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End it."""
        self._watch.cancel()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def namespace(self) -> tuple[str, str]:
        """Prefix and separator of the user's own folders."""
        found = [match for text, _ in self._ask(b"NAMESPACE") if (match := _NAMESPACE.match(text))]
        if not found:
            raise self._broken(b"it names no namespace")
        prefix, separator = (re.sub(rb"\\(.)", rb"\1", part).decode("ascii", "replace") for part in found[0].groups())
        return prefix, separator

    def folders(self, below: str, separator: str) -> list[bytes]:
        """The folders that can be opened at `below` and under it, as their names stand in the protocol."""
        found = []
        for pattern in (below, f"{below}{separator}*"):
            for text, _ in self._ask(b'LIST "" "%b"' % pattern.encode("ascii")):
                match = _LIST.fullmatch(text)
                if match and not {b"\\noselect", b"\\nonexistent"} & set(match[1].lower().split()):
                    found.append(match[2])
        return found

    def mails(self, folder: bytes) -> list[Mail]:
        """All messages of a folder."""
        for text, _ in self._ask(b"EXAMINE " + folder):
            if re.fullmatch(rb"\* 0 EXISTS\r\n", text):
                return []
        answers = self._ask(b"UID FETCH 1:* (FLAGS INTERNALDATE BODY.PEEK[])")
        return [_mail(text, digest) for text, digest in answers if digest is not None]

    # -- the protocol

    def _ask(self, command: bytes) -> Iterator[tuple[bytes, str | None]]:
        """The untagged answers to a command, and the digest of the message in each. Raises StoreUnavailable when it is refused."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"x " + command + b"\r\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._broken(b"") from None
        while True:
            text, digest = self._answer()
            if not text.startswith(b"x "):
                yield text, digest
                continue
            if not text.startswith(b"x OK"):
                raise self._broken(text[2:])
            return

    def _answer(self) -> tuple[bytes, str | None]:
        """One answer. A message in it is replaced by its digest, another literal by a quoted string."""
        text, digest = b"", None
        while True:
            text += self._line()
            match = _LITERAL.search(text)
            if match is None:
                return text, digest
            size, text = int(match[1]), text[: match.start()]
            if text.endswith(_BODY):
                digest = self._hashed(size)
            else:
                text += b'"' + re.sub(rb'(["\\])', rb"\\\1", self._read(size)) + b'"'

    def _hashed(self, size: int) -> str:
        content = ContentHash()
        while size:
            data = self._read(min(size, _CHUNK))
            content.update(data)
            size -= len(data)
        return content.hexdigest()

    def _read(self, size: int) -> bytes:
        data = self._output.read(size)
        if len(data) < size:
            raise self._broken(b"")
        return data

    def _line(self) -> bytes:
        line = self._output.readline()
        if not line.endswith(b"\r\n"):
            raise self._broken(line)
        return line

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _broken(self, said: bytes) -> StoreUnavailable:
        why = said.decode("utf-8", "replace").strip() or "it ended early"
        return StoreUnavailable(
            f"'doveadm exec imap -u {self._user}' does not answer as it should: {why}",
            hint="The mailbox is looked at over IMAP: check that Dovecot's IMAP is installed, and its log ('doveadm log errors').",
        )


def _mail(text: bytes, digest: str) -> Mail:
    flags, date = _FLAGS.search(text), _DATE.search(text)
    if flags is None or date is None:
        raise StoreUnavailable("Dovecot's IMAP does not tell flags and date of a message")
    moment = datetime.strptime(date[1].decode("ascii").strip(), "%d-%b-%Y %H:%M:%S %z")
    known = frozenset(flag for flag in flags[1].decode("utf-8", "replace").split() if flag.lower() != "\\recent")
    return Mail(digest, known, int(moment.timestamp()))
