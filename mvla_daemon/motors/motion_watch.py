"""Whether the robot moves as it was told: what the controller measures, held against the ramp towards the commands.

How a controller follows a command is its own affair, so no curve is asked for, only a band. Its fast edge is the
command itself; its slow edge comes after it on a ramp, of the slower of two rates: the one at which commands may grow
([limits] accel) and the one at which the controller brakes (IDENTITY, category 1). A controller that follows at that
rate or faster, and a command at the latest `DELAY_REPORTS` reports after it was written, is never outside. The rest is
tolerance: at a steady speed 0.1 m/s (0.2 rad/s) or 30 %, and 0.5 s for what passes by itself.

So a controller that ramps at less than 70 % of what [limits] accel lets the policy ask for may be taken for a broken
one; the sentence of the fault says so. A stuck wheel below the tolerance is not noticed.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from mvla_daemon.core.limits import Axes3
from mvla_daemon.core.messages import AXES, MS
from mvla_daemon.motors.link_v1 import Identity

Micros3: TypeAlias = tuple[int, int, int]
"""µm/s, µm/s, µrad/s: the wire's units."""

OFF_FOR_NS = 500 * MS
"""How long motion may differ from what was told: longer than any delay, shorter than it takes to get far."""
TOLERANCES: Micros3 = (100_000, 100_000, 200_000)
SHARE = 0.3
"""Or this part of the speed, where that is more."""
DELAY_REPORTS = 3
"""A STATUS comes every 20 ms: 60 ms for a command's way, the controller's own period and its filter of the encoders."""
UNKNOWN_RATE = float("inf")
_STANDING: Micros3 = (0, 0, 0)


class MotionWatch:
    """Judges each STATUS of a session against the commands of the session.

    `accel` is how fast commands may grow (m/s², m/s², rad/s²). `told` is the last command written; the host sets it.
    """

    def __init__(self, accel: Axes3) -> None:
        self._accel = accel
        self.begin(None, 0)

    def begin(self, identity: Identity | None, now_ns: int) -> None:
        """A session begins, from standstill."""
        self.told = _STANDING
        self._recent = deque([_STANDING], maxlen=DELAY_REPORTS + 1)
        self._lows = [0.0, 0.0, 0.0]
        self._highs = [0.0, 0.0, 0.0]
        self._off_since_ns: list[int | None] = [None, None, None]
        self._judged_ns = now_ns
        brakes = (0, 0, 0) if identity is None else (identity.decel_mm_s2,) * 2 + (identity.decel_mrad_s2,)
        # From 1/s² to micro-units per second and nanosecond; a controller that tells no ramp has one all the same.
        self._steps = [
            min(accel, brake / 1e3 if brake else UNKNOWN_RATE) / 1e3
            for accel, brake in zip(self._accel, brakes, strict=True)
        ]

    def judge(self, measured: Micros3, now_ns: int) -> str:
        """What is wrong with a newly reported motion, in words; empty where nothing is, or not for long enough."""
        recent = self._recent
        recent.append(self.told)
        elapsed_ns = max(0, now_ns - self._judged_ns)
        self._judged_ns = now_ns
        wrong = ""
        for axis, speed in enumerate(measured):
            targets = [told[axis] for told in recent]
            step = self._steps[axis] * elapsed_ns
            low = self._lows[axis] = min(*targets, self._lows[axis] + step)
            high = self._highs[axis] = max(*targets, self._highs[axis] - step)
            nearest = min(max(speed, low), high)
            if abs(speed - nearest) <= max(TOLERANCES[axis], SHARE * abs(nearest)):
                self._off_since_ns[axis] = None
                continue
            since_ns = self._off_since_ns[axis]
            if since_ns is None:
                self._off_since_ns[axis] = now_ns
            elif now_ns - since_ns >= OFF_FOR_NS:
                wrong = wrong or _sentence(axis, speed, self.told[axis])
        return wrong


def _sentence(axis: int, speed: int, told: int) -> str:
    unit = "rad/s" if AXES[axis].startswith("angular") else "m/s"
    return (
        f"it was told {told / 1e6:.2f} {unit} of {AXES[axis]} and measures {speed / 1e6:.2f}: look for a stuck wheel, "
        f"a reversed motor or encoder, or a limits.{AXES[axis]}.accel that it cannot reach"
    )
