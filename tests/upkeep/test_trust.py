"""Who may sign, a rebuilt host that goes on, further recipients: on real vaults."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec.structs import replace as with_other

from mailbackup import access, app, config, trust
from mailbackup.cli.program import main
from mailbackup.crypto.age import generate_identity
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import (
    AlreadyExists,
    Busy,
    ChainBroken,
    ConflictError,
    IdentityMissing,
    KeyMalformed,
    MailbackupError,
    NotFound,
    SafetyRefusal,
    StoreUnavailable,
    UsageError,
    WrongIdentity,
)
from mailbackup.host import run_lock
from mailbackup.kit import load_signing_key
from mailbackup.model.finding import FindingKind
from mailbackup.model.ids import LEDGER_PAGE, PublicKey, entry_key
from mailbackup.model.ledger import Grant
from mailbackup.stores.base import Store
from mailbackup.testing.faults import FailOnce
from mailbackup.upkeep import trust as ledger
from mailbackup.upkeep.acts import add_act, read_book
from mailbackup.vault import rebuild as rebuilding
from mailbackup.vault.chain import find_head, trust_within
from tests.cli.schema import problems
from tests.vault.past import Past, letter
from tests.vault.test_conflict import meanwhile
from tests.world import World, bases_in

SCHEMAS = Path(__file__).parents[2] / "docs/reference/schemas"
PRUNE, DRILL = SigningKey.generate(), SigningKey.generate()


@pytest.fixture
def world(tmp_path: Path) -> Past:
    """A host with two snapshots, entries 2 and 3."""
    made = Past(tmp_path)
    made.first_day()
    made.backup()
    made.second_day()
    made.backup()
    return made


def pin(world: World, signer: SigningKey, seq: int = 2, number: int = 1) -> None:
    """An act of someone in one of the stores."""
    with contextlib.closing(world.store(number)) as store:
        add_act(store, world.context.anchors_of(store.name), signer, "pin", lambda _: {"snapshots": (seq,)})


def head(world: World, number: int = 1) -> int:
    """The last entry of a store."""
    with contextlib.closing(world.store(number)) as store:
        return find_head(store)


def entry(world: Past, seq: int) -> dict[str, object]:
    """An entry, unchecked."""
    found: dict[str, object] = json.loads(world.raw(entry_key(seq)).partition(b"\n")[0])
    return found


def rebuilt(world: Past, name: str = "rebuilt") -> Past:
    """Another machine with the same sources and configuration, and neither key nor state."""
    twin = copy.copy(world)
    os.makedirs(f"{world.root}/{name}")
    twin.config_path, twin.state = f"{world.root}/{name}/mailbackup.toml", f"{world.root}/{name}/state"
    shutil.copy(world.config_path, twin.config_path)
    twin._config = None
    return twin


def adopt(world: Past, **options: bool) -> None:
    """`vault adopt`, as its command does it."""
    options_given = ["--new-key"] if options.get("new_key") else []
    assert main(["--config", world.config_path, "--state", world.state, "--identity", world.kit, "vault", "adopt", *options_given]) == 0
    world._config = None


# ---------------------------------------------------------------- add, revoke, list


def test_a_prune_key_is_named_and_backups_go_on(world: Past) -> None:
    done = trust.add_signer(world.context, "prune", PRUNE.public)
    assert (done.seq, done.stores, done.without) == (4, ("local",), {})
    assert trust.add_signer(world.context, "prune", PRUNE.public).seq is None
    pin(world, PRUNE)
    assert world.backup().outcome in ("complete", "explained")
    assert [(row.role, row.key, row.since, row.until) for row in trust.signers(world.context)] == [
        ("writer", world.context.config.trust.writer, 1, None),
        ("prune", PRUNE.public, 4, None),
    ]
    world.check()


def test_what_a_dismissed_key_signed_stays_and_what_it_signs_is_refused(world: Past) -> None:
    trust.add_signer(world.context, "prune", PRUNE.public)
    pin(world, PRUNE)
    done = trust.revoke_signer(world.context, "prune", PRUNE.public)
    with contextlib.closing(world.store()) as store:
        book = read_book(store, world.context.anchors)
        assert list(book.pinned) == [2]
        assert done.seq is not None
        assert entry(world, done.seq)["acts"] == [{"chain": book.chain, "seq": 1}]
    assert world.backup().outcome in ("complete", "explained")
    pin(world, PRUNE, 3)  # it has the rights of the store still
    with contextlib.closing(world.store()) as store, pytest.raises(ChainBroken, match="not signed by someone trusted"):
        read_book(store, world.context.anchors)
    assert [row.until for row in trust.signers(world.context)] == [None, 5]
    assert trust.revoke_signer(world.context, "prune", PRUNE.public).seq is None


def test_a_key_whose_acts_are_broken_can_be_dismissed(world: Past) -> None:
    trust.add_signer(world.context, "prune", PRUNE.public)
    pin(world, PRUNE)
    Path(world.vault, "acts").joinpath("0000000002.json").write_bytes(b"rubbish\n")
    done = trust.revoke_signer(world.context, "prune", PRUNE.public)
    assert done.seq is not None
    seen = entry(world, done.seq)["acts"]
    assert isinstance(seen, list)
    assert [row["seq"] for row in seen] == [1]


@pytest.mark.parametrize("role", ["prune", "drill"])
def test_a_writer_is_nothing_else(world: Past, role: trust.Role) -> None:
    writer = world.context.config.trust.writer
    with pytest.raises(UsageError, match="must not be anything else"):
        trust.add_signer(world.context, role, writer)
    trust.add_signer(world.context, role, PRUNE.public)
    with pytest.raises(UsageError, match="must not be anything else"):
        trust.add_signer(world.context, "writer", PRUNE.public, sure=True)
    other: trust.Role = "prune" if role == "drill" else "drill"
    assert trust.add_signer(world.context, other, PRUNE.public).seq == 5  # one machine may do both
    with pytest.raises(UsageError, match="admin key"):
        trust.add_signer(world.context, role, world.context.config.trust.admin)
    with pytest.raises(UsageError, match="not a public signing key"):
        trust.add_signer(world.context, role, PRUNE.public[:20])


def test_the_only_writer_goes_only_if_that_is_meant(world: Past) -> None:
    writer = world.context.config.trust.writer
    with pytest.raises(SafetyRefusal) as refused:
        trust.revoke_signer(world.context, "writer", writer)
    assert refused.value.exit_status == 8
    with pytest.raises(SafetyRefusal):
        trust.add_signer(world.context, "writer", PRUNE.public)
    with pytest.raises(NotFound):
        trust.revoke_signer(world.context, "prune", DRILL.public)
    assert head(world) == 3
    trust.revoke_signer(world.context, "writer", writer, sure=True)
    with pytest.raises(ConflictError, match="no longer the writer"):
        world.backup()
    trust.add_signer(world.context, "writer", writer)
    assert world.backup().outcome in ("complete", "explained")
    world.lose_state()
    assert world.backup().seq == 7
    world.check()


def test_a_host_that_is_named_writer_elsewhere(world: Past) -> None:
    trust.add_signer(world.context, "writer", PRUNE.public, sure=True)
    assert [(row.role, row.until) for row in trust.signers(world.context)] == [("writer", 4), ("writer", None)]
    with pytest.raises(ConflictError):
        world.backup()


def test_two_writers_at_once_are_a_conflict_for_ever(world: Past) -> None:
    """Both were trusted, so the chain is sound; but this host's live set is not what the other one counted on."""
    other = SigningKey.generate()
    world.put_entry(world.admin, type="trust", grant=(Grant("writer", other.public),))
    world.put_entry(other, type="packs")
    world.put_entry(world.admin, type="trust", revoke=(Grant("writer", other.public),))
    with pytest.raises(ConflictError, match="another writer"):
        world.backup()


def test_a_vault_that_comes_back_to_its_host(world: Past) -> None:
    """What another host wrote meanwhile is history, also for the one that was the writer before."""
    writer, new = world.context.config.trust.writer, rebuilt(world)
    adopt(new)
    new.deliver("80.x:2,", letter("x"))
    assert new.backup().seq == 5
    assert trust.add_signer(world.context, "writer", writer, sure=True).seq == 6
    assert FindingKind.STATE_OLD in [finding.kind for finding in world.backup().findings]
    world.check_clean()
    world.check_restores(7)
    with pytest.raises(ConflictError):
        new.backup()


def test_only_the_kit_changes_anything(world: Past, tmp_path: Path) -> None:
    bare = tmp_path / "bare.txt"
    bare.write_text(f"{generate_identity().secret}\n")
    before = world.objects()
    for identity, error in ((str(bare), KeyMalformed), (None, IdentityMissing)):
        context = replace(world.context, identity_file=identity)
        for act in (
            lambda context=context: trust.add_signer(context, "prune", PRUNE.public),
            lambda context=context: trust.revoke_signer(context, "writer", world.context.config.trust.writer, sure=True),
            lambda context=context: trust.adopt(context),
            lambda context=context: trust.rewrap(context),
        ):
            with pytest.raises(error) as refused:
                act()
            assert refused.value.exit_status == 7
    assert world.objects() == before


def test_no_run_of_this_host_at_the_same_time(world: Past) -> None:
    with run_lock(f"{world.state}/lock"), pytest.raises(Busy):
        trust.add_signer(world.context, "prune", PRUNE.public)


def test_from_a_machine_without_a_state(world: Past, tmp_path: Path) -> None:
    away = replace(world.context, state_dir=str(tmp_path / "nothing"))
    assert trust.add_signer(away, "prune", PRUNE.public).seq == 4
    assert not (tmp_path / "nothing").exists()


def test_the_writer_comes_first(world: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that gets in between is no conflict: the admin's follows it."""
    made, real = [], ledger.standing

    def standing(store: Store, anchors: object) -> ledger.Standing:
        found = real(store, anchors)  # type: ignore[arg-type]
        if not made:
            made.append(world.backup(accept_shrink=True))
        return found

    monkeypatch.setattr(ledger, "standing", standing)
    away = replace(world.context, state_dir=f"{world.root}/nothing")
    assert trust.add_signer(away, "prune", PRUNE.public).seq == 5
    assert world.backup().seq == 6
    world.check()


def test_the_admin_comes_first(world: Past) -> None:
    """The run whose place was taken stops; the next one follows the admin's entry, and waits for nothing."""
    away = replace(world.context, state_dir=f"{world.root}/nothing")
    world.deliver("40.later:2,", letter("later", b"l" * 50_000))
    meanwhile(world, lambda: trust.add_signer(away, "prune", PRUNE.public))
    with pytest.raises(ConflictError, match="by the admin"):
        world.backup()
    world.store_hook = None
    result = world.backup()
    assert result.seq == 5
    world.remember()
    world.check()


# ---------------------------------------------------------------- several stores


@pytest.fixture
def two(tmp_path: Path) -> World:
    """A host with two stores."""
    made = World(tmp_path, stores=2)
    made.deliver("1.a:2,S", letter("one"))
    made.backup()
    return made


def hide(world: World, number: int) -> None:
    shutil.move(world.vault if number == 1 else f"{world.vault}-{number}", f"{world.root}/away-{number}")


def bring_back(world: World, number: int) -> None:
    shutil.move(f"{world.root}/away-{number}", world.vault if number == 1 else f"{world.vault}-{number}")


def test_every_store_gets_the_same(two: World) -> None:
    assert trust.add_signer(two.context, "prune", PRUNE.public).stores == ("local", "local-2")
    first, second = (Path(root, entry_key(3)).read_bytes() for root in (two.vault, f"{two.vault}-2"))
    assert first == second
    assert two.backup().seq == 4


@pytest.mark.parametrize("number", [1, 2])
def test_a_store_that_is_away_gets_it_later(two: World, number: int) -> None:
    hide(two, number)
    done = trust.add_signer(two.context, "prune", PRUNE.public)
    assert (len(done.stores), list(done.without)) == (1, ["local" if number == 1 else "local-2"])
    bring_back(two, number)
    done = trust.add_signer(two.context, "drill", DRILL.public)  # goes to the store that stands at the head
    assert (done.seq, len(done.stores)) == (4, 1)
    result = two.backup()
    assert [store.outcome for store in result.stores] == ["current", "current"]
    assert two.verify().outcome == "clean"


def test_no_store_at_all(two: World) -> None:
    hide(two, 1)
    hide(two, 2)
    with pytest.raises(MailbackupError) as failed:
        trust.add_signer(two.context, "prune", PRUNE.public)
    assert failed.value.exit_status == 5


def test_a_store_that_fails_in_between_gets_it_later(two: World) -> None:
    context = two.context
    real, count = access.open_store, iter(range(9))
    access.open_store = lambda *args, **options: FailOnce(  # type: ignore[assignment]
        real(*args, **options), "put", "ledger/*" if next(count) == 1 else "nothing", StoreUnavailable("gone"), after=False
    )
    try:
        done = trust.add_signer(context, "prune", PRUNE.public)
    finally:
        access.open_store = real
    assert (done.stores, done.without) == (("local",), {"local-2": "gone"})
    assert trust.add_signer(context, "prune", PRUNE.public).seq is None
    assert [store.outcome for store in two.backup().stores] == ["current", "current"]


def test_acts_of_a_store_that_is_away_are_not_given_up(two: World) -> None:
    trust.add_signer(two.context, "prune", PRUNE.public)
    pin(two, PRUNE, number=2)
    hide(two, 2)
    with pytest.raises(MailbackupError, match="would count no more"):
        trust.revoke_signer(two.context, "prune", PRUNE.public)
    bring_back(two, 2)
    trust.revoke_signer(two.context, "prune", PRUNE.public)
    with contextlib.closing(two.store(2)) as store:
        assert list(read_book(store, two.context.anchors_of("local-2")).pinned) == [2]


# ---------------------------------------------------------------- adopt


def test_a_rebuilt_host_goes_on(world: Past) -> None:
    world.deliver("30.big:2,S", b"Subject: big\n\n" + os.urandom(500_000))
    world.backup()
    new = rebuilt(world)
    size = sum(os.path.getsize(pack) for pack in world.packs())
    adopt(new)
    made = load_signing_key(access.writer_key_path(new.config_path)).public
    assert new.context.config.trust.writer == made != world.context.config.trust.writer
    assert os.stat(access.writer_key_path(new.config_path)).st_mode & 0o777 == 0o600
    result = new.backup()
    assert result.seq == 6
    assert FindingKind.STATE_NEW not in [finding.kind for finding in result.findings]
    assert sum(os.path.getsize(pack) for pack in world.packs()) - size < size / 4  # trees and listings, no mail
    for _ in range(2):
        with pytest.raises(ConflictError, match="no longer the writer") as refused:
            world.backup()
        assert refused.value.exit_status == 6
    assert head(world) == 6
    world.lose_state()
    with pytest.raises(ConflictError, match="no longer the writer"):
        world.backup()
    for seq in new.committed():
        new.check_restores(seq)
    new.check_clean()
    new.deliver("50.new:2,", letter("after"))
    assert new.backup().outcome == "complete"
    new.lose_state()
    assert new.backup().seq == 8  # the entries of the old writer are its history
    new.check_clean()


def test_the_configuration_comes_from_the_snapshot(world: Past, tmp_path: Path) -> None:
    """What the kit gives is good for reading only: backups with it would lose every mailbox."""
    reading = tmp_path / "restore.toml"
    world.workers = 1
    world.backup()
    shutil.move(world.vault, f"{world.root}/elsewhere")
    text = Path(world.config_path).read_text()
    text = text.replace(config.file_url(world.vault), config.file_url(f"{world.root}/elsewhere"))
    reading.write_text(text[: text.index("[[mail]]")] + '[[directory]]\npath = "/etc"\n')
    target = tmp_path / "etc" / "mailbackup.toml"
    args = ["--config", str(reading), "--state", f"{world.root}/new-state", "--identity", world.kit, "vault", "adopt", "--as", str(target)]
    for _ in range(2):
        assert main(args) == 0
    made = config.load(str(target))[0]
    assert (made.mail, made.directories) == (world.context.config.mail, world.context.config.directories)
    assert made.stores[0].url == config.file_url(f"{world.root}/elsewhere")
    new = copy.copy(world)
    new.config_path, new.state, new.vault, new._config = str(target), f"{world.root}/new-state", f"{world.root}/elsewhere", None
    assert new.backup().seq == 6
    new.check_restores(6)
    target.write_text(target.read_text().replace(made.trust.vault, "0" * 32))
    assert main(args) == 2


def test_adopt_without_a_state_that_could_be_rebuilt(tmp_path: Path) -> None:
    """No snapshot yet, and the key lost before the first."""
    made = Past(tmp_path)
    made.first_day()
    new = rebuilt(made)
    adopt(new)
    assert new.backup().seq == 3
    new.check()


def test_adopt_twice_changes_nothing(world: Past) -> None:
    new = rebuilt(world)
    adopt(new)
    before = (Path(new.config_path).read_bytes(), head(new))
    adopt(new)
    assert (Path(new.config_path).read_bytes(), head(new)) == before


@pytest.mark.parametrize("step", ["key", "entry", "configuration"])
def test_adopt_after_a_kill(world: Past, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    new = rebuilt(world)

    class Killed(BaseException):
        pass

    def kill(*_args: object, **_options: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if step == "key":
            patch.setattr(ledger, "_put", kill)
        elif step == "entry":
            patch.setattr(trust, "set_writer", kill)
        else:
            patch.setattr(rebuilding, "recount", kill)  # the ledger was followed, and the trees are not there yet
        adopt(new)
    key = Path(access.writer_key_path(new.config_path)).read_bytes()
    adopt(new)
    assert Path(access.writer_key_path(new.config_path)).read_bytes() == key
    assert head(new) == 4
    result = new.backup()
    assert FindingKind.STATE_NEW not in [finding.kind for finding in result.findings]
    new.check_clean()


def test_an_old_key_is_not_taken_up_again(world: Past) -> None:
    adopt(rebuilt(world))
    with pytest.raises(AlreadyExists, match="dismissed"):
        trust.adopt(world.context)
    adopt(world, new_key=True)
    assert world.backup().outcome in ("complete", "explained")
    assert len([name for name in os.listdir(world.root) if ".key.old-" in name]) == 1


def test_a_key_in_wrong_hands_is_replaced(world: Past) -> None:
    old = world.context.config.trust.writer
    adopt(world, new_key=True)
    assert world.context.config.trust.writer != old
    assert world.backup().outcome in ("complete", "explained")
    world.check()


def test_a_host_that_waits_to_write_is_refused_as_well(world: Past) -> None:
    """Its entry is fixed in its state, and was never put."""
    world.deliver("60.x:2,", letter("x"))
    world.store_hook = lambda store: FailOnce(store, "put", "ledger/*", StoreUnavailable("no answer"), after=False)
    with pytest.raises(StoreUnavailable):
        world.backup()
    world.store_hook = None
    adopt(rebuilt(world))
    for _ in range(2):
        with pytest.raises(ConflictError, match="no longer the writer"):
            world.backup()


def test_adopt_with_one_of_two_stores(two: World) -> None:
    hide(two, 1)
    twin = rebuilt(two)  # type: ignore[arg-type]
    adopt(twin)
    bring_back(two, 1)
    result = twin.backup()
    assert [store.outcome for store in result.stores] == ["current", "current"]
    assert twin.verify().outcome == "clean"
    with pytest.raises(ConflictError):
        two.backup()


@pytest.mark.parametrize(
    "text",
    [
        '[trust]\n# the writer = "x"\nvault = "V"\nadmin = "A"\nwriter   =   \'W\' # this host\n\n[host]\nname = "mx"\n',
        '[host]\r\nname = "writer = W"\r\n[trust]\r\nwriter = "W"\r\nadmin = "A"\r\nvault = "V"\r\n',
    ],
)
def test_only_the_writer_of_a_configuration_changes(tmp_path: Path, text: str) -> None:
    key = generate_identity()
    rest = f'\n[[recipient]]\nrole = "recovery"\nkey = "{key.recipient}"\n\n[[store]]\nname = "local"\nurl = "file:///srv/vault"\n'
    rest += '\n[[directory]]\npath = "/etc"\n'
    text = text.replace('"V"', f'"{"0" * 32}"').replace('"A"', f'"{"a" * 64}"').replace("W", "b" * 64) + rest
    path, real = tmp_path / "mailbackup.toml", tmp_path / "real.toml"
    real.write_bytes(text.encode())
    real.chmod(0o640)
    path.symlink_to(real)
    trust.set_writer(str(path), PublicKey("c" * 64))
    last = text.rindex("b" * 64)
    assert real.read_bytes().decode() == text[:last] + "c" * 64 + text[last + 64 :]
    assert real.stat().st_mode & 0o777 == 0o640
    assert path.is_symlink()
    assert config.load(str(path))[0].trust.writer == "c" * 64


# ---------------------------------------------------------------- rewrap


def with_recipients(world: World, *keys: str) -> access.Context:
    rows = tuple(with_other(world.context.config.recipients[0], key=key) for key in keys)
    return replace(world.context, config=with_other(world.context.config, recipients=rows))


def test_a_second_identity_opens_what_is_older(world: Past, tmp_path: Path) -> None:
    second = generate_identity()
    file = tmp_path / "second.txt"
    file.write_text(f"{second.secret}\n")
    context = with_recipients(world, world.context.config.recipients[0].key, second.recipient)
    reading = replace(context, identity_file=str(file))
    with pytest.raises(WrongIdentity):
        app.restore_mailbox(reading, "alice@example.org", to=str(tmp_path / "no"), at="2")
    done = trust.rewrap(context)
    assert (done.rewrapped, done.already, done.unopened, done.seq) == ((1,), (), (), 4)
    app.restore_mailbox(reading, "alice@example.org", to=str(tmp_path / "old"), at="2")
    app.restore_mailbox(context, "alice@example.org", to=str(tmp_path / "with-kit"), at="2")
    assert bases_in(str(tmp_path / "old")) == bases_in(str(tmp_path / "with-kit")) != {}
    again = trust.rewrap(context)
    assert (again.rewrapped, again.already, again.seq) == ((), (1,), None)
    assert app.verify(world.context, decrypt=True).outcome == "clean"
    app.backup(context)  # a new epoch, since the recipients changed
    assert [key for key in world.objects() if key.startswith("keys/")] == [
        f"keys/000000000{n}.age" for n in ("1-0000000001", "1-0000000002", "2-0000000001")
    ]
    app.restore_mailbox(reading, "alice@example.org", to=str(tmp_path / "new"))
    assert bases_in(world.maildir()).items() <= bases_in(str(tmp_path / "new")).items()


def test_rewrap_after_a_kill(world: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key objects were put, and the entry that names them was not: further ones are made."""
    context = with_recipients(world, world.context.config.recipients[0].key, generate_identity().recipient)
    real = ledger._put_same

    def put(store: Store, key: str, data: bytes) -> bool:
        if key.startswith("ledger/"):
            raise KeyboardInterrupt
        return real(store, key, data)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ledger, "_put_same", put)
        trust.rewrap(context)
    assert trust.rewrap(context).seq == 4
    assert [row["key"] for row in entry(world, 4)["rewrapped"]] == ["keys/0000000001-0000000003.age"]  # type: ignore[attr-defined]
    assert world.verify().outcome == "clean"
    assert world.backup().outcome in ("complete", "explained")


def test_a_forged_further_key_is_not_passed_on(world: Past) -> None:
    """Whoever can write to the store cannot make the kit's holder seal anything else than the epoch's own key."""
    recipient = world.context.config.recipients[0].key
    Path(world.vault, "keys", "0000000001-0000000001.age").unlink()
    with pytest.raises(MailbackupError) as failed:
        trust.rewrap(with_recipients(world, recipient, generate_identity().recipient))
    assert failed.value.exit_status == 4
    assert head(world) == 3


# ---------------------------------------------------------------- the beginning of a page


@pytest.mark.parametrize("what", ["trust", "adopt"])
def test_a_trust_entry_that_begins_a_page(world: Past, what: str) -> None:
    """It carries the live set and the trust entries before it, as any first entry of a page does."""
    trust.add_signer(world.context, "drill", DRILL.public)
    writer = access.writer_key(world.context)
    world.put_entry(writer, type="packs", times=LEDGER_PAGE - 1 - head(world))
    host = world
    if what == "trust":
        assert trust.add_signer(world.context, "prune", PRUNE.public).seq == LEDGER_PAGE
    else:
        host = rebuilt(world)
        adopt(host)
        assert head(host) == LEDGER_PAGE
    found = entry(host, LEDGER_PAGE)
    assert len(found["trust"]) == 2  # type: ignore[arg-type]
    assert "live" in found["lists"]  # type: ignore[operator]
    host.deliver("70.x:2,", letter("x"))
    assert host.backup().seq == LEDGER_PAGE + 1
    with contextlib.closing(host.store()) as store:
        roles = trust_within(store, head(host), host.context.anchors).roles
        assert {key for key, held in roles.items() if held} == {
            host.context.config.trust.writer, DRILL.public, *([PRUNE.public] if what == "trust" else [])
        }  # fmt: skip
    host.lose_state()
    host.deliver("71.x:2,", letter("y"))
    assert host.backup().seq == LEDGER_PAGE + 2  # from the page on: nobody knows the entries before
    host.check_clean()
    host.check_restores(LEDGER_PAGE + 2)
    host.check_restores(2)
    if what == "trust":
        pin(world, PRUNE)
        assert host.backup().outcome == "complete"
    done = subprocess.run(
        [sys.executable, f"{host.vault}/rescue-1.py", "--vault", host.vault, "--identity", host.kit, "--list"],
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- the command line


def test_the_commands(world: Past, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    def run(*args: str, status: int = 0) -> dict[str, object]:
        assert main(["--json", "--config", world.config_path, "--state", world.state, *args]) == status
        found: dict[str, object] = json.loads(capsysbinary.readouterr().out)
        words = [word for word in ("key", "new", "rewrap", "vault", "trust", "add", "revoke", "list", "adopt") if word in args]
        if status == 0:
            assert problems(found, json.loads((SCHEMAS / f"{'-'.join(words)}-v1.json").read_text())) == []
        return found

    path = tmp_path / "prune.key"
    public = str(run("key", "new", "--out", str(path))["public"])
    assert load_signing_key(str(path)).public == public
    assert path.stat().st_mode & 0o777 == 0o600
    run("key", "new", "--out", str(path), status=2)
    run("vault", "trust", "add", "prune", public, status=7)
    assert run("vault", "trust", "add", "prune", public, "--identity", world.kit)["seq"] == 4
    signers = run("vault", "trust", "list")["signers"]
    assert [row["role"] for row in signers] == ["writer", "prune"]  # type: ignore[attr-defined]
    assert run("vault", "trust", "revoke", "prune", public, "--identity", world.kit)["seq"] == 5
    assert run("key", "rewrap", "--identity", world.kit)["rewrapped"] == [1]
    assert run("vault", "adopt", "--identity", world.kit)["seq"] is None
    run("vault", "trust", "revoke", "writer", world.context.config.trust.writer, "--identity", world.kit, status=8)
