"""A large object on its way: spooled to a file without a name, sent by one request at commit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mailbackup.host import translated
from mailbackup.stores.s3.payload import Payload, Spool


class Writer:
    """See `ObjectWriter`; `ship` sends what was written. For one thread."""

    def __init__(self, key: str, ship: Callable[[str, Payload], None]) -> None:
        self._key = key
        self._ship = ship
        self._spool: Spool | None = None
        with translated(f"spool {key}"):
            self._spool = Spool()

    def write(self, data: bytes | memoryview) -> None:
        """See `ObjectWriter.write`. Raises NoSpace when the spool's file system is full."""
        with self._or_abort() as spool:
            spool.write(data)

    def commit(self) -> None:
        """See `ObjectWriter.commit`."""
        with self._or_abort() as spool:
            self._ship(self._key, spool.payload())
        self.abort()

    def abort(self) -> None:
        """See `ObjectWriter.abort`."""
        spool, self._spool = self._spool, None
        if spool is not None:
            with contextlib.suppress(OSError):  # closing writes what is left, which nobody wants
                spool.close()

    @contextmanager
    def _or_abort(self) -> Iterator[Spool]:
        if self._spool is None:
            raise ValueError(f"the writer of {self._key} was committed or aborted before")
        try:
            with translated(f"spool {self._key}"):
                yield self._spool
        except BaseException:
            self.abort()
            raise
