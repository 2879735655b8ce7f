"""The controller side of motor link v1: bytes and times in, bytes out, with no I/O and no clock of its own.

It keeps to the same contract as a controller's firmware. Where that leaves room, this one takes the strict side:

* after a boot there is no baseline, so only HELLO and STOP are accepted until a HELLO has set one;
* every ARM, VELOCITY and KEEPALIVE with a newer seq becomes the baseline, also when it is then refused;
* `host_seq` follows what was accepted: an ARM that was ignored counts, a VELOCITY or KEEPALIVE outside the armed
  session does not. A HELLO that becomes the baseline becomes `host_seq` too, or a host that starts again at 1 would
  never be seen to be followed;
* a watchdog trip stays one: a STOP during its ramp tightens the ramp, and then comes state 4, not 3;
* a fault during any ramp makes it end in state 5, and only a reboot leaves that;
* a STOP of an unknown category is one of category 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from mvla_daemon.core.messages import MS, Velocity
from mvla_daemon.motors.link_v1 import (
    Arm,
    ControllerState,
    Decoder,
    Drive,
    Hello,
    Identity,
    KeepAlive,
    Packet,
    Status,
    Stop,
    encode,
    newer,
)
from mvla_daemon.sim.motors import Motors

if TYPE_CHECKING:
    from mvla_daemon.sim.ramp import Axes

STATUS_PERIOD_NS = 20 * MS
_FIRMWARE = (1, 0)
_BATTERY_UNKNOWN = 0
_U32 = 0xFFFFFFFF


class Controller:
    """A motor controller with three independent axes.

    `decel_*` is the ramp of every stop, `accel_*` the rate at which an axis follows a command, in mm/s² and mrad/s².
    `uptime_ms` is the uptime at `booted_ns`. `ValueError` for a `name` of more than 16 bytes.

    A call with a time before the latest one seen is taken as made at that.
    """

    def __init__(
        self,
        *,
        name: str = "mvla-double",
        watchdog_min_ms: int = 20,
        watchdog_max_ms: int = 1000,
        decel_mm_s2: int = 2000,
        decel_mrad_s2: int = 8000,
        accel_mm_s2: int = 5000,
        accel_mrad_s2: int = 20_000,
        booted_ns: int = 0,
        uptime_ms: int = 0,
    ) -> None:
        self._name = name.encode()
        if len(self._name) > 16:
            raise ValueError(f"a controller's name has at most 16 bytes, {name!r} has {len(self._name)}")
        self._watchdog_min_ms = watchdog_min_ms
        self._watchdog_max_ms = watchdog_max_ms
        self._ramp_told = (decel_mm_s2, decel_mrad_s2)
        self.disobey: Callable[[Axes], Axes] | None = None
        """What the axes follow instead of a command, while this is set: a robot that moves otherwise than told."""
        self._accel = _micros(accel_mm_s2, accel_mrad_s2)
        self._decel = _micros(decel_mm_s2, decel_mrad_s2)
        self._boot(booted_ns, uptime_ms, hardware_faults=0)

    def _boot(self, now_ns: int, uptime_ms: int, hardware_faults: int) -> None:
        self._motors = Motors(now_ns, accel=self._accel, decel=self._decel, hardware_faults=hardware_faults)
        self._booted_ns = now_ns - uptime_ms * MS
        self._status_due_ns = now_ns + STATUS_PERIOD_NS
        self._decoder = Decoder()
        self._refused: Counter[str] = Counter()
        self._session = 0
        self._seq = 0
        self._baseline: int | None = None
        self._host_seq: int | None = None

    @property
    def state(self) -> ControllerState:
        """The state at the time of the last call."""
        return self._motors.state

    @property
    def session(self) -> int:
        """The armed or last armed session; 0 after a boot."""
        return self._session

    @property
    def velocity(self) -> Velocity:
        """The measured velocity at the time of the last call."""
        x, y, yaw = self._motors.micros
        return Velocity(x / 1e6, y / 1e6, yaw / 1e6)

    @property
    def faults(self) -> int:
        """The fault bits of STATUS."""
        return self._motors.faults

    @property
    def watchdog_ms(self) -> int:
        """The watchdog that the last obeyed ARM has set; 0 before one."""
        return self._motors.watchdog_ms

    @property
    def host_seq(self) -> int:
        """The newest host seq accepted, of any type; 0 before one."""
        return self._host_seq or 0

    @property
    def drive_on(self) -> bool:
        """Whether the motors have drive; after a stop of category 2 they keep it, to hold at zero."""
        return self._motors.drive_on

    @property
    def dropped(self) -> Counter[str]:
        """How many frames since boot were not acted on: by kind of damage, or as `seq`, `session`, `state`, `arm`.

        `direction` counts frames of a type that only a controller sends.
        """
        return self._refused + Counter(self._decoder.counts)

    def set_fault(self, bit: int, on: bool) -> None:
        """Raise or clear a hardware fault (bit 0 to 4) at the time of the last call; it outlives a reboot."""
        if not 0 <= bit <= 4:
            raise ValueError(f"a hardware fault is one of the bits 0 to 4, not {bit}")
        if on:
            self._motors.fail(1 << bit)
        else:
            self._motors.hardware_faults &= ~(1 << bit)

    def reset(self, now_ns: int) -> None:
        """Reboot: drive removed at once, all forgotten but the hardware's faults."""
        self._motors.advance(now_ns)
        self._boot(self._motors.now_ns, 0, self._motors.hardware_faults)

    def trip(self) -> None:
        """Have the watchdog run out at the time of the last call, whether it was fed or not."""
        self._motors.trip()

    def next_tick_ns(self, now_ns: int) -> int:
        """When `tick` next has something to do; `now_ns` at the earliest."""
        event_ns = self._motors.next_event_ns()
        due_ns = self._status_due_ns if event_ns is None else min(event_ns, self._status_due_ns)
        return max(now_ns, due_ns)

    def tick(self, now_ns: int) -> bytes:
        """Advance to `now_ns`; a STATUS when one is due, and one only when several are."""
        self._motors.advance(now_ns)
        late_ns = self._motors.now_ns - self._status_due_ns
        if late_ns < 0:
            return b""
        self._status_due_ns += (late_ns // STATUS_PERIOD_NS + 1) * STATUS_PERIOD_NS
        return self._status()

    def receive(self, data: bytes, now_ns: int) -> bytes:
        """Act on bytes that arrived at `now_ns`; what is answered at once."""
        self._motors.advance(now_ns)
        return b"".join([self._handle(packet) for packet in self._decoder.feed(data)])

    def _handle(self, packet: Packet) -> bytes:
        match packet.body:
            case Hello(nonce=nonce):
                self._hello(packet.seq)
                return self._identity(nonce)
            case Stop(category=category):
                self._note(packet.seq)
                self._motors.stop(category)
                return self._status()
            case Arm(watchdog_ms=watchdog_ms):
                if self._moves_baseline(packet.seq):
                    self._note(packet.seq)
                    self._arm(packet.session, watchdog_ms)
                return self._status()
            case Drive() | KeepAlive() as body:
                if self._moves_baseline(packet.seq) and self._is_armed_session(packet.session):
                    self._note(packet.seq)
                    self._feed(body)
            case _:
                self._refused["direction"] += 1
        return b""

    def _hello(self, seq: int) -> None:
        if self._motors.moving:
            self._note(seq)
        else:
            self._baseline = self._host_seq = seq

    def _arm(self, session: int, watchdog_ms: int) -> None:
        within = self._watchdog_min_ms <= watchdog_ms <= self._watchdog_max_ms
        if within and session not in {0, self._session} and self._motors.can_arm():
            self._session = session
            self._motors.arm(watchdog_ms)
        else:
            self._refused["arm"] += 1

    def _feed(self, body: Drive | KeepAlive) -> None:
        if isinstance(body, Drive):
            told = (body.vx_umps, body.vy_umps, body.wz_uradps)
            self._motors.command(self.disobey(told) if self.disobey else told, body.ttl_ms)
        else:
            self._motors.feed()

    def _note(self, seq: int) -> None:
        if self._host_seq is None or newer(seq, self._host_seq):
            self._host_seq = seq

    def _moves_baseline(self, seq: int) -> bool:
        if self._baseline is None or not newer(seq, self._baseline):
            self._refused["seq"] += 1
            return False
        self._baseline = seq
        return True

    def _is_armed_session(self, session: int) -> bool:
        armed = self._motors.state is ControllerState.ARMED
        if armed and session == self._session:
            return True
        self._refused["session" if armed else "state"] += 1
        return False

    def _identity(self, nonce: int) -> bytes:
        limits = (self._watchdog_min_ms, self._watchdog_max_ms)
        return self._send(Identity(nonce, self._name, *_FIRMWARE, *limits, *self._ramp_told))

    def _status(self) -> bytes:
        motors = self._motors
        uptime_ms = ((motors.now_ns - self._booted_ns) // MS) & _U32
        heard = (self.host_seq, uptime_ms, motors.watchdog_ms)
        return self._send(Status(motors.state, motors.faults, *heard, *motors.micros, _BATTERY_UNKNOWN))

    def _send(self, body: Identity | Status) -> bytes:
        self._seq = (self._seq + 1) & _U32
        return encode(Packet(self._session, self._seq, body))


def _micros(mm_s2: int, mrad_s2: int) -> Axes:
    return (mm_s2 * 1000, mm_s2 * 1000, mrad_s2 * 1000)
