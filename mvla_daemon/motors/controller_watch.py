"""What a motor controller says, judged: who it is, whether it follows, was reset, stands still or has gone silent.

Bytes and `now_ns` in, facts and faults out. What the host does meanwhile (ask, arm, write, stop) it has to be told.
The limits of time are those of "What the host does" in the protocol's page.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TypeAlias

from mvla_daemon.core.messages import MS, Reason
from mvla_daemon.motors.link_v1 import ControllerState, Decoder, Identity, Packet, Status, newer
from mvla_daemon.motors.motion_watch import MotionWatch

STATUS_LOST_NS = 100 * MS
UNTAKEN_LOST_NS = 100 * MS
UPTIME_TOLERANCE_MS = 500
STILL_UMPS = 10_000
"""Below 10 mm/s (and 20 mrad/s) is standstill: an encoder tick's worth of noise, not motion."""
STILL_URADPS = 20_000
STILL_REPORTS = 3
NEVER_NS = 1 << 63
"""Later than any time."""
_RESTING = frozenset(
    {ControllerState.DISARMED, ControllerState.STOPPED, ControllerState.WATCHDOG_TRIPPED, ControllerState.FAULT}
)
"""A state that the protocol does not know may be one of motion."""
_HALF = 1 << 31

Fault: TypeAlias = tuple[Reason, str]
"""Why the robot has to be stopped, for the wire and for people."""


class ControllerWatch:
    """Judges what is behind a port, from one opening of it to the next.

    `session` is the last one that was armed, 0 before the first. `counts` gets how many packets came of each type, and
    how many of them were odd. In `untaken` the host puts the number and the time of each frame that it writes while
    armed; those that the controller has taken are removed. `motion` judges how the robot moves while armed, and has to
    be told each command. `introduced`: the newest nonce has been answered.
    """

    def __init__(
        self,
        *,
        watchdog_ms: int,
        session: int,
        counts: Counter[str],
        untaken: deque[tuple[int, int]],
        motion: MotionWatch,
        now_ns: int,
    ) -> None:
        self.decoder = Decoder()
        self.identity: Identity | None = None
        self.introduced = False
        self.status: Status | None = None
        self.status_session = 0
        self.armed = False
        self.confirmed = False
        self._watchdog_ms = watchdog_ms
        self._session = session
        self._counts = counts
        self._untaken = untaken
        self._motion = motion
        self._nonce: int | None = None
        self._status_seq = 0
        self._status_ns = now_ns
        self._silent_since_ns = now_ns
        self._still = 0
        self._first_stop_seq: int | None = None

    # --- what the host does ---

    def begin_arming(self) -> None:
        """Only what is said from now on counts: no echo of an earlier HELLO, no standstill reported long ago."""
        self.introduced = False
        self._nonce = None
        self._still = 0

    def asked(self, nonce: int) -> None:
        """HELLO is being sent: only its nonce is an answer from now on."""
        self._nonce = nonce

    def begin_session(self, session: int, now_ns: int) -> None:
        """ARM is being sent: only a STATUS of its session confirms it, and from now on silence is judged."""
        self._session = session
        self.armed = True
        self.confirmed = False
        self._silent_since_ns = now_ns
        self._first_stop_seq = None
        self._motion.begin(self.identity, now_ns)

    def end_session(self, stop_seq: int) -> None:
        """STOP was written: nothing is judged any more, but for whether the first of these STOPs has been taken."""
        self.armed = False
        self.confirmed = False
        if self._first_stop_seq is None:
            self._first_stop_seq = stop_seq
            self._still = 0

    # --- what the controller says ---

    def receive(self, data: bytes, written_seq: int, now_ns: int) -> Fault | None:
        """Take in bytes from the controller; the first fault that they show. `written_seq` is our newest number."""
        fault = None
        for packet in self.decoder.feed(data):
            body = packet.body
            if isinstance(body, Status):
                self._counts["status"] += 1
                found = self._on_status(packet, body, written_seq, now_ns)
                fault = fault or found
            else:
                self._counts[type(body).__name__.lower()] += 1
                if isinstance(body, Identity):
                    self._on_identity(body)
        return fault

    def _on_identity(self, identity: Identity) -> None:
        if identity.nonce != self._nonce:
            self._counts["wrong_nonce"] += 1
            return
        self.identity = identity
        self.introduced = True

    def _on_status(self, packet: Packet, status: Status, written_seq: int, now_ns: int) -> Fault | None:
        if self.identity is None:
            return None
        reset = None
        if self.status is not None:
            is_newer = newer(packet.seq, self._status_seq)
            reset = self._shows_reset(self.status, status, packet.session, is_newer, now_ns)
            if not is_newer and reset is None:
                self._counts["old_status"] += 1
                return None
        self.status = status
        self.status_session = packet.session
        self._status_seq = packet.seq
        self._status_ns = self._silent_since_ns = now_ns
        while self._untaken and not newer(self._untaken[0][0], status.host_seq):
            self._untaken.popleft()
        still = (
            abs(status.vx_umps) < STILL_UMPS
            and abs(status.vy_umps) < STILL_UMPS
            and abs(status.wz_uradps) < STILL_URADPS
        )
        self._still = self._still + 1 if still and self._stop_taken(status.host_seq) else 0
        return self._judge_armed(packet.session, status, reset, written_seq, now_ns) if self.armed else None

    def _shows_reset(self, last: Status, status: Status, session: int, is_newer: bool, now_ns: int) -> str | None:
        """Why this STATUS can't come from the controller that sent the last one, or None."""
        ran_ms = (status.uptime_ms - last.uptime_ms + _HALF) % (2 * _HALF) - _HALF
        if not is_newer:
            # An old STATUS looks much like a rebooted controller's: that one is far behind, or knows no session.
            rebooted = ran_ms < -UPTIME_TOLERANCE_MS or (self.confirmed and session == 0)
            return "its count and its uptime ran back" if rebooted else None
        if ran_ms < 0 or abs(ran_ms - (now_ns - self._status_ns) / MS) > UPTIME_TOLERANCE_MS:
            return f"its uptime jumped by {ran_ms} ms"
        if session != self._session:  # judged once the session is confirmed
            return f"it speaks of session {session}"
        return None

    def _judge_armed(
        self, session: int, status: Status, reset: str | None, written_seq: int, now_ns: int
    ) -> Fault | None:
        if not self.confirmed:
            # Until the first STATUS of the new session, the buffers still hold what was said before.
            if session != self._session:
                return None
            if status.state != ControllerState.ARMED or status.watchdog_ms != self._watchdog_ms:
                return Reason.CONTROLLER_FAULT, (
                    f"asked to arm with a watchdog of {self._watchdog_ms} ms, the controller says state {status.state} "
                    f"and {status.watchdog_ms} ms"
                )
            self.confirmed = True
        if reset is not None:
            return Reason.CONTROLLER_RESET, f"the controller was reset: {reset}"
        if newer(status.host_seq, written_seq):
            return Reason.CONTROLLER_FAULT, f"it took frame {status.host_seq}, which we never wrote: who else talks?"
        if status.state != ControllerState.ARMED or status.faults:
            return Reason.CONTROLLER_FAULT, f"the controller says state {status.state}, faults {status.faults:#04x}"
        wrong = self._motion.judge((status.vx_umps, status.vy_umps, status.wz_uradps), now_ns)
        return (Reason.CONTROLLER_FAULT, wrong) if wrong else None

    # --- what follows ---

    def lost(self, now_ns: int) -> Fault | None:
        """While armed: the fault that silence means, if it has lasted too long."""
        if not self.armed:
            return None
        if now_ns - self._silent_since_ns > STATUS_LOST_NS:
            return Reason.CONTROLLER_LOST, f"no STATUS for {(now_ns - self._status_ns) / MS:.0f} ms"
        if self._untaken and now_ns - self._untaken[0][1] > UNTAKEN_LOST_NS:
            return Reason.CONTROLLER_LOST, f"frame {self._untaken[0][0]} was not taken within 100 ms"
        return None

    def patient_until_ns(self) -> int:
        """Until when it is not `lost` if nothing more is heard; `NEVER_NS` while it is not armed."""
        if not self.armed:
            return NEVER_NS
        status_by_ns = self._silent_since_ns + STATUS_LOST_NS
        return min(status_by_ns, self._untaken[0][1] + UNTAKEN_LOST_NS) if self._untaken else status_by_ns

    def at_rest(self) -> bool:
        """Whether the controller reports standstill, and has taken our STOP where there is one."""
        if self._still < STILL_REPORTS:
            return False
        assert self.status is not None
        return self.status.state in _RESTING

    def standstill(self) -> bool:
        """As `at_rest`, and by our own STOP: state 3 of the stopped session (or 0 before a first arming)."""
        if not self.at_rest():
            return False
        assert self.status is not None
        if self._session == 0:
            return self.status.state in {ControllerState.DISARMED, ControllerState.STOPPED}
        return self.status.state == ControllerState.STOPPED and self.status_session == self._session

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
        if self.status.state not in _RESTING or self.status.state == ControllerState.FAULT:
            return f"the motor controller is in state {self.status.state}"
        return "" if self.at_rest() else "the robot has not reported standstill"

    def stop_confirmed(self) -> bool:
        """Whether a STOP of ours was taken and has ended the armed state."""
        status = self.status
        return status is not None and status.state != ControllerState.ARMED and self._stop_taken(status.host_seq)

    def _stop_taken(self, host_seq: int) -> bool:
        return self._first_stop_seq is None or not newer(self._first_stop_seq, host_seq)
