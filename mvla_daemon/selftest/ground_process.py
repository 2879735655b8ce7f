"""The proving ground of the self-test as a process of its own: a robot on blocks that fails on request.

    python -m mvla_daemon.selftest.ground_process --log FILE [--fps F] [--seed N] [--parent-pid PID]

The first line on standard output is the port to open and the camera's address. Each chunk that arrives from the daemon
is appended to FILE as `<qI` (CLOCK_MONOTONIC when it was read, length) and the bytes; what the controller said is
appended to FILE with the suffix .said, whether anybody heard it or not. Orders are lines on standard input, each
answered by a line: `done NS` with the time at which it took effect, or `unknown` and the order. When standard input
ends, so does the process. The process that starts it must do so from its main thread, since the parent-death signal
follows that thread.
"""

from __future__ import annotations

import argparse
import gc
import os
import select
import signal
import struct
import sys
import time
import tty
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

from mvla_daemon.core.messages import SECOND
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.ops import realtime
from mvla_daemon.selftest.ground import Ground, UnknownOrderError
from mvla_daemon.selftest.ground_camera import GroundCamera
from mvla_daemon.sim.controller_process import Line

CHUNK = struct.Struct("<qI")
PRIORITY = 60
"""Below the gate's: what is measured must not wait for what measures it."""
_READ_BYTES = 4096


class Port:
    """A pty, with the daemon's end kept open, so that a daemon may close it and come back."""

    def __init__(self) -> None:
        self._ours_fd, self._theirs_fd = os.openpty()
        tty.setraw(self._ours_fd)
        tty.setraw(self._theirs_fd)
        self.line = Line(self._ours_fd)
        self.path = os.ttyname(self._theirs_fd)

    def hang_up(self) -> None:
        """The port is gone."""
        os.close(self._theirs_fd)
        os.close(self._ours_fd)


class GroundProcess:
    """The loop that serves port, camera and orders; what it is told goes to `log`, what it says to `said`."""

    def __init__(self, ground: Ground, camera: GroundCamera, log: FileIO, said: FileIO) -> None:
        self._ground = ground
        self._camera = camera
        self._log = log
        self._said = said
        self._port: Port | None = Port()
        self._pending = b""
        self.where = f"{self._port.path} {camera.path}"

    def serve(self, orders_fd: int) -> None:
        """Until the orders end."""
        while True:
            now_ns = time.monotonic_ns()
            wait_s = max(0, min(self._ground.next_ns(now_ns), self._camera.next_ns()) - now_ns) / SECOND
            line = None if self._port is None or self._ground.deaf else self._port.line
            fds = [orders_fd, *self._camera.filenos()]
            readable, _, _ = select.select(fds if line is None else [line.fd, *fds], [], [], wait_s)
            if line is not None and line.fd in readable:
                self._hear(line)
            self._move_on()
            if set(self._camera.filenos()) & set(readable):
                self._camera.accept()
            if orders_fd in readable and not self._read_orders(orders_fd):
                return

    def close(self) -> None:
        """Hang up everywhere."""
        if self._port is not None:
            self._port.hang_up()
        self._camera.close()
        self._log.close()
        self._said.close()

    def _hear(self, line: Line) -> None:
        data = line.read()
        now_ns = time.monotonic_ns()
        self._log.write(CHUNK.pack(now_ns, len(data)) + data)
        self._ground.hear(data, now_ns)

    def _move_on(self) -> None:
        now_ns = time.monotonic_ns()
        said, sent = self._ground.advance(now_ns)
        if sent and self._port is not None:
            self._port.line.write(sent)
        if said:
            self._said.write(said)
        self._camera.advance(now_ns)

    # --- orders ---

    def _read_orders(self, orders_fd: int) -> bool:
        """Whether there will be more."""
        data = os.read(orders_fd, _READ_BYTES)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            text = line.decode("utf-8", "replace")
            try:
                more = self._obey(text.split())
            except UnknownOrderError:
                _say(f"unknown {text}")
            else:
                _say(f"done {time.monotonic_ns()}{more}")
            self._move_on()
        return bool(data)

    def _obey(self, words: Sequence[str]) -> str:
        """Do as ordered; what the answer has to say beside."""
        now_ns = time.monotonic_ns()
        match words:
            case ["camera", *rest]:
                self._camera.obey(rest, now_ns)
            case ["hang_up"] if self._port is not None:
                self._port.hang_up()
                self._port = None
            case ["plug_in"] if self._port is None:
                self._port = Port()
                return f" {self._port.path}"
            case _:
                sent = self._ground.obey(words, now_ns)
                if sent and self._port is not None:
                    self._port.line.write(sent)
        return ""


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _opened(path: Path) -> FileIO:
    try:
        return path.open("wb", buffering=0)
    except OSError as error:
        raise DaemonError(f"--log {path} cannot be written: {error.strerror}.", ExitCode.NO_PERMISSION) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ground; the exit code."""
    parser = argparse.ArgumentParser(description="The self-test's proving ground: a robot on blocks, and its camera.")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--fps", type=float, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parent-pid", type=int)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for whoever started this
    try:
        if options.parent_pid is not None:
            realtime.die_with_parent(options.parent_pid)
        log, said = _opened(options.log), _opened(options.log.with_suffix(".said"))
        camera = GroundCamera(options.seed, options.fps, time.monotonic_ns())
        process = GroundProcess(Ground(time.monotonic_ns()), camera, log, said)
        # The gate's core: there the gate goes before it, and the policy, whose time is being judged, never runs.
        os.sched_setaffinity(0, {realtime.gate_core(os.sched_getaffinity(0))})
        realtime.set_garbage_aside()
        gc.disable()  # what the loop allocates has no cycles
        realtime.wake_on_time()
        realtime.use_fifo(PRIORITY)
        try:
            _say(process.where)
            process.serve(sys.stdin.fileno())
        finally:
            process.close()
    except DaemonError as error:
        sys.stderr.write(f"mvla-daemon: {error}\n")
        return error.exit_code
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
