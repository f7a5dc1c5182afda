"""The far end of `--via`: a stream from another machine into this machine's Dovecot, or into a directory. No vault and no identity is needed here.

Everything is unpacked into a private directory first, and used only when the end marker proves that it is whole.
"""

from __future__ import annotations

import os
import time
from typing import IO

from mailbackup.errors import RecordInvalid, WouldOverwrite
from mailbackup.host import scratch_directory, translated
from mailbackup.model.events import OnEvent, Phase
from mailbackup.model.ids import show
from mailbackup.model.results import Fetched, RestoreResult
from mailbackup.restore.stream import Incoming, Sent, is_mail
from mailbackup.restore.target import Target
from mailbackup.server.live import LiveMailbox, LiveResult, Mailbox, Phases, check_disk, outcome_of, staging
from mailbackup.server.staged import is_state, plain

_PREFIX = ".mailbackup-receive-"
_NOTHING = Fetched(0, 0)


def receive_live(file: IO[bytes], user: str, on_event: OnEvent, *, dry_run: bool = False) -> LiveResult:
    """As `live.restore_live`, but from a stream. Raises DamageError, with nothing changed, unless the stream is whole and holds only mail."""
    began = time.monotonic()
    phases = Phases(on_event)
    with phases("waiting for the stream"):
        incoming = Incoming(file)
    head = incoming.head
    with phases("asking Dovecot"):
        box = Mailbox(user, phases)
        box.check_room(head.bytes, head.messages)
        into = box.free_parent()
    if dry_run:
        put = LiveMailbox(address=user, into=into, folders=head.folders, messages=head.messages, bytes=head.bytes)
        return LiveResult(
            outcome="planned", seq=head.seq, messages=head.messages, bytes=head.bytes, fetched=_NOTHING, seconds=0.0, findings=(),
            mailboxes=(put,), phases=phases.seconds, plan=box.quota_lines(),
        )  # fmt: skip
    with staging() as maildir:
        with phases("receiving"):
            got = incoming.unpack(Target(maildir), only_mail)
        put, proven = box.put(maildir)
    findings = [*got.findings, *proven]
    return LiveResult(
        outcome=outcome_of(findings), seq=head.seq, messages=put.messages, bytes=got.bytes, fetched=_NOTHING,
        seconds=round(time.monotonic() - began, 3), findings=tuple(findings), mailboxes=(put,), phases=phases.seconds,
    )  # fmt: skip


def only_mail(path: bytes, sent: Sent) -> Sent:
    """The member without owner and attributes. Raises RecordInvalid for what is neither a directory nor a file that a mailbox needs."""
    kind = sent.entry.type
    if sent.first is not None or kind not in ("d", "f") or (kind == "f" and not (is_mail(path) or is_state(path))):
        raise RecordInvalid(f"{show(path)} in the stream is no mail", hint="Nothing was changed.")
    entry, owner = plain(sent.entry, sent.owner)
    return Sent(path=sent.path, entry=entry, owner=owner, sha256=sent.sha256)


def receive_directory(file: IO[bytes], to: str, on_event: OnEvent, *, dry_run: bool = False) -> RestoreResult:
    """Unpack a stream as the directory `to`, which must be empty or absent (WouldOverwrite). Raises DamageError unless the stream is whole."""
    began = time.monotonic()
    to = os.path.abspath(to)
    parent = os.path.dirname(to)
    on_event(Phase("waiting for the stream"))
    incoming = Incoming(file)
    head = incoming.head
    _must_be_free(to)
    check_disk(_existing(parent), head.bytes)
    if dry_run:
        return RestoreResult(
            outcome="planned", seq=head.seq, messages=head.messages, files=0, bytes=head.bytes, kept=0, fetched=_NOTHING, seconds=0.0, findings=(),
        )  # fmt: skip
    with translated(f"make {parent}"):
        os.makedirs(parent, exist_ok=True)
    with scratch_directory(parent, _PREFIX) as top:
        on_event(Phase("receiving"))
        place = os.path.join(top, "Maildir")
        got = incoming.unpack(Target(place), lambda path, sent: sent)
        _must_be_free(to)
        with translated(f"put the mailbox at {to}"):
            os.rename(place, to)
    return RestoreResult(
        outcome=outcome_of(got.findings), seq=head.seq, messages=got.messages, files=got.files - got.messages, bytes=got.bytes, kept=0,
        fetched=_NOTHING, seconds=round(time.monotonic() - began, 3), findings=tuple(got.findings),
    )  # fmt: skip


def _must_be_free(to: str) -> None:
    if os.path.lexists(to) and (os.path.islink(to) or not os.path.isdir(to) or os.listdir(to)):
        raise WouldOverwrite(f"{to} is there and not empty", hint="Over a network a mailbox is put into a new or empty directory only.")


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
