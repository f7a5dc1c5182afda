"""Random histories of a small mail store: live is what the newest snapshot refers to, no more and no less, and every snapshot is what it was.

A block that is stopped too early is lost with the next prune; one that is never stopped stays for ever. Both would go unseen for years.
"""

import os
import shutil
from random import Random

import pytest

from mailbackup import app
from mailbackup.capture.mailbox import MailboxCapture
from mailbackup.capture.reading import Unreadable
from mailbackup.testing.crashpoints import Crash, CrashingStore, CrashPoint
from mailbackup.vault import writer
from tests.vault.past import LARGE, Look, Past, letter, write

CAMPAIGN = bool(os.environ.get("MAILBACKUP_CAMPAIGN"))

BOXES = ["alice@example.org", "bob@example.org", "carol@example.net"]
FOLDERS = ["", "", ".Sent", ".Archive"]
BODIES = [b"a few words\n", b"x" * 3_000, b"more words " * 500, LARGE, LARGE[1:], LARGE * 2]
FILES = ["notes", "etc/main.cf", "etc/keys/private", "projects/plan"]


class History:
    """Mail comes and goes, runs succeed, fail and die, states get lost, old and rebuilt: what happens follows from the seed."""

    def __init__(self, root: object, seed: int) -> None:
        self.world = Past(root)
        self.rng = Random(seed)
        self.told: list[str] = []
        self.count = 0
        self.certain = True  # the state is as a run left it: of a mailbox that cannot be read it keeps what the last snapshot has

    def play(self, steps: int) -> None:
        """So many things happen; then everything is looked at."""
        self.world.first_day()
        self.run()
        acts = [act for act, weight in WEIGHTS.items() for _ in range(weight)]
        for _ in range(steps):
            act = self.rng.choice(acts)
            self.told.append(act.__name__)
            act(self)
        self.run()
        for seq in self.world.committed():
            self.world.check_restores(seq)

    # -- the mail store

    def message(self) -> str | None:
        """Some message, by its path."""
        found = []
        for path, _, names in os.walk(self.world.mail):
            if os.path.basename(path) in ("new", "cur"):
                found += [f"{path}/{name}" for name in names]
        return self.rng.choice(sorted(found)) if found else None

    def directory(self) -> str:
        """Some folder, made if need be."""
        box, folder = self.rng.choice(BOXES), self.rng.choice(FOLDERS)
        return self.world.folder(folder, box) if folder else self.world.maildir(box)

    def deliver(self) -> None:
        self.count += 1
        place = self.rng.choice(["new", "cur"])
        name = f"{self.count}.m{'' if place == 'new' else ':2,'}"
        write(f"{self.directory()}/{place}/{name}", letter(f"number {self.count}", self.rng.choice(BODIES)))

    def deliver_many(self) -> None:
        """Enough for more than one segment, in time."""
        directory = self.directory()
        for _ in range(self.rng.randrange(40, 200)):
            self.count += 1
            write(f"{directory}/cur/{self.count}.m:2,", letter(f"number {self.count}", b"%d" % self.count))

    def flag(self) -> None:
        if path := self.message():
            directory, name = os.path.split(path)
            flags = self.rng.choice(["", "S", "FS", "RST"])
            os.rename(path, f"{os.path.dirname(directory)}/cur/{name.partition(':')[0]}:2,{flags}")

    def move(self) -> None:
        if path := self.message():
            os.rename(path, f"{self.directory()}/cur/{os.path.basename(path).partition(':')[0]}:2,S")

    def delete(self) -> None:
        for _ in range(self.rng.choice([1, 1, 5, 50])):
            if path := self.message():
                os.unlink(path)

    def delete_folder(self) -> None:
        maildir = self.world.maildir(self.rng.choice(BOXES))
        shutil.rmtree(f"{maildir}/{self.rng.choice(FOLDERS[2:])}", ignore_errors=True)

    def delete_mailbox(self) -> None:
        shutil.rmtree(os.path.dirname(self.world.maildir(self.rng.choice(BOXES))))

    def change_file(self) -> None:
        write(f"{self.world.home}/{self.rng.choice(FILES)}", self.rng.choice(BODIES))

    def delete_file(self) -> None:
        path = f"{self.world.home}/{self.rng.choice(FILES)}"
        if os.path.exists(path):
            os.unlink(path)

    def wait(self) -> None:
        """Long enough for the stamps of directories to prove something."""
        self.world.settle()

    # -- runs

    def run(self) -> None:
        result = self.world.backup(rescan=self.rng.random() < 0.2, accept_shrink=True)
        assert result.outcome in ("complete", "explained"), (self.told, result.findings)
        self.certain = True
        self.world.check_clean()
        self.world.check_restores(result.seq)
        self.world.check_no_waste()

    def run_and_not_read(self) -> None:
        """One mailbox cannot be read: it stays as the last snapshot has it."""
        if not self.certain:
            return
        box, before = self.rng.choice(BOXES), self.world.recall(self.world.committed()[-1])
        read = MailboxCapture.read

        def fails(capture: MailboxCapture) -> None:
            if capture.found.address == box:
                raise Unreadable("Input/output error")
            read(capture)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MailboxCapture, "read", fails)
            result = self.world.backup(accept_shrink=True)
        mail, home = self.world.look()
        if box in mail:
            assert result.outcome == "incomplete", self.told
            kept = {box: before.mail[box]} if box in before.mail else {}
            self.world.correct(result.seq, Look({key: files for key, files in mail.items() if key != box} | kept, home))
        self.world.check_clean()
        self.world.check_restores(result.seq)
        self.world.check_blocks()

    def run_and_die(self) -> None:
        crash = CrashPoint(self.rng.randrange(1, 40), after=self.rng.random() < 0.5)
        self.world.store_hook = lambda store: CrashingStore(store, crash)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(writer, "CHECKPOINT_BYTES", self.rng.choice([0, 1 << 40]))
                self.world.backup(accept_shrink=True)
        except Crash:
            self.certain = False
        self.world.store_hook = None

    # -- accidents of the state

    def lose_state(self) -> None:
        shutil.rmtree(self.world.state, ignore_errors=True)
        self.certain = False

    def rebuild_state(self) -> None:
        app.state_rebuild(self.world.context)
        self.certain = False

    def save_state(self) -> None:
        self.world.save("saved", "state")

    def put_state_back(self) -> None:
        """The state of an earlier day."""
        if os.path.exists(f"{self.world.root}/saved"):
            self.world.put_back("saved", "state")
            self.certain = False


WEIGHTS = {
    History.deliver: 8, History.deliver_many: 2, History.flag: 4, History.move: 4, History.delete: 4, History.delete_folder: 1,
    History.delete_mailbox: 1, History.change_file: 3, History.delete_file: 1, History.wait: 3, History.run: 8, History.run_and_not_read: 1,
    History.run_and_die: 3, History.lose_state: 1, History.rebuild_state: 1, History.save_state: 2, History.put_state_back: 2,
}  # fmt: skip


@pytest.mark.parametrize("seed", range(100 if CAMPAIGN else 3))
def test_random_history(tmp_path, seed):
    History(tmp_path, seed).play(120 if CAMPAIGN else 45)
