"""The moving half of the simulated controller: its states, its two timers, and the ramps of its axes."""

from __future__ import annotations

from mvla_daemon.core.messages import MS
from mvla_daemon.motors.link_v1 import ControllerState
from mvla_daemon.sim.ramp import ZERO, Axes, Ramp, standing

_RESTING = frozenset({ControllerState.DISARMED, ControllerState.STOPPED, ControllerState.WATCHDOG_TRIPPED})
_MOVING = frozenset({ControllerState.ARMED, ControllerState.STOPPING})
_TTL_RAN_OUT = 0b10_0000


class Motors:
    """Three axes that move in states 1 and 2 only.

    `accel` is the rate at which an axis follows a command, `decel` the ramp of every stop, both per second in
    micro-units. What happens by itself (a command or the watchdog runs out, a ramp reaches zero) happens in `advance`,
    at its own time. Everything else happens at `now_ns`, the time of the last `advance`.
    """

    def __init__(self, now_ns: int, *, accel: Axes, decel: Axes, hardware_faults: int = 0) -> None:
        self.now_ns = now_ns
        self.state = ControllerState.DISARMED
        self.watchdog_ms = 0
        self.hardware_faults = hardware_faults
        self._accel = accel
        self._decel = decel
        self._ramp: Ramp = standing(now_ns)
        self._state_after_ramp = ControllerState.STOPPED
        self._category = 1
        self._ttl_ran_out = False
        self._command_ends_ns: int | None = None
        self._has_longer_ttl = False
        self._watchdog_ends_ns: int | None = None

    @property
    def micros(self) -> Axes:
        """The measured velocity in µm/s and µrad/s."""
        return self._ramp.at(self.now_ns)

    @property
    def faults(self) -> int:
        """The fault bits of STATUS."""
        return self.hardware_faults | (_TTL_RAN_OUT if self._ttl_ran_out else 0)

    @property
    def moving(self) -> bool:
        """Whether the state is one in which the axes may move."""
        return self.state in _MOVING

    @property
    def drive_on(self) -> bool:
        """Whether the motors have drive: in states 1 and 2, and held at zero after a stop of category 2."""
        return self.moving or (self.state is ControllerState.STOPPED and self._category == 2)

    def can_arm(self) -> bool:
        """Whether state and faults allow it; a resting state is standstill, since it begins where a ramp ends."""
        return self.state in _RESTING and not self.hardware_faults

    def arm(self, watchdog_ms: int) -> None:
        """Enter state 1 at zero velocity and start the watchdog."""
        self.state = ControllerState.ARMED
        self.watchdog_ms = watchdog_ms
        self._category = 2  # the loosest: nothing is left of an earlier stop to tighten
        self._ttl_ran_out = False
        self.feed()

    def feed(self) -> None:
        """Start the watchdog anew; in state 1 only."""
        self._watchdog_ends_ns = self.now_ns + self.watchdog_ms * MS

    def command(self, target: Axes, ttl_ms: int) -> None:
        """Follow a velocity for `ttl_ms`, but no longer than the watchdog however it is fed; in state 1 only."""
        self.feed()
        self._command_ends_ns = self.now_ns + min(ttl_ms, self.watchdog_ms) * MS
        self._has_longer_ttl = ttl_ms > self.watchdog_ms
        self._ramp = self._ramp.turned(target, self._accel, self.now_ns)
        self.advance(self.now_ns)

    def stop(self, category: int) -> None:
        """Stop, or tighten a stop; an unknown category is category 1."""
        category = category if category <= 2 else 1
        if self.state is ControllerState.ARMED:
            self._begin_stop(ControllerState.STOPPED, category)
        self._tighten(category)

    def fail(self, fault: int) -> None:
        """Raise a bit of `hardware_faults`; motion ends in state 5."""
        self.hardware_faults |= fault
        if self.moving:
            self._begin_stop(ControllerState.FAULT, self._category)
        self._tighten(1)

    def trip(self) -> None:
        """Have the watchdog run out now; in a state other than 1 it does not run."""
        if self.state is ControllerState.ARMED:
            self._begin_stop(ControllerState.WATCHDOG_TRIPPED, category=1)
            self.advance(self.now_ns)

    def next_event_ns(self) -> int | None:
        """When something happens by itself, or None while nothing will."""
        if self.state is ControllerState.STOPPING:
            return self._ramp.ends_ns
        return min((at for at in (self._command_ends_ns, self._watchdog_ends_ns) if at is not None), default=None)

    def advance(self, now_ns: int) -> None:
        """Let all happen, in its order, that is due by `now_ns`; a time that has passed already is now."""
        now_ns = max(now_ns, self.now_ns)
        while (due_ns := self.next_event_ns()) is not None and due_ns <= now_ns:
            self.now_ns = due_ns
            if self.state is ControllerState.STOPPING:
                self.state = self._state_after_ramp
            elif self._command_ends_ns == due_ns:
                self._command_ends_ns = None
                self._ttl_ran_out |= not self._has_longer_ttl
                self._ramp_down()
            else:
                self._begin_stop(ControllerState.WATCHDOG_TRIPPED, category=1)
        self.now_ns = now_ns

    def _begin_stop(self, then: ControllerState, category: int) -> None:
        self.state = ControllerState.STOPPING
        self._state_after_ramp = then
        self._category = category
        self._command_ends_ns = self._watchdog_ends_ns = None
        self._ramp_down()

    def _tighten(self, category: int) -> None:
        self._category = min(self._category, category)
        if self._category == 0:
            self._ramp = standing(self.now_ns)
        self.advance(self.now_ns)

    def _ramp_down(self) -> None:
        self._ramp = self._ramp.turned(ZERO, self._decel, self.now_ns)
