"""The commands of docs/guides/s3.md, run as they stand against SeaweedFS with the policies of the guide: only its endpoint and paths are others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.stores.s3.guide import BUCKET, ENDPOINT, GUIDE, commands, policies
from tests.stores.s3.server import Weed, weed_server

MESSAGE = b"Subject: hello\r\n\r\nhello\r\n"


class Machine:
    """A host with a home of its own, on which commands of the guide are run."""

    def __init__(self, folder: Path, weed: Weed) -> None:
        self.folder = folder
        self.weed = weed
        (folder / "bin").mkdir(parents=True)
        (folder / ".aws").mkdir()
        program = folder / "bin/mailbackup"
        here = f"--config {folder}/mailbackup.toml --state {folder}/state"
        program.write_text(f'#!/bin/sh\nPYTHONPATH={GUIDE.parents[2]} exec {sys.executable} -m mailbackup {here} "$@"\n')
        program.chmod(0o755)

    def run(self, command: str, **variables: str) -> str:
        for theirs, ours in ((ENDPOINT, self.weed.url), ("/var/vmail", f"{self.folder}/vmail")):
            command = command.replace(theirs, ours)
        environment = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "HOME": str(self.folder),
            "AWS_EC2_METADATA_DISABLED": "true",
            **variables,
        }
        done = subprocess.run(["sh", "-c", command], cwd=self.folder, env=environment, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout.decode()}{done.stderr.decode()}"
        return done.stdout.decode()

    def has(self, key: dict[str, str]) -> None:
        """Give it an access key, as the guide says."""
        lines = ["[mailbackup]", f"aws_access_key_id = {key['AccessKeyId']}", f"aws_secret_access_key = {key['SecretAccessKey']}", ""]
        (self.folder / ".aws/credentials").write_text("\n".join(lines))


def administer(weed: Weed, folder: Path) -> dict[str, dict[str, str]]:
    """Run what the administrator does at his desk; user → access key."""
    desk, keys = Machine(folder, weed), {}
    for host, policy in policies().items():
        (folder / f"{host}.json").write_text(json.dumps(policy))
    who = {**weed.environment(), "AWS_DEFAULT_REGION": weed.region}
    for command in commands():
        if command.startswith("aws "):
            said = desk.run(command, **who)
            if "create-access-key" in command:
                key = json.loads(said)["AccessKey"]
                keys[key["UserName"]] = key
    return keys


def test_the_guide(tmp_path: Path) -> None:
    with weed_server() as weed:
        keys = administer(weed, tmp_path / "desk")
        assert sorted(keys) == ["mx1-mail", "mx1-prune", "mx1-restore"]

        server = Machine(tmp_path / "mx1", weed)
        server.has(keys["mx1-mail"])
        for part in ("cur", "new", "tmp"):
            (server.folder / "vmail/example.test/alice/Maildir" / part).mkdir(parents=True)
        (server.folder / "vmail/example.test/alice/Maildir/cur/1700000000.M1.mx1:2,S").write_bytes(MESSAGE)
        for command in commands():
            if command.startswith("mailbackup "):
                said = server.run(command)
        assert "complete" in said
        config = (server.folder / "mailbackup.toml").read_text()
        assert "[[store]]" in config
        for key in keys.values():
            assert key["AccessKeyId"] not in config
            assert key["SecretAccessKey"] not in config

        other = Machine(tmp_path / "elsewhere", weed)
        other.has(keys["mx1-restore"])
        (other.folder / "mailbackup.toml").write_text(config)
        (other.folder / "kit.txt").write_bytes((server.folder / "kit.txt").read_bytes())
        for command in commands(" restore"):
            other.run(command)
        assert [path.read_bytes() for path in (other.folder / "restored").rglob("*M1.mx1*")] == [MESSAGE]

        client = weed.client()
        assert client.get_bucket_versioning(Bucket=BUCKET)["Status"] == "Enabled"
        listed = client.list_objects_v2(Bucket=BUCKET)["Contents"]
        assert all("ObjectLockRetainUntilDate" in client.head_object(Bucket=BUCKET, Key=raw["Key"]) for raw in listed)
