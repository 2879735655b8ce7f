"""The words that all parts share: reasons, phases, stages, axes, and a velocity."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

MS = 1_000_000
"""Nanoseconds in a millisecond."""
SECOND = 1_000_000_000
"""Nanoseconds in a second."""

AXES = ("linear_x", "linear_y", "angular_z")
"""The axes of a planar robot (REP 103: x forward, y left, yaw counter-clockwise), in the order of the wire."""


class Reason(IntEnum):
    """Why the robot was stopped; the numbers are those of motor link v1."""

    DEADLINE_MISSED = 1
    FRAME_STALE = 2
    FRAME_FROZEN = 3
    CAMERA_LOST = 4
    NOT_FINITE = 5
    LIMIT_VIOLATED = 6
    POLICY_LOST = 7
    POLICY_ERROR = 8
    SEQUENCE_ERROR = 9
    CONTROLLER_LOST = 10
    CONTROLLER_RESET = 11
    CONTROLLER_FAULT = 12
    OPERATOR = 13
    SHUTDOWN = 14
    CONFIG_CHANGED = 15
    INTERNAL = 16
    PORT_LOST = 17
    SUSPENDED = 18

    @property
    def label(self) -> str:
        """The name used in logs, metrics and on the command line."""
        return self.name.lower()


class Phase(IntEnum):
    """Where a session is between start and stop."""

    DISARMED = 0
    ARMING = 1
    ARMED = 2
    STOPPING = 3
    STOPPED = 4
    LATCHED = 5


class Stage(IntEnum):
    """What the policy process is doing with the current cycle, in the order of a frame's way."""

    WAIT_FRAME = 0
    PREPROCESS = 1
    H2D = 2
    COMPUTE = 3
    D2H = 4
    POSTPROCESS = 5
    SEND = 6

    @property
    def label(self) -> str:
        """The name used in logs and metrics."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Velocity:
    """A planar body velocity: metres per second forward and left, radians per second counter-clockwise."""

    linear_x_mps: float = 0.0
    linear_y_mps: float = 0.0
    angular_z_radps: float = 0.0

    def as_tuple(self) -> tuple[float, float, float]:
        """The three values in the order of `AXES`."""
        return (self.linear_x_mps, self.linear_y_mps, self.angular_z_radps)
