"""The ping: a watchdog elsewhere learns that a job began and how it ended, and so notices when the host falls silent.

The body carries number and hash of the ledger's head: a witness outside of host and store, since a ledger whose tail was cut off looks whole.
The address is a secret, because whoever knows it can pretend that all is well: it stands in no argument, log or error.
"""

from __future__ import annotations

import http.client
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

from mailbackup.model import codec
from mailbackup.model.codec import Record
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.version import TOOL

TIME_LIMIT = 10.0
TRIES = 2

Moment = Literal["start", "success", "fail"]
_SUFFIX: dict[Moment, str] = {"start": "/start", "success": "", "fail": "/fail"}


class Told(Record, frozen=True, kw_only=True):
    """The body of a ping. `seq` and `sha256` name the head of the ledger; null while there is none. `snapshot` is the one just made."""

    job: str
    outcome: str
    exit_status: int | None = None
    snapshot: int | None = None
    seq: int | None = None
    sha256: str | None = None


def ping(url: str, moment: Moment, told: Told, *, limit: float = TIME_LIMIT) -> Finding | None:
    """POST `told` to the address of a moment, at most twice. Returns what went wrong, without the address; never raises for it."""
    problem = url_problem(url)
    if problem is None:
        problem = _tried(lambda: _send(_at(url, moment), codec.encode(told), limit), limit)
    return None if problem is None else Finding(FindingKind.PING_FAILED, moment, problem)


def url_problem(url: str) -> str | None:
    """What is wrong with the address, without saying it; None when it can be used."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or not url.isascii() or any(character <= " " or character == "\x7f" for character in url):
        return "it is not an http:// or https:// address"
    return None


def _at(url: str, moment: Moment) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + _SUFFIX[moment], fragment=""))


def _tried(send: Callable[[], None], limit: float) -> str | None:
    problem: str | None = None
    for _ in range(TRIES):
        problem = _within(limit, lambda: _problem_of(send))
        if problem is None:
            return None
    return problem


def _within(limit: float, attempt: Callable[[], str | None]) -> str | None:
    """In a thread of its own, since neither looking up a name nor an answer that comes in drops heeds a limit of the socket."""
    answers: list[str | None] = []
    thread = threading.Thread(target=lambda: answers.append(attempt()), daemon=True)
    thread.start()
    thread.join(limit)
    return answers[0] if answers else "no answer in time"


def _problem_of(send: Callable[[], None]) -> str | None:
    """What went wrong, in words that cannot hold the address: those of the exceptions may."""
    try:
        send()
    except urllib.error.HTTPError as error:
        with error:
            return f"the other side answered {error.code}"
    except urllib.error.URLError as error:
        return _reason(error.reason)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return _reason(error)
    return None


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLError):
        return (
            "no secure connection: its certificate is not valid"
            if isinstance(error, ssl.SSLCertVerificationError)
            else "no secure connection"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be reached: {error.strerror}"
    return "cannot be reached"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirection is an answer: followed, a POST would lose its body, and the address could go on to somebody else."""

    def redirect_request(self, *_args: object, **_named: object) -> None:
        return None


def _send(url: str, body: bytes, limit: float) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": TOOL}
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310 - its scheme was checked
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=limit) as answer:
        answer.read(1024)
