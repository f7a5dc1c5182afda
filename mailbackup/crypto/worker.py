"""A helper process of `pool`: seals what lies in memory that it shares with its parent.

Started as `python -P -m mailbackup.crypto.worker FD SIZE RECIPIENT`. A u32 on stdin says how many bytes of the memory FD to seal; the age
file takes their place, and a u32 on stdout says how long it is. The end of stdin means that the parent closed it or is gone. A failure ends
the process: the parent sees that and reports it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import sys

from mailbackup.crypto.age import AgeSealer

LENGTH = struct.Struct("=I")


def serve(fd: int, size: int, recipient: str) -> None:
    """Answer requests until stdin ends."""
    area = mmap.mmap(fd, size)
    sealer = AgeSealer(recipient)
    while len(request := os.read(0, LENGTH.size)) == LENGTH.size:
        sealed = sealer.seal(area[: LENGTH.unpack(request)[0]])
        area[: len(sealed)] = sealed
        os.write(1, LENGTH.pack(len(sealed)))


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # they are for the parent, which may want to seal what it has read; its end is ours
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(BrokenPipeError):  # the parent was killed while this block was sealed
        serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
