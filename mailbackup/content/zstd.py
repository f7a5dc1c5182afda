"""Compression: one zstd frame in, one out, never more than the caller allows."""

from __future__ import annotations

import sys
import threading

from mailbackup.errors import ObjectDamaged

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_WINDOW_LOG_MAX = 24  # 16 MiB of window at most, whatever a hostile frame asks for; level 3 uses 2 MiB

_SAMPLE = 64 * 1024
_INCOMPRESSIBLE = 0.745

_local = threading.local()


def compress(data: bytes | bytearray | memoryview, level: int = 3) -> bytes:
    """One zstd frame of `data`. Contexts are kept per thread, since making one costs more than a small blob."""
    contexts: dict[int, zstd.ZstdCompressor] = _local.__dict__.setdefault("contexts", {})
    context = contexts.get(level)
    if context is None:
        context = contexts[level] = zstd.ZstdCompressor(level=level)
    return context.compress(data, zstd.ZstdCompressor.FLUSH_FRAME)


def fitting_level(data: bytes | memoryview, level: int) -> int:
    """The level at which to compress a large body: 1 when a sample says that it is base64 of what does not compress (a picture, a PDF), where
    every level gives 0.757 and level 1 is a third faster; else `level`."""
    middle = len(data) // 2
    sample = data[middle : middle + _SAMPLE]
    return 1 if level > 1 and len(compress(sample, 1)) > _INCOMPRESSIBLE * len(sample) else level


def decompress(data: bytes | memoryview, limit: int, what: str) -> bytes:
    """The content of the frame that `data` is. Raises ObjectDamaged when it is not one whole frame or holds more than `limit` bytes."""
    context = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX})
    try:
        plain = context.decompress(data, limit + 1)
    except zstd.ZstdError as error:
        raise ObjectDamaged(f"{what}: not a zstd frame ({error})") from None
    if len(plain) > limit:
        raise ObjectDamaged(f"{what}: holds more than the {limit} bytes that the format allows")
    if not context.eof or context.unused_data:
        raise ObjectDamaged(f"{what}: the zstd frame is cut off or followed by other bytes")
    return plain
