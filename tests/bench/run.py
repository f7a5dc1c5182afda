"""Measure mailbackup against its peers on a made-up store. See README.md beside this file.

python -m tests.bench.run [--quick] [--tools borg,restic,mailbackup,floor] [--scenario office|small600k|spamassassin]
                          [--repeat 3] [--out FILE] [--keep]
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tests.bench import corpus, measure, peers, report
from tests.bench.measure import Command, Measured
from tests.bench.peers import Mailbackup, Tool, UnavailableError

TOOLS = ("borg", "restic", "mailbackup", "floor")


@dataclass(frozen=True)
class Scenario:
    name: str
    messages: int
    users: int
    profile: str
    steps: tuple[str, ...]
    bytes_a_message: int  # for the disk check only


SCENARIOS = {
    "office": Scenario("office", 60_000, 60, "office", ("first", "nightly", "restore_one", "restore_all", "verify"), 75_000),
    "small600k": Scenario("small600k", 600_000, 200, "small", ("first", "nightly", "restore_one", "verify"), 5_000),
    "spamassassin": Scenario("spamassassin", 6_046, 1, "", ("first", "restore_all"), 9_000),
}


def bench_dir() -> Path:
    path = Path(os.environ.get("MAILBACKUP_BENCH_DIR", ".bench")).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def say(text: str) -> None:
    print(text, flush=True)


@dataclass
class Bench:
    """One scenario with its tools; results are kept on disk after every step, so that a stopped run tells what it knew."""

    scenario: Scenario
    repeat: int
    where: Path
    tools: list[Tool]
    with_floor: bool
    results: report.Results = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    loads: list[float] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.where / self.scenario.name / "mail"

    @property
    def scratch(self) -> Path:
        return self.where / "work" / "scratch"

    # steps

    def run(self) -> None:
        for tool in self.tools:
            self.results[tool.name] = {"version_text": tool.version(), "when": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"}
            for _ in range(5):
                self.measured(tool.name, "version", tool.version_command())
        for step in self.scenario.steps:
            for number in range(1, self.repeat + 1):
                getattr(self, step)(number)
        if "restore_one" in self.scenario.steps:
            self.fetched()
        self.notes.append(f"load average after the measured commands: {min(self.loads):.1f} to {max(self.loads):.1f}")

    def first(self, number: int) -> None:
        for tool in list(self.tools):
            try:
                tool.fresh(self.store)
            except UnavailableError as error:
                self.leave_out(tool, str(error))
                continue
            measure.warm(self.store)
            self.of(tool, "first", tool.first())
            self.results[tool.name]["size_first"] = peers.repository_size(tool)
        if self.with_floor:
            self.floor()
        self.save()

    def floor(self) -> None:
        to = self.scratch / "floor.age"
        command = peers.floor(self.where, self.store, to)
        if command:
            measure.warm(self.store)
            self.measured("floor", "first", command)
            self.results["floor"]["size_first"] = to.stat().st_size
            self.results["floor"]["version_text"] = "floor = tar \\| zstd -T2 -3 \\| age"
            to.unlink()

    def nightly(self, number: int) -> None:
        say(f"night {number}: {generated(self.store, '--night', str(number))}")
        for tool in list(self.tools):
            measure.warm(self.store)
            self.of(tool, "nightly", tool.nightly())
            self.results[tool.name]["size_nightly"] = peers.repository_size(tool)
        self.save()

    def restore_one(self, number: int) -> None:
        maildir = self.median_mailbox()
        if number == 1:
            count, stored = measure.messages(self.store / maildir)
            self.notes.append(f"the one mailbox is the median one by bytes: {count:,} messages, {report.mib(stored)}")
        for tool in list(self.tools):
            self.restored(tool, "restore_one", maildir)
        self.save()

    def restore_all(self, number: int) -> None:
        for tool in list(self.tools):
            self.restored(tool, "restore_all", "")
        self.save()

    def verify(self, number: int) -> None:
        for tool in list(self.tools):
            measure.warm(tool.repository())
            self.measured(tool.name, "sha256", peers.sha256(tool.repository()))
            self.of(tool, "verify", tool.verify())
            deep = tool.verify_deep()
            if deep:
                self.measured(tool.name, "verify_deep", deep)
        self.save()

    def restored(self, tool: Tool, verb: str, maildir: str) -> None:
        to = self.scratch / "restored"
        peers.remake(to)
        measure.warm(tool.repository())
        done = self.of(tool, verb, tool.restore_one(maildir, to) if maildir else tool.restore_all(to))
        back, wanted = measure.messages(to), measure.messages(self.store / maildir)
        self.results[tool.name].setdefault("restored", {})[verb] = [back[0], wanted[0], back[1], wanted[1]]
        if done.ok and back != wanted:
            say(f"  {tool.name} brought back {back[0]:,} of {wanted[0]:,} messages, {back[1]:,} of {wanted[1]:,} bytes")
        # Not removed before the end: for five minutes ext4 looks at every inode that was deleted before it gives out a new one, up to
        # 400 µs a file, and whoever restores next would pay for it.
        to.rename(self.scratch / f"restored-{tool.name}-{verb}-{time.monotonic_ns()}")

    def fetched(self) -> None:
        """Bytes read for one mailbox, against a vault that holds nothing but that mailbox."""
        found = next((tool for tool in self.tools if isinstance(tool, Mailbackup)), None)
        record = self.results.get("mailbackup", {}).get("restore_one", [])
        if not found or not record:
            return
        bytes_fetched = Measured(**record[-1]).json().get("fetched", {}).get("bytes")
        single, maildir = Mailbackup(found.argv, self.where / "work" / "alone"), self.median_mailbox()
        source = self.where / "work" / "alone-mail"
        peers.remake(source)
        shutil.copytree(self.store / maildir, source / maildir)
        single.fresh(source)
        stored = measure.run(single.first(), self.scratch).json().get("bytes_stored")
        if bytes_fetched and stored:
            self.results["mailbackup"]["fetched_ratio"] = bytes_fetched / stored
            say(f"mailbackup fetched {bytes_fetched:,} bytes for a mailbox that alone takes {stored:,}: {bytes_fetched / stored:.3f}x")

    # helpers

    def of(self, tool: Tool, verb: str, command: Command) -> Measured:
        done = self.measured(tool.name, verb, command)
        if not done.ok:
            self.leave_out(tool, f"{verb}: exit {done.status}: {done.complaint[-500:]}")
        return done

    def measured(self, name: str, verb: str, command: Command) -> Measured:
        done = measure.run(command, self.scratch)
        self.loads.append(os.getloadavg()[0])
        self.results.setdefault(name, {}).setdefault(verb, []).append(done.record())
        memory = f"{report.mib(done.rss)} / {report.mib(done.tree_rss)}"
        say(f"{name:12} {verb:12} {done.seconds:9.2f} s   cpu {done.cpu_seconds:9.2f} s   memory {memory}")
        return done

    def leave_out(self, tool: Tool, why: str) -> None:
        say(f"  {tool.name} is left out from here on: {why}")
        self.notes.append(f"{tool.name} was left out from a failed step on: {why.splitlines()[0][:100]}")
        self.tools.remove(tool)

    def median_mailbox(self) -> str:
        """{domain}/{user}/Maildir of the mailbox with the median number of bytes."""
        mailboxes = sorted(self.store.glob("*/*/Maildir"), key=lambda path: (measure.size(path), path))
        return str(mailboxes[len(mailboxes) // 2].relative_to(self.store))

    def save(self) -> None:
        path = self.where / "results" / f"{self.scenario.name}.json"
        path.parent.mkdir(exist_ok=True)
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**old, **self.results}))


def generated(store: Path, *options: str) -> str:
    """In a process of its own: the harness has to stay small."""
    argv = [sys.executable, "-m", "tests.bench.generate", str(store), *options]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def make_store(scenario: Scenario, where: Path) -> str:
    """The scenario's store without any nights; one that is there already is taken. Returns what it is, in words."""
    store = where / scenario.name / "mail"
    if not scenario.profile:
        source = corpus.unpacked(where / "corpus")
        if source is None:
            raise UnavailableError("no corpus: set MAILBACKUP_CORPUS to the folder that holds spamassassin-publiccorpus/ or mail.tar.zst")
        return f"{corpus.as_maildir(source, store):,} messages as one mailbox, {report.mib(measure.size(store))}"
    wanted = {"messages": scenario.messages, "users": scenario.users, "seed": 1, "profile": scenario.profile, "nights": 0}
    facts = Path(f"{store}.json")
    if not facts.exists() or json.loads(facts.read_text()) != wanted:
        say(f"making the store: {wanted}")
        facts.unlink(missing_ok=True)
        shutil.rmtree(store, ignore_errors=True)
        store.parent.mkdir(parents=True, exist_ok=True)
        generated(store, "--messages", str(scenario.messages), "--users", str(scenario.users), "--profile", scenario.profile)
    return f"{scenario.messages:,} messages, {scenario.users} users, {report.mib(measure.size(store))} (profile {scenario.profile}, seed 1)"


def check_disk(scenario: Scenario, where: Path, tools: int) -> None:
    store = scenario.messages * scenario.bytes_a_message
    need = int(store * (2.2 + 0.9 * tools))
    free = report.disk(where)
    say(f"disk: about {need / 1e9:.1f} GB needed below {where}, {free / 1e9:.1f} GB free")
    if free < need:
        raise SystemExit("too little free disk; set MAILBACKUP_BENCH_DIR to a place with more")


def remembered(bench: Bench) -> None:
    """Borg's numbers of an earlier run, when this one left borg out; the report says so."""
    path = bench.where / "results" / f"{bench.scenario.name}.json"
    if any(tool.name == "borg" for tool in bench.tools) or not path.exists():
        return
    old = json.loads(path.read_text())
    if "borg" in old:
        bench.results["borg"] = old["borg"]
        bench.notes.append(f"borg's numbers are from an earlier run ({old['borg'].get('when', 'time unknown')})")


def alone(where: Path) -> TextIO:
    """One benchmark at a time in a bench directory: two would share repositories and disturb each other's times."""
    handle = (where / "lock").open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SystemExit(f"another benchmark runs in {where}; wait, or set MAILBACKUP_BENCH_DIR") from None
    return handle


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small store, once: does it work at all?")
    parser.add_argument("--tools", default=",".join(TOOLS), help="comma-separated; default %(default)s")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), default="office")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the tables there, as Markdown")
    parser.add_argument("--keep", action="store_true", help="keep repositories and restored files (the store is always kept)")
    return parser.parse_args()


def main() -> None:
    options, where = parsed(), bench_dir()
    lock = alone(where)
    scenario, repeat = SCENARIOS[options.scenario], options.repeat
    if options.quick:
        repeat = 1
        if scenario.profile:
            scenario = Scenario(f"{scenario.name}-quick", 2_000, 10, scenario.profile, scenario.steps, scenario.bytes_a_message)
    names = options.tools.split(",")
    try:
        tools = [peers.tool(name, where) for name in names if name != "floor"]
        check_disk(scenario, where, len(tools))
        store = make_store(scenario, where)
    except UnavailableError as error:
        raise SystemExit(str(error)) from None
    bench = Bench(scenario, repeat, where, tools, with_floor="floor" in names)
    remembered(bench)
    facts: dict[str, Any] = {"machine": report.machine(where), "store": store, "notes": bench.notes}
    facts["command"] = "python -m tests.bench.run " + " ".join(sys.argv[1:])
    facts["date"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    say(f"store: {store}\n" + "\n".join(facts["machine"]))
    try:
        bench.run()
    finally:
        if not options.keep:
            shutil.rmtree(where / "work", ignore_errors=True)
        lock.close()
    text = report.markdown(scenario.name, facts, bench.results, [name for name in TOOLS if name in bench.results])
    say("\n" + text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
