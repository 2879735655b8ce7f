"""The whole daemon in simulated time: the same gate, cycles, network, controller and room, and not one real clock.

Nothing waits, so a drive takes as long as its pictures and inferences take to compute, and two runs of one seed put the
same bytes on the wire. What takes real time in a real run (a picture's way from the sensor, an inference, a message
between processes) takes a fixed simulated time here.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvla_daemon import assembly
from mvla_daemon.cameras.capture import ROW_STEP
from mvla_daemon.config import Config
from mvla_daemon.core.messages import MS, SECOND, Phase
from mvla_daemon.errors import ExitCode
from mvla_daemon.gate import Gate
from mvla_daemon.ops.errand import Ending
from mvla_daemon.ops.telemetry import Cycle, Telemetry
from mvla_daemon.sim.lockstep_policy import LockstepPolicy, Think
from mvla_daemon.sim.picture import Painter
from mvla_daemon.sim.robot import Exposure, SimulatedRobot
from mvla_daemon.sim.room import Room, Side
from mvla_daemon.sim.timeline import Timeline
from mvla_daemon.sim.verdict import verdict
from mvla_daemon.sim.world import Outcome

PICTURE_NS = 6 * MS
"""From the exposure to the policy process: what rendering and copying take in a real run."""
LONGEST_NS = 45 * SECOND
"""A drive ends by itself within 30 s of its first motion; a robot that does not move by then never will."""
_PORT_FD, _POLICY_FD, _ERRAND_FD, _SIGNALS_FD = 3, 4, 5, 6


class LockstepPort:
    """The simulated robot as the gate's port; `written` and `answered` are all that went over the wire."""

    path, baud, was_lost, reopen_ns, fd = "lockstep", 0, False, 0, _PORT_FD

    def __init__(self, robot: SimulatedRobot, timeline: Timeline, expose: Callable[[Exposure], None]) -> None:
        self.written = bytearray()
        self.answered = bytearray()
        self._unread = b""
        self._robot = robot
        self._timeline = timeline
        self._expose = expose
        timeline.watch(_PORT_FD, lambda: bool(self._unread))
        self._step()

    def _step(self) -> None:
        self._advance()
        self._timeline.at(self._robot.next_ns(self._timeline.now_ns()), self._step)

    def _advance(self) -> None:
        said, exposure = self._robot.advance(self._timeline.now_ns())
        self._answer(said)
        if exposure is not None:
            self._expose(exposure)

    def _answer(self, data: bytes) -> None:
        self.answered += data
        self._unread += data

    def read(self) -> bytes:
        """What the controller has said."""
        data, self._unread = self._unread, b""
        return data

    def write(self, packets: bytes) -> bool:
        """The controller has it at once, and all of it."""
        self.written += packets
        self._advance()
        self._answer(self._robot.receive(packets, self._timeline.now_ns()))
        return True

    def queued_bytes(self) -> int:
        """Nothing waits."""
        return 0

    def drop(self, now_ns: int) -> None:
        """A simulated port is never lost."""

    def reopen(self, now_ns: int) -> bool:  # noqa: ARG002 - as the protocol says
        """A simulated port is never lost."""
        return False


class LockstepErrand:
    """The drive to the cup; over once the room says so."""

    def __init__(self, robot: SimulatedRobot, timeline: Timeline) -> None:
        self._robot = robot
        self._told = False
        timeline.watch(_ERRAND_FD, self._is_over)

    def _is_over(self) -> bool:
        return not self._told and self._robot.world.outcome is not Outcome.RUNNING

    def filenos(self) -> list[int]:
        """One number for the pipe that there is not."""
        return [_ERRAND_FD]

    def ended(self, readable: set[int]) -> Ending | None:
        """The verdict, once."""
        if _ERRAND_FD not in readable:
            return None
        self._told = True
        return verdict(self._robot.world.outcome, self._robot.world.duration_ns or 0)


class LockstepOperator:
    """Nobody: a robot that waits for one has come to the end of its drive."""

    def __init__(self, gate: Gate) -> None:
        self._helm = gate.helm

    def watch(self, now_ns: int) -> tuple[list[int], int]:
        """Nobody to watch."""
        return [], now_ns + SECOND

    def serve(self, readable: set[int], now_ns: int) -> None:  # noqa: ARG002 - as the protocol says
        """End a run that only an operator could go on with."""
        state = self._helm.state
        if state.phase is Phase.LATCHED and state.reason is not None:
            why = f"The robot was stopped ({state.reason.label}) and would wait for an operator; the log says more."
            self._helm.end(ExitCode.TRY_AGAIN, why, now_ns)


class Lockstep:
    """One drive in simulated time; `run` it once.

    `think` is what drives: a frame's velocity (m/s, m/s, rad/s). `reset` is called at every order of the gate, `look`
    for each picture; `about` describes what drives, for people. The room and its seed decide all that is random.
    """

    def __init__(
        self,
        config: Config,
        room: Room,
        side: Side | None,
        think: Think,
        *,
        reset: Callable[[], None] = lambda: None,
        look: Callable[[Exposure, NDArray[np.uint8]], None] = lambda _exposure, _pixels: None,
        telemetry: Telemetry | None = None,
        about: dict[str, Any] | None = None,
        longest_ns: int = LONGEST_NS,
    ) -> None:
        self.timeline = Timeline()
        self.robot = SimulatedRobot(room, side, config.camera.fps, 0)
        self._look = look
        self._painter = Painter(room)
        telemetry = telemetry or Unheard()
        self._policy = LockstepPolicy(config, self.timeline, _POLICY_FD, think, reset, telemetry, about or {})
        self.port = LockstepPort(self.robot, self.timeline, self._expose)
        self.timeline.watch(_SIGNALS_FD, lambda: False)
        errand = LockstepErrand(self.robot, self.timeline)
        draw = random.Random(f"link {room.seed}")  # noqa: S311 - made to be repeated
        crew = assembly.crew(
            config, self.port, self._policy, telemetry, self.timeline, errand, lambda: draw.getrandbits(32)
        )
        self.gate = Gate(assembly.gate_settings(config, longest_ns), crew, telemetry, _SIGNALS_FD)

    def run(self) -> Outcome:
        """Drive until the drive is over and the robot stands, or waits for an operator, for `longest_ns` at most."""
        self.gate.serve(LockstepOperator(self.gate))
        return self.robot.world.outcome

    @property
    def ending(self) -> Ending:
        """The exit code of the run, and the sentence for the user."""
        helm, world = self.gate.helm, self.robot.world
        if helm.farewell and helm.exit_code is not None:
            return helm.exit_code, helm.farewell
        return verdict(world.outcome, world.duration_ns or 0)

    def _expose(self, exposure: Exposure) -> None:
        self.timeline.at(exposure.captured_ns + PICTURE_NS, lambda: self._publish(exposure))

    def _publish(self, exposure: Exposure) -> None:
        slot = self._policy.slot
        pixels = slot.writable()
        self._painter.paint(exposure.pose, exposure.number, pixels)
        crc = zlib.crc32(pixels[::ROW_STEP].tobytes())
        self._look(exposure, pixels)
        slot.publish(exposure.captured_ns, exposure.number, crc, self.timeline.now_ns())
        self._policy.on_frame()


class Unheard(Telemetry):
    """Telemetry that nobody listens to."""

    def __init__(self) -> None:
        self.dropped = 0
        self._board = None

    def event(self, name: str, message: str, level: str = "info", /, **fields: Any) -> None:
        """Nothing."""

    def cycle(self, record: Cycle) -> None:
        """Nothing."""
