"""The speed of the keyless scrub beside that of plain SHA-256, on a local store. Prints raw numbers.

    python -m tests.bench.upkeep --mib 1024 --dir /var/tmp

Both read the same packs from the page cache, in turns, so that the machine's bad moments meet both. The ratio of the medians is the number to look at.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mailbackup.crypto.signing import SigningKey, seal_line
from mailbackup.host import stamp, utc_now
from mailbackup.model import codec
from mailbackup.model.events import ignore, never
from mailbackup.model.ids import Digest, PackId, digest, entry_key, new_vault_id, pack_key
from mailbackup.model.ledger import Anchors, LedgerEntry, PackRow
from mailbackup.stores.local import LocalStore
from mailbackup.upkeep import scrub as engine
from mailbackup.upkeep.rolling import Budget, rolling_verify
from mailbackup.vault.create import new_vault, put_vault

PACK = 64 << 20


def scrub(folder: Path, mib: int, repeat: int = 3) -> dict[str, Any]:
    """Seconds of `verify`, of a whole round of `verify --budget`, and of SHA-256 over the same packs."""
    anchors, packs = _vault(folder, mib)
    with contextlib.closing(LocalStore(str(folder), "local")) as store:
        works: dict[str, Callable[[], Any]] = {
            "sha256": lambda: [_sha256(path) for path in packs],
            "verify": lambda: engine.scrub(store, anchors, on_event=ignore),
            "round": lambda: rolling_verify(store, anchors, after="", budget=Budget(share=1.0), stop=never, on_event=ignore),
        }
        assert works["verify"]().findings == []
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(repeat):
            for name, work in works.items():
                began = time.perf_counter()
                work()
                seconds[name].append(round(time.perf_counter() - began, 3))
    plain = statistics.median(seconds["sha256"])
    ratios = {name: round(plain / statistics.median(seconds[name]), 2) for name in ("verify", "round")}
    return {"mib": mib, "load": os.getloadavg()[0], "seconds": seconds, "speed_of_plain_sha256": ratios}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _vault(folder: Path, mib: int) -> tuple[Anchors, list[Path]]:
    """A vault of packs of random bytes, each registered."""
    admin, writer = SigningKey.generate(), SigningKey.generate()
    vault, now = new_vault_id(), stamp(utc_now())
    made = new_vault(vault, now, admin, writer.public)
    anchors = Anchors(vault=vault, admin=admin.public)
    LocalStore.create_root(str(folder))
    with contextlib.closing(LocalStore(str(folder), "local")) as store:
        put_vault(store, made)
        rows = []
        for _ in range(max(1, (mib << 20) // PACK)):
            data, pack = os.urandom(PACK), PackId(os.urandom(16).hex())
            store.put(pack_key(pack), data)
            rows.append(PackRow(id=pack, size=PACK, sha256=Digest(digest(data)), blocks=64, footer=Digest("0" * 64), epoch=1))
        entry = LedgerEntry(
            format=1,
            vault=vault,
            seq=2,
            prev=digest(store.get(entry_key(1), 1 << 20)),
            type="packs",
            time=now,
            signer=writer.public,
            packs=tuple(rows),
        )
        store.put(entry_key(2), seal_line(codec.encode(entry), writer))
    return anchors, [folder / pack_key(row.id) for row in rows]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--dir", default=None, help="where the packs go for the time of the run")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        print(json.dumps(scrub(Path(folder) / "vault", given.mib, given.repeat), indent=1))


if __name__ == "__main__":
    main()
