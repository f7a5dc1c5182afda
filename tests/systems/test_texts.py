"""What the adapters read out of texts: settings, tables, accounts, chain files, patterns. No mail program is needed here."""

from __future__ import annotations

from pathlib import Path

import pytest

from mailbackup.model.account import Account
from mailbackup.server.found import fits, patterns_of
from mailbackup.systems.accounts import accounts_of
from mailbackup.systems.ask import Ask, CannotAsk
from mailbackup.systems.databases import hosts_in
from mailbackup.systems.doveconf import settings_of, values
from mailbackup.systems.dovecot import common_homes
from mailbackup.systems.maps import leading_to, rows, tables_in
from mailbackup.systems.opendkim import record_key
from mailbackup.systems.tls import chained

V23 = """# 2.3.19.1 (9b53102964): /etc/dovecot/dovecot.conf
ssl_cert = </etc/ssl/a.pem
namespace inbox {
  location =
  mailbox Sent {
    auto = subscribe
  }
}
local_name b.example {
  ssl_cert = </etc/ssl/b.pem
}
"""
V24 = """# 2.4.1-4 (7d8c0e5759): /etc/dovecot/dovecot.conf
mail_path = %{home}/Maildir
ssl_server {
  cert_file = /etc/ssl/a.pem
}
"""


def test_settings_of_both_versions():
    assert [row for row in settings_of(V23) if row.name == "auto"] == [(("namespace inbox", "mailbox Sent"), "auto", "subscribe")]
    assert list(values(settings_of(V23), "ssl_cert")) == ["</etc/ssl/a.pem", "</etc/ssl/b.pem"]
    assert list(values(settings_of(V24), "ssl_server_cert_file", "mail_path")) == ["%{home}/Maildir", "/etc/ssl/a.pem"]


@pytest.mark.parametrize("text", ["", "}", "} }\n{\n{\n", "= x", "a", "a = b {\n", "\0\n"])
def test_settings_that_are_none(text: str):
    assert isinstance(settings_of(text), list)


def test_tables():
    assert tables_in("unionmap:{hash:/etc/a, proxy:mysql:/etc/b.cf}, static:x, hash:rel") == [("hash", "/etc/a"), ("mysql", "/etc/b.cf")]
    text = '# no\nroot: alice@x,\n  bob@x\n"odd name": carol\nsales@x   dave@x  \n\n:\nlonely\n'
    assert list(rows(text)) == [("root", "alice@x, bob@x"), ("odd name", "carol"), ("sales@x", "dave@x"), ("lonely", "")]


def test_aliases_lead_through_each_other_and_may_go_in_circles():
    found = leading_to([("postmaster", "root"), ("root", "Alice@x, loop"), ("loop", "root"), ("alice@x", "alice@x, copy@y")])
    assert found["alice@x"] == {"root", "postmaster", "loop"}
    assert found["copy@y"] == {"alice@x", "root", "postmaster", "loop"}


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("hosts = db1 db2:3306\nuser = x\n", ("db1", "db2:3306")),
        ("connect = host=db1.example dbname=mail user=x password=host\n", ("db1.example",)),
        ("connect = x\nhost=db1.example dbname=mail\n", ("db1.example",)),
        ("hosts = unix:/run/mysqld.sock localhost 127.0.0.1:3306\n", ("localhost",)),
        ("server_host = ldap://ldap.example.net/\n", ("ldap://ldap.example.net/",)),
        ("uris = ldapi:///\n", ("localhost",)),
        ("mysql db1 {\n}\n", ("db1",)),
        ("# hosts = db1\nnohosts = x\n", ()),
    ],
)
def test_databases(text: str, hosts: tuple[str, ...]):
    assert hosts_in(text) == hosts


def test_chain_files(tmp_path: Path):
    def file(name: str, *kinds: str) -> str:
        (tmp_path / name).write_text("".join(f"-----BEGIN {kind}-----\nx\n-----END {kind}-----\n" for kind in kinds))
        return str(tmp_path / name)

    key, first, second = file("key", "PRIVATE KEY"), file("first", "CERTIFICATE"), file("second", "CERTIFICATE")
    both = file("both", "EC PRIVATE KEY", "CERTIFICATE", "CERTIFICATE")
    assert list(chained(Ask(), [key, first, second, both])) == [(first, key), (both, both)]
    assert list(chained(Ask(), [str(tmp_path / "absent")])) == [(str(tmp_path / "absent"), str(tmp_path / "absent"))]


def test_places_of_an_account():
    account = Account(name="a", home="/h/a/", mail="maildir:~/Maildir:CONTROL=/c/a:INDEX=MEMORY:INBOX=~/in")
    assert account.path == "/h/a/Maildir"
    assert account.parts == {"CONTROL": "/c/a", "INBOX": "/h/a/in"}
    assert Account(name="a", mail="/m/a").path == "/m/a"
    assert Account(name="a", mail="imapc:").path == ""
    assert Account(name="a", home="/h", mail="mbox:~other/mail").path == ""


def test_homes_in_common():
    assert common_homes(["/var/vmail/a/b", "/var/vmail/c/d", "/home/x", "relative", "", "/srv/mail/z"]) == ["/srv/mail/z", "/var/vmail"]


def test_a_record_in_pieces():
    assert record_key('s._domainkey IN TXT ( "v=DKIM1; k=rsa; "\n "p=MIG" "fMA0" )') == "MIGfMA0"
    assert record_key("v=DKIM1; p=") == ""
    assert record_key("v=DKIM1; sp=x; p=abc") == "abc"


@pytest.mark.parametrize(
    ("name", "path", "pattern"),
    [
        ("alice", "/home/alice/Maildir", "/home/{user}/Maildir"),
        ("alice@a.b", "/srv/mail/a.b/a/alice/Maildir", "/srv/mail/{domain}/{user:1}/{user}/Maildir"),
        ("alice@a.b", "/srv/mail/alice@a.b", "/srv/mail/{address}"),
        ("Alice@A.b", "/srv/mail/a.b/alice", "/srv/mail/{domain}/{user}"),
    ],
)
def test_patterns_of_accounts(name: str, path: str, pattern: str):
    assert patterns_of(Account(name=name, mail=f"maildir:{path}")) == [pattern]
    assert fits(pattern, path)


def test_no_pattern_for_what_tells_nothing():
    assert patterns_of(Account(name="u1001", mail="maildir:/srv/mail/alice")) == []
    assert not fits("/srv/{user}/x", "/other/alice/x")
    assert not fits("no pattern", "/x")


def fake(folder: Path, name: str, script: str) -> Ask:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return Ask(environment={"PATH": f"{folder}:/usr/bin:/bin"})


def test_accounts_of_the_new_version(tmp_path: Path):
    fake(tmp_path, "doveconf", 'echo "mail_driver = maildir"')
    rows_of_two = (
        "field\\tvalue\\nuid\\t1\\nhome\\t/h/a\\nmail_path\\t/h/a/M\\n\\nuid\\t2\\nhome\\t/h/b\\nmail_path\\t/h/b/M\\nquota_rule\\tx\\n"
    )
    ask = fake(tmp_path, "doveadm", f"if [ \"$2\" = '*' ]; then echo b; echo a; else printf '{rows_of_two}'; fi")
    found = accounts_of(ask).accounts
    assert [(row.name, row.uid, row.path) for row in found] == [("a", "1", "/h/a/M"), ("b", "2", "/h/b/M")]
    assert found[1].fields == {"quota_rule": "x"}


def test_accounts_when_the_database_is_away(tmp_path: Path):
    fake(tmp_path, "doveconf", "true")
    ask = fake(tmp_path, "doveadm", "if [ \"$2\" = '*' ]; then echo b; echo a; else echo 'Fatal: no database' >&2; exit 75; fi")
    with pytest.raises(CannotAsk, match="no database"):
        accounts_of(ask)


def test_accounts_when_the_database_is_away_for_a_moment(tmp_path: Path):
    fake(tmp_path, "doveconf", "true")
    once = f"[ -e {tmp_path}/asked ] || {{ touch {tmp_path}/asked; echo 'Error: Disconnected unexpectedly' >&2; exit 75; }}"
    ask = fake(tmp_path, "doveadm", f"{once}\n[ \"$2\" = '*' ] || printf 'field\\tvalue\\nuid\\t1\\n'; [ \"$2\" = a ] || echo a")
    assert [(row.name, row.uid) for row in accounts_of(ask).accounts] == [("a", "1")]
