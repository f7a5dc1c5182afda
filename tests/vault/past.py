"""A host that remembers what its sources held at each snapshot, and what the ledger and the state say of its blocks.

Runs work in one thread, so that a run makes the same store operations in the same order each time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from typing import Any, NamedTuple

from msgspec.structs import replace as with_other

from mailbackup import access, kit
from mailbackup.audit.walk import Auditor
from mailbackup.config import Config
from mailbackup.crypto.age import AgeOpener, open_epoch
from mailbackup.crypto.signing import SigningKey, seal_line
from mailbackup.model import codec
from mailbackup.model.events import ignore
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import PackId, PublicKey, VaultId, act_key, digest, entry_key
from mailbackup.model.ledger import Act, Anchors, LedgerEntry, PackPart, from_ranges
from mailbackup.model.results import BackupResult
from mailbackup.upkeep.registry import Registry
from mailbackup.vault.chain import Trust, find_head, stops_of, walk
from mailbackup.vault.epochs import EpochOpener
from mailbackup.vault.nearest import Nearest
from mailbackup.vault.reader import VaultReader
from tests.world import ALICE, World, tree_of

BOB = "bob@example.org"

Blocks = set[tuple[str, int]]  # pack, number


class Look(NamedTuple):
    """What the sources hold: per address every file of the Maildir (content, mtime), and the tree of the directory source."""

    mail: dict[str, dict[bytes, tuple[bytes, int]]]
    home: dict[str, tuple[Any, ...]]


class Past(World):
    """A World that remembers."""

    def __init__(self, root: object, stores: int = 1) -> None:
        super().__init__(root, directories=True, stores=stores)
        self._past: dict[str, Look] = {}  # by the hash of the snapshot's entry: another history may have another entry of the same number
        self._config: Config | None = None
        self.workers = 0

    @property
    def context(self) -> access.Context:
        """As a World's, with one thread (no workers)."""
        if self._config is None:
            self._config = super().context.config
        config = with_other(self._config, backup=with_other(self._config.backup, workers=self.workers))
        return access.Context(config=config, config_path=self.config_path, state_dir=self.state, identity_file=self.kit)

    def backup(self, **options: Any) -> BackupResult:
        """A run, complete or not; what the sources held is remembered for every snapshot that it made or left pending."""
        try:
            return super().backup(**options)
        finally:
            self.remember()

    # -- a life

    def first_day(self) -> None:
        """Two mailboxes with small and large messages, a folder, state files, and a directory."""
        for number in range(4):
            self.deliver(f"{number}.small:2,S", letter(f"small {number}", b"words for %d\n" % number))
            self.deliver(f"{number}.bob:2,", letter(f"for bob {number}", b"words for bob %d\n" % number), BOB)
        self.deliver("7.large:2,S", letter("large", LARGE))
        self.deliver("7.large:2,", letter("large for bob", LARGE), BOB)
        self.deliver("8.archived:2,S", letter("archived", b"w" * 40_000), folder=".Archive")
        write(f"{self.maildir()}/dovecot-uidlist", b"3 V1 N9\n")
        write(f"{self.home}/notes", b"first")
        write(f"{self.home}/projects/plan", b"p" * 50_000)
        self.settle()

    def second_day(self) -> None:
        """New mail, another flag, a message moved, one deleted, one folder gone, files changed."""
        inbox = self.maildir()
        self.deliver("20.new", letter("new", b"n" * 45_000), place="new")
        self.deliver("21.new", letter("tiny"), BOB, place="new")
        os.rename(f"{inbox}/cur/0.small:2,S", f"{inbox}/cur/0.small:2,FS")
        os.rename(f"{inbox}/cur/1.small:2,S", f"{self.folder('.Trash')}/cur/1.small:2,ST")
        os.unlink(f"{inbox}/cur/2.small:2,S")
        shutil.rmtree(f"{inbox}/.Archive")
        write(f"{inbox}/dovecot-uidlist", b"3 V1 N11\n")
        write(f"{self.home}/notes", b"second")
        write(f"{self.home}/projects/other", b"o" * 50_000)
        os.unlink(f"{self.home}/projects/plan")

    # -- memory

    def look(self) -> Look:
        """What the sources hold now."""
        domains = sorted(os.listdir(self.mail))
        addresses = [f"{user}@{domain}" for domain in domains for user in sorted(os.listdir(f"{self.mail}/{domain}"))]
        return Look({address: files_in(self.maildir(address)) for address in addresses}, tree_of(self.home))

    def remember(self) -> None:
        """Snapshots that nobody knows yet are of now."""
        entries = [self.raw(entry_key(seq)) for seq in self.committed()]
        for name in {digest(raw) for raw in [*entries, *self.pending()]} - set(self._past):
            self._past[name] = self.look()

    def recall(self, seq: int) -> Look:
        """What the sources held at a snapshot."""
        return self._past[digest(self.raw(entry_key(seq)))]

    def correct(self, seq: int, look: Look) -> None:
        """A snapshot is not of what the sources held, but of this."""
        self._past[digest(self.raw(entry_key(seq)))] = look

    def committed(self) -> list[int]:
        """The snapshots that the ledger names."""
        return [entry["seq"] for entry in self.ledger() if entry["type"] == "snapshot"]

    def ledger(self) -> list[dict[str, Any]]:
        """The entries of the ledger, unchecked."""
        keys = sorted(key for key in self.objects() if key.startswith("ledger/"))
        return [json.loads(self.raw(key).partition(b"\n")[0]) for key in keys]

    def pending(self) -> list[bytes]:
        """The entry of the snapshot that waits in the state for being put, if there is one."""
        with contextlib.suppress(sqlite3.Error):
            rows = self.sql("SELECT data FROM pending ORDER BY position DESC LIMIT 1")
            return [data for (data,) in rows if b'"type":"snapshot"' in data]
        return []

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask (or change) the state."""
        if not os.path.exists(f"{self.state}/state.db"):
            return []
        with contextlib.closing(sqlite3.connect(f"{self.state}/state.db", isolation_level=None)) as db:
            return db.execute(statement).fetchall()

    def raw(self, key: str) -> bytes:
        """The bytes of an object."""
        with open(f"{self.vault}/{key}", "rb") as file:
            return file.read()

    def put_entry(self, signer: SigningKey, *, times: int = 1, **members: Any) -> None:
        """Add an entry, or several, to the ledger, signed by whoever."""
        vault, seq = self.anchors.vault, self.ledger()[-1]["seq"]
        prev = digest(self.raw(entry_key(seq)))
        with contextlib.closing(self.store()) as store:
            for number in range(seq + 1, seq + 1 + times):
                entry = LedgerEntry(
                    format=1, vault=vault, seq=number, prev=prev, time="2026-11-24T02:30:00Z", signer=signer.public, **members
                )  # fmt: skip
                raw = seal_line(codec.encode(entry), signer)
                store.put(entry_key(number), raw)
                prev = digest(raw)

    def damage_act(self, packs: list[str], signer: SigningKey | None = None) -> None:
        """Act 1 of the store: someone, by default the admin, says that these packs are damaged."""
        signer = signer or self.admin
        rows = tuple(PackPart(id=PackId(os.path.basename(pack)), blocks="0") for pack in packs)
        act = Act(
            format=1, vault=self.anchors.vault, chain="c" * 32, seq=1, prev=None, type="damage", time="2026-11-24T02:30:00Z", signer=signer.public,
            packs=rows,
        )  # fmt: skip
        with contextlib.closing(self.store()) as store:
            store.put(act_key(1), seal_line(codec.encode(act), signer))

    def packs(self) -> list[str]:
        """Paths of the packs in the store."""
        return [f"{self.vault}/{key}" for key in self.objects() if key.startswith("packs/")]

    def save(self, name: str, *parts: str) -> None:
        """Keep a copy of the state and the vault (or of these parts of the world) as they are."""
        for part in parts or ("state", "vault"):
            os.makedirs(f"{self.root}/{part}", exist_ok=True)
            shutil.rmtree(f"{self.root}/{name}/{part}", ignore_errors=True)
            shutil.copytree(f"{self.root}/{part}", f"{self.root}/{name}/{part}")

    def put_back(self, name: str, *parts: str) -> None:
        """Make them what they were at `save`."""
        for part in parts or ("state", "vault"):
            shutil.rmtree(f"{self.root}/{part}", ignore_errors=True)
            shutil.copytree(f"{self.root}/{name}/{part}", f"{self.root}/{part}")

    # -- what must hold

    def check(self) -> None:
        """The vault verifies, every snapshot in it restores to what its sources held, and live is what must be."""
        self.check_clean()
        for seq in self.committed():
            self.check_restores(seq)
        self.check_no_waste()

    def check_clean(self) -> None:
        """`verify --decrypt` finds nothing but packs that an interrupted run left."""
        checked = self.verify(decrypt=True)
        assert checked.outcome == "clean", checked.findings
        assert {finding.kind for finding in checked.findings} <= {FindingKind.OBJECT_UNKNOWN}, checked.findings

    def check_restores(self, seq: int) -> None:
        """A snapshot restores byte for byte to what its sources held."""
        assert self.restored(seq) == self.recall(seq)

    def restored(self, seq: int) -> Look:
        """What a snapshot restores to."""
        out = f"{self.root}/out"
        shutil.rmtree(out, ignore_errors=True)
        assert self.restore("out/mail", None, at=str(seq)).outcome == "complete"
        assert self.restore_files("out/home", at=str(seq)).outcome == "complete"
        found = sorted(os.listdir(f"{out}/mail")) if os.path.exists(f"{out}/mail") else []
        mail = {address: files_in(f"{out}/mail/{address}") for address in found}
        return Look(mail, tree_of(f"{out}/home/{self.home}"))

    def check_blocks(self) -> None:
        """The state knows exactly the blocks that the ledger holds live, and none was stopped twice."""
        registry, stopped = self.registry()
        assert self.live_in_state() == self.live_in_ledger(registry=registry)
        assert self.sql("SELECT count(*) FROM block WHERE refs < 0") == [(0,)]
        assert len(stopped) == len(set(stopped))

    def check_no_waste(self) -> None:
        """Besides, what is live is what the newest snapshot refers to, if it is a complete one."""
        self.check_blocks()
        newest = self.ledger()[-1]
        if newest.get("outcome") in ("complete", "explained"):
            assert self.live_in_ledger() == self.reached(newest["seq"])

    def live_in_state(self) -> Blocks:
        """Blocks that the state counts on."""
        return {(row[0], row[1]) for row in self.sql("SELECT pack.id, number FROM block JOIN pack ON pack.no = block.pack")}

    def registry(self) -> tuple[Registry, list[tuple[str, int]]]:
        """What the ledger says, each entry checked; and all blocks that entries stop, each as often as that happens."""
        registry, stopped = Registry(), []
        with contextlib.closing(self.store()) as store:
            for link in walk(store, self.anchors, Trust(self.anchors.admin), last=find_head(store)):
                registry.learn(store, link)
                for pack, ranges in stops_of(store, link.entry):
                    stopped += [(pack, number) for number in from_ranges(ranges, registry.packs[PackId(pack)].row.blocks)]
        assert not registry.unreadable
        return registry, stopped

    def live_in_ledger(self, seq: int | None = None, *, registry: Registry | None = None) -> Blocks:
        """Blocks that are live at an entry of the ledger, by default at its head."""
        seq = self.ledger()[-1]["seq"] if seq is None else seq
        lives = (registry or self.registry()[0]).packs.items()
        return {(pack, number) for pack, life in lives for number in range(life.row.blocks) if life.lives(number, seq)}

    def reached(self, seq: int) -> Blocks:
        """Blocks that the trees of a snapshot refer to."""
        with contextlib.closing(self.store()) as store:
            identities = kit.load_identity_file(self.kit, None).identities
            reader = VaultReader(
                Nearest.of(store), self.anchors, EpochOpener(Nearest.of(store), lambda sealed: AgeOpener([open_epoch(sealed, identities)]))
            )
            return set(Auditor(reader, self.registry()[0], ignore).run([reader.find(str(seq))]).reached)

    @property
    def anchors(self) -> Anchors:
        """The trust anchors of the configuration, without a pinned head."""
        trust = self.context.config.trust
        return Anchors(vault=VaultId(trust.vault), admin=PublicKey(trust.admin))

    @property
    def admin(self) -> SigningKey:
        """The admin's signing key, from the recovery kit."""
        loaded = kit.load_identity_file(self.kit, None).kit
        assert loaded is not None
        return SigningKey.from_hex(loaded.admin_seed)


LARGE = bytes(range(256)) * 300  # a body above 32 KiB: a block of its own, deduplicated in the whole vault


def letter(subject: str, body: bytes = b"a few words\n") -> bytes:
    """A message."""
    return b"From: someone@example.net\nSubject: %b\n\n%b" % (subject.encode(), body)


def write(path: str, content: bytes) -> None:
    """A file with this content, in place of what was there."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


def files_in(root: str) -> dict[bytes, tuple[bytes, int]]:
    """Every file below a directory: path relative to it → (content, mtime in ns)."""
    found = {}
    for path, _, names in os.walk(os.fsencode(root)):
        for name in names:
            full = os.path.join(path, name)
            with open(full, "rb") as file:
                found[os.path.relpath(full, os.fsencode(root))] = (file.read(), os.fstat(file.fileno()).st_mtime_ns)
    return found


__all__ = ["ALICE", "BOB", "LARGE", "Blocks", "Look", "Past", "files_in", "letter", "write"]
