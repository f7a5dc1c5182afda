"""What borg says when it fails, and which of our errors that is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mailbackup.errors import MailbackupError, NoSpace, ObjectDamaged, RecordInvalid, StoreRefused, StoreUnavailable
from mailbackup.model.codec import Record, decode

ARCHIVE_EXISTS = "Archive.AlreadyExists"
ARCHIVE_MISSING = "Archive.DoesNotExist"
REPOSITORY_EXISTS = "Repository.AlreadyExists"
REPOSITORY_MISSING = "Repository.DoesNotExist"
NOT_A_REPOSITORY = "Repository.InvalidRepository"
NO_REPOSITORY = (REPOSITORY_MISSING, NOT_A_REPOSITORY)

_LOCKED = (
    "Another borg uses the repository; raise `patience` if its uploads take long. Only when surely none runs any more, on no machine: "
    "'borg break-lock REPOSITORY'."
)
_LOCKED_UP = "Set passphrase_command in this [[store]] to a command that prints the passphrase of the repository."
_CHECK = "Look at the machine of the repository, then run 'borg check REPOSITORY' there. Do not prune or compact before."
_NOT_BORG = "Check the address, and that borg 1.2 or newer is installed there (remote_path names its program)."
_SSH = "Try the command of `rsh` by hand: it must connect without asking anything."

_Refusal = tuple[type[MailbackupError], str | None]

_TRANSIENT: dict[str, str] = {
    "LockTimeout": _LOCKED,
    "ConnectionClosed": _SSH,
    "ConnectionClosedWithHint": _SSH,
    "ConnectionBrokenWithHint": _SSH,
}
"""msgid → hint, of what may pass by itself. All are StoreUnavailable."""

_FINAL: dict[str, _Refusal] = {
    REPOSITORY_MISSING: (StoreUnavailable, "Check the address, and that its disk is mounted. 'mailbackup init' makes a repository."),
    REPOSITORY_EXISTS: (StoreRefused, None),
    ARCHIVE_EXISTS: (StoreRefused, "An archive of this name is in the repository. Look at it with 'borg list REPOSITORY'."),
    ARCHIVE_MISSING: (StoreRefused, "Somebody removed an archive meanwhile. Run again; if it stays, run 'mailbackup verify'."),
    "Repository.AtticRepository": (StoreRefused, _NOT_BORG),
    NOT_A_REPOSITORY: (StoreRefused, _NOT_BORG),
    "Repository.InvalidRepositoryConfig": (StoreRefused, _CHECK),
    "Repository.CheckNeeded": (StoreRefused, _CHECK),
    "Repository.ParentPathDoesNotExist": (StoreRefused, "Make the folder above the repository."),
    "Repository.PathAlreadyExists": (StoreRefused, "There is something else at this path."),
    "Repository.PathPermissionDenied": (StoreRefused, None),
    "Repository.InsufficientFreeSpaceError": (
        NoSpace,
        "Free space where the repository lies, then run again; what was stored stays valid.",
    ),
    "Repository.StorageQuotaExceeded": (StoreRefused, "The quota of the repository is used up: raise it, or prune and compact."),
    "PathNotAllowed": (StoreRefused, "The forced command on the other side (borg serve --restrict-to-path) allows another path."),
    "LockFailed": (StoreRefused, "The user there must be able to write to the repository."),
    "PassphraseWrong": (StoreRefused, _LOCKED_UP),
    "NoPassphraseFailure": (StoreRefused, _LOCKED_UP),
    "PasswordRetriesExceeded": (StoreRefused, _LOCKED_UP),
    "PasscommandFailure": (StoreRefused, _LOCKED_UP),
    "RepoKeyNotFoundError": (StoreRefused, _CHECK),
    "KeyfileNotFoundError": (StoreRefused, "The repository was made with a key file: it belongs in ~/.config/borg/keys of this user."),
    "UnsupportedManifestError": (StoreRefused, _NOT_BORG),
    "UnsupportedPayloadError": (StoreRefused, _NOT_BORG),
    "RemoteRepository.RPCServerOutdated": (StoreRefused, _NOT_BORG),
    "UnexpectedRPCDataFormatFromServer": (StoreRefused, _NOT_BORG),
    "UnexpectedRPCDataFormatFromClient": (StoreRefused, _NOT_BORG),
    "Cache.RepositoryReplay": (
        StoreRefused,
        "The repository is older than it was before: somebody put back a copy. Compare it with another store.",
    ),
    "Cache.EncryptionMethodMismatch": (StoreRefused, "Another repository lies at this address than before."),
    "Repository.ObjectNotFound": (ObjectDamaged, _CHECK),
    "IntegrityError": (ObjectDamaged, _CHECK),
    "FileIntegrityError": (StoreRefused, _CHECK),
    "DecompressionError": (ObjectDamaged, _CHECK),
    "TAMRequiredError": (StoreRefused, _CHECK),
    "NoManifestError": (StoreRefused, _CHECK),
}
"""msgid → error and its hint (None = the usual one), of what trying again does not change."""

_PHRASES: tuple[tuple[str, _Refusal], ...] = (
    ("Permission denied (", (StoreRefused, "The other side does not accept the ssh key. " + _SSH)),
    ("Host key verification failed", (StoreRefused, "Compare the other side's host key, then connect once by hand.")),
    ("No space left on device", (NoSpace, "Free space where the repository lies, then run again; what was stored stays valid.")),
    ("Disk quota exceeded", (NoSpace, "The disk quota where the repository lies is used up.")),
    ("unrecognized arguments", (StoreRefused, "borg 1.4 is needed; borg_path names it. Borg 2 has other commands and other repositories.")),
    ("Permission denied", (StoreRefused, None)),
    ("Read-only file system", (StoreRefused, None)),
)
"""What only the text tells: ssh and the system have no ids. Where borg ended before it had read what ssh says, the next try may tell."""

_SECRET = {"PasscommandFailure"}  # its text shows the command, which may hold more than it should
_LONGEST = 600  # characters of borg's own words that are shown


class Answered(Exception):
    """borg said what the caller was prepared for."""

    def __init__(self, msgid: str) -> None:
        super().__init__(msgid)
        self.msgid = msgid


class Message(Record, frozen=True):
    """A line of borg's `--log-json`."""

    message: str = ""
    levelname: str = ""
    msgid: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A borg that did not end well: its exit code, and the messages above the level of information."""

    code: int
    messages: tuple[Message, ...]

    @property
    def msgid(self) -> str:
        """The id of the last message that has one."""
        return next((message.msgid for message in reversed(self.messages) if message.msgid), "")

    @property
    def transient(self) -> bool:
        """Whether trying the same again may help."""
        return not self._phrase() and (self.msgid in _TRANSIENT or self.code < 0)

    def error(self, doing: str) -> MailbackupError:
        """Our error; `doing` says what borg should have done."""
        kind, hint = self._kind()
        return kind(f"{doing}: {self._words()}", hint=hint)

    def _kind(self) -> tuple[Callable[..., MailbackupError], str | None]:
        phrase = self._phrase()
        if phrase:
            return phrase
        if self.transient:
            return StoreUnavailable, _TRANSIENT.get(self.msgid)
        return _FINAL.get(self.msgid, (StoreRefused, None))

    def _phrase(self) -> _Refusal | None:
        if self.msgid in _FINAL:
            return None
        text = "\n".join(message.message for message in self.messages)
        return next((refusal for phrase, refusal in _PHRASES if phrase in text), None)

    def _words(self) -> str:
        if self.code < 0:
            return f"borg was ended by signal {-self.code}"
        if self.msgid in _SECRET:
            return "passphrase_command failed"
        told = [message for message in self.messages if message.msgid or not message.message.startswith("Traceback")]
        said = [first for message in told or self.messages if (first := _first_line(message.message))]
        return "; ".join(dict.fromkeys(said))[-_LONGEST:] or f"borg ended with status {self.code}"


def failure_of(code: int, stderr: bytes) -> Failure:
    """Reads what borg wrote to standard error; lines that are not JSON (of ssh, or of a Python that died) are taken as they are."""
    found = [_message(line) for line in stderr.decode(errors="backslashreplace").splitlines() if line.strip()]
    return Failure(code, tuple(message for message in found if message.levelname not in ("DEBUG", "INFO")))


def _message(line: str) -> Message:
    try:
        return decode(line[max(line.find('{"type'), 0) :], Message, "message of borg")  # a prompt has no end of line
    except RecordInvalid:
        return Message(message=line)


def _first_line(text: str) -> str:
    """Enough of a message: what follows are hints of borg's own and facts about its machine. Of a traceback, its end."""
    lines = text.strip().partition("\n\n")[0].splitlines()
    if not lines:
        return ""
    return lines[-1 if lines[0].startswith("Traceback") else 0].strip().removeprefix("Remote: ")
