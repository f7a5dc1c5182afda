"""What a drill adds to the restored configuration, in the scratch machine only: a master user who may open every mailbox, and more fences around mail.

The restored files stay as they are: Dovecot is started with a file that includes the restored one; Postfix gets lines appended after its settings were
compared with those captured.
"""

from __future__ import annotations

import hashlib
import os

from mailbackup.drill.probes.bench import MASTER

DOVECOT = "/etc/dovecot/mailbackup-drill.conf"
_MASTERS = "/etc/dovecot/mailbackup-drill.masters"

_POSTFIX = """
# added by the drill
defer_transports = smtp, relay
maillog_file = /var/log/mail.log
inet_interfaces = all
"""

_DOVECOT_23 = """
passdb {{
  driver = passwd-file
  args = username_format=%u {masters}
  master = yes
  result_success = continue
}}
plugin {{
  acl_user = %u
}}
"""
_DOVECOT_24 = """
passdb passwd-file {{
  name = mailbackup-drill
  passwd_file_path = {masters}
  auth_username_format = %{{user}}
  master = yes
  result_success = continue
}}
acl_user = %{{user}}
"""
"""With ACLs, a master user has the rights of whom it stands in for only when told so."""


def dovecot(root: str, config: str, version: str, password: str) -> None:
    """A configuration beside the restored one, with a master user."""
    words = _DOVECOT_24 if tuple(map(int, version.split(".")[:2])) >= (2, 4) else _DOVECOT_23
    text = f"!include {config}\nauth_master_user_separator = *\nauth_failure_delay = 0\n{words.format(masters=_MASTERS)}"
    _write(root + DOVECOT, text, 0o644)
    salt = os.urandom(8)
    _write(root + _MASTERS, f"{MASTER}:{{SSHA256.HEX}}{hashlib.sha256(password.encode() + salt).hexdigest()}{salt.hex()}::::::\n", 0o644)


def postfix(root: str, config: str) -> None:
    """Fences: mail that is not for here waits, whatever happens; a log to look into."""
    with open(f"{root}{config}/main.cf", "a", encoding="utf-8") as file:
        file.write(_POSTFIX)


def _write(path: str, text: str, mode: int) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)
