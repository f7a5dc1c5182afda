"""The packing line: blobs become blocks, blocks are compressed and sealed by threads, and are appended to packs.

The reading thread calls `add_small` and `submit`; a bounded number of bytes is under way, so a slow disk or few cores hold it back
instead of filling the memory. zstd, hashing and a pooled sealer release the GIL, so threads are enough here. Blocks are appended in
the order in which they get ready; their place is written into their `Block` under the lock, and `settle` waits for that.

With `threads=0` everything happens in the calling thread, in one order: tests that die at operation k need that.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

from mailbackup.content.block import Block, Piece, seal_block
from mailbackup.content.pack import build_footer
from mailbackup.content.ports import Sealer
from mailbackup.model.ids import BlobId, Digest, ObjectKey, PackId, new_pack_id, pack_key
from mailbackup.model.tree import BLOCK_TARGET, PACK_TARGET
from mailbackup.stores.base import ObjectWriter

OpenPack = Callable[[ObjectKey], AbstractContextManager[ObjectWriter]]

_UNDER_WAY = 24 << 20  # bytes of plaintext that may wait for a thread
_PACKS_WAITING = 1  # packs that may wait for one of those that are on their way to the store


@dataclass(frozen=True, slots=True)
class FinishedPack:
    """A pack that is whole and durable in the store. `lengths` of its blocks, in bytes."""

    id: PackId
    size: int
    sha256: Digest
    footer: Digest
    lengths: tuple[int, ...]


class Lane:
    """An open shared block: small blobs of one kind of one mailbox (locality rule)."""

    __slots__ = ("block", "buffer")

    def __init__(self) -> None:
        self.block = Block()
        self.buffer = bytearray()


class _OpenPack:
    """A pack being written."""

    def __init__(self, open_pack: OpenPack) -> None:
        self.id = new_pack_id()
        self._open = ExitStack()
        self.writer = self._open.enter_context(open_pack(pack_key(self.id)))
        self.blocks: list[tuple[int, bytes]] = []
        self.size = 0
        self.sha256 = hashlib.sha256()

    def append(self, data: bytes) -> int:
        offset = self.size
        self.writer.write(data)
        self.sha256.update(data)
        self.size += len(data)
        return offset

    def finish(self) -> FinishedPack:
        footer = build_footer(self.blocks)
        self.append(footer)
        with self._open:
            self.writer.commit()
        return FinishedPack(
            self.id,
            self.size,
            Digest(self.sha256.hexdigest()),
            Digest(hashlib.sha256(footer).hexdigest()),
            tuple(length for length, _ in self.blocks),
        )

    def abort(self) -> None:
        self.writer.abort()
        self._open.close()


class PackWriter:
    """Turns blobs into packs of one epoch. Not thread-safe for callers except where said: one thread feeds it."""

    def __init__(self, sealer: Sealer, open_pack: OpenPack, *, level: int = 3, threads: int = 2, closing: int = 1) -> None:
        """`threads` seal; `closing` packs are sent to the store at once."""
        self._sealer = sealer
        self._open_pack = open_pack
        self._level = level
        self._changed = threading.Condition()  # guards everything below
        self._pack: _OpenPack | None = None
        self._under_way = 0
        self._closing = 0
        self._finished: list[FinishedPack] = []
        self._error: BaseException | None = None
        self._workers = ThreadPoolExecutor(threads, "seal") if threads else None
        self._closer = ThreadPoolExecutor(closing, "pack") if threads else None
        self._closing_limit = closing + _PACKS_WAITING
        self.stored = 0  # bytes appended to packs

    # -- feeding

    def add_small(self, lane: Lane, data: bytes | memoryview, blob: BlobId) -> Piece:
        """Append a small blob to a lane; the lane's block goes off when it is full."""
        if len(lane.buffer) + len(data) > BLOCK_TARGET:
            self.flush(lane)
        piece = Piece(lane.block, len(lane.buffer), len(data), blob)
        lane.buffer += data
        return piece

    def flush(self, lane: Lane) -> None:
        """Send off what a lane holds; it starts a new block."""
        if not lane.buffer:
            return
        block, plain = lane.block, lane.buffer
        lane.block, lane.buffer = Block(), bytearray()
        self.submit(len(plain), lambda: self.seal_into(block, plain))

    def submit(self, size: int, job: Callable[[], None]) -> None:
        """Run `job` in a worker thread, waiting first while too many bytes are under way. Raises what an earlier job raised."""
        if self._workers is None:
            job()
            return
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._under_way == 0 or self._under_way + size <= _UNDER_WAY)
            self._check()
            self._under_way += size
        self._workers.submit(self._run, size, job)

    def seal_into(self, block: Block, plain: bytes | bytearray | memoryview, level: int | None = None) -> None:
        """Compress, seal and append one block. Called from jobs, in any thread."""
        sealed = seal_block(self._sealer, plain, self._level if level is None else level)
        self._append(block, sealed, hashlib.sha256(sealed).digest())

    # -- waiting

    def settle(self, pieces: Iterable[Piece]) -> None:
        """Wait until the place of every piece is known. Raises what a job raised."""
        for piece in pieces:
            if not piece.placed:
                with self._changed:
                    self._changed.wait_for(lambda piece=piece: self._error or piece.placed)  # type: ignore[misc]
                    self._check()

    def finish_packs(self) -> list[FinishedPack]:
        """Close the open pack, wait until all are durable, and return those finished since the last call. What lanes hold goes
        into later packs."""
        with self._changed:
            self._changed.wait_for(lambda: self._error or self._under_way == 0)
            self._check()
            if self._pack is not None:
                self._close_pack()
            self._changed.wait_for(lambda: self._error or self._closing == 0)
            self._check()
            finished, self._finished = self._finished, []
            return finished

    def close(self) -> None:
        """Stop. What is not in a finished pack is dropped. Never raises."""
        with self._changed:
            self._error = self._error or RuntimeError("the packing line is closed")
            self._changed.notify_all()
        for pool in (self._workers, self._closer):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
        if self._pack is not None:
            self._pack.abort()
            self._pack = None

    # -- in the threads

    def _run(self, size: int, job: Callable[[], None]) -> None:
        try:
            if self._error is None:
                job()
        except BaseException as error:
            self._fail(error)
        finally:
            with self._changed:
                self._under_way -= size
                self._changed.notify_all()

    def _append(self, block: Block, sealed: bytes, sha256: bytes) -> None:
        with self._changed:
            self._check()
            try:
                self._append_locked(block, sealed, sha256)
            except BaseException as error:  # under the lock: the next thread must not meet the broken pack first
                self._error = self._error or error
                raise

    def _append_locked(self, block: Block, sealed: bytes, sha256: bytes) -> None:
        if self._pack is None:
            self._pack = _OpenPack(self._open_pack)
        pack = self._pack
        offset = pack.append(sealed)
        pack.blocks.append((len(sealed), sha256))
        self.stored += len(sealed)
        block.number, block.offset, block.length = len(pack.blocks) - 1, offset, len(sealed)
        block.pack = pack.id  # last: it says that the rest is known
        if pack.size >= PACK_TARGET:
            self._changed.wait_for(lambda: self._error or self._closing < self._closing_limit)
            if self._pack is pack and self._error is None:
                self._close_pack()
        self._changed.notify_all()

    def _close_pack(self) -> None:
        pack, self._pack = self._pack, None
        assert pack is not None, "no pack to close"
        self._closing += 1
        if self._closer is None:
            self._finish(pack)
        else:
            self._closer.submit(self._finish, pack)

    def _finish(self, pack: _OpenPack) -> None:
        try:
            finished = pack.finish()
        except BaseException as error:
            pack.abort()
            if self._closer is None:
                raise
            self._fail(error)
        else:
            with self._changed:
                self._finished.append(finished)
        finally:
            with self._changed:
                self._closing -= 1
                self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
