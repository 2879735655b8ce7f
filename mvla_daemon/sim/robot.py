"""The simulated robot: motor controller, wheels, body and room in one, and when its camera exposes.

Bytes and times in, bytes and exposures out, with no I/O and no clock of its own: a process of its own runs it in real
time (`robot_process.py`), and `lockstep.py` in simulated time.
"""

from __future__ import annotations

from dataclasses import dataclass

from mvla_daemon.core.messages import SECOND, Reason
from mvla_daemon.motors.link_v1 import ControllerState, Decoder, Stop
from mvla_daemon.sim.controller import Controller
from mvla_daemon.sim.room import Pose, Room, Side
from mvla_daemon.sim.world import Outcome, World


@dataclass(frozen=True, slots=True)
class Exposure:
    """A picture that the camera takes: from where, when, and its number."""

    pose: Pose
    captured_ns: int
    number: int


@dataclass(frozen=True, slots=True)
class StopTaken:
    """A STOP that ended motion before the drive was over: when and where it reached the robot, the reason's label."""

    at_ns: int
    pose: Pose
    reason: str


class SimulatedRobot:
    """A robot at rest in `room` at `now_ns`, which has to pass the box on `side` (None: on either)."""

    def __init__(self, room: Room, side: Side | None, fps: float, now_ns: int) -> None:
        self.controller = Controller(name="mvla-sim", booted_ns=now_ns)
        self.world = World(room, side, room.seed, now_ns)
        self.stops: list[StopTaken] = []
        self._heard = Decoder()
        self._fps = fps
        self._began_ns = now_ns
        self._exposures = 0

    def next_ns(self, now_ns: int) -> int:
        """When `advance` next has something to do."""
        return min(self.controller.next_tick_ns(now_ns), self.world.next_step_ns, self._exposure_ns())

    def advance(self, now_ns: int) -> tuple[bytes, Exposure | None]:
        """Move on to `now_ns`: what the controller says, and the newest picture that was taken on the way."""
        said = b""
        exposure = None
        while (due_ns := min(self.world.next_step_ns, self._exposure_ns())) <= now_ns:
            if due_ns == self.world.next_step_ns:
                said += self.controller.tick(due_ns)
                self.world.advance(due_ns, self.controller.velocity)
            if due_ns == self._exposure_ns():
                exposure = Exposure(self.world.pose, due_ns, self._exposures)
                self._exposures += 1
        return said + self.controller.tick(now_ns), exposure

    def receive(self, data: bytes, now_ns: int) -> bytes:
        """Act on bytes from the daemon, `advance`d to `now_ns` before; what the controller answers at once."""
        driving = self.controller.state is ControllerState.ARMED and self.world.outcome is Outcome.RUNNING
        answer = self.controller.receive(data, now_ns)
        for packet in self._heard.feed(data):
            if isinstance(packet.body, Stop) and driving:
                driving = False
                self.stops.append(StopTaken(now_ns, self.world.pose, _label(packet.body.reason)))
        return answer

    def _exposure_ns(self) -> int:
        return self._began_ns + round(self._exposures * SECOND / self._fps)


def _label(reason: int) -> str:
    try:
        return Reason(reason).label
    except ValueError:
        return f"reason {reason}"
