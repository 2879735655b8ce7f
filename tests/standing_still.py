"""A machine that stands still again and again: the watchers that a thread has started are frozen, but for moments.

`python -m tests.standing_still PID THREAD`, until it is killed. It precedes what a busy machine runs, so that no moment
between two standstills becomes long.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

STANDS_S, RUNS_S = 0.02, 0.002
PRIORITY = 98


def watchers(pid: int, thread: int) -> list[int]:
    """Those that this thread has started."""
    children = Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
    found = []
    for child in children:
        with suppress(OSError):
            if b"mvla_daemon.ops.standstill" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def main() -> None:
    pid, thread = map(int, sys.argv[1:])
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    while True:
        for number, seconds in ((signal.SIGSTOP, STANDS_S), (signal.SIGCONT, RUNS_S)):
            for watcher in watchers(pid, thread):
                with suppress(ProcessLookupError):
                    os.kill(watcher, number)
            time.sleep(seconds)


if __name__ == "__main__":
    main()
