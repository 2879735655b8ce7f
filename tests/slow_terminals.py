"""How long a byte takes through a terminal, measured all the time by a process that precedes everything.

The kernel's ordinary thread carries it. Where a real-time program of some test keeps that from its processor, the
simulated controllers of other tests neither hear nor say anything, whoever they are.

    python -m tests.slow_terminals PARENT_PID

Each byte that was slow is a line: when it was sent and when it was there, in CLOCK_MONOTONIC nanoseconds.
"""

from __future__ import annotations

import fcntl
import os
import sys
import termios
import time
import tty
from array import array

from mvla_daemon.ops import realtime

SLOW_NS = 10_000_000


def main() -> None:
    realtime.die_with_parent(int(sys.argv[1]))
    there_fd, here_fd = os.openpty()
    tty.setraw(there_fd)
    tty.setraw(here_fd)
    if realtime.use_fifo(99):
        return
    waiting = array("i", [0])
    while True:
        time.sleep(0.005)
        sent_ns = time.monotonic_ns()
        os.write(there_fd, b"x")
        waiting[0] = 0
        while not waiting[0]:
            time.sleep(0.0005)
            fcntl.ioctl(here_fd, termios.FIONREAD, waiting)
        arrived_ns = time.monotonic_ns()
        os.read(here_fd, 1)
        if arrived_ns - sent_ns >= SLOW_NS:
            os.write(1, b"%d %d\n" % (sent_ns, arrived_ns))


if __name__ == "__main__":
    main()
