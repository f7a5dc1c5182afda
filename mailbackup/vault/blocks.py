"""Reading blobs: each block is fetched by its address, opened, and every blob checked against its id before anybody gets it."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from mailbackup.content.block import blob_of, open_block
from mailbackup.content.ports import Opener
from mailbackup.errors import DamageError, ObjectDamaged, WrongIdentity
from mailbackup.model.ids import pack_key
from mailbackup.model.tree import SEALED_LIMIT, BlobRef
from mailbackup.stores.base import Store

_CACHE = 32 << 20  # bytes of opened blocks that wait for their next use
_AHEAD = 12 << 20  # bytes of blocks (as stored) that are fetched before they are asked for
_AHEAD_BLOCKS = 8  # of these: some kilobytes may unpack to 16 MiB each

BlockName = tuple[str, int]


class BlockReader:
    """Opens blocks of one store. Counts what it fetched. Safe to use from several threads."""

    def __init__(self, store: Store, opener: Opener) -> None:
        self._store = store
        self._opener = opener
        self._lock = threading.Lock()
        self._cache: OrderedDict[BlockName, bytes] = OrderedDict()
        self._cached = 0

    def blob(self, ref: BlobRef) -> bytes:
        """A blob, checked. Raises ObjectMissing, ObjectDamaged or WrongIdentity."""
        name = (ref.pack, ref.number)
        with self._lock:
            plain = self._cache.get(name)
            if plain is not None:
                self._cache.move_to_end(name)
        if plain is None:
            plain = self.open(ref)
            self._keep(name, plain)
        return blob_of(plain, ref)

    def open(self, ref: BlobRef) -> bytes:
        """The plaintext of the block that a ref names."""
        what = f"block {ref.number} of pack {ref.pack}"
        if not (0 < ref.length <= SEALED_LIMIT and ref.offset >= 0):
            raise ObjectDamaged(f"{what}: its ref is outside of what the format allows")
        return open_block(self._opener, self._store.get_range(pack_key(ref.pack), ref.offset, ref.length), what)

    def _keep(self, name: BlockName, plain: bytes) -> None:
        with self._lock:
            if name not in self._cache:
                self._cache[name] = plain
                self._cached += len(plain)
            while self._cached > _CACHE and len(self._cache) > 1:
                self._cached -= len(self._cache.popitem(last=False)[1])


class BlockStream:
    """Blobs in a known order: blocks are fetched and opened ahead by threads, and kept until their last use (or until memory is short)."""

    def __init__(self, reader: BlockReader, order: Iterable[BlobRef], *, threads: int = 2) -> None:
        self._reader = reader
        self._uses: Counter[BlockName] = Counter()
        first: dict[BlockName, BlobRef] = {}
        for ref in order:
            self._uses[ref.pack, ref.number] += 1
            first.setdefault((ref.pack, ref.number), ref)
        self._order = {name: place for place, name in enumerate(first)}
        self._queue = list(reversed(first.values()))
        self._futures: OrderedDict[BlockName, tuple[Future[bytes], int]] = OrderedDict()
        self._ahead = 0
        self._held: OrderedDict[BlockName, bytes] = OrderedDict()
        self._held_bytes = 0
        self._broken: dict[BlockName, DamageError | WrongIdentity] = {}
        self._pool = ThreadPoolExecutor(max(1, threads), "open")

    def blob(self, ref: BlobRef) -> bytes:
        """The next blob, checked. Raises what opening its block raises; the stream goes on."""
        name = (ref.pack, ref.number)
        plain = self._held.get(name)
        if plain is None:
            plain = self._fetched(name, ref)
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
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fetched(self, name: BlockName, ref: BlobRef) -> bytes:
        if name in self._broken:
            raise self._broken[name]
        self._skip_to(name)
        self._schedule()
        waiting = self._futures.pop(name, None)
        if waiting is not None:
            self._ahead -= waiting[1]
        self._schedule()
        try:
            return self._reader.open(ref) if waiting is None else waiting[0].result()
        except (DamageError, WrongIdentity) as error:
            self._broken[name] = error
            raise

    def _skip_to(self, name: BlockName) -> None:
        """Drop what stands before a block in the order and was not asked for: its file failed earlier, or is a further name of another."""
        place = self._order.get(name, -1)
        while self._queue and self._order[self._queue[-1].pack, self._queue[-1].number] < place:
            self._queue.pop()
        while self._futures and self._order[next(iter(self._futures))] < place:
            _, (future, length) = self._futures.popitem(last=False)
            future.cancel()
            self._ahead -= length

    def _schedule(self) -> None:
        while self._queue and len(self._futures) < _AHEAD_BLOCKS and (self._ahead + self._queue[-1].length <= _AHEAD or not self._futures):
            ref = self._queue.pop()
            name = (ref.pack, ref.number)
            if name in self._held or self._uses[name] <= 0:
                continue
            self._futures[name] = (self._pool.submit(self._reader.open, ref), ref.length)
            self._ahead += ref.length

    def _hold(self, name: BlockName, plain: bytes) -> None:
        if name not in self._held:
            self._held[name] = plain
            self._held_bytes += len(plain)
        while self._held_bytes > _CACHE and len(self._held) > 1:
            self._held_bytes -= len(self._held.popitem(last=False)[1])
