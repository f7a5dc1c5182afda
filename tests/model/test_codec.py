"""Records to JSON and back, from several threads at once."""

from __future__ import annotations

import subprocess
import sys

_MANY = """
import sys, threading
from typing import Literal
import msgspec
from mailbackup.model import codec

sys.setswitchinterval(1e-6)
for n in range(400):
    inner = [msgspec.defstruct(f"Inner{n}_{i}", [("q", int | None, None)]) for i in range(8)]
    members = [(f"f{i}", tuple[kind, ...], ()) for i, kind in enumerate(inner)] + [("k", Literal["a", "b"], "a")]
    outer = msgspec.defstruct(f"Outer{n}", members)
    text = b'{"k":"b",' + b",".join(b'"f%d":[{"q":1}]' % i for i in range(8)) + b"}"

    def decode(delay):
        for _ in range(delay * 3):
            pass
        assert codec.decode(text, outer, "x").f7[0].q == 1

    threads = [threading.Thread(target=decode, args=(delay,)) for delay in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_a_type_that_several_threads_meet_first():
    """The library crashes the process when two threads make it learn one type; in a process of its own, since that is what would die."""
    done = subprocess.run([sys.executable, "-c", _MANY], capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
