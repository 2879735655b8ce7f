"""The host's side of motor link v1: what to write when, and what the controller's answers mean.

Bytes and `now_ns` in, bytes and facts out; the port belongs to the gate. Section numbers of timing: "What the host
does" in the protocol's page.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from mvla_daemon.core.messages import MS, Reason
from mvla_daemon.motors.link_v1 import (
    Arm,
    Body,
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

HELLO_EVERY_NS = 200 * MS
STOP_EVERY_NS = 10 * MS
"""Until the controller confirms the stop."""
STOP_AGAIN_EVERY_NS = 100 * MS
"""While stopped or latched: a controller that was replaced or reset in the meantime is told too."""
STATUS_EVERY_NS = 20 * MS
STATUS_LOST_NS = 100 * MS
BACKLOG_NS = 60 * MS
"""A frame this old that the controller has not taken: something is queued before it, so no VELOCITY is put behind."""
UNTAKEN_LOST_NS = 100 * MS
UPTIME_TOLERANCE_MS = 500
STILL_UMPS = 10_000
"""Below 10 mm/s (and 20 mrad/s) is standstill: an encoder tick's worth of noise, not motion."""
STILL_URADPS = 20_000
STILL_REPORTS = 3
_RESTING = frozenset(
    {ControllerState.DISARMED, ControllerState.STOPPED, ControllerState.WATCHDOG_TRIPPED, ControllerState.FAULT}
)
"""A state that the protocol does not know may be one of motion."""
_U32 = 0xFFFFFFFF
_HALF = 1 << 31


class MvlaLink:
    """One controller behind one port.

    `random_u32` draws sessions and nonces. `received` and `sent` count packets by type, `odd` what was not understood.
    """

    def __init__(self, *, watchdog_ms: int, ttl_ms: int, random_u32: Callable[[], int]) -> None:
        self._watchdog_ms = watchdog_ms
        self._ttl_ms = ttl_ms
        self._random_u32 = random_u32
        self.counts: dict[str, int] = {}
        self.session = 0
        self.opened(0)

    def opened(self, now_ns: int) -> None:
        """The port was opened: nothing is known of what is behind it, and our numbers start again."""
        self.decoder = Decoder()
        self.identity: Identity | None = None
        self.status: Status | None = None
        self.status_session = 0
        self.confirmed = False
        self.opened_ns = now_ns
        self._status_seq = 0
        self._status_ns = now_ns
        self._seq = 0
        self._nonce: int | None = None
        self._introduced = False
        self._arming = False
        self._armed_ns: int | None = None
        self._driving = False
        self._stop: Stop | None = None
        self._first_stop_seq = 0
        self._still = 0
        self._next_ns = now_ns
        self._untaken: deque[tuple[int, int]] = deque(maxlen=4096)

    # --- what the controller says ---

    def receive(self, data: bytes, now_ns: int) -> tuple[Reason, str] | None:
        """Take in bytes from the controller; the first fault that they show, if any."""
        fault = None
        for packet in self.decoder.feed(data):
            self._count(type(packet.body).__name__.lower())
            if isinstance(packet.body, Identity):
                self._on_identity(packet.body)
            elif isinstance(packet.body, Status):
                found = self._on_status(packet, packet.body, now_ns)
                fault = fault or found
        return fault

    def _on_identity(self, identity: Identity) -> None:
        if identity.nonce != self._nonce:
            self._count("wrong_nonce")
            return
        self.identity = identity
        self._introduced = True

    def _on_status(self, packet: Packet, status: Status, now_ns: int) -> tuple[Reason, str] | None:
        if self.identity is None:
            return None
        reset = self._shows_reset(packet, status, now_ns)
        if self.status is not None and not newer(packet.seq, self._status_seq) and reset is None:
            self._count("old_status")
            return None
        self.status = status
        self.status_session = packet.session
        self._status_seq = packet.seq
        self._status_ns = now_ns
        while self._untaken and not newer(self._untaken[0][0], status.host_seq):
            self._untaken.popleft()
        moving = max(abs(status.vx_umps), abs(status.vy_umps)) >= STILL_UMPS or abs(status.wz_uradps) >= STILL_URADPS
        self._still = 0 if moving or not self._stop_taken() else self._still + 1
        if self._armed_ns is None:
            return None
        return self._judge_armed(packet.session, status, reset)

    def _shows_reset(self, packet: Packet, status: Status, now_ns: int) -> str | None:
        """Why this STATUS can't come from the controller that sent the last one, or None."""
        if self.status is None:
            return None
        ran_ms = (status.uptime_ms - self.status.uptime_ms + _HALF) % (2 * _HALF) - _HALF
        if not newer(packet.seq, self._status_seq):
            # An old STATUS looks much like a rebooted controller's: that one is far behind, or knows no session.
            rebooted = ran_ms < -UPTIME_TOLERANCE_MS or (self.confirmed and packet.session == 0)
            return "its count and its uptime ran back" if rebooted else None
        if ran_ms < 0 or abs(ran_ms - (now_ns - self._status_ns) / MS) > UPTIME_TOLERANCE_MS:
            return f"its uptime jumped by {ran_ms} ms"
        if self.confirmed and packet.session != self.session:
            return f"it speaks of session {packet.session}"
        return None

    def _judge_armed(self, session: int, status: Status, reset: str | None) -> tuple[Reason, str] | None:
        if not self.confirmed:
            # Until the first STATUS of the new session, the buffers still hold what was said before.
            if session != self.session:
                return None
            if status.state != ControllerState.ARMED or status.watchdog_ms != self._watchdog_ms:
                return Reason.CONTROLLER_FAULT, (
                    f"asked to arm with a watchdog of {self._watchdog_ms} ms, the controller says state {status.state} "
                    f"and {status.watchdog_ms} ms"
                )
            self.confirmed = True
        if reset is not None:
            return Reason.CONTROLLER_RESET, f"the controller was reset: {reset}"
        if newer(status.host_seq, self._seq):
            return Reason.CONTROLLER_FAULT, f"it took frame {status.host_seq}, which we never wrote: who else talks?"
        if status.state != ControllerState.ARMED or status.faults:
            return Reason.CONTROLLER_FAULT, f"the controller says state {status.state}, faults {status.faults:#04x}"
        return None

    # --- facts ---

    @property
    def identified(self) -> bool:
        """Whether a controller has answered with our nonce since the port was opened."""
        return self.identity is not None

    @property
    def stopping(self) -> bool:
        """Whether STOP is being said again and again."""
        return self._stop is not None

    def at_rest(self) -> bool:
        """Whether the controller reports standstill, and has taken our STOP where there is one."""
        return self._still >= STILL_REPORTS and self._stop_taken() and not self._in_motion_state()

    def standstill(self) -> bool:
        """As `at_rest`, and by our own STOP: state 3 of the stopped session (or 0 before a first arming)."""
        if not self.at_rest() or self.status is None:
            return False
        if self.session == 0:
            return self.status.state in {ControllerState.DISARMED, ControllerState.STOPPED}
        return self.status.state == ControllerState.STOPPED and self.status_session == self.session

    def why_not_ready(self) -> str:
        """What keeps the controller from being armed now; empty when nothing does."""
        if self.identity is None:
            return "the motor controller has not identified itself"
        if not self.identity.watchdog_min_ms <= self._watchdog_ms <= self.identity.watchdog_max_ms:
            return (
                f"motor.watchdog_ms is {self._watchdog_ms}, the controller takes {self.identity.watchdog_min_ms} "
                f"to {self.identity.watchdog_max_ms}"
            )
        if self.status is None:
            return "the motor controller sends no STATUS"
        if self.status.faults & 0x1F:
            return f"the motor controller reports fault bits {self.status.faults & 0x1F:#04x}"
        if self._in_motion_state() or self.status.state == ControllerState.FAULT:
            return f"the motor controller is in state {self.status.state}"
        return "" if self.at_rest() else "the robot has not reported standstill"

    def ready_to_arm(self) -> bool:
        """Whether ARM may be sent: introduced again for this arming, standing still, without faults."""
        return self._introduced and self._arming and not self.why_not_ready()

    def lost(self, now_ns: int) -> tuple[Reason, str] | None:
        """While armed: the fault that silence means, if it has lasted too long."""
        if self._armed_ns is None:
            return None
        if now_ns - max(self._status_ns, self._armed_ns) > STATUS_LOST_NS:
            return Reason.CONTROLLER_LOST, f"no STATUS for {(now_ns - self._status_ns) / MS:.0f} ms"
        if self._untaken and now_ns - self._untaken[0][1] > UNTAKEN_LOST_NS:
            return Reason.CONTROLLER_LOST, f"frame {self._untaken[0][0]} was not taken within 100 ms"
        return None

    def backlogged(self, now_ns: int) -> bool:
        """Whether a frame written 60 ms ago has not been taken yet."""
        return bool(self._untaken) and now_ns - self._untaken[0][1] > BACKLOG_NS

    def _stop_taken(self) -> bool:
        if self._stop is None:
            return True
        return self.status is not None and not newer(self._first_stop_seq, self.status.host_seq)

    def _in_motion_state(self) -> bool:
        return self.status is None or self.status.state not in _RESTING

    # --- what to write ---

    def begin_arming(self, now_ns: int) -> None:
        """Ask anew who is there: HELLO makes its number the baseline of a controller that stands still."""
        self._introduced = False
        self._nonce = None  # an echo of an earlier HELLO is no answer to this arming's
        self._still = 0  # and a standstill reported long ago is none now
        self._arming = True
        self._next_ns = min(self._next_ns, now_ns)

    def end_arming(self) -> None:
        """Arming was given up before ARM was sent."""
        self._arming = False

    def arm(self, now_ns: int) -> bytes:
        """ARM with a new random session, neither 0 nor the last one."""
        session = self.session
        while session in {0, self.session, self.status_session}:
            session = self._random_u32() & 0xFFFF
        self.session = session
        self.confirmed = False
        self._arming = False
        self._armed_ns = now_ns
        self._driving = False
        self._stop = None
        self._untaken.clear()
        self._next_ns = now_ns + STATUS_EVERY_NS
        return self._frame(Arm(self._watchdog_ms), now_ns)

    def velocity(self, cycle: int, values: tuple[float, float, float], now_ns: int) -> bytes:
        """VELOCITY, of m/s, m/s and rad/s, in the wire's integers, rounded towards zero."""
        self._driving = True
        vx, vy, wz = values
        return self._frame(Drive(cycle & _U32, self._ttl_ms, int(vx * 1e6), int(vy * 1e6), int(wz * 1e6)), now_ns)

    def stop(self, category: int, reason: Reason, now_ns: int) -> bytes:
        """STOP, from now on repeated by `due`; nothing where nobody has identified himself."""
        if self.identity is None:
            return b""
        already = self._stop is not None
        self._stop = Stop(category, reason)
        self._armed_ns = None
        self.confirmed = False
        self._untaken.clear()
        self._next_ns = now_ns + STOP_EVERY_NS
        packet = self._frame(self._stop, now_ns)
        if not already:
            self._first_stop_seq = self._seq
            self._still = 0
        return packet

    def due(self, now_ns: int) -> bytes:
        """What has to be said again by now: HELLO, KEEPALIVE or STOP, or nothing."""
        if now_ns < self._next_ns:
            return b""
        out = b""
        if self.identity is None or (self._arming and not self._introduced and self.at_rest()):
            self._nonce = self._random_u32() & _U32
            out += self._frame(Hello(self._nonce), now_ns)
            self._next_ns = now_ns + HELLO_EVERY_NS
        if self.identity is not None and self._stop is not None:
            out += self._frame(self._stop, now_ns)
            taken = self._stop_taken() and self.status is not None and self.status.state != ControllerState.ARMED
            self._next_ns = now_ns + (STOP_AGAIN_EVERY_NS if taken else STOP_EVERY_NS)
        elif self._armed_ns is not None and not self._driving:
            out += self._frame(KeepAlive(), now_ns)
            self._next_ns = now_ns + STATUS_EVERY_NS
        elif not out:
            self._next_ns = now_ns + HELLO_EVERY_NS
        return out

    def next_due_ns(self) -> int:
        """When `due` or `lost` has to be asked again at the latest."""
        if self._armed_ns is None:
            return self._next_ns
        limit_ns = max(self._status_ns, self._armed_ns) + STATUS_LOST_NS
        if self._untaken:
            limit_ns = min(limit_ns, self._untaken[0][1] + UNTAKEN_LOST_NS)
        return min(limit_ns, self._next_ns)

    def _frame(self, body: Body, now_ns: int) -> bytes:
        self._seq = (self._seq + 1) & _U32
        if self._armed_ns is not None:
            self._untaken.append((self._seq, now_ns))
        return encode(Packet(self.session, self._seq, body))

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
