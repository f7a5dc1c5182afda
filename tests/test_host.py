"""The door to the operating system, on a real file system."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import signal
import stat
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbackup import host
from mailbackup.errors import (
    AlreadyExists,
    Busy,
    MailbackupError,
    NoSpace,
    RecordInvalid,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from mailbackup.testing.mounts import after_power_cut, ext4, remount, tmpfs


@pytest.fixture
def path(tmp_path: object) -> str:
    return f"{tmp_path}/file"


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


# ---------------------------------------------------------------- durable writes


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400])
def test_atomic_write_replaces_and_sets_the_mode(path: str, mode: int) -> None:
    host.atomic_write(path, b"old")
    before = os.umask(0o077)
    try:
        host.atomic_write(path, b"new", mode=mode)
    finally:
        os.umask(before)
    assert read(path) == b"new"
    assert stat.S_IMODE(os.stat(path).st_mode) == mode
    assert os.listdir(os.path.dirname(path)) == ["file"]


def test_atomic_write_takes_bytes_and_relative_paths(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(os.path.dirname(path))
    host.atomic_write(b"caf\xe9", b"1")
    host.atomic_write("x" * 255, b"2")
    assert sorted(os.listdir(b".")) == [b"caf\xe9", b"x" * 255]


def test_atomic_write_without_replace_keeps_what_exists(path: str) -> None:
    host.atomic_write(path, b"first", replace=False)
    with pytest.raises(AlreadyExists, match=path):
        host.atomic_write(path, b"second", replace=False)
    assert read(path) == b"first"
    assert os.listdir(os.path.dirname(path)) == ["file"]


def test_of_concurrent_writes_without_replace_one_wins(path: str) -> None:
    start = threading.Barrier(8)
    won: list[bytes] = []

    def attempt(data: bytes) -> None:
        start.wait()
        try:
            host.atomic_write(path, data, replace=False)
        except AlreadyExists:
            return
        won.append(data)

    threads = [threading.Thread(target=attempt, args=(b"%d" % n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [read(path)]


def test_a_symbolic_link_is_replaced_and_its_target_left(path: str) -> None:
    host.atomic_write(path + ".target", b"target")
    os.symlink(path + ".target", path)
    host.atomic_write(path, b"new")
    assert (read(path), read(path + ".target")) == (b"new", b"target")
    assert not os.path.islink(path)


def test_readers_see_the_old_or_the_new_file_and_nothing_between(path: str) -> None:
    versions = [bytes([n]) * 200_000 for n in range(2)]
    host.atomic_write(path, versions[0])
    done = threading.Event()

    def write() -> None:
        for n in range(60):
            host.atomic_write(path, versions[n % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert read(path) in versions
    writer.join()


def test_bytes_are_flushed_before_the_rename_and_the_folder_after(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    host.atomic_write(path, b"old")
    flushed: list[tuple[str, bytes]] = []
    really = os.fsync

    def watched(fd: int) -> None:
        flushed.append((os.readlink(f"/proc/self/fd/{fd}"), read(path)))
        really(fd)

    monkeypatch.setattr(os, "fsync", watched)
    host.atomic_write(path, b"new")
    (temp, seen_first), (folder, seen_last) = flushed
    assert os.path.dirname(temp) == folder == os.path.dirname(path)
    assert (seen_first, seen_last) == (b"old", b"new")


@pytest.mark.root
def test_what_was_written_survives_a_power_cut(tmp_path: object) -> None:
    image = f"{tmp_path}/disk.img"
    with ext4(image, f"{tmp_path}/disk") as disk:
        host.atomic_write(f"{disk}/replaced", b"old" * 1000)
        host.atomic_write(f"{disk}/replaced", b"new" * 1000)
        host.atomic_write(f"{disk}/created", b"one" * 1000, replace=False)
        with after_power_cut(image, f"{tmp_path}/after") as left:
            assert read(f"{left}/replaced") == b"new" * 1000
            assert read(f"{left}/created") == b"one" * 1000
            assert sorted(os.listdir(left)) == ["created", "lost+found", "replaced"]


@pytest.mark.root
def test_a_full_or_read_only_file_system_keeps_the_old_file(tmp_path: object) -> None:
    with tmpfs(f"{tmp_path}/disk", 1 << 20) as disk:
        host.atomic_write(f"{disk}/file", b"old")
        with pytest.raises(NoSpace, match=f"{disk}/file"):
            host.atomic_write(f"{disk}/file", b"x" * (2 << 20))
        remount(disk, "ro")
        with pytest.raises(StoreRefused, match="Read-only"):
            host.atomic_write(f"{disk}/file", b"new")
        assert os.listdir(disk) == ["file"]
        assert read(f"{disk}/file") == b"old"


def test_an_absent_folder_is_an_error_that_names_it(path: str) -> None:
    with pytest.raises(StoreUnavailable, match=f"{path}/x/y"):
        host.atomic_write(f"{path}/x/y", b"")
    with pytest.raises(StoreUnavailable, match=path):
        host.fsync_dir(path)
    with pytest.raises(StoreUnavailable, match=path):
        host.free_bytes(path)


def test_rename_new_never_replaces(path: str) -> None:
    host.atomic_write(path + "1", b"1")
    host.atomic_write(path + "2", b"2")
    folder = os.open(os.path.dirname(path), os.O_RDONLY)
    with pytest.raises(FileExistsError):
        host.rename_new("file1", "file2", folder, folder)
    host.rename_new("file1", "file3", folder, folder)
    os.close(folder)
    assert (read(path + "2"), read(path + "3")) == (b"2", b"1")
    assert not os.path.exists(path + "1")


def test_write_all_writes_what_a_pipe_takes_in_parts() -> None:
    reader, writer = os.pipe()
    data = os.urandom(1 << 18)
    got = bytearray()

    def drain() -> None:
        while piece := os.read(reader, 4096):
            got.extend(piece)

    thread = threading.Thread(target=drain)
    thread.start()
    host.write_all(writer, memoryview(data).cast("I"))
    os.close(writer)
    thread.join()
    os.close(reader)
    assert bytes(got) == data


@pytest.mark.root
def test_free_bytes_of_a_known_file_system(tmp_path: object) -> None:
    with tmpfs(f"{tmp_path}/disk", 8 << 20) as disk:
        assert host.free_bytes(disk) == (8 << 20, 8 << 20)
        host.atomic_write(f"{disk}/x", b"x" * (1 << 20))
        assert host.free_bytes(os.fsencode(disk)) == (7 << 20, 8 << 20)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("numbers", "kind", "retryable"),
    [
        ([errno.ENOSPC, errno.EDQUOT], NoSpace, False),
        ([errno.EROFS, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EFBIG], StoreRefused, False),
        ([errno.ENOENT, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EMFILE], StoreUnavailable, True),
        ([errno.EINVAL, errno.ENAMETOOLONG], StoreError, False),
    ],
)
def test_every_errno_becomes_an_error_that_says_what_and_where(numbers: list[int], kind: type[MailbackupError], retryable: bool) -> None:
    for number in numbers:
        error = host.translate_os_error(OSError(number, os.strerror(number)), "write /var/backups/x")
        assert type(error) is kind
        assert error.retryable is retryable
        assert error.message == f"cannot write /var/backups/x: {os.strerror(number)}"
        assert error.hint


def test_an_os_error_without_a_number_is_translated_too() -> None:
    assert host.translate_os_error(OSError("odd"), "read x").message == "cannot read x: odd"


# ---------------------------------------------------------------- users, clock


def test_names_and_numbers_of_users_and_groups() -> None:
    user, group = pwd.getpwall()[0], grp.getgrall()[0]
    assert host.user_name(user.pw_uid) == pwd.getpwuid(user.pw_uid).pw_name
    assert host.group_name(group.gr_gid) == grp.getgrgid(group.gr_gid).gr_name
    assert host.user_id(user.pw_name) == user.pw_uid
    assert host.group_id(group.gr_name) == group.gr_gid


@pytest.mark.parametrize("name", ["no-such-name", "", "a\0b", "\ud800"])
def test_an_unknown_name_is_none(name: str) -> None:
    assert host.user_id(name) is None
    assert host.group_id(name) is None


@pytest.mark.parametrize("number", [3_999_999_999, 1 << 80, -5])
def test_an_unknown_number_is_none(number: int) -> None:
    assert host.user_name(number) is None
    assert host.group_name(number) is None


def test_answers_are_remembered_until_told_to_forget() -> None:
    host.forget_names()
    for _ in range(3):
        host.user_name(0)
    assert host.user_name.cache_info().misses == 1
    host.forget_names()
    host.user_name(0)
    assert host.user_name.cache_info().misses == 1


def test_stamps() -> None:
    moment = datetime(2026, 11, 24, 2, 30, 0, 999_999, tzinfo=UTC)
    assert host.stamp(moment) == "2026-11-24T02:30:00Z"
    assert host.stamp(moment.astimezone(timezone(timedelta(hours=5, minutes=30)))) == "2026-11-24T02:30:00Z"
    assert host.parse_stamp("2026-11-24T02:30:00Z") == moment.replace(microsecond=0)
    with pytest.raises(ValueError, match="zone"):
        host.stamp(datetime(2026, 1, 1))
    assert abs((host.utc_now() - datetime.now(UTC)).total_seconds()) < 60


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_stamp_is_read_back(moment: datetime) -> None:
    assert host.parse_stamp(host.stamp(moment)) == moment.replace(microsecond=0)


@pytest.mark.parametrize(
    "text",
    [
        *("", "2026-11-24", "2026-11-24T02:30:00", "2026-11-24T02:30:00+00:00", "2026-11-24 02:30:00Z", "2026-1-24T02:30:00Z"),
        *("2026-13-24T02:30:00Z", "2026-02-30T02:30:00Z", "0000-01-01T00:00:00Z", "2026-11-24T02:30:60Z", "2026-11-24T02:30:00Z\n"),
        "٢٠٢٦-11-24T02:30:00Z",
    ],
)
def test_what_is_no_stamp_is_an_invalid_record(text: str) -> None:
    with pytest.raises(RecordInvalid):
        host.parse_stamp(text)


# ---------------------------------------------------------------- the process


def test_a_second_run_is_busy_and_names_the_first(path: str) -> None:
    with host.run_lock(path), pytest.raises(Busy, match=f"process {os.getpid()} holds {path}"), host.run_lock(path):
        pass
    with host.run_lock(path):
        assert read(path) == b"%d\n" % os.getpid()


def test_a_killed_run_leaves_no_lock(path: str) -> None:
    script = (
        "import sys, time; from mailbackup.host import run_lock\nwith run_lock(sys.argv[1]): print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(Busy, match=f"process {other.pid}"), host.run_lock(path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
    with host.run_lock(path):
        pass


def test_an_error_of_the_body_passes_through_the_lock_and_frees_it(path: str) -> None:
    with pytest.raises(FileNotFoundError), host.run_lock(path):
        os.stat(path + ".absent")
    with host.run_lock(path):
        pass


def test_a_lock_file_with_other_content_is_no_problem(path: str) -> None:
    host.atomic_write(path, b"\xff\xfe what is this, longer than a number")
    with host.run_lock(path), pytest.raises(Busy), host.run_lock(path):
        pass
    assert read(path) == b"%d\n" % os.getpid()


def test_a_lock_that_cannot_be_made_is_refused_or_unavailable(path: str) -> None:
    with pytest.raises(StoreUnavailable, match=path), host.run_lock(f"{path}/x"):
        pass
    os.symlink("/dev/null", path)
    with pytest.raises(StoreRefused, match=path), host.run_lock(path):
        pass


def test_being_nice_lowers_the_priority_of_processor_and_disk() -> None:
    script = "import os; from mailbackup.host import be_nice; be_nice(); be_nice(); print(os.getpriority(os.PRIO_PROCESS, 0))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "19\n"
