"""Entries of type `packs`: a long run registers what it has shipped. And what entries carry besides: the live set of every 256th, long lists."""

import json
from random import Random

import pytest

from mailbackup.capture.mailbox import MailboxCapture
from mailbackup.capture.reading import Unreadable
from mailbackup.content.zstd import decompress
from mailbackup.crypto.signing import SigningKey
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import LEDGER_PAGE
from mailbackup.model.ledger import Grant, from_ranges
from mailbackup.testing.crashpoints import Crash, CrashPoint
from mailbackup.testing.wrapper import Wrapper
from mailbackup.vault import writer
from tests.vault.past import Past, letter

BOXES = [f"user{number}@example.org" for number in range(8)]
CONTENT = 200_000  # bytes of each mailbox, that do not compress


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A host before its first run, which registers at once what it has shipped."""
    monkeypatch.setattr(writer, "CHECKPOINT_BYTES", 0)
    made = Past(tmp_path)
    for number, box in enumerate(BOXES):
        made.deliver("1.one:2,", letter("one", Random(number).randbytes(CONTENT // 2)), box)
        made.deliver("2.two:2,", letter("two", Random(50 + number).randbytes(CONTENT // 2)), box)
        made.deliver("3.small:2,", letter("small", b"words of %d" % number), box)
    return made


class DyingStore(Wrapper):
    """The process dies at the n-th call of a verb for objects below a prefix, after it took effect or before."""

    def __init__(self, inner, verb: str, prefix: str, number: int, *, after: bool) -> None:
        super().__init__(inner)
        self._what = (verb, prefix)
        self._point = CrashPoint(number, after=after)

    def around(self, verb: str, key: str):
        """Counts."""
        fits = verb == self._what[0] and key.startswith(self._what[1])
        return self._point.operation(f"{verb} {key}") if fits or self._point.dead else super().around(verb, key)


def die(world: Past, verb: str, prefix: str, number: int, *, after: bool = True) -> None:
    world.store_hook = lambda store: DyingStore(store, verb, prefix, number, after=after)
    with pytest.raises(Crash):
        world.backup()
    world.store_hook = None


def registered(world: Past) -> list[dict]:
    """The packs that the ledger names."""
    return [pack for entry in world.ledger() for pack in entry.get("packs", ())]


@pytest.mark.parametrize("limits", [{"CHECKPOINT_BYTES": 0}, {"CHECKPOINT_BYTES": 1 << 40, "CHECKPOINT_SECONDS": -1}])
def test_checkpoints_stop_nothing(world, monkeypatch, limits):
    for name, value in limits.items():
        monkeypatch.setattr(writer, name, value)
    world.backup()
    for number, box in enumerate(BOXES):
        world.deliver("4.more:2,", letter("more", Random(100 + number).randbytes(CONTENT // 2)), box)
    live, first = world.live_in_ledger(), len(world.ledger())
    world.backup()
    entries = world.ledger()[first:]
    assert [entry["type"] for entry in entries[-2:]] == ["packs", "snapshot"]
    assert len(entries) > 5
    for entry in entries[:-1]:
        assert entry["packs"]
        assert not {"stops", "snapshot", "outcome"} & set(entry)
        assert live <= world.live_in_ledger(entry["seq"])
    assert entries[-1]["stops"]
    world.check()


def test_a_run_without_news_makes_no_checkpoint(world):
    world.backup()
    before = len(world.ledger())
    world.backup()
    assert len(world.ledger()) == before + 1


@pytest.mark.case("19")
@pytest.mark.parametrize("entries", [1, 3, 6])
def test_what_is_registered_is_used_after_a_kill(world, entries):
    die(world, "put", "ledger/", entries)
    assert [entry["type"] for entry in world.ledger()] == ["trust"] + ["packs"] * entries
    sent = sum(pack["size"] for pack in registered(world))
    assert sent >= (entries - 1) * CONTENT
    result = world.backup()
    assert (result.outcome, result.findings) == ("complete", ())
    total = len(BOXES) * CONTENT
    assert total - sent - 10_000 < result.bytes_stored < total - sent + 40_000
    world.check()


def test_what_is_not_registered_is_sent_again(world):
    """A pack that no entry names may be taken away at any time: nothing may refer to it."""
    die(world, "commit", "packs/", 3)
    named = {pack["id"] for pack in registered(world)}
    (stray,) = {path.rsplit("/", 1)[1] for path in world.packs()} - named
    result = world.backup()
    assert (result.outcome, result.findings) == ("complete", ())
    assert stray not in {pack["id"] for pack in registered(world)}
    findings = world.verify(decrypt=True).findings
    assert [(finding.kind, finding.subject[-32:]) for finding in findings] == [(FindingKind.OBJECT_UNKNOWN, stray)]
    world.check()


def test_an_incomplete_run_after_a_kill_stops_nothing(world, monkeypatch):
    """What a killed run registered of a mailbox that cannot be read now is still there when it can be read again."""
    die(world, "put", "ledger/", 5)
    live = world.live_in_ledger()
    read = MailboxCapture.read

    def fails_for_the_first(self: MailboxCapture) -> None:
        if self.found.address == BOXES[0]:
            raise Unreadable("Input/output error")
        read(self)

    with monkeypatch.context() as patch:
        patch.setattr(MailboxCapture, "read", fails_for_the_first)
        assert world.backup().outcome == "incomplete"
    assert live <= world.live_in_ledger()
    world.check_clean()
    result = world.backup()
    assert (result.outcome, result.bytes_stored < CONTENT // 4) == ("complete", True)
    world.check_clean()
    world.check_restores(result.seq)
    world.check_no_waste()


# ---------------------------------------------------------------- every 256th entry


def page_entry(world: Past) -> dict:
    return world.ledger()[LEDGER_PAGE - 1]


def fill_ledger(world: Past, until: int) -> None:
    """Entries without content, by the writer of the vault, so that the next one has number `until`."""
    with open(f"{world.root}/mailbackup.key", encoding="ascii") as file:
        key = SigningKey.from_hex(file.read().strip())
    world.put_entry(key, times=until - world.ledger()[-1]["seq"] - 1, type="packs")


class Watching(Wrapper):
    """Notes which objects are read."""

    def __init__(self, inner, read: list[str]) -> None:
        super().__init__(inner)
        self._read = read

    def around(self, verb: str, key: str):
        """Notes."""
        if verb == "get":
            self._read.append(key)
        return super().around(verb, key)


@pytest.mark.parametrize("kind", ["snapshot", "packs"])
def test_a_lost_state_begins_at_the_last_page(tmp_path, monkeypatch, kind):
    world = Past(tmp_path)
    world.first_day()
    world.backup()
    helper = SigningKey.generate()
    world.put_entry(world.admin, type="trust", grant=(Grant("prune", helper.public),))
    world.second_day()
    world.backup()
    fill_ledger(world, LEDGER_PAGE)
    if kind == "packs":
        monkeypatch.setattr(writer, "CHECKPOINT_BYTES", 0)
        world.deliver("60.more:2,", letter("more", b"m" * 40_000))
    world.backup()
    check_page(world, kind)
    world.deliver("70.later:2,", letter("later"))
    world.backup()
    lose_state_and_run(world, helper)


def check_page(world: Past, kind: str) -> None:
    """The first entry of the page carries the whole live set and all trust entries."""
    entry = page_entry(world)
    assert entry["type"] == kind
    assert [json.loads(text.partition("\n")[0])["seq"] for text in entry["trust"]] == [1, 3]
    listed = json.loads(decompress(world.raw(entry["lists"]["live"]["key"]), 1 << 20, "list"))
    blocks = {(pack["id"], number) for pack in listed["packs"] for number in from_ranges(pack["live"], pack["blocks"])}
    assert blocks == world.live_in_ledger(LEDGER_PAGE)
    assert any(pack["live"] != f"0-{pack['blocks'] - 1}" for pack in listed["packs"])  # the second day stopped something


def lose_state_and_run(world: Past, helper: SigningKey) -> None:
    """Nothing of the earlier pages is read, and what stands there is known all the same: the live set, and whose acts are believed."""
    world.damage_act(world.packs()[-1:], helper)
    read: list[str] = []
    world.lose_state()
    world.store_hook = lambda store: Watching(store, read)
    result = world.backup()
    world.store_hook = None
    assert FindingKind.STATE_NEW in {finding.kind for finding in result.findings}
    assert [key for key in read if key.startswith("ledger/")]
    assert not [key for key in read if key.startswith("ledger/0000000000/")]
    for seq in world.committed():
        world.check_restores(seq)
    world.check_no_waste()


def test_an_old_state_goes_over_the_end_of_a_page(tmp_path):
    world = Past(tmp_path)
    world.first_day()
    world.backup()
    world.save("old", "state")
    world.second_day()
    world.backup()
    fill_ledger(world, LEDGER_PAGE)
    world.backup()
    world.put_back("old", "state")
    result = world.backup()
    assert [finding.kind for finding in result.findings] == [FindingKind.STATE_OLD]
    world.check()
    assert world.backup().outcome == "complete"


# ---------------------------------------------------------------- long lists


def test_long_stops_are_an_object_of_their_own(tmp_path, monkeypatch):
    """And count like those in the line: for the next run, for a state that has to catch up, and for one that is lost."""
    monkeypatch.setattr(writer, "_INLINE_STOPS", 0)
    world = Past(tmp_path)
    world.first_day()
    world.backup()
    world.save("old", "state")
    world.second_day()
    world.backup()
    entry = world.ledger()[-1]
    assert "stops" not in entry
    assert entry["lists"]["stops"]["key"] in world.objects()
    world.check_no_waste()
    world.put_back("old", "state")
    world.backup()
    world.check_no_waste()
    world.lose_state()
    world.backup()
    world.check()
