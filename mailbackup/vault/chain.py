"""Reading the ledger and the acts: nothing here trusts a store (format sections 4, 10, 11).

A `Link` is an entry whose signature or successor, signer, vault and number were checked. Whoever has a Link may use it; there is no other way
to get an entry.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

from mailbackup.content.zstd import decompress
from mailbackup.crypto.signing import split_signed, verify
from mailbackup.errors import AnchorMismatch, ChainBroken, DamageError, ObjectDamaged, ObjectMissing, RecordInvalid
from mailbackup.host import parse_stamp
from mailbackup.model import codec
from mailbackup.model.ids import LEDGER_PAGE, VAULT_KEY, Digest, ObjectKey, PublicKey, act_key, digest, entry_key, is_object_key
from mailbackup.model.ledger import Act, ActType, Anchors, LedgerEntry, LiveList, ObjectRow, Role, StopList, VaultInfo
from mailbackup.model.tree import LIST_LIMIT, RECORD_LIMIT
from mailbackup.stores.base import Store

T = TypeVar("T")


class Link(NamedTuple):
    """A checked entry of the ledger: its number, the hash of its object, the object's bytes and what they say."""

    seq: int
    sha256: Digest
    raw: bytes
    entry: LedgerEntry


_ROLES: dict[ActType, frozenset[Role]] = {
    "prune": frozenset({"prune"}),
    "undelete": frozenset({"prune"}),
    "pin": frozenset({"prune"}),
    "damage": frozenset({"prune"}),
    "ack": frozenset({"prune"}),
    "drill": frozenset({"drill"}),
    "received-without": frozenset({"prune", "writer"}),
    "erase": frozenset(),
    "audit": frozenset({"drill"}),
    "move": frozenset(),
}
"""Who may sign an act, besides the admin: no writer can make anything go."""


class Trust:
    """Who may sign, as the admin said so far."""

    def __init__(self, admin: PublicKey) -> None:
        self.admin = admin
        self.roles: dict[PublicKey, set[str]] = {}
        self.former: dict[tuple[PublicKey, str], dict[str, int]] = {}  # dismissed (key, role) → the last act that counts, by chain
        self.lines: list[str] = []  # whole trust entries, for the next page

    def learn(self, entry: LedgerEntry, raw: bytes) -> None:
        """Take over a `trust` entry whose signature was checked."""
        for grant in entry.grant:
            self.roles.setdefault(grant.key, set()).add(grant.role)
        for grant in entry.revoke:
            self.roles.get(grant.key, set()).discard(grant.role)
            self.former[grant.key, grant.role] = {seen.chain: seen.seq for seen in entry.acts}
        self.lines.append(raw.decode("utf-8"))

    def may_sign(self, entry: LedgerEntry) -> bool:
        """Whether the signer of an entry is trusted for its type."""
        if entry.type == "trust":
            return entry.signer == self.admin
        return "writer" in self.roles.get(entry.signer, ())

    def may_act(self, act: Act) -> bool:
        """Whether the signer of an act is trusted for it."""
        if act.signer == self.admin:
            return True
        roles = _ROLES[act.type]
        was = max((self.former.get((act.signer, role), {}).get(act.chain, 0) for role in roles), default=0)
        return act.seq <= was or not roles.isdisjoint(self.roles.get(act.signer, ()))


def uncovered(store: Store, key: ObjectKey, attempt: Callable[[], T]) -> T:
    """What `attempt` makes of an object: of its oldest version that will do, where the one in front is damaged, foreign or hidden.

    Objects are written once, so what lies in front of an older version is what somebody put there.
    """
    try:
        return attempt()
    except (DamageError, AnchorMismatch):
        while store.uncover(key):
            with contextlib.suppress(DamageError, AnchorMismatch):
                return attempt()
        raise


def check_vault_info(store: Store, anchors: Anchors) -> VaultInfo:
    """vault.json, compared with the anchors.

    Raises AnchorMismatch when the store holds another vault or one of a newer format, ObjectMissing or ObjectDamaged when there is none to read.
    """
    return uncovered(store, VAULT_KEY, lambda: _vault_info(store, anchors))


def _vault_info(store: Store, anchors: Anchors) -> VaultInfo:
    raw = store.get(VAULT_KEY, 1 << 20)
    try:
        info = codec.decode(raw, VaultInfo, VAULT_KEY)
    except RecordInvalid as error:
        _refuse_newer(raw, store)
        raise ObjectDamaged(f"store {store.name}: {error}") from None
    if (info.vault, info.admin) != (anchors.vault, anchors.admin):
        what = "vault" if info.vault != anchors.vault else "admin key"
        raise AnchorMismatch(
            f"store {store.name}: the {what} in vault.json is {getattr(info, what.split(maxsplit=1)[0])[:16]}…,"
            f" expected {getattr(anchors, what.split(maxsplit=1)[0])[:16]}…"
        )
    return info


def _refuse_newer(raw: bytes, store: Store) -> None:
    with contextlib.suppress(RecordInvalid):
        version = codec.decode(raw, dict[str, object], VAULT_KEY).get("format")
        if isinstance(version, int) and version > 1:
            raise AnchorMismatch(
                f"store {store.name}: vault.json says format {version}, and this version reads format 1 only",
                hint="Use a newer mailbackup.",
            )


def parse_entry(raw: bytes, key: str, anchors: Anchors) -> tuple[LedgerEntry, bytes, bytes]:
    """Entry, signed line and signature of a ledger object, with vault id checked. Raises ChainBroken."""
    try:
        line, signature = split_signed(raw)
        entry = codec.decode(line, LedgerEntry, key)
    except RecordInvalid as error:
        raise ChainBroken(f"{key}: {error}") from None
    if entry.vault != anchors.vault:
        raise ChainBroken(f"{key}: belongs to another vault")
    if entry_key(entry.seq) != key:
        raise ChainBroken(f"{key}: says that it is entry {entry.seq}")
    return entry, line, signature


def check_entry(raw: bytes, seq: int, prev: Digest | None, trust: Trust, anchors: Anchors) -> Link:
    """The entry as a Link. `prev` is the hash of its predecessor; None only for entry 1. Raises ChainBroken."""
    key = entry_key(seq)
    entry, line, signature = parse_entry(raw, key, anchors)
    if entry.prev != prev:
        raise ChainBroken(f"{key}: does not follow the entry before it")
    return _trusted(Link(seq, digest(raw), raw, entry), line, signature, trust, anchors)


def _trusted(link: Link, line: bytes, signature: bytes, trust: Trust, anchors: Anchors) -> Link:
    key = entry_key(link.seq)
    if not trust.may_sign(link.entry):
        raise ChainBroken(f"{key}: signed by {link.entry.signer[:16]}…, whom nobody trusts for a {link.entry.type} entry")
    if not verify(link.entry.signer, line, signature):
        raise ChainBroken(f"{key}: the signature is wrong")
    if anchors.head is not None and link.seq == anchors.head[0] and link.sha256 != anchors.head[1]:
        raise ChainBroken(f"{key}: is not the entry that was pinned; the ledger was replaced")
    return link


def find_head(store: Store) -> int:
    """Number of the last entry in the store; 0 if there is none. Gaps show up when the chain is walked."""
    pages = [page for page in store.prefixes("ledger/") if page.removeprefix("ledger/").rstrip("/").isdigit()]
    for page in reversed(pages):
        keys = [key for key, _ in store.list(page) if is_object_key(key)]
        numbers = [
            int(key[-15:-5]) for key in keys if key == entry_key(int(key[-15:-5]))
        ]  # a stray object in another page counts for nothing
        if numbers:
            return max(numbers)
    return 0


def check_head(head: int, anchors: Anchors) -> None:
    """Raises ChainBroken when the ledger ends before the pinned entry: its tail was cut off, or the store is an older copy."""
    if anchors.head is not None and head < anchors.head[0]:
        raise ChainBroken(
            f"the ledger ends at entry {head}, but entry {anchors.head[0]} was seen before: newer backups are missing from this store"
        )


Known = dict[int, bytes]
"""Entries that were read a moment ago, by number: the pinned one, the head and the first of a page are often the same."""


def _known_raw(store: Store, seq: int, known: Known | None) -> bytes:
    if known is None:
        return read_raw(store, seq)
    if seq not in known:
        known[seq] = read_raw(store, seq)
    return known[seq]


def read_raw(store: Store, seq: int) -> bytes:
    """The bytes of an entry. Raises ChainBroken when it is missing."""
    try:
        return uncovered(store, entry_key(seq), lambda: store.get(entry_key(seq), RECORD_LIMIT))
    except (ObjectMissing, ObjectDamaged) as error:
        raise ChainBroken(f"{entry_key(seq)}: {error}") from None


def walk(store: Store, anchors: Anchors, trust: Trust, *, last: int, after: tuple[int, Digest] | None = None) -> Iterator[Link]:
    """The entries behind `after` (None = from the first) up to `last`, each checked; `trust` learns on the way. Raises ChainBroken.

    Entries are fetched ahead, as many at once as pays off in this store, and judged one after another.
    """
    seq, prev = after if after is not None else (0, None)
    with contextlib.closing(_ahead(store, seq + 1, last)) as fetched:
        for fetch in fetched:
            seq += 1
            link = uncovered(store, entry_key(seq), partial(_next, fetch, seq, prev, trust, anchors))
            if link.entry.type == "trust":
                trust.learn(link.entry, link.raw)
            prev = link.sha256
            yield link


def _next(fetch: Callable[[], bytes], seq: int, prev: Digest | None, trust: Trust, anchors: Anchors) -> Link:
    return check_entry(fetch(), seq, prev, trust, anchors)


Fetch = Callable[[], bytes]
"""The bytes of an entry: the first call gives (or raises) what was fetched ahead, each further one asks the store."""


def _ahead(store: Store, first: int, last: int) -> Generator[Fetch, None, None]:
    """How to get each of the entries from `first` to `last`, in order. At most twice as many wait as are fetched at once."""
    if store.traits.parallel < 2 or last <= first:
        yield from (partial(read_raw, store, seq) for seq in range(first, last + 1))
        return
    numbers = iter(range(first, last + 1))
    with ThreadPoolExecutor(min(store.traits.parallel, last + 1 - first), "ledger") as pool:
        waiting = deque((seq, pool.submit(read_raw, store, seq)) for seq in itertools.islice(numbers, 2 * store.traits.parallel))
        try:
            while waiting:
                seq, future = waiting.popleft()
                yield _once(future, store, seq)
                waiting.extend((seq, pool.submit(read_raw, store, seq)) for seq in itertools.islice(numbers, 1))
        finally:
            for _, future in waiting:
                future.cancel()


def _once(future: Future[bytes], store: Store, seq: int) -> Fetch:
    """What was fetched ahead, once: a version that was uncovered since is not what it holds."""
    tries = iter([future.result])

    def fetch() -> bytes:
        return next(tries, partial(read_raw, store, seq))()

    return fetch


def page_trust(store: Store, seq: int, anchors: Anchors, known: Known | None = None) -> Trust:
    """Who is trusted at entry `seq`, from the trust entries that its page repeats and those of the page up to it: few requests at any age.

    Each of them carries the admin's own signature, so they need not be reached by walking. Raises ChainBroken.
    """
    first = seq - seq % LEDGER_PAGE
    if first:
        entry, _, _ = parse_entry(_known_raw(store, first, known), entry_key(first), anchors)
        return trust_of(entry.trust, anchors)
    trust = Trust(anchors.admin)
    _learn_signed(trust, _known_raw(store, 1, known), anchors)
    return trust


def trust_within(store: Store, seq: int, anchors: Anchors) -> Trust:
    """Who is trusted after entry `seq`, by all trust entries up to it. Costs a request for each entry of its page."""
    trust = page_trust(store, seq, anchors)
    _learn_page(store, seq, trust, anchors)
    return trust


def trust_of(lines: Iterable[str], anchors: Anchors) -> Trust:
    """Who is trusted by these whole trust entries. Raises ChainBroken."""
    trust = Trust(anchors.admin)
    for text in lines:
        _learn_signed(trust, text.encode("utf-8"), anchors)
    return trust


def _learn_signed(trust: Trust, raw: bytes, anchors: Anchors) -> None:
    try:
        line, signature = split_signed(raw)
        entry = codec.decode(line, LedgerEntry, "trust entry")
    except RecordInvalid as error:
        raise ChainBroken(str(error)) from None
    if entry.vault != anchors.vault or entry.type != "trust" or entry.signer != anchors.admin or not verify(anchors.admin, line, signature):
        raise ChainBroken("a trust entry is not signed by the admin key that the anchors name")
    trust.learn(entry, raw)


def backwards(store: Store, anchors: Anchors, head: int) -> Iterator[Link]:
    """The entries from the head back to the first: what a reader without a state uses. Raises ChainBroken.

    The head must be signed by someone trusted; each older entry must be the one whose hash its successor holds, so its content is as
    trusted as the successor is. Entries of a writer that the admin had dismissed by then come to light when the walk meets the dismissal.
    The pinned entry is checked also when the reader does not get that far back.
    """
    check_head(head, anchors)
    known: Known = {}
    if anchors.head is not None and anchors.head[0] != head and digest(_known_raw(store, anchors.head[0], known)) != anchors.head[1]:
        raise ChainBroken(f"{entry_key(anchors.head[0])}: is not the entry that was pinned; the ledger was replaced")
    link = _alone(store, anchors, head, known)
    signers = _Signers(anchors.admin)
    signers.meet(link)
    yield link
    while link.entry.prev is not None:
        raw = uncovered(store, entry_key(link.seq - 1), partial(_named_by, store, link))
        entry, _, _ = parse_entry(raw, entry_key(link.seq - 1), anchors)
        link = Link(link.seq - 1, digest(raw), raw, entry)
        signers.meet(link)
        yield link
    if link.seq != 1:
        raise ChainBroken(f"{entry_key(link.seq)}: has no predecessor")


def _named_by(store: Store, link: Link) -> bytes:
    """The entry before, which must be the one that this one names."""
    raw = read_raw(store, link.seq - 1)
    if digest(raw) != link.entry.prev:
        raise ChainBroken(f"{entry_key(link.seq - 1)}: is not the entry that its successor names")
    return raw


class _Signers:
    """Who signed the entries of a walk towards the past, until the trust entry that named them is met."""

    def __init__(self, admin: PublicKey) -> None:
        self._admin = admin
        self._unnamed: dict[PublicKey, int] = {}  # writer → the oldest entry of it that was met

    def meet(self, link: Link) -> None:
        """Raises ChainBroken when a writer signed after it was dismissed, or before it was named."""
        entry = link.entry
        if entry.type != "trust":
            self._unnamed[entry.signer] = link.seq
            return
        if entry.signer != self._admin:
            raise ChainBroken(f"{entry_key(link.seq)}: a trust entry that the admin did not sign")
        for grant in entry.revoke:
            if grant.role == "writer" and grant.key in self._unnamed:
                raise ChainBroken(f"{entry_key(self._unnamed[grant.key])}: its writer {grant.key[:16]}… was dismissed by entry {link.seq}")
        for grant in entry.grant:
            if grant.role == "writer":
                self._unnamed.pop(grant.key, None)
        if link.seq == 1 and self._unnamed:
            raise ChainBroken(f"{entry_key(min(self._unnamed.values()))}: nobody ever named its writer")


def entry_at(store: Store, anchors: Anchors, seq: int) -> Link:
    """One entry, by its own signature: what lies between it and the head may be damaged. Raises ChainBroken.

    That suffices for a restore of what a person asked for by its number, and costs the same at any age. No other valid entry may stand in the
    place of the pinned one; that the ledger reaches it was checked by the caller (`check_head`).
    """
    if anchors.head is not None and seq != anchors.head[0]:
        _refuse_other_than_pinned(store, anchors, anchors.head)
    return _alone(store, anchors, seq)


def _refuse_other_than_pinned(store: Store, anchors: Anchors, pinned: tuple[int, Digest]) -> None:
    """A pinned entry that is damaged is left to `verify`; another valid one in its place means that the ledger was replaced."""
    try:
        link = _alone(store, Anchors(vault=anchors.vault, admin=anchors.admin), pinned[0])
    except ChainBroken:
        return
    if link.sha256 != pinned[1]:
        raise ChainBroken(f"{entry_key(pinned[0])}: is not the entry that was pinned; the ledger was replaced")


def _alone(store: Store, anchors: Anchors, seq: int, known: Known | None = None) -> Link:
    """An entry, judged by its own signature and by who is trusted in its page."""
    return uncovered(store, entry_key(seq), lambda: _judged_alone(store, anchors, seq, known))


def _judged_alone(store: Store, anchors: Anchors, seq: int, known: Known | None) -> Link:
    raw = read_raw(store, seq)
    entry, line, signature = parse_entry(raw, entry_key(seq), anchors)
    trust = page_trust(store, seq, anchors, known)
    if not trust.may_sign(entry):
        _learn_page(store, seq, trust, anchors)
    return _trusted(Link(seq, digest(raw), raw, entry), line, signature, trust, anchors)


def _learn_page(store: Store, seq: int, trust: Trust, anchors: Anchors) -> None:
    """Trust entries inside the page of entry `seq`: looked for only when its signer is new, since most vaults have none after entry 1."""
    with contextlib.closing(_ahead(store, max(2, seq - seq % LEDGER_PAGE), seq)) as fetched:
        for raw in (fetch() for fetch in fetched):
            if b'"type":"trust"' in raw:
                _learn_signed(trust, raw, anchors)


def read_list(store: Store, row: ObjectRow) -> bytes:
    """The JSON of a list object that an entry signs. Raises ObjectMissing or ObjectDamaged."""
    return decompress(uncovered(store, row.key, lambda: named(store, row)), LIST_LIMIT, row.key)


def named(store: Store, row: ObjectRow) -> bytes:
    """The bytes of an object that an entry signs. Raises ObjectMissing or ObjectDamaged."""
    raw = store.get(row.key, row.size)
    if len(raw) != row.size or digest(raw) != row.sha256:
        raise ObjectDamaged(f"{row.key}: is not the object that the ledger names")
    return raw


def stops_of(store: Store, entry: LedgerEntry) -> Iterable[tuple[str, str]]:
    """The blocks that an entry stops, as (pack, ranges), from the line or from its list."""
    if entry.lists is None or entry.lists.stops is None:
        return entry.stops
    stops = codec.decode(read_list(store, entry.lists.stops), StopList, entry.lists.stops.key)
    if (stops.vault, stops.seq) != (entry.vault, entry.seq):
        raise ChainBroken(f"{entry.lists.stops.key}: belongs to another entry")
    return stops.blocks


def live_list_of(store: Store, entry: LedgerEntry) -> LiveList | None:
    """The live set that an entry carries, if it carries one."""
    if entry.lists is None or entry.lists.live is None:
        return None
    live = codec.decode(read_list(store, entry.lists.live), LiveList, entry.lists.live.key)
    if (live.vault, live.seq) != (entry.vault, entry.seq):
        raise ChainBroken(f"{entry.lists.live.key}: belongs to another entry")
    return live


class ActLink(NamedTuple):
    """A checked act, and the hash of its object."""

    act: Act
    sha256: Digest


def read_acts(store: Store, anchors: Anchors, trust: Trust, chain: str | None = None) -> Iterator[ActLink]:
    """The acts of a store in order, each checked like an entry; `chain` is the id seen before, if any. Raises ChainBroken.

    `trust` must know every signer that was ever named, also those that were dismissed since: an act stays valid.
    """
    prev: Digest | None = None
    keys = sorted(key for key, _ in store.list("acts/") if is_object_key(key))
    with ThreadPoolExecutor(max(1, min(store.traits.parallel, len(keys))), "acts") as pool:
        for seq, (key, read) in enumerate(zip(keys, pool.map(partial(_act_of, store, trust), keys), strict=True), 1):
            if key != act_key(seq):
                raise ChainBroken(f"{act_key(seq)}: is missing")
            act, sha256 = read
            chain = chain or act.chain
            if (act.vault, act.chain, act.seq, act.prev) != (anchors.vault, chain, seq, prev):
                raise ChainBroken(f"{key}: does not belong here")
            prev = sha256
            yield ActLink(act, sha256)


def _act_of(store: Store, trust: Trust, key: str) -> ActLink:
    """One act, with the signature checked. Of several versions the oldest that someone trusted signed counts."""
    try:
        return uncovered(store, ObjectKey(key), lambda: _signed_act(store, trust, ObjectKey(key)))
    except (ObjectMissing, ObjectDamaged, RecordInvalid) as error:
        raise ChainBroken(f"{key}: {error}") from None


def _signed_act(store: Store, trust: Trust, key: ObjectKey) -> ActLink:
    raw = store.get(key, RECORD_LIMIT)
    line, signature = split_signed(raw)
    act = codec.decode(line, Act, key)
    if not trust.may_act(act) or not verify(act.signer, line, signature):
        raise ChainBroken(
            f"{key}: is not signed by someone trusted",
            hint="Nothing is pruned before that object is gone: somebody put it there, or signed it after being dismissed. Look who could; then whoever"
            " may delete in this store removes it (with all its versions).",
        )
    parse_stamp(act.time)
    return ActLink(act, digest(raw))
