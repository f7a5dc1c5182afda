"""`doctor`: each thing that can be wrong is found, named, and leads to a next step; nothing is changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import dns.exception
import dns.resolver
import pytest

from mailbackup import access
from mailbackup.host import stamp, utc_now
from mailbackup.model.ids import ObjectKey
from mailbackup.model.job import Proof, Seen
from mailbackup.model.options import StoreConfig
from mailbackup.model.results import Check, DoctorResult
from mailbackup.model.system import Inventory
from mailbackup.server import doctor as doctors
from mailbackup.server import published
from mailbackup.server.doctor import doctor
from mailbackup.stores.base import Store
from mailbackup.stores.probe import StoreProbe
from mailbackup.systems.ask import Ask
from mailbackup.testing.mounts import tmpfs
from mailbackup.testing.wrapper import Wrapper
from mailbackup.upkeep.status import remember
from tests.world import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("HOME", str(tmp_path / "home-of-nobody"))
    world = World(tmp_path, directories=True)
    shutil.move(world.kit, tmp_path.parent / "kit-elsewhere")
    world.deliver("1.m.host:2,S", b"Subject: x\n\nx")
    return world


def checks(world: World, level: str, name: str = "") -> list[Check]:
    found = doctor(world.context).checks
    return [row for row in found if row.level == level and row.name.startswith(name)]


def test_a_host_that_has_not_begun(world: World):
    result = doctor(world.context)
    assert result.outcome == "warnings"
    told = {row.name for row in result.checks if row.level == "warning"}
    assert {"last snapshot", "kit", "store local"} <= told
    assert all(row.next for row in result.checks if row.level != "ok")
    assert result.next


def test_nothing_is_changed(world: World):
    def everything() -> dict[str, int]:
        passing = (world.state, f"{world.vault}/.tmp")  # where SQLite leaves its helpers when somebody reads; where the store is tried
        walk = (row for row in os.walk(world.root) if row[0] not in passing)
        paths = [os.path.join(place, name) for place, _, names in walk for name in (*names, ".")]
        return {path: os.stat(path).st_mtime_ns for path in paths}

    world.backup()
    before = everything()
    doctor(world.context)
    assert everything() == before
    assert os.listdir(f"{world.vault}/.tmp") == []


def test_after_a_backup_and_a_drill(world: World):
    made = world.backup()
    assert [row.name for row in checks(world, "ok", "last snapshot")] == ["last snapshot"]
    now = stamp(utc_now())
    remember(world.state, lambda _: {"drill": Proof(by="drill", snapshot=Seen(seq=made.seq, time=now), time=now)})
    assert checks(world, "warning", "kit") == []


def test_an_old_snapshot(world: World):
    world.backup()
    remember(world.state, lambda known: {"good": Seen(seq=known.good.seq, time="2026-01-01T00:00:00Z")})
    [check] = checks(world, "warning", "last snapshot")
    assert "hours old" in check.text


def test_a_clock_that_went_back(world: World):
    remember(
        world.state if os.makedirs(world.state, exist_ok=True) is None else "",
        lambda _: {"newest": Seen(seq=2, time="2126-01-01T00:00:00Z")},
    )
    assert checks(world, "problem", "clock")


def test_a_signing_key_that_does_not_fit(world: World):
    path = world.config_path.replace(".toml", ".key")
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write(("0" if text[0] != "0" else "1") + text[1:])
    assert checks(world, "problem", "signing key")
    os.remove(path)
    [check] = checks(world, "problem", "signing key")
    assert "cannot read" in check.text


def test_a_store_that_is_away_or_of_another(world: World, tmp_path: Path):
    os.rename(world.vault, tmp_path / "away")
    assert checks(world, "problem", "store")
    other = World(tmp_path / "other")
    os.rename(other.vault, world.vault)
    [check] = checks(world, "problem", "store")
    assert "vault" in check.text


def test_a_store_that_is_full(world: World):
    with open(world.config_path) as file:
        text = file.read().replace("# reserve = 5368709120", f"reserve = {1 << 60}")
    with open(world.config_path, "w") as file:
        file.write(text)
    [check] = checks(world, "problem", "store")
    assert "are never used" in check.text


def test_what_a_store_promises_is_tried(world: World):
    told = [row.text for row in checks(world, "ok", "store local")]
    for name in ("create-only", "ranges", "listing", "absent objects", "clock", "versions", "object lock", "packs"):
        assert len([text for text in told if text.startswith(f"{name}: ")]) == 1


class Careless(Wrapper):
    """A store that ignores the condition of a put."""

    def put(self, key: ObjectKey, data: bytes) -> None:
        pass


class Sharing(Wrapper):
    """A store that admits that it cannot refuse to replace."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.traits = replace(inner.traits, create_only=False)


@pytest.mark.parametrize(
    ("kind", "level", "advice"), [(Careless, "problem", "create_only = false"), (Sharing, "warning", "only this host")]
)
def test_a_store_that_replaces(world: World, monkeypatch: pytest.MonkeyPatch, kind: type[Wrapper], level: str, advice: str):
    real = access.open_store
    monkeypatch.setattr(access, "open_store", lambda *args, **options: kind(real(*args, **options)))
    [check] = [row for row in checks(world, level, "store local") if row.text.startswith("create-only: ")]
    assert advice in check.next


def add_store(world: World, name: str, url: str) -> None:
    with open(world.config_path, "a") as file:
        file.write(f'\n[[store]]\nname = "{name}"\nurl = "{url}"\n')


def test_several_stores_are_tried_each_and_one_that_is_away_hides_no_other(world: World, tmp_path: Path):
    shutil.copytree(world.vault, tmp_path / "second")
    add_store(world, "second", f"file://{tmp_path}/second")
    (tmp_path / "unmounted").mkdir()
    add_store(world, "unmounted", f"file://{tmp_path}/unmounted")
    shutil.copytree(world.vault, tmp_path / "third")
    add_store(world, "third", f"file://{tmp_path}/third")
    [away] = checks(world, "problem", "store")
    assert (away.name, "Is the disk mounted?" in away.next) == ("store unmounted", True)
    for name in ("second", "third"):
        texts = [row.text for row in checks(world, "ok", f"store {name}")]
        assert any(text.startswith("packs: ") for text in texts)
        assert any("free above the reserve" in text for text in texts)


@pytest.mark.root
def test_a_second_store_on_another_disk_is_what_saves_both(world: World, tmp_path: Path):
    assert [row for row in checks(world, "warning", "store") if "same file system" in row.text]
    with tmpfs(f"{tmp_path}/disk", 1 << 20) as disk:
        add_store(world, "second", f"file://{disk}/second")
        assert [row for row in checks(world, "warning", "store") if "same file system" in row.text] == []


def test_a_bucket_without_versions_is_a_warning():
    found = StoreProbe("versions", "unknown", "not kept: whoever can write may overwrite")
    rows = [doctors._probed(StoreConfig(name="x", url=url), found) for url in ("s3://bucket", "file:///x")]
    assert [(row.level, bool(row.next)) for row in rows] == [("warning", True), ("ok", False)]


def test_a_pattern_that_finds_nothing(world: World):
    shutil.rmtree(f"{world.mail}/example.org")
    assert checks(world, "problem", "mail")
    shutil.rmtree(world.mail)
    [check] = checks(world, "problem", "mail")
    assert "is not there" in check.text


def test_a_directory_that_is_away(world: World):
    os.rmdir(world.home)
    assert checks(world, "problem", "directory")


def test_an_identity_beside_the_configuration(world: World, tmp_path: Path):
    assert checks(world, "warning", "identity") == []
    shutil.copy(tmp_path.parent / "kit-elsewhere", f"{tmp_path}/innocent.txt")
    [check] = checks(world, "warning", "identity")
    assert f"{tmp_path}/innocent.txt" in check.text
    assert "AGE-SECRET" not in json.dumps(check.text + check.next)
    (tmp_path / "innocent.txt").write_text("-----BEGIN AGE ENCRYPTED FILE-----\nx\n")
    assert checks(world, "warning", "identity") == []
    (tmp_path / "innocent.txt").rename(tmp_path / "my-kit")
    [check] = checks(world, "warning", "identity")
    assert "so is this copy" in check.text


def test_problems_come_first(world: World):
    os.rmdir(world.home)
    result = doctor(world.context)
    assert (result.outcome, result.next) == ("problems", "Correct the path in the configuration, or mount it.")


def test_the_worst_is_done_first():
    ok, warning = Check(name="a", level="ok", text=""), Check(name="b", level="warning", text="", next="later")
    problem = Check(name="c", level="problem", text="", next="now")
    results: list[DoctorResult] = [doctors.result(rows, None) for rows in ([ok], [ok, warning], [warning, problem])]
    assert [(row.outcome, row.next) for row in results] == [("ready", "mailbackup backup"), ("warnings", "later"), ("problems", "now")]


# -- the DNS


class Answer:
    """A TXT record in the pieces in which the DNS has it."""

    def __init__(self, *strings: bytes) -> None:
        self.strings = strings


@pytest.fixture
def key(tmp_path: Path) -> tuple[Inventory, str]:
    path = str(tmp_path / "s.private")
    subprocess.run(["openssl", "genrsa", "-out", path, "2048"], check=True, capture_output=True)
    der = subprocess.run(["openssl", "rsa", "-in", path, "-pubout"], check=True, capture_output=True, text=True).stdout
    public = "".join(line for line in der.splitlines() if not line.startswith("-"))
    return Inventory(system="opendkim", facts={"keys": (f"s example.org {path}", f"t example.org {path}")}), public


def asked(monkeypatch: pytest.MonkeyPatch, inventory: Inventory, answer: object) -> list[tuple[str, str]]:
    def resolve(self: object, name: str, kind: str, lifetime: float) -> list[Answer]:
        assert kind == "TXT"
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Answer)
        return [Answer(b"unrelated"), answer]

    monkeypatch.setattr(dns.resolver.Resolver, "resolve", resolve)
    monkeypatch.setattr(published, "_resolver", lambda: dns.resolver.Resolver(configure=False))
    return [(check.level, check.text) for check in published.published(Ask(), inventory)]


def test_what_is_published(key: tuple[Inventory, str], monkeypatch: pytest.MonkeyPatch):
    inventory, public = key
    good = Answer(b"v=DKIM1; k=rsa; p=" + public[:100].encode(), public[100:].encode())
    assert [level for level, _ in asked(monkeypatch, inventory, good)] == ["ok", "ok"]
    other = Answer(b"v=DKIM1; k=rsa; p=" + public[::-1].encode())
    for answer, words in ((other, "another key"), (dns.resolver.NXDOMAIN(), "not published"), (Answer(b"v=DKIM1; p="), "not published")):
        told = asked(monkeypatch, inventory, answer)
        assert [(level, words in text) for level, text in told] == [("warning", True)] * 2


def test_without_a_network_one_question_is_enough(key: tuple[Inventory, str], monkeypatch: pytest.MonkeyPatch):
    [(level, text)] = asked(monkeypatch, key[0], dns.exception.Timeout())
    assert level == "warning"
    assert "did not answer" in text
