"""Adding to the acts of a store: a signed chain of its own (format section 11)."""

from __future__ import annotations

import secrets

from mailbackup.crypto.signing import SigningKey, seal_line
from mailbackup.errors import ConflictError, KeyExists
from mailbackup.host import stamp, utc_now
from mailbackup.model import codec
from mailbackup.model.ids import act_key, digest
from mailbackup.model.ledger import Act, Anchors, ObjectRow
from mailbackup.stores.base import Store
from mailbackup.vault.chain import find_head, page_trust, read_acts

_TRIES = 5  # another machine may add an act at the same moment


def add_drill(store: Store, anchors: Anchors, signer: SigningKey, details: ObjectRow) -> int:
    """Record a drill whose sealed details are in the store. Returns the number of the act. Raises ChainBroken, ConflictError."""
    for _ in range(_TRIES):
        acts = list(read_acts(store, anchors, page_trust(store, find_head(store), anchors)))
        seq = len(acts) + 1
        act = Act(
            format=1,
            vault=anchors.vault,
            chain=acts[0].chain if acts else secrets.token_hex(16),
            seq=seq,
            prev=digest(store.get(act_key(seq - 1), 1 << 20)) if acts else None,
            type="drill",
            time=stamp(utc_now()),
            signer=signer.public,
            details=details,
        )
        try:
            store.put(act_key(seq), seal_line(codec.encode(act), signer))
        except KeyExists:
            continue
        return seq
    raise ConflictError(f"others keep adding acts to store {store.name}", hint="Run it again.")
