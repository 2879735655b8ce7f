"""The simulated motor controller as a process at the end of a pty, so that the daemon talks to it as to a real port.

    python -m mvla_daemon.sim.controller_process [--port PATH] [--parent-pid PID] [--priority P]

Prints the path of the port to open, then serves it until its standard input ends or SIGTERM comes. SIGINT is ignored:
a terminal's Ctrl-C goes to the whole group, and the daemon needs its controller a little longer to confirm the stop.
The process that starts it must do so from its main thread, since the parent-death signal follows that thread.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import termios
import time
import tty
from typing import TYPE_CHECKING, NoReturn

from mvla_daemon.core.messages import SECOND
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.ops.realtime import die_with_parent, precede_others, use_fifo
from mvla_daemon.sim.controller import Controller

if TYPE_CHECKING:
    from collections.abc import Sequence

_READ_BYTES = 4096
_INPUT_SPEED, _OUTPUT_SPEED, _CONTROL_FLAGS = 4, 5, 2


class Line:
    """A non-blocking terminal, with a UART's manners: what finds no room is lost, and counted in `lost_bytes`.

    `DaemonError` when the other end is gone for good.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.lost_bytes = 0
        os.set_blocking(fd, False)

    def read(self) -> bytes:
        """What has arrived."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise _gone(error.strerror) from error
        if not data:
            raise _gone("end of file")
        return data

    def write(self, data: bytes) -> None:
        """Send as much as fits."""
        try:
            written = os.write(self.fd, data)
        except BlockingIOError:
            written = 0
        except OSError as error:
            raise _gone(error.strerror) from error
        self.lost_bytes += len(data) - written


def _gone(why: str | None) -> DaemonError:
    return DaemonError(
        f"the simulated controller's port is gone ({why}): connect it and start again", ExitCode.UNAVAILABLE
    )


def serve(controller: Controller, line: Line, until_fd: int) -> None:
    """Be the controller at `line` until `until_fd` reaches its end of file."""
    while True:
        now_ns = time.monotonic_ns()
        wait_s = (controller.next_tick_ns(now_ns) - now_ns) / SECOND
        readable, _, _ = select.select([line.fd, until_fd], [], [], wait_s)
        if until_fd in readable and not os.read(until_fd, _READ_BYTES):
            return
        arrived = line.read() if line.fd in readable else b""
        now_ns = time.monotonic_ns()
        if answer := controller.receive(arrived, now_ns) + controller.tick(now_ns):
            line.write(answer)


def open_pair() -> tuple[int, str]:
    """A raw pty: the controller's end, and the path of the daemon's.

    The daemon's end stays open here too, so that a daemon may close it and come back.
    """
    controller_fd, daemon_fd = os.openpty()
    tty.setraw(daemon_fd)
    return controller_fd, os.ttyname(daemon_fd)


def open_port(path: str) -> int:
    """An existing terminal, raw, 8N1 at 921600 baud; `DaemonError` where that is impossible."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(fd)
        settings = termios.tcgetattr(fd)
        settings[_INPUT_SPEED] = settings[_OUTPUT_SPEED] = termios.B921600
        settings[_CONTROL_FLAGS] |= termios.CLOCAL | termios.CREAD
        settings[_CONTROL_FLAGS] &= ~(termios.CSTOPB | termios.CRTSCTS)
        termios.tcsetattr(fd, termios.TCSANOW, settings)
    except (OSError, termios.error) as error:
        raise DaemonError(
            f"cannot be a controller on {path} ({error.args[-1]}): name a serial port that you may open",
            ExitCode.UNAVAILABLE,
        ) from error
    return fd


def _end(*_: object) -> NoReturn:
    raise SystemExit(ExitCode.OK)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the controller; the exit code."""
    parser = argparse.ArgumentParser(description="The simulated motor controller at the end of a pty.")
    parser.add_argument("--port", help="serve this terminal instead of a new pty")
    parser.add_argument("--parent-pid", type=int, help="end at once unless this is the parent")
    parser.add_argument("--priority", type=int, default=0, help="its own by SCHED_FIFO")
    chosen = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    try:
        if chosen.parent_pid is not None:
            die_with_parent(chosen.parent_pid)
        precede_others()  # as a controller of its own would, which no program of this machine holds up
        fd, path = (open_port(chosen.port), chosen.port) if chosen.port else open_pair()
        line = Line(fd)
        if chosen.priority:
            use_fifo(chosen.priority)
        sys.stdout.write(f"{path}\n")
        sys.stdout.flush()
        try:
            serve(Controller(booted_ns=time.monotonic_ns()), line, sys.stdin.fileno())
        finally:
            if line.lost_bytes:
                sys.stderr.write(f"{line.lost_bytes} bytes of the simulated controller found no room\n")
    except DaemonError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
