"""What the reporter adds to a record, at its leisure: what is usual, how the policy process is, who somebody is.

None of it may cost the gate anything, and all of it is for people: a user database may be asked over a network, and
the policy process's word on who it is is not doubted.
"""

from __future__ import annotations

import pwd
from contextlib import suppress
from pathlib import Path
from typing import Any

from mvla_daemon.ops.statistics import Statistics, percentile

_TIMED = {"preprocess", "h2d", "compute", "d2h", "postprocess", "send"}
USUAL = 3000
"""How many of the newest cycles say what is usual: a minute at 50 Hz."""
_ASKED_FOR = {"operator", "shutdown"}
_STATES = {"T": "frozen", "t": "frozen", "Z": "ended", "X": "ended", "D": "waiting for a device"}
"""Of proc(5), those in which it computes nothing for longer than a moment."""


class Blame:
    """Completes records; `statistics` are of the cycles before them."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._policy_pid: int | None = None

    def complete(self, record: dict[str, Any]) -> None:
        """Add to the record, in place."""
        match record["event"], record.get("process"):
            case "realtime", "policy":
                pid = record.get("pid")
                self._policy_pid = pid if isinstance(pid, int) else None
            case "stop", _ if str(record.get("reason")) not in _ASKED_FOR:
                self._add_usual(record)
                self._add_state(record)
            case "operator", _:
                _add_user(record)

    def _add_usual(self, record: dict[str, Any]) -> None:
        stage = str(record.get("stage"))
        known = self._statistics.stage_ms(stage, USUAL) if stage in _TIMED else []
        if known:
            p99_ms = percentile(known, 99)
            record["stage_p99_us"] = round(p99_ms * 1000)
            record["message"] += f" (p99 is {p99_ms:.1f} ms)"

    def _add_state(self, record: dict[str, Any]) -> None:
        """How the process is a moment after the stop."""
        if self._policy_pid is None:
            return
        try:
            stat = Path(f"/proc/{self._policy_pid}/stat").read_text("ascii", "replace")
            state = _STATES.get(stat.rpartition(")")[2].split()[0])
        except (OSError, IndexError):
            state = "ended"
        if state is not None:
            record["policy_process"] = state
            record["message"] += (
                f"; the policy process is {state}" if state != "ended" else "; the policy process is gone"
            )


def _add_user(record: dict[str, Any]) -> None:
    uid = record.get("operator_uid")
    if isinstance(uid, int):
        with suppress(KeyError, OverflowError, OSError):
            record["operator"] = pwd.getpwuid(uid).pw_name
            record["message"] = record["message"].replace(f"user {uid}", f"user {record['operator']} ({uid})", 1)
