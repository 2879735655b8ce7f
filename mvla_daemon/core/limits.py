"""How fast and how suddenly the robot may move: shaped by the policy process, judged by the gate.

Both sides know the same limits. The policy process shapes what a network says into what is allowed; the gate trusts
nothing and refuses what still is not. Their clocks differ by jitter, so the gate grants an allowance of `accel * T` on
top of `accel * (time since the last write)`: together a token bucket, so that over any stretch of time the speed grows
by no more than `accel * time + accel * T`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mvla_daemon.core.messages import SECOND, Reason

Axes3: TypeAlias = tuple[float, float, float]

OUTRAGEOUS = 10.0
"""A value past this many times its limit is no wish to clamp but a broken policy: the gate has to see it."""
SMALLEST_NORMAL = 2.0**-126
"""Numbers below binary32's smallest normal one (IEEE 754) are taken as zero."""


@dataclass(frozen=True, slots=True)
class AxisLimit:
    """One axis: `maximum` in m/s or rad/s, `accel` in m/s² or rad/s²."""

    maximum: float
    accel: float


def without_denormals(value: float) -> float:
    """The value, or 0.0 where it is too small to be a normal binary32 number; NaN and infinities stay as they are."""
    return 0.0 if abs(value) < SMALLEST_NORMAL else value


class VelocityShaper:
    """The policy process's side: clamps to the limits and to the acceleration, axis by axis.

    Coming towards zero is not limited. Non-finite values and those past ten times the limit are handed on as they are:
    the gate has to see them.
    """

    def __init__(self, limits: Sequence[AxisLimit]) -> None:
        self._limits = tuple(limits)
        self.reset(0)

    def reset(self, now_ns: int) -> None:
        """Begin anew from standstill."""
        self._last = [0.0] * len(self._limits)
        self._last_ns = now_ns

    def shape(self, wish: Axes3, now_ns: int) -> Axes3:
        """The nearest allowed values to `wish` (m/s, m/s, rad/s) at this moment."""
        elapsed_s = max(0, now_ns - self._last_ns) / SECOND
        if any(not abs(v) <= OUTRAGEOUS * lim.maximum for v, lim in zip(wish, self._limits, strict=True)):  # NaN too
            return wish
        for i, limit in enumerate(self._limits):
            value = without_denormals(min(max(wish[i], -limit.maximum), limit.maximum))
            self._last[i] = _approach(self._last[i], value, limit.accel * elapsed_s)
        self._last_ns = now_ns
        return (self._last[0], self._last[1], self._last[2])


def _approach(last: float, value: float, step: float) -> float:
    """As near to `value` as one step away from zero allows; through zero only by way of zero."""
    if _opposite(last, value):
        return 0.0
    if abs(value) <= abs(last):
        return value
    return math.copysign(min(abs(value), abs(last) + step), value)


class VelocityGuard:
    """The gate's side: says what a command violates, and remembers what was written."""

    def __init__(self, limits: Sequence[AxisLimit], period_ns: int) -> None:
        self._limits = tuple(limits)
        self._allowances = [limit.accel * period_ns / SECOND for limit in self._limits]
        self.reset(0)

    def reset(self, now_ns: int) -> None:
        """Begin anew from standstill, with the whole allowance."""
        self._left = list(self._allowances)
        self._last = [0.0] * len(self._limits)
        self._last_ns = now_ns

    def violation(self, values: Axes3, now_ns: int) -> Reason | None:
        """What is wrong with these values (m/s, m/s, rad/s), if anything; changes nothing."""
        if not all(map(math.isfinite, values)):
            return Reason.NOT_FINITE
        elapsed_s = max(0, now_ns - self._last_ns) / SECOND
        for i, limit in enumerate(self._limits):
            if abs(values[i]) > limit.maximum:
                return Reason.LIMIT_VIOLATED
            if _rise(self._last[i], values[i]) > limit.accel * elapsed_s + self._left[i]:
                return Reason.LIMIT_VIOLATED
        return None

    def wrote(self, values: Axes3, now_ns: int) -> None:
        """Take note of values that went out on the wire."""
        elapsed_s = max(0, now_ns - self._last_ns) / SECOND
        for i, limit in enumerate(self._limits):
            left = self._left[i] + limit.accel * elapsed_s - _rise(self._last[i], values[i])
            self._left[i] = min(self._allowances[i], left)
            self._last[i] = values[i]
        self._last_ns = now_ns


def _rise(last: float, value: float) -> float:
    """How much of a change counts against the acceleration: none of it while coming towards zero."""
    if abs(value) <= abs(last) and not _opposite(last, value):
        return 0.0
    return abs(value - last)


def _opposite(one: float, other: float) -> bool:
    """Whether zero lies between the two; their product would not tell, since a small one becomes zero."""
    return one < 0.0 < other or other < 0.0 < one
