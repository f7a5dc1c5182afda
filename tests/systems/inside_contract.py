"""The contract of the adapters, for a host where all of them are: `test_inside.py` runs this on the reference server."""

from __future__ import annotations

from mailbackup.systems.ask import Ask
from mailbackup.systems.known import system
from mailbackup.testing.system_contract import SystemContract

_POSTFIX, _DOVECOT = ("postconf", "postqueue", "postfix"), ("doveconf", "dovecot", "doveadm")


class _Of(SystemContract):
    pass


def _adapter(name: str):
    found = system(name)
    assert found is not None
    return found


class TestPostfix(_Of):
    system = _adapter("postfix")
    programs = _POSTFIX


class TestDovecot(_Of):
    system = _adapter("dovecot")
    programs = _DOVECOT


class TestTls(_Of):
    system = _adapter("tls")
    programs = (*_POSTFIX, *_DOVECOT, "openssl")

    def test_without_its_program_there_is_none(self, tmp_path) -> None:
        """Certificates of /etc/letsencrypt would be saved without any of them; this host has none."""
        super().test_without_its_program_there_is_none(tmp_path)


class TestHost(_Of):
    system = _adapter("host")


class TestDirectories(_Of):
    system = _adapter("directories")

    def ask(self) -> Ask:
        return Ask(("/home", "/srv"))


class TestOpendkim(_Of):
    """Its configuration is a file: a program that fails costs the version alone."""

    system = _adapter("opendkim")

    def test_without_its_program_there_is_none(self, tmp_path) -> None:
        assert self.system.find(Ask(environment={"PATH": str(tmp_path)})) is None
