"""How fast three axes turn over time, in whole micro-units, so that it does not matter how often one looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from mvla_daemon.core.messages import SECOND

Axes: TypeAlias = tuple[int, int, int]
"""One value for each of x, y and yaw: µm/s and µrad/s, or those per second."""
ZERO: Axes = (0, 0, 0)


@dataclass(frozen=True, slots=True)
class Ramp:
    """Each axis on its own way from `origin` at `begins_ns` to `target` at its own rate, and there from then on."""

    begins_ns: int
    origin: Axes
    target: Axes
    rates: Axes

    @property
    def ends_ns(self) -> int:
        """The first nanosecond at which every axis has reached its target."""
        gaps = zip(self.origin, self.target, self.rates, strict=True)
        return self.begins_ns + max(-(-abs(target - origin) * SECOND // rate) for origin, target, rate in gaps)

    def at(self, now_ns: int) -> Axes:
        """The three velocities at a time that is not before `begins_ns`."""
        elapsed_ns = now_ns - self.begins_ns
        (x0, y0, yaw0), (x1, y1, yaw1), (rate_x, rate_y, rate_yaw) = self.origin, self.target, self.rates
        return (
            _approach(x0, x1, rate_x * elapsed_ns // SECOND),
            _approach(y0, y1, rate_y * elapsed_ns // SECOND),
            _approach(yaw0, yaw1, rate_yaw * elapsed_ns // SECOND),
        )

    def turned(self, target: Axes, rates: Axes, now_ns: int) -> Ramp:
        """The ramp that leaves this one at `now_ns` for another target."""
        return Ramp(now_ns, self.at(now_ns), target, rates)


def standing(now_ns: int) -> Ramp:
    """A ramp that stands still from `now_ns` on."""
    return Ramp(now_ns, ZERO, ZERO, (1, 1, 1))


def _approach(value: int, target: int, step: int) -> int:
    return min(value + step, target) if value < target else max(value - step, target)
