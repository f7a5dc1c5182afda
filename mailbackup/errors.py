"""Every error of mailbackup on one page.

    MailbackupError              exit  1   MB-X...   unexpected
    ├── StateUnusable                  1   MB-X002   the local state is corrupt (the next run makes a new one)
    ├── UsageError                     2   MB-U...   usage or configuration
    │   ├── ConfigMissing
    │   ├── ConfigInvalid
    │   ├── DrillImpossible
    │   ├── NotFound
    │   └── AlreadyExists
    ├── SourceError                    3   MB-S...   a source could not be read
    ├── DamageError                    4   MB-D...   a check found damage
    │   ├── ObjectDamaged
    │   ├── ObjectMissing
    │   ├── ChainBroken
    │   └── RecordInvalid
    ├── StoreError                     5   MB-O...   store unreachable or refused
    │   ├── StoreUnavailable
    │   ├── StoreRefused
    │   └── KeyExists            (answer of a create-only put; the vault decides what it means)
    ├── ConflictError                  6   MB-C...   another writer, another run
    │   └── Busy
    ├── KeyProblem                     7   MB-K...   key missing, wrong or insufficient
    │   ├── IdentityMissing
    │   ├── WrongIdentity
    │   ├── AnchorMismatch
    │   └── KeyMalformed
    ├── SafetyRefusal                  8   MB-R...   refused for safety
    │   ├── NoSpace
    │   ├── PruneRefused
    │   ├── WouldOverwrite
    │   └── UnsafeName
    └── Interrupted                  130   MB-I...

`code` is stable and listed in docs/reference/errors.md; `hint` is the next step for the person who reads it at 3 a.m.;
`retryable` tells whether trying the same again may help. The text of an error says what and where.
"""

from __future__ import annotations

from typing import ClassVar


class MailbackupError(Exception):
    """Root of the tree: something that nobody expected."""

    code: ClassVar[str] = "MB-X001"
    exit_status: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = "Run again with -v and report the output."

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = self.default_hint if hint is None else hint


class StateUnusable(MailbackupError):
    """The local state is corrupt. It is only a cache: a run that meets this moves it aside and starts with a new one."""

    code = "MB-X002"
    default_hint = "Move the file away: the next backup makes a new one and sends everything once more."


class UsageError(MailbackupError):
    """What was asked for cannot be done as it was asked."""

    code = "MB-U001"
    exit_status = 2
    default_hint = "See 'mailbackup --help'."


class ConfigMissing(UsageError):
    """No configuration file was found."""

    code = "MB-U002"
    default_hint = "Make one with 'mailbackup init', or name it with --config FILE."


class ConfigInvalid(UsageError):
    """The configuration file cannot be read or says something impossible."""

    code = "MB-U003"
    default_hint = "Correct the file, then run 'mailbackup config check'."


class DrillImpossible(UsageError):
    """This host cannot make a scratch machine, or there is nothing to rehearse."""

    code = "MB-U006"
    default_hint = "Run it as root on a host with bubblewrap ('mailbackup doctor' checks)."


class NotFound(UsageError):
    """A snapshot, mailbox, folder or path that was named does not exist."""

    code = "MB-U004"
    default_hint = "List what exists with 'mailbackup snapshots' and 'mailbackup ls'."


class AlreadyExists(UsageError):
    """Something that would be created is there already."""

    code = "MB-U005"
    default_hint = "Choose another place; nothing was changed."


class SourceError(MailbackupError):
    """A source could not be read, so that there is nothing sensible to save."""

    code = "MB-S001"
    exit_status = 3
    default_hint = "Check that the path is mounted and readable for the user who runs the backup."


class DamageError(MailbackupError):
    """A check found damage."""

    code = "MB-D001"
    exit_status = 4
    default_hint = "Run 'mailbackup verify' to see everything that is affected. Do not prune."


class ObjectDamaged(DamageError):
    """The bytes of an object are not those that the ledger or a tree names."""

    code = "MB-D002"


class ObjectMissing(DamageError):
    """An object that should exist does not. Stores raise it for every absent key."""

    code = "MB-D003"


class ChainBroken(DamageError):
    """The ledger has a gap, a wrong hash, a bad signature, a foreign signer, or ends before the pinned entry."""

    code = "MB-D004"
    default_hint = (
        "Someone may have changed or cut the vault. Keep the store as it is, compare with another store or an older copy, and do not prune."
    )


class RecordInvalid(DamageError):
    """A record does not have the form that the format prescribes."""

    code = "MB-D005"


class StoreError(MailbackupError):
    """A store did not do what was asked."""

    code = "MB-O001"
    exit_status = 5
    default_hint = "Check the store's address, credentials and permissions."


class StoreUnavailable(StoreError):
    """The store cannot be reached now."""

    code = "MB-O002"
    retryable = True
    default_hint = "Check that the store is mounted or reachable, then run again; nothing was lost."


class StoreRefused(StoreError):
    """The store answered and refused (permissions, read-only, quota)."""

    code = "MB-O003"


class KeyExists(StoreError):
    """A create-only put met an existing object."""

    code = "MB-O004"


class ConflictError(MailbackupError):
    """Another writer added to this vault, or the ledger has other bytes than ours at the same place."""

    code = "MB-C001"
    exit_status = 6
    default_hint = "Only one host may write a vault. Find the other writer before the next run."


class Busy(ConflictError):
    """Another run of the same host is active."""

    code = "MB-C002"
    retryable = True
    default_hint = "Wait for the other run to end."


class KeyProblem(MailbackupError):
    """A key is missing, wrong or insufficient."""

    code = "MB-K001"
    exit_status = 7
    default_hint = "Use the recovery kit: --identity KIT-FILE."


class IdentityMissing(KeyProblem):
    """Reading needs an identity and none was given."""

    code = "MB-K002"
    default_hint = "The host cannot read its own backups. Give the recovery kit with --identity KIT-FILE."


class WrongIdentity(KeyProblem):
    """The identity does not open this vault."""

    code = "MB-K003"
    default_hint = "Use the recovery kit that was made for this vault ('mailbackup config show' prints the recipients)."


class AnchorMismatch(KeyProblem):
    """The store holds another vault, or other keys, than the trust anchors say."""

    code = "MB-K004"
    default_hint = "The store holds another vault than the configuration or the kit names. Nothing was written."


class KeyMalformed(KeyProblem):
    """A key, kit or recipient cannot be parsed, or its passphrase is wrong."""

    code = "MB-K005"
    default_hint = "Check the file and the passphrase."


class SafetyRefusal(MailbackupError):
    """Refused because it could destroy something."""

    code = "MB-R001"
    exit_status = 8
    default_hint = "Nothing was changed."


class PruneRefused(SafetyRefusal):
    """A guard rail holds: a human has to look before anything goes."""

    code = "MB-R005"
    default_hint = "'mailbackup prune --dry-run' shows what would go and why it may not."


class NoSpace(SafetyRefusal):
    """The file system is full, or would fall below its reserve."""

    code = "MB-R002"
    default_hint = "Free space on this file system, then run again; what was stored stays valid."


class WouldOverwrite(SafetyRefusal):
    """A restore would replace something that exists."""

    code = "MB-R003"
    default_hint = "Restore into an empty folder, or say --overwrite."


class UnsafeName(SafetyRefusal):
    """A name that would lead out of the target folder."""

    code = "MB-R004"
    default_hint = "The entry was not restored. Run 'mailbackup verify --decrypt'."


class Interrupted(MailbackupError):
    """Stopped by a signal."""

    code = "MB-I001"
    exit_status = 130
    default_hint = "Run again; it continues where it can."


def tree(root: type[MailbackupError] = MailbackupError) -> list[type[MailbackupError]]:
    """All error classes below and including `root`, parents first."""
    return [root, *(found for child in root.__subclasses__() for found in tree(child))]
