"""The SpamAssassin corpus as one mailbox. The mails belong to their senders: they are read where they lie and never committed.

$MAILBACKUP_CORPUS is a folder with `spamassassin-publiccorpus/` in it, or with `mail.tar.zst` that holds that folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.bench.generate import HOST, START, write

NAME = "spamassassin-publiccorpus"
FOLDERS = {"easy_ham": "", "easy_ham_2": ".easy_ham_2", "hard_ham": ".hard_ham", "spam": ".Junk", "spam_2": ".Junk.2"}


def unpacked(work: Path) -> Path | None:
    """Where the corpus lies, or None when this machine has none."""
    given = os.environ.get("MAILBACKUP_CORPUS")
    if not given:
        return None
    if (Path(given) / NAME).is_dir():
        return Path(given) / NAME
    if (Path(given) / "mail.tar.zst").is_file():
        work.mkdir(parents=True, exist_ok=True)
        subprocess.run(["tar", "--zstd", "-xf", f"{given}/mail.tar.zst", "-C", str(work), NAME], check=True)
        return work / NAME
    return None


def as_maildir(source: Path, root: Path) -> int:
    """Make ROOT/example.org/corpus/Maildir anew from the corpus; returns the number of messages."""
    shutil.rmtree(root, ignore_errors=True)
    maildir, count = root / "example.org/corpus/Maildir", 0
    for where, _, names in sorted(os.walk(source)):
        if os.path.basename(where) not in FOLDERS:
            continue
        folder = os.path.join(maildir, FOLDERS[os.path.basename(where)]).rstrip("/")
        for part in ("cur", "new", "tmp"):
            os.makedirs(f"{folder}/{part}")
        for name in sorted(names):
            data, count = Path(where, name).read_bytes(), count + 1
            lines = data.count(b"\n")
            base = f"{START + count}.M{count}P1.{HOST},S={len(data)},W={len(data) + lines}"
            write(f"{folder}/cur/{base}:2,S", data, (START + count) * 1_000_000_000)
    return count
