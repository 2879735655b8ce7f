"""How a simulated drive ended, as an exit code and a sentence for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvla_daemon.core.messages import SECOND
from mvla_daemon.errors import ExitCode
from mvla_daemon.sim.world import Outcome

if TYPE_CHECKING:
    from mvla_daemon.ops.errand import Ending

_FAILED = {
    Outcome.TOUCHED_BOX: "touched the box",
    Outcome.TOUCHED_OTHER_BOX: "touched the other box",
    Outcome.TOUCHED_CUP: "touched the cup",
    Outcome.TOUCHED_WALL: "touched a wall",
    Outcome.WRONG_SIDE: "passed the box on the wrong side",
    Outcome.TIMEOUT: "did not reach the cup",
}


def verdict(outcome: Outcome, duration_ns: int) -> Ending:
    """Exit code 0 for the cup, 75 for anything else, and what happened `duration_ns` after the first motion."""
    if outcome is Outcome.REACHED:
        return ExitCode.OK, f"The simulated robot reached the cup after {duration_ns / SECOND:.1f} s."
    if outcome is Outcome.RUNNING:
        return ExitCode.TRY_AGAIN, "The simulated drive came to no end; the log says why."
    return ExitCode.TRY_AGAIN, f"The simulated robot {_FAILED[outcome]} after {duration_ns / SECOND:.1f} s."
