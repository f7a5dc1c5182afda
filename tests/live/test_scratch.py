"""Scratch directories are private, and nothing of them stays, however their process ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mailbackup.errors import StoreUnavailable
from mailbackup.host import scratch_directory

HOLD = """
import sys, time
from mailbackup.host import scratch_directory
with scratch_directory(sys.argv[1], "scratch-") as path:
    open(path + "/secret", "w").close()
    print(path, flush=True)
    time.sleep(60)
"""


def hold(parent: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_private_and_gone(tmp_path: Path):
    with scratch_directory(str(tmp_path), "scratch-") as path:
        assert os.path.dirname(path) == str(tmp_path)
        assert os.path.basename(path).startswith("scratch-")
        assert os.stat(path).st_mode & 0o7777 == 0o700
        os.makedirs(f"{path}/deep/er")
        os.symlink("/etc", f"{path}/deep/link")
        os.chmod(f"{path}/deep", 0o500)
    assert os.listdir(tmp_path) == []
    assert os.path.exists("/etc/passwd")


def test_gone_after_an_error(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), scratch_directory(str(tmp_path), "scratch-"):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_what_was_moved_away_is_no_error(tmp_path: Path):
    with scratch_directory(str(tmp_path), "scratch-") as path:
        os.rename(path, tmp_path / "kept")
    assert os.listdir(tmp_path) == ["kept"]


def test_a_killed_process_is_cleaned_up_after_and_a_living_one_is_not(tmp_path: Path):
    killed, left = hold(tmp_path)
    living, held = hold(tmp_path)
    end(killed)
    try:
        assert os.path.exists(left)
        with scratch_directory(str(tmp_path), "scratch-") as path:
            assert sorted(os.listdir(tmp_path)) == sorted(map(os.path.basename, (held, path)))
    finally:
        end(living)


def test_others_are_left_alone(tmp_path: Path):
    """Other names, files, and links with the prefix."""
    (tmp_path / "other").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").touch()
    (tmp_path / "scratch-file").touch()
    (tmp_path / "scratch-link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "scratch-old").mkdir()
    with scratch_directory(str(tmp_path), "scratch-"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "other", "scratch-file", "scratch-link"]
    assert os.listdir(tmp_path / "elsewhere") == ["file"]


@pytest.mark.root
def test_directories_of_others_are_left_alone(tmp_path: Path):
    (tmp_path / "scratch-theirs").mkdir()
    os.chown(tmp_path / "scratch-theirs", 65534, 65534)
    with scratch_directory(str(tmp_path), "scratch-"):
        pass
    assert os.listdir(tmp_path) == ["scratch-theirs"]


def test_many_at_once(tmp_path: Path):
    """Each keeps its own, though all look for abandoned ones."""
    code = HOLD.replace("time.sleep(60)", "time.sleep(0.2)\n    open(path + '/secret').close()")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.DEVNULL) for _ in range(8)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 8
    assert os.listdir(tmp_path) == []


def test_no_such_parent(tmp_path: Path):
    with pytest.raises(StoreUnavailable), scratch_directory(str(tmp_path / "absent"), "scratch-"):
        pass
