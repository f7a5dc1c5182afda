"""What ten years cost upkeep: planning a prune, the bytes of the ledger, and a fresh reader's open. Prints raw numbers.

    python -m tests.bench.upkeep_plan                    # all, each step in a process of its own
    python -m tests.bench.upkeep_plan --nights 365       # does it work?

The life: a host with 10,000 mailboxes, one snapshot a night, 64 blocks in a pack. 3 of 5 packs hold trees (what the listing of a mailbox was; most are
replaced within a week, one in ten sleeps for two months), the others hold mail, of which half is deleted within some three years. Nothing is re-gathered.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from mailbackup.content.zstd import compress
from mailbackup.crypto.signing import SigningKey, seal_line
from mailbackup.model import codec
from mailbackup.model.ids import LEDGER_PAGE, VAULT_KEY, Digest, ObjectKey, PackId, VaultId, digest, entry_key, list_key
from mailbackup.model.ledger import (
    Act,
    ActType,
    Anchors,
    BlockList,
    Grant,
    Head,
    LedgerEntry,
    Lists,
    LiveList,
    LivePack,
    ObjectRow,
    PackPart,
    PackRow,
    StopList,
    to_ranges,
)  # fmt: skip
from mailbackup.model.retention import Policy
from mailbackup.stores.counted import CountedStore
from mailbackup.stores.local import LocalStore
from mailbackup.testing.wrapper import Wrapper
from mailbackup.upkeep.acts import Book
from mailbackup.upkeep.page import live_registry
from mailbackup.upkeep.planning import EntryFacts, History, Plan, Rules, plan
from mailbackup.upkeep.prune import dry_run
from mailbackup.upkeep.registry import Registry
from mailbackup.upkeep.stats import store_stats
from mailbackup.vault.chain import ActLink, Link

NIGHTS = 3650
PACKS = 100_000
BLOCKS = 64
TREE_SHARE, SLEEPERS = 0.6, 0.1
TREE_LIFE, SLEEPER_LIFE, MAIL_LIFE = 3, 60, 1500  # nights, on average
INLINE_STOPS = 8 * 1024  # as the writer does
PACK_BYTES = 60_000_000
START = datetime(2026, 1, 1, 2, 30, tzinfo=UTC)
VAULT = VaultId("5" * 32)
POLICY = Policy(last=7, daily=30, weekly=12, monthly=24, yearly=10)
LATENCY = 0.02  # seconds, of a store that is far away
PARALLEL = 8


class Night(NamedTuple):
    """The packs that a night registers and the blocks that it stops."""

    seq: int
    packs: tuple[PackRow, ...]
    stops: BlockList


@dataclass
class Life:
    """Ten years, night by night; always the same ones."""

    nights: int
    random: random.Random = field(default_factory=lambda: random.Random(7))
    dying: defaultdict[int, defaultdict[PackId, list[int]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def __iter__(self) -> Iterator[Night]:
        """Entry 1 is the admin's, so nights have the numbers from 2 on."""
        made = 0.0
        for seq in range(2, self.nights + 2):
            made += PACKS / NIGHTS
            packs = tuple(self._pack(seq) for _ in range(int(made)))
            made %= 1
            stops = sorted((pack, to_ranges(sorted(numbers))) for pack, numbers in self.dying.pop(seq, {}).items())
            yield Night(seq, packs, tuple(stops))

    def _pack(self, seq: int) -> PackRow:
        pack = PackId(f"{self.random.getrandbits(128):032x}")
        trees = self.random.random() < TREE_SHARE
        for number in range(BLOCKS):
            mean = MAIL_LIFE if not trees else SLEEPER_LIFE if self.random.random() < SLEEPERS else TREE_LIFE
            self.dying[seq + 1 + int(self.random.expovariate(1 / mean))][pack].append(number)
        hashes = [Digest(hashlib.sha256(f"{pack}{what}".encode()).hexdigest()) for what in ("object", "footer")]
        size = int(PACK_BYTES * self.random.uniform(0.8, 1.1))
        return PackRow(id=pack, size=size, sha256=hashes[0], blocks=BLOCKS, footer=hashes[1], epoch=1)


def time_of(seq: int) -> datetime:
    """When entry `seq` was made."""
    return START + timedelta(days=seq)


def entry_of(night: Night, signer: SigningKey, **members: Any) -> LedgerEntry:
    """The entry of a night, with a snapshot object that nobody reads."""
    name = Digest(hashlib.sha256(b"%d" % night.seq).hexdigest())
    row = ObjectRow(key=ObjectKey(f"snapshots/{night.seq:010d}-{name[:16]}.age"), sha256=name, size=40_000, epoch=1)
    return LedgerEntry(
        format=1, vault=VAULT, seq=night.seq, type="snapshot", time=f"{time_of(night.seq):%Y-%m-%dT%H:%M:%SZ}", signer=signer.public,
        packs=night.packs, snapshot=row, outcome="complete", **members,
    )  # fmt: skip


# ---------------------------------------------------------------- planning


def planning(nights: int, _: str) -> dict[str, Any]:
    """Three prunes after ten years without one: what goes first, eight days later, and a night after that."""
    began, signer = time.monotonic(), SigningKey.generate()
    history, learned = _history(nights, signer)
    built, built_rss = time.monotonic() - began, peak()
    rules, now = Rules(policy=POLICY, max_share=1.0), time_of(nights + 1) + timedelta(hours=1)
    runs = []
    for name, days in (("first", 0), ("eight days later", 8), ("the night after", 1)):
        now += timedelta(days=days)
        began, used = time.monotonic(), time.process_time()
        decided = plan(history, rules, now)
        spent = {"seconds": round(time.monotonic() - began, 3), "cpu_seconds": round(time.process_time() - used, 3)}
        runs.append({"run": name, **spent, **_said(decided)})
        members = {
            "snapshots": tuple(decided.drop),
            "gone": tuple(decided.gone),
            "packs": tuple(PackPart(id=pack) for pack in decided.packs),
        }
        history.book.learn(ActLink(_act(history, signer, "prune", now, **members), Digest("0" * 64)))
    life = history.registry.packs.values()
    return {
        "snapshots": nights, "packs": len(life), "blocks": BLOCKS * len(life), "stops": sum(pack.dead for pack in life),
        "dead_packs": sum(pack.is_dead for pack in life), "build_seconds": round(built, 2), "learn_cpu_seconds": round(learned, 2),
        "build_rss": built_rss, "runs": runs, "peak_rss": peak(),
    }  # fmt: skip


def _history(nights: int, signer: SigningKey) -> tuple[History, float]:
    """All entries learned, and the seconds that this took; making them up takes much longer."""
    registry, raw, seconds = Registry(), b"", 0.0
    entries = [EntryFacts(1, time_of(1), time_of(1))]
    for night in Life(nights):
        entry = entry_of(night, signer, prev=None, stops=night.stops)
        began = time.process_time()
        registry.learn(NOTHING, Link(night.seq, Digest("0" * 64), raw, entry))
        seconds += time.process_time() - began
        entries.append(EntryFacts(night.seq, time_of(night.seq), time_of(night.seq), "complete"))
    assert not registry.unreadable, registry.unreadable[0]
    book, head = Book(), (nights + 1, Digest("0" * 64))
    history = History(registry, book, entries, head)
    book.learn(ActLink(_act(history, signer, "audit", time_of(nights + 1)), Digest("0" * 64)))
    return history, seconds


def _act(history: History, signer: SigningKey, kind: ActType, moment: datetime, **members: Any) -> Act:
    """The next act, which rests on the whole ledger."""
    seq, head = len(history.book.acts) + 1, Head(seq=history.head[0], sha256=history.head[1])
    return Act(format=1, vault=VAULT, chain="c" * 32, seq=seq, prev=None, type=kind, time=f"{moment:%Y-%m-%dT%H:%M:%SZ}", signer=signer.public,
               head=head, **members)  # fmt: skip


NOTHING: Any = None  # the store of entries whose lists stand in their lines


def _said(decided: Plan) -> dict[str, Any]:
    return {
        "kept": sum(decision.keep for decision in decided.decisions), "drop": len(decided.drop), "gone": len(decided.gone),
        "packs": len(decided.packs), "waiting": decided.waiting, "held": decided.held, "live": decided.live,
        "guards": [guard.name for guard in decided.guards],
    }  # fmt: skip


# ---------------------------------------------------------------- the ledger


def ledger(nights: int, place: str) -> dict[str, Any]:
    """Write the ledger of ten years, up to the end of the page that it is in, which is the worst case for a fresh reader."""
    admin, writer = SigningKey.generate(), SigningKey.generate()
    made = Made(place, admin, writer)
    sizes: dict[str, int] = {}
    last = nights + 1
    for night in Life(last + LEDGER_PAGE - last % LEDGER_PAGE - 2):
        made.add(night)
        if night.seq == last:
            sizes = dict(made.bytes)
    with open(f"{place}.json", "w", encoding="ascii") as file:
        json.dump({"admin": admin.public, "last": last}, file)
    return {"snapshots": nights, "bytes": {**sizes, "all": sum(sizes.values())}, "live_packs": len(made.live), "objects": made.objects}


class Made:
    """A ledger that is being written as the writer does, past the store's own care for durability."""

    def __init__(self, place: str, admin: SigningKey, writer: SigningKey) -> None:
        self.place, self.writer, self.objects = place, writer, 0
        self.live: dict[PackId, tuple[PackRow, set[int]]] = {}
        self.bytes: defaultdict[str, int] = defaultdict(int)
        entry = LedgerEntry(format=1, vault=VAULT, seq=1, prev=None, type="trust", time=f"{START:%Y-%m-%dT%H:%M:%SZ}", signer=admin.public,
                            grant=(Grant("writer", writer.public),))  # fmt: skip
        self.trust = self.prev = seal_line(codec.encode(entry), admin)
        self._put(VAULT_KEY, b"{}\n")  # tells a store from an empty mount point; nobody reads it here
        self._put(entry_key(1), self.trust)

    def add(self, night: Night) -> None:
        self._live(night)
        rows: dict[str, ObjectRow] = {}
        stops = night.stops
        if len(codec.encode(stops)) > INLINE_STOPS:
            rows["stops"], stops = self._list(night.seq, codec.encode(StopList(vault=VAULT, seq=night.seq, blocks=stops)), "stops"), ()
        page = night.seq % LEDGER_PAGE == 0
        if page:
            live = tuple(
                LivePack(id=row.id, size=row.size, sha256=row.sha256, blocks=row.blocks, footer=row.footer, epoch=1, live=to_ranges(sorted(numbers)))
                for row, numbers in self.live.values()
            )  # fmt: skip
            rows["live"] = self._list(night.seq, codec.encode(LiveList(vault=VAULT, seq=night.seq, packs=live, epochs=())), "live")
        entry = entry_of(
            night, self.writer, prev=digest(self.prev), stops=stops, lists=Lists(**rows) if rows else None,
            trust=(self.trust.decode(),) if page else (),
        )  # fmt: skip
        self.prev = seal_line(codec.encode(entry), self.writer)
        self._put(entry_key(night.seq), self.prev)

    def _live(self, night: Night) -> None:
        self.live |= {row.id: (row, set(range(BLOCKS))) for row in night.packs}
        for pack, ranges in night.stops:
            left = self.live[pack][1]
            for part in ranges.split(","):
                first, _, last = part.partition("-")
                left.difference_update(range(int(first), int(last or first) + 1))
            if not left:
                del self.live[pack]

    def _list(self, seq: int, data: bytes, kind: str) -> ObjectRow:
        packed = compress(data)
        row = ObjectRow(key=list_key(seq, digest(packed)), sha256=digest(packed), size=len(packed))
        self._put(row.key, packed, kind)
        return row

    def _put(self, key: ObjectKey, data: bytes, kind: str = "entries") -> None:
        path = os.path.join(self.place, key)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        self.bytes[kind] += len(data)
        self.objects += 1


# ---------------------------------------------------------------- reading it


class Far(Wrapper):
    """A store that is `LATENCY` away, for `parallel` requests at once. `last`: as if the ledger ended there."""

    def __init__(self, inner: LocalStore, parallel: int, latency: float) -> None:
        super().__init__(inner)
        self.traits = type(inner.traits)(range_reads=True, create_only=True, durable_after_put=True, parallel=parallel)
        self._latency, self._lines = latency, threading.Semaphore(parallel)
        self.verbs: defaultdict[str, int] = defaultdict(int)

    @contextlib.contextmanager
    def around(self, verb: str, key: str) -> Iterator[None]:  # type: ignore[override]
        self.verbs[f"{verb} {key.partition('/')[0]}"] += 1
        with self._lines:
            time.sleep(self._latency)
            yield


def opening(_: int, place: str) -> dict[str, Any]:
    """A fresh reader: the packs that live at the head, near, far, and far with one request at a time."""
    rows = []
    for name, parallel, latency in (("near", 1, 0.0), ("far", PARALLEL, LATENCY), ("far, one at a time", 1, LATENCY)):
        rows.append(
            {
                "store": name,
                **_timed(place, parallel, latency, lambda store, anchors: {"live_packs": len(live_registry(store, anchors).packs)}),
            }
        )
    return {"head": _head(place), "opens": rows, "peak_rss": peak()}


def whole(_: int, place: str) -> dict[str, Any]:
    """`prune --dry-run` and `stats` over the whole ledger, far away: everything is read, checked and decided."""
    rules, now = Rules(policy=POLICY), time_of(_head(place)) + timedelta(hours=1)

    def dry(store: Any, anchors: Anchors) -> dict[str, Any]:
        store.now = now.timestamp
        return _said(dry_run(store, anchors, rules).plan)

    found = {"prune --dry-run": _timed(place, PARALLEL, LATENCY, dry), "dry_run_peak_rss": peak()}
    found["stats"] = _timed(place, PARALLEL, LATENCY, lambda store, anchors: {"growth_rows": len(store_stats(store, anchors).growth)})
    return found


def _timed(place: str, parallel: int, latency: float, work: Callable[[Any, Anchors], dict[str, Any]]) -> dict[str, Any]:
    with open(f"{place}.json", encoding="ascii") as file:
        known = json.load(file)
    far = Far(LocalStore(place, "ledger"), parallel, latency)
    store, anchors = CountedStore(far), Anchors(vault=VAULT, admin=known["admin"])
    began, used = time.monotonic(), time.process_time()
    said = work(store, anchors)
    spent = {"seconds": round(time.monotonic() - began, 3), "cpu_seconds": round(time.process_time() - used, 3)}
    return {**spent, "requests": store.requests, "bytes_read": store.bytes_read, "verbs": dict(far.verbs), **said}


def _head(place: str) -> int:
    page = max(os.listdir(f"{place}/ledger"))
    return int(max(os.listdir(f"{place}/ledger/{page}"))[:10])


def peak() -> int:
    """Bytes of this process's peak."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


STEPS: dict[str, Callable[[int, str], dict[str, Any]]] = {"planning": planning, "ledger": ledger, "opening": opening, "whole": whole}


def main() -> int:
    """Each step in a process of its own, so that each has its own peak."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nights", type=int, default=NIGHTS)
    parser.add_argument("--only", default=",".join(STEPS))
    parser.add_argument("--dir", help="where the ledger is written; kept")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        print(json.dumps(STEPS[args.step](args.nights, args.dir)))
        return 0
    folder = args.dir or os.path.join(tempfile.mkdtemp(prefix="upkeep-"), "vault")
    try:
        for step in args.only.split(","):
            command = [sys.executable, "-m", "tests.bench.upkeep_plan", "--step", step, "--nights", str(args.nights), "--dir", folder]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=3600)
            print(f"{step}: {json.dumps(json.loads(done.stdout), indent=1)}", flush=True)
    finally:
        if not args.dir:
            shutil.rmtree(os.path.dirname(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
