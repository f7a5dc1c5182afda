"""A made-up mail store for the benchmark: seeded, so that everybody measures the same bytes.

The work is cut into a fixed number of shards, so the result does not depend on how many processors made it.

    python -m tests.bench.generate ROOT [--messages 60000] [--users 60] [--seed 1] [--profile office|small]
    python -m tests.bench.generate ROOT --night 1
"""

from __future__ import annotations

import argparse
import concurrent.futures
import email.utils
import json
import multiprocessing
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.bench.mails import DOMAINS, HOST, PROFILES, Mail, User, Words, Writer, people, token

SHARDS = 8  # fixed: the bytes depend on it
SERIAL_BELOW = 5_000  # messages; a pool of processes is not worth its start for fewer
START, END = 1_672_531_200, 1_767_225_600  # 2023-01-01 to 2026-01-01
DAY = 86_400
SHARED_COPIES = (2, 8)
NIGHT_NEW, NIGHT_RENAMED, NIGHT_DELETED = 0.015, 0.07, 0.005


# --- deliveries ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Delivery:
    folder: str  # relative to the root
    seconds: int
    base: str


def flags(rng: random.Random, folder: str) -> str:
    found = "S" if rng.random() < 0.93 else ""
    found += "R" if folder != ".Sent" and rng.random() < 0.15 else ""
    found += "F" if rng.random() < 0.03 else ""
    found += "T" if rng.random() < 0.005 else ""
    return "".join(sorted(found)) + ("a" if rng.random() < 0.04 else "")


@dataclass
class Postman:
    """Puts copies of a mail into mailboxes, under names as Dovecot makes them."""

    root: str
    rng: random.Random
    pid: int
    fresh: bool  # a night: what arrives lies in the INBOX's new/ mostly

    def deliver(self, mail: Mail, user: User) -> Delivery:
        rng, sent = self.rng, user == mail.local_sender
        seconds = mail.seconds + rng.randrange(3)
        top = "" if sent else (
            f"Return-Path: <{mail.sender}>\nDelivered-To: {user.address}\nReceived: from {HOST}.{DOMAINS[0]} ([127.0.0.1])\n"
            f"\tby {HOST}.{DOMAINS[0]} with LMTP\n\tid {token(rng, 16)}\n\t(envelope-from <{mail.sender}>)\n"
            f"\tfor <{user.address}>; {email.utils.formatdate(seconds)}\n"
        )  # fmt: skip
        data = b"".join((top.encode(), mail.headers.encode(), mail.body))
        folder = self._folder(user, sent)
        unread = not sent and folder == "" and rng.random() < (0.7 if self.fresh else 0.02)
        micro = rng.randrange(1_000_000)
        base = self._name(seconds, micro, data)
        where = f"{user.maildir}/{folder}".rstrip("/")
        path = f"{self.root}/{where}/new/{base}" if unread else f"{self.root}/{where}/cur/{base}:2,{flags(rng, folder)}"
        write(path, data, seconds * 1_000_000_000 + micro * 1_000)
        return Delivery(where, seconds, base)

    def _name(self, seconds: int, micro: int, data: bytes) -> str:
        newlines = data.count(b"\n")
        return f"{seconds}.M{micro}P{self.pid}.{HOST},S={len(data)},W={len(data) + newlines}"

    def _folder(self, user: User, sent: bool) -> str:
        if sent:
            return ".Sent"
        if self.fresh and self.rng.random() < 0.8:
            return ""
        return self.rng.choices(user.folders, user.odds)[0]


def write(path: str, data: bytes, mtime_ns: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(handle, data)
        os.utime(handle, ns=(mtime_ns, mtime_ns))
    finally:
        os.close(handle)


def replace(path: str, data: bytes, mtime_ns: int) -> None:
    temporary = f"{path}.tmp"
    write(temporary, data, mtime_ns)
    os.replace(temporary, path)


@dataclass(frozen=True)
class Shard:
    root: str
    seed: int
    night: int  # 0: the store itself
    number: int
    messages: int
    users: int
    profile: str


def make_shard(shard: Shard) -> list[Delivery]:
    users, words = people(shard.users, shard.seed), Words(shard.seed)
    rng = random.Random(f"shard/{shard.seed}/{shard.night}/{shard.number}")
    writer = Writer(rng, PROFILES[shard.profile], users, words)
    postman = Postman(shard.root, rng, 1_000 + shard.number + SHARDS * shard.night, fresh=shard.night > 0)
    first, last = (END + (shard.night - 1) * DAY, END + shard.night * DAY) if shard.night else (START, END)
    weights, done = [user.weight for user in users], []
    while len(done) < shard.messages:
        mail = writer.mail(first + int((last - first) * (len(done) / shard.messages) ** 0.8))
        done += [postman.deliver(mail, user) for user in recipients(mail, users, weights, rng)[: shard.messages - len(done)]]
    return done


def recipients(mail: Mail, users: list[User], weights: list[float], rng: random.Random) -> list[User]:
    """Who has a copy: the sender's Sent folder counts, as on a real server."""
    chosen = {mail.local_sender.address: mail.local_sender} if mail.local_sender else {}
    wanted = min(len(users), rng.randint(*SHARED_COPIES)) if mail.shared else 1
    while len(chosen) < wanted:
        user = rng.choices(users, weights)[0]
        chosen[user.address] = user
    return list(chosen.values())


def deliveries(root: str, seed: int, night: int, messages: int, users: int, profile: str) -> list[Delivery]:
    share, rest = divmod(messages, SHARDS)
    shards = [Shard(root, seed, night, n, share + (n < rest), users, profile) for n in range(SHARDS)]
    if messages < SERIAL_BELOW:
        return [done for shard in shards for done in make_shard(shard)]
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        return [done for part in pool.map(make_shard, shards) for done in part]


# --- the store -----------------------------------------------------------------------------------------------------------------


def generate(root: str | Path, messages: int = 60_000, users: int = 60, seed: int = 1, profile: str = "office") -> dict[str, object]:
    """Make a store of exactly `messages` files below ROOT/{domain}/{user}/Maildir and say in ROOT.json how."""
    root = os.fspath(root)
    facts: dict[str, object] = {"messages": messages, "users": users, "seed": seed, "profile": profile, "nights": 0}
    for user in people(users, seed):
        make_mailbox(root, user)
    add_to_uidlists(root, deliveries(root, seed, 0, messages, users, profile), gone=set(), mtime=END)
    Path(f"{root}.json").write_text(json.dumps(facts))
    return facts


def make_mailbox(root: str, user: User) -> None:
    for folder in user.folders:
        where = f"{root}/{user.maildir}/{folder}".rstrip("/")
        for part in ("cur", "new", "tmp"):
            os.makedirs(f"{where}/{part}", mode=0o700)
        if folder:
            write(f"{where}/maildirfolder", b"", START * 1_000_000_000)
    subscribed = "V\t2\n\n" + "".join(folder[1:].replace(".", "\t") + "\n" for folder in user.folders if folder)
    write(f"{root}/{user.maildir}/subscriptions", subscribed.encode(), START * 1_000_000_000)
    write(f"{root}/{user.maildir}/dovecot-keywords", b"0 $label1\n", START * 1_000_000_000)


def add_to_uidlists(root: str, added: list[Delivery], gone: set[str], mtime: int) -> None:
    by_folder: dict[str, list[Delivery]] = {}
    for delivery in sorted(added, key=lambda one: (one.folder, one.seconds, one.base)):
        by_folder.setdefault(delivery.folder, []).append(delivery)
    for path in sorted({*by_folder, *(os.path.relpath(base.rsplit("/", 2)[0], root) for base in gone)}):
        fresh = f"3 V{START} N1 G{token(random.Random(path), 16)}"
        bases = {base.rsplit("/", 1)[1] for base in gone}
        rewrite_uidlist(f"{root}/{path}/dovecot-uidlist", fresh, by_folder.get(path, []), bases, mtime)


def rewrite_uidlist(path: str, fresh: str, added: list[Delivery], gone: set[str], mtime: int) -> None:
    head, rows = fresh, []
    if os.path.exists(path):
        with open(path, encoding="ascii") as handle:
            head, *rows = handle.read().splitlines()
    following = int(re.search(r" N(\d+)", head).group(1))  # type: ignore[union-attr]
    rows = [row for row in rows if row.split(" :", 1)[1] not in gone]
    rows += [f"{uid} :{delivery.base}" for uid, delivery in enumerate(added, following)]
    head = re.sub(r" N\d+", f" N{following + len(added)}", head)
    replace(path, "\n".join([head, *rows, ""]).encode(), mtime * 1_000_000_000)


def listing(root: str) -> Iterator[str]:
    """Every message file, in a fixed order."""
    for where, folders, names in os.walk(root):
        folders.sort()
        if where.endswith(("/cur", "/new")):
            yield from (f"{where}/{name}" for name in sorted(names))


def nightly(root: str | Path, seed: int) -> dict[str, int]:
    """Night number `seed`: 1.5 % new, 7 % renamed (a flag changed), 0.5 % deleted; renames and deletions hit the whole store evenly."""
    root = os.fspath(root)
    facts = json.loads(Path(f"{root}.json").read_text())
    rng = random.Random(f"night/{facts['seed']}/{seed}")
    present = list(listing(root))
    new, renamed, deleted = (round(len(present) * part) for part in (NIGHT_NEW, NIGHT_RENAMED, NIGHT_DELETED))
    touched = rng.sample(present, renamed + deleted)
    for path in touched[:renamed]:
        os.rename(path, other_flags(path, rng))
    for path in touched[renamed:]:
        os.unlink(path)
    added = deliveries(root, facts["seed"], seed, new, facts["users"], facts["profile"])
    gone = {path.split(":2,")[0] for path in touched[renamed:]}
    add_to_uidlists(root, added, gone, mtime=END + seed * DAY)
    facts["nights"] += 1
    Path(f"{root}.json").write_text(json.dumps(facts))
    return {"before": len(present), "new": new, "renamed": renamed, "deleted": deleted}


def other_flags(path: str, rng: random.Random) -> str:
    where, name = path.rsplit("/", 1)
    base, _, old = name.partition(":2,")
    if where.endswith("/new"):
        return f"{where[:-4]}/cur/{base}:2,S"
    system, keywords = {flag for flag in old if flag.isupper()}, "".join(flag for flag in old if flag.islower())
    changed = "".join(sorted(system ^ {rng.choice("SSRFFT")}))
    return f"{where}/{base}:2,{changed}{keywords}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--messages", type=int, default=60_000)
    parser.add_argument("--users", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--profile", choices=sorted(PROFILES), default="office")
    parser.add_argument("--night", type=int, help="apply this night to a store that exists")
    options = parser.parse_args()
    if options.night:
        print(json.dumps(nightly(options.root, options.night)))
    else:
        print(json.dumps(generate(options.root, options.messages, options.users, options.seed, options.profile)))


if __name__ == "__main__":
    main()
