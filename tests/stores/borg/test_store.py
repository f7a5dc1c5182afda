"""What a Borg store does beyond the contract: batches, the catalogue, what is fetched, and other writers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mailbackup.errors import ConfigInvalid, KeyExists, ObjectMissing, StoreRefused, StoreUnavailable
from mailbackup.model.ids import ObjectKey, PackId, act_key, entry_key, pack_key
from mailbackup.model.options import StoreConfig
from mailbackup.stores.borg import shipping
from mailbackup.stores.borg.answers import Failure, failure_of
from mailbackup.stores.borg.command import Borg, repository_of
from mailbackup.stores.borg.compacting import missing_before_compact
from mailbackup.stores.borg.spool import PIECE
from mailbackup.stores.borg.store import BorgStore
from mailbackup.testing.store_contract import KEY, LIMIT, OTHER, VAULT, keys
from tests.stores.borg.conftest import BORG, Bench

PACKS = [pack_key(PackId(f"{n:02x}" + "5" * 30)) for n in range(200)]
MIB = 1 << 20


class Recorder:
    """The calls of borg: verb → arguments."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.lose = 0  # answers of the next creates that are lost

    def verbs(self) -> list[str]:
        """What was called, and forget it."""
        found = [call[1] for call in self.calls]
        self.calls.clear()
        return found


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Records every call; may lose answers."""
    recorder = Recorder()
    real = Borg._once

    def once(self: Borg, command: list[str], names: bytes | None, folder: str | None, limit: int) -> bytes | Failure:
        recorder.calls.append(command)
        answer = real(self, command, names, folder, limit)
        if command[1] == "create" and isinstance(answer, bytes) and recorder.lose:
            recorder.lose -= 1
            return failure_of(81, b'{"levelname": "ERROR", "message": "Connection closed", "msgid": "ConnectionClosedWithHint"}')
        return answer

    monkeypatch.setattr(Borg, "_once", once)
    return recorder


def borg(bench: Bench, *arguments: str, cwd: Path | None = None, check: bool = True) -> str:
    """Somebody else's borg."""
    environment = {
        "BORG_BASE_DIR": str(bench.top / "elsewhere"),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        "PATH": "/usr/bin:/bin",
    }
    done = subprocess.run([BORG, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout


def stored(path: str) -> int:
    """Bytes below a directory."""
    return sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)


# ---------------------------------------------------------------- batches


def test_what_waits_is_shipped_as_one_archive_in_the_order_of_the_puts(bench: Bench) -> None:
    place = bench.place()
    store = bench.open(place)
    for key in (PACKS[3], PACKS[1], PACKS[2]):
        store.put(key, key.encode())
    assert borg(bench, "list", "--short", place.path) == ""
    store.put(entry_key(1), b"{}")
    assert borg(bench, "list", "--short", place.path) == "mailbackup-0000000001\n"
    files = borg(bench, "list", "--short", f"{place.path}::mailbackup-0000000001").split()
    assert files == [f"{key}/000000" for key in (PACKS[3], PACKS[1], PACKS[2], entry_key(1))]


def test_acts_and_entries_are_shipped_at_once_and_packs_are_not(bench: Bench, calls: Recorder) -> None:
    store = bench.open(bench.place())
    calls.verbs()
    store.put(PACKS[0], b"pack")
    assert calls.verbs() == []
    store.put(act_key(1), b"{}")
    assert calls.verbs() == ["create"]


def test_the_spool_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "SPOOL_BOUND", 8 * MIB)
    store = bench.open(bench.place(), "work")
    for key in PACKS[:7]:
        store.put(key, os.urandom(3 * MIB))
        assert stored(str(bench.top / "work")) < 8 * MIB + 3 * MIB
    assert len(borg(bench, "list", "--short", store.borg.repository).split()) == 2


def test_a_comment_does_not_outgrow_an_argument(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "COMMENT_BOUND", 4000)
    store = bench.open(bench.place())
    for key in PACKS:
        store.put(key, b"")
    store.flush()
    comments = borg(bench, "list", "--format", "{comment}{NL}", store.borg.repository).splitlines()
    assert len(comments) > 3
    assert all(0 < len(comment) < 4200 for comment in comments)
    assert keys(bench.open(StoreConfig(name="box", url=f"borg://{store.borg.repository}", borg_path=BORG))) == PACKS


def test_the_longest_comment_fits_into_an_argument(bench: Bench) -> None:
    store = bench.open(bench.place())
    for n in range(1, 12):
        store.put(pack_key(PackId(f"{n:032x}")), b"x")
        store.put(VAULT, b"") if n == 1 else None
    for n in range(1200):
        store.put(pack_key(PackId("ff" + f"{n:030x}")), b"")
    store.put(entry_key(1), b"e" * 8000)
    assert len(keys(store)) == 11 + 1 + 1200 + 1
    assert store.get(entry_key(1), LIMIT) == b"e" * 8000


# ---------------------------------------------------------------- the catalogue


def test_the_catalogue_is_rebuilt_from_the_repository_alone(bench: Bench) -> None:
    place = bench.place()
    store = bench.open(place)
    store.put(KEY, b"pack" * 1000)
    store.put(entry_key(1), b"entry")
    store.put(entry_key(2), b"")
    again = bench.open(place, "fresh")
    assert keys(again) == sorted([KEY, entry_key(1), entry_key(2)])
    assert again.get(KEY, LIMIT) == b"pack" * 1000


def test_what_is_known_is_not_read_again(bench: Bench, calls: Recorder) -> None:
    place = bench.place()
    bench.open(place, "first").put(entry_key(1), b"entry")
    bench.open(place, "second").close()
    calls.verbs()
    store = bench.open(place, "second")
    assert calls.verbs() == ["list"]
    assert store.get(entry_key(1), LIMIT) == b"entry"
    assert calls.verbs() == []


@pytest.mark.parametrize("damage", [b"", b"garbage", b"flip"])
def test_a_damaged_cache_is_read_again(bench: Bench, damage: bytes) -> None:
    place = bench.place()
    store = bench.open(place, "work")
    store.put(entry_key(1), b"entry")
    store.close()
    (cached,) = (bench.top / "work/catalogue").iterdir()
    cached.write_bytes(cached.read_bytes().replace(b"ledger", b"lodger") if damage == b"flip" else damage)
    assert keys(bench.open(place, "work")) == [entry_key(1)]


def test_archives_of_others_are_left_alone(bench: Bench) -> None:
    place = bench.place()
    for name in ("home-2026", "mailbackup-1", "mailbackup-0000000001.recreate", "mailbackup-00000000019"):
        borg(bench, "create", f"{place.path}::{name}", "/etc/hostname")
    store = bench.open(place)
    assert keys(store) == []
    store.put(entry_key(1), b"{}")
    assert keys(store) == [entry_key(1)]
    assert len(borg(bench, "list", "--short", place.path).split()) == 5


def test_a_later_archive_cannot_hide_an_object(bench: Bench) -> None:
    place = bench.place()
    bench.open(place).put(entry_key(1), b"genuine")
    forged = bench.top / "forged" / entry_key(1)
    forged.mkdir(parents=True)
    (forged / "000000").write_bytes(b"forged")
    borg(bench, "create", f"{place.path}::mailbackup-0000000002", "ledger", cwd=bench.top / "forged")
    store = bench.open(place)
    assert keys(store) == [entry_key(1)]
    assert store.get(entry_key(1), LIMIT) == b"genuine"
    store.delete(entry_key(1))
    store.flush()
    assert keys(bench.open(place)) == []


# ---------------------------------------------------------------- reading


def test_a_range_takes_only_its_pieces(bench: Bench, calls: Recorder) -> None:
    data = os.urandom(6 * PIECE + 123)
    place = bench.place()
    store = bench.open(place)
    store.put(KEY, data)
    store.flush()
    calls.verbs()
    assert store.get_range(KEY, 2 * PIECE - 5, 10) == data[2 * PIECE - 5 : 2 * PIECE + 5]
    (call,) = calls.calls
    assert [argument for argument in call if argument.startswith("pf:")] == [f"pf:{KEY}/000001", f"pf:{KEY}/000002"]
    assert store.get_range(KEY, 2 * PIECE, 1000) == data[2 * PIECE : 2 * PIECE + 1000]
    assert len(calls.calls) == 1
    assert store.get_range(KEY, 3 * PIECE, 1) == data[3 * PIECE : 3 * PIECE + 1]
    assert store.get_range(KEY, 5 * PIECE, PIECE + 123) == data[5 * PIECE :]  # came with the one before: read from front to back
    assert len(calls.calls) == 2
    assert b"".join(store.stream(KEY)) == data


def test_small_objects_of_an_archive_come_together(bench: Bench, calls: Recorder) -> None:
    store = bench.open(bench.place())
    for key in PACKS[:30]:
        store.put(key, key.encode())
    store.flush()
    calls.verbs()
    assert [store.get(key, LIMIT) for key in PACKS[:30]] == [key.encode() for key in PACKS[:30]]
    assert calls.verbs() == ["extract"]


def test_a_long_ledger_is_read_without_a_call_for_each_entry(bench: Bench, calls: Recorder) -> None:
    place = bench.place()
    store = bench.open(place)
    for seq in range(1, 5):
        store.put(entry_key(seq), b"entry %d" % seq)
    again = bench.open(place)
    calls.verbs()
    assert [again.get(entry_key(seq), LIMIT) for seq in range(1, 5)] == [b"entry %d" % seq for seq in range(1, 5)]
    assert calls.verbs() == []


# ---------------------------------------------------------------- deletions


def test_deleted_objects_are_freed_by_the_next_compaction_each_by_itself(bench: Bench) -> None:
    place = bench.place()
    store = bench.open(place)
    for key in PACKS[:3]:
        store.put(key, os.urandom(2 * MIB))
    kept = store.get(PACKS[2], 2 * MIB)
    store.put(entry_key(1), b"{}")
    store.delete(PACKS[0])
    store.delete(PACKS[1])
    store.flush()
    borg(bench, "compact", place.path)
    assert 2 * MIB < stored(place.path) < 3 * MIB
    again = bench.open(place)
    assert keys(again) == sorted([PACKS[2], entry_key(1)])
    assert again.get(PACKS[2], 2 * MIB) == kept


def test_a_number_never_comes_free_again(bench: Bench) -> None:
    """Else a writer who has not looked lately could put an archive before a later one, and hide its objects."""
    place = bench.place()
    store, stale = bench.open(place), bench.open(place)
    store.put(KEY, b"x")
    store.flush()
    store.put(OTHER, b"genuine")
    store.flush()
    store.delete(KEY)
    store.flush()
    stale.put(OTHER, b"forged")
    with pytest.raises(KeyExists, match=OTHER):
        stale.flush()
    assert bench.open(place).get(OTHER, LIMIT) == b"genuine"
    assert keys(stale) == [OTHER]


def test_a_deletion_is_carried_out_at_the_latest_by_close(bench: Bench) -> None:
    place = bench.place()
    store = bench.open(place)
    store.put(entry_key(1), b"{}")
    store.put(KEY, b"never flushed")
    store.delete(entry_key(1))
    assert keys(bench.open(place)) == [entry_key(1)]
    store.close()
    assert keys(bench.open(place)) == []


def test_a_rewriting_that_was_killed_does_not_stand_in_the_way(bench: Bench) -> None:
    place = bench.place()
    store = bench.open(place)
    store.put(entry_key(1), b"{}")
    borg(bench, "create", f"{place.path}::mailbackup-0000000001.recreate", "/etc/hostname")
    store.delete(entry_key(1))
    store.flush()
    assert keys(bench.open(place)) == []


def test_before_compacting_what_was_deleted_by_a_thief_is_seen(bench: Bench) -> None:
    place = bench.place()
    store = bench.open(place)
    for number, key in enumerate(PACKS[:3]):
        store.put(key, b"x" * (PIECE + number))
        store.flush()
    live = {key: PIECE + number for number, key in enumerate(PACKS[:3])}
    assert missing_before_compact(store, live) == ()
    borg(bench, "delete", f"{place.path}::mailbackup-0000000001")
    borg(bench, "recreate", "-e", f"pf:{PACKS[1]}/000001", f"{place.path}::mailbackup-0000000002")  # keeps the comment, which now lies
    assert keys(store) == PACKS[1:3]
    assert missing_before_compact(store, live) == (PACKS[0], PACKS[1])


# ---------------------------------------------------------------- other writers, lost answers


def test_of_two_writers_with_the_same_key_the_second_is_refused_and_keeps_nothing(bench: Bench) -> None:
    place = bench.place()
    first, second = bench.open(place), bench.open(place)
    second.put(KEY, b"second")
    second.put(OTHER, b"with it")
    first.put(KEY, b"first")
    first.flush()
    with pytest.raises(KeyExists, match=KEY):
        second.flush()
    assert keys(second) == [KEY]
    assert second.get(KEY, LIMIT) == b"first"


def test_an_entry_that_is_taken_does_not_take_the_packs_before_it_along(bench: Bench) -> None:
    place = bench.place()
    first, second = bench.open(place), bench.open(place)
    first.put(entry_key(1), b"first")
    second.put(KEY, b"pack")
    with pytest.raises(KeyExists, match=entry_key(1)):
        second.put(entry_key(1), b"second")
    second.flush()
    assert bench.open(place).get(KEY, LIMIT) == b"pack"


def test_writers_with_different_keys_wait_for_each_other(bench: Bench) -> None:
    place = bench.place()
    stores = [bench.open(place), bench.open(place)]
    for n, key in enumerate(PACKS[:6]):
        stores[n % 2].put(key, key.encode())
        stores[n % 2].flush()
    assert keys(bench.open(place)) == PACKS[:6]


_WRITER = """
import sys
from mailbackup.errors import KeyExists
from mailbackup.model.ids import entry_key
from mailbackup.model.options import StoreConfig
from mailbackup.stores.borg.store import open_borg
url, borg, work, name = sys.argv[1:]
store = open_borg(StoreConfig(name="box", url=url, borg_path=borg), create=False, work_dir=work)
for seq in range(1, 7):
    try:
        store.put(entry_key(seq), name.encode())
    except KeyExists:
        continue
    print(seq, flush=True)
"""


def test_two_processes_that_race_have_one_winner_for_each_entry(bench: Bench) -> None:
    place = bench.place()
    writers = {
        name: subprocess.Popen(
            [sys.executable, "-c", _WRITER, place.url, BORG, str(bench.top / name), name], stdout=subprocess.PIPE, text=True
        )
        for name in ("anna", "bert")
    }
    won = {name: writer.communicate(timeout=300)[0].split() for name, writer in writers.items()}
    assert sorted(won["anna"] + won["bert"], key=int) == [str(seq) for seq in range(1, 7)]
    store = bench.open(place)
    for name, found in won.items():
        assert all(store.get(entry_key(int(seq)), LIMIT) == name.encode() for seq in found)


def test_a_lost_answer_is_no_conflict_and_ships_nothing_twice(bench: Bench, calls: Recorder) -> None:
    place = bench.place()
    store = bench.open(place)
    calls.lose = 1
    store.put(KEY, b"pack")
    store.put(entry_key(1), b"entry")
    assert borg(bench, "list", "--short", place.path) == "mailbackup-0000000001\n"
    assert store.get(KEY, LIMIT) == b"pack"


def test_what_waits_survives_a_failure_and_the_failed_put_does_not(bench: Bench) -> None:
    place = bench.place(patience=0)
    store = bench.open(place)
    store.put(KEY, b"pack")
    real, store.borg._program = store.borg._program, "/bin/false"
    with pytest.raises(StoreRefused, match="borg create"):
        store.put(entry_key(1), b"entry")
    store.borg._program = real
    assert keys(store) == [KEY]
    store.put(entry_key(1), b"another")
    assert keys(bench.open(place)) == sorted([KEY, entry_key(1)])


def test_a_batch_whose_answer_was_lost_for_good_is_not_shipped_again(bench: Bench, calls: Recorder) -> None:
    place = bench.place(patience=0)
    store = bench.open(place)
    store.put(KEY, b"pack")
    calls.lose = 1
    with pytest.raises(StoreUnavailable):
        store.flush()
    assert keys(store) == [KEY]  # has looked: the next number is another one now
    store.flush()
    store.put(OTHER, b"more")
    store.flush()
    assert borg(bench, "list", "--short", place.path).split() == ["mailbackup-0000000001", "mailbackup-0000000002"]
    assert keys(bench.open(place)) == [KEY, OTHER]


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "url",
    [
        *("borg://relative", "borg://", "borg+ssh://", "borg+ssh://host", "borg+ssh://-oProxyCommand=x/p", "borg+ssh://-x@host/p"),
        *("borg:///a::b", "borg:///a/{now}", "borg+ssh://host:x/p", "borg+ssh://ho st/p"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigInvalid, match="cellar"):
        repository_of(StoreConfig(name="cellar", url=url))


@pytest.mark.parametrize(
    ("url", "repository"),
    [
        ("borg:///srv/mx%201", "/srv/mx 1"),
        ("borg+ssh://u1@box.example.net:23/./mx1", "ssh://u1@box.example.net:23/./mx1"),
        ("borg+ssh://box/~/mx1", "ssh://box/~/mx1"),
        ("borg+ssh://u@[2001:db8::1]:22/srv/mx1", "ssh://u@[2001:db8::1]:22/srv/mx1"),
    ],
)
def test_addresses_as_borg_wants_them(url: str, repository: str) -> None:
    assert repository_of(StoreConfig(name="cellar", url=url)) == repository


def test_a_repository_is_made_only_when_that_is_asked_for(bench: Bench) -> None:
    place = StoreConfig(name="box", url=f"borg://{bench.top}/deep/new", borg_path=BORG, patience=1)
    with pytest.raises(StoreUnavailable, match="no Borg repository"):
        bench.open(place)
    from mailbackup.stores.locate import open_store

    for _ in range(2):
        store = open_store(place, create=True)
        assert isinstance(store, BorgStore)
        store.put(VAULT, b"{}") if not keys(store) else None
        store.flush()
        store.close()
    assert keys(bench.open(place)) == [VAULT]


def test_a_closed_store_leaves_no_spool(bench: Bench) -> None:
    place = bench.place()
    store = bench.open(place, "work")
    store.put(KEY, b"x")
    assert [name for name in os.listdir(bench.top / "work") if name.startswith("spool")]
    store.close()
    assert not [name for name in os.listdir(bench.top / "work") if name.startswith("spool")]
    with pytest.raises(ObjectMissing):
        bench.open(place, "work").get(ObjectKey(KEY), LIMIT)
