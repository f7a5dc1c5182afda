"""`python -m tests.cases`: every acceptance case with the test that shows it, or the reason why there is none yet.

Tests name their cases by `@pytest.mark.case("M1", …)`. A case without a test and without a reason fails; so does a reason for a case that has a test.
"""

from __future__ import annotations

import os
import sys

import pytest

IDS = [str(number) for number in range(1, 49)] + [f"M{number}" for number in range(1, 18)]

REASONS: dict[str, str] = {
    "18": "standard input and command output are no sources in this version; dumps come with the system adapters",
    "23": "there are no locks in the store: the chain decides who was first (vault/test_conflict.py)",
    "40": "permissions of a store (no delete, write only) come with the S3 store",
    "42": "retention comes with upkeep",
    "43": "undelete comes with upkeep",
}


class Collector:
    """Collects which tests are marked with which case."""

    def __init__(self) -> None:
        self.found: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for mark in item.iter_markers("case"):
                for case in mark.args:
                    self.found.setdefault(case, []).append(item.nodeid.partition("[")[0])


def collect() -> dict[str, list[str]]:
    """Case → tests."""
    collector = Collector()
    with open(os.devnull, "w") as quiet:
        out, sys.stdout = sys.stdout, quiet
        try:
            status = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "tests"], plugins=[collector])
        finally:
            sys.stdout = out
    if status != pytest.ExitCode.OK:
        sys.exit(f"the tests cannot be collected ({status!r})")
    return collector.found


def main() -> int:
    """Print the table. Returns 1 when a case is missing or a name is unknown."""
    found = collect()
    wrong = [f"unknown case {case} in {tests[0]}" for case, tests in found.items() if case not in IDS]
    for case in IDS:
        tests = sorted(set(found.get(case, ())))
        if tests and case in REASONS:
            wrong.append(f"case {case} has a test and a reason why there is none")
        if not tests and case not in REASONS:
            wrong.append(f"case {case} has neither a test nor a reason")
        more = f" (+{len(tests) - 1})" if len(tests) > 1 else ""
        print(f"{case:>4}  {tests[0] + more if tests else 'no test: ' + REASONS.get(case, 'MISSING')}")
    print(f"{sum(case in found for case in IDS)} of {len(IDS)} cases have tests, {len(REASONS)} a reason", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
