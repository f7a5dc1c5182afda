"""Helper processes that seal: they give what one process would give, and neither hang nor stay when something dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mailbackup.crypto import pool
from mailbackup.crypto.age import AgeOpener, Identity, generate_identity
from mailbackup.crypto.pool import AdaptiveSealer, PooledSealer
from mailbackup.errors import KeyMalformed, MailbackupError

WAIT = 20.0  # seconds, for what takes milliseconds on an idle machine


@pytest.fixture(scope="module")
def identity() -> Identity:
    return generate_identity()


@pytest.fixture
def one(identity: Identity) -> Iterator[PooledSealer]:
    sealer = PooledSealer(identity.recipient, 1)
    yield sealer
    sealer.close()


def opened(identity: Identity, sealed: bytes) -> bytes:
    return AgeOpener([identity.secret]).open(sealed)


def state(pid: int) -> str:
    """State of a process as ps shows it; "gone" when there is none. A zombie has ended, and waits for a parent that does not look."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    return stat.rpartition(")")[2].split()[0].replace("Z", "gone")


def wait_for(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def wait_until_reading(sealer: PooledSealer) -> None:
    """Until the helper has started and waits for a request."""
    sealer.seal(b"warm")
    assert wait_for(lambda: state(sealer.pids[0]) == "S")


# ---------------------------------------------------------------- sealing


@pytest.mark.parametrize("size", [0, 1, 64 * 1024, 3_000_000, pool.LARGEST, pool.LARGEST + 1])
def test_what_is_sealed_can_be_opened(size: int, one: PooledSealer, identity: Identity) -> None:
    data = (os.urandom(997) * (size // 997 + 1))[:size]
    assert opened(identity, one.seal(data)) == data


def test_the_memory_is_large_enough_for_what_age_adds(identity: Identity) -> None:
    sealed = pool.AgeSealer(identity.recipient).seal(bytes(pool.LARGEST))
    assert len(sealed) <= pool.AREA


def test_eight_threads_get_their_own_answers(identity: Identity) -> None:
    sealer = PooledSealer(identity.recipient, 2)
    blocks = [bytes([number]) * (1000 * number) for number in range(200)]
    with ThreadPoolExecutor(8) as threads:
        sealed = list(threads.map(sealer.seal, blocks))
    sealer.close()
    assert [opened(identity, one) for one in sealed] == blocks


def test_a_shorter_answer_holds_nothing_of_a_longer_one(one: PooledSealer, identity: Identity) -> None:
    long, short = one.seal(b"x" * 100_000), one.seal(b"y")
    assert len(short) < 2000  # age adds a stanza of random length
    assert (opened(identity, long), opened(identity, short)) == (b"x" * 100_000, b"y")


def test_a_recipient_that_is_none_starts_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_spawn", lambda *_: pytest.fail("a process was started"))
    with pytest.raises(KeyMalformed):
        PooledSealer("age1nonsense", 2)
    with pytest.raises(KeyMalformed):
        AdaptiveSealer("age1nonsense", 2)


# ---------------------------------------------------------------- death


def test_a_helper_killed_in_the_middle_is_an_error(one: PooledSealer) -> None:
    wait_until_reading(one)
    os.kill(one.pids[0], signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(one.seal, b"never sealed")
        time.sleep(0.05)
        assert not answer.done()
        os.kill(one.pids[0], signal.SIGKILL)
        with pytest.raises(MailbackupError, match=r"helper process .* has ended \(signal 9\)") as caught:
            answer.result(WAIT)
    assert "memory" in caught.value.hint
    with pytest.raises(MailbackupError, match="has ended"):
        one.seal(b"the next one is told too")


def test_a_helper_killed_while_idle_is_an_error(one: PooledSealer) -> None:
    wait_until_reading(one)
    os.kill(one.pids[0], signal.SIGKILL)
    assert wait_for(lambda: state(one.pids[0]) == "gone")
    with pytest.raises(MailbackupError, match="signal 9"):
        one.seal(b"")


def test_nobody_waits_for_ever_behind_a_dead_helper(one: PooledSealer) -> None:
    wait_until_reading(one)
    os.kill(one.pids[0], signal.SIGSTOP)
    with ThreadPoolExecutor(4) as threads:
        answers = [threads.submit(one.seal, b"x") for _ in range(4)]
        os.kill(one.pids[0], signal.SIGKILL)
        errors = [answer.exception(WAIT) for answer in answers]
    assert all(isinstance(error, MailbackupError) for error in errors)


def test_an_interrupted_wait_never_gives_its_answer_to_the_next(one: PooledSealer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    wait_until_reading(one)
    with monkeypatch.context() as patched:
        patched.setattr(pool.os, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            one.seal(b"first")
    with pytest.raises(MailbackupError, match="interrupted"):
        one.seal(b"second")


def test_signals_of_the_terminal_are_for_the_parent(one: PooledSealer, identity: Identity) -> None:
    wait_until_reading(one)
    assert os.getpgid(one.pids[0]) != os.getpgid(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(one.pids[0], number)
    assert opened(identity, one.seal(b"still here")) == b"still here"


PARENT = """
import sys, time
from mailbackup.crypto.pool import PooledSealer
sealer = PooledSealer(sys.argv[1], 2)
sealer.seal(b"x"); sealer.seal(b"x")
print(*sealer.pids, flush=True)
time.sleep(100)
"""


def test_helpers_end_when_the_parent_is_killed(identity: Identity) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, identity.recipient], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert [state(pid) == "gone" for pid in pids] == [False, False]
        parent.kill()
    assert wait_for(lambda: all(state(pid) == "gone" for pid in pids))


def test_the_helper_is_ours_whatever_the_working_directory_holds(
    identity: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mailbackup", "pyrage", "mmap"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('foreign code ran')")
    monkeypatch.chdir(tmp_path)
    sealer = PooledSealer(identity.recipient, 1)
    try:
        assert opened(identity, sealer.seal(b"x")) == b"x"
    finally:
        sealer.close()


def test_a_program_that_cannot_be_started(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.sys, "executable", "/nonexistent/python")
    with pytest.raises(MailbackupError, match="cannot start a helper process"):
        PooledSealer(identity.recipient, 2)


def test_a_program_that_ends_at_once(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.sys, "executable", "/bin/false")
    sealer = PooledSealer(identity.recipient, 1)
    with pytest.raises(MailbackupError, match="exit status 1"):
        sealer.seal(b"x")
    sealer.close()


# ---------------------------------------------------------------- closing


def test_closing_ends_the_helpers_and_can_be_repeated(identity: Identity) -> None:
    sealer = PooledSealer(identity.recipient, 2)
    sealer.seal(b"x")
    pids = sealer.pids
    sealer.close()
    assert [state(pid) for pid in pids] == ["gone", "gone"]
    sealer.close()
    with pytest.raises(MailbackupError, match="closed"):
        sealer.seal(b"x")


def test_closing_waits_for_what_is_being_sealed(one: PooledSealer, identity: Identity) -> None:
    wait_until_reading(one)
    os.kill(one.pids[0], signal.SIGSTOP)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(one.seal, b"the last block")
        time.sleep(0.05)
        closing = threading.Thread(target=one.close)
        closing.start()
        os.kill(one.pids[0], signal.SIGCONT)
        assert opened(identity, answer.result(WAIT)) == b"the last block"
        closing.join(WAIT)
        assert not closing.is_alive()


def test_closing_while_threads_seal_gives_answers_or_our_error(identity: Identity) -> None:
    sealer = PooledSealer(identity.recipient, 2)

    def seal_until_closed() -> BaseException:
        while True:
            try:
                assert opened(identity, sealer.seal(b"x" * 100_000)) == b"x" * 100_000
            except BaseException as error:
                return error

    with ThreadPoolExecutor(4) as threads:
        ends = [threads.submit(seal_until_closed) for _ in range(4)]
        time.sleep(0.3)
        sealer.close()
        errors = [end.result(WAIT) for end in ends]
    assert [str(error) for error in errors] == ["this sealer was closed"] * 4


# ---------------------------------------------------------------- small and large runs


def test_a_small_run_pays_for_no_process(identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_spawn", lambda *_: pytest.fail("a process was started"))
    sealer = AdaptiveSealer(identity.recipient, 2, threshold_bytes=1000)
    for _ in range(10):
        assert opened(identity, sealer.seal(bytes(100))) == bytes(100)
    assert not sealer.pooled
    sealer.close()


def test_a_large_run_starts_its_helpers_once(identity: Identity) -> None:
    sealer = AdaptiveSealer(identity.recipient, 2, threshold_bytes=1000)
    with ThreadPoolExecutor(8) as threads:
        sealed = list(threads.map(sealer.seal, [bytes([number]) * 100 for number in range(100)]))
    assert [opened(identity, one)[:1] for one in sealed] == [bytes([number]) for number in range(100)]
    assert sealer._pool
    assert len(sealer._pool.pids) == 2
    pids = sealer._pool.pids
    sealer.close()
    sealer.close()
    assert [state(pid) for pid in pids] == ["gone", "gone"]


@pytest.mark.parametrize("workers", [0, 2])
def test_without_helpers_it_goes_on_in_this_process(workers: int, identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool.sys, "executable", "/nonexistent/python")
    sealer = AdaptiveSealer(identity.recipient, workers, threshold_bytes=10)
    for _ in range(3):
        assert opened(identity, sealer.seal(bytes(100))) == bytes(100)
    assert not sealer.pooled
    sealer.close()
