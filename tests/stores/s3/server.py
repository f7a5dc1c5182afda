"""A SeaweedFS server on loopback with the identities of the guide: the S3 of the tests.

One server serves every test that asks, also those of other pytest workers: the first one starts it, the last one that leaves stops it
(`shared_server`). `weed_server` starts one for its caller alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

WEED = Path(sys.executable).with_name("weed")
_PORTS = ("master", "volume", "filer", "s3")
_START = 60  # seconds


@dataclass(frozen=True)
class Identity:
    """Somebody with credentials."""

    name: str
    key: str
    secret: str
    actions: tuple[str, ...]


# SeaweedFS knows coarse actions. "Write" covers deleting, see docs/guides/s3.md.
IDENTITIES = (
    Identity("admin", "AKIDADMIN0000000001", "admin-secret-0000000000000000000000000000", ("Admin", "Read", "Write", "List", "Tagging")),
    Identity("mailhost", "AKIDMAILHOST0000001", "mailhost-secret-00000000000000000000000000", ("Read", "Write", "List")),
    Identity("prune", "AKIDPRUNE0000000001", "prune-secret-0000000000000000000000000000", ("Read", "Write", "List")),
    Identity("restore", "AKIDRESTORE00000001", "restore-secret-00000000000000000000000000", ("Read", "List")),
)


@dataclass(frozen=True)
class Weed:
    """A running server. `url` is its S3 endpoint; `key` and `secret` are those of its administrator."""

    url: str
    key: str = IDENTITIES[0].key
    secret: str = IDENTITIES[0].secret
    region: str = "us-east-1"
    pid: int = 0
    ports: tuple[int, ...] = ()

    def client(self, identity: str = "admin") -> Any:
        """A boto3 client of one of IDENTITIES, past the store."""
        return self.client_of(next(one for one in IDENTITIES if one.name == identity))

    def client_of(self, who: Identity) -> Any:
        """The same for an identity that was made."""
        session = boto3.Session(aws_access_key_id=who.key, aws_secret_access_key=who.secret, region_name=self.region)
        config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3})
        return session.client("s3", endpoint_url=self.url, config=config)

    def environment(self, identity: str = "admin") -> dict[str, str]:
        """The variables by which boto3 finds the credentials of an identity, and nothing of this machine's."""
        who = next(one for one in IDENTITIES if one.name == identity)
        nothing = {"AWS_CONFIG_FILE": "/nonexistent", "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent", "AWS_EC2_METADATA_DISABLED": "true"}
        return {"AWS_ACCESS_KEY_ID": who.key, "AWS_SECRET_ACCESS_KEY": who.secret, **nothing}

    def bucket(self, *, versions: bool = False, lock: bool = False) -> str:
        """The name of a fresh bucket, with versions or with Object Lock (which brings versions)."""
        client, name = self.client(), f"b-{uuid.uuid4().hex[:16]}"
        client.create_bucket(Bucket=name, **({"ObjectLockEnabledForBucket": True} if lock else {}))
        if versions or lock:
            client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
        return name

    def user(self, name: str, policy: dict[str, Any]) -> Identity:
        """A new identity that may do what `policy`, written as for AWS, says. It is known to the server a moment later."""
        session = boto3.Session(aws_access_key_id=self.key, aws_secret_access_key=self.secret, region_name=self.region)
        iam = session.client("iam", endpoint_url=self.url)
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="mailbackup", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        iam.close()
        return Identity(name, key["AccessKeyId"], key["SecretAccessKey"], ())


@contextlib.contextmanager
def weed_server(folder: str | None = None) -> Iterator[Weed]:
    """A server for the caller alone. `folder` keeps its data; None = a temporary one."""
    with contextlib.ExitStack() as cleanup:
        place = Path(folder or cleanup.enter_context(tempfile.TemporaryDirectory(prefix="weed-", ignore_cleanup_errors=True)))
        weed = _start(place)
        try:
            yield weed
        finally:
            _stop(weed)


def _start(folder: Path) -> Weed:
    for _ in range(3):  # another program may take a port between our look and the start
        ports = dict(zip(_PORTS, _free_ports(len(_PORTS)), strict=True))
        process = _launch(folder, ports)
        weed = Weed(f"http://127.0.0.1:{ports['s3']}", pid=process.pid, ports=tuple(ports.values()))
        if _answers(process, weed):
            threading.Thread(target=process.wait, daemon=True).start()  # it is stopped by its id; this only buries it
            return weed
        _stop(weed)
        process.wait(30)
    raise RuntimeError(f"SeaweedFS does not start: {(folder / 'log').read_text()[-2000:]}")


def _launch(folder: Path, ports: dict[str, int]) -> subprocess.Popen[bytes]:
    argv = command(folder, str(folder), ports)
    with (folder / "log").open("wb") as log:
        environment = {**os.environ, "WEED_S3_SSE_KEK_PASSPHRASE": "for tests"}
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)


def command(folder: Path, seen: str, ports: dict[str, int]) -> list[str]:
    """What starts a server whose data lie in `folder`, which it sees as `seen`."""
    known = [
        {"name": one.name, "credentials": [{"accessKey": one.key, "secretKey": one.secret}], "actions": list(one.actions)}
        for one in IDENTITIES
    ]
    (folder / "identities.json").write_text(json.dumps({"identities": known}))
    for name in ("data", "logs"):
        (folder / name).mkdir(exist_ok=True)
    return [
        *(str(WEED), f"-logdir={seen}/logs", "server", f"-dir={seen}/data", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"),
        *(f"-{name}.port={port}" for name, port in ports.items()),
        *(f"-{name}.port.grpc={port + 10000}" for name, port in ports.items()),
        *(f"-s3.config={seen}/identities.json", "-s3.iam.readOnly=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *("-master.volumeSizeLimitMB=256", "-volume.max=0", "-volume.minFreeSpace=1", "-master.telemetry=false"),
    ]


def _free_ports(count: int) -> list[int]:
    """Ports that are free together with those 10000 above them, where SeaweedFS puts its gRPC."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            port = 20000 + int.from_bytes(os.urandom(2)) % 12000
            try:
                for one in (port, port + 10000):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", one))
            except OSError:
                continue
            found.append(port)
    return found


def _answers(process: subprocess.Popen[bytes], weed: Weed) -> bool:
    """Whether a bucket can be made before the time is over."""
    client, end = weed.client(), time.monotonic() + _START
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(f"{weed.url}/status", timeout=1).close()
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"x")  # the volumes are there as well
        except Exception:
            time.sleep(0.1)
        else:
            return True
    return False


def _stop(weed: Weed) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(weed.pid, signal.SIGKILL)  # nothing of it is kept, so nothing has to be closed
    for port in weed.ports:
        for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"), Path("/tmp").glob(f"seaweedfs-*-{port + 10000}.sock"):
            for path in left:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def shared_server() -> Iterator[Weed]:
    """A server shared by all workers of one run of pytest. Each holds a lock on a file while it needs it; who leaves last stops it."""
    folder = Path(tempfile.gettempdir()) / f"mailbackup-weed-{os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"
    with contextlib.ExitStack() as held:
        with _alone():
            folder.mkdir(mode=0o700, exist_ok=True)
            users = held.enter_context((folder / "users").open("w"))
            fcntl.flock(users, fcntl.LOCK_SH)
            weed = _known(folder) or _begin(folder)
        try:
            yield weed
        finally:
            with _alone(), contextlib.suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody else needs it
                _stop(weed)
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / "mailbackup-weed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _known(folder: Path) -> Weed | None:
    try:
        found = json.loads((folder / "server.json").read_text())
    except FileNotFoundError:
        return None
    return Weed(found["url"], pid=found["pid"], ports=tuple(found["ports"]))


def _begin(folder: Path) -> Weed:
    weed = _start(folder)
    (folder / "server.json").write_text(json.dumps({"url": weed.url, "pid": weed.pid, "ports": weed.ports}))
    return weed
