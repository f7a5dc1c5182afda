"""The bytes of one object on their way to the service: in memory, or in a file without a name."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tempfile
from dataclasses import dataclass
from typing import IO

from mailbackup.stores.bandwidth import Bandwidth

_PIECE = 1 << 20


class Throttled(io.RawIOBase):
    """A file whose reading waits for the bandwidth once `sending` is set."""

    def __init__(self, inner: IO[bytes], bandwidth: Bandwidth) -> None:
        super().__init__()
        self.sending = False
        self._inner = inner
        self._bandwidth = bandwidth

    def read(self, size: int = -1) -> bytes:
        """See `io.RawIOBase.read`."""
        data = self._inner.read(size)
        if self.sending:
            self._bandwidth.take(len(data))
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """See `io.IOBase.seek`."""
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        """See `io.IOBase.tell`."""
        return self._inner.tell()

    def seekable(self) -> bool:
        """True."""
        return True

    def readable(self) -> bool:
        """True."""
        return True


@dataclass(frozen=True)
class Payload:
    """All bytes of an object. `data` is a file only where they are many; then one thread at a time sends it."""

    size: int
    sha256: bytes
    data: bytes | IO[bytes]

    @classmethod
    def of(cls, data: bytes) -> Payload:
        """Bytes in memory."""
        return cls(len(data), hashlib.sha256(data).digest(), bytes(data))

    @property
    def checksum(self) -> str:
        """Its SHA-256 as S3 writes it."""
        return base64.b64encode(self.sha256).decode()

    def body(self, bandwidth: Bandwidth) -> bytes | IO[bytes] | Throttled:
        """What boto3 sends, from its first byte."""
        if isinstance(self.data, bytes):
            return self.data
        self.data.seek(0)
        return Throttled(self.data, bandwidth) if bandwidth.limited else self.data

    def md5(self) -> str:
        """Its MD5 in hexadecimal: what the ETag of an object is that was put in one request, unless the service encrypts it with a key."""
        found = hashlib.md5(usedforsecurity=False)
        if isinstance(self.data, bytes):
            found.update(self.data)
            return found.hexdigest()
        self.data.seek(0)
        while piece := self.data.read(_PIECE):
            found.update(piece)
        return found.hexdigest()


class Spool:
    """Collects a payload in a file without a name. Raises OSError."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._size = 0
        self.file = tempfile.TemporaryFile(dir=spool_folder(), buffering=_PIECE)  # noqa: SIM115 (lives as long as its writer)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self.file.write(data)
        self._hash.update(data)
        self._size += memoryview(data).nbytes

    def payload(self) -> Payload:
        """What was written; the spool takes nothing more."""
        self.file.flush()
        return Payload(self._size, self._hash.digest(), self.file)

    def close(self) -> None:
        """Drop it."""
        self.file.close()


def spool_folder() -> str | None:
    """Where spools lie: what the environment says, else /var/tmp, since /tmp is often memory."""
    if any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")) or not os.access("/var/tmp", os.W_OK):  # noqa: S108
        return None
    return "/var/tmp"  # noqa: S108
