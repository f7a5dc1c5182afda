"""Extended attributes at a restore. POSIX ACLs and file capabilities are such, and each has rules of its own.

A change of owner clears capabilities, and a change of mode writes into the ACL: so attributes come after both. The group bits of a file with an ACL are
the ACL's mask, not the rights of the group: until the ACL is in place, and where the file system takes none, the group gets what its own entry grants.
What a file inherits from the default ACL of the directory that it is restored into is taken from it again.
"""

from __future__ import annotations

import base64
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from mailbackup.errors import WouldOverwrite
from mailbackup.model.ids import show

ACCESS = "system.posix_acl_access"
DEFAULT = "system.posix_acl_default"

Xattrs = dict[str, str] | None
"""Name → base64 of the value, as an entry has them."""

_GROUP_OBJ = 4  # tag of the owning group's entry, linux/posix_acl.h
_HEADER, _ROW = 4, 8  # bytes of an ACL's version, and of (tag, rights, id) in little-endian
_NO_ACL = {errno.ENODATA, errno.EOPNOTSUPP, errno.ENOTSUP}


def set_xattrs(file: int | str, xattrs: Xattrs) -> str:
    """Set all that can be set. Returns the first that could not, and why, or an empty text."""
    failed = ""
    for name, value in (xattrs or {}).items():
        try:
            os.setxattr(file, name, base64.b64decode(value))
        except (OSError, ValueError) as error:
            failed = failed or f"attribute {name}: {_reason(error)}"
    return failed


def drop_acls(file: int | str, *names: str) -> str:
    """Take away the named ACLs, which are not those of the backup. Returns the first that could not be, and why, or an empty text."""
    failed = ""
    for name in names:
        try:
            os.removexattr(file, name)
        except OSError as error:
            if error.errno not in _NO_ACL:
                failed = failed or f"attribute {name}, inherited here: {_reason(error)}"
    return failed


def hands_down(fd: int) -> bool:
    """Whether what is made in this directory inherits an ACL."""
    try:
        os.getxattr(fd, DEFAULT)
    except OSError:
        return False
    return True


def first_mode(mode: int, xattrs: Xattrs) -> int:
    """The mode to set before the attributes: of an entry with an ACL, the group bits are what the ACL grants the owning group itself."""
    if not xattrs or ACCESS not in xattrs:
        return mode
    return mode & ~0o070 | (mode & _group_rights(xattrs[ACCESS]) << 3)


def _group_rights(value: str) -> int:
    """Rights of the owning group in an ACL; none if it is no ACL."""
    try:
        acl = base64.b64decode(value)
    except ValueError:
        return 0
    for start in range(_HEADER, len(acl) - _ROW + 1, _ROW):
        if int.from_bytes(acl[start : start + 2], "little") == _GROUP_OBJ:
            return int.from_bytes(acl[start + 2 : start + 4], "little") & 7
    return 0


@contextmanager
def as_it_stands(home: int, name: bytes, kind: int) -> Iterator[str]:
    """A path to a link, FIFO or device itself, for calls that would follow a link or block: whatever happens to its name meanwhile, the path stays.

    Raises WouldOverwrite when something of another kind (`stat.S_IFMT`) has come under the name.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=home)
    try:
        if stat.S_IFMT(os.fstat(fd).st_mode) != kind:
            raise WouldOverwrite(f"{show(name)} became something else meanwhile")
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
