"""How far a stream has come, so that it can go on where it broke."""

from __future__ import annotations

import re
from typing import Any

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Reading:
    """A read from the first byte to the last, over as many requests as it takes. `named` is the object as a request names it."""

    def __init__(self, named: dict[str, str]) -> None:
        self.position = 0
        self.done = False
        self._named = named
        self._same: dict[str, str] = {}

    def request(self) -> dict[str, str]:
        """Asks for what is still to come, of the same object. The first request asks for the object's checksum as well."""
        if self.position == 0:
            return {**self._named, "ChecksumMode": "ENABLED"}
        return {**self._named, **self._same, "Range": f"bytes={self.position}-"}

    def answered(self, answer: dict[str, Any]) -> None:
        """Remember which object it is that was begun."""
        if self.position == 0:
            self._same = {"IfMatch": answer["ETag"]} if "ETag" in answer else {}
            if answer.get("VersionId", "null") != "null":
                self._same["VersionId"] = answer["VersionId"]

    def got(self, size: int) -> None:
        """So many bytes more."""
        self.position += size


def part_of(answer: dict[str, Any], offset: int) -> tuple[int, int] | None:
    """How many bytes of an answer come before `offset`, and how many from it on: services may ignore that a part was asked for.

    None when the answer is another part.
    """
    size: int = answer["ContentLength"]
    if answer["ResponseMetadata"]["HTTPStatusCode"] != 206:
        return offset, size - offset
    part = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
    if part is None or int(part[1]) != offset or int(part[2]) - offset + 1 != size:
        return None
    return 0, size
