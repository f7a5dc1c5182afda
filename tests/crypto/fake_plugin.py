"""age-plugin-test: an age plugin that "locks" a file key by writing it down, and asks for a PIN before it reads it again."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator, Sequence

Stanza = tuple[list[str], bytes]


def read() -> Stanza | None:
    """One stanza from stdin: its arguments and its body."""
    line = sys.stdin.readline()
    if not line:
        return None
    body = ""
    while len(part := sys.stdin.readline().rstrip("\n")) == 64:
        body += part
    body += part
    return line.split()[1:], base64.b64decode(body + "=" * (-len(body) % 4))


def send(arguments: Sequence[str], body: bytes = b"") -> None:
    text = base64.b64encode(body).decode().rstrip("=")
    assert len(text) < 64
    sys.stdout.write(f"-> {' '.join(arguments)}\n{text}\n")
    sys.stdout.flush()


def ask(arguments: Sequence[str], body: bytes = b"") -> Stanza:
    send(arguments, body)
    answer = read()
    assert answer is not None
    return answer


def until_done() -> Iterator[Stanza]:
    while (stanza := read()) and stanza[0][0] != "done":
        yield stanza


def main(mode: str) -> None:
    received = list(until_done())
    if mode == "identity-v1":
        ask(["msg"], b"touch the key")
        answer, pin = ask(["request-secret"], b"PIN")
        if answer[0] != "ok" or pin != b"1234":
            ask(["error", "internal"], b"wrong PIN")
            received = []
    for arguments, body in received:
        if arguments[0] == "wrap-file-key":
            ask(["recipient-stanza", "0", "test"], body)
        elif arguments[:1] == ["recipient-stanza"] and arguments[2] == "test":
            ask(["file-key", arguments[1]], body)
    send(["done"])


if __name__ == "__main__":
    main(sys.argv[1].removeprefix("--age-plugin="))
