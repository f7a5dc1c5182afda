"""A third, tiny writer of vaults, straight from FORMAT-1.md: it shares no code with the package or with rescue-1.py.

It exists so that the tests of the rescue script can write what a sane writer never would. Needs age, zstd and openssl.

    vault = TinyVault(tmp_path)
    vault.snapshot(mailboxes=[vault.mailbox("bob@example.org", {"": [Mail(b"1.M1.host", b"Subject: x\\n\\n", b"body")]})])
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

FILES = Path(__file__).resolve().parent.parent / "mailbackup" / "vault" / "files"
TIME = "2026-11-24T02:30:00Z"
OWNERS = [[0o600, 5000, "vmail-of-nowhere", 5000, None], [0o750, 5000, None, 5000, None], [0o4755, 0, "root", 0, "root"]]


class Ref(NamedTuple):
    """Where a blob lies; `record` turns it into the row of section 7."""

    pack: str
    number: int
    offset: int
    length: int
    start: int
    size: int
    blob: str


@dataclass
class Mail:
    """A message: base name, what its header and body are, and its flag (None: not in the snapshot)."""

    name: bytes
    head: bytes
    body: bytes
    flag: str | None = "c:2,S"
    mtime: tuple[int, int] = (1700000000, 123456789)
    more: dict[str, Any] = field(default_factory=dict)


def run(*command: str, data: bytes = b"") -> bytes:
    return subprocess.run(command, input=data, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zstd(data: bytes) -> bytes:
    return run("zstd", "-q", "-c", data=data)


def name(value: bytes | str) -> Any:
    """Section 2: a string where it is UTF-8, else base64."""
    raw = value.encode() if isinstance(value, str) else value
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(raw).decode()}


def dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class Signer:
    """An Ed25519 key in a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        run("openssl", "genpkey", "-algorithm", "ed25519", "-out", self.path)
        self.public = run("openssl", "pkey", "-in", self.path, "-pubout", "-outform", "DER")[-32:].hex()

    def sign(self, line: bytes) -> bytes:
        """The two lines of an entry (section 10)."""
        Path(self.path + ".line").write_bytes(line)
        sign = ("openssl", "pkeyutl", "-sign", "-rawin", "-inkey", self.path, "-in", self.path + ".line")
        return line + b"\n" + base64.b64encode(run(*sign)) + b"\n"


class TinyVault:
    """A vault in `<tmp>/vault` with its kit in `<tmp>/kit.txt`; entry 1 is written at once."""

    def __init__(self, tmp: Path, first_writer: bool = True) -> None:
        self.tmp, self.root, self.kit = tmp, tmp / "vault", tmp / "kit.txt"
        self.id = os.urandom(16).hex()
        self.admin, self.writer = Signer(tmp / "admin.pem"), Signer(tmp / "writer.pem")
        identity = run("age-keygen").decode()
        self.recovery = next(line for line in identity.splitlines() if line.startswith("AGE-"))
        self.seq, self.head = 0, ""
        self.prev: str | None = None
        self.trust: list[str] = []
        self.pending: dict[str, list[Any]] = {"packs": [], "epochs": []}
        self.registered: dict[str, list[Any]] = {"packs": [], "epochs": []}
        self.blocks: list[bytes] = []
        self.pack = os.urandom(16).hex()
        about = {"format": 1, "vault": self.id, "created": TIME, "admin": self.admin.public, "about": "a test"}
        texts = {"vault.json": dump(about), **{key: (FILES / key).read_bytes() for key in ("FORMAT-1.md", "rescue-1.py")}}
        for key, data in texts.items():
            self.put(key, data)
        self.epoch = 0
        self.new_epoch()
        grant = [{"role": "writer", "key": self.writer.public}] if first_writer else []
        self.entry("trust", grant=grant, files={key: sha256(data) for key, data in texts.items()})
        self.write_kit()

    # objects

    def put(self, key: str, data: bytes) -> Path:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def path(self, key: str) -> Path:
        return self.root / key

    def ledger(self, seq: int) -> Path:
        return self.root / f"ledger/{seq // 256:010}/{seq:010}.json"

    def write_kit(self, head: str | None = None, **anchors: str) -> None:
        """The kit; it pins the present head unless told otherwise ("" = no head)."""
        head = f"{self.seq} {self.head}" if head is None else head
        lines = {"vault": self.id, "admin-public": self.admin.public, "head": head, **anchors}
        text = "".join(f"# {key}: {value}\n" for key, value in lines.items() if value)
        self.kit.write_text(f"# recovery kit\n{text}{self.recovery}\n")
        self.kit.chmod(0o600)

    def new_epoch(self, recipients: list[str] | None = None) -> None:
        """Section 5: an identity, sealed to the recipients of the vault (an age file, without zstd)."""
        self.epoch += 1
        identity = run("age-keygen").decode()
        self.identity = next(line for line in identity.splitlines() if line.startswith("AGE-"))
        self.recipient = run("age-keygen", "-y", data=identity.encode()).decode().strip()
        to = recipients or [run("age-keygen", "-y", data=self.recovery.encode()).decode().strip()]
        key = f"keys/{self.epoch:010}-0000000001.age"
        data = run("age", *[part for one in to for part in ("-r", one)], data=identity.encode())
        self.put(key, data)
        row = {"epoch": self.epoch, "recipient": self.recipient, "key": key, "sha256": sha256(data)}
        self.pending["epochs"].append(row)

    def seal(self, data: bytes) -> bytes:
        return run("age", "-r", self.recipient, data=zstd(data))

    # blocks and packs (section 6)

    def block(self, *blobs: bytes) -> list[Ref]:
        """A block of these blobs in the present pack."""
        sealed, start, refs = self.seal(b"".join(blobs)), 0, []
        for blob in blobs:
            offset, number = sum(map(len, self.blocks)), len(self.blocks)
            refs.append(Ref(self.pack, number, offset, len(sealed), start, len(blob), sha256(blob)))
            start += len(blob)
        self.blocks.append(sealed)
        return refs

    def close_pack(self) -> str:
        """Write the present pack; the next entry registers it. Returns its object key."""
        rows = b"".join(struct.pack(">I", len(sealed)) + hashlib.sha256(sealed).digest() for sealed in self.blocks)
        footer = rows + struct.pack(">I", len(self.blocks)) + b"MBPACK1\n"
        data, key = b"".join(self.blocks) + footer, f"packs/{self.pack[:2]}/{self.pack}"
        self.put(key, data)
        row = {"id": self.pack, "size": len(data), "sha256": sha256(data), "blocks": len(self.blocks)}
        self.pending["packs"].append({**row, "footer": sha256(footer), "epoch": self.epoch})
        self.blocks, self.pack = [], os.urandom(16).hex()
        return key

    # records (sections 7 and 8)

    def rows(self, value: Any, blocks: list[list[Any]]) -> Any:
        """`value` with each Ref as a row; the blocks that they lie in are added to `blocks`."""
        if isinstance(value, Ref):
            block = [value.pack, value.number, value.offset, value.length]
            if block not in blocks:
                blocks.append(block)
            return [blocks.index(block), value.start, value.size, value.blob]
        if isinstance(value, dict):
            return {key: self.rows(one, blocks) for key, one in value.items()}
        return [self.rows(one, blocks) for one in value] if isinstance(value, list) else value

    def record(self, kind: str, **members: Any) -> Ref:
        """A JSON record as a blob in a block of its own."""
        blocks: list[list[Any]] = []
        body = self.rows(members, blocks)
        return self.block(dump({"kind": kind, "blocks": blocks, **body}))[0]

    def files(self, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The segments of a listing: one."""
        ref = self.record("files", owners=OWNERS, entries=entries)
        return [{"ref": ref, "first": entries[0]["name"] if entries else "", "count": len(entries)}]

    def file(self, path: bytes | str, content: bytes, **more: Any) -> dict[str, Any]:
        refs = self.block(content) if content else []
        return {"name": name(path), "size": len(content), "mtime": [1600000000, 1], "refs": refs, **more}

    def folder(self, where: bytes | str, mails: list[Mail], flags: list[Any] | None = None) -> dict[str, Any]:
        """A mail folder of one segment; `flags` in place of those of the mails."""
        heads = self.block(*[mail.head for mail in mails])
        bodies = self.block(*[mail.body for mail in mails])
        entries = [
            {"name": name(mail.name), "mtime": list(mail.mtime), "size": len(mail.head + mail.body), "headers": 1,
             "refs": [heads[i], bodies[i]], **mail.more}
            for i, mail in enumerate(mails)
        ]  # fmt: skip
        own = [None if mail.flag is None else name(os.fsencode(mail.flag)) for mail in mails]
        facts = self.record("facts", owners=OWNERS, entries=entries)
        listed = self.record("flags", flags=own if flags is None else flags)
        segment = {"facts": facts, "flags": listed, "first": entries[0]["name"], "count": len(entries)}
        here = [mail for mail in mails if mail.flag is not None]
        size = sum(len(mail.head + mail.body) for mail in here)
        return {"name": name(where), "messages": len(here), "bytes": size, "stale": False, "segments": [segment]}

    def mailbox(self, address: str | None, folders: dict[Any, list[Mail]], key: str | None = None, **more: Any) -> dict[str, Any]:
        """A row of the mailbox table, and the tree below it."""
        made = more.get("made") or [self.folder(where, mails) for where, mails in folders.items()]
        dirs = [b".", b"tmp"]
        for folder in (os.fsencode(where) for where in folders):
            dirs += [os.path.join(folder, side) for side in (b"", b"cur", b"new") if folder or side]
        entries = [{"name": name(one.rstrip(b"/")), "type": "d", "owner": 1, "mtime": [1650000000, 5]} for one in dirs]
        entries += more.get("files", [])
        key = key or f"vmail/{address}"
        tree = self.record("mailbox", key=key, location="vmail", address=address, path="/var/vmail/x",
                           files=self.files(entries), folders=made)  # fmt: skip
        total = {member: sum(folder[member] for folder in made) for member in ("messages", "bytes")}
        return {"key": key, "location": "vmail", "address": address, **total, "tree": tree, "stale": False}

    # snapshots and the ledger (sections 9 and 10)

    def snapshot(self, mailboxes: Sequence[dict[str, Any]] = (), directories: dict[str, list[dict[str, Any]]] | None = None,
                 outcome: str = "complete", close: bool = True) -> int:  # fmt: skip
        """Seal and commit a snapshot; returns its seq. The kit is written anew, with the new head."""
        listed = [
            {"path": name(path), "segments": self.files(entries), "files": len(entries), "bytes": 0, "stale": False}
            for path, entries in (directories or {}).items()
        ]
        table = self.record("mailboxes", mailboxes=sorted(mailboxes, key=lambda row: row["key"]))
        blocks: list[list[Any]] = []
        root = self.rows({"directories": listed, "mailboxes": [{"ref": table, "first": "", "count": len(mailboxes)}]}, blocks)
        if close:
            self.close_pack()
        messages, files = sum(row["messages"] for row in mailboxes), sum(row["files"] for row in listed)
        body = {"format": 1, "vault": self.id, "seq": self.seq + 1, "time": TIME, "host": "mx1", "tool": "tiny", "outcome": outcome,
                "root": {"blocks": blocks, **root}, "findings": [], "facts": {},
                "sources": [{"name": "vmail", "kind": "mail", "mailboxes": len(mailboxes), "messages": messages, "bytes": 0},
                            {"name": "files", "kind": "directory", "mailboxes": 0, "messages": files, "bytes": 0}]}  # fmt: skip
        sealed = self.seal(dump(body))
        key = f"snapshots/{self.seq + 1:010}-{sha256(sealed)[:16]}.age"
        self.put(key, sealed)
        told = {"key": key, "sha256": sha256(sealed), "size": len(sealed), "epoch": self.epoch}
        self.entry("snapshot", snapshot=told, outcome=outcome)
        self.write_kit()
        return self.seq

    def entry(self, kind: str, signer: Signer | None = None, **members: Any) -> None:
        """Sign and write the next entry, with all packs and epochs that are not registered yet."""
        signer = signer or (self.admin if kind == "trust" else self.writer)
        self.seq += 1
        new = {member: rows for member, rows in self.pending.items() if rows}
        for member, rows in new.items():
            self.registered[member] += rows
        self.pending = {"packs": [], "epochs": []}
        entry: dict[str, Any] = {"format": 1, "vault": self.id, "seq": self.seq, "prev": self.prev, "type": kind, "time": TIME,
                 "signer": signer.public, **new}  # fmt: skip
        if self.seq % 256 == 0:
            entry |= {"trust": list(self.trust), "lists": {"live": self.live_list()}}
        data = signer.sign(dump({**entry, **members}))
        self.put(f"ledger/{self.seq // 256:010}/{self.seq:010}.json", data)
        self.prev = self.head = sha256(data)
        if kind == "trust":
            self.trust.append(data.decode())

    def live_list(self) -> dict[str, Any]:
        packs = [{**pack, "live": f"0-{pack['blocks'] - 1}"} for pack in self.registered["packs"]]
        body = {"vault": self.id, "seq": self.seq, "kind": "live", "packs": packs, "epochs": self.registered["epochs"]}
        data = zstd(dump(body))
        key = f"lists/{self.seq:010}-{sha256(data)[:16]}.zst"
        self.put(key, data)
        return {"key": key, "sha256": sha256(data), "size": len(data)}

    def rewrite(self, number: int, key: Signer, /, **changes: Any) -> None:
        """Forge an entry: change members and sign it with some key."""
        entry = json.loads(self.ledger(number).read_bytes().split(b"\n")[0])
        self.ledger(number).write_bytes(key.sign(dump({**entry, **changes})))

    def copy(self, to: Path) -> Path:
        return Path(shutil.copytree(self.root, to))
