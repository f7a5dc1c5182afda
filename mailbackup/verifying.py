"""The composition behind `verify`: each store for itself, without a key or with one, and what is signed afterwards."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mailbackup import kit as recovery
from mailbackup.access import Context, chosen_stores, use_store, use_vault
from mailbackup.audit.record import record_audit
from mailbackup.audit.walk import Auditor
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import ChainBroken, ConflictError, StoreError, UsageError
from mailbackup.model.events import Stop, never
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.ids import PackId
from mailbackup.model.ledger import Anchors
from mailbackup.model.results import ScrubRound, VerifyResult
from mailbackup.stores.base import Store
from mailbackup.upkeep.rolling import Budget, rolling_verify
from mailbackup.upkeep.scrub import check_signer, record_damage, scrub
from mailbackup.upkeep.status import remember_whole_round, whole_round_of
from mailbackup.vault.chain import Link
from mailbackup.vault.reader import VaultReader


def verify(
    context: Context,
    *,
    decrypt: bool = False,
    sample: float | None = None,
    budget: Budget | None = None,
    sign: str | None = None,
    stop: Stop = never,
) -> VerifyResult:
    """Check the vault: without a key everything that is public, with `decrypt` also what is sealed. `sample` is a share, 0 < s <= 1.

    With a `budget` it goes on where the last such check ended. `sign` is the file of a signing key for acts that say what is damaged. Raises UsageError
    when a budget is combined with `decrypt` or `sample`, KeyProblem when nobody named the signing key.
    """
    if budget is not None and (decrypt or sample is not None):
        raise UsageError(
            "a budget goes with neither --decrypt nor --sample",
            hint="Give --budget alone: it goes round what can be checked without a key.",
        )
    began = time.monotonic()
    signer = None if sign is None else recovery.load_signing_key(sign)
    places = chosen_stores(context)
    checked, away = [], None
    for place in places:
        try:
            checked.append(
                _verify_store(replace(context, store=place.name), decrypt, sample, budget, signer, stop, several=len(places) > 1)
            )
        except StoreError as error:
            away = away or error  # the others are checked all the same
    findings = tuple(finding for result in checked for finding in result.findings)
    clean = all(finding.harmless for finding in findings)
    if away is not None and clean:
        raise away  # not checked is not clean
    return VerifyResult(
        outcome="clean" if clean else "damaged", decrypted=decrypt,
        objects=sum(result.objects for result in checked), bytes=sum(result.bytes for result in checked),
        blobs=sum(result.blobs for result in checked), seconds=round(time.monotonic() - began, 3), findings=findings,
        rounds=tuple(result.round for result in checked if result.round is not None),
        acts={result.store: result.act for result in checked if result.act is not None},
        audits={result.store: result.audit for result in checked if result.audit is not None},
        unrecorded="; ".join(dict.fromkeys(result.unrecorded for result in checked if result.unrecorded)),
    )  # fmt: skip


@dataclass(slots=True)
class _Verified:
    """What checking one store came to."""

    store: str
    objects: int
    bytes: int
    findings: list[Finding]
    blobs: int = 0
    round: ScrubRound | None = None
    act: int | None = None
    audit: int | None = None
    unrecorded: str = ""


def _verify_store(
    context: Context, decrypt: bool, sample: float | None, budget: Budget | None, signer: SigningKey | None, stop: Stop, *, several: bool
) -> _Verified:
    """Check one store, each of its bytes for itself."""
    name = str(context.store)
    if decrypt:
        with use_vault(context) as (reader, _):
            anchors = reader.anchors_of(reader.store)
            _check_signer(reader.store, anchors, signer)
            done = _verify_opened(context, reader, sample, signer)
    else:
        with use_store(context) as store:
            anchors = context.anchors_of(name)
            _check_signer(store, anchors, signer)
            done = (
                _verify_round(context, store, budget, signer, stop)
                if budget is not None
                else _verify_sealed(context, store, sample, signer)
            )
    if several:
        done.findings = [Finding(found.kind, found.subject, f"store {name}: {found.detail}", found.snapshots) for found in done.findings]
    return done


def _check_signer(store: Store, anchors: Anchors, signer: SigningKey | None) -> None:
    """A key that nobody named is refused before hours of reading; a ledger that cannot tell is what the check itself will find."""
    if signer is not None:
        with contextlib.suppress(ChainBroken):
            check_signer(store, anchors, signer)


def _verify_sealed(context: Context, store: Store, sample: float | None, signer: SigningKey | None) -> _Verified:
    anchors = context.anchors_of(store.name)
    scrubbed = scrub(store, anchors, sample=sample, on_event=context.on_event)
    done = _Verified(store.name, scrubbed.objects, scrubbed.bytes, scrubbed.findings)
    _sign_damage(store, anchors, signer, scrubbed.damaged, done)
    return done


def _verify_round(context: Context, store: Store, budget: Budget, signer: SigningKey | None, stop: Stop) -> _Verified:
    """A share of a round; the status of this host remembers how far it came."""
    anchors, place = context.anchors_of(store.name), whole_round_of(context.state_dir, store.name)
    rolled = rolling_verify(store, anchors, after=place.after, budget=budget, stop=stop, on_event=context.on_event)
    place = remember_whole_round(context.state_dir, store.name, place, rolled.after, wrapped=rolled.wrapped)
    done = _Verified(store.name, rolled.objects + rolled.packs, rolled.bytes, rolled.findings)
    done.round = ScrubRound(store=store.name, bytes=rolled.bytes, whole=rolled.live, runs=rolled.runs, since=place.since, last=place.round)
    _sign_damage(store, anchors, signer, rolled.damaged, done)
    return done


def _verify_opened(context: Context, reader: VaultReader, sample: float | None, signer: SigningKey | None) -> _Verified:
    """Everything, and then what is sealed; a sound vault is recorded for those who prune, if there is a key that may sign it."""
    store, anchors = reader.store, reader.anchors_of(reader.store)
    scrubbed = scrub(store, anchors, sample=sample, on_event=context.on_event)
    audited = Auditor(reader, scrubbed.registry, context.on_event, sample, scrubbed.book).run(_sound_snapshots(reader))
    done = _Verified(store.name, scrubbed.objects, scrubbed.bytes + audited.bytes, scrubbed.findings + audited.findings, audited.blobs)
    _sign_damage(store, anchors, signer, scrubbed.damaged, done)
    try:
        signers = [key for key in (signer, _kit_key(context)) if key is not None]
        record = record_audit(
            store, anchors, signers, registry=scrubbed.registry, head=scrubbed.head, audited=audited, findings=done.findings
        )
    except (StoreError, ConflictError, ChainBroken) as error:
        done.unrecorded = error.message
    else:
        done.audit, done.unrecorded = record.act, record.why
    return done


def _kit_key(context: Context) -> SigningKey | None:
    """The admin key, when the identity that was given is a recovery kit."""
    if context.identity_file is None:
        return None
    kit = recovery.load_identity_file(context.identity_file, context.passphrase).kit
    return None if kit is None else SigningKey.from_hex(kit.admin_seed)


def _sign_damage(store: Store, anchors: Anchors, signer: SigningKey | None, damaged: dict[PackId, str | None], done: _Verified) -> None:
    """Sign what was found, so that the next backup sends it again. That this failed hides nothing of what was found."""
    if signer is None:
        return
    try:
        act = record_damage(store, anchors, signer, damaged)
    except (StoreError, ConflictError, ChainBroken) as error:
        done.findings.append(Finding(FindingKind.NOT_RECORDED, "acts", f"{len(damaged)} damaged packs: {error.message}"))
    else:
        done.act = None if act is None else act.seq


def _sound_snapshots(reader: VaultReader) -> Iterator[Link]:
    """The snapshots, oldest last, as far back as the chain holds; that it breaks was reported by the scrub."""
    try:
        yield from reader.snapshots()
    except ChainBroken:
        return
