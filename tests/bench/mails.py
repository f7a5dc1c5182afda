"""Words, attachments and mails for the made-up store: who writes what to whom. `generate` puts them into mailboxes.

Text is drawn word by word from a vocabulary with the frequencies of real text; every byte of a picture or document is fresh, since
ready-made pools of random data would let a deduplicating tool find what no real store has.
"""

from __future__ import annotations

import binascii
import email.utils
import html
import itertools
import math
import random
import re
from dataclasses import dataclass, field

HOST = "mx1"
DOMAINS = ("example.org", "example.net", "mail.example.com")
SHARED = 0.15  # of the mails go to several local users
REPLIES, FORWARDED = 0.35, 0.05
MAX_ATTACHMENT = 18_000_000  # raw bytes: about 25 MB as base64
MAX_COMPRESSIBLE = 4_000_000


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

COMMON, SYLLABLES, NAMES, SURNAMES = (
    text.split()
    for text in (
        """the to and of a in is for you that we it on with this be are I have will as at from or please not can if your our by but an
        all was has they would so me my there do about which us any could know when let also just need what get out up more no send new
        today tomorrow week next time meeting project order invoice contract offer customer report number team office call question
        attached file document version draft review price delivery address payment account regards thanks kind best hello dear Monday
        Tuesday Friday""",
        """an ber ca de el fo gra ha in jo ka le ma no or pa qui ra se ti ul va wo xi ye zu sch tion ment ver ing er est lich ung pro con
        dis ter ne mo ri sta ble com per""",
        """anna bernd carla david elena felix greta hanna ivan julia karl laura marco nina otto paula quentin rosa stefan tina ulrich
        vera walter xenia yannick zoe""",
        """berg costa dubois ferrari garcia hansen ivanov jansen keller lopez meyer novak olsen petrov rossi schmidt toth urban vogel
        weber""",
    )
)


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
        day = f"2025-{row % 12 + 1:02}-{row % 28 + 1:02}"
        rows.append(f"{row};{rng.choice(columns)};{rng.choice(columns)};{rng.random() * 1000:.2f};{day}\n")
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
        name = sender.partition("@")[0].replace(".", " ").title()
        lines = self._from_outside(seconds, sender) if outside else []
        lines += [f"From: {name} <{sender}>", f"To: {stranger(self.rng)}", f"Subject: {thread.subject}"]
        lines += [f"Date: {email.utils.formatdate(seconds)}", f"Message-ID: {thread.message_id}"]
        if thread.references:
            lines += [f"In-Reply-To: {thread.references[-1]}", "References: " + "\n ".join(thread.references)]
        if self.profile.html:
            lines += [
                "User-Agent: " + self.rng.choice(["Mozilla Thunderbird", "Microsoft Outlook 16.0", "Apple Mail (2.3774)", "K-9 Mail"])
            ]
        return "\n".join([*lines, "MIME-Version: 1.0", f"Content-Type: {content_type}", "Content-Transfer-Encoding: 8bit", "", ""])

    def _from_outside(self, seconds: int, sender: str) -> list[str]:
        """What the way through the net and our own MTA put on top: the same for all local recipients."""
        rng, date, domain = self.rng, email.utils.formatdate(seconds), sender.partition("@")[2]
        signature = base64_lines(rng.randbytes(256)).decode().strip().replace("\n", "\n\t ")
        digest = base64_lines(rng.randbytes(32)).decode().strip()
        lines = [
            f"Received: from out{rng.randrange(40)}.{domain} (out.{domain} [192.0.2.{rng.randrange(250)}])",
            f"\tby {HOST}.{DOMAINS[0]} (Postfix) with ESMTPS id {token(rng, 6).upper()};\n\t{date}",
            f"Authentication-Results: {HOST}.{DOMAINS[0]};",
            f"\tdkim=pass (2048-bit key) header.d={domain} header.s=s{rng.randrange(9)};",
            f"\tspf=pass smtp.mailfrom={sender}; dmarc=pass",
            f"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d={domain};\n\ts=s1; t={seconds};",
            f"\th=from:to:subject:date:message-id;\n\tbh={digest};\n\tb={signature}",
        ]
        for hop in range(rng.randrange(3)):
            lines.append(f"Received: from [10.{rng.randrange(250)}.0.{rng.randrange(250)}] by relay{hop}.{domain} with ESMTPSA")
            lines.append(f"\tid {token(rng, 8)}; {date}")
        return [*lines, f"X-Spam-Score: {rng.random() * 6 - 4:.2f}"]


def alternative(boundary: str, plain: bytes, rich: bytes) -> bytes:
    mark = b"--" + boundary.encode()
    return b"".join((mark, b"\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n", plain, b"\n",
                     mark, b"\nContent-Type: text/html; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n", rich, b"\n",
                     mark, b"--\n"))  # fmt: skip


def mixed(boundary: str, kind: str, body: bytes, parts: list[tuple[str, bytes]]) -> bytes:
    mark = b"--" + boundary.encode()
    out = [mark, b"\nContent-Type: ", kind.encode(), b"\n\n", body, b"\n"]
    for mime, encoded in parts:
        out += [mark, b"\nContent-Type: ", mime.encode(), b"\nContent-Transfer-Encoding: base64"]
        out += [b"\nContent-Disposition: attachment\n\n", encoded]
    return b"".join([*out, mark, b"--\n"])
