"""Measure what each kind of store costs. See README.md beside this file.

python -m tests.bench.stores [--messages 15000] [--users 20] [--repeat 3] [--only first,nightly,mailbox,message,copy,ledger] [--out FILE] [--keep]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mailbackup import access, app, config
from tests.bench import measure, peers, report
from tests.bench.measure import Command, Measured
from tests.bench.peers import Mailbackup
from tests.bench.run import alone, bench_dir, generated, say
from tests.stores.borg.server import BORG, ssh_repository
from tests.stores.s3.proxy import Proxy
from tests.stores.s3.server import Weed, weed_server

LATENCY = 0.08  # seconds before each request to the distant server
STEPS = ("first", "nightly", "mailbox", "message", "copy", "ledger")
AGES = (3, 40)  # entries of the ledger before the nights that are compared
KINDS = ("directory", "S3, 0 ms", "S3, 80 ms", "borg", "borg+ssh")
ONCE = ("borg+ssh",)  # seconds for each call of borg: one round tells enough
SETTLE = 2.5  # seconds after which the stamps of directories prove something; a real night ends hours before the next run


@dataclass
class Host(Mailbackup):
    """A host whose only store is at `url`."""

    url: str = ""

    def fresh(self, store: Path) -> None:
        """Make it anew; every attempt needs a url of its own."""
        peers.remake(self.home)
        pattern, kit = f"{store}/{{domain}}/{{user}}/Maildir", str(self.home / "kit.txt")
        peers.prepare(
            self._command(
                "init", "--yes", "--mail", pattern, "--store", self.url, "--kit-out", kit, "--no-passphrase", "--host", "mx1.example.org"
            )
        )

    def night(self) -> Command:
        """The job that runs every night: backup, read-back, scrub."""
        return self._command("job", "run", "nightly", "--json")

    def on_empty_machine(self, command: Command) -> Command:
        """The same where nothing is known of the vault: after a disaster, and with the kit alone."""
        state = self.home / "empty-state"
        shutil.rmtree(state, ignore_errors=True)
        argv = [str(state) if word == str(self.home / "state") else word for word in command.argv]
        return Command(argv, command.env, command.cwd, command.good)

    def message(self, address: str, wanted: str) -> Command:
        """One message."""
        return self._command("show", address, wanted, "--identity", str(self.home / "kit.txt"), "--json")

    def copy_to(self, name: str) -> Command:
        """Fill another store from the first one; the others, filled before, are left alone."""
        first = config.load(str(self.home / "mailbackup.toml"))[0].stores[0].name
        return self._command("copy", "--from", first, "--to", name, "--json")

    def add_store(self, name: str, url: str) -> None:
        """One more `[[store]]`."""
        path = str(self.home / "mailbackup.toml")
        found, _ = config.load(path)
        fields = {one: getattr(found, one) for one in found.__struct_fields__}
        fields["stores"] = (*found.stores, config.store_from_url(name, url))
        with open(path, "w", encoding="utf-8") as file:
            file.write(config.render(type(found)(**fields)))

    def context(self) -> access.Context:
        """What commands get, on an empty machine."""
        found, path = config.load(str(self.home / "mailbackup.toml"))
        state = str(self.home / "empty-state")
        shutil.rmtree(state, ignore_errors=True)
        return access.Context(config=found, config_path=path, state_dir=state, identity_file=str(self.home / "kit.txt"))


@dataclass
class Bench:
    """All steps. `records` are everything that was measured, raw: (step, who, facts)."""

    where: Path
    repeat: int
    weed: Weed
    near: Proxy
    far: Proxy
    ssh: Any  # of `ssh_repository`: makes one more below a directory
    records: list[dict[str, Any]] = field(default_factory=list)
    hosts: dict[str, Host] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        """The mail."""
        return self.where / "stores" / "mail"

    @property
    def work(self) -> Path:
        """Everything that may go afterwards."""
        return self.where / "stores" / "work"

    # ------------------------------------------------------------ steps

    def first(self) -> None:
        """First snapshots, each to a store that is new; and borg by itself."""
        for number in range(self.repeat):
            order = ["directory", "S3", "borg", "borg create"]
            for who in order[number % 4 :] + order[: number % 4]:  # nobody is always the one after the same neighbour
                measure.warm(self.store)
                command = self._plain_borg() if who == "borg create" else self._fresh_host("first", who).first()
                self.measured("first", who, command)

    def _plain_borg(self) -> Command:
        """`borg create` of the mail, as borg comes: lz4, files cache; only that nothing is sealed."""
        home = self.work / "plain"
        peers.remake(home)
        env = {"BORG_BASE_DIR": str(home / "base"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
        peers.prepare(Command([BORG, "init", "-e", "none", str(home / "repo")], env))
        return Command([BORG, "create", f"{home}/repo::1", str(self.store)], env)

    def nightly(self) -> None:
        """The same nights for every kind of store, one after another."""
        self._standing_hosts()
        for number in range(1, self.repeat + 1):
            say(f"night {number}: {generated(self.store, '--night', str(number))}")
            time.sleep(SETTLE)
            shift = number % len(KINDS)
            for kind in (one for one in KINDS[shift:] + KINDS[:shift] if in_round(one, number)):
                measure.warm(self.store)
                with self._far_away():
                    done = self.measured("nightly", kind, self.hosts[kind].night())
                self.records[-1]["parts"] = {part["name"]: part["seconds"] for part in done.json().get("parts", [])}
                say(f"{'':24} {self.records[-1]['parts']}")
        for kind in ONCE:  # what follows compares with the mail as it is now
            measure.run(self.hosts[kind].first(), self.work / "scratch")

    def mailbox(self) -> None:
        """The mailbox with the median number of bytes and the largest one, on an empty machine."""
        self._standing_hosts()
        mailboxes = sorted(self.store.glob("*/*/Maildir"), key=lambda path: (measure.size(path), path))
        for name, path in (("median", mailboxes[len(mailboxes) // 2]), ("largest", mailboxes[-1])):
            maildir = str(path.relative_to(self.store))
            stored = self._stored_alone(maildir)
            for number in range(1, self.repeat + 1):
                for kind in (one for one in KINDS if in_round(one, number)):
                    to = self.work / f"restored-{time.monotonic_ns()}"
                    host = self.hosts[kind]
                    with self._far_away():
                        done = self.measured(f"mailbox, {name}", kind, host.on_empty_machine(host.restore_one(maildir, to)))
                    whole = measure.messages(to) == measure.messages(path)
                    fetched = done.json().get("fetched", {})
                    self.records[-1] |= {"fetched": fetched, "ratio": fetched.get("bytes", 0) / stored, "whole": whole}
                    say(f"{'':24} fetched {fetched}, {self.records[-1]['ratio']:.3f} of what it stores alone; whole: {whole}")

    def _stored_alone(self, maildir: str) -> int:
        """Bytes that a vault stores which holds nothing but this mailbox."""
        host, source = Host(peers.ours(), self.work / "alone", url=f"file://{self.work}/alone/vault"), self.work / "alone-mail"
        peers.remake(source)
        shutil.copytree(self.store / maildir, source / maildir)
        host.fresh(source)
        return int(measure.run(host.first(), self.work / "scratch").json()["bytes_stored"])

    def message(self) -> None:
        """One message on an empty machine, and with the state of the host at hand."""
        self._standing_hosts()
        domain, user, _ = str(sorted(self.store.glob("*/*/Maildir"))[0].relative_to(self.store)).split("/")
        address = f"{user}@{domain}"
        for kind in KINDS:
            host = self.hosts[kind]
            listed = app.messages(host.context(), address)
            wanted = sorted(listed, key=lambda one: one.size)[len(listed) // 2].id
            for _ in range(1 if kind in ONCE else self.repeat):
                with self._far_away():
                    self.measured("message, empty machine", kind, host.on_empty_machine(host.message(address, wanted)))
                    self.measured("message, on the host", kind, host.message(address, wanted))
            self._second_message(kind, host, address, [one.id for one in listed])

    def _second_message(self, kind: str, host: Host, address: str, ids: list[str]) -> None:
        """Requests and bytes inside one process: the first message, then further ones with the listing of the mailbox at hand."""
        with self._far_away(), app.use_vault(host.context()) as (reader, traffic):
            proxy = self._proxy(kind)
            for n in range(6):
                self._forget()
                before, began = (traffic.requests, traffic.bytes_read), time.perf_counter()
                if n == 0:
                    _, tree = reader.mailbox(reader.snapshot(reader.find("latest")), address)
                app.message_bytes(reader, tree, ids[(len(ids) // 6) * n])
                facts = {
                    "seconds": time.perf_counter() - began,
                    "requests": traffic.requests - before[0],
                    "read": traffic.bytes_read - before[1],
                }
                if proxy:
                    facts["http"] = len(proxy.requests)
                self.records.append({"step": "message in process, " + ("first" if n == 0 else "further"), "who": kind, "ok": True, **facts})
                say(f"{'in process':24} {kind:12} {facts}")

    def copy(self) -> None:
        """From a directory to what is empty."""
        self._standing_hosts(("directory",))
        host = self.hosts["directory"]
        for number in range(1, self.repeat + 1):
            for kind in (one for one in ("directory", "S3", "borg", "borg+ssh") if in_round(one, number)):
                name = f"{slug(kind)}-{time.monotonic_ns()}"
                host.add_store(name, self._url(kind, self.work / f"copies-{name}"))
                done = self.measured("copy", kind, host.copy_to(name)).json()
                self.records[-1] |= {"bytes": done.get("copied_bytes", 0)}
                say(
                    f"{'':24} {done.get('copied_objects')} objects, {done.get('copied_bytes', 0) / self.records[-1]['seconds'] / 1e6:.0f} MB/s"
                )

    def ledger(self) -> None:
        """A night of a small vault when its ledger is short, and when it is longer: nothing but the requests grows."""
        mailboxes = sorted(self.store.glob("*/*/Maildir"), key=lambda path: (measure.size(path), path))
        small = self.work / "small-mail"
        peers.remake(small)
        shutil.copytree(mailboxes[0], small / mailboxes[0].relative_to(self.store))
        hosts = {kind: self._fresh_host("ledger", kind, small) for kind in ("S3, 0 ms", "S3, 80 ms")}
        entries = 1  # that of init
        for age in AGES:
            for _ in range(age - entries):
                for host in hosts.values():
                    measure.run(host.first(), self.work / "scratch")
            entries = age
            for _ in range(self.repeat):
                for kind, host in hosts.items():
                    with self._far_away():
                        self.measured(f"night at {age} entries", kind, host.night())
                entries += 1

    # ------------------------------------------------------------ hosts and stores

    def _standing_hosts(self, kinds: tuple[str, ...] = KINDS) -> None:
        """Hosts that have one snapshot of the mail, made when first asked for and kept."""
        for kind in kinds:
            if kind not in self.hosts:
                self.hosts[kind] = host = self._fresh_host("standing", kind)
                done = measure.run(host.first(), self.work / "scratch")
                say(f"{'set up':24} {kind:12} {done.seconds:9.2f} s")
                if not done.ok:
                    raise SystemExit(done.complaint)

    def _fresh_host(self, step: str, kind: str, mail: Path | None = None) -> Host:
        home = self.work / f"{step}-{slug(kind)}"
        peers.remake(home)
        host = Host(peers.ours(), home, url="")
        os.rename(home, f"{home}-old-{time.monotonic_ns()}")  # not removed: ext4 is slow for minutes after many files have gone
        home.mkdir()
        host.url = self._url(kind, self.work / f"{home.name}-store-{time.monotonic_ns()}")
        host.fresh(mail or self.store)
        return host

    def _url(self, kind: str, place: Path) -> str:
        """Of a store that is not there yet."""
        if kind == "directory":
            return f"file://{place}"
        if kind == "borg":
            return f"borg://{place}/repository?borg_path={BORG}&patience=20"
        if kind == "borg+ssh":
            box = self.ssh(place)
            return f"{box.url}?borg_path={BORG}&patience=20&rsh={box.rsh.replace(' ', '+')}"
        proxy = self._proxy(kind)
        return f"s3://{self.weed.bucket()}/mx1?endpoint={proxy.url if proxy else self.weed.url}&addressing=path&patience=60"

    def _proxy(self, kind: str) -> Proxy | None:
        return {"S3, 0 ms": self.near, "S3, 80 ms": self.far}.get(kind)

    @contextlib.contextmanager
    def _far_away(self) -> Iterator[None]:
        """While something is measured the distant server is distant; not while hosts are made."""
        self.far.latency = LATENCY
        try:
            yield
        finally:
            self.far.latency = 0.0

    def _forget(self) -> None:
        self.near.forget()
        self.far.forget()

    def measured(self, step: str, who: str, command: Command) -> Measured:
        """Run a command; processor time of the S3 server, and requests at the proxy, are kept apart."""
        self._forget()
        served = cpu_of(self.weed.pid)
        done = measure.run(command, self.work / "scratch")
        facts = {key: value for key, value in done.record().items() if key not in ("said", "complaint")}
        facts |= {"step": step, "who": who, "server_cpu": cpu_of(self.weed.pid) - served, "load": os.getloadavg()[0]}
        proxy = self._proxy(who)
        if proxy:
            facts |= {"http": len(proxy.requests), "in_flight": proxy.most_in_flight}
            facts |= {"asked": [f"{seen.method} {seen.path}" for seen in proxy.requests]}
        self.records.append(facts)
        over = f"   requests {facts['http']}, at once {facts['in_flight']}" if proxy else ""
        say(f"{step:24} {who:12} {done.seconds:7.2f} s   cpu {done.cpu_seconds:6.2f} s   server {facts['server_cpu']:6.2f} s{over}")
        if not done.ok:
            say(f"  exit {done.status}: {done.complaint}")
        return done


def in_round(kind: str, number: int) -> bool:
    """Whether this kind is measured in round `number`, counted from 1."""
    return number == 1 or kind not in ONCE


def slug(kind: str) -> str:
    """For paths and names of stores; a `+` would be a space in a url."""
    return re.sub("[^a-z0-9]+", "-", kind.lower())


def cpu_of(pid: int) -> float:
    """Seconds of processor time of a process so far, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---------------------------------------------------------------- the table


def rows(records: list[dict[str, Any]]) -> Iterator[str]:
    """One line for each step and kind: medians, raw times, processor time, requests."""
    yield "| step | store | median (raw), seconds | processor time, ours / S3 server | requests | at once |"
    yield "|---|---|---|---|---|---|"
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in records:
        if one["ok"]:
            seen.setdefault((one["step"], one["who"]), []).append(one)
    for (step, who), found in seen.items():
        cpu = f"{median(found, 'cpu_seconds'):.2f} / {median(found, 'server_cpu'):.2f}" if "cpu_seconds" in found[0] else "–"
        requests = "–" if "http" not in found[0] else f"{min(one['http'] for one in found)} to {max(one['http'] for one in found)}"
        at_once = str(max(one["in_flight"] for one in found)) if "in_flight" in found[0] else "–"
        yield f"| {step} | {who} | {report.seconds([one['seconds'] for one in found])} | {cpu} | {requests} | {at_once} |"


def ratios(records: list[dict[str, Any]], step: str, who: str, to: str) -> list[float]:
    """Of the times of `who` to those of `to`, round by round."""
    times = {name: [one["seconds"] for one in records if one["step"] == step and one["who"] == name and one["ok"]] for name in (who, to)}
    return [a / b for a, b in zip(times[who], times[to], strict=False)]


def differences(records: list[dict[str, Any]]) -> Iterator[str]:
    """The ratios that have a target, with their range over the rounds."""
    for who, to in (("S3", "directory"), ("borg", "borg create")):
        found = ratios(records, "first", who, to)
        if found:
            yield f"- first snapshot, {who} / {to}: {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"
    for step in dict.fromkeys(one["step"] for one in records):
        near, far = ([one["seconds"] for one in records if one["step"] == step and one["who"] == f"S3, {ms} ms"] for ms in (0, 80))
        more = [b - a for a, b in zip(near, far, strict=False)]
        if more:
            yield f"- {step}, with 80 ms: {statistics.median(more):+.2f} s ({min(more):+.2f} to {max(more):+.2f})"


def median(found: list[dict[str, Any]], key: str) -> float:
    """Of one fact."""
    return statistics.median(one[key] for one in found)


# ---------------------------------------------------------------- the program


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=15_000)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", default=",".join(STEPS), help="comma-separated; default %(default)s")
    parser.add_argument("--out", type=Path, help="write the tables there, as Markdown; the raw records beside it, as JSON")
    parser.add_argument("--keep", action="store_true", help="keep repositories and restored files")
    return parser.parse_args()


@contextlib.contextmanager
def prepared(where: Path, repeat: int) -> Iterator[Bench]:
    """Servers, proxies and an empty place to work in."""
    work = where / "stores" / "work"
    shutil.rmtree(work, ignore_errors=True)
    (work / "weed").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        weed = stack.enter_context(weed_server(str(work / "weed")))
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE"):
            os.environ.pop(name, None)
        os.environ |= weed.environment()
        near, far = (stack.enter_context(Proxy(weed.url)) for _ in range(2))
        yield Bench(where, repeat, weed, near, far, lambda place: stack.enter_context(ssh_repository(place)))


def main() -> None:
    options, where = parsed(), bench_dir()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers are stopped on the way out
    lock = alone(where)
    with prepared(where, options.repeat) as bench:
        shutil.rmtree(bench.store, ignore_errors=True)
        generated(bench.store, "--messages", str(options.messages), "--users", str(options.users))
        head = [*report.machine(where), f"- {options.messages:,} messages, {options.users} users, {report.mib(measure.size(bench.store))}"]
        head += [f"- {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, `python -m tests.bench.stores {' '.join(sys.argv[1:])}`"]
        say("\n".join(head))
        try:
            for step in STEPS:
                if step in options.only.split(","):
                    getattr(bench, step)()
        finally:
            loads = [one["load"] for one in bench.records if "load" in one]
            head += [f"- load average after the measured commands: {min(loads):.1f} to {max(loads):.1f}"] if loads else []
            text = "\n".join([*head, "", *rows(bench.records), "", *differences(bench.records), ""])
            say("\n" + text)
            if options.out:
                options.out.write_text(text)
                options.out.with_suffix(".json").write_text(json.dumps(bench.records, indent=1))
    if not options.keep:
        shutil.rmtree(where / "stores" / "work", ignore_errors=True)
    lock.close()


if __name__ == "__main__":
    main()
