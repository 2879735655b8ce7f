"""Whether a run has proved each row of the table of faults: tests that are all skipped prove nothing.

Only a run that had every test of the table and came to its end is judged; of a selection nothing is said. Tests of
real devices (tests/os) and of a GPU are runs of their own: a row that has no others is named, and no failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import pytest

Rows: TypeAlias = Mapping[str, tuple[str, Sequence[str]]]
"""For each row what it says, and its tests' ids without parameters."""
APART = "tests/os/"


class RowsRun:
    """A plugin of pytest that follows a run."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._is_whole = True
        self._of_gpu: set[str] = set()
        self._ended: set[str] = set()
        self._why_skipped: dict[str, str] = {}
        self._unproved: list[str] = []
        self._apart: list[str] = []

    def pytest_deselected(self) -> None:
        self._is_whole = False

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        collected = {_test(item.nodeid) for item in session.items}
        tests = {test for _, row in self._rows.values() for test in row if not test.startswith(APART)}
        options = session.config.option
        self._is_whole &= tests <= collected and not options.collectonly and not options.setuponly
        self._of_gpu = {_test(item.nodeid) for item in session.items if item.get_closest_marker("gpu")}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._why_skipped[_test(report.nodeid)] = why.removeprefix("Skipped: ")
        elif report.when == "call":
            self._ended.add(_test(report.nodeid))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        came_to_its_end = session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
        if not self._is_whole or not came_to_its_end or session.shouldstop or session.shouldfail:
            return
        for number, (says, tests) in self._rows.items():
            if not self._ended & set(tests):
                self._judge(f"{number} ({says})", tests)
        if self._unproved:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _judge(self, row: str, tests: Sequence[str]) -> None:
        here = [test for test in tests if not test.startswith(APART)]
        if not here:
            self._apart.append(f"{row} has no test in this run: `make test-os` has")
        elif self._of_gpu.issuperset(here):
            self._apart.append(f"{row} has no test in this run: it takes a GPU")
        else:
            why = self._why_skipped.get(here[0], "it did not come to its end")
            self._unproved.append(f"{row} is not proved: none of its tests ran to its end, {here[0]}: {why}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self._apart:
            terminalreporter.write_line(line, yellow=True)
        for line in self._unproved:
            terminalreporter.write_line(line, red=True)


def _test(node: str) -> str:
    return node.partition("[")[0]
