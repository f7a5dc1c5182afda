"""What was measured, as Markdown for docs/performance.md: raw times, medians, ratios, and beside them the numbers to reach."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

VERBS = {
    "version": "`--version`",
    "first": "first snapshot",
    "nightly": "nightly",
    "restore_one": "one mailbox",
    "restore_all": "everything",
    "verify": "verify",
    "verify_deep": "verify with the key",
    "sha256": "plain SHA-256 of the repository",
}
OWN_VERBS = [verb for verb in VERBS if verb not in {"version", "sha256"}]
Results = dict[str, dict[str, Any]]  # tool -> verb -> list of records; and "size", "info"


def times(results: Results, tool: str, verb: str) -> list[float]:
    return [one["seconds"] for one in results.get(tool, {}).get(verb, []) if one["ok"]]


def median(results: Results, tool: str, verb: str, key: str = "seconds") -> float | None:
    found = [one[key] for one in results.get(tool, {}).get(verb, []) if one["ok"]]
    return statistics.median(found) if found else None


def ratio(results: Results, tool: str, verb: str) -> float | None:
    """How many times faster than borg."""
    borg, own = median(results, "borg", verb), median(results, tool, verb)
    return borg / own if borg and own else None


def machine(bench: Path) -> list[str]:
    model = next((line.split(":", 1)[1].strip() for line in read("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = next((int(line.split()[1]) >> 20 for line in read("/proc/meminfo") if line.startswith("MemTotal")), 0)
    kind = subprocess.run(["findmnt", "-n", "-o", "FSTYPE", "-T", str(bench)], capture_output=True, text=True, check=False).stdout.strip()
    return [
        f"- {model}, {os.cpu_count()} cores, {memory} GiB memory, {kind}, Linux {platform.release().partition('-')[0]}",
        f"- Python {platform.python_version()}; load average at the start {os.getloadavg()[0]:.1f}",
    ]


def read(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def mib(value: float | None) -> str:
    return "–" if value is None else f"{value / (1 << 20):,.0f} MiB"


def seconds(values: list[float]) -> str:
    if not values:
        return "–"
    raw = ", ".join(f"{one:.2f}" for one in values)
    return f"**{statistics.median(values):.2f} s**" + (f" ({raw})" if len(values) > 1 else "")


def times_table(results: Results, tools: list[str]) -> list[str]:
    lines = ["| median (raw), seconds | " + " | ".join(tools) + " |", "|---" * (len(tools) + 1) + "|"]
    for verb, title in VERBS.items():
        if any(results.get(tool, {}).get(verb) for tool in tools):
            lines.append(f"| {title} | " + " | ".join(time_cell(results, tool, verb) for tool in tools) + " |")
    return lines


def time_cell(results: Results, tool: str, verb: str) -> str:
    records = results.get(tool, {}).get(verb, [])
    if records and not all(one["ok"] for one in records):
        return f"failed (exit {records[-1]['status']})"
    faster = ratio(results, tool, verb)
    return seconds(times(results, tool, verb)) + (f" = {faster:.2f}x" if faster and tool != "borg" else "")


def memory_table(results: Results, tools: list[str]) -> list[str]:
    lines = ["| processor time; largest process / all processes | " + " | ".join(tools) + " |", "|---" * (len(tools) + 1) + "|"]
    for verb, title in VERBS.items():
        if any(results.get(tool, {}).get(verb) for tool in tools):
            lines.append(f"| {title} | " + " | ".join(memory_cell(results, tool, verb) for tool in tools) + " |")
    return lines


def memory_cell(results: Results, tool: str, verb: str) -> str:
    records = [one for one in results.get(tool, {}).get(verb, []) if one["ok"]]
    if not records:
        return "–"
    cpu = statistics.median(one["cpu_seconds"] for one in records)
    return f"{cpu:.2f} s; {mib(max(one['rss'] for one in records))} / {mib(max(one['tree_rss'] for one in records))}"


def size_table(results: Results, tools: list[str]) -> list[str]:
    lines = ["| bytes stored | " + " | ".join(tools) + " |", "|---" * (len(tools) + 1) + "|"]
    for key, title in (("size_first", "after the first snapshot"), ("size_nightly", "after the nights")):
        if any(key in results.get(tool, {}) for tool in tools):
            lines.append(f"| {title} | " + " | ".join(size_cell(results, tool, key) for tool in tools) + " |")
    return lines


def size_cell(results: Results, tool: str, key: str) -> str:
    own, borg = results.get(tool, {}).get(key), results.get("borg", {}).get(key)
    if own is None:
        return "–"
    return mib(own) + (f" = {own / borg:.3f}x" if borg and tool != "borg" else "")


def restores(results: Results, tools: list[str]) -> list[str]:
    return [
        f"- {tool}, {VERBS[verb]}: {info[0]:,} of {info[1]:,} messages, {info[2]:,} of {info[3]:,} bytes"
        for tool in tools
        for verb, info in results.get(tool, {}).get("restored", {}).items()
    ]


def targets(results: Results, scenario: str) -> list[str]:
    """The numbers to reach beside what was reached; for reading, nothing is asserted."""
    own = results.get("mailbackup", {})
    if not own or scenario.endswith("-quick"):  # a small store reaches none of them: starting up is all it measures
        return []
    rows: list[tuple[str, float | None, float, bool]] = []  # what, reached, target, more is better
    size = own.get("size_first"), results.get("borg", {}).get("size_first")
    stored = size[0] / size[1] if size[0] and size[1] else None
    sha, verify = median(results, "mailbackup", "sha256"), median(results, "mailbackup", "verify")
    memory = max((one["rss"] for verb in OWN_VERBS for one in own.get(verb, [])), default=None)
    tree = max((one["tree_rss"] for verb in OWN_VERBS for one in own.get(verb, [])), default=None)
    limit = 400 if scenario.startswith("small600k") else 250
    if scenario.startswith("office"):
        rows += [("first snapshot, times faster than borg", ratio(results, "mailbackup", "first"), 3, True)]
        rows += [("vault / borg's repository", stored, 0.70, False)]
        rows += [("bytes fetched for one mailbox / its own stored bytes", own.get("fetched_ratio"), 1.1, False)]
        rows += [("one mailbox, times faster than borg", ratio(results, "mailbackup", "restore_one"), 2, True)]
        rows += [("everything, times faster than borg", ratio(results, "mailbackup", "restore_all"), 1.5, True)]
    if scenario == "spamassassin":
        rows += [("vault / borg's repository", stored, 1.05, False)]
    else:
        rows += [("nightly, times faster than borg", ratio(results, "mailbackup", "nightly"), 10 if limit == 400 else 5, True)]
        rows += [("keyless verify / speed of plain SHA-256", sha / verify if sha and verify else None, 0.7, True)]
        rows += [("peak memory, largest process, MB", memory / 1e6 if memory else None, limit, False)]
        rows += [("peak memory, all processes (shared pages counted again), MB", tree / 1e6 if tree else None, limit, False)]
    rows += [("`--version`, seconds", median(results, "mailbackup", "version"), 0.2, False)]
    lines = ["| number to reach | target | reached | |", "|---|---|---|---|"]
    for what, reached, target, more in rows:
        mark = "not measured" if reached is None else "yes" if (reached >= target if more else reached <= target) else "**no**"
        lines.append(f"| {what} | {'≥' if more else '≤'} {target:g} | {'–' if reached is None else f'{reached:.2f}'} | {mark} |")
    return lines


def markdown(scenario: str, facts: dict[str, Any], results: Results, tools: list[str]) -> str:
    shown = [tool for tool in tools if tool in results]
    versions = ", ".join(results[tool]["version_text"] for tool in shown if results[tool].get("version_text"))
    lines = [f"## {scenario}", "", f"`{facts['command']}`, {facts['date']}", "", *facts["machine"], f"- {versions}", f"- {facts['store']}"]
    lines += [f"- {note}" for note in facts["notes"]]
    for table in (targets(results, scenario), times_table(results, shown), size_table(results, shown), memory_table(results, shown)):
        if len(table) > 2:
            lines += ["", *table]
    back = restores(results, shown)
    return "\n".join([*lines, *(["", "Brought back:", "", *back] if back else []), ""])


def disk(bench: Path) -> int:
    return shutil.disk_usage(bench).free
