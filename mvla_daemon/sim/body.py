"""The body of the simulated robot: from what the wheels do to where it is, with inertia, slip and drift.

The wheels' velocity is what the motor controller measures. The body follows it as a first-order lag and with a slip
that differs from run to run, and it wanders a little while it moves. Both come from a seed, so a run can be repeated
bit by bit.
"""

from __future__ import annotations

import math
import random

from mvla_daemon.core.messages import MS, SECOND, Velocity
from mvla_daemon.sim.room import Pose

STEP_NS = 5 * MS
_STEP_S = STEP_NS / SECOND
_LINEAR_LAG_S = 0.06
_YAW_LAG_S = 0.04
_LINEAR_SHARE = 1 - math.exp(-_STEP_S / _LINEAR_LAG_S)
_YAW_SHARE = 1 - math.exp(-_STEP_S / _YAW_LAG_S)

_SLIP = (0.03, 0.05, 0.03)
"""The most by which each axis moves more or less than its wheels say, as a share; rollers slip most sideways."""
_DRIFT_LAG_S = 1.0
_DRIFT_KEPT = math.exp(-_STEP_S / _DRIFT_LAG_S)
_DRIFT_RISE = math.sqrt(3 * (1 - _DRIFT_KEPT**2))
"""Times a number drawn evenly from -1 to 1 (variance 1/3), this keeps the drift's variance at 1 (an AR(1) process)."""
_DRIFT_SIDEWAYS = 0.02
"""Standard deviation, in metres aside for a metre travelled."""
_DRIFT_YAW_RADPM = 0.04
"""Standard deviation, in radians for a metre travelled."""


class Body:
    """A round holonomic robot on the floor, at rest at `start` at `now_ns`.

    It moves in steps of `STEP_NS`, counted from `now_ns`. A step turns with the wheels given to the call that completes
    it, so how often `advance` is called between steps changes nothing. Where the wheels change, call it at
    `next_step_ns`.
    """

    def __init__(self, start: Pose, seed: int, now_ns: int = 0) -> None:
        self._x_m, self._y_m, self._yaw_rad = start.x_m, start.y_m, start.yaw_rad
        self._vx = self._vy = self._wz = 0.0
        self._random = random.Random(f"body {seed}").random  # noqa: S311 - a simulation, not a secret
        self._slip = tuple(1 + most * self._even() for most in _SLIP)
        self._drift_sideways = self._even()
        self._drift_yaw = self._even()
        self._held = False
        self._now_ns = now_ns

    @property
    def next_step_ns(self) -> int:
        """When the next step is complete."""
        return self._now_ns + STEP_NS

    @property
    def pose(self) -> Pose:
        """After the last complete step; yaw from -pi to pi."""
        return Pose(self._x_m, self._y_m, self._yaw_rad)

    @property
    def velocity(self) -> Velocity:
        """How the body really moves, in its own axes, after the last complete step."""
        return Velocity(self._vx, self._vy, self._wz)

    def advance(self, now_ns: int, wheels: Velocity) -> None:
        """Take every step that is complete by `now_ns`; a time that has passed already changes nothing."""
        while self._now_ns + STEP_NS <= now_ns:
            self._now_ns += STEP_NS
            if not self._held:
                self._step(wheels)

    def hold(self) -> None:
        """Stand still from now on, as against an obstacle; time goes on."""
        self._held = True
        self._vx = self._vy = self._wz = 0.0

    def _step(self, wheels: Velocity) -> None:
        slip_x, slip_y, slip_yaw = self._slip
        travel_mps = math.hypot(wheels.linear_x_mps, wheels.linear_y_mps)
        self._drift_sideways = _DRIFT_KEPT * self._drift_sideways + _DRIFT_RISE * self._even()
        self._drift_yaw = _DRIFT_KEPT * self._drift_yaw + _DRIFT_RISE * self._even()
        aside = travel_mps * _DRIFT_SIDEWAYS * self._drift_sideways
        turn = travel_mps * _DRIFT_YAW_RADPM * self._drift_yaw
        self._vx += _LINEAR_SHARE * (slip_x * wheels.linear_x_mps - self._vx)
        self._vy += _LINEAR_SHARE * (slip_y * wheels.linear_y_mps + aside - self._vy)
        self._wz += _YAW_SHARE * (slip_yaw * wheels.angular_z_radps + turn - self._wz)

        middle_rad = self._yaw_rad + self._wz * _STEP_S / 2
        cos, sin = math.cos(middle_rad), math.sin(middle_rad)
        self._x_m += (self._vx * cos - self._vy * sin) * _STEP_S
        self._y_m += (self._vx * sin + self._vy * cos) * _STEP_S
        self._yaw_rad = math.remainder(self._yaw_rad + self._wz * _STEP_S, math.tau)

    def _even(self) -> float:
        """A number drawn evenly from -1 to 1; `random()` is the one that Python keeps the same between versions."""
        return 2 * self._random() - 1
