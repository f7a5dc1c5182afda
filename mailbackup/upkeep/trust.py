"""Who may sign: reading the `trust` entries of a ledger, and adding one, which every store gets with the same bytes (format section 10)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from mailbackup.content.zstd import compress
from mailbackup.crypto.signing import SigningKey, seal_line
from mailbackup.errors import ChainBroken, ConflictError, DamageError, KeyExists, KeyProblem, StoreError
from mailbackup.host import stamp, utc_now
from mailbackup.model import codec
from mailbackup.model.ids import LEDGER_PAGE, ObjectKey, PublicKey, digest, entry_key, list_key
from mailbackup.model.ledger import (
    ActsSeen,
    Anchors,
    EpochRow,
    LedgerEntry,
    Lists,
    LiveList,
    LivePack,
    ObjectRow,
    RewrapRow,
    Role,
    to_ranges,
)
from mailbackup.model.tree import RECORD_LIMIT
from mailbackup.stores.base import Store
from mailbackup.upkeep.page import from_page, live_registry
from mailbackup.upkeep.registry import PackLife
from mailbackup.vault.chain import (
    Link,
    Trust,
    check_head,
    check_vault_info,
    find_head,
    live_list_of,
    read_acts,
    read_raw,
    trust_of,
    trust_within,
)
from mailbackup.vault.replicas import OWN_FAULT, Replica, Replicas

_TRIES = 5  # the writer may add an entry at the same moment


@dataclass(frozen=True, slots=True)
class Signer:
    """A key with a role: the entry that named it and its time; and the entry that dismissed it, if one did."""

    role: Role
    key: PublicKey
    since: int
    time: str
    until: int | None = None


@dataclass(slots=True)
class Standing:
    """The end of a ledger: its head, whom the admin named, and all epochs with their further key objects."""

    head: Link
    trust: Trust
    epochs: dict[int, EpochRow] = field(default_factory=dict)
    rewrapped: list[RewrapRow] = field(default_factory=list)

    def keys(self, role: Role) -> list[PublicKey]:
        """Who has a role now, sorted."""
        return sorted(key for key, roles in self.trust.roles.items() if role in roles)

    def roles(self, key: PublicKey) -> set[str]:
        """What a key may do now."""
        return set(self.trust.roles.get(key, ()))

    def was(self, key: PublicKey) -> bool:
        """Whether the ledger ever named a key."""
        return key in self.trust.roles

    def signers(self) -> list[Signer]:
        """Everybody who was ever named, in order."""
        rows: list[Signer] = []
        for entry in _entries(self.trust.lines):
            rows += [Signer(grant.role, grant.key, entry.seq, entry.time) for grant in entry.grant]
            for grant in entry.revoke:
                rows = [_ended(row, entry.seq) if (row.role, row.key) == (grant.role, grant.key) else row for row in rows]
        return rows


def _ended(row: Signer, seq: int) -> Signer:
    return Signer(row.role, row.key, row.since, row.time, row.until or seq)


def _entries(lines: Iterable[str]) -> list[LedgerEntry]:
    """The entries in whole trust lines, whose signatures were checked."""
    return [codec.decode(line.partition("\n")[0].encode("utf-8"), LedgerEntry, "trust entry") for line in lines]


def standing(store: Store, anchors: Anchors) -> Standing:
    """The end of a store's ledger, each entry of its last page checked. Raises ChainBroken and what the store raises."""
    epochs: list[EpochRow] = []
    lines: list[str] = []
    link: Link | None = None
    for link in from_page(store, anchors, find_head(store)):
        if link.seq % LEDGER_PAGE == 0:
            live = live_list_of(store, link.entry)
            epochs += live.epochs if live is not None else ()
            lines += link.entry.trust
        epochs += link.entry.epochs
        if link.entry.type == "trust":
            lines.append(link.raw.decode("utf-8"))
    assert link is not None, "a ledger without an entry"
    rewrapped = [row for entry in _entries(lines) for row in entry.rewrapped]
    return Standing(link, trust_of(lines, anchors), {row.epoch: row for row in epochs}, rewrapped)


# ---------------------------------------------------------------- adding an entry


@dataclass(frozen=True, slots=True)
class Draft:
    """Members of a trust entry (`grant`, `revoke`, `acts`, `rewrapped`), and the objects that it names, in the order in which they are put."""

    members: dict[str, Any]
    objects: list[tuple[ObjectKey, bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Added:
    """What came of adding an entry: its number, or None when nothing had to change; the stores that have it now, and those that lack it, with the reason."""

    seq: int | None
    stores: tuple[str, ...]
    without: dict[str, str]


def add_entry(
    replicas: Replicas, anchors: Anchors, pins: Callable[[str], Anchors], admin: SigningKey, make: Callable[[Standing], Draft | None]
) -> Added:
    """Append a trust entry to every store that stands at the head. `make` says what is in it, None for no entry; it is asked again when another entry
    came first. A store that is behind or away gets it with the next run.

    `pins` are the anchors of each store, by name. Raises ConflictError when stores differ, ChainBroken, what keeps the first store away when there is none,
    and what `make` raises. Stopped at any moment, the ledger is whole, and doing it again ends it.
    """
    for _ in range(_TRIES):
        look(replicas, pins)
        store, _ = replicas.settle_heads()
        now = standing(store, anchors)
        draft = make(now)
        if draft is None:
            return Added(None, tuple(replica.name for replica in replicas.replicas if replica.current), _without(replicas))
        objects = _objects(store, anchors, admin, now, draft)
        if _put(replicas, objects):
            return Added(now.head.seq + 1, tuple(replica.name for replica in replicas.replicas if replica.current), _without(replicas))
    raise ConflictError("others keep adding entries to the ledger", hint="Run it again when no backup is running.")


def _without(replicas: Replicas) -> dict[str, str]:
    return {
        replica.name: "is behind" if replica.error is None else replica.error.message
        for replica in replicas.replicas
        if not replica.current
    }


def look(replicas: Replicas, pins: Callable[[str], Anchors]) -> None:
    """Ask every store for its head. What is wrong with one is its `error`."""
    for replica in replicas.replicas:
        if replica.store is None or replica.error is not None:
            continue
        replica.behind = False
        try:
            replica.head = _head_of(replica, replica.store, pins(replica.name))
        except (*OWN_FAULT, DamageError, KeyProblem) as error:
            replica.error = error


def _head_of(replica: Replica, store: Store, anchors: Anchors) -> int:
    check_vault_info(store, anchors)
    head = find_head(store)
    if head == 0:
        raise StoreError(f"store {replica.name} holds no entry", hint=f"'mailbackup copy --to {replica.name}' fills it.")
    check_head(head, anchors)
    if anchors.head is not None and digest(read_raw(store, anchors.head[0])) != anchors.head[1]:
        raise ChainBroken(f"store {replica.name}: entry {anchors.head[0]} is not the one that was seen: the ledger was replaced")
    return head


def _put(replicas: Replicas, objects: list[tuple[ObjectKey, bytes]]) -> bool:
    """Whether the entry is in the stores now; False when another one came first, and nothing that counts was put."""
    taken = False
    for store in replicas.current:
        try:
            there = all(_put_same(store, key, data) for key, data in objects)
            store.flush()
        except (*OWN_FAULT, DamageError) as error:
            replicas.leave_out(store, error)
            continue
        if not there and not taken:
            return False
        if not there:
            raise ConflictError(
                f"store {store.name} got another entry at this moment",
                hint="Two machines wrote at once. Keep the stores as they are, and run 'verify'.",
            )
        taken = True
    return True


def _put_same(store: Store, key: ObjectKey, data: bytes) -> bool:
    """Create an object; False when other bytes are there."""
    try:
        store.put(key, data)
    except KeyExists:
        return store.get(key, max(RECORD_LIMIT, len(data))) == data
    return True


def _objects(store: Store, anchors: Anchors, admin: SigningKey, now: Standing, draft: Draft) -> list[tuple[ObjectKey, bytes]]:
    """The entry, last, and what must be there before it."""
    seq, objects = now.head.seq + 1, [*draft.objects]
    page: dict[str, Any] = {}
    if seq % LEDGER_PAGE == 0:
        packed = compress(codec.encode(_live_list(store, anchors, now, seq)))
        row = ObjectRow(key=list_key(seq, digest(packed)), sha256=digest(packed), size=len(packed))
        objects.append((row.key, packed))
        page = {"lists": Lists(live=row), "trust": tuple(now.trust.lines)}
    entry = LedgerEntry(
        format=1, vault=anchors.vault, seq=seq, prev=now.head.sha256, type="trust", time=stamp(utc_now()), signer=admin.public, **page, **draft.members
    )  # fmt: skip
    return [*objects, (entry_key(seq), seal_line(codec.encode(entry), admin))]


def _live_list(store: Store, anchors: Anchors, now: Standing, seq: int) -> LiveList:
    """The live set, which the first entry of a page carries whoever writes it."""
    packs = tuple(_live_pack(life) for life in live_registry(store, anchors).packs.values())
    return LiveList(vault=anchors.vault, seq=seq, packs=packs, epochs=tuple(row for _, row in sorted(now.epochs.items())))


def _live_pack(life: PackLife) -> LivePack:
    row = life.row
    live = to_ranges([number for number in range(row.blocks) if life.until(number) is None])
    return LivePack(id=row.id, size=row.size, sha256=row.sha256, blocks=row.blocks, footer=row.footer, epoch=row.epoch, live=live)


def acts_seen(replicas: Replicas, anchors: Anchors, *, all_of_them: bool) -> tuple[ActsSeen, ...]:
    """The last act of each store now: what a dismissed signer signed up to there counts.

    With `all_of_them`, raises what keeps a store away: later its acts could not be told from those that are signed after the dismissal.
    """
    seen: list[ActsSeen] = []
    for replica in replicas.replicas:
        if replica.store is not None and replica.error is None:
            seen += _last_act(replica.store, Anchors(vault=anchors.vault, admin=anchors.admin))
        elif all_of_them and replica.error is not None:
            raise type(replica.error)(
                f"store {replica.name} cannot be read, and the acts in it would count no more: {replica.error.message}",
                hint="Bring it back first. If it is gone for good, take it out of the configuration.",
            )
    return tuple(seen)


def _last_act(store: Store, anchors: Anchors) -> list[ActsSeen]:
    """The last act of a store. One that is broken (by a key that was stolen, say) ends there: a dismissal must be possible all the same."""
    last: list[ActsSeen] = []
    with contextlib.suppress(ChainBroken):
        for act, _ in read_acts(store, anchors, trust_within(store, find_head(store), anchors)):
            last = [ActsSeen(chain=act.chain, seq=act.seq)]
    return last
