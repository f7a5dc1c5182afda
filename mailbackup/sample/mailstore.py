"""A small made-up mail store for the first try and for tests, and a day of life in it.

`<root>/{domain}/{user}/Maildir`: 4 mailboxes of 4 folders, 121 messages, 6.5 MB. The same seed makes the same names,
bytes and times.
"""

from __future__ import annotations

import os
from random import Random

from mailbackup.errors import AlreadyExists, NotFound
from mailbackup.sample import letters
from mailbackup.sample.folder import SampleFolder, base_name, flags_of, write_file

ACCOUNTS = (("example.org", "alice"), ("example.org", "bob"), ("example.net", "carol"), ("example.net", "dave"))
FOLDERS = {"": 14, ".Sent": 6, ".Archive.2026": 7, ".Entw&APw-rfe": 3}
"""Folders of each mailbox and how many messages each begins with."""

MARKER = "README-sample"

_ABOUT = b"A made-up mail store. Everything in it is invented, and 'simulate a day' changes it. It can be deleted.\n"
_FIRST_DAY = 1_767_600_000  # 2026-01-05 08:00 UTC: fixed, so that a store does not depend on when it is made
_DAY = 86_400
_SHARED_SIZE = 48 * 1024  # bytes of the attachment that every mailbox has: above the 32 KiB of the locality rule
_LARGE_SIZE = 4_500_000  # 6 MB in base64: more than one piece of 4 MiB
_FLAGS = ("", "S", "S", "S", "S", "RS", "FS", "Sa", "Sb", "RSab")


def make_sample(root: str, seed: int = 1) -> None:
    """Make the store in `root`, a new or empty directory. Raises AlreadyExists otherwise, and then changes nothing."""
    if os.path.lexists(root) and not (os.path.isdir(root) and not os.listdir(root)):
        raise AlreadyExists(f"{root}: not an empty directory", hint="Name an empty or a new directory for the sample.")
    os.makedirs(root, exist_ok=True)
    write_file(os.path.join(root, MARKER), _ABOUT)
    shared = _random(seed, "shared").randbytes(_SHARED_SIZE)
    for number, (domain, user) in enumerate(ACCOUNTS):
        rng = _random(seed, domain, user)
        path = os.path.join(root, domain, user, "Maildir")
        folders = _make_mailbox(path, rng, number)
        if number == 0:
            _add_rarities(folders, rng, f"{user}@{domain}")
        _fill(folders, rng, f"{user}@{domain}", shared)
        for folder in folders.values():
            folder.save()
    _set_times(root, _FIRST_DAY + 300 * _DAY)


def simulate_day(root: str, seed: int) -> None:
    """A day in a store that `make_sample` made: new mail is read, flags change, messages move and go, others arrive.

    What happens depends on the seed and on what is there. Raises NotFound when `root` is no such store, since this
    deletes mail.
    """
    if not os.path.isfile(os.path.join(root, MARKER)):
        raise NotFound(f"{root}: not a sample mail store", hint="Only stores that were made as a sample are changed.")
    day = _newest(root) // _DAY * _DAY + _DAY
    for domain, user in ACCOUNTS:
        folders = _open_mailbox(root, os.path.join(domain, user, "Maildir"))
        rng = _random(seed, day, user)
        _live(folders, rng)
        _arrive(folders, rng, f"{user}@{domain}", day)
        for folder in folders.values():
            folder.save()


def _make_mailbox(path: str, rng: Random, number: int) -> dict[str, SampleFolder]:
    """The empty folders of a mailbox, and the files that belong to all of it."""
    validity = _FIRST_DAY + 10 * number
    folders = {
        name: SampleFolder.make(os.path.join(path, name), validity + n, f"{rng.getrandbits(128):032x}", inbox=not name)
        for n, name in enumerate(FOLDERS)
    }
    highest = validity + len(FOLDERS) - 1
    write_file(os.path.join(path, "dovecot-uidvalidity"), b"%08x" % highest)
    write_file(os.path.join(path, f"dovecot-uidvalidity.{highest:08x}"), b"")
    write_file(os.path.join(path, "subscriptions"), b"V\t2\n\nSent\nArchive\t2026\nEntw&APw-rfe\n")
    return folders


def _open_mailbox(root: str, relative: str) -> dict[str, SampleFolder]:
    """The folders of a mailbox. Raises NotFound when one is missing, or is a link, which could lead out of the root."""
    for name in FOLDERS:
        for place in ("cur", "new", "tmp"):
            below = os.path.normpath(os.path.join(relative, name, place))
            if os.path.realpath(os.path.join(root, below)) != os.path.join(os.path.realpath(root), below):
                raise NotFound(f"{os.path.join(root, below)}: a link, which the sample did not make")
            if not os.path.isdir(os.path.join(root, below)):
                raise NotFound(f"{os.path.join(root, below)}: not there any more", hint="Make a new sample.")
    return {name: SampleFolder.open(os.path.join(root, relative, name)) for name in FOLDERS}


def _add_rarities(folders: dict[str, SampleFolder], rng: Random, owner: str) -> None:
    """A mail of 6 MB, and a delivery that was cut off: it stays in tmp and is no message."""
    large = letters.with_attachment(_envelope(rng, owner, _FIRST_DAY), "scan.bin", rng.randbytes(_LARGE_SIZE))
    folders[".Archive.2026"].deliver(large, _FIRST_DAY, 1, "cur", "S")
    unfinished = f"{_FIRST_DAY + 41}.M000041P1041.mx1"
    write_file(os.path.join(folders[""].path, "tmp", unfinished), b"Return-Path: <bob@example.org>\nDate: Mon, 5 Ja")


def _fill(folders: dict[str, SampleFolder], rng: Random, owner: str, shared: bytes) -> None:
    """The messages of the first 300 days, oldest first, so that UIDs rise with time. Two in INBOX are unseen."""
    for name, count in FOLDERS.items():
        days = sorted(rng.sample(range(1, 300), count))
        for index, day in enumerate(days):
            envelope = _envelope(rng, owner, _FIRST_DAY + day * _DAY + rng.randrange(36_000), sent=name == ".Sent")
            if not name and index == 2:
                data = letters.with_attachment(envelope, "timetable.bin", shared)
            else:
                data = rng.choice(letters.ORDINARY)(rng, envelope)
            unseen = not name and index >= count - 2
            flags = "DS" if name == ".Entw&APw-rfe" else rng.choice(_FLAGS)
            folders[name].deliver(data, envelope.when, rng.randrange(10**6), "new" if unseen else "cur", flags)


def _live(folders: dict[str, SampleFolder], rng: Random) -> None:
    """What the owner does with the mail of yesterday."""
    inbox = folders[""]
    for name in inbox.names("new"):
        inbox.rename("new", name, rng.choice(("", "S", "S", "RS")))
    for folder in folders.values():
        names = folder.names("cur")
        for name in rng.sample(names, min(len(names), 1 + len(names) // 10)):
            folder.rename("cur", name, _changed(flags_of(name), rng))
    for name in _some(inbox, rng, 1):
        inbox.move(name, folders[".Archive.2026"])
    for name in _some(inbox, rng, 1):
        inbox.delete(name)
    for name in _some(folders[".Sent"], rng, 1):
        folders[".Sent"].delete(name)


def _arrive(folders: dict[str, SampleFolder], rng: Random, owner: str, day: int) -> None:
    """The mail of today: three in INBOX, one sent."""
    for when in sorted(day + rng.randrange(_DAY // 2) for _ in range(3)):
        envelope = _envelope(rng, owner, when)
        folders[""].deliver(rng.choice(letters.ORDINARY)(rng, envelope), when, rng.randrange(10**6))
    envelope = _envelope(rng, owner, day + _DAY // 2, sent=True)
    folders[".Sent"].deliver(letters.plain(rng, envelope), envelope.when, rng.randrange(10**6), "cur", "S")


def _some(folder: SampleFolder, rng: Random, count: int) -> list[str]:
    """A few messages of cur, but never the last one of a folder."""
    names = folder.names("cur")
    return rng.sample(names, min(count, max(0, len(names) - 1)))


def _changed(flags: str, rng: Random) -> str:
    """Other flags than these, in ASCII order."""
    return "".join(sorted(set(flags) ^ {rng.choice("SRFab")}))


def _envelope(rng: Random, owner: str, when: int, *, sent: bool = False) -> letters.Envelope:
    others = [f"{user}@{domain}" for domain, user in ACCOUNTS if f"{user}@{domain}" != owner] + list(letters.OUTSIDERS)
    other = rng.choice(others)
    sender, recipient = (owner, other) if sent else (other, owner)
    return letters.Envelope(sender, recipient, when, rng.getrandbits(32), letters.topic(rng))


def _random(seed: int, *of: object) -> Random:
    """A source of its own for each part, so that a change in one leaves the others as they are."""
    return Random(f"{seed} {of}")  # noqa: S311 - not for secrets: it has to be repeatable


def _newest(root: str) -> int:
    """Time of the newest message of the store, seconds since 1970, from the names."""
    names = [
        name
        for domain, user in ACCOUNTS
        for folder in FOLDERS
        for place in ("cur", "new")
        for name in os.listdir(os.path.join(root, domain, user, "Maildir", folder, place))
    ]
    return max((int(base_name(name).partition(".")[0]) for name in names), default=_FIRST_DAY)


def _set_times(root: str, when: int) -> None:
    """Give everything but the messages one time in the past, children first: changing them changes the parent's."""
    for directory, _, files in os.walk(root, topdown=False):
        if os.path.basename(directory) not in ("cur", "new"):
            for name in files:
                os.utime(os.path.join(directory, name), (when, when))
        os.utime(directory, (when, when))
