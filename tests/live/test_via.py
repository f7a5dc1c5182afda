"""Restoring from another machine: the identity never lies on the server, and only what has come whole reaches a mailbox."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mailbackup import app
from mailbackup.access import Context
from mailbackup.config import load
from mailbackup.errors import UsageError
from mailbackup.model.ids import to_name
from mailbackup.model.tree import Entry, Owner
from mailbackup.restore.stream import Head, StreamTarget
from mailbackup.server.staged import narrow
from mailbackup.server.via import Host
from tests.live.conftest import KIT, Elsewhere
from tests.live.test_live import PARENT
from tests.reference.populate import home
from tests.world import tree_of

root = pytest.mark.root


@root
def test_into_the_running_server(elsewhere: Elsewhere):
    user, live = "olaf@example.org", elsewhere.live
    originals = {folder: live.seen(user, folder) for folder in live.server.uid_hashes(user)}
    before = live.server.uid_hashes(user)
    planned = elsewhere.restore(user, "--to", "live", "--dry-run")
    assert (planned["outcome"], planned["mailboxes"][0]["into"]) == ("planned", PARENT)
    assert live.server.uid_hashes(user) == before

    answer = elsewhere.restore(user, "--to", "live", "--mode", "recovered")
    assert (answer["outcome"], answer["findings"], answer["messages"]) == ("complete", [], sum(map(len, originals.values())))
    assert planned["mailboxes"][0]["folders"] == answer["mailboxes"][0]["folders"] == len(originals)
    for folder, mails in originals.items():
        assert sorted(live.seen(user, f"{PARENT}/{folder}")) == sorted(mails), folder
        assert live.server.uid_hashes(user)[folder] == before[folder]
    assert not os.path.exists(live.server.path(KIT))
    assert live.staged() == []


@root
def test_into_a_directory_there(elsewhere: Elsewhere):
    user, live = "petra@example.org", elsewhere.live
    place = live.server.path("/srv/deep/petra")
    assert elsewhere.restore(user, "--to", "/srv/deep/petra", "--dry-run")["outcome"] == "planned"
    assert not place.parent.exists()
    answer = elsewhere.restore(user, "--to", "/srv/deep/petra")
    assert (answer["outcome"], answer["findings"]) == ("complete", [])
    here = _restored_here(elsewhere, user)
    assert tree_of(str(place)) == tree_of(here)
    assert (place.stat().st_uid, place.stat().st_gid) == (5000, 5000)
    assert os.listdir(place.parent) == ["petra"]
    assert elsewhere.restore(user, "--to", "/srv/deep/petra", status=8)["error"]["code"] == "MB-R003"
    assert "must be absolute" in elsewhere.restore(user, "--to", "deep", status=2)["error"]["message"]
    assert "nothing is overwritten" in elsewhere.restore(user, "--to", "/srv/x", "--overwrite", status=2)["error"]["message"]


def _restored_here(elsewhere: Elsewhere, user: str) -> str:
    context = _context(elsewhere)
    app.restore_mailbox(context, user, to=f"{elsewhere.place}/here")
    return f"{elsewhere.place}/here"


def _context(elsewhere: Elsewhere) -> Context:
    config, path = load(f"{elsewhere.place}/mailbackup.toml")
    return Context(config=config, config_path=path, state_dir=f"{elsewhere.place}/state", identity_file=f"{elsewhere.place}/kit.txt")


@root
def test_errors_of_the_other_side_are_ours(elsewhere: Elsewhere):
    live = elsewhere.live
    program = live.server.path("/usr/local/bin/mailbackup")
    text = program.read_text()
    live.program("doveadm", 'echo "it is ill" >&2; exit 75')
    try:
        answer = elsewhere.restore("quinn@example.org", "--to", "live", status=5)
    finally:
        live.no_program("doveadm")
    assert answer["error"]["message"] == "mx1: Dovecot does not answer: it is ill"
    program.unlink()
    try:
        answer = elsewhere.restore("quinn@example.org", "--to", "live", status=5)
        assert "mailbackup: command not found" in answer["error"]["message"]
    finally:
        program.write_text(text)
        program.chmod(0o755)
    answer = elsewhere.restore(
        "quinn@example.org", "--to", "live", status=5, environment={"MAILBACKUP_RSH": "ssh -F /dev/null -o ProxyCommand=false"}
    )
    assert answer["error"]["message"].startswith("cannot restore on mx1: ")
    answer = elsewhere.restore("quinn@example.org", "--to", "live", status=2, environment={"MAILBACKUP_RSH": "/nonexistent/ssh"})
    assert "cannot run /nonexistent/ssh" in answer["error"]["message"]


@root
def test_nothing_secret_is_on_the_command_line(elsewhere: Elsewhere):
    """What ssh is given is the address, the target, and options."""
    log = elsewhere.place / "argv"
    wrapper = elsewhere.place / "wrapper"
    wrapper.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{log}\nexec ssh -F {elsewhere.place}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    elsewhere.restore("rosa@example.org", "--to", "live", "--folder", "Sent", environment={"MAILBACKUP_RSH": str(wrapper)})
    assert log.read_text().splitlines() == [
        "-T", "-o", "ServerAliveInterval=30", "-l", "root", "--", "mx1",
        "mailbackup receive --to live --user rosa@example.org --json --quiet",
    ]  # fmt: skip


@root
def test_a_connection_that_breaks(elsewhere: Elsewhere):
    """The stream ends somewhere: the mailbox is as it was, nothing is staged, and the next try succeeds."""
    user, live = "sven@example.org", elsewhere.live
    before = live.server.uid_hashes(user)
    wrapper = elsewhere.place / "wrapper"
    for size in (1, 700, 100_000, 300_000):
        wrapper.write_text(f'#!/bin/sh\nhead -c {size} | ssh -F {elsewhere.place}/ssh_config "$@"\n')
        wrapper.chmod(0o755)
        answer = elsewhere.restore(user, "--to", "live", status=4, environment={"MAILBACKUP_RSH": str(wrapper)})
        assert answer["error"]["code"] in ("MB-D001", "MB-D005"), answer
        assert live.server.uid_hashes(user) == before
        assert live.staged() == []
    assert elsewhere.restore(user, "--to", "live")["outcome"] == "complete"


@root
@pytest.mark.case("34", "36")
def test_a_hostile_stream_into_a_mailbox(elsewhere: Elsewhere):
    """Whoever may only run `receive` can bring in mail, and nothing else: no link into another mailbox, no device, no file of another kind."""
    user, live = "tilda@example.org", elsewhere.live
    before = live.server.uid_hashes(user)
    whole = _stream(elsewhere, user)
    for evil in ("cut", "link", "fifo", "sieve", "hard"):
        stream = whole[:-20_000] if evil == "cut" else _stream(elsewhere, user, evil)
        done = live.server.mailbackup("receive", "--to", "live", "--user", user, input=stream, check=False)
        assert done.returncode == 4, (evil, done.stderr)
        assert live.server.uid_hashes(user) == before
        assert live.staged() == []
    assert live.server.mailbackup("receive", "--to", "live", "--user", user, input=whole).returncode == 0
    assert live.server.path(f"{home(user)}/Maildir/.Recovered.{PARENT[-10:]}.INBOX").is_dir()


def _stream(elsewhere: Elsewhere, user: str, evil: str = "") -> bytes:
    """The stream of a mailbox, with something in it that does not belong there."""
    path = elsewhere.place / "stream"
    target = StreamTarget()
    with open(path, "wb") as file, app.planned_mailbox(_context(elsewhere), user, target) as planned:
        narrow(planned.plan)
        target.begin(file, Head(address=user, seq=planned.seq, folders=1, messages=planned.plan.messages, bytes=planned.plan.bytes + 100))
        planned.run()
        owner = Owner(0o644, 0, None, 0, None)
        if evil == "link":
            target.special(
                b".Evil", Entry(name="", type="l", target=to_name(b"/var/vmail/example.test/alice/Maildir")), owner, replace=False
            )
        elif evil == "fifo":
            target.special(b"cur/1.fifo:2,", Entry(name="", type="p"), owner, replace=False)
        elif evil == "hard":
            target.link(b"cur/1.link:2,", b"/etc/shadow", replace=False)
        elif evil == "sieve":
            place = target.place(b".dovecot.sieve")
            target.write_file(place, [b"discard;"], Entry(name="", size=8), owner, replace=False)
        target.end()
    return path.read_bytes()


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("ssh://mx1", Host("mx1")),
        ("ssh://root@mx1.example.org:2222", Host("mx1.example.org", "root", "2222")),
        ("ssh://mail-admin@Alias/", Host("Alias", "mail-admin")),
        ("ssh://[2001:db8::1]:22", Host("2001:db8::1", None, "22")),
    ],
)
def test_hosts(url: str, host: Host):
    assert Host.parse(url) == host


@pytest.mark.parametrize(
    "url",
    ["mx1", "http://mx1", "ssh://", "ssh://-oProxyCommand=x", "ssh://-l@mx1", "ssh://root:secret@mx1", "ssh://mx1/etc", "ssh://mx1 x", "ssh://mx1;x",
     "ssh://a@-b", "ssh://mx1:port", "ssh://mx1\n"],
)  # fmt: skip
def test_no_hosts(url: str):
    with pytest.raises(UsageError):
        Host.parse(url)


def test_receive_alone(tmp_path: Path):
    command = [sys.executable, "-m", "mailbackup", "receive", "--to", str(tmp_path / "x")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert done.returncode == 4
    assert os.listdir(tmp_path) == []
