"""How long the machine itself stands still: on each processor a thread that precedes all others and does nothing.

It sleeps for a little while at a time, and what it oversleeps nobody on that processor could have used: the host of
a virtual machine had given it to others, or the kernel did not let go of it. /proc/stat counts as stolen only what the
host admits (measured: 8 ms at a time on a machine that counted none).
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mvla_daemon.core.messages import MS, SECOND
from mvla_daemon.ops import realtime
from mvla_daemon.ops.child import Process, start_module

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

SLEEP_NS = SECOND // 2000
LEAST_NS = MS // 4
"""What is told of: a sleep's usual end is a few hundredths of a millisecond late."""
PRIORITY = 99
_START_S = 10.0
_ANSWER_S = 1.0
_READ_BYTES = 65536
_UNREAD_BYTES = 1 << 20
"""What a watcher can say until somebody asks, some 30,000 standstills; then it would wait, and watch no longer."""


@dataclass(frozen=True, slots=True)
class Standstill:
    """One processor, from one time to another, in nanoseconds of CLOCK_MONOTONIC."""

    begin_ns: int
    end_ns: int


class StandstillWatch:
    """Watches all processors that this process may use; a context manager.

    `sleep_ns` is how long a watcher sleeps at a time: a standstill is seen shorter by up to that. `refusal` says why it
    cannot watch (the operating system's word), empty where it can.
    """

    def __init__(self, sleep_ns: int = SLEEP_NS) -> None:
        self.refusal = ""
        self._sleep_ns = sleep_ns
        self._seen: list[Standstill] = []
        self._processes: list[Process] = []
        self._pending: dict[int, bytes] = {}
        self._heard_ns: dict[int, int] = {}

    def __enter__(self) -> Self:
        for core in sorted(os.sched_getaffinity(0)):
            words = (str(core), str(os.getpid()), str(self._sleep_ns))
            process = start_module("mvla_daemon.ops.standstill", *words, stdout=subprocess.PIPE)
            assert process.stdout is not None
            self._processes.append(process)
            self._pending[process.stdout.fileno()] = b""
            with suppress(PermissionError):  # where an administrator allows less, there is room for less
                fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, _UNREAD_BYTES)
        for process in self._processes:
            assert process.stdout is not None
            ready = select.select([process.stdout], [], [], _START_S)[0]
            said = process.stdout.readline().decode().strip() if ready else "it does not start"
            self.refusal = self.refusal or said.removeprefix("ready")
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def stood_ns(self, begin_ns: int, end_ns: int) -> int:
        """For how much of that time one processor or more stood still, sums of no less than a quarter millisecond."""
        self._catch_up()
        stood_ns, until_ns = 0, begin_ns
        for one in sorted(self._seen, key=lambda seen: seen.begin_ns):
            until_ns, before_ns = max(until_ns, min(one.end_ns, end_ns)), until_ns
            stood_ns += max(0, until_ns - max(before_ns, one.begin_ns))
        return stood_ns

    def longest_ns(self, begin_ns: int, end_ns: int) -> int:
        """How long a single processor stood still at the most, of what ended or began within that time."""
        self._catch_up()
        lengths = [one.end_ns - one.begin_ns for one in self._seen if one.begin_ns < end_ns and one.end_ns > begin_ns]
        return max(lengths, default=0)

    def _catch_up(self) -> None:
        """Hear every watcher: one whose processor still stands still tells of that only once it is over."""
        asked_ns = time.monotonic_ns()
        for process in self._processes:
            process.send_signal(signal.SIGUSR1)
        end_ns = asked_ns + int(_ANSWER_S * SECOND)
        while unheard := [fd for fd in self._pending if self._heard_ns.get(fd, 0) < asked_ns]:
            left_s = (end_ns - time.monotonic_ns()) / SECOND
            readable = select.select(unheard, [], [], max(0.0, left_s))[0]
            if not readable:
                return
            for fd in readable:
                self._read(fd)

    def _read(self, fd: int) -> None:
        data = os.read(fd, _READ_BYTES)
        if not data:
            del self._pending[fd]
            return
        *lines, self._pending[fd] = (self._pending[fd] + data).split(b"\n")
        for line in lines:
            begin_ns, self._heard_ns[fd] = map(int, line.split())
            if self._heard_ns[fd] - begin_ns >= LEAST_NS:
                self._seen.append(Standstill(begin_ns, self._heard_ns[fd]))


def main() -> None:
    """Watch one processor: its number, then the pid of whoever asked, who reads what is said here, and the sleep."""
    core, parent_pid, sleep_ns = map(int, sys.argv[1:4])
    realtime.die_with_parent(parent_pid)
    os.sched_setaffinity(0, {core})
    realtime.stop_collecting_garbage()
    realtime.wake_on_time()
    realtime.lock_memory()
    refusal = realtime.use_fifo(PRIORITY)
    asked: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: asked.append(number))
    sys.stdout.write(f"{refusal or 'ready'}\n")
    sys.stdout.flush()
    now_ns, sleep, sleep_s = time.monotonic_ns, time.sleep, sleep_ns / SECOND
    while not refusal:
        due_ns = now_ns() + sleep_ns
        sleep(sleep_s)  # to its end, whatever signal comes
        questions = len(asked)
        del asked[:questions]
        woken_ns = now_ns()
        if questions or woken_ns - due_ns >= LEAST_NS:
            os.write(1, b"%d %d\n" % (due_ns, woken_ns))


if __name__ == "__main__":
    main()
