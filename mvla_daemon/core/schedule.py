"""When cycles begin and when they must have ended, by the gate's clock.

`S_k = min(announced, receipt)` is the start of cycle k, so that a start can't lie in the future, and
`D_k = min(S_k, S_{k-1} + T) + deadline` is when its command must be in the gate's hands, so that silence can't push it
back. Each start is for one command, and one start at a time is outstanding.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from mvla_daemon.core.messages import MS

HOLD_GRACE_NS = 1 * MS
"""How long after T a hold waits for a frame that is only a little late (a camera's own jitter)."""


class Turn(Enum):
    """What a start or a command is, seen from the schedule."""

    EXPECTED = auto()
    PASSED = auto()
    """Of a cycle that is over: harmless, dropped and counted."""
    OUT_OF_TURN = auto()
    """Of a cycle that has not begun, or a second one: the policy process is not to be trusted."""


def hold_due_ns(last_start_ns: int, period_ns: int) -> int:
    """When the policy process begins a cycle without a new frame: T and a grace after the last start."""
    return last_start_ns + period_ns + HOLD_GRACE_NS


@dataclass(slots=True)
class CycleSchedule:
    """The gate's book of starts and deadlines; all times in nanoseconds of CLOCK_MONOTONIC."""

    period_ns: int
    allowed_ns: int
    """How long a cycle may take: `deadline_ms`."""
    last_cycle: int | None = None
    last_start_ns: int = 0
    outstanding: bool = False
    deadline_ns: int = 0
    """When the next command must be here, whether its cycle has begun or not."""

    def begin(self, start_ns: int) -> None:
        """Forget all cycles; `start_ns` stands as the last start, so the first one is expected within T of it."""
        self.last_cycle = None
        self.outstanding = False
        self.last_start_ns = start_ns
        self.deadline_ns = start_ns + self.period_ns + self.allowed_ns

    def start(self, cycle: int, announced_ns: int, now_ns: int) -> Turn:
        """Take note that a cycle has begun."""
        if self.last_cycle is not None:
            if cycle < self.last_cycle:
                return Turn.PASSED
            if self.outstanding or cycle != self.last_cycle + 1:
                return Turn.OUT_OF_TURN
        start_ns = min(announced_ns, now_ns)
        self.deadline_ns = min(start_ns, self.last_start_ns + self.period_ns) + self.allowed_ns
        self.last_cycle = cycle
        self.last_start_ns = start_ns
        self.outstanding = True
        return Turn.EXPECTED

    def finish(self, cycle: int) -> Turn:
        """Take note that a cycle's command is here; the next one is due at most T + deadline after its start."""
        if self.last_cycle is not None and cycle < self.last_cycle:
            return Turn.PASSED
        if cycle != self.last_cycle or not self.outstanding:
            return Turn.OUT_OF_TURN
        self.outstanding = False
        self.deadline_ns = self.last_start_ns + self.period_ns + self.allowed_ns
        return Turn.EXPECTED
