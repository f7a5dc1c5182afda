"""A vault in memory, without bytes and signatures: one writer, one or two stores, a pruner, a human and an auditor, and the clocks of all of them.

What is decided is decided by the real code: `prune.look`, `planning.plan`, `prune._commit` and `prune._doomed` run on records that the model makes,
`Book` and `Registry` learn them. Only what a store does, and the writer's protocol (design section 4.5), are modelled. Every actor is a generator that
yields after each operation: whoever stops to ask it was killed there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from mailbackup.host import stamp
from mailbackup.model.ids import Digest, PackId, PublicKey, VaultId, entry_key, pack_key, snapshot_key
from mailbackup.model.ledger import Act, Anchors, Head, LedgerEntry, ObjectRow, PackPart, PackRow, from_ranges, to_ranges
from mailbackup.model.retention import Policy
from mailbackup.stores.base import ObjectStat
from mailbackup.upkeep import planning
from mailbackup.upkeep import prune as real
from mailbackup.upkeep.acts import Book
from mailbackup.upkeep.needs import needed_packs
from mailbackup.upkeep.planning import Rules
from mailbackup.upkeep.registry import Registry
from mailbackup.vault.chain import ActLink, Link
from mailbackup.vault.commit import LEFT_OVER_SECONDS

DAY = 86400.0
START = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
VAULT, KEY = VaultId("00" * 16), PublicKey("00" * 32)
ANCHORS = Anchors(vault=VAULT, admin=KEY)
_FIRST_TOKEN = 1 << 200

Block = tuple[PackId, int]
Steps = Iterator[str]


class Violation(AssertionError):
    """The rules let something happen that must not."""


class Abort(Exception):
    """A run ends by itself, with an error for its user."""


@dataclass(frozen=True)
class Breaks:
    """Rules of the model's own part (the writer, and how acts are put) that are switched off. The product's rules are broken by patching it."""

    five_days: bool = False  # the writer registers what it sent however long ago that was
    promote: bool = False  # what is pending is put without a look at the packs it names
    dead_index: bool = False  # content is found in dead blocks as well
    incomplete_stops: bool = False
    overwrite: bool = False  # an act is put where the one that was read last says, whatever is there


SOUND = Breaks()


@dataclass(slots=True)
class Store:
    """What a store holds. `own_time`: its clock is right and counts (trait `trusted_time`); else its users' clocks are what there is."""

    name: str
    own_time: bool
    clock: Callable[[], float]
    host_clock: Callable[[], float]  # of the machine that prunes it
    entries: list[Link] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    true_times: list[float] = field(default_factory=list)
    acts: list[ActLink] = field(default_factory=list)
    packs: dict[PackId, float] = field(default_factory=dict)  # with the time that the store says
    true_sent: dict[PackId, float] = field(default_factory=dict)
    snapshots: set[int] = field(default_factory=set)
    up: bool = True
    of_writer: bool = False  # its times are those of the writing host
    filling: bool = False  # a copy to it has not ended
    refused: bool = False  # the last prune: a human is about to look
    changed: bool = False

    @property
    def traits(self) -> Any:
        return SimpleNamespace(trusted_time=self.own_time, parallel=1)

    def now(self) -> float:
        return self.clock() if self.own_time else self.host_clock()

    def list(self, prefix: str) -> Iterator[tuple[str, ObjectStat]]:
        if prefix == "packs/":
            yield from ((pack_key(pack), ObjectStat(100, time)) for pack, time in self.packs.items())
        elif prefix == "ledger/":
            yield from ((entry_key(seq), ObjectStat(1, time)) for seq, time in enumerate(self.times, 1))
        elif prefix == "snapshots/":
            yield from ((snapshot_key(seq, Digest("0" * 64)), ObjectStat(1, 0.0)) for seq in sorted(self.snapshots))

    @property
    def head(self) -> int:
        return len(self.entries)

    def hash_at(self, seq: int) -> Digest | None:
        return self.entries[seq - 1].sha256 if 0 < seq <= len(self.entries) else None

    def book(self) -> Book:
        book = Book()
        for link in self.acts:
            book.learn(link)
        return book

    def registry(self) -> Registry:
        registry = Registry()
        for link in self.entries:
            registry.learn(self, link)  # type: ignore[arg-type]
        return registry


@dataclass(slots=True)
class State:
    """What the writer's host remembers, durably."""

    head: tuple[int, Digest] | None = None
    live: dict[PackId, set[int]] = field(default_factory=dict)
    refs: Counter[Block] = field(default_factory=Counter)
    tree: dict[int, tuple[int, Block]] = field(default_factory=dict)  # item → content, where it lies
    large: dict[int, Block] = field(default_factory=dict)  # content → where it lies
    pending: Link | None = None
    heads: dict[str, tuple[int, Digest]] = field(default_factory=dict)
    is_new: bool = True
    freeze: bool = False

    def copy(self) -> State:
        return State(
            self.head, {pack: set(numbers) for pack, numbers in self.live.items()}, Counter(self.refs), dict(self.tree), dict(self.large),
            self.pending, dict(self.heads), self.is_new, self.freeze,
        )  # fmt: skip

    def lives(self, block: Block) -> bool:
        return block[1] in self.live.get(block[0], ())


class Sim:
    """One history. `rng` decides everything that the actors do not."""

    def __init__(self, rng: random.Random, breaks: Breaks, *, stores: int, lies: bool = False) -> None:
        self.rng, self.breaks, self.lies = rng, breaks, lies
        self.now = START
        self.writer_offset = self.pruner_offset = 0.0
        self.lied: set[Block] = set()
        self.stores = [self._store(f"store{number}") for number in range(stores)]
        self.state = State()
        self.saved: list[State] = []
        self.source: dict[int, int] = {item: item for item in range(rng.randint(2, 5))}
        self.unreadable: set[int] = set()
        self.unsure = (
            False  # the state may be behind the stores: if one of them is away, the ledger would fork (which is found, and refused)
        )
        self.contents = 100
        self.trees: dict[Digest, frozenset[Block]] = {}
        self.live: dict[Digest, frozenset[Block]] = {}
        self.promised: dict[str, set[int]] = {store.name: set() for store in self.stores}
        self.honest_clock = {store.name: True for store in self.stores}
        self.tokens = 0
        self.stats: Counter[str] = Counter()
        self.log: list[str] = []
        policies = [Policy(last=1), Policy(last=2), Policy(daily=2), Policy(daily=3, weekly=2), Policy(within="3d", last=1)]
        self.rules = Rules(policy=rng.choice(policies), max_share=1e9 if rng.random() < 0.9 else 0.2)
        self._first_entry()

    def _store(self, name: str) -> Store:
        own = self.rng.random() < 0.6
        at_writer = self.rng.random() < 0.5
        clock = (lambda: self.now) if own or not at_writer else self.writer_now
        return Store(name, own, clock, lambda: self.now + self.pruner_offset, of_writer=at_writer and not own)

    def _first_entry(self) -> None:
        token = self.token()
        entry = LedgerEntry(format=1, vault=VAULT, seq=1, prev=None, type="trust", time=self.stamp(), signer=KEY)
        link = Link(1, token, b"", entry)
        self.trees[token] = self.live[token] = frozenset()
        for store in self.stores:
            self.put_entry(store, link)
            self.state.heads[store.name] = (1, token)

    # ------------------------------------------------------------ small things

    def writer_now(self) -> float:
        return self.now + self.writer_offset

    def stamp(self, time: float | None = None) -> str:
        return stamp(datetime.fromtimestamp(self.writer_now() if time is None else time, UTC))

    def token(self) -> Digest:
        self.tokens += 1
        return Digest(f"{_FIRST_TOKEN + self.tokens:064x}")

    def pack_id(self) -> PackId:
        return PackId(f"{self.rng.getrandbits(128):032x}")

    def say(self, what: str) -> None:
        self.log.append(f"{(self.now - START) / DAY:8.3f} {what}")

    # ------------------------------------------------------------ what stores do

    def put_pack(self, store: Store, pack: PackId) -> None:
        store.packs.setdefault(pack, store.clock())
        store.true_sent.setdefault(pack, self.now)
        self.say(f"{store.name}: pack {pack[:4]}")

    def put_entry(self, store: Store, link: Link, *, snapshot: bool = True) -> None:
        if store.head >= link.seq:
            if store.hash_at(link.seq) != link.sha256:
                raise Violation("another entry is put in the place of one")
            return
        if link.entry.outcome is not None and snapshot:
            store.snapshots.add(link.seq)
        store.entries.append(link)
        store.times.append(store.clock())
        store.true_times.append(self.now)
        store.changed = True
        self.say(
            f"{store.name}: entry {link.seq} {link.entry.type} {link.entry.outcome or ''} packs {[p.id[:4] for p in link.entry.packs]}"
            f" stops {[(p[:4], r) for p, r in link.entry.stops]} tree {sorted({p[:4] for p, _ in self.trees[link.sha256]})}"
        )

    def add_act(self, store: Store, kind: str, make: Callable[[Book], dict[str, Any] | None], read: int | None = None) -> Act | None:
        """Create-only: what `make` decides from is what is there. With `overwrite`, it is put behind the `read` acts that its maker saw."""
        book = store.book()
        members = make(book)
        if members is None:
            return None
        at = len(store.acts) if read is None else read
        time = members.pop("time", None) or self.stamp(self.now)
        act = Act(format=1, vault=VAULT, chain="c", seq=at + 1, prev=None, type=kind, time=time, signer=KEY, **members)  # type: ignore[arg-type]
        before = store.book()
        store.acts[at : at + 1] = [ActLink(act, Digest("0" * 64))]
        store.changed = True
        self.stats[kind] += 1
        self.say(
            f"{store.name}: act {act.seq} {kind} drop {act.snapshots} gone {act.gone} packs {[p.id[:4] for p in act.packs]}"
            f" head {act.head.seq if act.head else None} release {act.release} ({time})"
        )
        if kind == "prune":
            self._check_prune(store, before, act)
        return act

    def delete_pack(self, store: Store, pack: PackId) -> None:
        if store.packs.pop(pack, None) is None:
            return
        store.changed = True
        self.stats["deleted"] += 1
        self.say(f"{store.name}: delete {pack[:4]}")
        head = store.entries[-1].sha256
        if any(block[0] == pack for block in self.live[head] - self.lied):
            raise Violation(f"(c) pack {pack[:4]} has a live block at the head of {store.name}, and was deleted")

    # ------------------------------------------------------------ what must hold

    def check(self) -> None:
        """After every operation."""
        for store in self.stores:
            if store.changed:
                store.changed = False
                self._check_store(store)

    def _check_store(self, store: Store) -> None:
        book = store.book()
        for link in store.entries:
            if link.entry.outcome is None or link.seq in _not_here(store, book) or (store.filling and link.seq not in store.snapshots):
                continue
            missing = sorted({pack for pack, _ in self.trees[link.sha256]} - store.packs.keys())
            if missing:
                raise Violation(f"(a) snapshot {link.seq} of {store.name} is not gone, and needs pack {missing[0][:4]}, which is not there")
        broken = self.promised[store.name] & book.gone
        if broken:
            raise Violation(f"(e) snapshot {min(broken)} of {store.name} was pinned or taken back, and is gone")
        head = store.entries[-1].sha256
        lost = sorted({pack for pack, _ in self.live[head] - self.lied} - store.packs.keys())
        if lost and not store.filling:
            raise Violation(f"(c) pack {lost[0][:4]} has a live block at the head of {store.name}, and is not there")
        self._check_verify(store, book)

    def _check_verify(self, store: Store, book: Book) -> None:
        registry = store.registry()
        book.without -= store.snapshots
        for pack in needed_packs(registry, book):
            if pack not in store.packs and not self.lies and not store.filling:
                raise Violation(f"(d) verify says that {store.name} needs pack {pack[:4]}, which is not there")
        for pack in registry.packs:
            if pack not in store.packs and pack not in book.missing and not store.filling:
                raise Violation(f"(d) pack {pack[:4]} is missing in {store.name}, and no act names it")

    def check_entry(self, link: Link, previous: Digest | None) -> None:
        """What the ledger says lives, and what the trees reach."""
        entry, tree = link.entry, self.trees[link.sha256]
        live = set(self.live[previous]) if previous is not None else set()
        live |= {(row.id, number) for row in entry.packs for number in range(row.blocks)}
        live -= {(PackId(pack), number) for pack, ranges in entry.stops for number in from_ranges(ranges, 1 << 20)}
        live |= self.lied
        self.live[link.sha256] = frozenset(live)
        if entry.outcome is None:
            return
        if not tree <= live:
            raise Violation(f"(b) snapshot {link.seq} refers to a block that is not live there")
        if entry.outcome == "complete" and tree != live and not self.lies:
            raise Violation(f"(b) at snapshot {link.seq} {len(live - tree)} blocks live that its tree does not reach")
        if entry.outcome == "incomplete" and entry.stops:
            raise Violation(f"(b) the incomplete snapshot {link.seq} stops blocks")

    def _check_prune(self, store: Store, before: Book, act: Act) -> None:
        """Whatever goes was dropped, stopped or left for the whole grace period, by the clock that counts."""
        time, grace = datetime.fromisoformat(act.time), self.rules.grace - timedelta(seconds=1)
        for seq in act.gone:
            if seq not in before.dropped or time - before.dropped[seq] < grace:
                raise Violation(f"(e) snapshot {seq} of {store.name} goes within its grace period")
        if not self.honest_clock[store.name]:
            return
        registry = store.registry()
        for part in act.packs:
            life = registry.packs.get(part.id)
            since = store.true_sent.get(part.id) if life is None or not life.is_dead else store.true_times[life.last - 1]
            if since is not None and self.now - since < grace.total_seconds():
                raise Violation(
                    f"(e) pack {part.id[:4]} of {store.name} goes {(self.now - since) / DAY:.1f} days after something needed it"
                )

    # ------------------------------------------------------------ the writer

    def backup(self) -> Steps:
        """One run, by the protocol. Whatever is not in `self.state` when it is killed is lost."""
        state, current = yield from self._start()
        yield from _Run(self, state, current).steps()

    def _start(self) -> Iterator[Any]:
        state = self.state.copy()
        if self.unsure and not all(store.up for store in self.stores):
            raise Abort("a store is away")
        current = [store for store in self.stores if store.up and self._holds_ours(store, state)]
        behind = [store for store in current if state.head is not None and store.head < state.head[0]]
        current = [store for store in current if store not in behind]
        rewound = False
        if state.pending is not None:
            rewound = yield from self._left_over(state, current)
        if not current:
            raise Abort("no store")
        longest = max(store.head for store in current)
        current = [store for store in current if store.head == longest]
        if len({store.hash_at(longest) for store in current}) > 1:
            raise Violation("two stores hold different entries under one number")
        self._follow(state, current[0], rewound)
        for store in current:
            state.heads[store.name] = (longest, current[0].entries[-1].sha256)
        self.state, self.unsure = state.copy(), False
        yield "replayed"
        return state, current

    def _holds_ours(self, store: Store, state: State) -> bool:
        own = state.heads.get(store.name)
        if own is None:
            return not state.heads or store.head > 0
        if store.hash_at(own[0]) != own[1]:
            raise Violation(f"the ledger of {store.name} was replaced")
        return True

    def _left_over(self, state: State, current: list[Store]) -> Iterator[Any]:
        """Put what an earlier run left, or find that it is not going to be. Whether the state has to be rewound."""
        link = state.pending
        assert link is not None
        for store in list(current):
            if store.head < link.seq and not self._has_packs(store, link.entry):
                current.remove(store)
        if not current:
            if any(not store.up for store in self.stores):
                raise Abort("a store is away that may hold what is pending")
            current += [store for store in self.stores if state.head is None or store.head >= state.head[0]]
            return True
        return not (yield from self._put_pending(state, current))

    def _has_packs(self, store: Store, entry: LedgerEntry) -> bool:
        if self.breaks.promote:
            return True
        oldest = store.now() - LEFT_OVER_SECONDS if store.own_time else self.writer_now() - LEFT_OVER_SECONDS
        return all(row.id in store.packs and store.packs[row.id] > oldest for row in entry.packs)

    def _put_pending(self, state: State, current: list[Store]) -> Iterator[Any]:
        """Whether it is the head now; else the store holds another entry there, by an older or a newer state."""
        link = state.pending
        assert link is not None
        for store in sorted(current, key=lambda store: store.head < link.seq):
            if store.head >= link.seq and store.hash_at(link.seq) != link.sha256:
                return False
            self.put_entry(store, link)
            yield "put"
            state.heads[store.name] = (link.seq, link.sha256)
        state.head, state.pending = (link.seq, link.sha256), None
        self.state = state.copy()
        self.stats["entries"] += 1
        yield "promoted"
        return True

    def _follow(self, state: State, store: Store, rewound: bool) -> None:
        fresh = state.head is None
        if rewound:
            state.pending, state.live, state.head = None, {}, None
        before = state.head
        for link in store.entries[0 if state.head is None else state.head[0] :]:
            for row in link.entry.packs:
                state.live[row.id] = set(range(row.blocks))
            for pack, ranges in link.entry.stops:
                state.live[PackId(pack)] -= set(from_ranges(ranges, 1 << 20))
            if link.entry.outcome is not None and fresh and not rewound:
                state.freeze = True
            state.head = (link.seq, link.sha256)
        if state.head == before:
            return
        if rewound:
            state.refs = Counter(block for _, block in state.tree.values())
            state.large = dict(state.tree.values())
        if not self.breaks.dead_index:
            state.large = {content: block for content, block in state.large.items() if state.lives(block)}


class _Run:
    """The writing part of one run."""

    def __init__(self, sim: Sim, state: State, current: list[Store]) -> None:
        self.sim, self.state, self.current = sim, state, current
        self.rows: list[tuple[PackId, int]] = []
        self.placed: dict[int, Block] = {}
        self.tree = dict(state.tree)
        self.registered_at = (sim.writer_now(), sim.now)
        self.stored = False

    def steps(self) -> Steps:
        sim = self.sim
        outcome = "complete"
        todo = sorted(sim.source)
        sim.rng.shuffle(todo)
        for item in todo:
            if item in sim.unreadable:
                outcome = "incomplete"
                continue
            yield from self._item(item, sim.source[item])
            if self.rows and sim.rng.random() < 0.2:
                yield from self._checkpoint()
        for item in set(self.tree) - sim.source.keys() - sim.unreadable:
            del self.tree[item]
        if sim.unreadable & sim.source.keys():
            outcome = "incomplete"
        yield from self._commit(outcome)

    def _item(self, item: int, content: int) -> Steps:
        known = self.tree.get(item)
        if known is not None and known[0] == content and (self.state.lives(known[1]) or self.sim.breaks.dead_index):
            return
        block = self.placed.get(content) or self.state.large.get(content)
        if block is None:
            yield from self._send(content)
            block = self.placed[content]
        self.tree[item] = (content, block)

    def _send(self, content: int) -> Steps:
        """A pack of one or two blocks; the second holds content that is needed next, or for nothing."""
        sim, pack = self.sim, self.sim.pack_id()
        wanted = [c for i, c in sorted(sim.source.items()) if c != content and i not in sim.unreadable and c not in self.placed]
        more = [c for c in wanted if c not in self.state.large][: sim.rng.randint(0, 2)]
        for number, one in enumerate([content, *more]):
            self.placed[one] = (pack, number)
        for store in list(self.current):
            if not store.up:
                self._leave_out(store)
                continue
            sim.put_pack(store, pack)
            self.stored = True
            yield "sent"
        self.rows.append((pack, 1 + len(more)))

    def _leave_out(self, store: Store) -> None:
        self.current.remove(store)
        if not self.current:
            raise Abort("no store is left")

    def _checkpoint(self) -> Steps:
        if (rows := self._register()) is not None:
            yield from self._entry("packs", rows, None, ())

    def _register(self) -> tuple[PackRow, ...]:
        sim, state = self.sim, self.state
        self._refuse_old()
        rows = tuple(PackRow(id=p, size=1000, sha256=Digest("0" * 64), blocks=n, footer=Digest("0" * 64), epoch=1) for p, n in self.rows)
        for row in rows:
            state.live[row.id] = set(range(row.blocks))
        state.large |= self.placed
        state.refs.update(dict.fromkeys(self.placed.values(), 0))
        state.refs.subtract(Counter(block for _, block in state.tree.values()))
        state.refs.update(Counter(block for _, block in self.tree.values()))
        state.tree = dict(self.tree)
        self.rows, self.placed = [], {}
        sim.stats["registered"] += len(rows)
        return rows

    def _refuse_old(self) -> None:
        sim = self.sim
        paused = max(sim.writer_now() - self.registered_at[0], sim.now - self.registered_at[1])
        if paused > LEFT_OVER_SECONDS and self.stored and not sim.breaks.five_days:
            sim.stats["refused"] += 1
            raise Abort("paused")
        self.registered_at = (sim.writer_now(), sim.now)

    def _commit(self, outcome: str) -> Steps:
        sim, state = self.sim, self.state
        rows = self._register()
        stops: tuple[tuple[PackId, str], ...] = ()
        if outcome != "incomplete" or sim.breaks.incomplete_stops:
            stops = self._stops()
            state.is_new = False
        if any(not state.lives(block) for _, block in state.tree.values()) and not sim.breaks.dead_index:
            sim.state = State()
            raise Abort("the state remembers what is dead")
        yield from self._entry("snapshot", rows, outcome, stops)

    def _stops(self) -> tuple[tuple[PackId, str], ...]:
        sim, state, found = self.sim, self.state, {}
        for pack, numbers in state.live.items():
            unused = sorted(number for number in numbers if state.refs[pack, number] <= 0)
            if unused:
                found[pack] = unused
        for pack, unused in found.items():
            state.live[pack] -= set(unused)
        gone = {(pack, number) for pack, unused in found.items() for number in unused}
        state.large = {c: b for c, b in state.large.items() if b not in gone or sim.breaks.dead_index}
        if sim.lies and sim.rng.random() < 0.4:
            for pack, number in sorted(block for _, block in state.tree.values()):
                if (pack, number) not in sim.lied:
                    sim.lied.add((pack, number))
                    found[pack] = sorted({*found.get(pack, []), number})
                    break
        return tuple((pack, to_ranges(unused)) for pack, unused in sorted(found.items()))

    def _entry(self, kind: str, rows: tuple[PackRow, ...], outcome: str | None, stops: tuple[tuple[PackId, str], ...]) -> Steps:
        """Fix, then put."""
        sim, state = self.sim, self.state
        assert state.head is not None
        seq, prev = state.head[0] + 1, state.head[1]
        token, when = sim.token(), sim.stamp()
        snapshot = ObjectRow(key=snapshot_key(seq, token), sha256=token, size=1) if outcome else None
        freeze = "the state was lost" if outcome and state.freeze else None
        state.freeze = state.freeze and outcome is None
        entry = LedgerEntry(
            format=1, vault=VAULT, seq=seq, prev=prev, type=kind, time=when, signer=KEY, packs=rows, snapshot=snapshot,
            outcome=outcome, freeze=freeze, stops=stops,
        )  # type: ignore[arg-type]  # fmt: skip
        link = state.pending = Link(seq, token, b"", entry)
        sim.trees[token] = frozenset(block for _, block in state.tree.values()) if outcome else frozenset()
        sim.check_entry(link, prev)
        sim.state = state.copy()
        yield "fixed"
        for store in list(self.current):
            if not store.up:
                self._leave_out(store)
        if not (yield from sim._put_pending(state, self.current)):
            raise Abort("another entry is there")


# ---------------------------------------------------------------- the others


def prune(sim: Sim, store: Store) -> Steps:
    """The real look, plan, commit and choice of what to delete, with a yield wherever others can come between."""
    for _ in range(3):
        looked = real.look(store, ANCHORS)  # type: ignore[arg-type]
        yield "looked"
        now = real._now(store)  # type: ignore[arg-type]
        decided = planning.plan(looked.history, sim.rules, now)
        if decided.guards:
            store.refused = decided.guards[0].ackable
            sim.stats["guard " + decided.guards[0].name] += 1
            sim.say(f"{store.name}: prune refused: {decided.guards[0].detail}")
            return
        yield "planned"
        try:
            read = len(looked.history.book.acts)
            if sim.breaks.overwrite and not (decided.drop or decided.gone or decided.packs or decided.stray):
                return
            for _act in real._commit(store, ANCHORS, (sim, read), looked, decided, now):  # type: ignore[arg-type]
                yield "signed"
        except real._Changed:
            sim.stats["changed"] += 1
            continue
        doomed = real._doomed(store, ANCHORS, looked, decided)  # type: ignore[arg-type]
        for key, _ in doomed:
            if key.startswith("packs/"):
                sim.delete_pack(store, PackId(key[-32:]))
            else:
                store.snapshots.discard(int(key[10:20]))
            yield "deleted"
        return


def human(sim: Sim, store: Store) -> Steps:
    """Pins, takes back, lets go, acknowledges."""
    book, choice = store.book(), sim.rng.random()
    known = {link.seq for link in store.entries if link.seq in store.snapshots}
    if store.refused and choice < 0.7:
        choice, store.refused = 1.0, False
    if choice < 0.5 and (dropped := sorted(book.dropped.keys() - book.gone)):
        yield from _undelete(sim, store, sim.rng.choice(dropped))
    elif choice < 0.7 and (kept := sorted(known - book.gone)):
        yield from _pin(sim, store, sim.rng.choice(kept))
    elif choice < 0.85 and book.pinned:
        seq = sim.rng.choice(sorted(book.pinned))
        sim.promised[store.name].discard(seq)
        sim.add_act(store, "pin", lambda book: {"snapshots": (seq,), "release": True, "head": None} if seq in book.pinned else None)
    else:
        head = Head(seq=store.head, sha256=store.entries[-1].sha256)
        sim.add_act(store, "ack", lambda book: {"guards": ("silence", "freeze", "share"), "bytes": 10_000, "head": head})
    yield "acted"


def _undelete(sim: Sim, store: Store, seq: int) -> Steps:
    read = len(store.acts)
    if sim.breaks.overwrite:
        yield "looked"
    acted = sim.add_act(
        store,
        "undelete",
        lambda book: {"snapshots": (seq,), "note": "x"} if seq in book.dropped and seq not in book.gone else None,
        read if sim.breaks.overwrite else None,
    )
    if acted is not None:
        sim.promised[store.name].add(seq)


def _pin(sim: Sim, store: Store, seq: int) -> Steps:
    acted = sim.add_act(store, "pin", lambda book: {"snapshots": (seq,), "note": "x"} if seq not in book.gone else None)
    if acted is not None:
        sim.promised[store.name].add(seq)
    yield "pinned"


def audit(sim: Sim, store: Store) -> Steps:
    """Opens every snapshot that is there: what it refers to was live at its entry, and is there. Only then it says so."""
    registry, head, before = store.registry(), store.entries[-1], _not_here(store, store.book())
    sound = True
    for link in list(store.entries):
        if link.entry.outcome is None or link.seq in before:
            continue
        for pack, number in sim.trees[link.sha256]:
            life = registry.packs.get(pack)
            sound &= life is not None and life.lives(number, link.seq)
    if not sound and not sim.lies:
        raise Violation("(b) an audit of an honest vault finds something")
    sim.stats["audit failed"] += not sound
    yield "audited"
    if sound:
        sim.add_act(store, "audit", lambda _: {"head": Head(seq=head.seq, sha256=head.sha256)})
    yield "said"


def catch_up(sim: Sim, target: Store) -> Steps:
    """`copying.copy` from the store with the longest ledger, and its act about what it did not get."""
    source = max((store for store in sim.stores if store is not target and store.up), key=lambda store: store.head, default=None)
    if source is None or source.head < target.head or not target.up:
        return
    if source.hash_at(target.head) != target.hash_at(target.head):
        raise Violation("the stores forked")
    target.filling = True
    left_out = []
    for link in source.entries[target.head :]:
        for row in link.entry.packs:
            if row.id in source.packs:
                sim.put_pack(target, row.id)
                yield "copied"
            elif row.id not in target.packs:
                if not source.registry().packs[row.id].is_dead:
                    raise Violation(f"(c) pack {row.id[:4]} lives, and is in no store")
                left_out.append(row.id)
        there = link.seq in source.snapshots
        if target.head >= link.seq:
            return  # a backup came first
        sim.put_entry(target, link, snapshot=there)
        yield "entry"
    record_without(sim, target, source)
    yield "said"


def _not_here(store: Store, book: Book) -> set[int]:
    """The snapshots that acts say are not there, and that are not."""
    return book.gone | (book.without - store.snapshots)


def record_without(sim: Sim, target: Store, source: Store) -> None:
    book, registry = source.book(), target.registry()
    packs = {p for p in book.missing if p not in target.packs and p in registry.packs and registry.packs[p].is_dead}
    gone = {seq for seq in book.not_here if seq not in target.snapshots and seq <= target.head}
    head = Head(seq=target.head, sha256=target.entries[-1].sha256)

    def make(own: Book) -> dict[str, Any] | None:
        new, seqs = sorted(packs - own.missing), sorted(gone - own.not_here)
        return {"packs": tuple(PackPart(id=pack) for pack in new), "snapshots": tuple(seqs), "head": head} if new or seqs else None

    sim.add_act(target, "received-without", make)
    target.filling = False
    target.changed = True


@contextmanager
def real_code() -> Iterator[None]:
    """Let the product's pruning read the model's stores and put its acts into them."""

    def add_act(store: Any, anchors: Anchors, signer: Any, kind: str, make: Any) -> Act | None:
        sim, read = signer
        if sim.breaks.overwrite:
            members = make(SimpleNamespace(acts=range(read)))
            return sim.add_act(store, kind, lambda _: members, read)  # type: ignore[no-any-return]
        return sim.add_act(store, kind, make)  # type: ignore[no-any-return]

    def walk(store: Any, anchors: Any, trust: Any, *, last: int, after: Any = None) -> Any:
        return store.entries[0 if after is None else after[0] : last]

    with ExitStack() as stack:
        stack.enter_context(patch.object(real, "find_head", lambda store: store.head))
        stack.enter_context(patch.object(real, "check_head", lambda head, anchors: None))
        stack.enter_context(patch.object(real, "walk", walk))
        stack.enter_context(patch.object(real, "read_acts", lambda store, anchors, trust: list(store.acts)))
        stack.enter_context(patch.object(real, "add_act", add_act))
        yield
