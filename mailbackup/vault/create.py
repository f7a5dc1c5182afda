"""Making a vault: vault.json, the format text, the recovery script, and entry 1, in which the admin names the writer."""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass

from mailbackup.crypto.signing import SigningKey, seal_line
from mailbackup.errors import AlreadyExists
from mailbackup.model import codec
from mailbackup.model.ids import FORMAT_KEY, RESCUE_KEY, VAULT_KEY, Digest, ObjectKey, PublicKey, VaultId, digest, entry_key
from mailbackup.model.ledger import Grant, LedgerEntry, VaultInfo
from mailbackup.stores.base import Store

_ABOUT = "A mailbackup vault. FORMAT-1.md says how to read it; rescue-1.py gets mail back without mailbackup."


@dataclass(frozen=True, slots=True)
class NewVault:
    """The first objects of a vault, the same in each of its stores, in the order in which they are put."""

    vault: VaultId
    objects: tuple[tuple[ObjectKey, bytes], ...]
    files: dict[str, Digest]

    @property
    def head(self) -> tuple[int, Digest]:
        """Seq and hash of entry 1."""
        return 1, digest(self.objects[-1][1])


def new_vault(vault: VaultId, created: str, admin: SigningKey, writer: PublicKey) -> NewVault:
    """The first objects of a vault."""
    info = VaultInfo(format=1, vault=vault, created=created, admin=admin.public, about=_ABOUT)
    shipped = importlib.resources.files("mailbackup.vault").joinpath("files")
    files = [
        (VAULT_KEY, codec.encode(info) + b"\n"),
        (FORMAT_KEY, shipped.joinpath(FORMAT_KEY).read_bytes()),
        (RESCUE_KEY, shipped.joinpath(RESCUE_KEY).read_bytes()),
    ]
    hashes = {str(key): digest(data) for key, data in files}
    entry = LedgerEntry(
        format=1, vault=vault, seq=1, prev=None, type="trust", time=created, signer=admin.public, grant=(Grant("writer", writer),), files=hashes
    )  # fmt: skip
    first = (entry_key(1), seal_line(codec.encode(entry), admin))
    return NewVault(vault, (*files, first), hashes)


def check_empty(store: Store) -> None:
    """Raises AlreadyExists when the store holds anything."""
    for key, _ in store.list(""):
        raise AlreadyExists(
            f"store {store.name} is not empty: it holds {key}", hint="A new vault needs an empty place. Nothing was changed."
        )


def put_vault(store: Store, vault: NewVault) -> None:
    """Put the first objects, entry 1 last."""
    for key, data in vault.objects:
        store.put(key, data)
