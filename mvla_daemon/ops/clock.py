"""The machine's time, and waiting in it: the gate's only sources of both."""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from typing import Protocol

from mvla_daemon.core.messages import SECOND


class Clock(Protocol):
    """What the gate needs of time; `sim/lockstep.py` has one whose time is simulated."""

    def now_ns(self) -> int:
        """CLOCK_MONOTONIC."""

    def suspended_ns(self) -> int:
        """How long the machine has been suspended, up to an offset that never changes."""

    def wait(self, fds: Sequence[int], until_ns: int) -> set[int]:
        """Those of `fds` that are readable; returns at `until_ns` at the latest."""


class MachineClock:
    """The real one."""

    now_ns = staticmethod(time.monotonic_ns)

    def suspended_ns(self) -> int:
        """CLOCK_BOOTTIME goes on while the machine is suspended, CLOCK_MONOTONIC does not."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()

    def wait(self, fds: Sequence[int], until_ns: int) -> set[int]:
        """As the protocol says; select() and not poll(), which rounds up to whole milliseconds."""
        return set(select.select(fds, [], [], max(0, until_ns - time.monotonic_ns()) / SECOND)[0])
