"""A test during which the machine itself stood still is made once more if it failed: counted, named, and only a few.

A virtual machine whose host takes its processors away for a tenth of a second misses every deadline there is, and no
test can tell that from a fault. So all processors are watched from outside, by threads that precede everything.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

from mvla_daemon.ops.standstill import StandstillWatch

if TYPE_CHECKING:
    from collections.abc import Callable

MS = 1_000_000
SLEEP_NS = 5 * MS
STANDSTILL_NS = 20 * MS
"""The shortest that counts: one deadline."""
MOST = 5
"""So many tests of a run may be made once more."""
FAILED = (Exception, pytest.fail.Exception)


class OnceMore:
    """A plugin of pytest; `run` is for tests that are called on threads of their own.

    `is_elsewhere` tells those tests, which the plugin leaves alone. The watchers are children of a thread of their own,
    so that a test does not take them for its own.
    """

    def __init__(self, is_elsewhere: Callable[[pytest.Item], bool]) -> None:
        self._is_elsewhere = is_elsewhere
        self._watch = StandstillWatch(SLEEP_NS)
        self._thread = ThreadPoolExecutor(1)
        self._began_ns = 0
        self.made: list[str] = []

    def run(self, name: str, test: Callable[[], None]) -> None:
        """Call a test, and once more if it fails and there is a reason."""
        began_ns = time.monotonic_ns()
        try:
            test()
        except FAILED:
            if not self._is_granted(name, began_ns):
                raise
            test()

    def _is_granted(self, name: str, began_ns: int) -> bool:
        stood_ns = self._thread.submit(self._watch.longest_ns, began_ns, time.monotonic_ns()).result()
        if stood_ns < STANDSTILL_NS or len(self.made) == MOST:
            return False
        self.made.append(f"{name}: the machine stood still for {stood_ns / MS:.0f} ms")
        return True

    # --- pytest's names ---

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if not session.config.option.collectonly:
            self._began_ns = time.monotonic_ns()
            self._thread.submit(self._watch.__enter__).result()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        began_ns = time.monotonic_ns()
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        failed = any(report.failed for report in reports) and not self._is_elsewhere(item)
        if failed and self._is_granted(item.nodeid, began_ns):
            item._initrequest()  # pytest has no other name for it
            reports = runtestprotocol(item, log=False, nextitem=nextitem)
        for report in reports:
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_sessionfinish(self) -> None:
        if self._began_ns:
            ended_ns = time.monotonic_ns()
            self._longest_ns = self._thread.submit(self._watch.longest_ns, self._began_ns, ended_ns).result()
            self._watch.__exit__(None, None, None)
        self._thread.shutdown()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._began_ns and not self._watch.refusal:
            terminalreporter.write_line(f"the machine stood still for at most {self._longest_ns / MS:.0f} ms")
        for made in self.made:
            terminalreporter.write_line(f"made once more: {made}", yellow=True)
