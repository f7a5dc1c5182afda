"""Reading blobs: each block is fetched by its address, opened, and every blob checked against its id before anybody gets it."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from mailbackup.content.block import blob_of, open_block
from mailbackup.content.ports import Opener
from mailbackup.errors import DamageError, ObjectDamaged, StoreError, WrongIdentity
from mailbackup.model.ids import PackId, pack_key
from mailbackup.model.tree import SEALED_LIMIT, BlobRef
from mailbackup.vault.nearest import Nearest

_CACHE = 32 << 20  # bytes of opened blocks that wait for their next use
_OPEN_AHEAD = 8  # blocks that are opened before they are asked for: some kilobytes may unpack to 16 MiB each
_FETCH_AHEAD = 24 << 20  # bytes, as stored, that are fetched before they are asked for
_SPAN = 2 << 20  # bytes that one request fetches at most when blocks lie side by side (a single block may be longer)
_GAP = 16 << 10  # bytes between two blocks that cost less than a further request
_NEAR = 8 << 20  # bytes, as stored, that came along with what was asked for
_LOOK = 32  # blocks among which neighbours are looked for

BlockName = tuple[str, int]


class BlockReader:
    """Opens blocks of a vault. Safe to use from several threads."""

    def __init__(self, stores: Nearest, opener: Opener) -> None:
        self._stores = stores
        self._opener = opener
        self._lock = threading.Lock()
        self._cache: OrderedDict[BlockName, bytes] = OrderedDict()
        self._cached = 0
        self._windows: OrderedDict[tuple[PackId, int], bytes] = OrderedDict()  # pack and offset → bytes as stored

    @property
    def parallel(self) -> int:
        """Requests at once that pay off."""
        return max(2, self._stores.first().traits.parallel)

    def blob(self, ref: BlobRef) -> bytes:
        """A blob, checked. Raises ObjectMissing, ObjectDamaged or WrongIdentity."""
        name = (ref.pack, ref.number)
        with self._lock:
            plain = self._cache.get(name)
            if plain is not None:
                self._cache.move_to_end(name)
        if plain is None:
            plain = self.unseal(ref, self._near(ref))
            self._keep(name, plain)
        return blob_of(plain, ref)

    def record(self, ref: BlobRef) -> bytes:
        """A blob of a tree, checked. What a tree refers to was written just before it, so a distant store gives some of that in the same answer."""
        cost = self._stores.first().traits.request_cost
        if cost and (ref.pack, ref.number) not in self._cache and self._near(ref) is None:
            start = max(0, ref.offset - cost)
            self._hold(ref.pack, start, self.fetch(ref.pack, start, ref.offset - start + ref.length))
        return self.blob(ref)

    def prefetch(self, refs: Iterable[BlobRef]) -> None:
        """Fetch blocks that will be asked for soon, neighbours in one request and several requests at once, as far as there is room."""
        wanted = {(ref.pack, ref.number): ref for ref in refs if (ref.pack, ref.number) not in self._cache and self._near(ref) is None}
        if len(wanted) < 2:
            return
        room = _NEAR
        spans = []
        for span in _spans(sorted(wanted.values(), key=lambda ref: (ref.pack, ref.offset))):
            room -= span[2]
            if room < 0:
                break
            spans.append(span)
        with ThreadPoolExecutor(self.parallel, "prefetch") as pool:
            for (pack, start, _), data in zip(spans, pool.map(lambda span: self.fetch(*span), spans), strict=True):
                self._hold(pack, start, data)

    def _near(self, ref: BlobRef) -> bytes | None:
        """The bytes of a block, where they came along with another one."""
        with self._lock:
            for (pack, start), data in self._windows.items():
                if pack == ref.pack and start <= ref.offset and ref.offset + ref.length <= start + len(data):
                    return data[ref.offset - start : ref.offset - start + ref.length]
        return None

    def _hold(self, pack: PackId, start: int, data: bytes | None) -> None:
        if data is None:
            return
        with self._lock:
            self._windows[pack, start] = data
            while sum(map(len, self._windows.values())) > _NEAR and len(self._windows) > 1:
                self._windows.popitem(last=False)

    def open(self, ref: BlobRef) -> bytes:
        """The plaintext of the block that a ref names, from the nearest store that has it whole."""
        what = _checked(ref)
        key = pack_key(ref.pack)
        return self._stores.read(key, lambda store: open_block(self._opener, store.get_range(key, ref.offset, ref.length), what))

    def fetch(self, pack: PackId, offset: int, length: int) -> bytes | None:
        """Bytes of a pack from the nearest store, unchecked; None when it does not give them."""
        try:
            return self._stores.first().get_range(pack_key(pack), offset, length)
        except (DamageError, StoreError):
            return None

    def unseal(self, ref: BlobRef, sealed: bytes | None) -> bytes:
        """The plaintext of a block whose bytes were fetched before; they are fetched anew when they are not what they should be."""
        if sealed is not None:
            try:
                return open_block(self._opener, sealed, _checked(ref))
            except (DamageError, WrongIdentity):
                pass  # reading it once more looks in every place, and says what is wrong
        return self.open(ref)

    def _keep(self, name: BlockName, plain: bytes) -> None:
        with self._lock:
            if name not in self._cache:
                self._cache[name] = plain
                self._cached += len(plain)
            while self._cached > _CACHE and len(self._cache) > 1:
                self._cached -= len(self._cache.popitem(last=False)[1])


def _spans(refs: Iterable[BlobRef]) -> Iterator[tuple[PackId, int, int]]:
    """Pack, offset and length of the requests that fetch these blocks, which are in order."""
    pack, low, high = PackId(""), 0, 0
    for ref in refs:
        end = ref.offset + ref.length
        if ref.pack == pack and ref.offset <= high + _GAP and end - low <= _SPAN:
            high = max(high, end)
            continue
        if high:
            yield pack, low, high - low
        pack, low, high = ref.pack, ref.offset, end
    if high:
        yield pack, low, high - low


def _checked(ref: BlobRef) -> str:
    """What the block of a ref is called in errors. Raises ObjectDamaged when it cannot be one."""
    what = f"block {ref.number} of pack {ref.pack}"
    if not (0 < ref.length <= SEALED_LIMIT and ref.offset >= 0):
        raise ObjectDamaged(f"{what}: its ref is outside of what the format allows")
    return what


@dataclass(frozen=True, slots=True)
class _Fetched:
    """A block on its way: it begins at `start` of the bytes that one request brings."""

    ref: BlobRef
    span: Future[bytes | None]
    start: int


class BlockStream:
    """Blobs in a known order: blocks are fetched ahead, neighbours in one request and several requests at once, opened ahead, and kept until their last use
    (or until memory is short)."""

    def __init__(self, reader: BlockReader, order: Iterable[BlobRef], *, threads: int = 2) -> None:
        self._reader = reader
        self._uses: Counter[BlockName] = Counter()
        first: dict[BlockName, BlobRef] = {}
        for ref in order:
            self._uses[ref.pack, ref.number] += 1
            first.setdefault((ref.pack, ref.number), ref)
        self._order = {name: place for place, name in enumerate(first)}
        self._queue = deque(first.values())  # to be fetched
        self._fetched: OrderedDict[BlockName, _Fetched] = OrderedDict()  # to be opened
        self._ahead = 0  # bytes of those, and of those that are being opened
        self._opening: OrderedDict[BlockName, tuple[Future[bytes], int]] = OrderedDict()
        self._held: OrderedDict[BlockName, bytes] = OrderedDict()
        self._held_bytes = 0
        self._broken: dict[BlockName, DamageError | WrongIdentity] = {}
        self._fetchers = ThreadPoolExecutor(reader.parallel, "fetch") if first else None
        self._openers = ThreadPoolExecutor(max(1, threads), "open")

    def blob(self, ref: BlobRef) -> bytes:
        """The next blob, checked. Raises what opening its block raises; the stream goes on."""
        name = (ref.pack, ref.number)
        plain = self._held.get(name)
        if plain is None:
            plain = self._opened(name, ref)
        else:
            self._held.move_to_end(name)
        self._uses[name] -= 1
        if self._uses[name] > 0:
            self._hold(name, plain)
        elif name in self._held:
            self._held_bytes -= len(self._held.pop(name))
        return blob_of(plain, ref)

    def close(self) -> None:
        """Stop fetching."""
        for pool in (self._fetchers, self._openers):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def _opened(self, name: BlockName, ref: BlobRef) -> bytes:
        if name in self._broken:
            raise self._broken[name]
        self._skip_to(self._order.get(name, -1))
        self._schedule()
        waiting = self._opening.pop(name, None)
        if waiting is not None:
            self._ahead -= waiting[1]
        self._schedule()
        try:
            return self._reader.open(ref) if waiting is None else waiting[0].result()
        except (DamageError, WrongIdentity) as error:
            self._broken[name] = error
            raise

    def _skip_to(self, place: int) -> None:
        """Drop what stands before a place in the order and was not asked for: its file failed earlier, or is a further name of another."""
        while self._queue and self._place(self._queue[0]) < place:
            self._queue.popleft()
        for name in [name for name in self._fetched if self._order[name] < place]:
            self._ahead -= self._fetched.pop(name).ref.length
        while self._opening and self._order[next(iter(self._opening))] < place:
            _, (future, length) = self._opening.popitem(last=False)
            future.cancel()
            self._ahead -= length

    def _place(self, ref: BlobRef) -> int:
        return self._order[ref.pack, ref.number]

    def _schedule(self) -> None:
        """Fetch as far ahead as there is room, and open what comes first of it."""
        while self._queue and (not self._ahead or self._ahead + self._queue[0].length <= _FETCH_AHEAD):
            self._fetch(self._next_span())
        while self._fetched and len(self._opening) < _OPEN_AHEAD:
            name = min(self._fetched, key=self._order.__getitem__)
            fetched = self._fetched.pop(name)
            self._opening[name] = (self._openers.submit(self._open, fetched), fetched.ref.length)

    def _open(self, fetched: _Fetched) -> bytes:
        data = fetched.span.result()
        sealed = None if data is None else data[fetched.start : fetched.start + fetched.ref.length]
        return self._reader.unseal(fetched.ref, sealed)

    def _next_span(self) -> list[BlobRef]:
        """The next block, and those of the following that lie beside it in its pack."""
        first = self._queue.popleft()
        span, low, high = [first], first.offset, first.offset + first.length
        for ref in list(islice(self._queue, _LOOK)):
            start, end = min(low, ref.offset), max(high, ref.offset + ref.length)
            beside = ref.offset <= high + _GAP and ref.offset + ref.length >= low - _GAP
            if ref.pack == first.pack and beside and end - start <= _SPAN:
                span.append(ref)
                self._queue.remove(ref)
                low, high = start, end
        return span

    def _fetch(self, span: list[BlobRef]) -> None:
        wanted = [ref for ref in span if (ref.pack, ref.number) not in self._held and self._uses[ref.pack, ref.number] > 0]
        if not wanted or self._fetchers is None:
            return
        low, high = min(ref.offset for ref in wanted), max(ref.offset + ref.length for ref in wanted)
        whole = self._fetchers.submit(self._reader.fetch, wanted[0].pack, low, high - low)
        for ref in wanted:
            self._fetched[ref.pack, ref.number] = _Fetched(ref, whole, ref.offset - low)
            self._ahead += ref.length

    def _hold(self, name: BlockName, plain: bytes) -> None:
        if name not in self._held:
            self._held[name] = plain
            self._held_bytes += len(plain)
        while self._held_bytes > _CACHE and len(self._held) > 1:
            self._held_bytes -= len(self._held.popitem(last=False)[1])
