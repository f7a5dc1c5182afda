"""quickstart: the real thing, with made-up mail and with somebody's own."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import pytest

from mailbackup.sample.mailstore import make_sample
from tests.cli.conftest import Cli
from tests.cli.reference import schemas
from tests.cli.schema import problems


def _snapshot(root: Path) -> dict[str, tuple[int, int, int, bytes | None]]:
    """Everything below `root`: mode, times and contents."""
    found = {}
    for path in sorted(root.rglob("*")):
        about = path.lstat()
        found[str(path)] = (about.st_mode, about.st_mtime_ns, about.st_ctime_ns, path.read_bytes() if path.is_file() else None)
    return found


def _check(answer: dict[str, object]) -> None:
    schema = dict(schemas()["quickstart"])
    del schema["file"]
    assert problems(answer, schema) == []


def test_with_made_up_mail(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    begun = time.monotonic()
    answer = cli("quickstart", "--json").json
    assert time.monotonic() - begun < 30
    _check(answer)
    [name] = os.listdir(tmp_path)
    folder = tmp_path / name
    assert answer["folder"] == str(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert set(os.listdir(folder)) >= {"mailbackup.toml", "kit.txt", "mailbackup.state", "vault", "mail", "restored"}
    first, second = answer["snapshots"]
    assert 0 < second["new_messages"] < first["new_messages"]
    assert second["bytes_stored"] < first["bytes_stored"] / 5
    restored = answer["restored"]
    assert restored["equal"] > 0
    assert (restored["different"], restored["only_source"], restored["only_copy"]) == (0, 0, 0)
    assert [row["decrypted"] for row in answer["verified"]] == [False, True]
    assert {row["outcome"] for row in answer["verified"]} == {"clean"}


def test_it_reads_well_and_its_next_commands_work(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done = cli("quickstart")
    assert (done.status, done.err) == (0, "")
    lines = done.text.splitlines()
    assert [line[:3] for line in lines if line[:3].strip().rstrip(".").isdigit()] == [f"{n:2}." for n in range(1, 9)]
    following = [line.split() for line in lines[lines.index("Next:") + 1 :]]
    assert len(following) == 3
    for words in following[:2]:
        assert words[0] == "mailbackup"
        assert cli(*words[1:]).status == 0


@pytest.mark.parametrize("single", [False, True], ids=["store", "one-maildir"])
def test_with_own_mail_which_is_only_read(single: bool, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own, work = tmp_path / "own", tmp_path / "work"
    make_sample(str(own))
    work.mkdir()
    monkeypatch.chdir(work)
    before = _snapshot(own)
    root = own / "example.org" / "alice" / "Maildir" if single else own
    done = cli("quickstart", str(root))
    assert (done.status, done.err) == (0, "")
    assert "no day is simulated" in done.text
    assert _snapshot(own) == before


def test_an_unchanged_night_costs_little(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_sample(str(tmp_path / "own"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    answer = cli("quickstart", "../own", "--json").json
    _check(answer)
    assert answer["pattern"] == f"{tmp_path}/own/{{domain}}/{{user}}/Maildir"
    assert answer["snapshots"][1]["new_messages"] == 0
    assert answer["snapshots"][1]["bytes_read"] == 0


def test_refusals(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_sample(str(tmp_path / "own"))
    monkeypatch.chdir(tmp_path / "own")
    assert cli("quickstart", ".").err.startswith(f"{tmp_path}/own lies inside ., which is only to be read")
    monkeypatch.chdir(tmp_path)
    assert cli("quickstart", "absent").err.startswith("absent is not a directory")
    assert os.listdir(tmp_path) == ["own"]
