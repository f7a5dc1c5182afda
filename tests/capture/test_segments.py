"""Listings cut into segments, and the trees of mailboxes after random histories: they say what lies on disk, and unchanged ones are not written again."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from mailbackup.audit.walk import Auditor
from mailbackup.capture import folder as capture_folder
from mailbackup.capture.engine import Run, Sources
from mailbackup.crypto.signing import SigningKey
from mailbackup.model.events import ignore
from mailbackup.model.ids import PackId, VaultId, blob_id, from_name, new_vault_id, to_name
from mailbackup.model.ledger import Anchors
from mailbackup.model.options import MailConfig
from mailbackup.model.tree import BlobRef, Folder, MailboxTree, Owner
from mailbackup.stores.memory import MemoryStore
from mailbackup.upkeep.scrub import scrub
from mailbackup.vault import trees
from mailbackup.vault.create import new_vault, put_vault
from mailbackup.vault.epochs import EpochOpener
from mailbackup.vault.nearest import Nearest
from mailbackup.vault.reader import VaultReader
from mailbackup.vault.rebuild import rebuild
from mailbackup.vault.replay import start
from mailbackup.vault.replicas import Replicas
from mailbackup.vault.state import State
from mailbackup.vault.trees import Item, cut, decode_flags, decode_segment, encode_flags, encode_segment
from mailbackup.vault.writer import VaultWriter, WriterKeys, ensure_epoch
from tests.capture.look import listed, on_disk, wrong_counts

CAMPAIGN = bool(os.environ.get("MAILBACKUP_CAMPAIGN"))
OWNER = Owner(0o600, 5000, "vmail", 5000, None)


def item(name: bytes, **more: Any) -> Item:
    return Item(name, "f", OWNER, (1700000000, 5), 10, [], **more)


def items(count: int, seed: int = 1) -> list[Item]:
    names = random.Random(seed)
    return sorted((item(b"%d.M%dP7.mx1" % (names.randrange(10**9, 2 * 10**9), n)) for n in range(count)), key=Item.sort_key)


# ---------------------------------------------------------------- cut


@given(st.integers(0, 6000), st.integers(0, 10))
@settings(max_examples=30, deadline=None)
def test_runs_are_the_whole_listing_in_order_and_of_the_right_length(count: int, seed: int) -> None:
    whole = items(count, seed)
    runs = cut(whole)
    assert [one for run in runs for one in run] == whole
    assert all(128 <= len(run) <= 2048 for run in runs[:-1])
    assert all(0 < len(run) <= 2048 for run in runs)


def test_where_no_name_says_so_a_run_ends_at_2048() -> None:
    whole = [one for one in items(6_000) if zlib.crc32(one.name) % 384]
    assert [len(run) for run in cut(whole)] == [2048, 2048, len(whole) - 4096]


def test_runs_have_about_512_entries() -> None:
    assert 350 < 60_000 / len(cut(items(60_000))) < 700


def test_a_change_moves_no_cut_but_its_own() -> None:
    """One more or one less entry: on average little more than one segment differs."""
    whole, chance = items(12_000), random.Random(2)
    known = {tuple(one.name for one in run) for run in cut(whole)}
    different = 0
    for _ in range(50):
        at = chance.randrange(len(whole))
        changed = whole[:at] + whole[at + 1 :] if chance.random() < 0.5 else [*whole[:at], item(whole[at].name + b".2"), *whole[at:]]
        different += sum(tuple(one.name for one in run) not in known for run in cut(changed))
    assert different / 50 < 2


def test_heavy_entries_end_a_run_early() -> None:
    """A segment is a record of at most 16 MiB, whatever hangs on its entries."""
    heavy = items(300)
    for one in heavy:
        one.xattrs = {"user.note": "x" * 60_000}
    runs = cut(heavy)
    assert max(len(encode_segment("files", run)) for run in runs) < 5 << 20
    assert sum(map(len, runs)) == 300


# ---------------------------------------------------------------- encode and decode

NAMES = st.binary(min_size=1, max_size=40).filter(lambda raw: b"\0" not in raw and b"/" not in raw)
REFS = st.builds(
    lambda pack, number, start, size, data: BlobRef(PackId(f"{pack:032x}"), number, number * 100, 99, start, size, blob_id(data)),
    st.integers(0, 3), st.integers(0, 3), st.integers(0, 2**20), st.integers(0, 2**20), st.binary(max_size=3),
)  # fmt: skip
OWNERS = st.builds(
    Owner, st.integers(0, 0o7777), st.integers(0, 2**32 - 1), st.none() | st.text(), st.integers(0, 2**32 - 1), st.none() | st.text()
)


@st.composite
def any_item(draw: Callable[[Any], Any]) -> Item:
    made = Item(
        draw(NAMES), draw(st.sampled_from("fdlpcbm")), draw(OWNERS), (draw(st.integers(-(2**40), 2**40)), draw(st.integers(0, 10**9 - 1))),
        draw(st.integers(0, 2**50)), draw(st.lists(REFS, max_size=4)), headers=draw(st.integers(0, 4)),
    )  # fmt: skip
    made.head = draw(st.none() | REFS)
    made.target, made.hard = draw(st.none() | NAMES), draw(st.none() | NAMES)
    made.device = draw(st.none() | st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)))
    made.xattrs = draw(st.none() | st.dictionaries(st.text(min_size=1, max_size=9), st.text("abcd=", max_size=9), min_size=1, max_size=2))
    return made


def everything(one: Item) -> tuple[Any, ...]:
    return (
        one.name, one.type, one.owner, one.mtime, one.size, list(one.places), one.headers, one.head, one.target, one.hard, one.device, one.xattrs
    )  # fmt: skip


@given(st.lists(any_item(), max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_segment_says_what_its_items_said(made: list[Item]) -> None:
    segment = decode_segment(encode_segment("files", made), "test", "files")
    assert [everything(Item.of(segment, entry)) for entry in segment.entries] == [everything(one) for one in made]


@given(st.lists(st.none() | st.tuples(st.sampled_from([b"c", b"n"]), st.just(b"") | NAMES.map(lambda raw: b":" + raw)), max_size=20))
def test_flags_say_what_they_said(made: list[tuple[bytes, bytes] | None]) -> None:
    flags = [None if one is None else to_name(one[0] + one[1]) for one in made]
    found = decode_flags(encode_flags(flags), len(flags), "test")
    assert [None if name is None else from_name(name) for name in found] == [None if one is None else b"".join(one) for one in made]


# ---------------------------------------------------------------- random histories


class Plain:
    """Seals nothing: what is tested here is what is written, not that it is secret."""

    recipient = "plain"
    sealed = b"an epoch without a secret"

    def seal(self, data: bytes) -> bytes:
        return data

    def open(self, sealed: bytes) -> bytes:
        return sealed

    def new_epoch(self, comment: str) -> Plain:
        return self

    def close(self) -> None:
        pass


class Host:
    """A real Maildir, a vault in memory, and a state that does not wait for the disk: a night takes milliseconds."""

    def __init__(self, root: str) -> None:
        self.maildir = f"{root}/mail/alice/Maildir"
        self.store = MemoryStore()
        admin, signer, vault = SigningKey.generate(), SigningKey.generate(), VaultId(new_vault_id())
        made = new_vault(vault, "2026-11-24T02:30:00Z", admin, signer.public)
        put_vault(self.store, made)
        self.anchors = Anchors(vault=vault, admin=admin.public)
        self.keys = WriterKeys(signer, self.anchors, ("plain",), Plain())
        self.state = State(f"{root}/state.db", vault)
        self.state.execute("PRAGMA synchronous = OFF")
        self.mail = MailConfig(name="mail", path=f"{root}/mail/{{user}}/Maildir")

    def backup(self, **options: bool) -> tuple[Run, int]:
        """A run, and how many bytes it stored."""
        start(Replicas.of(self.store), self.state, self.anchors, self.keys.signer.public)
        epoch = ensure_epoch(Replicas.of(self.store), self.state, self.keys)
        with contextlib.closing(VaultWriter(Replicas.of(self.store), self.state, self.keys, Plain(), epoch, threads=0)) as writer:
            run = Run(Sources(host="mx1", tool="test", mail=(self.mail,), directories=(), **options), self.state, writer, [])
            run.run()
            return run, writer.bytes_stored

    def rebuild(self, reader: VaultReader) -> None:
        """A state made from the vault, in place of the one there was."""
        path, vault = self.state.path, self.anchors.vault
        self.state.close()
        for name in os.listdir(os.path.dirname(path)):
            if name.startswith("state.db"):
                os.unlink(f"{os.path.dirname(path)}/{name}")
        self.state = State(path, vault)
        self.state.execute("PRAGMA synchronous = OFF")
        rebuild(self.store, self.state, reader, self.keys.signer.public, ignore)

    @contextlib.contextmanager
    def reader(self) -> Iterator[VaultReader]:
        yield VaultReader(Nearest.of(self.store), self.anchors, EpochOpener(Nearest.of(self.store), lambda _: Plain()))

    def tree(self, reader: VaultReader) -> MailboxTree:
        """The newest tree of the mailbox."""
        return reader.mailbox(reader.snapshot(reader.find("latest")), "alice@mx1")[1]

    def check(self) -> None:
        """The newest tree is what lies on disk; counts, bytes and order are right; every block is counted right, and nothing dead is referred to."""
        with self.reader() as reader:
            tree = self.tree(reader)
            assert set().union(*(check_folder(reader, tree, folder) for folder in tree.folders)) == on_disk(self.maildir)
            registry = scrub(self.store, self.anchors, on_event=ignore).registry
            assert Auditor(reader, registry, ignore).run([reader.find("latest")]).findings == []
        assert wrong_counts(self.state) == {}


def check_folder(reader: VaultReader, tree: MailboxTree, folder: Folder) -> set[Any]:
    """Its messages, after a check of its row and of their order."""
    entries = list(reader.messages(tree, folder))
    assert (folder.messages, folder.bytes) == (len(entries), sum(entry.entry.size for entry in entries))
    names = [entry.name for row in folder.segments for entry in all_entries(reader, tree, row)]
    assert names == sorted(names)
    messages = listed(reader, from_name(folder.name), entries)
    assert len(messages) == len(entries)
    return messages


def all_entries(reader: VaultReader, tree: MailboxTree, row: Any) -> Iterator[Item]:
    """The entries of a facts segment, gone ones included."""
    segment = decode_segment(reader.blocks.blob(trees.resolve(tree.blocks, row.facts)), "facts", "facts")
    assert row.count == len(segment.entries)
    assert row.first == segment.entries[0].name
    return (Item.of(segment, entry) for entry in segment.entries)


FOLDERS = st.sampled_from(["", "/.A", "/.B", "/.A.sub"])
BASES = st.integers(0, 60).map(lambda n: f"{n}.M{n}P1.mx1")
RESTS = st.sampled_from([":2,", ":2,S", ":2,FRS", ":2,Sab", ":1,odd", ""])
PICK = st.integers(0, 10**6)


class Histories(RuleBasedStateMachine):
    """A mailbox that lives on between nights: whatever happens, the tree of the next night is what lies on disk."""

    def __init__(self) -> None:
        super().__init__()
        self.cleanup = contextlib.ExitStack()
        patch = self.cleanup.enter_context(pytest.MonkeyPatch.context())
        for name, value in (("_MIN", 4), ("_AVERAGE_MODULUS", 4), ("_MAX", 16)):
            patch.setattr(trees, name, value)  # a few messages make many segments
        patch.setattr(capture_folder, "_SHORT", 4)
        self.host = Host(self.cleanup.enter_context(tempfile.TemporaryDirectory()))
        self.number = 0
        self.rescan = False  # something changed that only a rescan sees
        for place in ("cur", "new"):
            os.makedirs(f"{self.host.maildir}/{place}")

    @initialize(count=st.integers(1, 40))
    def first_night(self, count: int) -> None:
        self.deliver_many("", 0, count)
        self.deliver_many("/.A", 10, count // 2)
        self.night()

    def teardown(self) -> None:
        self.host.state.close()
        self.cleanup.close()

    def message(self, pick: int) -> str | None:
        """Path of one of the messages."""
        paths = sorted(one.file for one in on_disk(self.host.maildir))
        return f"{self.host.maildir}/{os.fsdecode(paths[pick % len(paths)])}" if paths else None

    def write(self, path: str, kind: int) -> None:
        """A file with content of its own, or (kind 0) with that of others; appears whole."""
        self.number += 1
        body = b"same\n" if kind == 0 else b"%d\n" % self.number * (9_000 if kind == 9 else kind)
        with open(f"{self.host.maildir}/temp", "wb") as file:
            file.write(b"Subject: x\n\n" + body)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.rename(f"{self.host.maildir}/temp", path)

    @rule(folder=FOLDERS, place=st.sampled_from(["cur", "new"]), base=BASES, rest=RESTS, kind=st.integers(0, 9))
    def deliver(self, folder: str, place: str, base: str, rest: str, kind: int) -> None:
        """May replace a file of this name, or become a second one with its base name."""
        self.write(f"{self.host.maildir}{folder}/{place}/{base}{rest}", kind)

    @rule(folder=FOLDERS, first=st.integers(0, 60), count=st.integers(1, 30))
    def deliver_many(self, folder: str, first: int, count: int) -> None:
        for n in range(first, first + count):
            self.write(f"{self.host.maildir}{folder}/cur/{n}.M{n}P1.mx1:2,", n % 3)

    @rule(pick=PICK, rest=RESTS)
    def flag(self, pick: int, rest: str) -> None:
        path = self.message(pick)
        if path:
            directory, name = os.path.split(path)
            cur = f"{os.path.dirname(directory)}/cur"
            os.makedirs(cur, exist_ok=True)
            os.rename(path, f"{cur}/{name.partition(':')[0]}{rest}")

    @rule(pick=PICK, folder=FOLDERS)
    def move(self, pick: int, folder: str) -> None:
        path = self.message(pick)
        if path:
            os.makedirs(f"{self.host.maildir}{folder}/cur", exist_ok=True)
            os.rename(path, f"{self.host.maildir}{folder}/cur/{os.path.basename(path)}")

    @rule(pick=PICK, count=st.integers(1, 20))
    def delete(self, pick: int, count: int) -> None:
        for _ in range(count):
            path = self.message(pick)
            if path:
                os.unlink(path)

    @rule(pick=PICK)
    def change_in_place(self, pick: int) -> None:
        """What no mail program does: only a rescan sees it."""
        path = self.message(pick)
        if path:
            with open(path, "ab") as file:
                file.write(b"more\n")
            os.utime(path, ns=(1, 1_600_000_000_000_000_007 + self.number))
            self.rescan = True

    @rule(one=FOLDERS, other=FOLDERS)
    def rename_folder(self, one: str, other: str) -> None:
        source, target = self.host.maildir + one, self.host.maildir + other
        if one and other and os.path.isdir(source) and not os.path.exists(target):
            os.rename(source, target)

    @rule(folder=FOLDERS)
    def delete_folder(self, folder: str) -> None:
        if folder:
            shutil.rmtree(self.host.maildir + folder, ignore_errors=True)

    @rule()
    def age(self) -> None:
        """A day goes by: the stamps of directories are old enough to prove something."""
        for path, _, _ in os.walk(self.host.maildir):
            os.utime(path, ns=(0, os.stat(path).st_mtime_ns - 10**10))

    @rule(pick=PICK)
    def lose_a_pack(self, pick: int) -> None:
        """The store loses an object; the next run sends again what was in it."""
        packs = [key for key, _ in self.host.store.list("packs/")]
        if packs:
            self.host.store.delete(packs[pick % len(packs)])

    @rule()
    def rebuild(self) -> None:
        """The state is lost and made anew from the vault."""
        self.night()
        with self.host.reader() as reader:
            self.host.rebuild(reader)

    @rule()
    def night(self) -> None:
        run, _ = self.host.backup(rescan=self.rescan, accept_shrink=True)  # a history may delete as much as it likes
        self.rescan = False
        assert run.totals.messages == len(on_disk(self.host.maildir))
        self.host.check()

    @rule()
    def quiet_night(self) -> None:
        self.night()
        run, stored = self.host.backup()
        assert (stored, run.totals.new_messages, run.totals.read_bytes) == (0, 0, 0)
        self.host.check()


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=400 if CAMPAIGN else 25, stateful_step_count=20, derandomize=not CAMPAIGN, deadline=None, suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
