"""Every object of a vault, damaged in every way: it is found and named, what is whole comes back, and nothing wrong ever does."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from mailbackup import config
from mailbackup.cli.program import main
from mailbackup.config import Recipient
from mailbackup.crypto.age import AgeOpener, AgeSealer, generate_identity, open_epoch
from mailbackup.errors import AnchorMismatch, DamageError, ObjectDamaged, ObjectMissing, StoreUnavailable
from mailbackup.kit import load_identity_file
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import ObjectKey, blob_id
from mailbackup.model.results import VerifyResult
from mailbackup.model.tree import BlobRef
from mailbackup.stores.base import Store
from mailbackup.testing.faults import FailOnce, flip_bit, grow, remove, swap, truncate
from mailbackup.testing.wrapper import Wrapper
from mailbackup.vault import writer as vault_writer
from mailbackup.vault.epochs import EpochOpener
from mailbackup.vault.nearest import Nearest
from mailbackup.vault.trees import Item
from tests.craft import Craft, put_raw, reading
from tests.world import ALICE, World, messages_in, tree_of

BOB = "bob@example.org"

Content = dict[tuple[str, bytes], bytes]  # (mailbox or directory, path) → content


# ---------------------------------------------------------------- a small vault with three snapshots


@dataclass
class Saved:
    """A vault, and what each of its snapshots holds."""

    world: World
    content: dict[int, Content] = field(default_factory=dict)

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.world.objects() if key.startswith(prefix)]

    def path(self, key: str) -> str:
        return f"{self.world.vault}/{key}"


def now(world: World) -> Content:
    """What the sources hold."""
    found: Content = {}
    for address in (ALICE, BOB):
        found |= {(address, path): content for path, (content, _) in messages_in(world.maildir(address)).items()}
    found |= {(world.home, os.fsencode(path)): content for path, (_, _, content) in tree_of(world.home).items() if content is not None}
    return found


def save(saved: Saved) -> None:
    saved.world.settle()
    result = saved.world.backup()
    assert result.outcome == "complete"
    saved.content[result.seq] = now(saved.world)


def second_recipient(world: World) -> None:
    """From now on everything is sealed to one more key: a new epoch."""
    loaded, path = config.load(world.config_path)
    more = (*loaded.recipients, Recipient(role="drill", key=generate_identity().recipient))
    with open(path, "w") as file:
        file.write(config.render(replace(loaded, recipients=more)))


def make_saved(root: Path) -> Saved:
    saved = Saved(World(root, directories=True))
    world = saved.world
    for number in range(4):
        world.deliver(f"170000000{number}.M{number}.mx1:2,", b"Subject: %d\n\nBody %d\n" % (number, number))
        world.deliver(f"170000001{number}.M{number}.mx1:2,S", b"Subject: b%d\n\nOther %d\n" % (number, number), BOB)
    world.deliver("1700000020.M20.mx1", b"Subject: large\n\n" + os.urandom(40_000), folder=".Sent", place="new")
    Path(world.home, "passwd").write_bytes(b"root:x:0:0\n")
    save(saved)
    os.unlink(f"{world.maildir()}/cur/1700000001.M1.mx1:2,")
    os.unlink(f"{world.maildir(BOB)}/cur/1700000011.M1.mx1:2,S")
    world.deliver("1700000030.M30.mx1:2,F", b"Subject: later\n\n" + os.urandom(50_000))
    save(saved)
    second_recipient(world)
    os.unlink(f"{world.folder('.Sent')}/new/1700000020.M20.mx1")
    Path(world.home, "motd").write_bytes(os.urandom(35_000))
    world.deliver("1700000040.M40.mx1", b"Subject: last\n\nLast\n", BOB, place="new")
    save(saved)
    return saved


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Lists of stops are objects of their own here, however short. Tests undo what they do to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vault_writer, "_INLINE_STOPS", 0)
        saved = make_saved(tmp_path_factory.mktemp("damage"))
    with restored_after(saved):  # of the record that it leaves
        assert saved.world.verify(decrypt=True).findings == ()
    assert [read(saved, seq)[0] for seq in saved.content] == list(saved.content.values())
    return saved


# ---------------------------------------------------------------- reading it without wrong bytes


def read(saved: Saved, seq: int) -> tuple[Content, list[str]]:
    """What a snapshot still gives, and what went wrong."""
    found: Content = {}
    trouble: list[str] = []
    try:
        with reading(saved.world) as reader:
            snapshot = reader.snapshot(reader.find(str(seq)))
            units = [(row.address, reader.mailbox(snapshot, row.key)[1]) for row, _ in reader.mailboxes(snapshot)]
            for address, tree in units:
                for folder in tree.folders:
                    for entry in reader.messages(tree, folder):
                        path = b"/".join(filter(None, (entry.folder or b"", place_of(entry.flag), entry.name + rest_of(entry.flag))))
                        take(found, trouble, (address, path), lambda entry=entry: b"".join(reader.blocks.blob(ref) for ref in entry.refs))
            for root in snapshot.root.directories:
                for entry in reader.directory(snapshot, root):
                    if entry.entry.type == "f":
                        key = (str(root.path), entry.name)
                        take(found, trouble, key, lambda entry=entry: b"".join(reader.blocks.blob(ref) for ref in entry.refs))
    except (DamageError, AnchorMismatch) as error:
        trouble.append(str(error))
    return found, trouble


def take(found: Content, trouble: list[str], key: tuple[str, bytes], content: Callable[[], bytes]) -> None:
    try:
        found[key] = content()
    except DamageError as error:
        trouble.append(str(error))


def place_of(flag: object) -> bytes:
    return b"cur" if str(flag)[0] == "c" else b"new"


def rest_of(flag: object) -> bytes:
    return str(flag)[1:].encode()


def lost_snapshots(saved: Saved) -> set[int]:
    """The snapshots that do not come back whole. Asserts that nothing wrong comes back."""
    lost = set()
    for seq, expected in saved.content.items():
        found, trouble = read(saved, seq)
        assert found.items() <= expected.items(), "wrong content came back"
        if found != expected:
            assert trouble, "something is missing, and nobody said so"
            lost.add(seq)
    return lost


# ---------------------------------------------------------------- every object, every damage

OBJECTS = ["vault.json", "FORMAT-1.md", "rescue-1.py"] + [
    f"{kind}/{number}"
    for kind, count in (("keys", 2), ("ledger", 4), ("lists", 3), ("packs", 3), ("snapshots", 3))
    for number in range(1, count + 1)
]

DAMAGES: dict[str, Callable[[str], None]] = {
    "removed": remove,
    "cut by one": lambda path: truncate(path, -1),
    "cut to half": lambda path: truncate(path, os.path.getsize(path) // 2),
    "empty": lambda path: truncate(path, 0),
    "grown": grow,
    "first byte": lambda path: flip_bit(path, 0),
    "middle byte": lambda path: flip_bit(path, os.path.getsize(path) // 2, 3),
    "last byte": lambda path: flip_bit(path, -1),
}


def key_of(saved: Saved, name: str) -> str:
    """`ledger/2` is the second key below `ledger/`."""
    kind, _, number = name.partition("/")
    return saved.keys(kind + "/")[int(number) - 1] if number else kind


@contextmanager
def restored_after(saved: Saved) -> Iterator[None]:
    """Whatever the body does to the vault is undone."""
    backup = saved.world.vault + ".whole"
    shutil.copytree(saved.world.vault, backup)
    try:
        yield
    finally:
        shutil.rmtree(saved.world.vault)
        os.rename(backup, saved.world.vault)


def assert_named(result: VerifyResult, key: str) -> None:
    assert result.outcome == "damaged"
    named = [finding for finding in result.findings if not finding.harmless and key in (finding.subject, finding.detail.split(":")[0])]
    assert named, result.findings


def reported_snapshots(result: VerifyResult) -> set[int]:
    return {seq for finding in result.findings for seq in finding.snapshots}


def test_the_list_of_objects_is_whole(saved: Saved):
    assert sorted(key_of(saved, name) for name in OBJECTS) == sorted(saved.world.objects())


@pytest.mark.case("25", "26")
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", OBJECTS)
def test_damage_is_found_named_and_never_restored(saved: Saved, name: str, damage: str):
    key = key_of(saved, name)
    with restored_after(saved):
        DAMAGES[damage](saved.path(key))
        result = saved.world.verify()
        lost = lost_snapshots(saved)
        assert_named(result, key)
        assert_right_extent(key, damage, lost, result)
    assert saved.world.verify().outcome == "clean"


def assert_right_extent(key: str, damage: str, lost: set[int], result: VerifyResult) -> None:
    """What is lost is what must be, and verify says which snapshots are concerned."""
    kind, everything = key.split("/", maxsplit=1)[0], {2, 3, 4}
    if kind == "packs":
        assert lost <= reported_snapshots(result)
        if result.findings[0].kind is FindingKind.OBJECT_MISSING or result.findings[0].detail.startswith("blocks "):
            assert lost == reported_snapshots(result)
    elif kind == "snapshots":
        assert lost == reported_snapshots(result) == {int(key[10:20])}
    elif kind == "keys":
        assert lost == (everything if key.startswith("keys/0000000001") else {4})
    elif kind == "ledger":
        seq = int(key[-15:-5])
        assert lost == (everything if seq == 1 or (seq, damage) == (4, "removed") else {seq})  # the state has seen entry 4
    elif key == "vault.json":
        assert lost in (set(), everything)  # other ids in it are refused, rubbish is not asked
    else:
        assert lost == set()


SWAPS = [("FORMAT-1.md", "rescue-1.py")] + [
    (f"{kind}/{first}", f"{kind}/{second}")
    for kind, first, second in (("keys", 1, 2), ("ledger", 2, 3), ("ledger", 3, 4), ("lists", 1, 2), ("packs", 1, 2), ("snapshots", 2, 3))
]


@pytest.mark.case("25")
@pytest.mark.parametrize(("first", "second"), SWAPS)
def test_swapped_objects_of_one_kind(saved: Saved, first: str, second: str):
    keys = [key_of(saved, name) for name in (first, second)]
    with restored_after(saved):
        swap(*map(saved.path, keys))
        result = saved.world.verify()
        lost = lost_snapshots(saved)
    assert_named(result, keys[0])
    if not first.startswith("ledger"):  # what stands behind a break is not believed
        assert_named(result, keys[1])
    expected = {"ledger/2": {2, 3}, "ledger/3": {3, 4}, "packs/1": reported_snapshots(result), "snapshots/2": {3, 4}}
    assert lost == expected.get(first, set())  # the keys: either opens blocks of its epoch under whatever name


@pytest.mark.case("25")
@pytest.mark.parametrize("name", ["vault.json", "keys/1", "ledger/2", "lists/1", "packs/1", "snapshots/1"])
@pytest.mark.parametrize("kind", ["directory", "link", "fifo"])
def test_something_else_than_a_file(saved: Saved, name: str, kind: str):
    key = key_of(saved, name)
    path = saved.path(key)
    with restored_after(saved):
        os.rename(path, path + ".away")
        {"directory": os.mkdir, "link": lambda place: os.symlink(path + ".away", place), "fifo": os.mkfifo}[kind](path)
        result = saved.world.verify()
        lost_snapshots(saved)
    assert_named(result, key)


@pytest.mark.case("25")
@pytest.mark.parametrize(
    "key",
    ["junk", "packs/zz/nonsense", "ledger/0000000000/2.json", "keys/1-1.age", "snapshots/0000000002-x.age", "ledger/0000000007/0000000002.json",
     "packs/ab/cd/ef", "vault.json.bak"],
)  # fmt: skip
def test_a_stray_malformed_key_is_damage(saved: Saved, key: str):
    with restored_after(saved):
        put_raw(saved.world, key, b"?")
        result = saved.world.verify()
        assert lost_snapshots(saved) == set()
    assert [(finding.kind, finding.subject) for finding in result.findings] == [(FindingKind.OBJECT_MALFORMED, key)]
    assert result.outcome == "damaged"


@pytest.mark.case("25", "29")
@pytest.mark.parametrize("key", ["packs/ab/ab" + "0" * 30, "keys/0000000009-0000000001.age", f"snapshots/0000000009-{'0' * 16}.age",
                                 f"lists/0000000009-{'0' * 16}.zst"])  # fmt: skip
def test_a_well_formed_unregistered_object_is_information(saved: Saved, key: str):
    with restored_after(saved):
        put_raw(saved.world, key, b"?")
        result = saved.world.verify(decrypt=True)
        assert lost_snapshots(saved) == set()
    assert [(finding.kind, finding.subject) for finding in result.findings] == [(FindingKind.OBJECT_UNKNOWN, key)]
    assert result.outcome == "clean"


def test_what_is_being_written_is_not_judged(saved: Saved):
    with restored_after(saved):
        put_raw(saved.world, ".tmp/half-a-pack", b"?")
        assert saved.world.verify().findings == ()


# ---------------------------------------------------------------- the commands


def cli(world: World, *args: str) -> int:
    """The exit status of the program."""
    return main([*args, "--config", world.config_path, "--state", world.state, "--identity", world.kit, "-q"])


@pytest.mark.case("25")
@pytest.mark.parametrize("name", OBJECTS)
def test_restore_says_what_is_missing_and_writes_nothing_wrong(saved: Saved, name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with restored_after(saved):
        DAMAGES["middle byte"](saved.path(key_of(saved, name)))
        lost = 4 in lost_snapshots(saved)
        statuses = {
            cli(saved.world, "restore", "mailbox", "--all", "--to", f"{tmp_path}/mail"),
            cli(saved.world, "restore", "files", saved.world.home, "--to", f"{tmp_path}/files"),
        }
        assert cli(saved.world, "verify") == 4
    said = capfd.readouterr().err
    assert ("not-restored:" in said or "HINT:" in said) == lost
    assert statuses <= ({0, 4, 7} if name == "vault.json" else {0, 4})
    assert (statuses == {0}) == (not lost)
    found = restored(saved, tmp_path)
    assert found.items() <= saved.content[4].items()
    assert (found == saved.content[4]) == (not lost)


def restored(saved: Saved, target: Path) -> Content:
    """What lies in the target. Asserts that nothing half lies beside it."""
    assert not list(target.rglob(".mailbackup-*"))
    found: Content = {}
    for address in (ALICE, BOB):
        found |= {(address, path): content for path, (content, _) in messages_in(f"{target}/mail/{address}").items()}
    home = saved.world.home
    copy = f"{target}/files{home}"
    if os.path.isdir(copy):
        found |= {(home, os.fsencode(path)): content for path, (_, _, content) in tree_of(copy).items() if content is not None}
    return found


@pytest.mark.case("26")
def test_damage_in_the_content_only(saved: Saved, tmp_path: Path):
    """One block of one message: everything else comes back, and the message is named."""
    with reading(saved.world) as reader:
        _, tree = reader.mailbox(reader.snapshot(reader.find("latest")), ALICE)
        inbox = next(folder for folder in tree.folders if folder.name == "")
        large = next(entry for entry in reader.messages(tree, inbox) if entry.entry.size > 32_768)
    body = large.refs[-1]
    with restored_after(saved):
        flip_bit(f"{saved.world.vault}/packs/{body.pack[:2]}/{body.pack}", body.offset + body.length - 20)
        plain, opened = saved.world.verify(), saved.world.verify(decrypt=True)
        result = saved.world.restore("damaged")
    assert [(f.kind, f.detail, f.snapshots) for f in plain.findings] == [(FindingKind.BLOCK_DAMAGED, f"blocks {body.number}", (3, 4))]
    assert {finding.kind for finding in opened.findings} == {FindingKind.BLOCK_DAMAGED, FindingKind.BLOB_MISMATCH}
    assert large.name.decode() in next(f.subject for f in opened.findings if f.kind is FindingKind.BLOB_MISMATCH)
    assert [(f.kind, f.subject) for f in result.findings] == [(FindingKind.NOT_RESTORED, f"cur/{large.name.decode()}:2,F")]
    expected = {path for address, path in saved.content[4] if address == ALICE}
    assert set(messages_in(f"{saved.world.root}/damaged")) == expected - {b"cur/" + large.name + b":2,F"}


# ---------------------------------------------------------------- epochs


@pytest.mark.case("25")
def test_a_damaged_key_costs_its_own_epoch_only(tmp_path: Path):
    """Three epochs, one message in each; the key in the middle is damaged."""
    world = World(tmp_path)
    for number in range(3):
        world.deliver(f"{number}.m:2,", os.urandom(40_000))
        world.settle()
        world.backup()
        second_recipient(world)
    flip_bit(f"{world.vault}/keys/0000000002-0000000001.age", 40)
    result = world.restore("out")
    assert {finding.subject for finding in result.findings} == {"cur/1.m:2,"}
    assert set(messages_in(f"{world.root}/out")) == {b"cur/0.m:2,", b"cur/2.m:2,"}
    with pytest.raises(ObjectDamaged, match="keys/0000000002"):  # not "this identity does not open the vault"
        world.restore("older", at="3")
    remove(f"{world.vault}/keys/0000000002-0000000001.age")
    with pytest.raises(ObjectMissing, match="keys/0000000002"):
        world.restore("older", at="3")


def test_an_epoch_that_another_thread_is_loading(tmp_path: Path):
    """Threads that open blocks of an epoch whose key is not opened yet: whoever comes second finds it opened, and does not give up."""
    world = World(tmp_path)
    world.deliver("1.m:2,", b"x")
    world.backup()
    with reading(world) as reader:
        recipient = next(row.recipient for link in reader.links() for row in link.entry.epochs)
    sealed = AgeSealer(recipient).seal(b"plain")
    identities = load_identity_file(world.kit, None).identities

    def slowly(key: bytes) -> AgeOpener:
        time.sleep(0.2)
        return AgeOpener([open_epoch(key, identities)])

    opener = EpochOpener(Nearest.of(world.store()), slowly)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(opener.open, [sealed] * 8)) == [b"plain"] * 8


@pytest.mark.parametrize(
    "seal",
    [lambda data: AgeSealer(generate_identity().recipient).seal(data), lambda data: data, lambda data: b""],
    ids=["stranger", "bare", "empty"],
)
def test_a_block_that_is_not_sealed_to_an_epoch(tmp_path: Path, seal: Callable[[bytes], bytes]):
    class Wrong:
        """A sealer that seals nothing, or to somebody else."""

        recipient = ""

        def seal(self, data: bytes) -> bytes:
            """As the test wants it."""
            return seal(data)

    def make(craft: Craft) -> None:
        honest, craft.writer._packs._sealer = craft.writer._packs._sealer, Wrong()
        bad = craft.file(b"bad", b"content")
        craft.writer._packs._sealer = honest
        craft.commit(directories={"/etc": [bad, craft.file(b"good", b"good")]})

    world, result = lie(tmp_path, make)
    assert kinds(result) == [(FindingKind.BLOB_MISMATCH, "/etc: bad")]
    assert [finding.subject for finding in world.restore_files("out", "/etc").findings] == ["etc/bad"]
    assert os.listdir(f"{world.root}/out/etc") == ["good"]


# ---------------------------------------------------------------- stores that misbehave for a moment


class FlipsOnce(Wrapper):
    """The first object that is streamed below `prefix` reads differently, as from a failing cable or memory."""

    def __init__(self, inner: Store, prefix: str) -> None:
        super().__init__(inner)
        self.prefix: str | None = prefix

    def stream(self, key: ObjectKey, chunk: int = 1 << 20) -> Iterator[bytes]:
        """Wrong once."""
        for piece in super().stream(key, chunk):
            wrong = self.prefix is not None and key.startswith(self.prefix)
            self.prefix = None if wrong else self.prefix
            yield bytes([piece[0] ^ 1]) + piece[1:] if wrong else piece


@contextmanager
def hooked(saved: Saved, hook: Callable[[Store], Store]) -> Iterator[None]:
    saved.world.store_hook = hook
    try:
        yield
    finally:
        saved.world.store_hook = None


@pytest.mark.case("26")
def test_a_read_that_is_wrong_once_is_reported_as_such(saved: Saved):
    with hooked(saved, lambda store: FlipsOnce(store, "packs/")):
        result = saved.world.verify()
    assert [finding.kind for finding in result.findings] == [FindingKind.OBJECT_DAMAGED]
    assert "each of its blocks was read whole" in result.findings[0].detail


@pytest.mark.case("26")
@pytest.mark.parametrize("decrypt", [False, True])
@pytest.mark.parametrize("verb", ["stream", "get", "list"])
def test_an_unreachable_store_is_not_called_damaged(saved: Saved, verb: str, decrypt: bool):
    error = StoreUnavailable("connection reset")
    with hooked(saved, lambda store: FailOnce(store, verb, "*", error)), pytest.raises(StoreUnavailable):
        saved.world.verify(decrypt=decrypt)


# ---------------------------------------------------------------- a share only


def test_a_sample_reads_everything_but_packs(saved: Saved):
    whole, share = saved.world.verify(), saved.world.verify(sample=0.34)
    assert (share.outcome, share.objects) == ("clean", whole.objects - 2)
    opened = [saved.world.verify(decrypt=True, sample=sample).blobs for sample in (None, 0.001)]
    assert opened[0] > opened[1] > 0


@pytest.mark.parametrize("damage", ["removed", "cut by one", "grown"])
def test_a_sample_sees_sizes_of_all_packs(saved: Saved, damage: str):
    with restored_after(saved):
        for key in saved.keys("packs/"):
            DAMAGES[damage](saved.path(key))
        result = saved.world.verify(sample=0.01)
    assert {finding.subject for finding in result.findings} == set(saved.keys("packs/"))


def test_samples_differ(saved: Saved):
    """Every pack is damaged, so whichever is chosen is reported; in many runs each of them is."""
    with restored_after(saved):
        for key in saved.keys("packs/"):
            flip_bit(saved.path(key), 100)
        seen = {finding.subject for _ in range(40) for finding in saved.world.verify(sample=0.01).findings}
    assert seen == set(saved.keys("packs/"))


# ---------------------------------------------------------------- what authenticates, and lies


def test_what_is_crafted_without_lies_is_clean(tmp_path: Path):
    """Else the tests below would find something of their own making."""
    world = World(tmp_path, directories=True)
    with Craft(world) as craft:
        message = craft.file(b"1.M1.mx1", refs=[craft.blob(b"Subject: 1\n\n", "headers"), craft.blob(b"body", "bodies")], headers=1)
        box = craft.mailbox([(message, "c:2,S"), (craft.file(b"2.M2.mx1", b"x"), None)])
        craft.commit(directories={world.home: [craft.directory(), craft.file(b"a", b"hello")]}, mailboxes=[box])
    assert world.verify(decrypt=True).findings == ()


def lie(tmp_path: Path, make: Callable[[Craft], None]) -> tuple[World, VerifyResult]:
    """A vault whose newest snapshot lies, and what opening it finds. Without a key nothing is wrong with it."""
    world = World(tmp_path, directories=True)
    with Craft(world) as craft:
        make(craft)
    assert world.verify().findings == ()
    return world, world.verify(decrypt=True)


def kinds(result: VerifyResult) -> list[tuple[FindingKind, str]]:
    assert result.outcome == "damaged"
    return [(finding.kind, finding.subject) for finding in result.findings]


def other_id(ref: BlobRef) -> BlobRef:
    return ref._replace(blob=blob_id(b"what was there before"))


@pytest.mark.case("30")
def test_content_that_is_not_what_its_id_says(tmp_path: Path):
    def make(craft: Craft) -> None:
        lying = craft.file(b"2.M2.mx1", refs=[other_id(craft.blob(b"not it"))])
        craft.commit(mailboxes=[craft.mailbox([(craft.file(b"1.M1.mx1", b"good"), "c:2,"), (lying, "c:2,S")])])

    world, result = lie(tmp_path, make)
    assert kinds(result) == [(FindingKind.BLOB_MISMATCH, f"{ALICE}/: 2.M2.mx1")]
    assert result.findings[0].snapshots == (2,)
    restored = world.restore("out")
    assert [(finding.kind, finding.subject) for finding in restored.findings] == [(FindingKind.NOT_RESTORED, "cur/2.M2.mx1:2,S")]
    assert restored.outcome == "incomplete"
    assert {path: content for path, (content, _) in messages_in(f"{world.root}/out").items()} == {b"cur/1.M1.mx1:2,": b"good"}


@pytest.mark.case("30")
def test_a_second_id_for_the_same_place(tmp_path: Path):
    """What was opened once under its right id must not be believed under another."""

    def make(craft: Craft) -> None:
        ref = craft.blob(b"right")
        craft.commit(directories={"/etc": [craft.file(b"a", refs=[ref]), craft.file(b"b", refs=[other_id(ref)])]})

    assert kinds(lie(tmp_path, make)[1]) == [(FindingKind.BLOB_MISMATCH, "/etc: b")]


@pytest.mark.case("30")
def test_a_tree_that_is_not_what_its_id_says(tmp_path: Path):
    def make(craft: Craft) -> None:
        row, ref = craft.mailbox([(craft.file(b"1.M1.mx1", b"good"), "c:2,")])
        craft.commit(mailboxes=[(row, other_id(ref))])

    world, result = lie(tmp_path, make)
    assert kinds(result) == [(FindingKind.RECORD_INVALID, ALICE)]
    with pytest.raises(ObjectDamaged):
        world.restore("out")
    assert not os.path.exists(f"{world.root}/out")


COUNTS: dict[str, Callable[[Craft], dict[str, object]]] = {
    "folder": lambda craft: {"mailboxes": [craft.mailbox(two(craft), count=3)]},
    "mailbox": lambda craft: {"mailboxes": [craft.mailbox(two(craft), row_count=1)]},
    "source": lambda craft: {"mailboxes": [craft.mailbox(two(craft))], "source_count": 9},
    "size": lambda craft: {"directories": {"/etc": [craft.file(b"a", b"12345", size=4)]}},
}


def two(craft: Craft) -> list[tuple[Item, str]]:
    return [(craft.file(b"1.M1.mx1", b"one"), "c:2,"), (craft.file(b"2.M2.mx1", b"two"), "n")]


@pytest.mark.parametrize("which", COUNTS)
def test_counts_that_lie(tmp_path: Path, which: str):
    _, result = lie(tmp_path, lambda craft: craft.commit(**COUNTS[which](craft)))
    assert {kind for kind, _ in kinds(result)} == {FindingKind.COUNT_MISMATCH}


@pytest.mark.parametrize("flags", [["c:2,"], ["c:2,", "n", "n"], []])
def test_flags_of_another_length(tmp_path: Path, flags: list[str]):
    world, result = lie(tmp_path, lambda craft: craft.commit(mailboxes=[craft.mailbox(two(craft), flags=flags)]))
    assert kinds(result) == [(FindingKind.RECORD_INVALID, f"{ALICE}/")]
    assert f"{len(flags)} flags for 2 messages" in result.findings[0].detail
    with pytest.raises(DamageError):
        world.restore("out")


def test_refs_to_blocks_that_were_stopped(tmp_path: Path):
    """Prune could take them away at any time."""
    world = World(tmp_path, directories=True)
    with Craft(world) as craft:
        ref = craft.blob(b"dropped by the second snapshot")
        craft.commit(directories={"/etc": [craft.file(b"a", refs=[ref])]})
    with Craft(world) as craft:
        craft.writer.count([ref], -1)
        craft.commit(directories={"/etc": [craft.file(b"b", b"instead")]})
    assert world.verify(decrypt=True).findings == ()
    with Craft(world) as craft:
        craft.commit(directories={"/etc": [craft.file(b"c", refs=[ref])]})
    result = world.verify(decrypt=True)
    assert kinds(result) == [(FindingKind.NOT_LIVE, "/etc: c")]
    assert result.findings[0].snapshots == (4,)


def test_refs_to_a_pack_that_was_never_registered(tmp_path: Path):
    def make(craft: Craft) -> None:
        ref = craft.blob(b"x")
        craft.commit(directories={"/etc": [craft.file(b"a", refs=[ref._replace(pack="ab" * 16)])]})

    found = kinds(lie(tmp_path, make)[1])
    assert set(found) == {(FindingKind.NOT_LIVE, "/etc: a"), (FindingKind.BLOB_MISMATCH, "/etc: a")}


@pytest.mark.case("28")
def test_many_files_that_share_a_lost_pack(tmp_path: Path):
    """The list of findings is cut, the outcome is not."""
    world = World(tmp_path, directories=True)
    with Craft(world) as craft:
        refs = craft.blobs(b"%d" % number for number in range(1_100))
        craft.commit(directories={"/etc": [craft.file(b"a%04d" % number, refs=[ref]) for number, ref in enumerate(refs)]})
    with Craft(world) as craft:
        craft.commit(directories={"/etc": [craft.file(b"b%04d" % number, refs=[ref]) for number, ref in enumerate(refs)]})
    remove(f"{world.vault}/packs/{refs[0].pack[:2]}/{refs[0].pack}")
    result = world.verify(decrypt=True)
    assert result.outcome == "damaged"
    assert 1_000 < len(result.findings) < 1_010
    assert result.findings[-1].detail == "101 further findings are not listed"
    assert result.findings[0].kind is FindingKind.OBJECT_MISSING
    assert result.findings[0].snapshots == (2, 3)
