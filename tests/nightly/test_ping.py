"""The ping: what is told, how often it is tried, and that its address stays secret."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mailbackup.config import load, parse
from mailbackup.errors import ConfigInvalid
from mailbackup.model.codec import plain
from mailbackup.model.finding import FindingKind
from mailbackup.notify import Told, ping, url_problem
from tests.nightly.conftest import Host, Watchdog

TOLD = Told(job="nightly", outcome="done", exit_status=0, snapshot=3, seq=3, sha256="a" * 64)


def test_addresses_and_body(watchdog: Watchdog):
    for moment in ("start", "success", "fail"):
        assert ping(watchdog.url, moment, TOLD) is None
    assert watchdog.paths == ["/5ecret-uuid/start", "/5ecret-uuid", "/5ecret-uuid/fail"]
    assert watchdog.told[0][1] == plain(TOLD)


def test_a_query_stays_behind_the_path(watchdog: Watchdog):
    assert ping(f"{watchdog.url}/?rid=1#x", "fail", TOLD) is None
    assert watchdog.paths == ["/5ecret-uuid/fail?rid=1"]


@pytest.mark.parametrize("answer", [404, 500, 302])
def test_two_tries(answer: int, watchdog: Watchdog):
    watchdog.answer = answer
    watchdog.headers = {"Location": f"{watchdog.url}/elsewhere"}
    found = ping(watchdog.url, "success", TOLD)
    assert found is not None
    assert (found.kind, found.subject, found.detail) == (FindingKind.PING_FAILED, "success", f"the other side answered {answer}")
    assert watchdog.paths == ["/5ecret-uuid"] * 2


def test_the_second_try_helps(watchdog: Watchdog):
    watchdog.answer = 503
    watchdog.before = lambda: setattr(watchdog, "answer", 503 if len(watchdog.told) == 1 else 200)
    assert ping(watchdog.url, "success", TOLD) is None
    assert len(watchdog.told) == 2


def test_nobody_answers():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        found = ping(f"http://127.0.0.1:{port}/5ecret", "start", TOLD)
        assert found is not None
        assert found.detail == "cannot be reached: Connection refused"
        listening.listen()
        began = time.monotonic()
        found = ping(f"http://127.0.0.1:{port}/5ecret", "start", TOLD, limit=0.3)
        assert found is not None
        assert found.detail == "no answer in time"
        assert time.monotonic() - began < 2


def test_an_answer_in_drops_does_not_hold_us():
    """The limit is for the whole, not for each drop."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        done = threading.Event()

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                while not done.wait(0.1):
                    try:
                        connection.send(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        began = time.monotonic()
        found = ping(f"http://127.0.0.1:{listening.getsockname()[1]}/x", "start", TOLD, limit=0.5)
        done.set()
        assert found is not None
        assert time.monotonic() - began < 3


BAD = [
    "ftp://x/y", "file:///etc/passwd", "hc.example.net/uuid", "https://", "https:///uuid", "http://x y/", "https://x/\n", "http://[::1/u", "http://x:99999/u",
    "https://exämple.net/", "",
]  # fmt: skip


@pytest.mark.parametrize("url", BAD)
def test_addresses_that_cannot_be(url: str, host: Host):
    assert url_problem(url) is not None
    found = ping(url, "start", TOLD)
    assert found is not None
    assert "address" in found.detail


def test_the_configuration_says_so_without_the_address(host: Host):
    text = Path(host.config_path).read_text().replace("[notify]\n", '[notify]\nping = "ftp://5ecret"\n')
    with pytest.raises(ConfigInvalid) as caught:
        parse(text, "c.toml")
    assert caught.value.message == "c.toml: notify.ping: it is not an http:// or https:// address"
    assert "5ecret" not in caught.value.hint


def test_it_is_not_shown(host: Host, watchdog: Watchdog):
    host.set_ping(watchdog.url)
    config, _ = load(host.config_path)
    assert config.notify.ping == watchdog.url
    assert "5ecret" not in repr(config)
    for options in ([], ["--json"]):
        program = [sys.executable, "-m", "mailbackup", "--config", host.config_path, "config", "show", *options]
        done = subprocess.run(program, capture_output=True, text=True, check=True)
        assert "5ecret" not in done.stdout + done.stderr
        assert "(hidden)" in done.stdout
