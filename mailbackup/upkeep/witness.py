"""What a machine that prunes remembers of the acts of each store, so that nobody can hand it another chain, or one without its end.

The acts of one store are valid signatures in any other store of the vault. Whoever may write there, but holds no key, could put them where there are
none yet, or leave out the last: an `undelete`, say. So the machine that decides keeps the id of each chain and the last act that it saw.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from mailbackup.errors import ChainBroken, RecordInvalid, UsageError
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


def check_seen(state_dir: str, store: str, book: Book, configured: Iterable[str]) -> None:
    """Raises ChainBroken when the acts of a store are not a continuation of those that were seen in it, or are those of another one.

    `configured` are the names of all stores: one that is not among them any more may have been renamed.
    """
    known = _read(state_dir)
    others = {seen.chain: name for name, seen in known.items() if name != store and name in configured}
    if book.chain in others:
        raise ChainBroken(
            f"store {store} holds the acts of store {others[book.chain]}",
            hint=f"One of the two was copied, by hand or by somebody who meant harm: nothing is pruned in either. If they are one place, configure it once."
            f" Else find out where those acts were made ({os.path.join(state_dir, FILE_NAME)} knows) and who could write to the other store.",
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
    """Raises UsageError for a file that cannot be used: what was seen must not be forgotten silently."""
    path = os.path.join(state_dir, FILE_NAME)
    try:
        with open(path, "rb") as file:
            return codec.decode(file.read(), dict[str, Seen], path)
    except FileNotFoundError:
        return {}
    except (OSError, RecordInvalid) as error:
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"cannot read what was seen of the stores' acts, {path}: {said}",
            hint="It is a file of this machine; the vault is not concerned. Run as the user who prunes, or bring the file back from a copy. If you remove it,"
            " acts that were cut meanwhile are not noticed.",
        ) from None
