"""The state is a cache: lost, old, foreign or damaged, it costs time and bytes, never a backup."""

import os
import random
import shutil

import pytest

from mailbackup import app
from mailbackup.capture.files import FileWalk
from mailbackup.capture.mailbox import MailboxCapture
from mailbackup.capture.messages import FolderReader
from mailbackup.capture.reading import Unreadable
from mailbackup.capture.scan import FolderScan
from mailbackup.errors import ConfigInvalid, NoSpace, ObjectMissing, StoreUnavailable
from mailbackup.model.finding import FindingKind
from mailbackup.model.results import BackupResult
from mailbackup.testing.crashpoints import Crash, CrashingStore, CrashPoint
from mailbackup.testing.faults import FailOnce, flip_bit, truncate
from mailbackup.testing.mounts import tmpfs
from mailbackup.vault import writer
from tests.vault.past import ALICE, Past, letter, write

CAMPAIGN = bool(os.environ.get("MAILBACKUP_CAMPAIGN"))

STATE_NEW, STATE_OLD = FindingKind.STATE_NEW, FindingKind.STATE_OLD


@pytest.fixture
def world(tmp_path):
    """A host with two snapshots, 2 and 3."""
    made = Past(tmp_path)
    made.first_day()
    made.backup()
    made.save("at 2", "state")
    made.second_day()
    made.backup()
    return made


def kinds(result: BackupResult) -> list[str]:
    return [finding.kind for finding in result.findings]


def entry(world: Past, seq: int) -> dict[str, object]:
    return world.ledger()[seq - 1]


# ---------------------------------------------------------------- lost


def test_a_lost_state_costs_one_full_upload(world):
    world.deliver("50.bulk:2,", letter("bulk", random.Random(1).randbytes(100_000)))
    world.backup()
    world.lose_state()
    result = world.backup()
    assert (result.outcome, kinds(result), result.new_messages) == ("explained", [STATE_NEW], result.messages)
    assert result.bytes_stored > 100_000
    assert "freeze" in entry(world, result.seq)
    world.check()
    after = world.backup()
    assert (after.outcome, after.findings, after.bytes_stored) == ("complete", (), 0)
    assert "freeze" not in entry(world, after.seq)


def test_a_lost_state_and_an_empty_source(world):
    """There is nothing to compare with: an empty mount must not pass for an empty source, in this night nor in the next one."""
    live = world.live_in_ledger()
    shutil.move(world.mail, f"{world.root}/aside")
    os.mkdir(world.mail)
    world.lose_state()
    for _ in range(2):
        result = world.backup()
        assert (result.outcome, kinds(result)) == ("incomplete", [STATE_NEW, FindingKind.SHRUNK])
        assert live <= world.live_in_ledger()
    shutil.rmtree(world.mail)
    shutil.move(f"{world.root}/aside", world.mail)
    assert (world.backup().outcome, kinds(world.backup())) == ("explained", [])
    world.check()


def test_a_lost_state_and_a_source_that_is_empty_on_purpose(world):
    shutil.rmtree(world.mail)
    os.mkdir(world.mail)
    world.lose_state()
    assert world.backup(accept_shrink=True).outcome == "explained"
    result = world.backup()
    assert (result.outcome, kinds(result)) == ("complete", [])
    world.check()


def test_killed_in_the_first_run_after_the_loss(world):
    """What the lost state means is not forgotten with the run that noticed it."""
    world.lose_state()
    world.store_hook = lambda store: FailOnce(store, "create", "packs/*", StoreUnavailable("gone"))
    with pytest.raises(StoreUnavailable):
        world.backup()
    world.store_hook = None
    result = world.backup()
    assert (result.outcome, kinds(result)) == ("explained", [STATE_NEW])
    assert "freeze" in entry(world, result.seq)
    world.check()


def test_a_rebuilt_state_sends_almost_nothing(world):
    for number in range(30):
        world.deliver(f"{500 + number}.bulk:2,", letter(f"bulk {number}", random.Random(number).randbytes(5_000)))
    world.deliver("50.bulk:2,", letter("bulk", random.Random(1).randbytes(200_000)))
    before = world.backup()
    world.lose_state()
    rebuilt = app.state_rebuild(world.context)
    assert (rebuilt.seq, rebuilt.mailboxes, rebuilt.messages) == (before.seq, before.mailboxes, before.messages)
    world.check_no_waste()
    result = world.backup()
    assert (result.outcome, kinds(result), result.new_messages) == ("complete", [], 0)
    assert result.bytes_stored < 12_000
    assert "freeze" not in entry(world, result.seq)
    world.check()


def test_a_rebuild_that_fails_leaves_no_state_that_looks_whole(world):
    """The newest snapshot cannot be read: what the state then lacks must not pass for deleted."""
    for pack in world.packs():
        os.rename(pack, f"{world.root}/{os.path.basename(pack)}")
    world.lose_state()
    with pytest.raises(ObjectMissing):
        app.state_rebuild(world.context)
    shutil.rmtree(world.mail)
    os.mkdir(world.mail)
    assert world.backup().outcome == "incomplete"


# ---------------------------------------------------------------- older than the vault


def two_more_runs(world: Past) -> None:
    """What older states never heard of: 4 and 5, after which the vault has given up most of what was in 3. Then all that comes back."""
    world.deliver("30.four:2,", letter("four", b"4" * 40_000))
    world.backup()
    world.save("sources", "mail", "home")
    shutil.rmtree(f"{world.mail}/example.org")
    shutil.rmtree(f"{world.home}/projects")
    world.deliver("31.five:2,", letter("five"))
    world.backup(accept_shrink=True)
    world.put_back("sources", "mail", "home")
    os.unlink(f"{world.maildir()}/cur/30.four:2,")


@pytest.mark.case("33")
def test_an_old_state_follows_the_vault(world):
    two_more_runs(world)
    world.put_back("at 2", "state")
    result = world.backup()
    assert (result.outcome, kinds(result)) == ("explained", [STATE_OLD])
    world.check()
    after = world.backup()
    assert (after.outcome, after.findings, after.bytes_stored) == ("complete", (), 0)


def test_the_whole_host_is_put_back(world):
    """A virtual machine is set back to the day of snapshot 2, sources and state; only the vault is elsewhere."""
    world.save("day 2", "mail", "home", "state")
    two_more_runs(world)
    world.put_back("day 2", "mail", "home", "state")
    result = world.backup()
    assert (result.outcome, kinds(result)) == ("explained", [STATE_OLD])
    world.check()


def fix_a_snapshot_and_die(world: Past, monkeypatch) -> None:
    def dies(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(writer, "put_pending", dies)
        world.backup()


@pytest.mark.case("33")
def test_an_old_state_with_something_pending(world, monkeypatch):
    """It counts on an entry 4 that never came to be; the vault has another one, of the same writer."""
    world.save("at 3", "state")
    world.deliver("30.four:2,", letter("four", b"4" * 40_000))
    fix_a_snapshot_and_die(world, monkeypatch)
    world.save("pending 4", "state")
    world.put_back("at 3", "state")
    os.unlink(f"{world.maildir()}/cur/30.four:2,")
    two_more_runs(world)
    world.put_back("pending 4", "state")
    result = world.backup()
    assert (result.outcome, kinds(result)) == ("explained", [STATE_OLD])
    assert "freeze" not in entry(world, result.seq)
    world.check()
    assert world.backup().outcome == "complete"


def test_an_old_state_with_something_pending_that_was_put(world, monkeypatch):
    fix_a_snapshot_and_die(world, monkeypatch)
    world.save("pending 4", "state")
    world.backup()
    two_more_runs(world)
    world.put_back("pending 4", "state")
    result = world.backup()
    assert (result.outcome, kinds(result)) == ("explained", [STATE_OLD])
    world.check()


def cannot_read_mailbox(patch) -> None:
    original = MailboxCapture.read

    def read(self: MailboxCapture) -> None:
        if self.found.address == ALICE:
            raise Unreadable("Input/output error")
        original(self)

    patch.setattr(MailboxCapture, "read", read)


def cannot_read_folder(patch) -> None:
    original = FolderScan.now

    def now(self: FolderScan) -> object:
        if self.path.endswith(b"/alice/Maildir"):
            raise Unreadable("Input/output error")
        return original(self)

    patch.setattr(FolderScan, "now", now)


def cannot_read_message(patch) -> None:
    original = FolderReader.message

    def message(self: FolderReader, base: bytes, seen: object) -> object:
        if base == b"0.small":
            self._report(FindingKind.UNREADABLE, seen, "Input/output error")
            return None
        return original(self, base, seen)

    patch.setattr(FolderReader, "message", message)


def cannot_read_files(patch) -> None:
    def run(self: FileWalk) -> object:
        raise Unreadable("Input/output error")

    patch.setattr(FileWalk, "run", run)


@pytest.mark.parametrize("fault", [cannot_read_mailbox, cannot_read_folder, cannot_read_message, cannot_read_files])
def test_an_old_state_and_a_source_that_cannot_be_read(world, monkeypatch, fault):
    """What cannot be read keeps its last state, but not one that the vault gave up since: a snapshot that refers to it would lose it in the next prune."""
    write(f"{world.root}/spare", letter("small 0", b"words for 0\n"))  # now: its inode must not be the old one's, or nobody would read it
    for name in os.listdir(f"{world.maildir()}/cur"):
        os.unlink(f"{world.maildir()}/cur/{name}")
    world.deliver("60.other:2,", letter("other"))
    write(f"{world.home}/notes", b"others")
    world.backup()
    world.put_back("at 2", "state")
    os.rename(f"{world.root}/spare", f"{world.maildir()}/cur/0.small:2,S")
    with monkeypatch.context() as patch:
        fault(patch)
        result = world.backup()
    assert result.outcome == "incomplete"
    world.check_clean()
    world.check_blocks()
    after = world.backup()
    assert after.outcome in ("complete", "explained")
    world.check_clean()
    world.check_restores(after.seq)
    world.check_no_waste()


def test_a_key_that_never_reached_the_vault_is_not_used(world):
    """A state that made an epoch key and died comes back after another one was made: blocks that are sealed to it could be opened by nobody."""
    world.lose_state()
    world.store_hook = lambda store: FailOnce(store, "put", "keys/*", StoreUnavailable("gone"))
    with pytest.raises(StoreUnavailable):
        world.backup()
    world.store_hook = None
    world.save("with a key", "state")
    world.lose_state()
    world.backup()
    world.put_back("with a key", "state")
    result = world.backup()
    assert STATE_OLD in kinds(result)
    world.check()


# ---------------------------------------------------------------- damaged, foreign


def garbage(path: str) -> None:
    write(path, b"\0garbage" * 1000)


def emptied(path: str) -> None:
    truncate(path, 0)


def cut_in_half(path: str) -> None:
    truncate(path, os.path.getsize(path) // 2)


def cut_in_a_page(path: str) -> None:
    truncate(path, -100)


def without_sum(path: str) -> None:
    """As after a killed run: SQLite alone has to notice."""
    os.unlink(path + ".sum")
    cut_in_half(path)


@pytest.mark.parametrize("damage", [garbage, emptied, cut_in_half, cut_in_a_page, without_sum])
def test_a_damaged_state_is_noticed_and_made_anew(world, damage):
    damage(f"{world.state}/state.db")
    result = world.backup()
    assert (result.outcome, set(kinds(result))) == ("explained", {STATE_NEW})
    assert [name for name in os.listdir(world.state) if name.startswith("state.db.unusable-")]
    world.check()
    assert world.backup().outcome == "complete"


def test_one_flipped_bit_anywhere_is_noticed(world):
    """Also in a reference count, in a hash or in the pinned head, where SQLite sees nothing wrong."""
    world.save("whole")
    size = os.path.getsize(f"{world.state}/state.db")
    rng = random.Random(20261124)
    for _ in range(150 if CAMPAIGN else 5):
        world.put_back("whole")
        flip_bit(f"{world.state}/state.db", rng.randrange(size), rng.randrange(8))
        result = world.backup()
        assert (result.outcome, set(kinds(result))) == ("explained", {STATE_NEW})
        world.check_clean()
        world.check_restores(result.seq)
        world.check_no_waste()


@pytest.mark.parametrize("column", ["segment.data", "segment.flags", "unit.tree", "unit.ref"])
def test_a_flipped_bit_after_a_killed_run(world, column):
    """It left no sum of the file, and SQLite sees nothing wrong: what stands in the records is checked by sums of their own."""
    world.save("whole")
    table, name = column.split(".")
    rng = random.Random(column)
    for (data,) in world.sql(f"SELECT {name} FROM {table} WHERE length({name}) > 40 ORDER BY no LIMIT {100 if CAMPAIGN else 2}"):
        world.put_back("whole")
        with open(f"{world.state}/state.db", "rb") as file:
            offset = file.read().index(data)
        os.unlink(f"{world.state}/state.db.sum")
        flip_bit(f"{world.state}/state.db", offset + rng.randrange(len(data)), rng.randrange(8))
        result = world.backup(rescan=True)
        assert (result.outcome, set(kinds(result))) == ("explained", {STATE_NEW})
        world.check()


def test_the_state_of_another_vault_is_refused(tmp_path, world):
    other = Past(f"{tmp_path}/other")
    other.first_day()
    other.backup()
    before = world.objects()
    shutil.rmtree(world.state)
    shutil.copytree(other.state, world.state)
    with pytest.raises(ConfigInvalid) as refused:
        world.backup()
    assert refused.value.exit_status == 2
    assert world.objects() == before
    shutil.rmtree(world.state)
    shutil.copytree(other.state, world.state)
    with pytest.raises(ConfigInvalid):
        world.backup()


# ---------------------------------------------------------------- full


@pytest.mark.root
@pytest.mark.case("20")
def test_the_disk_of_the_state_is_full(tmp_path):
    """At any size of what is left: a clean error, and the state, which is whole, is not thrown away."""
    world = Past(tmp_path)
    with tmpfs(world.state, 1 << 20):
        world.first_day()
        world.backup()
        outcomes = {run_with_little_room(world, kibibytes) for kibibytes in (0, 4, 28, 64, 128, 256)}
        assert outcomes == {"full", "complete"}
        world.check()


def run_with_little_room(world: Past, kibibytes: int) -> str:
    """A run that has this much room for the state, then one that has enough."""
    names = [f"{100 + number}.at{kibibytes}:2," for number in range(60)]
    for name in names:
        world.deliver(name, letter(name, random.Random(name).randbytes(700)))
    free = os.statvfs(world.state)
    write(f"{world.state}/filler", bytes(max(0, free.f_bavail * free.f_bsize - kibibytes * 1024)))
    try:
        outcome = world.backup().outcome
    except NoSpace:
        outcome = "full"
    os.unlink(f"{world.state}/filler")
    for name in names[:50]:
        os.unlink(f"{world.maildir()}/cur/{name}")
    after = world.backup()
    assert (after.outcome, after.findings) == ("complete", ())
    return outcome


@pytest.mark.root
@pytest.mark.case("20")
def test_the_disk_of_the_vault_is_full(tmp_path):
    """In the middle of a backup: a clean error, what is in the vault stays valid, and with room again the next run makes its snapshot."""
    world = Past(tmp_path)
    world.first_day()
    world.backup()
    world.save("small", "vault")
    with tmpfs(f"{tmp_path}/disk", 3 << 20) as disk:
        shutil.rmtree(world.vault)
        shutil.copytree(f"{tmp_path}/small/vault", f"{disk}/vault")
        os.symlink(f"{disk}/vault", world.vault)
        for number in range(60):
            world.deliver(f"{100 + number}.bulk:2,", letter("bulk", random.Random(number).randbytes(100_000)))
        for _ in range(2):
            with pytest.raises(NoSpace) as full:
                world.backup()
            assert full.value.exit_status == 8
        world.check_clean()
        world.check_restores(2)
        for number in range(55):
            os.unlink(f"{world.maildir()}/cur/{100 + number}.bulk:2,")
        assert world.backup().outcome == "complete"
        world.check()


def test_killed_in_a_run_that_follows_the_vault(world):
    """An old state that is killed at any step of catching up catches up next time."""
    two_more_runs(world)
    world.put_back("at 2", "state")
    world.save("old")
    for number in range(1, 40, 1 if CAMPAIGN else 5):
        world.put_back("old")
        point = CrashPoint(number)
        world.store_hook = lambda store, point=point: CrashingStore(store, point)
        try:
            world.backup()
        except Crash:
            world.store_hook = None
            assert world.backup().outcome in ("complete", "explained")
        world.store_hook = None
        world.check()
        if not point.dead:
            return
    pytest.fail("the run never came to its end")
