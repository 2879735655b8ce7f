"""What ends a run besides people and time: a drive that has an end of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Protocol, TypeAlias

from mvla_daemon.errors import ExitCode

Ending: TypeAlias = "tuple[ExitCode, str]"


class Errand(Protocol):
    """Something that the robot was sent to do."""

    def filenos(self) -> list[int]:
        """What the gate has to watch."""

    def ended(self, readable: set[int]) -> Ending | None:
        """The exit code and the farewell once it is over."""


class NoErrand:
    """The robot drives until told to stop."""

    def filenos(self) -> list[int]:
        """Nothing to watch."""
        return []

    def ended(self, readable: set[int]) -> Ending | None:  # noqa: ARG002 - as the protocol says
        """Never."""
        return None


class ReportedErrand:
    """Its end is the next line on a pipe; `judge` makes an ending of it, of nothing when the pipe was closed."""

    def __init__(self, pipe: IO[bytes], judge: Callable[[str], Ending]) -> None:
        self._pipe: IO[bytes] | None = pipe
        self._judge = judge

    def filenos(self) -> list[int]:
        """The pipe, until its line has come."""
        return [] if self._pipe is None else [self._pipe.fileno()]

    def ended(self, readable: set[int]) -> Ending | None:
        """What the line says; writers of it write whole lines."""
        if self._pipe is None or self._pipe.fileno() not in readable:
            return None
        line = self._pipe.readline().decode().strip()
        self._pipe = None
        return self._judge(line)
