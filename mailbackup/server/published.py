"""What the DNS says of DKIM keys, compared with the keys on this host. The one place that asks the DNS."""

from __future__ import annotations

from collections.abc import Iterator

import dns.exception
import dns.resolver

from mailbackup.model.results import Check
from mailbackup.model.system import Inventory
from mailbackup.systems.ask import Ask, CannotAsk
from mailbackup.systems.opendkim import public_half, record_key

_SECONDS = 5.0


def published(ask: Ask, inventory: Inventory, seconds: float = _SECONDS) -> Iterator[Check]:
    """One check per DKIM key: the record that receivers see belongs to it. `seconds` is the limit for each question.

    After the first question that nobody answers no more is asked: without a network that would be a long wait for nothing.
    """
    resolver = _resolver()
    for row in inventory.facts.get("keys", ()):
        selector, domain, path = row.split(" ", 2)
        name = f"{selector}._domainkey.{domain}"
        try:
            key = None if resolver is None else _record(resolver, name, seconds)
        except dns.exception.DNSException as error:
            key = None
            detail = (str(error) or type(error).__name__).partition(":")[0]
            yield _check("warning", f"the DNS did not answer for {name}: {detail}", "Run doctor --dns where there is a network.")
            return
        if resolver is None:
            yield _check("warning", "this host has no name server", "Name one in /etc/resolv.conf.")
            return
        yield _judged(ask, name, path, key)


def _resolver() -> dns.resolver.Resolver | None:
    try:
        return dns.resolver.Resolver()
    except dns.exception.DNSException:
        return None


def _record(resolver: dns.resolver.Resolver, name: str, seconds: float) -> str:
    """The key of a DKIM record; empty when there is no record, or it revokes the key."""
    try:
        answer = resolver.resolve(name, "TXT", lifetime=seconds)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return ""
    texts = (b"".join(rdata.strings).decode("ascii", "replace") for rdata in answer)
    return next((key for text in texts if (key := record_key(text))), "")


def _judged(ask: Ask, name: str, path: str, key: str | None) -> Check:
    if not key:
        advice = f"Publish the record that lies beside {path}, or stop signing with it."
        return _check("warning", f"{name} is not published: receivers cannot verify what {path} signs", advice)
    try:
        mine = public_half(ask, path)
    except CannotAsk as error:
        return _check("warning", str(error), "Run as root.")
    if mine != key:
        advice = f"Publish the record of {path}, or bring back the key that belongs to what is published."
        return _check("warning", f"{name} is published with another key than {path}: no signature verifies", advice)
    return _check("ok", f"{name} is published and belongs to {path}")


def _check(level: str, text: str, advice: str = "") -> Check:
    return Check(name="dkim in dns", level="ok" if level == "ok" else "warning", text=text, next=advice)
