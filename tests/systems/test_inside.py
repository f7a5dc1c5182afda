"""The adapters on the reference server: what `inside_*.py` say is run there, with this test run's Python."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reference.server import ReferenceServer

pytestmark = pytest.mark.root
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReferenceServer]:
    with ReferenceServer.start(tmp_path_factory.mktemp("systems")) as running:
        running.start_mail()
        yield running


@pytest.mark.parametrize("name", ["inside_contract.py", "inside_server.py"])
def test_inside(name: str, server: ReferenceServer):
    pytest_there = (
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--rootdir",
        str(HERE.parent.parent),
        "--noconftest",
    )
    variables = {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(HERE.parent.parent)}
    done = server.run(
        *pytest_there,
        "-o",
        "addopts=--import-mode=importlib",
        "-rfE",
        "--tb=short",
        str(HERE / name),
        env=variables,
        timeout=180,
        check=False,
    )
    text = done.stdout.decode(errors="replace")
    assert done.returncode == 0, text[-6000:]
    assert " passed" in text
