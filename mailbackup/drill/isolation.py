"""Showing that a scratch machine cannot reach anything, before anything is started in it."""

from __future__ import annotations

import errno
import socket
import threading

from mailbackup.drill.scratch import Scratch, enter_network
from mailbackup.errors import SafetyRefusal

_OUTSIDE = ("192.0.2.1", "198.51.100.7", "9.9.9.9")
_UNREACHABLE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL}


def prove_isolation(scratch: Scratch) -> str:
    """No interface but its own loopback, no route, and connections fail at once. Raises SafetyRefusal; then nothing may be started there."""
    interfaces = _interfaces(scratch)
    if interfaces != {"lo"}:
        raise SafetyRefusal(
            f"the scratch machine has network interfaces: {', '.join(sorted(interfaces))}", hint="Nothing was started in it."
        )
    problems: list[str] = []
    thread = threading.Thread(target=_try_out, args=(scratch.pid, problems), daemon=True)
    thread.start()
    thread.join(15)
    if thread.is_alive():
        problems.append("a connection to the outside does not fail at once")
    if problems:
        raise SafetyRefusal(f"the scratch machine is not isolated: {problems[0]}", hint="Nothing was started in it.")
    return "no interface but loopback, no way out"


def _interfaces(scratch: Scratch) -> set[str]:
    with open(f"/proc/{scratch.pid}/net/dev", encoding="ascii") as file:
        return {line.partition(":")[0].strip() for line in file.read().splitlines()[2:]}


def _try_out(pid: int, problems: list[str]) -> None:
    """Runs in a thread that enters the machine's network namespace and never leaves it."""
    try:
        enter_network(pid)
        for address in _OUTSIDE:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                _expect_unreachable(address, kind, problems)
    except OSError as error:
        problems.append(str(error))


def _expect_unreachable(address: str, kind: socket.SocketKind, problems: list[str]) -> None:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.settimeout(2)
        try:
            probe.connect((address, 25))
        except OSError as error:
            if error.errno in _UNREACHABLE:
                return
            problems.append(f"{address}: {error}")
        else:
            problems.append(f"{address} can be reached")
