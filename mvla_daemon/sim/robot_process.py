"""The simulated robot in real time, as a process of its own: motor controller on a pty, camera at a socket.

    python -m mvla_daemon.sim.robot_process --seed N [--instruction TEXT] [--fps F] [--picture FILE] [--fault FAULT]
                                            [--priority P]

The first line on standard output is the port to open and the camera's address, the second how the drive ended. When its
standard input ends, it draws the picture and ends too. SIGINT is ignored: a terminal's Ctrl-C goes to the whole group,
and the daemon needs its controller a little longer to confirm the stop. The process that starts it must do so from its
main thread, since the parent-death signal follows that thread.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from mvla_daemon.core.messages import SECOND
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.opencv import load_opencv
from mvla_daemon.ops import realtime
from mvla_daemon.sim.camera_link import CameraServer
from mvla_daemon.sim.controller_process import Line, open_pair
from mvla_daemon.sim.fault import Fault
from mvla_daemon.sim.instructions import SENTENCES
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.picture import Painter
from mvla_daemon.sim.robot import Exposure, SimulatedRobot
from mvla_daemon.sim.room import Room
from mvla_daemon.sim.scrapbook import Scrapbook
from mvla_daemon.sim.world import Outcome

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_READ_BYTES = 4096
_SLACK, _MISSED_COST = 250, 10
"""A missed picture costs ten of the slack, a painted one gives one back: 25 missed in a row are too many, and so is, in
the long run, one of eleven."""


class CameraThread:
    """Paints what the robot sees, so that the motor controller never waits for a picture.

    Real-time with a `priority`, while it keeps up: an ordinary thread that others displace while it holds Python's lock
    holds the motor controller up with it.
    """

    def __init__(self, room: Room, server: CameraServer, scrapbook: Scrapbook, priority: int) -> None:
        self._painter = Painter(room)
        self._server = server
        self._scrapbook = scrapbook
        self._exposures: SimpleQueue[Exposure | None] = SimpleQueue()
        self._newest = -1
        self._slack = _SLACK
        self._precedence = realtime.Precedence(priority)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    def expose(self, exposure: Exposure) -> None:
        """Have this picture painted and published; raises what ended the painting, if anything did."""
        if self._error is not None:
            raise self._error
        self._exposures.put(exposure)

    def close(self) -> None:
        """Finish the picture under way; a thread that is still in OpenCV when Python ends would abort the process."""
        self._exposures.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while (exposure := self._exposures.get()) is not None:
                if self._exposures.empty():  # otherwise behind: only the newest is worth the work
                    self._paint(exposure)
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends the process, which is another thread's to do
            self._error = error

    def _paint(self, exposure: Exposure) -> None:
        pixels: NDArray[np.uint8] = self._server.writable()
        self._painter.paint(exposure.pose, exposure.number, pixels)
        self._server.publish(exposure.number, exposure.captured_ns)
        self._scrapbook.look(exposure, pixels)
        missed = exposure.number - self._newest - 1
        self._newest = exposure.number
        if missed:
            self._precedence.lay_down()
        else:
            self._precedence.take_up()
        self._note(missed)

    def _note(self, missed: int) -> None:
        """Take note of how many pictures were missed before one; says once that it is too many."""
        if self._slack > 0:
            self._slack = min(_SLACK, self._slack + 1 - _MISSED_COST * missed)
            if self._slack <= 0:
                sys.stderr.write(
                    "mvla-daemon: the simulated camera cannot keep up on this machine, and what the robot sees is old; "
                    "lower camera.fps, or end what else runs here.\n"
                )


class RobotProcess:
    """The loop that moves the robot; the only thread that touches it."""

    def __init__(self, robot: SimulatedRobot, line: Line, server: CameraServer, camera: CameraThread) -> None:
        self._robot = robot
        self._line = line
        self._server = server
        self._camera = camera
        self._told = False
        self.viewer_pid: int | None = None
        """The process that looks at the pictures."""

    def serve(self, until_fd: int, fault: Fault | None) -> None:
        """Be the robot until `until_fd` reaches its end of file."""
        while True:
            now_ns = time.monotonic_ns()
            wait_s = max(0, self._robot.next_ns(now_ns) - now_ns) / SECOND
            fds = [self._line.fd, self._server.socket.fileno(), until_fd]
            readable, _, _ = select.select(fds, [], [], wait_s)
            if until_fd in readable and not os.read(until_fd, _READ_BYTES):
                return
            if self._server.socket.fileno() in readable:
                self.viewer_pid = self._server.accept() or self.viewer_pid
            self._move_on(self._line.read() if self._line.fd in readable else b"")
            began_ns = self._robot.world.began_ns
            if fault is not None and began_ns is not None:
                fault.inject(time.monotonic_ns() - began_ns, self.viewer_pid)

    def _move_on(self, arrived: bytes) -> None:
        now_ns = time.monotonic_ns()
        said, exposure = self._robot.advance(now_ns)
        if answer := said + self._robot.receive(arrived, now_ns):
            self._line.write(answer)
        if exposure is not None:
            self._camera.expose(exposure)
        if not self._told and self._robot.world.outcome is not Outcome.RUNNING:
            self._told = True
            _say(f"{self._robot.world.outcome.value} {self._robot.world.duration_ns}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _run(options: argparse.Namespace) -> None:
    load_opencv()
    # The gate's core: there the gate goes before it, and the policy, whose time is being judged, never runs.
    os.sched_setaffinity(0, {realtime.gate_core(os.sched_getaffinity(0))})
    sys.setswitchinterval(realtime.SWITCH_INTERVAL_S)
    room = make_room(options.seed)
    side = SENTENCES.get(options.instruction)
    fault = Fault.parse(options.fault) if options.fault else None
    controller_fd, port = open_pair()
    server = CameraServer()
    scrapbook = Scrapbook(room, side, options.instruction or "")
    priority = options.priority if realtime.would_grant_fifo(options.priority) else 0
    precedence = realtime.Precedence(priority)
    camera = CameraThread(room, server, scrapbook, max(0, priority - 1))
    robot = SimulatedRobot(room, side, options.fps, time.monotonic_ns())
    try:
        _say(f"{port} {server.path}")
        precedence.take_up()
        RobotProcess(robot, Line(controller_fd), server, camera).serve(sys.stdin.fileno(), fault)
    finally:
        precedence.lay_down()
        camera.close()
        server.close()
    if options.picture:
        scrapbook.draw(robot, options.picture)
        sys.stderr.write(f"mvla-daemon: The drive from above: {options.picture}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the robot; the exit code."""
    parser = argparse.ArgumentParser(description="The simulated robot: a motor controller on a pty, and a camera.")
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--instruction", help="the side of the box that it asks for is the right one; without, both")
    parser.add_argument("--fps", type=float, default=50)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--fault")
    parser.add_argument("--parent-pid", type=int)
    parser.add_argument(
        "--priority", type=int, default=0, help="the controller's by SCHED_FIFO, the camera's is one less"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        if options.parent_pid is not None:
            realtime.die_with_parent(options.parent_pid)
        realtime.precede_others()  # as a robot would, which no program of this machine holds up
        _run(options)
    except DaemonError as error:
        sys.stderr.write(f"mvla-daemon: {error}\n")
        return error.exit_code
    except Exception as error:
        if os.environ.get("MVLA_TRACEBACK"):
            raise
        sys.stderr.write(
            f"mvla-daemon: the simulated robot failed, {type(error).__name__}: {error}; run again with "
            f"MVLA_TRACEBACK=1 and report what it prints.\n"
        )
        return ExitCode.INTERNAL
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main())
