"""What else runs on the machine while times are taken: it decides whether they say anything of the daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mvla_daemon.ops import realtime

_IDLE, _IO_WAIT, _GUEST = 3, 4, 8
"""Columns of /proc/stat's first line that are no work, and from where on they are counted twice: proc(5)."""
_TIMES = slice(11, 15)
"""utime, stime, cutime and cstime in /proc/PID/stat, behind the name."""


class Load:
    """Since it was made: the share of the machine's time that went to others than this process and its children.

    Time that the machine itself did not get (steal) is counted as others' too. `proc` is where proc(5) is.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._before = _machine_ticks(proc)
        self._ours_before = _tree_ticks(proc, os.getpid())

    def of_others(self) -> float:
        """0 to 1."""
        total, busy = (now - before for now, before in zip(_machine_ticks(self._proc), self._before, strict=True))
        ours = _tree_ticks(self._proc, os.getpid()) - self._ours_before
        return max(0, busy - ours) / total if total else 0.0


@contextmanager
def busy() -> Iterator[None]:
    """Keep every processor busy with ordinary work that never pauses."""
    pid = os.getpid()

    def for_life() -> None:
        realtime.die_with_parent(pid)

    spinning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=for_life)  # noqa: PLW1509 - our own interpreter; this process has a single thread
        for _ in os.sched_getaffinity(0)
    ]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def _machine_ticks(proc: Path) -> tuple[int, int]:
    """All ticks of all processors since the boot, and those in which they worked."""
    with (proc / "stat").open() as stat:
        ticks = [int(word) for word in stat.readline().split()[1:]][:_GUEST]
    return sum(ticks), sum(ticks) - ticks[_IDLE] - ticks[_IO_WAIT]


def _tree_ticks(proc: Path, pid: int) -> int:
    """Those of a process, of its children that have ended, and of those that run."""
    ticks = 0
    with suppress(OSError):
        ticks = sum(map(int, (proc / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[_TIMES]))
        for children in (proc / str(pid) / "task").glob("*/children"):
            ticks += sum(_tree_ticks(proc, int(child)) for child in children.read_text().split())
    return ticks
