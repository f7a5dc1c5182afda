"""The acts of a store, a signed chain of its own (format section 11): what they come to, and adding to them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from mailbackup.crypto.signing import SigningKey, seal_line
from mailbackup.errors import ConflictError, KeyExists
from mailbackup.host import stamp, utc_now
from mailbackup.model import codec
from mailbackup.model.ids import Digest, PackId, act_key, is_object_key
from mailbackup.model.ledger import Act, ActType, Anchors, Head, ObjectRow
from mailbackup.stores.base import Store
from mailbackup.vault.chain import ActLink, find_head, read_acts, trust_within

_TRIES = 5  # another machine may add an act at the same moment


@dataclass(slots=True)
class Book:
    """All acts of a store, in order, and what they come to."""

    acts: list[ActLink] = field(default_factory=list)
    dropped: dict[int, datetime] = field(default_factory=dict)  # snapshots that are not kept, and since when
    gone: set[int] = field(default_factory=set)  # snapshots whose objects are, or are being, deleted
    deleted: set[PackId] = field(default_factory=set)  # packs that are, or are being, deleted
    absent: set[PackId] = field(default_factory=set)  # packs that this store never received: a writer may say so, and nothing goes for it
    without: set[int] = field(default_factory=set)  # snapshots whose objects it never received; as above
    pinned: dict[int, str] = field(default_factory=dict)  # snapshots that somebody keeps, with the reason
    damaged: dict[PackId, str | None] = field(default_factory=dict)  # with block ranges; None = all of it
    erased: dict[PackId, list[str | None]] = field(default_factory=dict)  # block ranges that no snapshot needs any more
    tombstones: dict[Digest, int] = field(default_factory=dict)  # erased mailboxes, and the act that says so
    seen: list[tuple[int, datetime]] = field(default_factory=list)  # heads that a pruner saw, and when
    acks: list[Act] = field(default_factory=list)
    audit: Act | None = None  # the newest

    @property
    def chain(self) -> str | None:
        """The id of this chain, None while there is no act."""
        return self.acts[0].act.chain if self.acts else None

    @property
    def missing(self) -> set[PackId]:
        """Packs that need not be here."""
        return self.deleted | self.absent

    @property
    def not_here(self) -> set[int]:
        """Snapshots that need not be here."""
        return self.gone | self.without

    def see(self, listing: Iterable[str]) -> None:
        """Take back what a writer said of snapshot objects that are there all the same. `listing` holds keys of the store."""
        self.without -= {int(key[10:20]) for key in listing if key.startswith("snapshots/") and is_object_key(key)}

    def first_seen(self, seq: int) -> datetime | None:
        """When a pruner first signed that it saw an entry; None when none has yet."""
        return next((time for head, time in self.seen if head >= seq), None)

    def learn(self, link: ActLink) -> None:
        """Take over the next act."""
        self.acts.append(link)
        act, time = link.act, datetime.fromisoformat(link.act.time)
        match act.type:
            case "prune":
                self.dropped |= {seq: time for seq in act.snapshots if seq not in self.dropped}
                self.gone |= set(act.gone)
                self.deleted |= {part.id for part in act.packs}
                self.seen += [(act.head.seq, time)] if act.head is not None else []
            case "undelete" | "pin":
                self._pin(act)
            case "damage":
                self.damaged |= {part.id: part.blocks for part in act.packs}
            case "received-without":
                self.absent |= {part.id for part in act.packs}
                self.without |= set(act.snapshots)
            case "erase":
                for part in act.packs:
                    self.erased.setdefault(part.id, []).append(part.blocks)
                self.tombstones |= {act.mailbox: act.seq} if act.mailbox is not None else {}
            case "ack":
                self.acks.append(act)
            case "audit":
                self.audit = act
            case "drill" | "move":
                pass

    def _pin(self, act: Act) -> None:
        """A pin holds a snapshot; so does `undelete`, or the next prune would drop it again."""
        for seq in act.snapshots:
            if act.release:
                self.pinned.pop(seq, None)
            elif seq not in self.gone:
                self.pinned[seq] = act.note
                self.dropped.pop(seq, None)


def read_book(store: Store, anchors: Anchors) -> Book:
    """The acts of a store, each checked. Raises ChainBroken and what the store raises."""
    book, head = Book(), find_head(store)
    if head == 0:
        return book
    for link in read_acts(store, anchors, trust_within(store, head, anchors)):
        book.learn(link)
    return book


def add_act(store: Store, anchors: Anchors, signer: SigningKey, kind: ActType, make: Callable[[Book], dict[str, Any] | None]) -> Act | None:
    """Append an act. `make` gives its members from what the acts say now, or None for no act; it is asked again when another act came first.

    Raises ChainBroken, ConflictError, and what `make` and the store raise. The act is durable when this returns.
    """
    for _ in range(_TRIES):
        book = read_book(store, anchors)
        members = make(book)
        if members is None:
            return None
        act = Act(
            format=1,
            vault=anchors.vault,
            chain=book.chain or secrets.token_hex(16),
            seq=len(book.acts) + 1,
            prev=book.acts[-1].sha256 if book.acts else None,
            type=kind,
            time=members.pop("time", None) or stamp(utc_now()),
            signer=signer.public,
            **members,
        )
        raw = seal_line(codec.encode(act), signer)
        try:
            store.put(act_key(act.seq), raw)
        except KeyExists:
            if store.get(act_key(act.seq), len(raw) + 1) != raw:  # else the answer of our own put was lost
                continue
        return act
    raise ConflictError(f"others keep adding acts to store {store.name}", hint="Run it again.")


def add_drill(store: Store, anchors: Anchors, signer: SigningKey, details: ObjectRow) -> int:
    """Record a drill whose sealed details are in the store. Returns the number of the act. Raises ChainBroken, ConflictError."""
    act = add_act(store, anchors, signer, "drill", lambda _: {"details": details})
    assert act is not None
    return act.seq


def add_audit(store: Store, anchors: Anchors, signer: SigningKey, head: tuple[int, Digest]) -> int:
    """Record that the trees of all kept snapshots were compared with the live set up to `head`, and agreed. Returns the act's number."""
    act = add_act(store, anchors, signer, "audit", lambda _: {"head": Head(seq=head[0], sha256=head[1])})
    assert act is not None
    return act.seq
