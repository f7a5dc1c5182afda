"""Which mailboxes a light drill restores."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mailbackup.model.ids import BlobId
from mailbackup.model.tree import MailboxRow, Ref
from mailbackup.server.drills import SAMPLE_BYTES, SAMPLE_MAILBOXES, SAMPLE_MESSAGES, sample

_SIZES = st.tuples(st.integers(0, 3000), st.integers(0, 2 * SAMPLE_BYTES))


def row(key: str, messages: int, size: int) -> MailboxRow:
    return MailboxRow(key=key, location="mail", address=key, messages=messages, bytes=size, tree=Ref(0, 0, 0, BlobId("0" * 64)))


def test_a_server_with_nothing_but_large_mailboxes_drills_the_smallest() -> None:
    rows = [row("large", 90_000, 1 << 34), row("less", 80_000, 1 << 33), row("empty", 0, 0)]
    assert sample(rows, 7) == {"less"}


@given(st.lists(_SIZES, max_size=12), st.integers(0, 99))
def test_a_sample_is_small_and_has_messages_if_any_mailbox_has(sizes: list[tuple[int, int]], seed: int) -> None:
    rows = {f"box {number}": row(f"box {number}", *size) for number, size in enumerate(sizes)}
    chosen = [rows[key] for key in sample(list(rows.values()), seed)]
    assert bool(chosen) == any(one.messages for one in rows.values())
    assert all(one.messages for one in chosen)
    if len(chosen) > 1:
        assert len(chosen) <= SAMPLE_MAILBOXES
        assert sum(one.messages for one in chosen) <= SAMPLE_MESSAGES
        assert sum(one.bytes for one in chosen) <= SAMPLE_BYTES


def test_other_snapshots_drill_other_mailboxes() -> None:
    rows = [row(f"box {number}", 10, 1000) for number in range(40)]
    assert len({frozenset(sample(rows, seed)) for seed in range(20)}) > 10
