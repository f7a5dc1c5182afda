"""Vaults that someone with the store in hand changed: no command believes them, and none writes to them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from mailbackup import app, kit
from mailbackup.content.block import seal_block
from mailbackup.crypto.age import AgeSealer
from mailbackup.crypto.signing import SigningKey, seal_line
from mailbackup.errors import AnchorMismatch, ChainBroken, ConflictError, MailbackupError, NotFound, RecordInvalid
from mailbackup.model import codec
from mailbackup.model.ids import LEDGER_PAGE, act_key, digest, entry_key, snapshot_key
from mailbackup.model.ledger import Act, PackPart
from mailbackup.vault.chain import Trust, find_head, read_acts
from tests.craft import admin_key, append, head_of, parsed, put_raw, raw_entry, reading, signed, trust, writer_key
from tests.world import World, messages_in, tree_of

OTHER = SigningKey.generate()


def lived(root: Path) -> World:
    """A vault with three snapshots: one message more in each."""
    world = World(root)
    for number in range(3):
        world.deliver(f"{number}.m:2,S", b"Subject: %d\n\nbody\n" % number)
        world.settle()
        assert world.backup().outcome == "complete"
    return world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return lived(tmp_path / "host")


# ---------------------------------------------------------------- what the commands say


def restores(world: World, at: str = "latest") -> type[MailbackupError] | str:
    """What a restore says. Asserts that what was restored, if anything, is what the source held then."""
    target = f"{world.root}/restored"
    shutil.rmtree(target, ignore_errors=True)
    try:
        result = world.restore("restored", at=at)
    except MailbackupError as error:
        assert not os.path.exists(target)
        return type(error)
    held = messages_in(world.maildir())
    assert set(messages_in(target).items()) <= set(held.items())
    assert result.outcome == "complete"
    return "fine"


def says(command: Callable[[], Any]) -> type[MailbackupError] | str:
    """The class of what a command raises, else its outcome."""
    try:
        result = command()
    except MailbackupError as error:
        return type(error)
    return str(getattr(result, "outcome", "fine"))


def answers(world: World) -> dict[str, type[MailbackupError] | str]:
    """What each command says of the vault. None changes it, but a backup that finds nothing wrong, and the record of an audit that did."""
    before = without_acts(world)
    found = {
        "verify": says(world.verify),
        "decrypt": says(lambda: world.verify(decrypt=True)),
        "snapshots": says(lambda: app.snapshots(world.context)),
        "restore": restores(world),
    }
    assert without_acts(world) == before
    found["backup"] = says(world.backup)
    assert {answer.exit_status for answer in found.values() if isinstance(answer, type)} <= {4, 6, 7}
    if isinstance(found["backup"], type):
        assert without_acts(world) == before
    return found


def without_acts(world: World) -> dict[str, Any]:
    """Everything in the vault but its acts."""
    return {path: what for path, what in tree_of(world.vault).items() if path.partition("/")[0] not in (".", ".tmp", "acts")}


def refusals(error: type[MailbackupError], **others: type[MailbackupError] | str) -> dict[str, type[MailbackupError] | str]:
    """Every command refuses; `verify` names what it found."""
    return {"verify": "damaged", "decrypt": "damaged", "snapshots": error, "restore": error, "backup": error} | others


def entry(world: World, seq: int, key: SigningKey | None = None, **members: Any) -> bytes:
    """An entry of the vault with other members, signed by the writer or `key`."""
    return signed(replace(parsed(raw_entry(world, seq)), **members), key or writer_key(world))


def snapshot_of(world: World) -> dict[str, Any]:
    """A snapshot that fits the next entry: anyone can seal one, since the recipient is public."""
    seq = head_of(world) + 1
    with reading(world) as reader:
        newest = next(link for link in reader.snapshots())
        content = codec.encode(replace(reader.snapshot(newest), seq=seq))
        recipient = next(row.recipient for link in reader.links() for row in link.entry.epochs)
    sealed = seal_block(AgeSealer(recipient), content, 3)
    key = snapshot_key(seq, digest(sealed))
    put_raw(world, key, sealed)
    return {
        "type": "snapshot",
        "snapshot": replace(newest.entry.snapshot, key=key, sha256=digest(sealed), size=len(sealed)),
        "outcome": "complete",
    }


def test_an_honest_vault(world: World):
    assert answers(world) == {"verify": "clean", "decrypt": "clean", "snapshots": "fine", "restore": "fine", "backup": "complete"}


# ---------------------------------------------------------------- a new entry at the end


def test_an_entry_of_another_key(world: World):
    append(world, OTHER, **snapshot_of(world))
    assert answers(world) == refusals(ChainBroken)


def test_the_same_entry_of_the_writer(world: World):
    """What the others here are refused for is who signed them, nothing else. The host itself refuses no entry of its own key."""
    append(world, writer_key(world), **snapshot_of(world))
    assert answers(world) == {"verify": "clean", "decrypt": "clean", "snapshots": "fine", "restore": "fine", "backup": "explained"}


def test_a_signature_of_another_key(world: World):
    """The entry names the writer, but somebody else signed it."""
    seq = append(world, OTHER, **snapshot_of(world))
    put_raw(world, entry_key(seq), seal_line(codec.encode(replace(parsed(raw_entry(world, seq)), signer=writer_key(world).public)), OTHER))
    assert answers(world) == refusals(ChainBroken)


def test_a_trust_entry_that_the_admin_did_not_sign(world: World):
    append(world, writer_key(world), type="trust", grant=())
    assert answers(world) == refusals(ChainBroken)


@pytest.mark.parametrize("gap", [0, 1])
def test_an_entry_of_a_dismissed_writer(world: World, gap: int):
    """The dismissed writer adds a snapshot; `gap` entries of the rightful writer lie behind it."""
    snapshot = dismissed(world)
    for _ in range(gap):
        append(world, OTHER)
    found = answers(world)
    found.pop("restore")
    assert found | {"restore": ChainBroken} == refusals(ChainBroken, backup=ConflictError)
    assert snapshot < head_of(world) + gap + 1


def dismissed(world: World) -> int:
    snapshot_of(world)
    trust(world, revoke=[writer_key(world)], grant=[OTHER])
    return append(world, writer_key(world), **snapshot_of(world))


@pytest.mark.xfail(
    strict=True, reason="known limit (docs/threat-model.md): trust entries inside the newest page are read only when the signer is new"
)
def test_a_restore_from_a_dismissed_writer(world: World):
    dismissed(world)
    assert restores(world) is ChainBroken


def test_a_vault_that_was_handed_over(world: World):
    """Everything is in order, but this host may no longer write."""
    trust(world, revoke=[writer_key(world)], grant=[OTHER])
    assert answers(world) == {"verify": "clean", "decrypt": "clean", "snapshots": "fine", "restore": "fine", "backup": ConflictError}


def test_an_old_entry_under_a_new_number(world: World):
    head = head_of(world)
    put_raw(world, entry_key(head + 1), raw_entry(world, head))
    assert answers(world) == refusals(ChainBroken)


def test_an_entry_of_another_vault(world: World):
    """Our own writer signs it, for a vault of another name."""
    append(world, writer_key(world), vault="0" * 32, **snapshot_of(world))
    assert answers(world) == refusals(ChainBroken)


def test_an_entry_that_follows_another(world: World):
    """Signed by the writer, so its snapshot can be restored; but the ledger is not sound."""
    append(world, writer_key(world), prev=parsed(raw_entry(world, 2)).prev, **snapshot_of(world))
    assert answers(world) == refusals(ChainBroken, restore="fine")


# ---------------------------------------------------------------- inside the chain


def swap_entries(world: World) -> None:
    second, third = raw_entry(world, 2), raw_entry(world, 3)
    put_raw(world, entry_key(2), third)
    put_raw(world, entry_key(3), second)


INSIDE: dict[str, Callable[[World], None]] = {
    "swapped": swap_entries,
    "dropped": lambda world: os.unlink(f"{world.vault}/{entry_key(3)}"),
    "resigned": lambda world: put_raw(world, entry_key(3), entry(world, 3, time="2020-01-01T00:00:00Z")),
    "forged": lambda world: put_raw(world, entry_key(3), entry(world, 3, OTHER)),
}


@pytest.mark.parametrize("change", INSIDE)
def test_an_older_entry_changed(world: World, change: str):
    """The newest snapshot is signed and trusted by itself, so it can be restored; what the ledger says of the past is refused."""
    INSIDE[change](world)
    world.lose_state()
    assert answers(world) == refusals(ChainBroken, restore="fine")


@pytest.mark.parametrize("change", ["swapped", "dropped", "forged"])
def test_the_changed_entry_itself_is_not_restored(world: World, change: str):
    INSIDE[change](world)
    assert restores(world, "3") is ChainBroken


# ---------------------------------------------------------------- an older ledger


def cut(world: World) -> None:
    os.unlink(f"{world.vault}/{entry_key(head_of(world))}")


def test_a_cut_tail_that_the_state_pins(world: World):
    cut(world)
    assert answers(world) == refusals(ChainBroken)


def test_a_cut_tail_that_the_kit_pins(world: World):
    """There is no state any more; only who brings the kit knows."""
    newer = f"{world.root}/newer.txt"
    app.write_kit(world.context, out=newer)
    cut(world)
    world.lose_state()
    with_kit = replaced(world.context, identity_file=newer)
    assert kit.load_identity_file(newer, None).anchors.head[0] == head_of(world) + 1
    for command in (
        lambda: app.restore_mailbox(with_kit, None, to=f"{world.root}/out"),
        lambda: app.restore_mailbox(with_kit, None, to=f"{world.root}/out", at="2"),
        lambda: app.mailboxes(with_kit),
    ):
        assert says(command) is ChainBroken
    assert not os.path.exists(f"{world.root}/out")
    assert app.verify(with_kit, decrypt=True).outcome == "damaged"


@pytest.mark.case("33")
def test_an_old_listing_is_replayed(world: World):
    """The store answers as it did a day ago: newer objects are there for who knows their names, but no list shows them."""
    shutil.copytree(world.vault, f"{world.root}/old")
    world.deliver("9.m:2,S", b"Subject: 9\n\nbody\n")
    world.settle()
    world.backup()
    os.rename(world.vault, f"{world.root}/new")
    os.rename(f"{world.root}/old", world.vault)
    assert answers(world) == refusals(ChainBroken)
    assert restores(world, str(head_of(world))) is ChainBroken


# ---------------------------------------------------------------- another vault


def rewrite_info(world: World, **members: Any) -> None:
    path = f"{world.vault}/vault.json"
    with open(path) as file:
        info = json.load(file) | members
    put_raw(world, "vault.json", json.dumps(info).encode())


@pytest.mark.parametrize("members", [{"vault": "0" * 32}, {"admin": OTHER.public}], ids=["vault", "admin"])
def test_another_vault_json(world: World, members: dict[str, str]):
    """The ledger proves whose it is: who replaces vault.json keeps nobody from a restore. Nothing is written to such a store."""
    rewrite_info(world, **members)
    assert answers(world) == refusals(AnchorMismatch, snapshots="fine", restore="fine")


@pytest.mark.case("31")
def test_another_vault_at_the_same_place(world: World, tmp_path: Path):
    other = lived(tmp_path / "other")
    shutil.rmtree(world.vault)
    shutil.copytree(other.vault, world.vault)
    assert answers(world) == refusals(AnchorMismatch, verify=AnchorMismatch, decrypt=AnchorMismatch)
    world.lose_state()
    assert answers(world) == refusals(AnchorMismatch, verify=AnchorMismatch, decrypt=AnchorMismatch)


@pytest.mark.case("31")
def test_another_ledger_under_our_vault_json(world: World, tmp_path: Path):
    other = lived(tmp_path / "other")
    info = Path(world.vault, "vault.json").read_bytes()
    shutil.rmtree(world.vault)
    shutil.copytree(other.vault, world.vault)
    put_raw(world, "vault.json", info)
    assert answers(world) == refusals(ChainBroken, verify=AnchorMismatch, decrypt=AnchorMismatch)


@pytest.mark.case("31")
def test_a_ledger_that_was_made_anew(world: World):
    """Whoever stole the writer's key makes another past of the same length: the pinned hash tells."""
    head = head_of(world)
    put_raw(world, entry_key(head), entry(world, head, time="2020-01-01T00:00:00Z"))
    assert answers(world) == refusals(ChainBroken)


@pytest.mark.case("32")
def test_a_newer_format(world: World):
    """Its entries cannot be read, and vault.json says why."""
    seq = append(world, writer_key(world))
    line = json.loads(raw_entry(world, seq).split(b"\n")[0]) | {"format": 2}
    put_raw(world, entry_key(seq), seal_line(json.dumps(line).encode(), writer_key(world)))
    rewrite_info(world, format=2)
    assert answers(world) == refusals(AnchorMismatch, decrypt=AnchorMismatch)


@pytest.mark.case("32")
def test_an_entry_of_a_newer_format(world: World):
    seq = append(world, writer_key(world))
    line = json.loads(raw_entry(world, seq).split(b"\n")[0]) | {"format": 2}
    put_raw(world, entry_key(seq), seal_line(json.dumps(line).encode(), writer_key(world)))
    assert answers(world) == refusals(ChainBroken)


def test_no_ledger_at_all(world: World):
    shutil.rmtree(f"{world.vault}/ledger")
    assert find_head(world.store()) == 0
    assert answers(world) == refusals(ChainBroken)


def test_the_admin_may_not_be_replaced_in_the_first_entry(world: World):
    """All entries are made anew under another admin key, with the right vault id."""
    put_raw(world, entry_key(1), entry(world, 1, OTHER))
    world.lose_state()
    assert answers(world) == refusals(ChainBroken, verify=AnchorMismatch, decrypt=AnchorMismatch)
    assert restores(world, str(head_of(world))) is ChainBroken
    assert restores(world, "1") in (ChainBroken, NotFound)
    assert admin_key(world).public != OTHER.public


@pytest.mark.case("32")
def test_a_snapshot_of_a_newer_format(world: World):
    """Well signed; but what is in it this version cannot know."""
    seq = head_of(world) + 1
    members = snapshot_of(world)
    with reading(world) as reader:
        content = json.loads(codec.encode(reader.snapshot(reader.find("latest")))) | {"format": 2, "seq": seq}
        recipient = next(row.recipient for link in reader.links() for row in link.entry.epochs)
    sealed = seal_block(AgeSealer(recipient), json.dumps(content).encode(), 3)
    row = replace(members["snapshot"], key=snapshot_key(seq, digest(sealed)), sha256=digest(sealed), size=len(sealed))
    os.unlink(f"{world.vault}/{members['snapshot'].key}")
    put_raw(world, row.key, sealed)
    append(world, writer_key(world), **members | {"snapshot": row})
    assert restores(world) is RecordInvalid
    assert restores(world, str(seq - 1)) == "fine"
    assert world.verify().outcome == "clean"
    assert world.verify(decrypt=True).outcome == "damaged"


# ---------------------------------------------------------------- whom the admin named, seen by readers without a state


def grow(world: World, key: SigningKey, until: int) -> None:
    """Entries of this writer up to a number; the first of each page repeats all trust entries."""
    last = head_of(world)
    before = raw_entry(world, last)
    lines = [raw.decode() for raw in (raw_entry(world, seq) for seq in range(1, last + 1)) if parsed(raw).type == "trust"]
    template = replace(parsed(before), type="packs", signer=key.public, packs=(), epochs=(), snapshot=None, outcome=None, stops=(), lists=None,
                       grant=(), revoke=(), files={}, trust=())  # fmt: skip
    for seq in range(last + 1, until + 1):
        page = {"trust": tuple(lines)} if seq % LEDGER_PAGE == 0 else {}
        before = signed(replace(template, seq=seq, prev=digest(before), **page), key)
        put_raw(world, entry_key(seq), before)


def test_a_writer_that_was_named_in_the_middle_of_a_page(world: World):
    trust(world, revoke=[writer_key(world)], grant=[OTHER])
    append(world, OTHER)
    append(world, OTHER, **snapshot_of(world))
    world.lose_state()
    assert answers(world) == {"verify": "clean", "decrypt": "clean", "snapshots": "fine", "restore": "fine", "backup": ConflictError}


def test_a_writer_that_was_named_in_an_earlier_page(world: World):
    trust(world, revoke=[writer_key(world)], grant=[OTHER])
    grow(world, OTHER, 257)
    append(world, OTHER, **snapshot_of(world))
    world.lose_state()
    found = answers(world)
    assert found.pop("backup") is ConflictError
    assert found == {"verify": "clean", "decrypt": "clean", "snapshots": "fine", "restore": "fine"}
    assert restores(world, "2") == "fine"


def test_a_writer_that_was_dismissed_in_an_earlier_page(world: World):
    trust(world, revoke=[writer_key(world)], grant=[OTHER])
    grow(world, OTHER, 257)
    seq = append(world, writer_key(world), **snapshot_of(world))
    world.lose_state()
    assert answers(world) == refusals(ChainBroken, backup=ConflictError)
    assert restores(world, str(seq)) is ChainBroken
    assert restores(world, "2") == "fine", "what it wrote before"


def test_a_dismissed_writer_that_makes_a_page_anew(world: World):
    """It leaves its dismissal out of what the page repeats; whoever walks back to the real entries sees it."""
    trust(world, revoke=[writer_key(world)], grant=[OTHER])
    grow(world, OTHER, 255)
    before = raw_entry(world, 255)
    first = replace(parsed(before), seq=256, prev=digest(before), trust=(raw_entry(world, 1).decode(),))
    put_raw(world, entry_key(256), signed(first, writer_key(world)))
    append(world, writer_key(world))
    world.lose_state()
    assert answers(world) == refusals(ChainBroken)


# ---------------------------------------------------------------- acts


def act(world: World, number: int, prev: bytes | None, key: SigningKey, chain: str = "c" * 32, **members: Any) -> bytes:
    """Put an act: by default, that an unknown pack is damaged."""
    vault = parsed(raw_entry(world, 1)).vault
    made = Act(format=1, vault=vault, chain=chain, seq=number, prev=None if prev is None else digest(prev), type="damage",
               time="2026-11-24T02:30:00Z", signer=key.public, packs=(PackPart(id="ab" * 16),))  # fmt: skip
    raw = seal_line(codec.encode(replace(made, **members)), key)
    put_raw(world, act_key(number), raw)
    return raw


def answers_to_acts(world: World) -> tuple[str, set[str], type[MailbackupError] | str]:
    """Acts are for those who write and check; a restore asks for none."""
    before = tree_of(world.vault)
    verified, backed_up = world.verify(), says(world.backup)
    assert restores(world) == "fine"
    if isinstance(backed_up, type):
        assert tree_of(world.vault) == before
    return verified.outcome, {finding.kind for finding in verified.findings}, backed_up


def test_acts_of_the_admin_are_believed(world: World):
    first = act(world, 1, None, admin_key(world))
    act(world, 2, first, admin_key(world))
    assert answers_to_acts(world) == ("damaged", {"object-damaged"}, "complete")


def test_acts_of_who_may_prune_are_believed(world: World):
    trust(world, grant=[OTHER], role="prune")
    act(world, 1, None, OTHER)
    assert answers_to_acts(world) == ("damaged", {"object-damaged"}, "explained")


ACTS: dict[str, Callable[[World], object]] = {
    "of another key": lambda world: act(world, 1, None, OTHER),
    "of the writer": lambda world: act(world, 1, None, writer_key(world)),
    "of another vault": lambda world: act(world, 1, None, admin_key(world), vault="0" * 32),
    "of another number": lambda world: act(world, 1, None, admin_key(world), seq=2),
    "of a newer format": lambda world: put_raw(
        world, act_key(1), act(world, 1, None, admin_key(world)).replace(b'"format":1', b'"format":2')
    ),
    "without the first": lambda world: (
        act(world, 2, act(world, 1, None, admin_key(world)), admin_key(world)) and os.unlink(f"{world.vault}/{act_key(1)}")
    ),
    "that follow nothing": lambda world: act(world, 2, b"?", admin_key(world)) and act(world, 1, None, admin_key(world)),
    "of two chains": lambda world: act(world, 2, act(world, 1, None, admin_key(world)), admin_key(world), chain="d" * 32),
    "cut off": lambda world: put_raw(world, act_key(1), act(world, 1, None, admin_key(world))[:-1]),
}


@pytest.mark.parametrize("which", ACTS)
def test_forged_acts(world: World, which: str):
    ACTS[which](world)
    outcome, kinds, backed_up = answers_to_acts(world)
    assert (outcome, backed_up) == ("damaged", "complete")
    assert "chain-broken" in kinds


def test_acts_of_another_vault(world: World, tmp_path: Path):
    other = lived(tmp_path / "other")
    act(other, 1, None, admin_key(other))
    shutil.copytree(f"{other.vault}/acts", f"{world.vault}/acts")
    assert answers_to_acts(world) == ("damaged", {"chain-broken"}, "complete")


def test_acts_of_another_store(world: World):
    """Another store of the same vault has acts of its own: whoever remembers the chain of this one refuses them."""
    act(world, 1, None, admin_key(world))
    named = Trust(admin_key(world).public)
    assert len(list(read_acts(world.store(), world.context.anchors, named, "c" * 32))) == 1
    with pytest.raises(ChainBroken):
        list(read_acts(world.store(), world.context.anchors, named, "d" * 32))
