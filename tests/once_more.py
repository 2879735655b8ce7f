"""A test during which the machine itself stood still is made once more if it failed: counted, named, and only a few.

A virtual machine whose host takes its processors away for a tenth of a second misses every deadline there is, and so
does a kernel that carries no byte through a terminal; no test can tell that from a fault. So both are watched from
outside, by processes that precede everything.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from _pytest.runner import runtestprotocol

from mvla_daemon.ops.standstill import StandstillWatch
from tests.rig import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

MS = 1_000_000
SLEEP_NS = 5 * MS
STANDSTILL_NS = 20 * MS
"""The shortest that counts: one deadline."""
MOST = 5
"""So many tests of a run may be made once more."""
FAILED = (Exception, pytest.fail.Exception)


class Terminals:
    """Bytes that were slow through a terminal, by `tests/slow_terminals.py`."""

    def __init__(self) -> None:
        self._slow: list[tuple[int, int]] = []
        self._pending = b""

    def __enter__(self) -> Self:
        words = [sys.executable, "-m", "tests.slow_terminals", str(os.getpid())]
        self._process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self._fd = self._process.stdout.fileno()
        os.set_blocking(self._fd, False)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def longest_ns(self, began_ns: int, ended_ns: int) -> int:
        with suppress(BlockingIOError):
            while data := os.read(self._fd, 65536):
                *lines, self._pending = (self._pending + data).split(b"\n")
                self._slow += [(int(sent), int(there)) for sent, there in (line.split() for line in lines)]
        return max((there - sent for sent, there in self._slow if sent < ended_ns and there > began_ns), default=0)


class OnceMore:
    """A plugin of pytest; `run` is for tests that are called on threads of their own.

    `is_elsewhere` tells those tests, which the plugin leaves alone. The watchers are children of a thread of their own,
    so that a test does not take them for its own.
    """

    def __init__(self, is_elsewhere: Callable[[pytest.Item], bool]) -> None:
        self._is_elsewhere = is_elsewhere
        self._watch = StandstillWatch(SLEEP_NS)
        self._terminals = Terminals()
        self._thread = ThreadPoolExecutor(1)
        self._began_ns = 0
        self._made: list[str] = []

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
        return self._thread.submit(self._grant, name, began_ns).result()

    def _grant(self, name: str, began_ns: int) -> bool:
        """On the one thread, so that two tests that fail together are counted one after the other."""
        longest_ns, what = self._look(began_ns)
        if longest_ns < STANDSTILL_NS or len(self._made) >= MOST:
            return False
        self._made.append(f"{name}: {what}")
        return True

    def _look(self, began_ns: int) -> tuple[int, str]:
        """What kept the machine from running for longest since then, and that in words."""
        now_ns = time.monotonic_ns()
        stood_ns, slow_ns = self._watch.longest_ns(began_ns, now_ns), self._terminals.longest_ns(began_ns, now_ns)
        stood, slow = f"the machine stood still for {stood_ns / MS:.0f} ms", f"a terminal for {slow_ns / MS:.0f} ms"
        return max(stood_ns, slow_ns), f"{stood}, {slow}"

    def _start(self) -> None:
        self._began_ns = time.monotonic_ns()
        self._watch.__enter__()
        self._terminals.__enter__()

    def _end(self) -> None:
        self._longest = self._look(self._began_ns)[1]
        self._terminals.__exit__()
        self._watch.__exit__(None, None, None)

    # --- pytest's names ---

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        if not session.config.option.collectonly:
            self._thread.submit(self._start).result()

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
            self._thread.submit(self._end).result()
        self._thread.shutdown()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._began_ns and not self._watch.refusal:
            terminalreporter.write_line(f"at most, {self._longest}")
        for made in self._made:
            terminalreporter.write_line(f"made once more: {made}", yellow=True)
