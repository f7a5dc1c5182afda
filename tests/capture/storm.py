"""A process that renames mail as fast as it can: `python storm.py flags DIR` toggles flags and moves new to cur, `move A B` moves between folders."""

import os
import signal
import sys


def flags(maildir: str) -> None:
    """Toggle the seen flag of every message, for ever; what is in new goes to cur first."""
    cur, new = os.path.join(maildir, "cur"), os.path.join(maildir, "new")
    while True:
        for name in os.listdir(new):
            os.rename(f"{new}/{name}", f"{cur}/{name.partition(':')[0]}:2,")
        for name in os.listdir(cur):
            base, _, rest = name.partition(":")
            os.rename(f"{cur}/{name}", f"{cur}/{base}:2,{'' if 'S' in rest else 'S'}")


def move(one: str, other: str) -> None:
    """Move every message to the other folder and back, for ever."""
    while True:
        for source, target in ((one, other), (other, one)):
            for name in os.listdir(f"{source}/cur"):
                os.rename(f"{source}/cur/{name}", f"{target}/cur/{name}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print("ready", flush=True)
    {"flags": flags, "move": move}[sys.argv[1]](*sys.argv[2:])
