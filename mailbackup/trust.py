"""What the admin key decides: who may sign, which host writes the vault, and who else can open what was sealed."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TypeVar

from mailbackup import config as configuration
from mailbackup.access import Admin, Context, admin_of, use_replicas, use_store, use_vault, writer_key_path
from mailbackup.crypto.age import AgeKeyMaker, AgeOpener, open_epoch
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import (
    AlreadyExists,
    ConfigInvalid,
    DamageError,
    NotFound,
    ObjectDamaged,
    ObjectMissing,
    SafetyRefusal,
    UsageError,
    WrongIdentity,
)
from mailbackup.host import atomic_write, run_lock
from mailbackup.kit import load_signing_key
from mailbackup.model.codec import Record
from mailbackup.model.ids import Digest, ObjectKey, PublicKey, digest, epoch_key, is_object_key
from mailbackup.model.ledger import EpochRow, Grant, RewrapRow, Role
from mailbackup.model.results import AdoptResult, RewrapResult, SignerRow, TrustResult
from mailbackup.upkeep.trust import Added, Draft, Standing, acts_seen, add_entry, standing
from mailbackup.vault.epochs import KEY_LIMIT
from mailbackup.vault.replay import STATE_IS_NEW
from mailbackup.vault.replicas import OWN_FAULT, Replicas
from mailbackup.vault.state import State

_PUBLIC = re.compile(r"[0-9a-f]{64}")
_SEALED_TO = "# sealed to: "

_MakeDraft = Callable[[Replicas, Standing], Draft | None]


@contextlib.contextmanager
def _no_run(context: Context) -> Iterator[None]:
    """While no run of this host writes. Raises Busy. On a machine that has no state there is none."""
    if not os.path.isdir(context.state_dir):
        yield
        return
    with run_lock(os.path.join(context.state_dir, "lock")):
        yield


# ---------------------------------------------------------------- who may sign


def signers(context: Context) -> list[SignerRow]:
    """Everybody whom the admin ever named, in order. Needs no key."""
    with use_store(context) as store:
        rows = standing(store, context.anchors_of(store.name)).signers()
    return [SignerRow(role=row.role, key=row.key, since=row.since, time=row.time, until=row.until) for row in rows]


def add_signer(context: Context, role: Role, key: str, *, sure: bool = False) -> TrustResult:
    """Let a key sign. A new writer takes the place of the one there is, which needs `sure`; else SafetyRefusal. Needs the kit."""
    admin, public = admin_of(context), _public(key)

    def draft(replicas: Replicas, now: Standing) -> Draft | None:
        if role in now.roles(public):
            return None
        _check_apart(now, admin, role, public)
        others = now.keys("writer") if role == "writer" else []
        if others and not sure:
            raise SafetyRefusal(
                f"a vault has one writer, and that is {others[0][:16]}… now: it would be dismissed, and the backups of its host refused",
                hint="Say --yes if that is meant. On a rebuilt server, 'mailbackup vault adopt' does it all.",
            )
        return _handed(replicas, admin, Grant(role, public), others)

    return _told(role, public, _add(context, admin, draft))


def revoke_signer(context: Context, role: Role, key: str, *, sure: bool = False) -> TrustResult:
    """Let a key sign no more; what it signed stays valid. Dismissing the only writer needs `sure`; else SafetyRefusal. Needs the kit."""
    admin, public = admin_of(context), _public(key)

    def draft(replicas: Replicas, now: Standing) -> Draft | None:
        if role not in now.roles(public):
            if now.was(public):
                return None
            raise NotFound(f"nobody ever named the key {public[:16]}…", hint="'mailbackup vault trust list' shows all keys.")
        if role == "writer" and now.keys("writer") == [public] and not sure:
            raise SafetyRefusal(
                f"{public[:16]}… is the only writer: without one no host can add a backup",
                hint="Say --yes if that is meant. 'mailbackup vault adopt' then makes a host the writer again.",
            )
        seen = acts_seen(replicas, admin.anchors, all_of_them=role != "writer")
        return Draft({"revoke": (Grant(role, public),), "acts": seen})

    return _told(role, public, _add(context, admin, draft))


def _handed(replicas: Replicas, admin: Admin, grant: Grant, dismissed: list[PublicKey]) -> Draft:
    members = {"grant": (grant,), "revoke": tuple(Grant("writer", key) for key in dismissed)}
    return Draft(members | ({"acts": acts_seen(replicas, admin.anchors, all_of_them=False)} if dismissed else {}))


def _add(context: Context, admin: Admin, draft: _MakeDraft) -> Added:
    with _no_run(context), use_replicas(context) as (replicas, _):
        return add_entry(replicas, admin.anchors, context.anchors_of, admin.key, lambda now: draft(replicas, now))


def _told(role: Role, public: PublicKey, added: Added) -> TrustResult:
    return TrustResult(role=role, key=public, seq=added.seq, stores=added.stores, without=added.without)


def _public(key: str) -> PublicKey:
    if not _PUBLIC.fullmatch(key):
        raise UsageError(f"not a public signing key: {key[:80]}", hint="'mailbackup key new' prints one: 64 hexadecimal digits.")
    return PublicKey(key)


def _check_apart(now: Standing, admin: Admin, role: Role, public: PublicKey) -> None:
    """The host that writes must not be able to let anything go: it is the one that may be taken over."""
    if public == admin.key.public:
        raise UsageError("that is the admin key, which may sign everything anyway")
    if (role == "writer") != ("writer" in now.roles(public)) and now.roles(public):
        raise UsageError(
            f"{public[:16]}… is named as {' and '.join(sorted(now.roles(public)))}, and a writer must not be anything else",
            hint="Make a key for each machine: 'mailbackup key new'.",
        )


def new_signing_key(path: str) -> PublicKey:
    """A signing key for a machine that prunes or drills, in a new private file. Raises AlreadyExists and what writing raises."""
    key = SigningKey.generate()
    os.makedirs(os.path.dirname(os.path.abspath(path)), mode=0o700, exist_ok=True)
    atomic_write(path, f"{key.seed_hex}\n".encode(), mode=0o600, replace=False)
    return key.public


# ---------------------------------------------------------------- a rebuilt host


def adopt(context: Context, *, new_key: bool = False) -> AdoptResult:
    """Make this host the writer of the vault: a key of its own, the entry that names it and dismisses the others, the configuration. Needs the kit.

    Each of the three steps is done only if it is not done yet, so that it can be repeated after a kill at any moment. With `new_key`, a key that is here is
    put aside. Raises AlreadyExists when the key here cannot be used.
    """
    admin = admin_of(context)
    os.makedirs(context.state_dir, mode=0o700, exist_ok=True)
    with run_lock(os.path.join(context.state_dir, "lock")), use_replicas(context) as (replicas, _):
        path = writer_key_path(context.config_path)
        if new_key and os.path.lexists(path):
            os.rename(path, f"{path}.old-{int(time.time())}")
        dismissed: list[PublicKey] = []

        def draft(now: Standing) -> Draft | None:
            public = _own_key(path, now)
            dismissed[:] = [key for key in now.keys("writer") if key != public]
            if "writer" in now.roles(public) and not dismissed:
                return None
            return _handed(replicas, admin, Grant("writer", public), dismissed)

        added = add_entry(replicas, admin.anchors, context.anchors_of, admin.key, draft)
        public = load_signing_key(path).public
        set_writer(context.config_path, public)
        with closing(State(context.state_path, admin.anchors.vault)) as state:
            fresh = state.head is None or bool(state.get(STATE_IS_NEW))
    return AdoptResult(
        writer=public, dismissed=tuple(dismissed), seq=added.seq, stores=added.stores, without=added.without, state=fresh
    )  # fmt: skip


def _own_key(path: str, now: Standing) -> PublicKey:
    """The key of this host: the one that is here if nobody named it yet (an `adopt` was interrupted) or it is the writer's, else a new one."""
    if not os.path.lexists(path):
        return new_signing_key(path)
    public = load_signing_key(path).public
    if now.was(public) and now.roles(public) != {"writer"}:
        what = f"that of a {' and '.join(sorted(now.roles(public)))} machine" if now.roles(public) else "one that was dismissed"
        raise AlreadyExists(f"the signing key {path} is {what}", hint="Say --new-key: it is put aside then, and a new one is made.")
    return public


def take_configuration(context: Context, path: str) -> str:
    """Write the configuration that the newest snapshot was made with to `path`, for the host that goes on; its absolute path. Needs an identity.

    A store has the address that it has in the configuration at hand, since it may be elsewhere now. A file that is there already is taken as it is if it is
    of this vault (an `adopt` was interrupted); else AlreadyExists. Raises NotFound when there is no snapshot.
    """
    path = os.path.abspath(path)
    if os.path.lexists(path):
        if configuration.load(path)[0].trust.vault != context.config.trust.vault:
            raise AlreadyExists(f"{path} exists, and is of another vault")
        return path
    with use_vault(context) as (reader, _):
        text = reader.snapshot(reader.find("latest")).facts.get("config")
    if text is None:
        raise NotFound("the newest snapshot does not hold a configuration", hint="Write one with your sources, and adopt with that.")
    old = configuration.parse(text, "the configuration in the snapshot")
    urls = {store.name: store.url for store in context.config.stores}
    stores = tuple(_with(store, url=urls.get(store.name, store.url)) for store in old.stores)
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    atomic_write(path, configuration.render(_with(old, stores=stores)).encode(), mode=0o600, replace=False)
    return path


_R = TypeVar("_R", bound=Record)


def _with(record: _R, **changes: object) -> _R:
    return type(record)(**{field: getattr(record, field) for field in record.__struct_fields__} | changes)


def set_writer(path: str, public: PublicKey) -> None:
    """Name the writer in the configuration file, and leave every other byte of it as it is. Raises ConfigInvalid when that is not possible."""
    real = os.path.realpath(path)
    with open(real, encoding="utf-8", newline="") as file:
        text = file.read()
    old = configuration.parse(text, path).trust.writer
    if old == public:
        return
    found = re.search(r"(?ms)^[ \t]*\[[ \t]*trust[ \t]*\].*?^[ \t]*writer[ \t]*=[ \t]*[\"']([0-9a-f]{64})[\"']", text)
    changed = "" if found is None else text[: found.start(1)] + public + text[found.end(1) :]
    if found is None or found[1] != old or configuration.parse(changed, path).trust.writer != public:
        raise ConfigInvalid(
            f"{path}: trust.writer could not be set", hint=f'This host is the writer now. Set by hand, in [trust]: writer = "{public}"'
        )
    status = os.stat(real)
    atomic_write(real, changed.encode("utf-8"), mode=status.st_mode & 0o7777)
    with contextlib.suppress(PermissionError):
        os.chown(real, status.st_uid, status.st_gid)


# ---------------------------------------------------------------- further recipients


def rewrap(context: Context) -> RewrapResult:
    """Seal the identities of all epochs also to today's recipients, so that each of these opens also what is older than it. Needs the kit.

    That takes nothing from former recipients: what they can open, they can open.
    """
    admin = admin_of(context)
    result: dict[str, list[int]] = {"rewrapped": [], "already": [], "unopened": []}

    def draft(replicas: Replicas, now: Standing) -> Draft | None:
        for numbers in result.values():
            numbers.clear()
        return _Rewrap(context, admin, replicas, now).draft(result)

    added = _add(context, admin, draft)
    return RewrapResult(
        seq=added.seq, stores=added.stores, without=added.without, **{name: tuple(numbers) for name, numbers in result.items()}
    )


class _Rewrap:
    """The further key objects of one entry."""

    def __init__(self, context: Context, admin: Admin, replicas: Replicas, now: Standing) -> None:
        self._admin = admin
        self._replicas = replicas
        self._now = now
        self._recipients = tuple(sorted(row.key for row in context.config.recipients))
        self._maker = AgeKeyMaker(self._recipients)

    def draft(self, result: dict[str, list[int]]) -> Draft | None:
        rows, objects = [], []
        for epoch, row in sorted(self._now.epochs.items()):
            try:
                sealed = self._sealed_anew(row)
            except WrongIdentity:
                result["unopened"].append(epoch)
                continue
            result["already" if sealed is None else "rewrapped"].append(epoch)
            if sealed is not None:
                key = epoch_key(epoch, self._next_number(epoch))
                rows.append(RewrapRow(epoch=epoch, key=key, sha256=digest(sealed)))
                objects.append((key, sealed))
        return Draft({"rewrapped": tuple(rows)}, objects) if rows else None

    def _sealed_anew(self, row: EpochRow) -> bytes | None:
        """The identity of an epoch sealed to today's recipients; None when it is in the vault like that. Raises WrongIdentity and DamageError."""
        named = [(more.key, more.sha256) for more in self._now.rewrapped if more.epoch == row.epoch]
        if any(self._recipients_of(*key) == self._recipients for key in named):
            return None
        secret = self._secret(row, [(row.key, row.sha256), *named])
        lines = [f"# mailbackup vault {self._admin.anchors.vault} epoch {row.epoch}", f"# public key: {row.recipient}"]
        lines += [f"{_SEALED_TO}{recipient}" for recipient in self._recipients]
        return self._maker.seal("".join(f"{line}\n" for line in (*lines, secret)).encode())

    def _secret(self, row: EpochRow, keys: list[tuple[ObjectKey, Digest]]) -> str:
        error: WrongIdentity | DamageError = WrongIdentity(f"the kit does not open epoch {row.epoch}")
        for key, sha256 in keys:
            try:
                return open_epoch(self._read(key, sha256), self._admin.kit.identities)
            except (WrongIdentity, DamageError) as failed:
                error = failed
        raise error

    def _recipients_of(self, key: ObjectKey, sha256: Digest) -> tuple[str, ...]:
        """Whom a further key object is sealed to, as it says inside; nobody, where it cannot be opened."""
        assert self._admin.kit.kit is not None, "the admin has a kit"
        try:
            text = AgeOpener([self._admin.kit.kit.identity]).open(self._read(key, sha256)).decode("utf-8", "replace")
        except (WrongIdentity, DamageError):
            return ()
        return tuple(sorted(line.removeprefix(_SEALED_TO) for line in text.split("\n") if line.startswith(_SEALED_TO)))

    def _read(self, key: ObjectKey, sha256: Digest) -> bytes:
        """A key object from the first store that has it as the ledger names it. Raises DamageError or what the last store raises."""
        error: Exception = ObjectMissing(f"{key} is in no store")
        for store in self._replicas.current:
            try:
                raw = store.get(key, KEY_LIMIT)
            except (*OWN_FAULT, DamageError) as failed:
                error = failed
                continue
            if digest(raw) == sha256:
                return raw
            error = ObjectDamaged(f"{key} in store {store.name} is not the object that the ledger names")
        raise error

    def _next_number(self, epoch: int) -> int:
        """Behind all that are in any store, also those that an interrupted run left."""
        prefix = f"keys/{epoch:010d}-"
        found = [key for store in self._replicas.current for key, _ in store.list(prefix) if is_object_key(key)]
        return max((int(key[len(prefix) :].removesuffix(".age")) for key in found), default=1) + 1
