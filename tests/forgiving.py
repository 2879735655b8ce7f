"""What a busy machine is forgiven: stops that it can bring about by itself. They are counted over the whole run.

A try that was spoiled so is made again, a few times. Where too many were, that is no machine's fault: the run fails.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.wire import WireFrame

Result = TypeVar("Result")
TRIES = 4
STARVED = {1: "deadline_missed", 2: "frame_stale"}
"""Why a drive is stopped first where the policy process or the camera gets no time to run."""
HELD_UP = {10: "controller_lost", 12: "controller_fault"}
"""And where the controller gets none, so that it is silent for 100 ms or a command's ttl runs out; see `excuse`."""
GAP_MS = 60
"""Two STATUS left out: a command may be 50 ms old before it is held up, and its ttl is 120 ms."""
SHARE, LEAST = 0.05, 3


def excuse(reason: int, statuses: Sequence[WireFrame]) -> str:
    """The name of a stop's reason if a busy machine can be to blame, else "".

    For one of the controller's it is only where the controller's own times show that it was held up: in `statuses`, all
    that it has said since just before, whether anybody heard it or not.
    """
    if reason in HELD_UP:
        uptimes = [status.number("uptime_ms") for status in statuses]
        return HELD_UP[reason] if any(b - a >= GAP_MS for a, b in pairwise(uptimes)) else ""
    return STARVED.get(reason, "")


def again_if_held_up(attempt: Callable[[], Result], said: Callable[[Result], str]) -> Result:
    """What comes of a try, made again where `said` of it names a stop for a simulated controller that was held up."""
    for left in reversed(range(TRIES)):
        result = attempt()
        forgiven = next((name for name in HELD_UP.values() if left and f"STOP {name}" in said(result)), "")
        TALLY.count(forgiven)
        if not forgiven:
            break
    return result


class Tally:
    """What was forgiven of each try of a run. As a plugin of pytest it says so at the end; too much fails the run.

    Several threads count, so each count is one step: an entry in a list.
    """

    def __init__(self) -> None:
        self._tries: list[str] = []

    def count(self, forgiven: str) -> None:
        """One more try; `forgiven` is an excuse, or "" if it needs none."""
        self._tries.append(forgiven)

    def is_too_much(self) -> bool:
        return sum(map(bool, self._tries)) > max(LEAST, SHARE * len(self._tries))

    def __str__(self) -> str:
        forgiven = Counter(filter(None, self._tries))
        names = ", ".join(f"{name} {times}" for name, times in sorted(forgiven.items()))
        text = f"forgiven: {forgiven.total()} needless stops in {len(self._tries)} tries"
        return f"{text} ({names})" if names else text

    # --- pytest's names ---

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.is_too_much() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.is_too_much():
            terminalreporter.write_line(f"{self}: too many; is the machine busy, or is it the daemon?", red=True)
        elif self._tries:
            terminalreporter.write_line(str(self))


TALLY = Tally()
