"""The recovery kit: for people, for mailbackup, for rescue-1.py and for the age program."""

from __future__ import annotations

import html
import os
import pty
import re
import subprocess
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mailbackup import config
from mailbackup.crypto import age
from mailbackup.crypto.signing import SigningKey
from mailbackup.errors import IdentityMissing, KeyMalformed
from mailbackup.kit import Kit, load_identity_file, page, parse, render
from mailbackup.model.ids import Digest, VaultId
from mailbackup.model.ledger import Anchors

# Fixed, as test names and Hypothesis want the same kit each time. These identities are from the published C2SP/CCTV vectors.
SECRET = "AGE-SECRET-KEY-1EGTZVFFV20835NWYV6270LXYVK2VKNX2MMDKWYKLMGR48UAWX40Q2P2LM0"
OTHER_SECRET = "AGE-SECRET-KEY-143WN7DCXU4G8R5AXQSSYD9AEPYDNT3HXSLWSPK36CDU6E8M59SSSAGZ3KG"
IDENTITY = age.Identity(secret=SECRET, recipient=age.recipient_of(SECRET))
ADMIN, WRITER, OTHER_SIGNER = (SigningKey.from_hex(digits * 32) for digits in ("a1", "b2", "c3"))
KIT = Kit(
    vault=VaultId("0123456789abcdef0123456789abcdef"),
    created="2026-11-24T02:30:00Z",
    host="mx1.example.org",
    identity=IDENTITY.secret,
    recipient=IDENTITY.recipient,
    admin_seed=ADMIN.seed_hex,
    admin=ADMIN.public,
    writer=WRITER.public,
    stores=(("local", "file:///var/backups/mailbackup"), ("offsite", "s3://bucket/mx1?region=eu")),
    head=(12, Digest("ab" * 32)),
    files={"rescue-1.py": Digest("cd" * 32), "FORMAT-1.md": Digest("ef" * 32), "vault.json": Digest("01" * 32)},
)
TEXT = render(KIT, None)

RESCUE_LINE = re.compile(r"#\s*(vault|admin-public|head):\s*(.*?)\s*")  # what rescue-1.py takes for an anchor

HOSTILE = [
    *(
        "",
        " ",
        '"',
        "\\",
        "a = b",
        "a =",
        "= b",
        "=",
        "x\n# vault: 00",
        "\r\n# head: 1 " + "0" * 64,
        "# mailbackup-kit: 1",
        "vault: 0123 vault: 0123",
    ),
    *("<script>alert(1)</script>", "&amp;<b>", "\u2028# vault: 1", "\x85# vault: 1", "\x7f", "日本", "AGE-SECRET-KEY-1X", "x" * 300),
]
names = st.text() | st.sampled_from(HOSTILE)
heads = st.none() | st.tuples(st.integers(1, 9_999_999_999), st.just(Digest("0f" * 32)))


def kits() -> st.SearchStrategy[Kit]:
    return st.builds(
        replace,
        st.just(KIT),
        host=names,
        created=names,
        stores=st.lists(st.tuples(names, names), max_size=3).map(tuple),
        head=heads,
        files=st.dictionaries(names, st.just(Digest("0f" * 32)), max_size=3),
    )


# ---------------------------------------------------------------- round trip


@settings(deadline=None)
@given(kits())
def test_what_is_written_is_read_again(kit: Kit) -> None:
    text = render(kit, None)
    assert parse(text, None, "kit.txt") == kit
    assert parse(text.replace("\n", "\r\n"), None, "kit.txt") == kit
    assert parse(_typed(page(kit)), None, "kit.txt") == kit


@settings(deadline=None)
@given(kits())
def test_only_the_secret_is_no_comment(kit: Kit) -> None:
    lines = render(kit, None).splitlines()
    assert [line for line in lines if not line.startswith("#")] == [kit.identity]


@settings(deadline=None)
@given(kits())
def test_rescue_finds_each_anchor_once(kit: Kit) -> None:
    found = [match.groups() for match in map(RESCUE_LINE.fullmatch, render(kit, None).splitlines()) if match]
    head = [("head", f"{kit.head[0]} {kit.head[1]}")] if kit.head else []
    assert sorted(found) == sorted([("vault", kit.vault), ("admin-public", kit.admin), *head])


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_value_in_every_place(value: str) -> None:
    kit = replace(KIT, host=value, created=value, stores=((value, value), ("x", value)), files={value: Digest("0f" * 32)})
    text = render(kit, None)
    assert parse(text, None, "kit.txt") == kit
    assert len([line for line in text.splitlines() if RESCUE_LINE.fullmatch(line)]) == 3
    assert [line for line in text.splitlines() if not line.startswith("#")] == [kit.identity]


def test_a_host_name_that_is_no_text_survives() -> None:
    kit = replace(KIT, host=os.fsdecode(b"mx\xff"))
    assert parse(render(kit, None), None, "kit.txt").host == kit.host


def test_anchors() -> None:
    assert KIT.anchors == Anchors(vault=KIT.vault, admin=KIT.admin, head=KIT.head)
    assert replace(KIT, head=None).anchors.head is None


def test_no_repr_shows_what_is_secret(tmp_path: Path) -> None:
    (tmp_path / "kit.txt").write_text(TEXT)
    shown = repr(KIT) + repr(load_identity_file(str(tmp_path / "kit.txt"), None))
    for secret in (KIT.identity, KIT.admin_seed, "s3://"):
        assert secret not in shown
    assert KIT.vault in shown


# ---------------------------------------------------------------- with a passphrase


@pytest.fixture(scope="module")
def locked() -> str:
    return render(KIT, "correct horse")


def test_a_locked_kit(locked: str, tmp_path: Path) -> None:
    asked = []

    def answer() -> str:
        asked.append("asked")
        return "correct horse"

    assert locked.startswith("-----BEGIN AGE ENCRYPTED FILE-----\n")
    (tmp_path / "kit.txt").write_text(locked)
    loaded = load_identity_file(str(tmp_path / "kit.txt"), answer)
    assert (loaded.kit, loaded.anchors) == (KIT, KIT.anchors)
    assert asked == ["asked"]


def test_a_locked_kit_stays_locked(locked: str) -> None:
    with pytest.raises(KeyMalformed, match=r"wrong passphrase for kit\.txt"):
        parse(locked, lambda: "wrong", "kit.txt")
    with pytest.raises(KeyMalformed, match="locked with a passphrase and none was given"):
        parse(locked, None, "kit.txt")


def test_an_open_kit_asks_for_no_passphrase() -> None:
    assert parse(TEXT, lambda: pytest.fail("asked"), "kit.txt") == KIT


def test_an_empty_passphrase_is_no_lock() -> None:
    with pytest.raises(KeyMalformed, match="empty"):
        render(KIT, "")


# ---------------------------------------------------------------- by hand


def test_the_age_program_takes_the_kit_as_identity_file(tmp_path: Path) -> None:
    (tmp_path / "kit.txt").write_text(TEXT)
    fresh = age.AgeKeyMaker([KIT.recipient]).new_epoch("epoch 1")
    (tmp_path / "1.age").write_bytes(fresh.sealed)
    (tmp_path / "epoch").write_bytes(_age(tmp_path, "-d", "-i", "kit.txt", "1.age"))
    (tmp_path / "block").write_bytes(age.AgeSealer(fresh.recipient).seal(b"mail"))
    assert _age(tmp_path, "-d", "-i", "epoch", "block") == b"mail"


def test_the_age_program_opens_a_locked_kit(locked: str, tmp_path: Path) -> None:
    (tmp_path / "kit.txt").write_text(locked)
    terminal, inner = pty.openpty()  # age reads passphrases from its terminal only
    with open(terminal, "rb+", buffering=0) as screen:
        with subprocess.Popen(
            ["setsid", "--ctty", "age", "-d", "-o", "open", "kit.txt"], cwd=tmp_path, stdin=inner, stderr=inner
        ) as age_program:
            os.close(inner)
            assert b"passphrase" in screen.read(1000)
            screen.write(b"correct horse\n")
        assert age_program.returncode == 0
    assert (tmp_path / "open").read_text() == TEXT


def test_the_configuration_in_the_kit_is_a_configuration(tmp_path: Path) -> None:
    kit = replace(KIT, host='mx "1"\n\u2028\x7f\\', stores=(("local", "file:///srv/back up"),))
    (tmp_path / "kit.txt").write_text(render(kit, None))
    command = next(line for line in TEXT.splitlines() if "sed -n" in line).lstrip("# ")
    subprocess.run(command, shell=True, cwd=tmp_path, check=True)
    read = config.parse((tmp_path / "restore.toml").read_text(), "restore.toml")
    assert (read.trust.vault, read.trust.admin, read.trust.writer) == (kit.vault, kit.admin, kit.writer)
    assert (read.host.name, read.stores[0].url, read.recipients[0].key) == (kit.host, "file:///srv/back up", kit.recipient)


@settings(deadline=None)
@given(names)
def test_every_name_is_good_toml(name: str) -> None:
    lines = (line.lstrip("# ") for line in render(replace(KIT, host=name), None).split("\n"))
    assert tomllib.loads(next(line for line in lines if line.startswith("name = ")))["name"] == name


def _age(folder: Path, *arguments: str) -> bytes:
    return subprocess.run(["age", *arguments], cwd=folder, capture_output=True, check=True).stdout


# ---------------------------------------------------------------- kits that are not whole


def _without(name: str) -> str:
    return "".join(line for line in TEXT.splitlines(keepends=True) if not line.startswith(f"# {name}: "))


@pytest.mark.parametrize("name", ["vault", "created", "host", "recipient", "admin-public", "admin-secret", "writer"])
def test_a_line_that_is_missing_or_there_twice(name: str) -> None:
    line = next(line for line in TEXT.splitlines() if line.startswith(f"# {name}: "))
    for text, count in ((_without(name), 0), (TEXT + line + "\n", 2)):
        with pytest.raises(KeyMalformed, match=f"recovery kit kit.txt: it must have one line '# {name}: …', and has {count}"):
            parse(text, None, "kit.txt")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (KIT.vault, KIT.vault[1:], "'# vault: …' must hold 32"),
        (KIT.vault, KIT.vault.upper(), "'# vault: …' must hold 32"),
        (f"# admin-secret: {KIT.admin_seed}", "# admin-secret: no", "'# admin-secret: …' must hold 64"),
        (KIT.admin_seed, OTHER_SIGNER.seed_hex, "do not belong together"),
        (f"# admin-public: {KIT.admin}", f"# admin-public: {KIT.writer}", "do not belong together"),
        (f"# recipient: {KIT.recipient}", f"# recipient: {age.recipient_of(OTHER_SECRET)}", "do not belong together"),
        (KIT.identity, OTHER_SECRET, "do not belong together"),
        (KIT.identity, KIT.identity[:-1], "not an AGE-SECRET-KEY line"),
        (KIT.identity, "", "one AGE-SECRET-KEY line"),
        (KIT.identity, f"{KIT.identity}\n{KIT.identity}", "one AGE-SECRET-KEY line"),
        (KIT.identity, f"{KIT.identity}\nmore", "one AGE-SECRET-KEY line"),
        ("# head: 12 ", "# head: 0 ", "'# head: …' must hold a number"),
        ("# head: 12 ", "# head: none ", "'# head: …' must hold a number"),
        ("# store: local = file", "# store: local file", "NAME = VALUE"),
        ("# store: local = file", '# store: local = "file', "broken quotation"),
        ("cd" * 32, "cd", "'# file: …' must hold 64"),
        ("# mailbackup-kit: 1", "# mailbackup-kit: 2", "version 2"),
        ("# mailbackup-kit: 1", "# other: 1", "not a recovery kit"),
    ],
)
def test_damage_is_named_and_nothing_secret_is_quoted(old: str, new: str, reason: str) -> None:
    assert old in TEXT
    text = TEXT.replace(old, new)
    with pytest.raises(KeyMalformed, match=re.escape(reason)) as caught:
        parse(text, None, "kit.txt")
    assert "kit.txt" in caught.value.message
    assert caught.value.hint
    for secret in (KIT.identity[:30], KIT.admin_seed[:30]):
        assert secret not in caught.value.message


@settings(deadline=None)
@given(st.integers(0, len(TEXT) - 1), st.text(min_size=1, max_size=1))
def test_one_wrong_letter_is_harmless_or_named(place: int, letter: str) -> None:
    try:
        parse(TEXT[:place] + letter + TEXT[place + 1 :], None, "kit.txt")
    except KeyMalformed as error:
        assert "kit.txt" in error.message  # noqa: PT017


def test_lines_of_later_versions_are_passed_over() -> None:
    assert parse(TEXT + "# drill-recipient: age1\n# a remark\n", None, "kit.txt") == KIT


def test_spaces_of_a_copy_are_passed_over() -> None:
    assert parse("\n  ".join(["", *TEXT.splitlines(), ""]), None, "kit.txt") == KIT


# ---------------------------------------------------------------- files


def test_an_age_identity_file_has_no_anchors(tmp_path: Path) -> None:
    path = tmp_path / "key.txt"
    path.write_text(f"# created: 2026-11-24T02:30:00Z\n# public key: {IDENTITY.recipient}\n{IDENTITY.secret}\n")
    loaded = load_identity_file(str(path), None)
    assert (loaded.kit, loaded.anchors) == (None, None)
    assert loaded.identities.recipients == (IDENTITY.recipient,)
    assert loaded.identities.source == str(path)


def test_the_keys_of_a_kit_open_the_vault(tmp_path: Path) -> None:
    (tmp_path / "kit.txt").write_text("\ufeff" + TEXT)
    loaded = load_identity_file(str(tmp_path / "kit.txt"), None)
    fresh = age.AgeKeyMaker([KIT.recipient]).new_epoch("1")
    assert age.recipient_of(age.open_epoch(fresh.sealed, loaded.identities)) == fresh.recipient


def test_an_ssh_key_is_an_identity_file(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    loaded = load_identity_file(str(tmp_path / "key"), None)
    fresh = age.AgeKeyMaker([(tmp_path / "key.pub").read_text()]).new_epoch("1")
    assert age.recipient_of(age.open_epoch(fresh.sealed, loaded.identities)) == fresh.recipient


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\0", b"From: bob\n\nhello\n", b"x" * 2_000_000, bytes(100)])
def test_files_that_are_no_keys(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(KeyMalformed, match=f"{tmp_path}/file"):
        load_identity_file(str(tmp_path / "file"), lambda: pytest.fail("asked"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(IdentityMissing, match=r"absent\.txt: No such file"):
        load_identity_file(str(tmp_path / "absent.txt"), None)
    with pytest.raises(IdentityMissing, match="Is a directory"):
        load_identity_file(str(tmp_path), None)


# ---------------------------------------------------------------- the page


class Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def _typed(text: str) -> str:
    """What someone types who copies the last block of the page."""
    return html.unescape(text.rpartition("<pre>")[2].partition("</pre>")[0])


@settings(deadline=None)
@given(kits())
def test_the_page_runs_nothing_and_needs_nothing(kit: Kit) -> None:
    tags = Tags(page(kit))
    assert tags.tags <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ol", "li", "pre"}
    assert tags.attributes <= {"lang", "charset", "http-equiv", "content"}


def test_the_page_says_what_the_text_says() -> None:
    shown = html.unescape(re.sub("<[^>]*>", " ", page(KIT)))
    numbered = re.compile(r"\d\.|==|#")
    assert [word for word in TEXT.split() if word not in shown and not numbered.fullmatch(word)] == []
