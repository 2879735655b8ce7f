"""What a fault of the self-test is: how it is brought about, and what must follow on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from mvla_daemon.core.messages import Reason

Way: TypeAlias = tuple[str, ...]
"""A script, one step after the other:

* `ground ORDER`, `policy ORDER`: an order to the robot's side, or to the saboteur in the policy process;
* `signal gate NAME`, `signal policy NAME`: a signal to that process;
* `operator WORD`: what an operator may ask for;
* `pause MS`;
* `await stop`, `await REASON`: until that STOP is on the wire; `await told`: until the daemon has told of a stop;
  `await rest`: until it stands and waits; `await end`: until it has ended.
"""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Within how many ms a STOP has to be there; None where nothing is promised.

    `late` is its first byte after the deadline, by the gate's clock; `wire` is last VELOCITY to STOP at the far end.
    """

    late_p50_ms: float
    late_p99_ms: float | None = None
    wire_p99_ms: float | None = None

    def later_by(self, ms: float) -> Bounds:
        """The same, each so much later."""
        p99, wire = (None if most is None else most + ms for most in (self.late_p99_ms, self.wire_p99_ms))
        return Bounds(self.late_p50_ms + ms, p99, wire)


@dataclass(frozen=True, slots=True)
class Fault:
    """A row of the table of faults; `ways` are taken in turn.

    `reasons` are those that the first STOP may have, and `last` is the one that the stop has to come to. `silences`:
    not even a VELOCITY that was under way may follow. `unanswered_ms` is for how long the STOP gets no answer.
    `large_mib` is how much memory the policy process holds. `exit_code` is what the daemon ends with, where the fault
    ends it. `not_here` says why it cannot be brought about on this machine.
    """

    row: str
    what: str
    ways: tuple[Way, ...] = ()
    reasons: frozenset[Reason] = frozenset()
    last: Reason | None = None
    tries: int = 3
    bounds: Bounds | None = None
    must_stop: bool = True
    silences: bool = False
    unanswered_ms: float = 0
    large_mib: int = 0
    exit_code: int | None = None
    not_here: str = ""
