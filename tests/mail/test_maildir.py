"""Names in a Maildir: acceptance cases 1.1 to 1.4."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailbackup.errors import RecordInvalid
from mailbackup.mail import maildir
from mailbackup.model.ids import B64, Name

file_names = st.binary(min_size=1, max_size=80).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_"))

NAMES = {
    # name: (base name, rest)
    b"1767600000.M20046P93.mx1,S=2301,W=2350:2,FS": (b"1767600000.M20046P93.mx1,S=2301,W=2350", b":2,FS"),
    b"1767600000.M20046P93.mx1": (b"1767600000.M20046P93.mx1", b""),  # in new, or in cur without any info
    b"1767600000.M20046P93.mx1:2,": (b"1767600000.M20046P93.mx1", b":2,"),
    b"x:2,RF": (b"x", b":2,RF"),  # flags in no order
    b"x:2,Sabc": (b"x", b":2,Sabc"),  # keywords
    b"x:info1": (b"x", b":info1"),
    b"x:": (b"x", b":"),
    b"x:foo:2,S": (b"x", b":foo:2,S"),  # identity ends at the first colon
    b"x:2,These-are-not-flags-in-ASCII-order-donottouch": (b"x", b":2,These-are-not-flags-in-ASCII-order-donottouch"),
    b"1.2_3.host\\057with\\072signs:2,S": (b"1.2_3.host\\057with\\072signs", b":2,S"),
    b"1220863087.12663_15.mindcrime!2,PS": (b"1220863087.12663_15.mindcrime!2,PS", b""),  # separator of other systems
    b"x;2,S": (b"x;2,S", b""),
    b"1,U=7,FMD5=6c7f:2,S": (b"1,U=7,FMD5=6c7f", b":2,S"),  # offlineimap
    b":2,S": (b":2,S", b""),  # empty base name: the whole name, so that nothing is lost
    b"::2,S": (b"::2,S", b""),
    b"with\nnewline \xe2\x28\xa1:2,S": (b"with\nnewline \xe2\x28\xa1", b":2,S"),
}


@pytest.mark.parametrize("name", NAMES)
def test_name_is_base_and_rest(name: bytes) -> None:
    assert maildir.split_name(name) == NAMES[name]
    assert maildir.is_message(name)


@given(file_names)
def test_base_and_rest_are_the_name(name: bytes) -> None:
    base, rest = maildir.split_name(name)
    assert base + rest == name
    assert base
    assert rest[:1] in (b":", b"")


@given(file_names, st.sampled_from([b"", b":2,", b":2,S", b":2,FRSab"]), st.sampled_from([b"", b":2,", b":2,T"]))
def test_a_flag_change_keeps_the_base(name: bytes, before: bytes, after: bytes) -> None:
    base = maildir.split_name(name)[0]
    if not base.startswith(b":"):
        assert maildir.split_name(base + before)[0] == maildir.split_name(base + after)[0] == base


@pytest.mark.parametrize("name", [b".nfs000000000012d68700000003", b".footmp", b".foonew", b".noindex", b"..", b""])
def test_dot_files_are_no_messages(name: bytes) -> None:
    assert not maildir.is_message(name)


@given(st.sampled_from([b"c", b"n"]), st.binary(max_size=40).filter(lambda raw: b"/" not in raw and b"\0" not in raw))
def test_flag_and_back(place: bytes, rest: bytes) -> None:
    assert maildir.flag_parts(maildir.flag_text(place, rest)) == (place, rest)


def test_flag_as_the_format_says() -> None:
    assert maildir.flag_text(b"c", b":2,S") == "c:2,S"
    assert maildir.flag_text(b"n", b"") == "n"
    assert maildir.flag_text(b"c", b":2,\xff") == B64("YzoyLP8=")
    assert [maildir.directory_of(maildir.place_of(name)) for name in maildir.MESSAGE_DIRECTORIES] == [b"new", b"cur"]
    with pytest.raises(ValueError, match="neither"):
        maildir.flag_text(b"cur", b":2,S")


@pytest.mark.parametrize("flag", ["", ":2,S", "t:2,S", "c:2,/../../x", "c\0", B64("!"), "\udcff"])
def test_flag_that_could_lead_elsewhere_is_refused(flag: Name) -> None:
    with pytest.raises(RecordInvalid):
        maildir.flag_parts(flag)


KEPT = [
    "dovecot-uidlist", "dovecot-keywords", "dovecot-uidvalidity", "dovecot-uidvalidity.695b6f80", "dovecot-acl",
    "dovecot-acl-list", "dovecot-shared", "subscriptions", "dovecot.index", "dovecot.index.log", "dovecot.index.log.2",
    "dovecot.list.index", "dovecot.list.index.log", "dovecot.mailbox.log", "maildirsize", "maildirfolder",
    "courierimapuiddb", "courierimapsubscribed", "courierimapacl", "courierimaphieracl", "shared-maildirs",
    ".uidvalidity", ".isyncuidmap.db", ".mbsyncstate", ".noindex", ".noupdate", "main.sieve", "main.svbin",
    ".dovecot.sieve", ".dovecot.lda-dupes", "tmp", "lock", "dovecot.index.backup", ".nfs",
]  # fmt: skip
LEFT_OUT = {
    "dovecot-uidlist.lock": "lock", ".dovecot-sync.lock": "lock", ".dovecot-box-sync.lock": "lock",
    "dovecot-vsize.lock": "lock", "maildirsize.lock": "lock", "dovecot.index.log.newlock": "lock",
    "dovecot.index.cache": "cache", "dovecot.index.cache.old": "cache", "dovecot.index.thread": "cache",
    "dovecot.index.search": "full-text index", "dovecot.index.search.uids": "full-text index",
    ".nfs000000000012d68700000003": "deleted, but still open",
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("parent", [b"", b".Archive.2026", b"courierimapkeywords"])
def test_kept(name: str, parent: bytes) -> None:
    assert maildir.skipped(name.encode(), parent) is None


@pytest.mark.parametrize("name", LEFT_OUT)
@pytest.mark.parametrize("parent", [b"", b".Archive.2026"])
def test_left_out(name: str, parent: bytes) -> None:
    assert maildir.skipped(name.encode(), parent) == LEFT_OUT[name]


def test_left_out_by_directory() -> None:
    assert maildir.skipped(b"1767600000.M20046P93.mx1", b"tmp") == "unfinished delivery"
    assert maildir.skipped(b"1767600000.M20046P93.mx1", b".Sent/tmp") == "unfinished delivery"
    assert maildir.skipped(b"iamglass", b"xapian-indexes/db_1") == "full-text index"
    assert maildir.skipped(b"current.12", b".Sent/fts-flatcurve") == "full-text index"
    assert maildir.left_out_inside(b"lucene-indexes") == "full-text index"
    assert maildir.left_out_inside(b"tmp") is not None
    assert maildir.left_out_inside(b".tmp") is None
    assert maildir.left_out_inside(b"cur") is None


def test_elsewhere_in_a_home_the_users_own_files_are_kept() -> None:
    assert maildir.left_out_inside(b"tmp", in_folder=False) is None
    assert maildir.skipped(b"notes", b"tmp", in_folder=False) is None
    assert maildir.skipped(b"poetry.lock", b"project", in_folder=False) is None
    assert maildir.skipped(b".dovecot.lda-dupes.lock", in_folder=False) == "lock"


def test_captured_last() -> None:
    last = [
        b"dovecot-uidlist", b"dovecot-keywords", b"dovecot.index", b"dovecot.index.log", b"dovecot.list.index.log",
        b"dovecot.mailbox.log", b"courierimapuiddb", b"courierimapkeywords", b".uidvalidity", b".isyncuidmap.db",
        b"maildirsize",
    ]  # fmt: skip
    assert all(map(maildir.captured_last, last))
    assert not any(map(maildir.captured_last, [b"subscriptions", b"maildirfolder", b"main.sieve", b".noindex"]))


FOLDERS = {
    b"": "INBOX",
    b".Sent": "Sent",
    b".Archive.2026": "Archive/2026",
    b".Entw&APw-rfe": "Entwürfe",
    b"Entw&APw-rfe/Alt": "Entwürfe/Alt",  # LAYOUT=fs
    b"Archive/2026.old": "Archive/2026.old",
    ".Entwürfe".encode(): "Entwürfe",
    b".&ZeVnLIqe-": "日本語",
    b".&2D3eAA-": "😀",
    b".R&-D": "R&D",
    b".[Google Mail].All Mail": "[Google Mail]/All Mail",
    b".INBOX.foo": "INBOX/foo",
    b".INBOX": ".INBOX",  # not the INBOX
    b".Inbox": ".Inbox",
    b".foo.": "foo/",
    b".foo.bar.": "foo/bar/",
    b".bad&!!!-x": "bad&!!!-x",
    b".open&AP": "open&AP",
    b".&AC8-": "&AC8-",  # an encoded slash would make up a hierarchy
    b".&ACY-": "&ACY-",  # so would the encoded ampersand make two folders look alike
    b".&APx-": "&APx-",  # not canonical: bits left over
    b".&2D0-": "&2D0-",  # half a surrogate pair
    b".raw\xff": "raw\\xff",
    b".esc\x1b[2Jape": "esc\\u001b[2Jape",
    b".&IC4-txt": "\\u202etxt",  # right-to-left override
}


@pytest.mark.parametrize("name", FOLDERS)
def test_readable_folder(name: bytes) -> None:
    assert maildir.readable_folder(name) == FOLDERS[name]
    assert maildir.folder_matches(name, FOLDERS[name])


def test_readable_names_of_the_table_are_distinct() -> None:
    shown = list(FOLDERS.values())
    assert {name for name in shown if shown.count(name) > 1} == {"Entwürfe"}  # two spellings on disk of one name


@given(st.binary(max_size=60))
def test_any_folder_name_is_readable_and_found_by_what_is_shown(name: bytes) -> None:
    shown = maildir.readable_folder(name)
    assert "\n" not in shown
    assert "\x1b" not in shown
    shown.encode("utf-8")
    assert maildir.folder_matches(name, shown)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (b"", "inbox"),
        (b"", "Inbox"),
        (b"", ""),
        (b".Archive.2026", "Archive/2026"),
        (b".Archive.2026", "Archive.2026"),
        (b".Archive.2026", ".Archive.2026"),
        (b".Entw&APw-rfe", "Entwürfe"),
        (b".Entw&APw-rfe", "Entwu\u0308rfe"),  # as a Mac types it
        (b".Entw&APw-rfe", "Entw&APw-rfe"),
        (b".Entw&APw-rfe", ".Entw&APw-rfe"),
        (b"Archive/2026", "Archive/2026"),
        (b".INBOX", ".INBOX"),
    ],
)
def test_folder_named_by_a_person(name: bytes, wanted: str) -> None:
    assert maildir.folder_matches(name, wanted)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [(b".Sent", "sent"), (b".Sent", "Sent/"), (b".Sent", "INBOX"), (b"", "Sent"), (b".INBOX", "INBOX"), (b".Sent", "")],
)
def test_another_folder(name: bytes, wanted: str) -> None:
    assert not maildir.folder_matches(name, wanted)


def test_names_of_a_large_store_are_fast() -> None:
    names = [b"17676%05d.M20046P93.mx1,S=2301,W=2350:2,FS" % number for number in range(60_000)]
    start = time.process_time()
    bases = {maildir.split_name(name)[0] for name in names if maildir.is_message(name)}
    assert len(bases) == len(names)
    assert time.process_time() - start < 0.5  # 0.03 s here
