"""Runs inside the reference server: a light drill in which something is broken after the restore. `inside.py SABOTAGE`."""

from __future__ import annotations

import glob
import json
import os
import subprocess
import sys

from mailbackup import access, config
from mailbackup.drill.probes import mail
from mailbackup.drill.scratch import Scratch
from mailbackup.model.codec import plain
from mailbackup.server import drills

BOX = "/var/vmail/*/*/Maildir"


def key_readable_by_others(root: str, _: Scratch) -> None:
    for path in glob.glob(f"{root}/etc/opendkim/keys/**/*.private", recursive=True) or _keys(root):
        os.chmod(path, 0o644)


def key_of_another_owner(root: str, _: Scratch) -> None:
    for path in _keys(root):
        os.chown(path, 0, 0)


def _keys(root: str) -> list[str]:
    found = [path for path in glob.glob(f"{root}/etc/**/*", recursive=True) if path.endswith(".private")]
    assert found, "no key to break"
    return found


def uidlist_missing(root: str, _: Scratch) -> None:
    for path in _all(root, "dovecot-uidlist"):
        os.unlink(path)


def certificate_of_somebody_else(root: str, _: Scratch) -> None:
    place = f"{root}/etc/ssl/mx1"
    argv = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "9",
        "-subj",
        "/CN=other.example",
        "-keyout",
        f"{place}/mx1.key",
    ]
    subprocess.run([*argv, "-out", f"{place}/fullchain.pem"], check=True, capture_output=True)


def parameter_unknown(root: str, _: Scratch) -> None:
    with open(f"{root}/etc/postfix/main.cf", "a") as file:
        file.write("no_such_parameter = 1\n")


def map_missing(root: str, _: Scratch) -> None:
    os.unlink(f"{root}/etc/aliases.db")


def body_truncated(root: str, _: Scratch) -> None:
    path = max(_messages(root), key=os.path.getsize)
    os.truncate(path, os.path.getsize(path) - 20)


def milter_stopped(root: str, scratch: Scratch) -> None:
    """It ends as soon as it has started."""
    scratch.run(("sh", "-c", "setsid sh -c 'until pkill -KILL -x opendkim; do sleep 0.05; done' >/dev/null 2>&1 &"))


def keywords_lost(root: str, _: Scratch) -> None:
    for pattern in ("dovecot-keywords", "dovecot.index*"):
        for path in _all(root, pattern):
            os.unlink(path)


def mailbox_empty(root: str, _: Scratch) -> None:
    box = max(glob.glob(root + BOX), key=lambda path: len(glob.glob(f"{path}/cur/*")))
    for path in glob.glob(f"{box}/cur/*") + glob.glob(f"{box}/new/*"):
        os.unlink(path)


def subscriptions_lost(root: str, _: Scratch) -> None:
    for path in _all(root, "subscriptions"):
        os.unlink(path)


def queue_released(root: str, scratch: Scratch) -> None:
    """Somebody moves the mail on hold back before Postfix starts."""
    for path in glob.glob(f"{root}/var/spool/postfix/hold/*"):
        os.rename(path, path.replace("/hold/", "/incoming/"))


def account_renumbered(root: str, _: Scratch) -> None:
    subprocess.run(["sed", "-i", "s/^vmail:x:5000:/vmail:x:5001:/", f"{root}/etc/passwd"], check=True)


def nothing(_root: str, _: Scratch) -> None:
    pass


def _all(root: str, name: str) -> list[str]:
    found = glob.glob(f"{root}/var/vmail/*/*/Maildir/{name}")
    found += glob.glob(f"{root}/var/vmail/*/*/Maildir/.*/{name}")
    assert found, f"no {name} to break"
    return found


def _messages(root: str) -> list[str]:
    return glob.glob(f"{root}{BOX}/cur/*")


def flushed(root: str, _: Scratch) -> None:
    """Everything that could send mail is done inside, after the probes: the queue is released and flushed, and connections are tried."""
    real = mail.auth

    def auth(probe: object, bench: object) -> str:
        text = real(probe, bench)  # type: ignore[arg-type]
        for command in ("postsuper -H ALL", "postqueue -f", "sleep 3", "timeout 3 bash -c 'echo x > /dev/tcp/192.0.2.25/2525'"):
            bench.scratch.run(("sh", "-c", command))  # type: ignore[attr-defined]
        return text + "; queue: " + bench.scratch.run(("postqueue", "-j")).out  # type: ignore[attr-defined]

    from mailbackup.drill import run

    run._RUNNING["auth"] = auth


def main() -> None:
    loaded, path = config.load()
    context = access.Context(config=loaded, config_path=path, state_dir="/var/lib/mailbackup", identity_file="/root/kit.txt")
    drills.SAMPLE_MESSAGES = 300  # type: ignore[misc]
    sabotage = globals()[sys.argv[1]]
    how = drills.boot if sys.argv[2:] == ["boot"] else drills.light
    print(json.dumps(plain(how(context, between=sabotage))))


main()
