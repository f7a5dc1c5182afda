"""What a machine that prunes remembers of the acts of each store, so that nobody can hand it another chain, or one without its end.

The acts of one store are valid signatures in any other store of the vault. Whoever may write there, but holds no key, could put them where there are
none yet, or leave out the last: an `undelete`, say. So the machine that decides keeps the id of each chain and the last act that it saw.
"""

from __future__ import annotations

import os

from mailbackup.errors import ChainBroken
from mailbackup.host import atomic_write
from mailbackup.model import codec
from mailbackup.model.codec import Record
from mailbackup.model.ids import Digest
from mailbackup.upkeep.acts import Book

FILE_NAME = "acts.json"


class Seen(Record, frozen=True, kw_only=True):
    """The last act that was seen in a store."""

    chain: str
    seq: int
    sha256: Digest


def check_seen(state_dir: str, store: str, book: Book) -> None:
    """Raises ChainBroken when the acts of a store are not a continuation of those that were seen in it, or are those of another one."""
    known = _read(state_dir)
    others = {seen.chain: name for name, seen in known.items() if name != store}
    if book.chain in others:
        raise ChainBroken(
            f"store {store} holds the acts of store {others[book.chain]}",
            hint="Somebody copied them there: nothing that they say counts here. Remove the folder acts/ of this store, then look who could write to it.",
        )
    seen = known.get(store)
    if seen is None:
        return
    if book.chain != seen.chain or len(book.acts) < seen.seq or book.acts[seen.seq - 1].sha256 != seen.sha256:
        raise ChainBroken(
            f"store {store}: act {seen.seq}, seen before, is not there any more",
            hint=f"Somebody replaced or cut the acts of this store. If that was you, remove {os.path.join(state_dir, FILE_NAME)}.",
        )


def remember_seen(state_dir: str, store: str, book: Book) -> None:
    """Keep what the acts of a store are now."""
    if book.chain is None:
        return
    known = _read(state_dir) | {store: Seen(chain=book.chain, seq=len(book.acts), sha256=book.acts[-1].sha256)}
    os.makedirs(state_dir, mode=0o700, exist_ok=True)
    atomic_write(os.path.join(state_dir, FILE_NAME), codec.encode(known) + b"\n", mode=0o600)


def _read(state_dir: str) -> dict[str, Seen]:
    """Raises RecordInvalid for a file that is not one: what was seen must not be forgotten silently."""
    path = os.path.join(state_dir, FILE_NAME)
    try:
        with open(path, "rb") as file:
            return codec.decode(file.read(), dict[str, Seen], path)
    except FileNotFoundError:
        return {}
