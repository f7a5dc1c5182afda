"""The configuration: what is accepted, what is refused and with which words, and that what is written reads back."""

from __future__ import annotations

import os
import re
import tomllib

import pytest

from mailbackup import config
from mailbackup.config import BackupConfig, Config, DirectoryConfig, MailConfig, StoreConfig, Trust, compose, load, parse, render
from mailbackup.crypto.age import generate_identity
from mailbackup.errors import ConfigInvalid, ConfigMissing, UsageError
from mailbackup.model.options import STORE_OPTIONS, WORDS

KEY = generate_identity().recipient
TRUST = Trust(vault="1" * 32, admin="2" * 64, writer="3" * 64)
GOOD = f"""
[host]
name = "mx1"
[[recipient]]
role = "recovery"
key = "{KEY}"
[trust]
vault = "{"1" * 32}"
admin = "{"2" * 64}"
writer = "{"3" * 64}"
[[store]]
name = "cellar"
url = "file:///var/backups/mailbackup"
[[mail]]
path = "/var/vmail/{{domain}}/{{user}}/Maildir"
[[directory]]
path = "/etc"
"""


def made(**changes: object) -> Config:
    """A good configuration with other values in some sections."""
    good = parse(GOOD, "x")
    return Config(**{name: getattr(good, name) for name in good.__struct_fields__} | changes)


def test_defaults():
    read = parse(GOOD, "x")
    assert read.mail == (MailConfig(name="vmail", path="/var/vmail/{domain}/{user}/Maildir", format="maildir", domain=None),)
    assert read.directories == (DirectoryConfig(name="/etc", path="/etc", exclude=(), one_file_system=True),)
    assert read.stores == (StoreConfig(name="cellar", url="file:///var/backups/mailbackup", reserve=None),)
    assert read.backup == BackupConfig(level=3, max_shrink=0.5, rescan_days=7, workers="auto")
    assert (read.host.name, read.trust) == ("mx1", TRUST)
    assert [(recipient.role, recipient.key) for recipient in read.recipients] == [("recovery", KEY)]


FULL = made(
    stores=(
        StoreConfig(name="cellar", url="file:///mnt/a%20b", reserve=1 << 40, quota=5),
        StoreConfig(
            name="off-site_2",
            url="s3://bucket/mx1",
            endpoint="https://s3.example.net",
            tags={"a b": 'q"\\\x7f\t', "ü": ""},
            lock_days=30,
            create_only=False,
        ),
        StoreConfig(name="box", url="borg+ssh://u1@box.example.net:23/./mx1", passphrase_command="cat 'x y'", rsh="ssh -i k"),
        StoreConfig(name="disk", url="borg:///mnt/borg"),
    ),
    mail=(
        MailConfig(name="one", path="/srv/{user}", domain="example.org"),
        MailConfig(name="zwei – ü", path="/var/vmail/{domain}/{user}/Maildir"),
    ),
    directories=(DirectoryConfig(name="x", path="/home", exclude=("*/.cache", '"', "ü"), one_file_system=False),),
    backup=BackupConfig(level=19, max_shrink=0.25, rescan_days=0, workers=4),
)


@pytest.mark.parametrize("comments", [True, False])
@pytest.mark.parametrize("given", [parse(GOOD, "x"), FULL, made(directories=())], ids=["defaults", "full", "no-directory"])
def test_what_is_written_reads_back(given: Config, comments: bool):
    assert parse(render(given, comments), "x") == given


def test_every_option_is_explained_and_shown():
    for record, words in WORDS.items():
        assert words.keys() == {"", *record.__struct_fields__}
    text = render(made(stores=FULL.stores))
    for record in WORDS:
        for option in record.__struct_fields__:
            assert f"\n{option} = " in text or f"\n# {option} = " in text, option
    assert "[[directory]]" in render(made(directories=()))


def test_options_shown_as_comments_are_valid_when_uncommented():
    text = render(made(stores=FULL.stores[:3]))
    read = parse(re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE), "x")
    assert all(getattr(read.stores[n], option) is not None for n in range(3) for option in STORE_OPTIONS[read.stores[n].scheme])
    assert (read.stores[0].reserve, read.mail[0].domain, read.directories[0].exclude) == (1 << 40, "example.org", ("*/.cache",))
    assert read.backup == BackupConfig()


def test_without_comments_only_what_differs():
    assert "#" not in render(FULL, comments=False)
    assert "[backup]" not in render(parse(GOOD, "x"), comments=False)


def edit(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


BAD = [
    # syntax, with the line
    ("[host\n", "x:1: Expected ']' at the end of a table declaration", None),
    (GOOD + "\nlevel = \n", f"x:{GOOD.count(chr(10)) + 2}: Invalid value", None),
    (GOOD + '\nname = "', f"x:{GOOD.count(chr(10)) + 2}: Unterminated string", None),
    # keys
    (GOOD + "\n[backupp]", "x: unknown key 'backupp'", "Did you mean 'backup'?"),
    (edit("url =", "ulr ="), "x: unknown key 'ulr' in [store[0]]", "Did you mean 'url'?"),
    (edit('path = "/etc"', 'path = "/etc"\nexcludes = []'), "x: unknown key 'excludes' in [directory[0]]", "Did you mean 'exclude'?"),
    (
        GOOD + "\n[backup]\nqqq = 1",
        "x: unknown key 'qqq' in [backup]",
        "Known here: level, max_shrink, freeze_gone, freeze_changed, rescan_days, gather_budget, workers.",
    ),
    (edit("[host]", "[stores]\n[host]"), "x: unknown key 'stores'", "Did you mean 'store'?"),
    # what a later version will know
    (GOOD + "\n[retention]\ndaily = -1", "x: retention: daily = -1: must not be negative", "See docs/guides/retention.md."),
    (GOOD + "\n[retention]\ngrace_days = 1", "x: retention.grace_days: 1 is not between 7 and 3650", None),
    (GOOD + "\n[drill]", "x: [drill] is not supported by this version yet", "Remove it, or turn it into a comment."),
    (
        edit('name = "cellar"', 'name = "cellar"\nretention = { within = "soon" }'),
        'x: store[0].retention: within = "soon": must be a number with h, d, w or y, such as "30d"',
        None,
    ),
    # stores
    *(
        (
            edit('name = "cellar"', f'name = "cellar"\n{key} = {value}'),
            f"x: store[0].{key}: means nothing for a file:// store",
            "Remove it.",
        )
        for key, value in (("endpoint", '"x"'), ("lock_days", "30"), ("passphrase_command", '"x"'), ("create_only", "false"))
    ),
    (edit("file:///var/backups/mailbackup", "s3://bucket?x=1"), "x: store[0].url: 's3://bucket?x=1': expected s3://bucket/folder", None),
    (edit("file:///var/backups/mailbackup", "borg+ssh://u:hunter2@box/./x"), "x: store[0].url: holds a password", None),
    (
        edit("file:///var/backups/mailbackup", 's3://bucket"\nendpoint = "http://u:hunter2@box'),
        "x: store[0].endpoint: holds a password",
        None,
    ),
    (edit("file:///var/backups/mailbackup", "borg://var/x"), "x: store[0].url: 'borg://var/x': expected borg:///absolute/path", None),
    (edit("file:///var/backups/mailbackup", "borg:///etc/x"), "x: store[0].url: /etc/x lies inside the source /etc", None),
    (edit("file:///var/backups/mailbackup", "swift://u:hunter2@box"), "x: store[0].url: unknown kind of store 'swift'", None),
    (edit('name = "cellar"', 'name = "../x"'), "x: store[0].name: '../x' is no name", None),
    (edit('path = "/etc"', 'path = "/etc"\nname = "system:postfix"'), "x: directory[0].name: the name 'system:postfix' is reserved", None),
    # types
    (edit('name = "mx1"', "name = 5"), "x: host.name: expected str, got int", None),
    (edit("[[store]]", "[store]"), "x: store: expected [[…]], got table", None),
    (edit('path = "/etc"', "path = 5"), "x: directory[0].path: expected str, got int", None),
    (edit('path = "/etc"', 'exclude = ["a"]'), "x: directory[0]: missing: name", None),
    (edit('role = "recovery"', 'role = "owner"'), "x: recipient[0].role: invalid enum value 'owner'", None),
    (edit("[[mail]]\n", '[[mail]]\nformat = "mbox"\n'), "x: mail[0].format: invalid enum value 'mbox'", None),
    (GOOD + '\n[backup]\nlevel = "high"', "x: backup.level: expected int, got str", None),
    (GOOD + '\n[backup]\nworkers = "many"', "x: backup.workers: invalid enum value 'many'", None),
    ("directory = 1\n" + GOOD.replace("[[directory]]", "[host.x]"), "x: unknown key 'x' in [host]", None),
    (GOOD.replace("[host]", "[trust2]"), "x: unknown key 'trust2'", "Did you mean 'trust'?"),
    (GOOD.replace('[host]\nname = "mx1"\n', ""), "x: missing: host", None),
    # values
    (edit('name = "mx1"', 'name = " "'), "x: host.name: is empty", None),
    (GOOD.replace(f'[[recipient]]\nrole = "recovery"\nkey = "{KEY}"\n', ""), "x: recipient: there is no [[recipient]], so nobody", None),
    (edit(KEY, KEY[:-1]), "x: recipient[0].key: ", None),
    (edit("1" * 32, "1" * 31), "x: trust.vault: expected 32 hexadecimal digits", None),
    (edit("3" * 64, "G" * 64), "x: trust.writer: expected 64 hexadecimal digits", None),
    (GOOD[: GOOD.index("[[mail]]")], "x: mail: there is no [[mail]], no [[directory]] and no [systems], so there is nothing to save", None),
    (GOOD.replace('[[store]]\nname = "cellar"\nurl = "file:///var/backups/mailbackup"\n', ""), "x: store: there is no [[store]]", None),
    (
        edit("/var/vmail/{domain}", "vmail/{domain}"),
        "x: mail[0].path: 'vmail/{domain}/{user}/Maildir': a path of mailboxes begins with /",
        None,
    ),
    (edit("{user}", "{uid}"), "x: mail[0].path: ", None),
    (edit("{domain}/{user}", "%d/%n"), "x: mail[0].path: ", None),
    (edit('path = "/etc"', 'path = "etc"'), "x: directory[0].path: 'etc' is not an absolute path", None),
    (edit('path = "/etc"', 'path = "/etc"\nname = "vmail"'), "x: directory[0].name: two sources are called 'vmail'", None),
    (
        GOOD + '[[mail]]\npath = "/srv/vmail/{user}"',
        "x: mail[1].name: two sources are called 'vmail'",
        "Give each source a name of its own with name = …",
    ),
    (GOOD + '[[store]]\nname = "cellar"\nurl = "file:///mnt"', "x: store[1].name: two stores are called 'cellar'", None),
    (edit("file:///var/backups/mailbackup", "/var/backups"), "x: store[0].url: unknown kind of store '/var/backups'", None),
    (edit("file:///var/backups/mailbackup", "file://var/backups"), "x: store[0].url: 'file://var/backups': expected", None),
    (
        edit("file:///var/backups/mailbackup", "file:///var/vmail/backup"),
        "x: store[0].url: /var/vmail/backup lies inside the source /var/vmail",
        None,
    ),
    (edit("file:///var/backups/mailbackup", "file:///etc/../etc"), "x: store[0].url: /etc lies inside the source /etc", None),
    (edit('url = "file', 'reserve = -1\nurl = "file'), "x: store[0].reserve: -1 is not between 0 and ", None),
    *(
        (f"{GOOD}\n[backup]\n{line}", f"x: backup.{line.partition(' ')[0]}: {line.rpartition(' ')[2]} is not between ", None)
        for line in (
            "level = 0",
            "level = 20",
            "max_shrink = 1.5",
            "max_shrink = nan",
            "freeze_gone = 2.5",
            "freeze_changed = -0.1",
            "rescan_days = -1",
            "gather_budget = -1",
            "workers = 0",
        )
    ),
]


@pytest.mark.parametrize(("text", "message", "hint"), BAD, ids=[message for _, message, _ in BAD])
def test_what_is_refused(text: str, message: str, hint: str | None):
    with pytest.raises(ConfigInvalid) as caught:
        parse(text, "x")
    assert caught.value.message.startswith(message)
    assert "\n" not in caught.value.message
    assert caught.value.hint
    if hint is not None:
        assert caught.value.hint == hint


def test_a_store_beside_a_source_is_fine():
    assert parse(edit("file:///var/backups/mailbackup", "file:///etcetera"), "x").stores[0].path == "/etcetera"
    assert parse(edit("file:///var/backups/mailbackup", "FILE:///var/a%20b/"), "x").stores[0].path == "/var/a b"


def test_a_store_inside_a_source_by_a_link_is_refused(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "etc")
    with pytest.raises(ConfigInvalid, match="lies inside the source"):
        parse(edit("file:///var/backups/mailbackup", f"file://{tmp_path}/link/vault").replace('"/etc"', f'"{tmp_path}/etc"'), "x")


@pytest.mark.parametrize(
    ("pattern", "root", "name"),
    [
        ("/var/vmail/{domain}/{user}/Maildir", "/var/vmail", "vmail"),
        ("/home/{user}/Maildir", "/home", "home"),
        ("/srv/mail//x{user:1}/{user}", "/srv/mail", "mail"),
        ("/srv/*/{user}", "/srv", "srv"),
        ("/{user}/Maildir", "/", "mail"),
    ],
)
def test_names_of_mail_locations(pattern: str, root: str, name: str):
    assert (config.literal_root(pattern), config.mail_name(pattern)) == (root, name)


def test_load_looks_in_the_usual_places(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(config, "SYSTEM_CONFIG", str(tmp_path / "etc.toml"))
    with pytest.raises(ConfigMissing, match=r"no configuration: .*/etc.toml and .*/mailbackup/mailbackup.toml do not exist"):
        load()
    own = tmp_path / "xdg" / "mailbackup" / "mailbackup.toml"
    own.parent.mkdir(parents=True)
    own.write_text(GOOD)
    assert load() == (parse(GOOD, "x"), str(own))
    (tmp_path / "etc.toml").write_text(edit("mx1", "mx2"))
    assert load()[0].host.name == "mx2"
    assert load(str(own))[0].host.name == "mx1"


def test_load_says_what_it_cannot_read(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigMissing, match=r"no configuration: c\.toml does not exist"):
        load("c.toml")
    (tmp_path / "c.toml").mkdir()
    with pytest.raises(ConfigInvalid, match=f"cannot read {tmp_path}/c.toml: Is a directory"):
        load("c.toml")
    (tmp_path / "d.toml").write_bytes(b"# \xff")
    with pytest.raises(ConfigInvalid, match=f"{tmp_path}/d.toml: not UTF-8 text"):
        load("d.toml")


def test_places(tmp_path, monkeypatch: pytest.MonkeyPatch):
    for variable in ("XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "MAILBACKUP_STATE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/home/u")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert config.default_path() == "/home/u/.config/mailbackup/mailbackup.toml"
    assert config.default_store_dir() == "/home/u/.local/share/mailbackup/vault"
    assert config.state_dir("/x/c.toml", None) == "/home/u/.local/state/mailbackup"
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    assert config.state_dir("/x/c.toml", None) == "/s/mailbackup"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert config.default_path() == "/etc/mailbackup/mailbackup.toml"
    assert config.default_store_dir() == "/var/backups/mailbackup"
    assert config.state_dir("/x/c.toml", None) == "/var/lib/mailbackup"
    (tmp_path / "c.state").mkdir()
    assert config.state_dir(f"{tmp_path}/c.toml", None) == f"{tmp_path}/c.state"
    monkeypatch.setenv("MAILBACKUP_STATE", "/env")
    assert config.state_dir(f"{tmp_path}/c.toml", None) == "/env"
    assert config.state_dir(f"{tmp_path}/c.toml", "/option") == "/option"


def test_compose_names_and_checks():
    given = compose(
        host="mx1",
        recipient=KEY,
        trust=TRUST,
        mail=("/var/vmail/{user}", "/srv/vmail/{user}", "/home/{user}/Maildir"),
        directories=("/etc",),
        stores=("file:///mnt/a",),
        domain="example.org",
    )
    assert [mail.name for mail in given.mail] == ["vmail", "vmail-2", "home"]
    assert {mail.domain for mail in given.mail} == {"example.org"}
    assert [store.name for store in given.stores] == ["local"]
    with pytest.raises(UsageError, match="lies inside the source /etc") as caught:
        compose(host="mx1", recipient=KEY, trust=TRUST, directories=("/etc",), stores=("file:///etc/vault",))
    assert not isinstance(caught.value, ConfigInvalid)


def test_addresses_of_local_stores():
    url = config.file_url("/mnt/a b/%41/ü")
    assert StoreConfig(name="x", url=url).path == "/mnt/a b/%41/ü"
    assert tomllib.loads(render(made(stores=(StoreConfig(name="x", url=url),))))["store"][0]["url"] == url
