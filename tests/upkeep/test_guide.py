"""The commands of docs/guides/prune-from-another-machine.md, run as they stand against SeaweedFS with the policies of the guides, in a bucket with Object Lock.

The service has its own clock, which no test can move: that a week passes is shown with directories (test_prune.py). Here everything is done that the guide does
on one day; and the engine runs with a grace period of nothing, to see what becomes of objects then, locked and not.
"""

from __future__ import annotations

import json
import os
import re
import textwrap
import tomllib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mailbackup.access import Context, open_place
from mailbackup.config import load
from mailbackup.errors import PruneRefused, StoreRefused
from mailbackup.kit import load_signing_key
from mailbackup.model.events import ignore, never
from mailbackup.model.retention import Policy
from mailbackup.upkeep.planning import Rules
from mailbackup.upkeep.prune import Pruned, prune
from tests.reference.server import REPOSITORY
from tests.stores.s3.guide import BUCKET
from tests.stores.s3.guide import commands as s3_commands
from tests.stores.s3.server import Identity, Weed, weed_server
from tests.stores.s3.test_guide import Machine, administer

GUIDE = REPOSITORY / "docs/guides/prune-from-another-machine.md"
SHARED = ("host", "recipient", "trust", "store")  # sections that the keeper has from the mail server


def blocks(kind: str, number: int | None = None) -> list[str]:
    """The blocks of a kind, without their indentation."""
    found = [textwrap.dedent(text) for text in re.findall(rf"^ *```{kind}\n(.*?)^ *```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)]
    assert found if number is None else len(found) == number, f"{kind}: {len(found)}"
    return found


def commands(mark: str) -> list[str]:
    """The lines of the one `sh` block with this mark."""
    return blocks(f"sh {mark}", 1)[0].splitlines()


class Host(Machine):
    """A machine of the guide, whose /etc/mailbackup lies in its folder."""

    @property
    def config(self) -> Path:
        return self.folder / "mailbackup.toml"

    def run(self, command: str, **variables: str) -> str:
        return super().run(command.replace("/etc/mailbackup", f"{self.folder}/etc/mailbackup"), **variables)

    def follow(self, mark: str, **variables: str) -> list[str]:
        """Run a block of the guide; what each of its commands said."""
        return [self.run(command, **variables) for command in commands(mark)]

    def json(self, command: str) -> Any:
        return json.loads(self.run(f"mailbackup --json {command}"))


@dataclass
class Place:
    """The three machines, when the guide's third step is done. `seqs` = the snapshots, the oldest first."""

    weed: Weed
    server: Host
    keeper: Host
    desk: Host
    keys: dict[str, dict[str, str]]
    seqs: list[int]

    def who(self, user: str) -> Identity:
        return Identity(user, self.keys[user]["AccessKeyId"], self.keys[user]["SecretAccessKey"], ())

    def versions(self) -> set[tuple[str, str]]:
        """Key and version of everything in the bucket, markers too."""
        found = self.weed.client().list_object_versions(Bucket=BUCKET)
        assert not found["IsTruncated"]
        return {(row["Key"], row["VersionId"]) for part in ("Versions", "DeleteMarkers") for row in found.get(part, ())}

    def night(self) -> None:
        """A large message comes and the one before goes; a snapshot."""
        box = self.server.folder / "vmail/example.test/alice/Maildir/cur"
        for old in box.glob("*.night.mx1:2,"):
            old.unlink()
        number = len(self.seqs)
        (box / f"{1_700_000_000 + number}.night.mx1:2,").write_bytes(b"Subject: %d\n\n" % number + os.urandom(60_000).hex().encode())
        self.seqs.append(self.server.json("backup --accept-shrink")["seq"])

    def prune_now(self, host: Host, monkeypatch: pytest.MonkeyPatch) -> Pruned:
        """The engine with a machine's credentials and the keeper's signing key, when everything's grace period is over."""
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(host.folder / ".aws/credentials"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        config, _ = load(str(host.config))
        context = Context(config=config, config_path=str(host.config), state_dir=str(host.folder / "state"))
        rules = Rules(policy=Policy(last=1), grace=timedelta(0), max_share=9)
        signer = load_signing_key(str(self.keeper.folder / "etc/mailbackup/prune.key"))
        with closing(open_place(context, config.stores[0])) as store:
            return prune(store, context.anchors_of(store.name), signer, rules, stop=never, on_event=ignore)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """What s3.md did, some nights, and steps 1 to 3 of this guide."""
    with weed_server() as weed:
        keys = administer(weed, tmp_path / "admin")
        server, keeper, desk = (Host(tmp_path / name, weed) for name in ("mx1", "keeper", "desk"))
        _desk_user(tmp_path / "admin", weed, keys)
        for host, user in ((server, "mx1-mail"), (keeper, "mx1-prune"), (desk, "mx1-desk")):
            host.has(keys[user])
        made = Place(weed, server, keeper, desk, keys, [])
        _mail_server(made)
        _keeper(made)
        yield made


def _desk_user(folder: Path, weed: Weed, keys: dict[str, dict[str, str]]) -> None:
    (folder / "desk.json").write_text(blocks("json", 1)[0])
    admin = Host.__new__(Host)  # the folder is there already
    admin.folder, admin.weed = folder, weed
    key = json.loads(admin.follow("admin", **weed.environment(), AWS_DEFAULT_REGION=weed.region)[-1])["AccessKey"]
    keys[key["UserName"]] = key


def _mail_server(place: Place) -> None:
    for part in ("cur", "new", "tmp"):
        (place.server.folder / "vmail/example.test/alice/Maildir" / part).mkdir(parents=True)
    (place.server.folder / "vmail/example.test/alice/Maildir/cur/1700000000.M1.mx1:2,S").write_bytes(
        b"Subject: stays\n\n" + os.urandom(300_000)
    )
    for command in s3_commands():
        if command.startswith("mailbackup init"):
            place.server.run(command)
    for _ in range(6):
        place.night()


def _keeper(place: Place) -> None:
    """The signing key, a configuration, and the admin's word."""
    said = place.keeper.follow("keeper")[-1]
    public = re.findall(r"\b[0-9a-f]{64}\b", said)[0]
    sections = _sections(place.server.config.read_text())
    shared = "".join(text for name, text in sections if name in SHARED)
    assert [name for name, _ in _sections(shared)] == [*SHARED]
    place.keeper.config.write_text(shared + blocks("toml", 1)[0].replace("/etc/", f"{place.keeper.folder}/etc/"))
    place.desk.config.write_text(place.keeper.config.read_text())
    (place.desk.folder / "kit.txt").write_bytes((place.server.folder / "kit.txt").read_bytes())
    told = place.desk.follow("desk", KEY=public)
    assert f"prune   {public}" in told[-1]


def _sections(config: str) -> list[tuple[str, str]]:
    """Name and text of each section."""
    parts = re.split(r"^(?=\[)", config, flags=re.MULTILINE)[1:]
    return [(part[: part.index("]")].strip("["), part) for part in parts]


def test_the_guide(place: Place) -> None:
    keeper, (first, second, third, *_) = place.keeper, place.seqs
    before = place.versions()
    look = keeper.follow("keeper-look")[-1]
    assert re.search(rf" {first} .* drop ", look)
    assert re.search(rf" {place.seqs[-1]} .* keep ", look)
    assert place.versions() == before, "looking changes nothing"

    keeper.run(commands("keeper-pin")[0].replace("214", str(second)))
    said, listed = keeper.follow("keeper-prune")
    assert "2 dropped, 0 deleted for good" in said
    assert "keeps 4 snapshots" in said
    assert {first, third} == _dropped(keeper)
    assert f"{first}" in listed
    for command in commands("keeper-undelete"):
        keeper.run(command.replace("187", str(first)))
    assert _dropped(keeper) == {third}
    assert before <= place.versions(), "nothing was deleted"

    assert "records the audit" in place.desk.follow("desk-audit")[-1]
    for line in blocks("cron", 1)[0].splitlines():
        match = re.fullmatch(r"\d+ \d+ \* \* \* root (mailbackup .+)", line)
        assert match, line
        said = keeper.run(match[1])
    assert _dropped(keeper) == {first, third}, "it was let go of, so the next night drops it again"
    for command in commands("keeper-ack"):
        assert "acknowledged" in keeper.run(command)
    assert before <= place.versions()
    restored = place.desk.run(f"mailbackup --identity kit.txt restore mailbox alice@example.test --at {second} --to restored")
    assert "restored 2 messages" in restored


def _dropped(host: Host) -> set[int]:
    return {row["seq"] for row in host.json("snapshots")["snapshots"] if row.get("dropped")}


def test_the_mail_server_s_credentials_delete_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    before, client = place.versions(), place.weed.client_of(place.who("mx1-mail"))
    for key, version in sorted(before):
        with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
            client.delete_object(Bucket=BUCKET, Key=key, VersionId=version)
        with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
            client.delete_object(Bucket=BUCKET, Key=key)
    assert place.versions() == before
    place.desk.follow("desk-audit")
    place.prune_now(place.server, monkeypatch)  # even with the keeper's signing key he only drops …
    with pytest.raises(StoreRefused, match="AccessDenied"):
        place.prune_now(place.server, monkeypatch)
    assert before <= place.versions(), "… and what he signs to be gone stays"


def test_locked_objects_stay_and_are_counted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the keeper's credentials, when the grace period is over: what the mail server put without a lock goes, what it locked stays."""
    locked = place.seqs[:]
    for host in (place.server, place.desk):  # the desk's audit would find fault with objects that should be locked
        text = host.config.read_text()
        assert "lock_days = 7" in text
        host.config.write_text(text.replace("lock_days = 7", "lock_days = 0"))
    for _ in range(3):
        place.night()
    place.prune_now(place.keeper, monkeypatch)
    with pytest.raises(PruneRefused, match="no keyed audit yet"):
        place.prune_now(place.keeper, monkeypatch)
    place.desk.follow("desk-audit")
    before = place.versions()
    done = place.prune_now(place.keeper, monkeypatch)
    assert done.plan.gone == place.seqs[:-1]
    assert done.locked >= len(locked)
    assert done.deleted >= 2
    gone = {key for key, _ in before - place.versions()}
    assert {f"snapshots/{seq:010d}" for seq in place.seqs[len(locked) : -1]} == {key[4:24] for key in gone if "/snapshots/" in key}
    assert any("/packs/" in key for key in gone)
    again = place.prune_now(place.keeper, monkeypatch)
    assert (again.deleted, again.locked) == (0, done.locked), "it tries again, and does not take a lock for damage"
    assert "clean" in place.desk.follow("desk-audit")[-1]
    restored = place.desk.run("mailbackup --identity kit.txt restore mailbox alice@example.test --to restored")
    assert "restored 2 messages" in restored


def test_the_configuration_says_what_the_guide_says() -> None:
    retention = tomllib.loads(blocks("toml", 1)[0])["retention"]
    assert retention["key_file"] == "/etc/mailbackup/prune.key"
    text = GUIDE.read_text()
    from mailbackup.model.options import RetentionConfig  # the numbers in the text are the defaults

    for name in ("grace_days", "max_share", "audit_days", "silence_days"):
        assert f"`{name}` ({RetentionConfig.__struct_defaults__[RetentionConfig.__struct_fields__.index(name)]})" in text


@pytest.mark.parametrize("document", ["guides/prune-from-another-machine.md", "threat-model.md"])
def test_every_test_that_the_document_names_is_there(document: str) -> None:
    file, found = "", 0
    for name in re.findall(r"`([\w/]*(?:::test_\w+|test_\w+\.py(?:::\w+)?))`", (REPOSITORY / "docs" / document).read_text()):
        named, _, test = name.partition("::")
        file = named or file
        assert not test or f"\ndef {test}(" in (REPOSITORY / "tests" / file).read_text(), f"{document} names {file}::{test}"
        found += bool(test)
    assert found > 10
