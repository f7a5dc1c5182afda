"""A small host with mail, hooks, job files, and a watchdog that counts what it is told."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mailbackup.config import render
from mailbackup.model.options import Config, NotifyConfig
from tests.world import World

BLOCK = b"0123456789abcdef" * 64


class Host(World):
    """A World with what the night needs beside its configuration."""

    def hook(self, phase: str, name: str, body: str, mode: int = 0o755) -> Path:
        """A shell script among the hooks."""
        path = Path(self.root, "hooks", f"{phase}.d", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.chmod(0o755)
        path.parent.parent.chmod(0o755)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(mode)
        return path

    def job_file(self, name: str, text: str) -> Path:
        """A job file."""
        path = Path(self.root, "schedules", f"{name}.toml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def set_ping(self, url: str) -> None:
        """Put [notify] ping into the configuration."""
        config = self.context.config
        members = {name: getattr(config, name) for name in Config.__struct_fields__}
        Path(self.config_path).write_text(render(Config(**members | {"notify": NotifyConfig(ping=url)})))

    def fill(self, count: int, size: int = 200, address: str = "alice@example.org") -> None:
        """Deliver messages with contents that do not compress."""
        for number in range(count):
            self.deliver(f"{number}.m:2,S", b"Subject: %d\n\n" % number + os.urandom(size // 2).hex().encode(), address)

    def pack(self) -> Path:
        """The largest pack."""
        return max((path for path in Path(self.vault, "packs").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with three messages, before its first run."""
    tmp_path.chmod(0o700)
    made = Host(tmp_path)
    made.fill(3)
    return made


@dataclass
class Watchdog:
    """A server that keeps what it was told."""

    url: str = ""
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answer: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    before: Callable[[], None] = lambda: None

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.told]


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    """A watchdog at an address with a secret in it."""
    dog = Watchdog()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            dog.told.append((self.path, json.loads(body)))
            dog.before()
            self.send_response(dog.answer)
            for name, value in dog.headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    dog.url = f"http://127.0.0.1:{server.server_port}/5ecret-uuid"
    yield dog
    server.shutdown()
    thread.join()
    server.server_close()
