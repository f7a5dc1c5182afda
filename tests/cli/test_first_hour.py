"""The commands of the first hour as people and scripts see them: `doctor`, `systems`, `diff`; their JSON fits its schema."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.reference import schemas
from tests.cli.schema import problems
from tests.world import World


def fits(cli: Cli, *args: str, status: int = 0) -> dict[str, object]:
    """The JSON of a command, as its schema says."""
    done = cli(*args, "--json")
    assert done.status == status, done
    schema = dict(schemas()["error" if done.json["outcome"] == "error" else done.json["command"]])
    del schema["file"]
    assert problems(done.json, schema) == []
    return done.json


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path, directories=True)
    world.deliver("1.m.host:2,S", b"Subject: one\n\nx", age=100)
    world.backup()
    return world


def common(world: World) -> tuple[str, ...]:
    return ("--config", world.config_path, "--state", world.state)


def test_doctor(cli: Cli, world: World):
    answer = fits(cli, "doctor", *common(world))
    assert answer["outcome"] == "warnings"
    done = cli("doctor", *common(world))
    assert done.text.splitlines()[-1] == f"do this next: {answer['next']}"
    os.rmdir(world.home)
    assert fits(cli, "doctor", *common(world), status=4)["outcome"] == "problems"
    assert "PROBLEM  directory" in cli("doctor", *common(world)).text


def test_doctor_without_a_configuration(cli: Cli, tmp_path: Path):
    absent = fits(cli, "doctor", "--config", f"{tmp_path}/absent.toml", status=4)
    assert absent["next"] == "mailbackup init"
    (tmp_path / "bad.toml").write_text("[host\n")
    assert "config check" in str(fits(cli, "doctor", "--config", f"{tmp_path}/bad.toml", status=4)["next"])


def test_systems(cli: Cli, world: World):
    listed = fits(cli, "systems", "list", *common(world))
    assert {"host", "directories"} <= {row["name"] for row in listed["systems"]}
    assert listed["configured"] is False
    shown = fits(cli, "systems", "show", "host", *common(world))
    assert shown["inventory"]["system"] == "host"
    assert "/etc/passwd" in cli("systems", "show", "host", *common(world)).text
    assert fits(cli, "systems", "show", "exim", *common(world), status=2)["error"]["code"] == "MB-U004"


def test_explain(cli: Cli, world: World):
    message = f"{world.maildir()}/cur/1.m.host:2,S"
    assert fits(cli, "systems", "explain", message, *common(world))["outcome"] == "saved"
    assert cli("systems", "explain", message, *common(world)).text == (
        f"{message} is saved\n  [[mail]] mail  a message in INBOX of alice@example.org\n"
    )
    assert fits(cli, "systems", "explain", "/nowhere/x", *common(world))["outcome"] == "not-covered"


def test_diff(cli: Cli, world: World):
    world.deliver("2.m.host:2,", b"Subject: two\n\nx")
    world.backup()
    identity = (*common(world), "--identity", world.kit)
    assert fits(cli, "diff", "2", "3", *identity)["outcome"] == "different"
    answer = fits(cli, "diff", "2", "3", "alice@example.org", *identity)
    assert [(row["change"], row["subject"]) for row in answer["messages"]] == [("added", "two")]
    assert "+  " in cli("diff", "2", "3", "alice@example.org", *identity).text
    assert fits(cli, "diff", "3", "3", *identity)["outcome"] == "equal"
    assert fits(cli, "diff", "2", "3", *common(world), status=7)["error"]["code"] == "MB-K002"
