"""A table at the end: each kind of attack, how many were tried and how many held."""

from collections import Counter
from typing import Any

import pytest


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One row a test of this folder; its parameters are the attacks."""
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            if isinstance(report, pytest.TestReport) and "attacks/" in report.nodeid and report.when == "call":
                name = report.nodeid.partition("::")[2].partition("[")[0].removeprefix("test_").replace("_", " ")
                counts.setdefault(name, Counter())[outcome] += 1
    if counts:
        terminalreporter.write_sep("=", "attacks")
        width = max(map(len, counts))
        for name, found in counts.items():
            tried = sum(found.values())
            terminalreporter.write_line(f"{name:{width}}  {found['passed']:3} of {tried:3} held")
