"""What stands in docs/guides/s3.md."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

GUIDE = Path(__file__).resolve().parents[3] / "docs/guides/s3.md"
BUCKET = "mx1-backup"
ENDPOINT = "https://s3.example.net"
HOSTS = ("mail-host", "prune-host", "restore-host")


def commands(mark: str = "") -> list[str]:
    """The lines of its `sh` blocks that have this mark."""
    blocks = re.findall(rf"```sh{mark}\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    found = [line.strip() for block in blocks for line in block.splitlines() if line.strip()]
    assert found
    return found


def policies(bucket: str = BUCKET, folder: str = "mx1") -> dict[str, dict[str, Any]]:
    """Host → its policy, for another bucket and folder."""
    blocks = re.findall(r"`([a-z-]+)\.json`.*?```json\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert [name for name, _ in blocks] == list(HOSTS)
    return {name: json.loads(text.replace(f"{BUCKET}/mx1/", f"{bucket}/{folder}/").replace(BUCKET, bucket)) for name, text in blocks}
