"""A Borg repository that is damaged, locked, out of reach or behind a passphrase; and a borg that is killed."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailbackup.errors import ConfigInvalid, MailbackupError, NoSpace, ObjectDamaged, StoreRefused, StoreUnavailable
from mailbackup.model.ids import ObjectKey, entry_key
from mailbackup.model.options import StoreConfig
from mailbackup.stores.borg.answers import failure_of
from mailbackup.stores.borg.store import BorgStore, open_borg
from mailbackup.testing.store_contract import KEY, LIMIT, OTHER, keys
from tests.stores.borg.conftest import BORG, Bench
from tests.stores.borg.server import SshRepository, ssh_repository

MIB = 1 << 20


def damage(place: StoreConfig, known: bytes) -> None:
    """Flip a bit of `known` where it lies in the repository."""
    for folder, _, names in os.walk(os.path.join(place.path, "data")):
        for name in names:
            path = Path(folder) / name
            data = path.read_bytes()
            if known in data:
                at = data.index(known)
                path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
                return
    raise AssertionError("not found")


# ---------------------------------------------------------------- damage


def test_a_damaged_segment_damages_its_object_only(bench: Bench) -> None:
    place = bench.place()
    store = bench.open(place)
    store.put(KEY, b"precious " * 20_000)
    store.put(OTHER, b"neighbour")
    store.flush()
    damage(place, b"precious precious")
    again = bench.open(place)
    for read in (lambda: again.get(KEY, LIMIT), lambda: again.get_range(KEY, 5, 5), lambda: list(again.stream(KEY))):
        with pytest.raises(ObjectDamaged, match=KEY) as found:
            read()
        assert "borg check" in found.value.hint
        assert "SSH_ORIGINAL" not in found.value.message
    assert again.get(OTHER, LIMIT) == b"neighbour"


def test_a_damaged_small_object_does_not_damage_those_that_come_with_it(bench: Bench) -> None:
    place = bench.place()
    store = bench.open(place)
    store.put(OTHER, b"neighbour")
    store.put(KEY, b"precious")
    store.flush()
    damage(place, b"precious")
    again = bench.open(place)
    assert again.get(OTHER, LIMIT) == b"neighbour"
    with pytest.raises(ObjectDamaged, match=KEY):
        again.get(KEY, LIMIT)


def test_an_archive_that_cannot_be_read_does_not_hide_the_others(bench: Bench) -> None:
    place = bench.place()
    store = bench.open(place)
    for seq in (1, 2, 3):
        store.put(entry_key(seq), b"entry %d" % seq)
    damage(place, b'0000000002.json",')
    again = bench.open(place)
    assert keys(again) == [entry_key(1), entry_key(3)]
    assert again.get(entry_key(3), LIMIT) == b"entry 3"
    with pytest.raises(ObjectDamaged, match="borg create") as found:  # a borg without a cache reads every archive before it writes
        again.put(entry_key(4), b"entry 4")
    assert "borg check" in found.value.hint


def test_a_comment_that_lies_about_a_size_is_damage(bench: Bench) -> None:
    place = bench.place()
    folder = bench.top / "forged"
    (folder / KEY).mkdir(parents=True)
    (folder / KEY / "000000").write_bytes(b"x" * 100_000)
    comment = f'["mailbackup-1","00",[["{KEY}",70000]],[]]'
    environment = {"BORG_BASE_DIR": str(bench.top / "b"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
    create = [BORG, "create", "--comment", comment, f"{place.path}::mailbackup-0000000001", "packs"]
    subprocess.run(create, check=True, cwd=folder, env=environment, timeout=60, capture_output=True)
    with pytest.raises(ObjectDamaged, match=KEY):
        bench.open(place).get(KEY, LIMIT)


# ---------------------------------------------------------------- kills

_WRITER = """
import os, sys
from mailbackup.model.options import StoreConfig
from mailbackup.stores.borg.store import open_borg
from mailbackup.model.ids import entry_key
from mailbackup.testing.store_contract import KEY
url, borg, work = sys.argv[1:]
store = open_borg(StoreConfig(name="box", url=url, borg_path=borg), create=False, work_dir=work)
store.put(entry_key(1), b"one")
for _ in range(1):
    with store.create(KEY) as writer:
        for _ in range(96):
            writer.write(os.urandom(1 << 20))
        writer.commit()
print("waiting", flush=True)
store.put(entry_key(2), b"two")
print("done", flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.35, 0.6])
def test_a_kill_while_a_batch_is_shipped_leaves_all_or_nothing_of_it(bench: Bench, delay: float) -> None:
    place = bench.place(patience=60)
    work = str(bench.top / "work")
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, place.url, BORG, work], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "waiting\n"
    child = _child_of(writer.pid)
    time.sleep(delay)
    writer.kill()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    writer.wait(20)
    writer.stdout.close()
    store = bench.open(place, "work")
    assert keys(store) in ([entry_key(1)], sorted([KEY, entry_key(1), entry_key(2)]))
    assert sum(name.startswith("spool-") for name in os.listdir(work)) == 1, "the spool of the dead was removed"
    if keys(store) == [entry_key(1)]:
        store.put(KEY, b"again")
        store.put(entry_key(2), b"two")
    assert store.get(entry_key(2), LIMIT) == b"two"
    assert keys(bench.open(place)) == sorted([KEY, entry_key(1), entry_key(2)])


def _child_of(parent: int) -> int:
    for _ in range(1000):
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.01)
    raise AssertionError("borg was not started")


def test_a_borg_that_is_killed_is_started_again(bench: Bench) -> None:
    program = bench.top / "borg"
    program.write_text(
        f'#!/bin/sh\nif [ "$1" = create ] && ! [ -e {bench.top}/once ]; then : > {bench.top}/once; {BORG} "$@" & sleep 0.4; kill -9 $!; kill -9 $$; fi\n'
        f'exec {BORG} "$@"\n'
    )
    program.chmod(0o755)
    place = bench.place(borg_path=str(program), patience=60)
    store = bench.open(place)
    store.put(KEY, os.urandom(4 * MIB))
    store.put(entry_key(1), b"entry")
    assert (bench.top / "once").exists()
    assert keys(bench.open(place)) == sorted([KEY, entry_key(1)])


# ---------------------------------------------------------------- locks


def test_a_repository_in_use_is_unavailable_and_the_hint_says_why(bench: Bench) -> None:
    place = bench.place(patience=1)
    store = bench.open(place)
    ready = bench.top / "ready"
    environment = os.environ | {"BORG_BASE_DIR": str(bench.top / "b"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
    holder = subprocess.Popen(
        [BORG, "with-lock", place.path, "sh", "-c", f": > {ready}; sleep 60"], env=environment, start_new_session=True
    )
    try:
        while not ready.exists():
            time.sleep(0.05)
        with pytest.raises(StoreUnavailable, match="lock") as found:
            store.put(entry_key(1), b"x")
        assert found.value.retryable
        assert "break-lock" in found.value.hint
    finally:
        os.killpg(holder.pid, signal.SIGTERM)
        holder.wait(20)
    store.put(entry_key(1), b"x")
    assert keys(bench.open(place)) == [entry_key(1)]


# ---------------------------------------------------------------- secrets

SECRET = "correct-horse-battery"


@pytest.fixture
def watched(bench: Bench) -> Path:
    """A borg that notes its arguments, its environment and its standard input; what it noted."""
    program = bench.top / "borg"
    noted = bench.top / "noted"
    program.write_text(
        "#!/bin/sh\n"
        f'{{ tr "\\0" "\\n" < /proc/$$/cmdline; echo; env; readlink /proc/$$/fd/0; cut -d" " -f6,7 /proc/$$/stat; }} >> {noted}\nexec {BORG} "$@"\n'
    )
    program.chmod(0o755)
    return noted


def test_no_secret_among_the_arguments_and_no_terminal(bench: Bench, watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BORG_PASSPHRASE", "of-somebody-else")
    (bench.top / "secret").write_text(SECRET)
    place = StoreConfig(
        name="box",
        url=f"borg://{bench.top}/sealed",
        borg_path=str(bench.top / "borg"),
        passphrase_command=f"cat {bench.top}/secret",
        patience=5,
    )
    store = open_borg(place, create=True, work_dir=str(bench.top / "work"))
    store.put(entry_key(1), b"entry")
    assert store.get(entry_key(1), LIMIT) == b"entry"
    store.close()
    noted = watched.read_text()
    assert "create" in noted
    assert f"BORG_PASSCOMMAND=cat {bench.top}/secret" in noted
    assert SECRET not in noted
    assert "of-somebody-else" not in noted
    assert "/dev/pts" not in noted
    sessions = re.findall(r"^(\d+) (\d+)$", noted, re.MULTILINE)
    assert sessions
    assert all(int(session) != os.getsid(0) and terminal == "0" for session, terminal in sessions)
    assert noted.count("\n/dev/null\n") >= 3
    config = (bench.top / "sealed/config").read_text()
    assert "key = " in config  # repokey: the key lies in the repository, locked by the passphrase


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (None, "passphrase"),
        ("echo wrong", "passphrase"),
        ("false hunter2", "passphrase_command failed"),
        ("/gone hunter2", "passphrase_command failed"),
    ],
)
def test_a_wrong_or_missing_passphrase_is_refused_and_not_shown(bench: Bench, command: str | None, said: str) -> None:
    place = StoreConfig(name="box", url=f"borg://{bench.top}/sealed", borg_path=BORG, passphrase_command=f"echo {SECRET}", patience=5)
    open_borg(place, create=True, work_dir=str(bench.top / "right")).close()
    wrong = StoreConfig(name="box", url=place.url, borg_path=BORG, passphrase_command=command, patience=5)
    with pytest.raises(StoreRefused) as found:
        open_borg(wrong, create=False, work_dir=str(bench.top / "wrong"))
    assert said in found.value.message.lower()
    assert "passphrase_command" in found.value.hint
    assert not {SECRET, "wrong", "hunter2"} & set(found.value.message.replace("'", " ").split())


# ---------------------------------------------------------------- the other side


@pytest.fixture
def there(tmp_path: Path) -> Iterator[SshRepository]:
    """An append-only server."""
    with ssh_repository(tmp_path / "there") as there:
        yield there


def test_what_ssh_says_becomes_our_errors(bench: Bench, there: SshRepository) -> None:
    def attempt(url: str, rsh: str = there.rsh, **options: object) -> MailbackupError:
        place = StoreConfig(**{"name": "box", "url": url, "rsh": rsh, "borg_path": BORG, "patience": 0} | options)  # type: ignore[arg-type]
        with pytest.raises(MailbackupError) as found:
            open_borg(place, create=False, work_dir=None)
        return found.value

    nobody = attempt(there.url.replace(f":{there.port}/", ":1/"))
    assert isinstance(nobody, StoreUnavailable)
    assert nobody.retryable
    stranger = attempt(
        there.url, there.rsh.replace("client_key", "host_key"), patience=20
    )  # borg sometimes ends before it has read what ssh says
    assert isinstance(stranger, StoreRefused)
    assert "ssh key" in stranger.hint
    unknown = attempt(there.url, there.rsh.replace("accept-new", "yes").replace("known_hosts", "nothing_known"), patience=20)
    assert isinstance(unknown, StoreRefused)
    assert "host key" in unknown.hint
    elsewhere = attempt(there.url.replace("/repositories/", "/elsewhere/"))
    assert isinstance(elsewhere, StoreRefused)
    assert "restrict-to-path" in elsewhere.hint
    assert isinstance(attempt(there.url), StoreUnavailable)  # no repository yet


def test_in_an_append_only_repository_deleting_frees_nothing_and_nothing_is_lost(bench: Bench, there: SshRepository) -> None:
    place = StoreConfig(name="box", url=there.url, rsh=there.rsh, borg_path=BORG, patience=30)
    store = open_borg(place, create=True, work_dir=str(bench.top / "work"))
    store.put(KEY, b"precious" * 100_000)
    store.put(entry_key(1), b"{}")
    store.delete(KEY)
    store.flush()
    assert isinstance(store, BorgStore)
    with contextlib.suppress(MailbackupError):
        store.borg.run("compact")
    assert keys(bench.open(place)) == [entry_key(1)]
    segments = [path.read_bytes() for path in Path(there.path, "data").rglob("*") if path.is_file()]
    assert any(b"preciousprecious" in data for data in segments)
    store.put(KEY, b"new")
    store.flush()
    assert bench.open(place).get(KEY, LIMIT) == b"new"
    store.close()


def test_a_storage_quota_is_a_refusal_and_what_was_stored_stays(bench: Bench, tmp_path: Path) -> None:
    with ssh_repository(tmp_path / "small", options=("--storage-quota", "10M")) as there:
        place = StoreConfig(name="box", url=there.url, rsh=there.rsh, borg_path=BORG, patience=5)
        store = open_borg(place, create=True, work_dir=str(bench.top / "work"))
        store.put(entry_key(1), b"{}")
        with pytest.raises(StoreRefused, match="quota") as found:
            with store.create(KEY) as writer:
                writer.write(os.urandom(16 * MIB))
                writer.commit()
            store.flush()
        assert "quota" in found.value.hint
        store.close()
        assert keys(bench.open(place)) == [entry_key(1)]


@pytest.mark.root
def test_a_full_disk_is_no_space_and_what_was_stored_stays(bench: Bench) -> None:
    disk = bench.top / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    try:
        place = StoreConfig(name="box", url=f"borg://{disk}/repository", borg_path=BORG, patience=2)
        store = open_borg(place, create=True, work_dir=str(bench.top / "work"))
        store.put(entry_key(1), b"{}")
        store.put(KEY, os.urandom(32 * MIB))
        with pytest.raises(NoSpace):
            store.flush()
        store.close()
        assert keys(bench.open(place)) == [entry_key(1)]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_missing_program_is_said(bench: Bench) -> None:
    with pytest.raises(ConfigInvalid, match="no program") as found:
        bench.open(bench.place(borg_path="borg-of-nowhere"))
    assert "borg_path" in found.value.hint


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("code", "stderr", "kind", "transient"),
    [
        (
            73,
            b'{"levelname": "ERROR", "message": "Failed to create/acquire the lock x (timeout).", "msgid": "LockTimeout"}',
            StoreUnavailable,
            True,
        ),
        (81, b'{"levelname": "ERROR", "message": "Connection closed", "msgid": "ConnectionClosedWithHint"}', StoreUnavailable, True),
        (13, b'{"levelname": "ERROR", "message": "does not exist", "msgid": "Repository.DoesNotExist"}', StoreUnavailable, False),
        (14, b'{"levelname": "ERROR", "message": "x", "msgid": "Repository.InsufficientFreeSpaceError"}', NoSpace, False),
        (20, b'{"levelname": "ERROR", "message": "x", "msgid": "Repository.StorageQuotaExceeded"}', StoreRefused, False),
        (90, b'{"levelname": "ERROR", "message": "x", "msgid": "IntegrityError"}', ObjectDamaged, False),
        (100, b'{"levelname": "WARNING", "message": "file changed while we backed it up"}', StoreRefused, False),
        (2, b"Traceback (most recent call last):\n  x\nOSError: [Errno 28] No space left on device", NoSpace, False),
        (2, b"", StoreRefused, False),
        (
            2,
            b'{"levelname": "ERROR", "message": "Traceback (most recent call last):\\n  x\\nKeyError: 7\\n\\nPlatform: secret"}',
            StoreRefused,
            False,
        ),
        (2, b"usage: borg [-V]\nborg: error: unrecognized arguments: --sort-by", StoreRefused, False),
        (-9, b"", StoreUnavailable, True),
    ],
)
def test_every_end_of_borg_is_one_of_our_errors(code: int, stderr: bytes, kind: type[MailbackupError], transient: bool) -> None:
    failure = failure_of(code, stderr)
    assert type(failure.error("store box")) is kind
    assert failure.transient == transient
    assert "secret" not in failure.error("store box").message


def test_an_archive_that_lacks_what_could_not_be_read_is_made_right(bench: Bench) -> None:
    """borg goes on when a file that it was told to store is gone, and the archive's comment names it all the same."""
    place = bench.place()
    store = bench.open(place, "work")
    other = ObjectKey(f"packs/ef/ef{'0' * 30}")
    store.put(KEY, b"k" * 200_000)
    store.put(other, b"o" * 200_000)
    work = str(bench.top / "work")
    spool = next(name for name in os.listdir(work) if name.startswith("spool-"))
    waiting = {path: path.read_bytes()[:1] for path in Path(work, spool).rglob("*") if path.is_file()}
    next(path for path, first in waiting.items() if first == b"k").unlink()
    with pytest.raises(MailbackupError):
        store.put(entry_key(1), b"entry")
    store.close()
    after = bench.open(place)
    assert KEY not in keys(after)
    assert entry_key(1) not in keys(after) or after.get(other, 1 << 20) == b"o" * 200_000
    again = bench.open(place, "again")
    again.put(KEY, b"k" * 200_000)
    again.flush()
    assert bench.open(place).get(KEY, 1 << 20) == b"k" * 200_000
