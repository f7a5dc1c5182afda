"""The proxy does what its faults say: a test that meets a fault which does nothing would prove nothing."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from tests.stores.s3 import proxy as faults
from tests.stores.s3.proxy import Fault, Proxy

BODY = b"0123456789" * 20_000


class _Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    got: list[bytes] = []

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if len(body) < int(self.headers["Content-Length"]):
            self.close_connection = True
            return
        self.got.append(body)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    _Echo.got = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    with Proxy(f"http://127.0.0.1:{server.server_address[1]}") as between:
        yield between
    server.shutdown()
    server.server_close()


def put(proxy: Proxy, body: bytes = BODY) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=10)
    try:
        connection.request("PUT", "/x?y=1", body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_without_rules_everything_passes(proxy: Proxy) -> None:
    assert put(proxy) == (200, BODY)
    assert put(proxy, b"") == (200, b"")
    assert [(seen.method, seen.path, seen.status) for seen in proxy.requests] == [("PUT", "/x?y=1", 200)] * 2
    assert proxy.faults() == 0


@pytest.mark.parametrize("body", [b"", BODY], ids=["empty", "long"])
def test_a_connection_is_good_for_many_requests(proxy: Proxy, body: bytes) -> None:
    connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=10)
    for _ in range(3):
        connection.request("PUT", "/x", body)
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, body)
    connection.close()


@pytest.mark.parametrize("fault", [faults.RESET, faults.LOST_ANSWER, faults.CUT_REQUEST, faults.CUT_ANSWER], ids=lambda fault: fault.name)
def test_broken_connections(proxy: Proxy, fault: Fault) -> None:
    proxy.rule(fault, times=1)
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        put(proxy)
    assert _Echo.got == ([BODY] if fault in (faults.LOST_ANSWER, faults.CUT_ANSWER) else [])
    assert put(proxy) == (200, BODY)
    assert proxy.faults() == 1


def test_an_invented_answer_is_not_passed_on(proxy: Proxy) -> None:
    proxy.rule(faults.SLOW_DOWN, times=1)
    status, body = put(proxy)
    assert status == 503
    assert b"<Code>SlowDown</Code>" in body
    assert _Echo.got == []


def test_one_bit_is_flipped(proxy: Proxy) -> None:
    proxy.rule(faults.FLIPPED_REQUEST, times=1)
    _, body = put(proxy)
    assert body == _Echo.got[0]
    assert sum(one != other for one, other in zip(body, BODY, strict=True)) == 1
    proxy.rule(faults.FLIPPED_ANSWER, times=1)
    _, body = put(proxy)
    assert _Echo.got[1] == BODY != body


def test_requests_in_flight_are_counted(proxy: Proxy) -> None:
    proxy.latency = 0.3
    threads = [threading.Thread(target=put, args=(proxy,)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert proxy.most_in_flight == 5
    time.sleep(1)  # the last of them leaves a moment after its answer
    proxy.forget()
    put(proxy)
    assert proxy.most_in_flight == 1


def test_rules_choose_by_method_and_path(proxy: Proxy) -> None:
    proxy.rule(faults.SLOW_DOWN, method="GET")
    proxy.rule(faults.SLOW_DOWN, path="/packs/")
    assert put(proxy) == (200, BODY)
