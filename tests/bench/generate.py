"""A made-up mail store for the benchmark: seeded, so that everybody measures the same bytes.

Every random byte of an attachment is fresh (pools of ready-made random data would let a deduplicating tool find what no real store has),
and the work is cut into a fixed number of shards, so the result does not depend on how many processors made it.

    python -m tests.bench.generate ROOT [--messages 60000] [--users 60] [--seed 1] [--profile office|small]
    python -m tests.bench.generate ROOT --night 1
"""

from __future__ import annotations

import argparse
import binascii
import concurrent.futures
import email.utils
import html
import itertools
import json
import math
import multiprocessing
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SHARDS = 8  # fixed: the bytes depend on it
SERIAL_BELOW = 5_000  # messages; a pool of processes is not worth its start for fewer
START, END = 1_672_531_200, 1_767_225_600  # 2023-01-01 to 2026-01-01
DAY = 86_400
HOST = "mx1"
SHARED = 0.15  # of the mails go to several local users
SHARED_COPIES = (2, 8)
REPLIES, FORWARDED = 0.35, 0.05
NIGHT_NEW, NIGHT_RENAMED, NIGHT_DELETED = 0.015, 0.07, 0.005
MAX_ATTACHMENT = 18_000_000  # raw bytes: about 25 MB as base64
MAX_COMPRESSIBLE = 4_000_000
DOMAINS = ("example.org", "example.net", "mail.example.com")


@dataclass(frozen=True)
class Profile:
    """How the mails of a store look; sizes are the median and sigma of a lognormal distribution."""

    words: tuple[int, float]
    html: float
    newsletters: float
    attachments: float
    attachment_bytes: tuple[int, float] = (0, 0.0)


PROFILES = {
    "office": Profile((90, 0.9), html=0.45, newsletters=0.15, attachments=0.16, attachment_bytes=(52_000, 1.7)),
    "small": Profile((60, 0.7), html=0.0, newsletters=0.0, attachments=0.0),
}


# --- words ---------------------------------------------------------------------------------------------------------------------

COMMON = """the to and of a in is for you that we it on with this be are I have will as at from or please not can if your our by but an
all was has they would so me my there do about which us any could know when let also just need what get out up more no send new today
tomorrow week next time meeting project order invoice contract offer customer report number team office call question attached file
document version draft review price delivery address payment account regards thanks kind best hello dear Monday Tuesday Friday""".split()
SYLLABLES = """an ber ca de el fo gra ha in jo ka le ma no or pa qui ra se ti ul va wo xi ye zu sch tion ment ver ing er est lich ung
pro con dis ter ne mo ri sta ble com per""".split()
NAMES = """anna bernd carla david elena felix greta hanna ivan julia karl laura marco nina otto paula quentin rosa stefan tina ulrich vera
walter xenia yannick zoe""".split()
SURNAMES = """berg costa dubois ferrari garcia hansen ivanov jansen keller lopez meyer novak olsen petrov rossi schmidt toth urban vogel
weber""".split()


class Words:
    """A vocabulary whose words come as often as in real text (Zipf), from one seed for all shards."""

    def __init__(self, seed: int, size: int = 9_000) -> None:
        rng = random.Random(f"words/{seed}")
        made = {"".join(rng.choices(SYLLABLES, k=rng.randint(2, 4))) for _ in range(size)}
        self.vocabulary = COMMON + sorted(made, key=lambda word: (len(word), word))
        self.weights = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(len(self.vocabulary))))

    def take(self, rng: random.Random, count: int) -> list[str]:
        return rng.choices(self.vocabulary, cum_weights=self.weights, k=count)

    def paragraph(self, rng: random.Random, count: int) -> str:
        words, sentences = self.take(rng, count), []
        while words:
            length = rng.randint(5, 18)
            sentence, words = words[:length], words[length:]
            sentences.append(" ".join(sentence).capitalize() + rng.choice(".....?!"))
        return " ".join(sentences)

    def text(self, rng: random.Random, count: int) -> list[str]:
        """Paragraphs, about `count` words in all."""
        paragraphs = []
        while count > 0:
            size = min(count, rng.randint(15, 90))
            paragraphs.append(self.paragraph(rng, size))
            count -= size
        return paragraphs


def wrapped(text: str) -> str:
    return re.sub(r"(.{1,74})(?: |$)", r"\1\n", text)


def token(rng: random.Random, size: int) -> str:
    return rng.randbytes(size).hex()


def base64_lines(raw: bytes) -> bytes:
    line = binascii.b2a_base64(raw, newline=False)
    return b"\n".join([line[at : at + 76] for at in range(0, len(line), 76)]) + b"\n"


# --- attachments ---------------------------------------------------------------------------------------------------------------


def picture(rng: random.Random, size: int, words: Words) -> bytes:
    return b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01" + rng.randbytes(size)


def pdf(rng: random.Random, size: int, words: Words) -> bytes:
    parts, at = [b"%PDF-1.5\n"], 0
    while at < size:
        piece = min(rng.randint(2_000, 40_000), size - at)
        parts.append(b"%d 0 obj\n<< /Length %d /Filter /FlateDecode >>\nstream\n" % (len(parts), piece))
        parts.append(rng.randbytes(piece) + b"\nendstream\nendobj\n")
        at += piece
    parts += [b"%010d 00000 n \n" % (rng.randrange(size + 1)) for _ in parts]
    return b"".join([*parts, b"trailer << /Size %d >>\n%%%%EOF\n" % len(parts)])


def archive(rng: random.Random, size: int, words: Words) -> bytes:
    parts = [b"PK\x03\x04\x14\x00\x06\x00" + rng.randbytes(18) + f"word/part{n}.xml".encode() for n in range(12)]
    return b"".join(part + rng.randbytes(size // 12 + 1) for part in parts)


def table(rng: random.Random, size: int, words: Words) -> bytes:
    rows, columns = [], words.take(rng, 200)
    for row in range(max(1, min(size, MAX_COMPRESSIBLE) // 48)):
        rows.append(f"{row};{rng.choice(columns)};{rng.choice(columns)};{rng.random() * 1000:.2f};2025-{row % 12 + 1:02}-{row % 28 + 1:02}\n")
    return "".join(rows).encode()


def prose(rng: random.Random, size: int, words: Words) -> bytes:
    return " ".join(words.take(rng, max(1, min(size, MAX_COMPRESSIBLE) // 6))).encode()


KINDS = (
    (picture, "image/jpeg", "jpg", 0.35),
    (pdf, "application/pdf", "pdf", 0.30),
    (archive, "application/vnd.openxmlformats-officedocument.wordprocessingml.document", "docx", 0.20),
    (table, "text/csv", "csv", 0.08),
    (prose, "application/rtf", "rtf", 0.07),
)


# --- people and folders --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class User:
    domain: str
    name: str
    folders: tuple[str, ...]  # Maildir++ names, "" is the INBOX
    odds: tuple[float, ...]  # where an incoming mail of old lies today
    weight: float

    @property
    def address(self) -> str:
        return f"{self.name}@{self.domain}"

    @property
    def maildir(self) -> str:
        return f"{self.domain}/{self.name}/Maildir"


def people(count: int, seed: int) -> list[User]:
    rng = random.Random(f"people/{seed}")
    pairs = [f"{first}.{last}" for first in NAMES for last in SURNAMES]
    rng.shuffle(pairs)
    users = []
    for n in range(count):
        name = pairs[n % len(pairs)] + (str(n // len(pairs)) if n >= len(pairs) else "")
        projects = [".Projects" + rng.choice(["", ".Alpha", ".Beta", ".2024", ".Umbau", ".K&APw-ln"]) for _ in range(rng.randint(1, 5))]
        folders = ["", ".Sent", ".Drafts", ".Junk", ".Trash", ".Archive.2023", ".Archive.2024", ".Lists", *sorted(set(projects))]
        odds = [50, 0, 0.5, 3, 2, 9, 9, 6, *(20 / len(set(projects)) for _ in set(projects))]
        users.append(User(DOMAINS[n % len(DOMAINS)], name, tuple(folders), tuple(odds), rng.lognormvariate(0, 0.9)))
    return users


def stranger(rng: random.Random) -> str:
    return f"{rng.choice(NAMES)}.{rng.choice(SURNAMES)}@{rng.choice(SYLLABLES)}{rng.choice(SYLLABLES)}.example"


# --- mails ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mail:
    """One mail as it was sent; each delivery puts its own lines on top."""

    seconds: int
    sender: str
    headers: str
    body: bytes
    shared: bool
    local_sender: User | None


@dataclass
class Thread:
    subject: str
    message_id: str
    references: list[str]
    text: str


@dataclass
class Writer:
    """Makes the mails of one shard, in the order of their dates."""

    rng: random.Random
    profile: Profile
    users: list[User]
    words: Words
    threads: list[Thread] = field(default_factory=list)
    attached: list[tuple[str, bytes]] = field(default_factory=list)

    def mail(self, seconds: int) -> Mail:
        rng = self.rng
        shared = rng.random() < SHARED
        local = rng.random() < (0.6 if shared else 0.25)
        sender_user = rng.choices(self.users, [user.weight for user in self.users])[0] if local else None
        sender = sender_user.address if sender_user else stranger(rng)
        newsletter = not local and rng.random() < self.profile.newsletters
        thread, text = self._text(newsletter)
        content_type, body = self._body(text, newsletter)
        head = self._headers(seconds, sender, thread, content_type, outside=not local)
        self._remember(thread, text)
        return Mail(seconds, sender, head, body, shared, sender_user)

    def _text(self, newsletter: bool) -> tuple[Thread, str]:
        rng = self.rng
        median, sigma = self.profile.words
        count = min(4_000, int(rng.lognormvariate(math.log(median), sigma)) + 8)
        own = "\n".join(wrapped(part) for part in self.words.text(rng, count))
        message_id = f"<{token(rng, 12)}@{rng.choice(SYLLABLES)}.example>"
        if newsletter or not self.threads or rng.random() > REPLIES:
            return Thread(self.words.paragraph(rng, rng.randint(2, 9))[:-1], message_id, [], ""), own
        old = rng.choice(self.threads)
        quoted = "".join(f"> {line}\n" for line in old.text.splitlines()[:80])
        subject = old.subject if old.subject.startswith("Re: ") else "Re: " + old.subject
        thread = Thread(subject, message_id, [*old.references, old.message_id][-8:], "")
        return thread, f"{own}\nOn some day, {rng.choice(NAMES)} wrote:\n{quoted}"

    def _remember(self, thread: Thread, text: str) -> None:
        thread.text = text
        self.threads.append(thread)
        if len(self.threads) > 60:
            del self.threads[self.rng.randrange(30)]

    def _body(self, text: str, newsletter: bool) -> tuple[str, bytes]:
        rng, boundary = self.rng, f"----=_Part_{token(self.rng, 9)}"
        plain = text.encode()
        kind, body = "text/plain; charset=utf-8", plain
        if newsletter or rng.random() < self.profile.html:
            rich = binascii.b2a_qp(self._html(text, newsletter).encode(), istext=True)
            kind, body = f'multipart/alternative;\n boundary="{boundary}A"', alternative(f"{boundary}A", plain, rich)
        if not newsletter and rng.random() < self.profile.attachments:
            parts = [self._attachment() for _ in range(rng.choice([1, 1, 1, 2, 3]))]
            kind, body = f'multipart/mixed;\n boundary="{boundary}M"', mixed(f"{boundary}M", kind, body, parts)
        return kind, body

    def _html(self, text: str, newsletter: bool) -> str:
        paragraphs = [f'<p class="MsoNormal" style="margin:0 0 10pt">{html.escape(part)}</p>' for part in text.split("\n\n")]
        if newsletter:
            cell = '<tr><td align="center" style="padding:12px 24px;font-family:Arial,sans-serif;font-size:14px;color:#%s">%s</td></tr>'
            links = [f'<a href="https://t.example/c/{token(self.rng, 40)}">{word}</a>' for word in self.words.take(self.rng, 25)]
            paragraphs = [cell % (token(self.rng, 3), part) for part in [*paragraphs, *links]]
        style = "body{font-family:Calibri}p.MsoNormal{margin:0cm;font-size:11.0pt}a:link{color:#0563C1}" * (12 if newsletter else 3)
        return f"<html><head><style>{style}</style></head><body>\n" + "\n".join(paragraphs) + "\n</body></html>\n"

    def _attachment(self) -> tuple[str, bytes]:
        rng = self.rng
        if self.attached and rng.random() < FORWARDED:
            return rng.choice(self.attached)
        median, sigma = self.profile.attachment_bytes
        size = min(MAX_ATTACHMENT, int(rng.lognormvariate(math.log(median), sigma)) + 200)
        make, mime, suffix, _ = rng.choices(KINDS, [kind[3] for kind in KINDS])[0]
        name = "_".join(self.words.take(rng, 2)) + "." + suffix
        made = (f'{mime};\n name="{name}"', base64_lines(make(rng, size, self.words)))
        self.attached = [*self.attached[-19:], made]
        return made

    def _headers(self, seconds: int, sender: str, thread: Thread, content_type: str, outside: bool) -> str:
        rng, date = self.rng, email.utils.formatdate(seconds)
        domain = sender.split("@")[1]
        lines = []
        if outside:
            lines += [f"Received: from out{rng.randrange(40)}.{domain} (out.{domain} [192.0.2.{rng.randrange(250)}])\n"
                      f"\tby {HOST}.{DOMAINS[0]} (Postfix) with ESMTPS id {token(rng, 6).upper()}\n\t; {date}"]
            lines += [f"Authentication-Results: {HOST}.{DOMAINS[0]};\n\tdkim=pass (2048-bit key) header.d={domain} header.s=s{rng.randrange(9)};\n"
                      f"\tspf=pass smtp.mailfrom={sender}; dmarc=pass"]
            signature = binascii.b2a_base64(rng.randbytes(256), newline=False).decode()
            folded = "\n\t ".join(signature[at : at + 70] for at in range(0, len(signature), 70))
            digest = binascii.b2a_base64(rng.randbytes(32), newline=False).decode()
            lines += [f"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d={domain};\n\ts=s1; t={seconds}; "
                      f"h=from:to:subject:date:message-id;\n\tbh={digest};\n\tb={folded}"]
            for hop in range(rng.randrange(3)):
                lines += [f"Received: from [10.{rng.randrange(250)}.0.{rng.randrange(250)}] by relay{hop}.{domain} with ESMTPSA\n"
                          f"\tid {token(rng, 8)}; {date}"]
            lines += [f"X-Spam-Score: {rng.random() * 6 - 4:.2f}"]
        lines += [f"From: {sender.split('@')[0].replace('.', ' ').title()} <{sender}>", f"To: {stranger(rng)}"]
        lines += [f"Subject: {thread.subject}", f"Date: {date}", f"Message-ID: {thread.message_id}"]
        if thread.references:
            lines += [f"In-Reply-To: {thread.references[-1]}", "References: " + "\n ".join(thread.references)]
        if self.profile.html:
            lines += ["User-Agent: " + rng.choice(["Mozilla Thunderbird", "Microsoft Outlook 16.0", "Apple Mail (2.3774)", "K-9 Mail"])]
        return "\n".join([*lines, "MIME-Version: 1.0", f"Content-Type: {content_type}", "Content-Transfer-Encoding: 8bit", "", ""])


def alternative(boundary: str, plain: bytes, rich: bytes) -> bytes:
    mark = b"--" + boundary.encode()
    return b"".join((mark, b"\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n", plain, b"\n",
                     mark, b"\nContent-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n", rich, b"\n",
                     mark, b"--\n"))  # fmt: skip


def mixed(boundary: str, kind: str, body: bytes, parts: list[tuple[str, bytes]]) -> bytes:
    mark = b"--" + boundary.encode()
    out = [mark, b"\nContent-Type: ", kind.encode(), b"\n\n", body, b"\n"]
    for mime, encoded in parts:
        out += [mark, b"\nContent-Type: ", mime.encode(), b"\nContent-Transfer-Encoding: base64\nContent-Disposition: attachment\n\n", encoded]
    return b"".join([*out, mark, b"--\n"])


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
    """One night: 1.5 % new, 7 % renamed (a flag changed) and 0.5 % deleted, spread evenly over the whole store; night `seed` of the store."""
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
