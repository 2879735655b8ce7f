"""A fault to watch the daemon stop by: a signal to the policy process at some moment of a simulated drive."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from dataclasses import dataclass

from mvla_daemon.core.messages import MS, SECOND
from mvla_daemon.errors import DaemonError, ExitCode

THAW_AFTER_NS = 500 * MS
"""A process that SIGSTOP froze goes on after this long, so that the robot can be seen to arm and drive again.

That is before the gate begins to arm: one frozen for over a second would come back with the pictures of before, which
are those of a lost camera.
"""
_PATTERN = re.compile(r"(SIGSTOP|SIGKILL)@([0-9]{1,3}(?:\.[0-9]{1,9})?)s")


@dataclass(slots=True)
class Fault:
    """`number` is sent `at_ns` after the robot began to move, once."""

    number: signal.Signals
    at_ns: int
    _sent: bool = False
    _frozen_pid: int | None = None

    @classmethod
    def parse(cls, text: str) -> Fault:
        """From the command line's words, such as SIGSTOP@4s; raises DaemonError, USAGE."""
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise DaemonError(
                f"--fault {text!r}: must be SIGSTOP or SIGKILL, @, and seconds since the robot began to move, as in "
                f"SIGSTOP@4s",
                ExitCode.USAGE,
            )
        return cls(signal.Signals[match[1]], round(float(match[2]) * SECOND))

    def inject(self, driven_ns: int, pid: int | None) -> None:
        """Do what is due `driven_ns` after the robot began to move; `pid` is the policy process's."""
        if not self._sent and pid is not None and driven_ns >= self.at_ns:
            self._sent = True
            _send(pid, self.number)
            self._frozen_pid = pid if self.number is signal.SIGSTOP else None
        elif self._frozen_pid is not None and driven_ns >= self.at_ns + THAW_AFTER_NS:
            _send(self._frozen_pid, signal.SIGCONT)
            self._frozen_pid = None


def _send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
