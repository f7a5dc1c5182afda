"""`doctor`: this host can do it. A list of checks, each with its next step, ending in the one thing to do first.

A *problem* keeps backups from working; a *warning* is what makes them worth less, or keeps mail (also that of a rebuilt server) from working. Nothing is
changed, and no key is asked for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mailbackup.access import Context, open_place, writer_key
from mailbackup.capture.coverage import uncovered
from mailbackup.capture.locate import Located, locate
from mailbackup.config import literal_root
from mailbackup.errors import ConfigMissing, MailbackupError
from mailbackup.host import free_bytes, parse_stamp, utc_now
from mailbackup.model.events import Stop, never
from mailbackup.model.finding import FindingKind
from mailbackup.model.job import Status
from mailbackup.model.options import MailConfig, StoreConfig
from mailbackup.model.results import Check, DoctorResult
from mailbackup.schedule.zone import host_zone
from mailbackup.server.exposed import identity_checks
from mailbackup.server.published import published
from mailbackup.server.survey import asking, look, used
from mailbackup.stores.local_room import reserve_of
from mailbackup.stores.probe import StoreProbe, probe
from mailbackup.systems.accounts import accounts_of
from mailbackup.systems.ask import Ask, CannotAsk
from mailbackup.systems.known import NAMES, Survey
from mailbackup.systems.known import system as adapter
from mailbackup.upkeep.status import GOOD_SECONDS, read_status
from mailbackup.vault.chain import check_vault_info, find_head
from mailbackup.vault.statefile import remembered

_FIRST_CLOCK = 1_704_067_200  # 2024: a clock before this was never set


@dataclass(frozen=True, slots=True)
class _Look:
    """What all checks work on, found once."""

    context: Context
    ask: Ask
    survey: Survey
    status: Status | None
    located: tuple[tuple[MailConfig, Located], ...]


def doctor(context: Context, *, dns: bool = False, stop: Stop = never) -> DoctorResult:
    """All checks. With `dns` also what is published is compared with the keys."""
    ask = asking(context.config)
    located = tuple((mail, locate(mail, context.config.host.name)) for mail in context.config.mail)
    seen = _Look(context, ask, look(context.config, ask), _status(context), located)
    found = [_ok("configuration", f"{context.config_path} is valid")]
    for group in _GROUPS:
        if stop():
            break
        found += group(seen)
    if dns:
        found += _published(seen)
    return result(found, seen.status)


def without_configuration(error: MailbackupError) -> DoctorResult:
    """The answer where there is no configuration that can be used: nothing else can be checked then."""
    first = "mailbackup init" if isinstance(error, ConfigMissing) else error.hint
    return result([Check(name="configuration", level="problem", text=error.message, next=first)], None)


def result(checks: list[Check], status: Status | None) -> DoctorResult:
    """What the checks come to. Problems come first, then warnings, each in the order in which they were found."""
    problems = [check for check in checks if check.level == "problem"]
    warnings = [check for check in checks if check.level == "warning"]
    worst = next((check for check in (*problems, *warnings) if check.next), None)
    first = (
        worst.next
        if worst is not None
        else ("Nothing; look again after the next change." if status and status.good else "mailbackup backup")
    )
    outcome: Literal["ready", "warnings", "problems"] = "problems" if problems else "warnings" if warnings else "ready"
    return DoctorResult(outcome=outcome, checks=tuple(checks), next=first)


def _ok(name: str, text: str) -> Check:
    return Check(name=name, level="ok", text=text)


def _warning(name: str, text: str, advice: str) -> Check:
    return Check(name=name, level="warning", text=text, next=advice)


def _problem(name: str, text: str, advice: str) -> Check:
    return Check(name=name, level="problem", text=text, next=advice)


def _status(context: Context) -> Status | None:
    """What the host remembers; None when it may not be read, or is damaged."""
    try:
        return read_status(context.state_dir)
    except MailbackupError:
        return None


# ---------------------------------------------------------------- keys and store


def _keys(seen: _Look) -> Iterator[Check]:
    try:
        writer_key(seen.context)
    except MailbackupError as error:
        yield _problem("signing key", error.message, error.hint)
    else:
        yield _ok("signing key", "is the one that the configuration names")


def _stores(seen: _Look) -> Iterator[Check]:
    for place in seen.context.config.stores:
        yield from _store(seen.context, place)


def _store(context: Context, place: StoreConfig) -> Iterator[Check]:
    name = f"store {place.name}"
    try:
        with contextlib.closing(open_place(context, place)) as opened:
            check_vault_info(opened, context.anchors)
            head = find_head(opened)
            probes = probe(opened) if head else []
    except MailbackupError as error:
        yield _problem(name, error.message, error.hint)
        return
    if head == 0:
        yield _problem(name, "holds the vault, but no ledger", "Look for where its files went before the next run: mailbackup verify")
        return
    yield _ok(name, f"holds this host's vault, {head} entries")
    yield from (_probed(place, found) for found in probes)
    if place.scheme == "file":
        yield from _room(place, name)


def _probed(place: StoreConfig, found: StoreProbe) -> Check:
    """A trial as a check. What a store lacks is a warning where something can be done about it."""
    name, text = f"store {place.name}", f"{found.name}: {found.detail}"
    if found.outcome == "failed":
        return _problem(name, text, found.hint)
    advice = found.hint
    if (place.scheme, found.name, found.outcome) == ("s3", "versions", "unknown"):
        advice = "Turn on versioning of the bucket: readers then find what an intruder has hidden or replaced."
    return _warning(name, text, advice) if advice and found.outcome == "unknown" else _ok(name, text)


def _room(store: StoreConfig, name: str) -> Iterator[Check]:
    """Whether it can be written, as far as that shows without writing, and how much may be."""
    if not os.access(store.path, os.W_OK | os.X_OK):
        yield _problem(
            name,
            f"{store.path} cannot be written by this user",
            "Run as the user who makes the backups (root), or correct its owner and mode.",
        )
        return
    free, total = free_bytes(store.path)
    reserve = reserve_of(total) if store.reserve is None else store.reserve
    if free <= reserve:
        text = f"{free >> 20} MiB are free, and {reserve >> 20} MiB of them are never used"
        yield _problem(name, text, f"Free space on the file system of {store.path}, or set 'reserve' of the store lower.")
    elif free - reserve < (1 << 30):
        yield _warning(
            name, f"only {(free - reserve) >> 20} MiB are free above the reserve", f"Free space on the file system of {store.path}."
        )
    else:
        yield _ok(name, f"{(free - reserve) >> 30} GiB are free above the reserve")


def _same_disk(seen: _Look) -> Iterator[Check]:
    """Whether one broken disk takes mail and backups: not while another store lies elsewhere."""
    config = seen.context.config
    sources = [*(literal_root(mail.path) for mail in config.mail), *(directory.path for directory in config.directories)]
    by_device = {device: source for source in reversed(sources) if (device := _device(source)) is not None}
    near = {store.name: by_device[device] for store in config.stores if (device := _store_device(store)) in by_device}
    if len(near) < len(config.stores):
        return
    for name, source in near.items():
        text = f"it lies on the same file system as {source}: one broken disk takes both"
        yield _warning(f"store {name}", text, f"Keep the vault on another disk or machine: change the url of [[store]] {name}.")


def _store_device(store: StoreConfig) -> int | None:
    return _device(store.path) if store.scheme in ("file", "borg") else None


def _device(path: str) -> int | None:
    try:
        return os.stat(path).st_dev
    except OSError:
        return None


# ---------------------------------------------------------------- what happened so far


def _history(seen: _Look) -> Iterator[Check]:
    if seen.status is None:
        path = seen.context.state_dir
        yield _warning("last snapshot", f"what {path} remembers cannot be read", "Run as the user who makes the backups (root).")
        return
    good = seen.status.good
    if good is None:
        known = remembered(seen.context.state_path, seen.context.anchors.vault).counts
        text = "there is none yet" if not known else "there is none that is complete"
        yield _warning("last snapshot", text, "mailbackup backup")
        return
    age = int((utc_now() - parse_stamp(good.time)).total_seconds())
    if age > GOOD_SECONDS:
        text = f"the newest good snapshot, {good.seq}, is {age // 3600} hours old"
        yield _warning(
            "last snapshot", text, "mailbackup job run nightly, and see with 'mailbackup schedule show' what starts it by itself"
        )
    else:
        yield _ok("last snapshot", f"snapshot {good.seq} of {good.time} is good")


def _rehearsed(seen: _Look) -> Iterator[Check]:
    if seen.status is None:
        return
    if seen.status.drill is None:
        text = "the recovery kit was never rehearsed: nothing shows that it opens these backups and that they restore"
        yield _warning("kit", text, "mailbackup drill light --identity KIT-FILE")
    else:
        yield _ok("kit", f"a drill restored snapshot {seen.status.drill.snapshot.seq} on {seen.status.drill.time}")


def _exposed(seen: _Look) -> Iterator[Check]:
    yield from identity_checks(seen.context.config_path)


# ---------------------------------------------------------------- sources


def _mail(seen: _Look) -> Iterator[Check]:
    for mail, located in seen.located:
        name = f"mail {mail.name}"
        for path, why in located.failed.items():
            yield _problem(name, f"{os.fsdecode(path)}: {why}", "Correct 'path' of [[mail]], mount what is missing, or run as root.")
        if not located.mailboxes and not located.failed:
            yield _problem(
                name, f"no mailbox fits {mail.path}", "Correct 'path' of [[mail]]: 'doveadm user ADDRESS' says where a mailbox lies."
            )
        elif located.mailboxes:
            yield from _readable(name, located)
    accounts = _uncovered(seen)
    if accounts is not None:
        yield accounts


def _readable(name: str, located: Located) -> Iterator[Check]:
    closed = [box for box in located.mailboxes if not os.access(box.path, os.R_OK | os.X_OK)]
    if closed:
        text = f"{len(closed)} of {len(located.mailboxes)} mailboxes cannot be read by this user, first {closed[0].address}"
        yield _problem(name, text, "Run as root: each mailbox belongs to somebody else.")
    else:
        yield _ok(name, f"{len(located.mailboxes)} mailboxes, all readable")


def _uncovered(seen: _Look) -> Check | None:
    """Accounts that the mail server knows, and whose mailbox no `[[mail]]` section finds."""
    if not any(row.system == "dovecot" for row in seen.survey.inventories):
        return None
    try:
        accounts = accounts_of(seen.ask).accounts
    except CannotAsk:
        return None  # told where the systems are
    boxes = [box for _, located in seen.located for box in located.mailboxes]
    missing = uncovered(accounts, boxes, {os.path.realpath(box.path): box.key for box in boxes})
    if not missing:
        return _ok("accounts", f"{len(accounts)} accounts, none of them with a mailbox that is not saved")
    text = f"the mailboxes of {len(missing)} accounts belong to no [[mail]] section, first {missing[0].name}: {missing[0].path}"
    return _problem("accounts", text, f"Add a [[mail]] section whose path fits {missing[0].path}.")


def _directories(seen: _Look) -> Iterator[Check]:
    for directory in seen.context.config.directories:
        name = f"directory {directory.name}"
        if not os.path.isdir(directory.path):
            yield _problem(name, "is not there", "Correct the path in the configuration, or mount it.")
        elif not os.access(directory.path, os.R_OK | os.X_OK):
            yield _problem(name, "cannot be read by this user", "Run as root, or let the user read it.")
        else:
            yield _ok(name, "is there and readable")


# ---------------------------------------------------------------- systems and their secrets


def _systems(seen: _Look) -> Iterator[Check]:
    wanted = used(seen.context.config)
    found = [row.system for row in seen.survey.inventories if row.system not in ("host", "directories")]
    for name, why in seen.survey.failed.items():
        level = _problem if name in wanted else _warning
        yield level(f"system {name}", why, "Run as root, and start the program, or correct what it complains of.")
    if found and not wanted:
        text = f"{', '.join(found)} run on this host, and their configuration and keys are not saved"
        yield _warning("systems", text, 'Add to the configuration: [systems] use = "auto"')
    elif set(found) - set(wanted):
        yield _warning("systems", f"{', '.join(sorted(set(found) - set(wanted)))}: found, but not saved", 'Say [systems] use = "auto".')
    elif found:
        yield _ok("systems", f"{', '.join(found)}: saved")
    for name in wanted if wanted != NAMES else ():
        if name not in found and name not in seen.survey.failed and name not in ("host", "directories"):
            yield _warning(f"system {name}", "is configured, and not on this host", "Take it out of [systems] use.")
    yield from _programs(seen, wanted)
    yield from _secrets(seen)


def _programs(seen: _Look, wanted: tuple[str, ...]) -> Iterator[Check]:
    """What the dumps of the systems start."""
    for row in seen.survey.inventories:
        missing = [dump.argv[0] for dump in row.dumps if dump.argv and not seen.ask.has(dump.argv[0])]
        if missing and row.system in wanted:
            yield _problem(f"system {row.system}", f"{missing[0]} is not installed", f"Install the package that brings {missing[0]}.")


def _secrets(seen: _Look) -> Iterator[Check]:
    """The secret doctor: keys, records, certificates, owners and modes."""
    for row in seen.survey.inventories:
        known = adapter(row.system)
        assert known is not None, "an inventory of an unknown system"
        try:
            findings = known.examine(seen.ask, row)
        except CannotAsk as error:
            yield _warning(f"system {row.system}", str(error), "Run as root.")
            continue
        for finding in findings:
            name = "secrets" if finding.kind is FindingKind.SECRET_DOUBT else f"system {row.system}"
            text, run, command = finding.detail.partition(" Run: ")
            yield _warning(name, f"{finding.subject}: {text}", command if run else f"Correct {finding.subject}.")
        if not findings and row.system in ("tls", "opendkim"):
            yield _ok("secrets", f"{row.system}: keys, modes, owners and what belongs to them fit")


def _published(seen: _Look) -> Iterator[Check]:
    for row in seen.survey.inventories:
        if row.system == "opendkim":
            yield from published(seen.ask, row)


# ---------------------------------------------------------------- the host


def _rights(seen: _Look) -> Iterator[Check]:
    if os.geteuid() == 0:
        yield _ok("rights", "root")
    elif used(seen.context.config):
        yield _problem("rights", "this user is not root, and [systems] needs it: keys and the queue belong to daemons", "Run as root.")
    else:
        yield _warning("rights", "this user is not root: what belongs to others may not be readable", "Run as root.")


def _clock(seen: _Look) -> Iterator[Check]:
    now = time.time()
    newest = seen.status.newest if seen.status is not None else None
    if now < _FIRST_CLOCK:
        yield _problem("clock", "was never set", "Set it: timedatectl set-ntp true")
    elif newest is not None and parse_stamp(newest.time).timestamp() > now + 300:
        yield _problem("clock", f"goes back before the last snapshot ({newest.time})", "Set it: timedatectl set-ntp true")
    else:
        yield _ok("clock", f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime(now))} UTC, zone {host_zone()}")


def _engines(seen: _Look) -> Iterator[Check]:
    """Where a drill can run."""
    if shutil.which("bwrap") and _runs("bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--unshare-net", "true"):
        yield _ok("drills", "bwrap works here")
    elif shutil.which("podman"):
        yield _ok("drills", "podman is here")
    else:
        what = "bwrap does not work here" if shutil.which("bwrap") else "neither bwrap nor podman is installed"
        yield _warning(
            "drills", f"{what}: this host cannot rehearse a restore", "apt-get install bubblewrap, or run drills on another machine"
        )


def _runs(*argv: str) -> bool:
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


_GROUPS = (_rights, _clock, _keys, _stores, _mail, _directories, _systems, _history, _exposed, _rehearsed, _same_disk, _engines)
