"""An HTTP proxy that stands before a service and does to requests and answers what lines and services do on bad days.

    with Proxy(weed.url) as proxy:
        proxy.rule(LOST_ANSWER, method="PUT", path="/packs/")
        ...                                  # a client of proxy.url
        assert proxy.requests[0].fault is LOST_ANSWER and proxy.most_in_flight <= 8

Requests are passed on byte for byte, also their Host, which is signed.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import IO, Any, Literal
from urllib.parse import urlsplit

_PIECE = 64 << 10
_SINGLE = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection"}  # headers of one connection


@dataclass(frozen=True)
class Fault:
    """What happens to a request. `answer` = status, code and message of an answer that the service never gave."""

    name: str
    delay: float = 0.0
    answer: tuple[int, str, str] | None = None
    lose: Literal["request", "answer"] | None = None
    cut: Literal["request", "answer"] | None = None
    flip: Literal["request", "answer"] | None = None


RESET = Fault("connection reset", lose="request")
LOST_ANSWER = Fault("lost answer", lose="answer")
SLOW = Fault("slow answer", delay=1.0)
SLOW_DOWN = Fault("slow down", answer=(503, "SlowDown", "Please reduce your request rate."))
INTERNAL = Fault("internal error", answer=(500, "InternalError", "We encountered an internal error. Please try again."))
CONFLICT = Fault("conflict", answer=(409, "ConditionalRequestConflict", "A conflicting conditional operation is under way."))
EXPIRED = Fault("expired", answer=(400, "ExpiredToken", "The provided token has expired."))
SKEWED = Fault(
    "clock skew", answer=(403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.")
)
DENIED = Fault("denied", answer=(403, "AccessDenied", "Access Denied."))
QUOTA = Fault("quota", answer=(403, "QuotaExceeded", "The quota of the bucket is used up."))
NOT_IMPLEMENTED = Fault(
    "not implemented", answer=(501, "NotImplemented", "A header you provided implies functionality that is not implemented.")
)
CUT_ANSWER = Fault("cut answer", cut="answer")
CUT_REQUEST = Fault("cut request", cut="request")
FLIPPED_ANSWER = Fault("flipped answer", flip="answer")
FLIPPED_REQUEST = Fault("flipped request", flip="request")


@dataclass
class Seen:
    """One request. `status` is None when no answer was sent; `path` has its query."""

    method: str
    path: str
    fault: Fault | None
    status: int | None = None


@dataclass
class _Rule:
    fault: Fault
    method: str | None
    path: str
    left: int


class Proxy:
    """See the module. `latency` seconds pass before each request is passed on. For any number of connections."""

    def __init__(self, upstream: str, latency: float = 0.0) -> None:
        self.latency = latency
        self.requests: list[Seen] = []
        self.most_in_flight = 0
        self._upstream = urlsplit(upstream).netloc
        self._rules: list[_Rule] = []
        self._in_flight = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()

    def rule(self, fault: Fault, *, method: str | None = None, path: str = "", times: int = 1 << 30) -> None:
        """The next `times` requests with this method whose path (with query) contains a match of `path` get the fault. Older rules go first."""
        with self._lock:
            self._rules.append(_Rule(fault, method, path, times))

    def forget(self) -> None:
        """Start anew: no rules, nothing counted."""
        with self._lock:
            self._rules, self.requests, self.most_in_flight = [], [], self._in_flight

    def faults(self) -> int:
        """How many requests got a fault: a test that meets none has shown nothing."""
        return sum(seen.fault is not None for seen in self.requests)

    # ------------------------------------------------------------ for the handlers

    @contextlib.contextmanager
    def _counted(self) -> Any:
        with self._lock:
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight -= 1

    def _fault_for(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for rule in self._rules:
                if rule.left > 0 and rule.method in (None, method) and re.search(rule.path, path):
                    rule.left -= 1
                    return rule.fault
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections break here all the time."""


class _Gone(Exception):
    """The connection is of no more use."""


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        upstream: http.client.HTTPConnection | None = None
        seen: Seen

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline:
                self.close_connection = True
                return
            with proxy._counted():
                if self.parse_request():
                    self.pass_on()

        def pass_on(self) -> None:
            self.seen = Seen(self.command, self.path, proxy._fault_for(self.command, self.path))
            proxy.requests.append(self.seen)
            time.sleep(proxy.latency)
            try:
                self.with_fault(self.seen.fault or Fault("none"))
                self.wfile.flush()
            except (_Gone, OSError, http.client.HTTPException):
                self.close_connection = True
                self.reset()

        def with_fault(self, fault: Fault) -> None:
            time.sleep(fault.delay)
            if fault.answer is not None or fault.lose == "request":
                self.swallow()
                if fault.answer is None:
                    raise _Gone
                self.invent(*fault.answer)
                return
            answer = self.forward(fault)
            if fault.lose == "answer":
                answer.read()
                raise _Gone
            self.give_back(answer, fault)

        def forward(self, fault: Fault) -> http.client.HTTPResponse:
            if self.upstream is None:
                self.upstream = http.client.HTTPConnection(proxy._upstream, timeout=60)
            upstream = self.upstream
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _SINGLE:
                    upstream.putheader(name, value)
            upstream.endheaders()
            deaf = False

            def send(piece: bytes) -> None:
                nonlocal deaf
                try:
                    if not deaf:
                        upstream.send(piece)
                except OSError:
                    deaf = True  # a service that refuses may answer without having read everything

            self.copy(self.rfile, send, self.size(), cut=fault.cut == "request", flip=fault.flip == "request")
            return upstream.getresponse()

        def give_back(self, answer: http.client.HTTPResponse, fault: Fault) -> None:
            self.seen.status = answer.status
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _SINGLE:
                    self.send_header(name, value)
            bodyless = self.command == "HEAD" or answer.status in (204, 304)
            body = b""
            size = answer.length
            if size is None and not bodyless:  # chunked: its length is known when all of it is here
                body = answer.read()
                size = len(body)
                self.send_header("Content-Length", str(size))
            self.end_headers()
            if bodyless:
                answer.read()
                return
            source: Any = answer if not body else _Buffer(body)
            self.copy(source, self.wfile.write, size or 0, cut=fault.cut == "answer", flip=fault.flip == "answer")
            answer.read()  # nothing is left, but its connection is only free after this

        def copy(self, source: IO[bytes] | Any, write: Any, size: int, *, cut: bool, flip: bool) -> None:
            done, middle = 0, size // 2
            while done < size:
                piece = source.read(min(_PIECE, size - done))
                if not piece:
                    raise _Gone
                if cut and done + len(piece) > middle:
                    write(piece[: middle - done])
                    self.wfile.flush()
                    raise _Gone
                if flip and done <= middle < done + len(piece):
                    changed = bytearray(piece)
                    changed[middle - done] ^= 1
                    piece = bytes(changed)
                write(piece)
                done += len(piece)

        def invent(self, status: int, code: str, message: str) -> None:
            text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
            self.seen.status = status
            self.send_response_only(status)
            self.send_header("Date", self.date_time_string())
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def size(self) -> int:
            return int(self.headers.get("Content-Length") or 0)

        def swallow(self) -> None:
            self.copy(self.rfile, lambda _: None, self.size(), cut=False, flip=False)

        def reset(self) -> None:
            with contextlib.suppress(OSError):
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.drop_upstream()

        def drop_upstream(self) -> None:
            upstream, self.upstream = self.upstream, None
            if upstream is not None:
                upstream.close()

        def finish(self) -> None:
            self.drop_upstream()
            with contextlib.suppress(OSError):
                super().finish()

    return Handler


class _Buffer:
    """Bytes that are read like a file."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def read(self, size: int) -> bytes:
        piece, self._data = self._data[:size], self._data[size:]
        return bytes(piece)
