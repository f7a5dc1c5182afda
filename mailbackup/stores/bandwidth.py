"""A limit of bytes per second that threads share."""

from __future__ import annotations

import threading
import time


class Bandwidth:
    """At most `rate` bytes per second over any few seconds; None = no limit. For any number of threads."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._free = 0.0  # when what was granted so far has passed, in monotonic seconds
        self._lock = threading.Lock()

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return self._rate is not None

    def take(self, size: int) -> None:
        """Wait until `size` more bytes may pass. Grants are in the order of asking; a large one delays those after it."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            start = max(self._free, now)
            self._free = start + size / self._rate
        time.sleep(max(0.0, start - now))
