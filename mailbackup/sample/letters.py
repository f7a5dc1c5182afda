"""Invented mail: plain, HTML, raw 8-bit, CRLF, with attachments. All follows from the random source passed in."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from random import Random

OUTSIDERS = ("newsletter@example.com", "billing@example.com", "Jürgen <juergen@example.com>", "support@example.com")

_TOPICS = (
    "Minutes of the meeting", "Invoice for the printer paper", "Lunch on Thursday", "Server room key",
    "Holiday calendar", "Draft of the leaflet", "Question about the order", "New projector", "Coffee machine",
    "Timetable", "Backup of the mail server",
)  # fmt: skip
_TOPICS_8BIT = (
    "Grüße aus der Küche",
    "Übersicht für März",
    "Café à la carte",
    "Résumé de la séance",
    "Ночное копирование",
)
_SENTENCES = (
    "Please have a look and tell me what you think.", "The parcel has arrived and stands in the corridor.",
    "We meet in the small room, since the large one is being painted.", "I moved the appointment by one hour.",
    "The numbers of last month are at the end of this mail.", "Nobody has found the spare key yet.",
    "It would be good to decide this before the end of the week.", "Thank you for the quick answer.",
    "The window in the hall was left open again.", "I attach nothing, this is all there is to say.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Envelope:
    """Who writes to whom, when (seconds since 1970), about what; `number` makes the Message-ID unique."""

    sender: str
    recipient: str
    when: int
    number: int
    subject: str


def topic(rng: Random) -> str:
    """A subject in ASCII."""
    return ("Re: " if rng.random() < 0.3 else "") + rng.choice(_TOPICS)


def plain(rng: Random, envelope: Envelope) -> bytes:
    """A short text, LF."""
    return _lines(_head(envelope), "Content-Type: text/plain; charset=us-ascii", "", *_paragraphs(rng))


def with_crlf(rng: Random, envelope: Envelope) -> bytes:
    """The same with CRLF, as some servers store it."""
    return plain(rng, envelope).replace(b"\n", b"\r\n")


def raw_8bit(rng: Random, envelope: Envelope) -> bytes:
    """Raw ISO 8859-1 in the body, and raw UTF-8 in the subject: not allowed, and common."""
    head = _lines(
        _head(envelope, subject=rng.choice(_TOPICS_8BIT)),
        "Content-Type: text/plain; charset=iso-8859-1",
        "Content-Transfer-Encoding: 8bit",
        "",
    )
    return head + "Schöne Grüße, und viel Spaß mit der Übersicht.\n".encode("latin-1") + _lines(*_paragraphs(rng))


def encoded(rng: Random, envelope: Envelope) -> bytes:
    """An encoded subject and a body in base64."""
    subject = base64.b64encode(rng.choice(_TOPICS_8BIT).encode()).decode()
    body = base64.encodebytes("\n".join(_paragraphs(rng)).encode())
    return (
        _lines(
            _head(envelope, subject=f"=?utf-8?B?{subject}?="),
            "Content-Type: text/plain; charset=utf-8",
            "Content-Transfer-Encoding: base64",
            "",
        )
        + body
    )


def html(rng: Random, envelope: Envelope) -> bytes:
    """Text and HTML as alternatives."""
    boundary = f"=_alternative_{envelope.number}"
    text = _paragraphs(rng)
    return _lines(
        _head(envelope),
        f'Content-Type: multipart/alternative; boundary="{boundary}"',
        "",
        f"--{boundary}",
        "Content-Type: text/plain; charset=us-ascii",
        "",
        *text,
        f"--{boundary}",
        "Content-Type: text/html; charset=us-ascii",
        "",
        "<html><body>",
        *(f"<p>{line}</p>" for line in text),
        "</body></html>",
        f"--{boundary}--",
    )


def with_attachment(envelope: Envelope, name: str, content: bytes) -> bytes:
    """A text and one attachment. Below the headers it depends on name and content only: equal for all recipients."""
    boundary = "=_attachment_" + name.replace(".", "_")
    body = _lines(
        f"--{boundary}",
        "Content-Type: text/plain; charset=us-ascii",
        "",
        "See the attachment.",
        "",
        f"--{boundary}",
        f'Content-Type: application/octet-stream; name="{name}"',
        f'Content-Disposition: attachment; filename="{name}"',
        "Content-Transfer-Encoding: base64",
        "",
    )
    head = _lines(_head(envelope), f'Content-Type: multipart/mixed; boundary="{boundary}"', "")
    return head + body + base64.encodebytes(content) + _lines(f"--{boundary}--")


ORDINARY = (plain, plain, html, plain, encoded, raw_8bit, plain, with_crlf)
"""Kinds of ordinary mail in the proportion in which they occur."""


def _head(envelope: Envelope, subject: str | None = None) -> str:
    date = format_datetime(datetime.fromtimestamp(envelope.when, UTC))
    return "\n".join(
        (
            f"Return-Path: <{envelope.sender.rpartition('<')[2].rstrip('>')}>",
            f"Delivered-To: {envelope.recipient}",
            "Received: from relay.example.com (relay.example.com [192.0.2.25])",
            f"\tby mx1.example.org (Postfix) with ESMTPS id {envelope.number:08X}",
            f"\tfor <{envelope.recipient}>; {date}",
            f"Date: {date}",
            f"From: {envelope.sender}",
            f"To: {envelope.recipient}",
            f"Subject: {envelope.subject if subject is None else subject}",
            f"Message-ID: <{envelope.when}.{envelope.number}@example.org>",
            "MIME-Version: 1.0",
        )
    )


def _paragraphs(rng: Random) -> list[str]:
    return ["Hello,", "", *(rng.choice(_SENTENCES) for _ in range(rng.randint(2, 60))), "", "Best wishes"]


def _lines(*lines: str) -> bytes:
    return "".join(line + "\n" for line in lines).encode()
