"""The signed record of an audit, on which whoever prunes without a key relies: only what it covers is ever deleted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from mailbackup.audit.walk import Audited
from mailbackup.crypto.signing import SigningKey
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import Digest
from mailbackup.model.ledger import Anchors
from mailbackup.stores.base import Store
from mailbackup.upkeep.acts import add_audit
from mailbackup.upkeep.registry import Registry
from mailbackup.vault.chain import trust_within


class Recorded(NamedTuple):
    """The act that records an audit; None with the reason, in words, when none was left."""

    act: int | None
    why: str = ""


def record_audit(
    store: Store, anchors: Anchors, signers: Sequence[SigningKey], *, registry: Registry, head: tuple[int, Digest] | None, audited: Audited,
    findings: Sequence[Finding],
) -> Recorded:  # fmt: skip
    """Record that everything up to `head` was audited, if that is so and one of `signers` may say it.

    `registry` and `head` are of the walk over the ledger that the audit was compared with, `findings` everything that was found in this store.
    Raises ChainBroken, ConflictError and what the store raises.
    """
    why = _why_not(registry, head, audited, findings)
    if why or head is None:
        return Recorded(None, why)
    signer = _trusted(store, anchors, head[0], signers)
    if signer is None:
        return Recorded(None, "there is no key here that may sign it (that of the recovery kit, or one with the role drill)")
    return Recorded(add_audit(store, anchors, signer, head))


_SAYS_NOTHING = frozenset({FindingKind.LOCK_ENDS})
"""Findings that need somebody, and say nothing of what the trees refer to."""


def _why_not(registry: Registry, head: tuple[int, Digest] | None, audited: Audited, findings: Sequence[Finding]) -> str:
    if not audited.whole:
        return "only a sample was opened"
    if any(not finding.harmless and finding.kind not in _SAYS_NOTHING for finding in findings) or registry.unreadable or head is None:
        return "not everything is as it should be"
    missed = set(registry.snapshots) - audited.passed - audited.snapshots
    if missed:
        return f"snapshot {min(missed)} was not looked at"
    return ""


def _trusted(store: Store, anchors: Anchors, head: int, signers: Sequence[SigningKey]) -> SigningKey | None:
    """The first key that may sign the record. One that may not would break the chain of acts."""
    roles = trust_within(store, head, anchors).roles
    return next((key for key in signers if key.public == anchors.admin or "drill" in roles.get(key.public, ())), None)
