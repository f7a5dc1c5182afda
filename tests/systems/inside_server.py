"""What the adapters find on the reference server, and what they say when something on it is wrong: `test_inside.py` runs this there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from mailbackup.model import codec
from mailbackup.model.account import Account, Accounts
from mailbackup.model.finding import Finding, FindingKind
from mailbackup.model.system import Dump, Inventory
from mailbackup.server.found import FoundMail, found_here
from mailbackup.systems.accounts import accounts_of
from mailbackup.systems.ask import Ask
from mailbackup.systems.dovecot import ACCOUNTS
from mailbackup.systems.known import survey, system

KEY = "/etc/dkimkeys/example.test/s2026.private"
CERTIFICATE, TLS_KEY = "/etc/ssl/mx1/fullchain.pem", "/etc/ssl/mx1/mx1.key"


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


def find(name: str, ask: Ask | None = None) -> Inventory:
    [inventory] = survey(ask or Ask(), (name,)).inventories
    return inventory


def examine(name: str) -> list[Finding]:
    known = system(name)
    assert known is not None
    return known.examine(Ask(), find(name))


def accounts() -> dict[str, Account]:
    known = system("dovecot")
    assert known is not None
    data = b"".join(known.dump(Ask(), Dump(ACCOUNTS, "")))
    return {row.name: row for row in codec.decode(data, Accounts, "accounts").accounts}


@contextmanager
def changed(*paths: str) -> Iterator[None]:
    """Put files back as they were, with owner and mode."""
    for path in paths:
        shutil.copy2(path, path + ".kept")
        status = os.stat(path)
        os.chown(path + ".kept", status.st_uid, status.st_gid)
    try:
        yield
    finally:
        for path in paths:
            os.replace(path + ".kept", path)


# -- accounts


def test_what_is_known_of_an_account():
    alice = accounts()["alice@example.test"]
    assert (alice.home, alice.path) == ("/var/vmail/example.test/alice", "/var/vmail/example.test/alice/Maildir")
    assert (alice.uid, alice.gid) == ("5000", "5000")
    assert alice.sieve == "/var/vmail/example.test/alice/sieve/main.sieve"
    assert set(alice.aliases) == {"mailer-daemon", "postmaster", "root", "postmaster@example.test"}
    assert alice.quota.endswith("messages")
    assert " of 1048576 KiB, " in alice.quota
    assert accounts()["carol@example.test"].aliases == ("sales@example.test",)
    assert len(accounts()) == 20


def test_asking_changes_nothing_in_a_home_without_mail():
    with changed("/etc/dovecot/users"):
        with open("/etc/dovecot/users", "a") as file:
            file.write("new@example.test:{PLAIN}x:5000:5000::/var/vmail/example.test/new::\n")
        run("doveadm", "reload")
        assert accounts()["new@example.test"].quota == ""
        assert not os.path.lexists("/var/vmail/example.test/new")
    run("doveadm", "reload")


def test_accounts_that_vanish_while_they_are_asked_for(tmp_path):
    """One name in the middle of a batch that the user database does not know: the others keep their own rows."""
    script = tmp_path / "doveadm"
    script.write_text(
        '#!/bin/sh\n[ "$2" = "*" ] && { /usr/bin/doveadm user "*"; echo lost@example.test; exit 0; }\nexec /usr/bin/doveadm "$@"\n'
    )
    script.chmod(0o755)
    rows = accounts_of(Ask(environment={"PATH": f"{tmp_path}:/usr/bin:/usr/sbin:/bin"})).accounts
    assert len(rows) == 20
    assert all(row.home.endswith(row.name.partition("@")[0]) for row in rows)


def test_what_init_finds():
    found = found_here()
    assert found.mail == (FoundMail("/var/vmail/{domain}/{user}/Maildir", 20, 20),)
    assert found.certain
    assert set(found.programs) == {"dovecot", "postfix", "opendkim"}


def test_parts_of_mailboxes_elsewhere_are_told():
    with changed("/etc/dovecot/mx1.d/10-mail.conf"):
        run(
            "sed",
            "-i",
            "s|^mail_location.*|mail_location = maildir:~/Maildir:CONTROL=/var/control/%u:INDEX=/var/index/%u|",
            "/etc/dovecot/mx1.d/10-mail.conf",
        )
        run("doveadm", "reload")
        found = {(row.kind, row.subject) for row in find("dovecot").findings}
        assert found == {(FindingKind.ACCOUNT_UNCOVERED, "/var/control"), (FindingKind.CONFIG_DOUBT, "/var/index")}
        assert find("dovecot", Ask(("/var/control", "/var/index"))).findings == ()
    run("doveadm", "reload")


def test_files_that_settings_name():
    paths = {row.path for row in find("dovecot").paths}
    assert {"/etc/dovecot", "/var/vmail", "/var/lib/dovecot", "/var/lib/dovecot-shared/shared-mailboxes.db"} <= paths


# -- Postfix


def test_postfix_and_its_doubts():
    main = "/etc/postfix/main.cf"
    with changed(main):
        more = {
            "virtual_mailbox_maps": "hash:/etc/postfix/vmailbox, mysql:/etc/postfix/db.cf, hash:$config_directory/absent",
            "multi_instance_directories": "/etc/postfix-out",
            "smtpd_sasl_type": "cyrus",
            "mydestination": "localhost, /etc/mail-domains",
            "no_such_parameter": "x",
        }
        with open(main, "a") as file:
            file.write("".join(f"{name} = {value}\n" for name, value in more.items()))
        for path, text in (
            ("/etc/postfix/db.cf", "hosts = db1.example.net\npassword = x\n"),
            ("/etc/mail-domains", "a.example\n"),
            ("/etc/sasldb2", "x"),
        ):
            with open(path, "w") as file:
                file.write(text)
        inventory = find("postfix")
        told = {row.subject: row.detail for row in inventory.findings}
        for path in ("/etc/postfix/db.cf", "/etc/mail-domains", "/etc/sasldb2"):
            os.remove(path)
    assert "db1.example.net" in told["/etc/postfix/db.cf"]
    assert "not there" in told["/etc/postfix/absent"]
    assert "instance" in told["/etc/postfix-out"]
    assert "no_such_parameter" in told["postfix"]
    assert {"/etc/mail-domains", "/etc/sasldb2", "/etc/aliases"} <= {row.path for row in inventory.paths}
    assert "/var/lib/postfix/smtp_scache" not in told
    assert all(row.harmless for row in inventory.findings)


def test_a_built_table_without_its_text_is_kept():
    [config] = [row for row in find("postfix").paths if row.path == "/etc/postfix"]
    assert {left.pattern for left in config.left_out} == {"virtual.db", "vmailbox.db"}
    os.rename("/etc/postfix/virtual", "/etc/postfix/away")
    try:
        [config] = [row for row in find("postfix").paths if row.path == "/etc/postfix"]
    finally:
        os.rename("/etc/postfix/away", "/etc/postfix/virtual")
    assert {left.pattern for left in config.left_out} == {"vmailbox.db"}


def test_a_table_that_was_not_built_again():
    assert examine("postfix") == []
    with changed("/etc/postfix/virtual"):
        os.utime("/etc/postfix/virtual")
        [finding] = examine("postfix")
    assert finding.detail.endswith("Run: postmap hash:/etc/postfix/virtual")


def test_tables_of_aliases_are_built_as_such():
    steps = system("postfix").steps(find("postfix"))
    assert [step.argv for step in steps if step.argv and step.argv[-1] == "hash:/etc/aliases"] == [("postalias", "hash:/etc/aliases")]


# -- the secret doctor


@pytest.mark.parametrize(
    ("owner", "mode", "refused"),
    [
        ("opendkim:opendkim", 0o600, None),
        ("opendkim:opendkim", 0o640, None),
        ("root:opendkim", 0o640, None),
        ("root:root", 0o600, "cannot read it"),
        ("opendkim:opendkim", 0o644, "others may read it"),
        ("opendkim:mail", 0o640, "group mail holds mail too"),
    ],
)
def test_dkim_key_modes(owner: str, mode: int, refused: str | None):
    """The same table was seen with the real daemon: it signs with the first three and with none of the others."""
    with changed(KEY):
        run("chown", owner, KEY)
        os.chmod(KEY, mode)
        found = examine("opendkim")
    assert [row.subject for row in found] == ([KEY] if refused else [])
    assert all(refused in row.detail for row in found)


def test_a_dkim_key_with_the_record_of_another():
    with changed(KEY):
        shutil.copyfile("/etc/dkimkeys/example.org/s2026.private", KEY)
        [finding] = examine("opendkim")
    assert "record of another key" in finding.detail


def test_an_ed25519_key_fits_its_record():
    with changed(KEY, KEY.replace(".private", ".txt")):
        run("openssl", "genpkey", "-algorithm", "ed25519", "-out", KEY)
        raw = subprocess.run(["openssl", "pkey", "-in", KEY, "-pubout", "-outform", "DER"], check=True, capture_output=True).stdout[-32:]
        import base64

        with open(KEY.replace(".private", ".txt"), "w") as file:
            file.write(f's2026._domainkey IN TXT ( "v=DKIM1; k=ed25519; " "p={base64.b64encode(raw).decode()}" )\n')
        assert examine("opendkim") == []


def test_a_missing_dkim_key():
    os.rename(KEY, KEY + ".away")
    try:
        [finding] = examine("opendkim")
    finally:
        os.rename(KEY + ".away", KEY)
    assert (finding.kind, finding.subject) == (FindingKind.SECRET_DOUBT, KEY)


def test_opendkim_tables_of_other_forms():
    config = "/etc/opendkim.conf"
    with changed(config, "/etc/opendkim/KeyTable", "/etc/opendkim/SigningTable"):
        run("sed", "-i", "s|^KeyTable.*|Include /etc/opendkim.more|;s|^InternalHosts.*|InternalHosts csl:127.0.0.1,::1|", config)
        with open("/etc/opendkim.more", "w") as file:
            file.write("KeyTable refile:/etc/opendkim/KeyTable  # here\nPeerList dsn:mysql://db/x\n")
        with open("/etc/opendkim/KeyTable", "w") as file:
            file.write("all %:s2026:/etc/dkimkeys/%/s2026.private\ninline example.net:x:MIIBinlinekey\n")
        with open("/etc/opendkim/SigningTable", "w") as file:
            file.write("*@example.test all\n*@example.org all\n* inline\n")
        inventory = find("opendkim")
        os.remove("/etc/opendkim.more")
    assert inventory.facts["keys"] == ("s2026 example.test " + KEY, "s2026 example.org /etc/dkimkeys/example.org/s2026.private")
    assert "/etc/opendkim.more" in {row.path for row in inventory.paths}
    assert ["peerlist" in row.detail for row in inventory.findings] == [True]


def test_certificates():
    assert examine("tls") == []
    with changed(TLS_KEY):
        run("openssl", "genrsa", "-out", TLS_KEY, "2048")
        os.chmod(TLS_KEY, 0o644)
        details = [row.detail for row in examine("tls")]
    assert sum("is not its key" in detail for detail in details) == 2
    assert any("chmod o= " in detail for detail in details)


@pytest.mark.parametrize(("days", "said"), [("5", "ends within 14 days"), ("-1", "has expired")])
def test_a_certificate_that_ends(days: str, said: str):
    name = ("-subj", "/CN=other.example", "-addext", "subjectAltName=DNS:other.example")
    with changed(CERTIFICATE):
        start = ("-days", days) if days != "-1" else ("-not_before", "20200101000000Z", "-not_after", "20200201000000Z")
        if days == "-1":
            run("openssl", "req", "-new", "-key", TLS_KEY, "-subj", "/CN=other.example", "-out", "/tmp/r.csr")
            with open("/tmp/i", "w"), open("/tmp/s", "w") as serial:
                serial.write("01\n")
            with open("/tmp/ca.cnf", "w") as file:
                file.write(
                    "[ca]\ndefault_ca=x\n[x]\ndatabase=/tmp/i\nserial=/tmp/s\nnew_certs_dir=/tmp\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n"
                )
            dates = ("-startdate", "20200101000000Z", "-enddate", "20200201000000Z")
            run(
                "openssl",
                "ca",
                "-batch",
                "-config",
                "/tmp/ca.cnf",
                "-selfsign",
                "-keyfile",
                TLS_KEY,
                "-in",
                "/tmp/r.csr",
                "-out",
                CERTIFICATE,
                *dates,
            )
        else:
            run("openssl", "req", "-x509", "-key", TLS_KEY, "-out", CERTIFICATE, *name, *start)
        details = {row.detail for row in examine("tls")}
    assert said in details
    assert any("does not hold the name mx1.example.test" in detail for detail in details)


def test_chain_files_and_a_certificate_of_one_service():
    with changed("/etc/postfix/main.cf", "/etc/postfix/master.cf"):
        run("postconf", "-X", "smtpd_tls_cert_file", "smtpd_tls_key_file")
        run("postconf", "-e", f"smtpd_tls_chain_files = {TLS_KEY}, {CERTIFICATE}")
        run("postconf", "-P", "submission/inet/smtpd_tls_cert_file=/etc/ssl/mx1/mx1.crt", f"submission/inet/smtpd_tls_key_file={TLS_KEY}")
        inventory, found = find("tls"), examine("tls")
    assert inventory.facts["pairs"] == (
        f"smtp {CERTIFICATE} {TLS_KEY}",
        f"smtp /etc/ssl/mx1/mx1.crt {TLS_KEY}",
        f"imap {CERTIFICATE} {TLS_KEY}",
    )
    assert found == []


# -- the host


def test_what_is_changed_and_what_is_not():
    paths = {row.path for row in find("host").paths}
    assert {"/etc/passwd", "/etc/shadow", "/etc/cron.d/mx1", "/etc/dovecot/users"} <= paths
    assert not {"/etc/bash.bashrc", "/etc/machine-id", "/etc/fstab", "/etc/ld.so.cache"} & paths


def test_a_name_that_is_no_text():
    path = b"/etc/\xffodd"
    with open(path, "wb"):
        pass
    try:
        inventory = find("host")
    finally:
        os.remove(path)
    [finding] = inventory.findings
    assert finding.subject == "/etc/\\xffodd"
    codec.encode(inventory)
