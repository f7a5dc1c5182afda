"""`systems explain`: what it says of a path is what a backup does with it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from mailbackup.access import use_vault
from mailbackup.server.explain import explain
from tests.world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path, directories=True)
    with open(world.config_path) as file:
        text = file.read().replace('# exclude = ["*/.cache"]', 'exclude = ["*/.cache", "*.iso"]')
    with open(world.config_path, "w") as file:
        file.write(text)
    return world


def put(path: str, text: str = "x") -> str:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Path(path).write_text(text)
    return path


def outcome(world: World, path: str) -> str:
    return explain(world.context.config, path).outcome


def why(world: World, path: str) -> str:
    return " ".join(row.why for row in explain(world.context.config, path).rows)


def test_what_is_explained_is_what_is_saved(world: World):
    """Every file below the sources: explained as saved if, and only if, the snapshot holds it."""
    box = world.maildir()
    world.deliver("1.m.host:2,S", b"Subject: x\n\nx")
    world.deliver("2.m.host", b"Subject: y\n\ny", folder=".Sent", place="new")
    for name in (
        "dovecot-uidlist",
        "dovecot.index.cache",
        "dovecot.index.log",
        "tmp/half",
        "dovecot-uidlist.lock",
        ".Sent/dovecot.index.cache",
    ):
        put(f"{box}/{name}")
    for name in ("a.txt", "x/.cache/y", "disk.iso", "x/b", "c/CACHEDIR.TAG", "c/heavy", "poetry.lock"):
        put(f"{world.home}/{name}", "Signature: 8a477f597d28d172789f06886806bc55\n" if name.endswith("TAG") else "x")
    os.symlink("a.txt", f"{world.home}/link")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{world.home}/socket")
    world.backup()
    with use_vault(world.context) as (reader, _):
        snapshot = reader.snapshot(reader.find("latest"))
        saved = {os.path.join(root, name) for root, names in _held(reader, snapshot) for name in names}
    files = {os.path.join(place, name) for top in (world.mail, world.home) for place, _, names in os.walk(top) for name in names}
    assert len(files) > 12
    assert {path for path in files if outcome(world, path) == "saved"} == saved & files
    assert {path for path in files if outcome(world, path) == "not-covered"} == set()


def _held(reader, snapshot):
    from mailbackup.mail.maildir import directory_of, flag_parts

    for root in snapshot.root.directories:
        yield str(root.path), [os.fsdecode(entry.name) for entry in reader.directory(snapshot, root) if entry.entry.type != "d"]
    for row, _ in reader.mailboxes(snapshot):
        _, tree = reader.mailbox(snapshot, row.address)
        names = [os.fsdecode(entry.name) for entry in reader.files(tree.blocks, tree.files, "files") if entry.entry.type != "d"]
        for folder in tree.folders:
            for entry in reader.messages(tree, folder):
                place, rest = flag_parts(entry.flag)
                names.append(os.fsdecode(os.path.join(entry.folder or b"", directory_of(place), entry.name + rest)))
        yield str(tree.path), names


def test_reasons(world: World):
    box = world.maildir()
    message = world.deliver("1.m.host:2,S", b"x")
    assert why(world, message) == "a message in INBOX of alice@example.org"
    assert why(world, f"{box}/dovecot.index.cache").endswith("cache")
    assert why(world, f"{box}/tmp/x").endswith("unfinished delivery")
    assert why(world, box) == "the mailbox of alice@example.org"
    assert "excluded by '*/.cache', which fits" in why(world, f"{world.home}/ann/.cache/deep/down")
    assert why(world, f"{world.home}/x.iso") == "excluded by '*.iso'"


def test_what_nothing_covers(world: World, tmp_path: Path):
    result = explain(world.context.config, put(f"{tmp_path}/other/file"))
    assert (result.outcome, result.rows) == ("not-covered", ())
    assert f'[[directory]]\npath = "{tmp_path}/other"' in result.advice
    os.makedirs(f"{tmp_path}/box/cur")
    os.makedirs(f"{tmp_path}/box/new")
    assert "[[mail]]" in explain(world.context.config, f"{tmp_path}/box/cur/1.x").advice


def test_a_directory_that_holds_sources(world: World):
    world.deliver("1.m.host:2,S", b"x")
    result = explain(world.context.config, world.root)
    assert result.outcome == "partly"
    assert [row.why for row in result.rows] == ["saves 1 mailboxes below it", f"saves {world.home}"]


def test_a_path_through_a_link(world: World, tmp_path: Path):
    put(f"{world.home}/a.txt")
    os.symlink(world.home, tmp_path / "way")
    assert outcome(world, f"{tmp_path}/way/a.txt") == "saved"
    put(f"{tmp_path}/outside/b")
    os.symlink(tmp_path / "outside", f"{world.home}/out")
    assert outcome(world, f"{world.home}/out") == "saved"
    assert outcome(world, f"{world.home}/out/b") == "left-out"
    assert "symbolic link" in why(world, f"{world.home}/out/b")


def test_it_needs_no_vault(world: World):
    import shutil

    shutil.rmtree(world.vault)
    assert outcome(world, put(f"{world.home}/a.txt")) == "saved"


def test_mail_wins_over_a_directory_that_contains_it(world: World):
    """The walk of the directory leaves the mailbox out, so its rules do not count inside."""
    box = world.maildir()
    with open(world.config_path, "a") as file:
        file.write(f'\n[[directory]]\npath = "{world.mail}"\n')
    assert outcome(world, f"{world.mail}/note") == "saved"
    assert outcome(world, put(f"{box}/dovecot.index.cache")) == "left-out"
