"""The real program from end to end, as scripts use it: every answer fits its schema, every status is as documented."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from mailbackup.cli.layout import compare
from mailbackup.sample.mailstore import make_sample, simulate_day
from tests.cli.conftest import Cli, Done
from tests.cli.reference import schemas
from tests.cli.schema import problems

PATTERN = "mail/{domain}/{user}/Maildir"


class Server:
    """A made-up server in a folder: mail, some configuration, and a vault; commands run with its configuration."""

    def __init__(self, folder: Path, cli: Cli) -> None:
        self.folder = folder
        self._cli = cli
        make_sample(str(folder / "mail"))
        (folder / "etc" / "postfix").mkdir(parents=True)
        (folder / "etc" / "postfix" / "main.cf").write_text("myhostname = mx1\n")

    def text(self, *args: str) -> Done:
        return self._cli(*args, "--config", str(self.folder / "c.toml"), "--state", str(self.folder / "state"))

    def run(self, *args: str, status: int = 0) -> dict[str, Any]:
        """The answer of a command, which fits its schema."""
        done = self.text(*args, "--json")
        assert done.status == status, done
        schema = dict(schemas()["error" if done.json["outcome"] == "error" else done.json["command"]])
        del schema["file"]
        assert problems(done.json, schema) == []
        return done.json

    def read(self, *args: str, status: int = 0) -> dict[str, Any]:
        """The same with the recovery kit."""
        return self.run(*args, "--identity", str(self.folder / "kit.txt"), status=status)

    def init(self, *args: str, status: int = 0) -> dict[str, Any]:
        paths = ("--mail", str(self.folder / PATTERN), "--directory", str(self.folder / "etc"), "--store", str(self.folder / "vault"))
        return self.run("init", "--yes", *paths, "--kit-out", str(self.folder / "kit.txt"), *(args or ("--no-passphrase",)), status=status)

    def mailbox(self, address: str) -> Path:
        user, _, domain = address.partition("@")
        return self.folder / "mail" / domain / user / "Maildir"


@pytest.fixture
def server(tmp_path: Path, cli: Cli) -> Server:
    return Server(tmp_path, cli)


@pytest.fixture
def saved(server: Server) -> Server:
    """A server with two snapshots."""
    server.init()
    server.run("backup")
    simulate_day(str(server.folder / "mail"), seed=1)
    server.run("backup")
    return server


def test_the_way_of_a_backup(server: Server):
    made = server.init()
    assert (made["config"], made["kit"]) == (str(server.folder / "c.toml"), str(server.folder / "kit.txt"))
    assert server.run("config", "check")["missing"] == []
    assert server.run("config", "show")["config"]["trust"]["vault"] == made["vault"]
    first = server.run("backup")
    assert (first["outcome"], first["mailboxes"], first["new_messages"]) == ("complete", 4, first["messages"])
    second = server.run("backup")
    assert (second["messages"], second["new_messages"]) == (first["messages"], 0)
    assert second["bytes_stored"] < first["bytes_stored"] / 10
    assert server.run("backup", "--rescan")["new_messages"] == 0
    rows = server.run("snapshots")["snapshots"]
    assert [row["outcome"] for row in rows] == ["complete"] * 3
    assert [row["seq"] for row in rows] == sorted(row["seq"] for row in rows)


def test_looking_into_it(saved: Server):
    lines = saved.read("ls")["mailboxes"]
    assert {line["address"] for line in lines} == {"alice@example.org", "bob@example.org", "carol@example.net", "dave@example.net"}
    messages = saved.read("ls", "alice@example.org")["messages"]
    assert len(messages) == next(line["messages"] for line in lines if line["address"] == "alice@example.org")
    sent = saved.read("ls", "alice@example.org/Sent")["messages"]
    assert 0 < len(sent) < len(messages)
    seq = saved.run("snapshots")["snapshots"][0]["seq"]
    assert saved.read("show", str(seq))["snapshot"]["seq"] == seq
    assert len(saved.read("ls", "alice@example.org", "--at", str(seq))["messages"]) != 0


def test_a_message_byte_for_byte(saved: Server):
    source = {path.read_bytes() for path in saved.mailbox("bob@example.org").rglob("cur/*")}
    source |= {path.read_bytes() for path in saved.mailbox("bob@example.org").rglob("new/*")}
    for line in saved.read("ls", "bob@example.org")["messages"][:5]:
        done = saved.text("show", "bob@example.org", line["id"][:16], "--identity", str(saved.folder / "kit.txt"))
        assert (done.status, done.err) == (0, "")
        assert done.out in source
        assert len(done.out) == line["size"]
        saved.read("show", "bob@example.org", line["id"])


def test_restores(saved: Server):
    out = saved.folder / "out"
    one = saved.read("restore", "mailbox", "alice@example.org", "--to", str(out / "alice"))
    assert one["outcome"] == "complete"
    seen = compare(os.fsencode(saved.mailbox("alice@example.org")), os.fsencode(out / "alice"))
    assert (seen.equal, seen.different, seen.only_source, seen.only_copy) == (one["messages"], 0, 0, 0)
    two = saved.read("restore", "mailbox", "bob@example.org", "carol@example.net", "--to", str(out / "two"))
    assert sorted(os.listdir(out / "two")) == ["bob@example.org", "carol@example.net"]
    every = saved.read("restore", "mailbox", "--all", "--to", str(out / "all"))
    assert len(os.listdir(out / "all")) == 4
    assert every["messages"] > two["messages"]
    for address in os.listdir(out / "all"):
        seen = compare(os.fsencode(saved.mailbox(address)), os.fsencode(out / "all" / address))
        assert (seen.different, seen.only_source, seen.only_copy) == (0, 0, 0)
    saved.read("restore", "files", str(saved.folder / "etc"), "--to", str(out / "files"))
    assert (out / "files" / str(saved.folder).lstrip("/") / "etc" / "postfix" / "main.cf").read_text() == "myhostname = mx1\n"


def test_a_plan_changes_nothing(saved: Server):
    planned = saved.read("restore", "mailbox", "alice@example.org", "--to", str(saved.folder / "out"), "--dry-run")
    assert planned["outcome"] == "planned"
    assert planned["plan"]
    assert not (saved.folder / "out").exists()


def test_restore_does_not_overwrite(saved: Server):
    target = saved.folder / "out"
    saved.read("restore", "files", str(saved.folder / "etc"), "--to", str(target))
    changed = next(target.rglob("main.cf"))
    changed.write_text("changed since\n")
    saved.read("restore", "files", str(saved.folder / "etc"), "--to", str(target), status=8)
    assert changed.read_text() == "changed since\n"
    saved.read("restore", "files", str(saved.folder / "etc"), "--to", str(target), "--overwrite")
    assert changed.read_text() == "myhostname = mx1\n"


def test_verify_clean_and_damaged(saved: Server):
    assert saved.run("verify")["outcome"] == "clean"
    opened = saved.read("verify", "--decrypt")
    assert (opened["outcome"], opened["decrypted"]) == ("clean", True)
    saved.run("verify", "--sample", "50%")
    pack = max((saved.folder / "vault" / "packs").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    damaged = saved.run("verify", status=4)
    assert damaged["outcome"] == "damaged"
    assert damaged["findings"]
    text = saved.text("verify")
    assert (text.status, text.text.partition(":")[0]) == (4, "damaged")
    assert text.err


def test_incomplete_is_3(saved: Server):
    shutil.rmtree(saved.folder / "mail")
    answer = saved.run("backup", status=3)
    assert answer["outcome"] in ("incomplete", "error")


def test_state_and_kit(saved: Server):
    shutil.copy(saved.folder / "kit.txt", saved.folder / "old.txt")
    rebuilt = saved.read("state", "rebuild")
    assert rebuilt["mailboxes"] == 4
    assert saved.run("backup")["new_messages"] == 0
    saved.read("key", "kit", "--out", str(saved.folder / "new.txt"), "--page", str(saved.folder / "new.html"), "--no-passphrase")
    assert (saved.folder / "new.html").read_text().startswith("<!")
    answer = saved.run("ls", "--identity", str(saved.folder / "new.txt"))
    assert len(answer["mailboxes"]) == 4


@pytest.mark.case("46")
@pytest.mark.case("41", "46")
def test_a_kit_with_a_passphrase(server: Server, monkeypatch: pytest.MonkeyPatch):
    (server.folder / "pass").write_text("open sesame\n")
    monkeypatch.setenv("MAILBACKUP_PASSPHRASE_FILE", str(server.folder / "pass"))
    server.init("--host", "mx1")
    assert "AGE-SECRET-KEY" not in (server.folder / "kit.txt").read_text()
    server.run("backup")
    assert len(server.read("ls")["mailboxes"]) == 4
    monkeypatch.delenv("MAILBACKUP_PASSPHRASE_FILE")
    assert server.read("ls", status=7)["error"]["code"] == "MB-K002"
    (server.folder / "wrong").write_text("wrong\n")
    monkeypatch.setenv("MAILBACKUP_PASSPHRASE_FILE", str(server.folder / "wrong"))
    assert server.read("ls", status=7)["error"]["code"] == "MB-K005"


@pytest.mark.case("44")
def test_refusals(saved: Server):
    before = (saved.folder / "kit.txt").read_bytes()
    assert saved.init(status=2)["error"]["code"] == "MB-U005"
    assert (saved.folder / "kit.txt").read_bytes() == before
    assert saved.run("ls", status=7)["error"]["code"] == "MB-K002"
    assert saved.read("ls", "nobody@example.org", status=2)["error"]["code"] == "MB-U004"
    assert saved.read("ls", "--at", "4711", status=2)["error"]["code"] == "MB-U004"
    assert saved.read("show", "alice@example.org", "0" * 16, status=2)["error"]["code"] == "MB-U004"
    assert saved.run("snapshots", "--store", "nowhere", status=2)["error"]["code"].startswith("MB-U")
    os.rename(saved.folder / "vault", saved.folder / "elsewhere")
    assert saved.run("backup", status=5)["error"]["code"] == "MB-O002"


def test_nothing_private_is_printed(saved: Server):
    secret = next(line for line in (saved.folder / "kit.txt").read_text().splitlines() if line.startswith("AGE-SECRET-KEY"))
    for args in (("config", "show"), ("snapshots",), ("verify", "-v"), ("backup", "-v")):
        done = saved.text(*args)
        assert secret not in done.text + done.err
    assert secret not in (saved.folder / "c.toml").read_text()


@pytest.mark.case("47")
def test_names_that_are_not_utf_8(server: Server):
    """They are shown with escapes, and a message and a file in such a place come back under their own names."""
    odd = os.fsdecode(b"caf\xe9\n")
    shutil.copytree(server.mailbox("bob@example.org"), server.folder / "mail" / "example.org" / odd / "Maildir")
    (server.folder / "etc" / odd).write_text("odd\n")
    server.init()
    server.run("backup")
    [line] = [line for line in server.read("ls")["mailboxes"] if "caf" in line["address"]]
    assert line["address"] == "caf\\xe9\n@example.org"
    assert "caf\\xe9 " in server.text("ls", "--identity", str(server.folder / "kit.txt")).text
    server.read("restore", "files", str(server.folder / "etc"), "--to", str(server.folder / "out"))
    assert next((server.folder / "out").rglob("caf*")).name == odd
    assert server.run("verify")["outcome"] == "clean"


def test_default_host_and_domain(tmp_path: Path, cli: Cli):
    shutil.copytree(Server(tmp_path / "x", cli).mailbox("alice@example.org"), tmp_path / "home" / "alice" / "Maildir")
    common = ("--config", f"{tmp_path}/c.toml", "--state", f"{tmp_path}/state", "--json")
    args = (
        "--mail",
        f"{tmp_path}/home/{{user}}/Maildir",
        "--store",
        f"{tmp_path}/vault",
        "--kit-out",
        f"{tmp_path}/kit.txt",
        "--no-passphrase",
    )
    assert cli("init", "--yes", *args, *common).status == 0
    assert cli("backup", *common).status == 0
    [line] = cli("ls", *common, "--identity", f"{tmp_path}/kit.txt").json["mailboxes"]
    assert line["address"] == f"alice@{socket.gethostname().lower()}"
    assert line["location"] == "home"
