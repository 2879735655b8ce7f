"""How many records were lost on the way to people, by who could not get rid of them.

`gate` and `policy`: the reporter was too slow for that process, or not there (of the policy process's, also those that
were too many). `log`: the journal, the terminal or the pipe did not take them.

The gate answers `status` without asking anybody, so the reporter keeps its counts on a board that the gate can see.
"""

from __future__ import annotations

import mmap

from mvla_daemon import sealed_memory
from mvla_daemon.core.messages import SECOND

SINKS = ("gate", "policy", "log")
_COUNT_BYTES = 8
BOARD_BYTES = len(SINKS) * _COUNT_BYTES
RECORDS_PER_S = 100
"""Of what the policy process says, in the long run. The journal throws away what exceeds 10,000 records of a unit in 30
seconds, which would then be the gate's records too."""
BURST = 5000


def create_drop_board() -> int:
    """The descriptor of a new board, on which nothing is counted yet."""
    return sealed_memory.create("mvla-drops", BOARD_BYTES)


class DropBoard:
    """The counts behind a descriptor, each in one machine word: one side writes, the other reads."""

    def __init__(self, fd: int) -> None:
        self._counts = memoryview(mmap.mmap(fd, BOARD_BYTES)).cast("Q")

    def add(self, sink: str, count: int) -> None:
        """So many more."""
        self.put(sink, self._counts[SINKS.index(sink)] + count)

    def put(self, sink: str, total: int) -> None:
        """So many in all."""
        self._counts[SINKS.index(sink)] = total

    def totals(self) -> dict[str, int]:
        """What each has lost so far."""
        return dict(zip(SINKS, self._counts, strict=True))


class Allowance:
    """How much may be said: `RECORDS_PER_S`, and `BURST` at once."""

    def __init__(self, now_ns: int) -> None:
        self._left = float(BURST)
        self._now_ns = now_ns

    def allows(self, now_ns: int) -> bool:
        """Whether one more is allowed, which then counts."""
        earned = (now_ns - self._now_ns) * RECORDS_PER_S / SECOND
        self._left, self._now_ns = min(self._left + earned, float(BURST)), now_ns
        if self._left < 1:
            return False
        self._left -= 1
        return True
