"""Random histories of a small mail store: live is what the newest snapshot refers to, no more and no less, and every snapshot is what it was.

A block that is stopped too early is lost with the next prune; one that is never stopped stays for ever. Both would go unseen for years.
"""

import os
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from mailbackup import app
from mailbackup.capture.mailbox import MailboxCapture
from mailbackup.capture.reading import Unreadable
from mailbackup.testing.crashpoints import Crash, CrashingStore, CrashPoint
from mailbackup.vault import writer
from tests.vault.past import LARGE, Look, Past, letter, write

CAMPAIGN = bool(os.environ.get("MAILBACKUP_CAMPAIGN"))

boxes = st.sampled_from(["alice@example.org", "bob@example.org", "carol@example.net"])
folders = st.sampled_from(["", ".Sent", ".Archive"])
bodies = st.sampled_from([b"", b"a few words\n", b"x" * 3_000, b"more words " * 500, LARGE, LARGE[1:], LARGE * 2])
files = st.sampled_from(["notes", "etc/main.cf", "etc/keys/private", "projects/plan"])
indexes = st.integers(0, 1_000_000)


class Histories(RuleBasedStateMachine):
    """Mail comes and goes, runs succeed, fail and die, states get lost, old and rebuilt."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="refcounts-")
        self.world = Past(self.folder)
        self.count = 0
        self.certain = (
            True  # the state is as the last run left it: what is kept of a mailbox that cannot be read is what the last snapshot has
        )
        self.saved = False

    def teardown(self) -> None:
        """Every snapshot, to the end."""
        for seq in self.world.committed():
            self.world.check_restores(seq)
        shutil.rmtree(self.folder)

    # -- the mail store

    @initialize()
    def begin(self) -> None:
        self.world.first_day()
        self.run()

    @rule(box=boxes, folder=folders, body=bodies, place=st.sampled_from(["new", "cur"]))
    def deliver(self, box, folder, body, place) -> None:
        self.count += 1
        self.world.deliver(
            f"{self.count}.m{'' if place == 'new' else ':2,'}", letter(f"number {self.count}", body), box, folder=folder, place=place
        )

    @rule(number=st.integers(2, 200), box=boxes)
    def deliver_many(self, number, box) -> None:
        """Enough for more than one segment, in time."""
        for _ in range(number):
            self.deliver(box, "", b"", "cur")

    def message(self, index: int) -> str | None:
        """Some message, by its path."""
        found = []
        for path, _, names in os.walk(self.world.mail):
            if os.path.basename(path) in ("new", "cur"):
                found += [f"{path}/{name}" for name in names]
        return sorted(found)[index % len(found)] if found else None

    @rule(index=indexes, flags=st.sampled_from(["", "S", "FS", "RST"]))
    def flag(self, index, flags) -> None:
        if path := self.message(index):
            directory, name = os.path.split(path)
            os.rename(path, f"{os.path.dirname(directory)}/cur/{name.partition(':')[0]}:2,{flags}")

    @rule(index=indexes, box=boxes, folder=folders)
    def move(self, index, box, folder) -> None:
        if path := self.message(index):
            target = self.world.folder(folder, box) if folder else self.world.maildir(box)
            os.rename(path, f"{target}/cur/{os.path.basename(path).partition(':')[0]}:2,S")

    @rule(index=indexes, number=st.integers(1, 60))
    def delete(self, index, number) -> None:
        for offset in range(number):
            if path := self.message(index + offset):
                os.unlink(path)

    @rule(box=boxes, folder=folders)
    def delete_folder(self, box, folder) -> None:
        """Or the whole mailbox."""
        maildir = self.world.maildir(box)
        shutil.rmtree(f"{maildir}/{folder}" if folder else os.path.dirname(maildir), ignore_errors=True)

    @rule(name=files, body=bodies)
    def change_file(self, name, body) -> None:
        write(f"{self.world.home}/{name}", body)

    @rule(name=files)
    def delete_file(self, name) -> None:
        if os.path.exists(f"{self.world.home}/{name}"):
            os.unlink(f"{self.world.home}/{name}")

    # -- runs

    @rule(rescan=st.booleans(), settled=st.booleans())
    def run(self, rescan=False, settled=False) -> None:
        if settled:
            self.world.settle()
        result = self.world.backup(rescan=rescan, accept_shrink=True)
        assert result.outcome in ("complete", "explained"), result.findings
        self.certain = True
        self.world.check_clean()
        self.world.check_restores(result.seq)
        self.world.check_no_waste()

    @precondition(lambda self: self.certain)
    @rule(box=boxes)
    def run_and_not_read(self, box) -> None:
        """One mailbox cannot be read: it stays as the last snapshot has it."""
        read, before = MailboxCapture.read, self.world.recall(self.world.committed()[-1])

        def fails(capture: MailboxCapture) -> None:
            if capture.found.address == box:
                raise Unreadable("Input/output error")
            read(capture)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MailboxCapture, "read", fails)
            result = self.world.backup(accept_shrink=True)
        mail, home = self.world.look()
        if box in mail:
            assert result.outcome == "incomplete"
            kept = {box: before.mail[box]} if box in before.mail else {}
            self.world.correct(result.seq, Look({key: files for key, files in mail.items() if key != box} | kept, home))
        self.world.check_clean()
        self.world.check_restores(result.seq)
        self.world.check_blocks()

    @rule(point=st.integers(1, 40), after=st.booleans(), checkpoints=st.booleans())
    def run_and_die(self, point, after, checkpoints) -> None:
        crash = CrashPoint(point, after=after)
        self.world.store_hook = lambda store: CrashingStore(store, crash)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(writer, "CHECKPOINT_BYTES", 0 if checkpoints else 1 << 40)
                self.world.backup(accept_shrink=True)
        except Crash:
            self.certain = False
        self.world.store_hook = None

    # -- accidents of the state

    @precondition(lambda self: os.path.exists(self.world.state))
    @rule()
    def lose_state(self) -> None:
        self.world.lose_state()
        self.certain = False

    @rule()
    def rebuild_state(self) -> None:
        app.state_rebuild(self.world.context)
        self.certain = False

    @precondition(lambda self: os.path.exists(self.world.state))
    @rule()
    def save_state(self) -> None:
        self.world.save("saved", "state")
        self.saved = True

    @precondition(lambda self: self.saved)
    @rule()
    def put_state_back(self) -> None:
        """A state of an earlier day. An entry that waits in it, and was never put, waits again: then its snapshot is of that day."""
        self.world.put_back("saved", "state")
        self.certain = False


def test_random_histories():
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=150 if CAMPAIGN else 4,
            stateful_step_count=40 if CAMPAIGN else 20,
            derandomize=not CAMPAIGN,
            deadline=None,
            database=None,
            print_blob=True,
            verbosity=Verbosity.normal,
            suppress_health_check=list(HealthCheck),
        ),
    )
