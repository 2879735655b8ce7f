"""The host's side of motor link v1: what to write when. What the controller answers is judged by its watch.

Bytes and `now_ns` in, bytes and facts out; the port belongs to the gate. The periods are those of "What the host does"
in the protocol's page.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from mvla_daemon.core.limits import Axes3
from mvla_daemon.core.messages import MS, Reason
from mvla_daemon.motors.controller_watch import NEVER_NS, ControllerWatch, Fault
from mvla_daemon.motors.link_v1 import (
    Arm,
    Body,
    Decoder,
    Drive,
    Hello,
    Identity,
    KeepAlive,
    Packet,
    Status,
    Stop,
    encode,
)
from mvla_daemon.motors.motion_watch import MotionWatch

HELLO_EVERY_NS = 200 * MS
KEEPALIVE_EVERY_NS = 20 * MS
STOP_EVERY_NS = 10 * MS
"""Until the controller confirms the stop."""
STOP_AGAIN_EVERY_NS = 100 * MS
"""While stopped or latched: a controller that was replaced or reset in the meantime is told too."""
BACKLOG_NS = 60 * MS
"""A frame this old that the controller has not taken: something is queued before it, so no VELOCITY is put behind."""
_U32 = 0xFFFFFFFF


class MvlaLink:
    """One controller behind one port.

    `random_u32` draws sessions and nonces, `accel` is how fast commands may grow (m/s², m/s², rad/s²), `period_ns` how
    far apart they are (T). `session` is the last armed one; `counts` holds how many packets came of each type since the
    start, and how many of them were odd.
    """

    def __init__(
        self, *, watchdog_ms: int, ttl_ms: int, accel: Axes3, period_ns: int, random_u32: Callable[[], int]
    ) -> None:
        self._watchdog_ms = watchdog_ms
        self._most_untaken = max(3, -(-BACKLOG_NS // period_ns))
        self._ttl_ms = ttl_ms
        self._random_u32 = random_u32
        self._motion = MotionWatch(accel)
        self.counts: Counter[str] = Counter()
        self.session = 0
        self.opened(0)

    def opened(self, now_ns: int) -> None:
        """The port was opened: nothing is known of what is behind it, and our numbers start again."""
        self._untaken: deque[tuple[int, int]] = deque(maxlen=4096)
        self._watch = ControllerWatch(
            watchdog_ms=self._watchdog_ms,
            session=self.session,
            counts=self.counts,
            untaken=self._untaken,
            motion=self._motion,
            now_ns=now_ns,
        )
        self.opened_ns = now_ns
        self._seq = 0
        self._stop: Stop | None = None
        self._arming = False
        self._hello_ns = now_ns
        self._again_ns = NEVER_NS

    # --- what the controller says ---

    def receive(self, data: bytes, now_ns: int) -> Fault | None:
        """Take in bytes from the controller; the first fault that they show, if any."""
        return self._watch.receive(data, self._seq, now_ns)

    def lost(self, now_ns: int) -> Fault | None:
        """While armed: the fault that silence means, if it has lasted too long."""
        return self._watch.lost(now_ns)

    def backlogged(self, now_ns: int) -> bool:
        """Whether a frame written 60 ms ago has not been taken yet, or as many as that time has cycles, at least three.

        The count is for cycles that follow one another a little faster than T: a fourth one must not be held up.
        """
        untaken = self._untaken
        return len(untaken) >= self._most_untaken or (bool(untaken) and now_ns - untaken[0][1] > BACKLOG_NS)

    @property
    def decoder(self) -> Decoder:
        """What was damaged of the bytes since the port was opened."""
        return self._watch.decoder

    @property
    def identity(self) -> Identity | None:
        """Who answered with our nonce since the port was opened."""
        return self._watch.identity

    @property
    def identified(self) -> bool:
        """Whether a controller has answered with our nonce since the port was opened."""
        return self._watch.identity is not None

    @property
    def status(self) -> Status | None:
        """The newest STATUS."""
        return self._watch.status

    @property
    def confirmed(self) -> bool:
        """Whether the controller has confirmed the session that is armed."""
        return self._watch.confirmed

    @property
    def stopping(self) -> bool:
        """Whether STOP is being said again and again."""
        return self._stop is not None

    def at_rest(self) -> bool:
        """Whether the controller reports standstill, and has taken our STOP where there is one."""
        return self._watch.at_rest()

    def standstill(self) -> bool:
        """As `at_rest`, and by our own STOP: state 3 of the stopped session (or 0 before a first arming)."""
        return self._watch.standstill()

    def why_not_ready(self) -> str:
        """What keeps the controller from being armed now; empty when nothing does."""
        return self._watch.why_not_ready()

    def ready_to_arm(self) -> bool:
        """Whether ARM may be sent: introduced again for this arming, standing still, without faults."""
        return self._watch.introduced and self._arming and not self._watch.why_not_ready()

    # --- what to write ---

    def begin_arming(self, now_ns: int) -> None:
        """Ask anew who is there: HELLO makes its number the baseline of a controller that stands still."""
        self._watch.begin_arming()
        self._arming = True
        self._hello_ns = now_ns

    def end_arming(self) -> None:
        """Arming was given up before ARM was sent."""
        self._arming = False

    def arm(self, now_ns: int) -> bytes:
        """ARM with a new random session, neither 0 nor the last one."""
        session = self.session
        while session in {0, self.session, self._watch.status_session}:
            session = self._random_u32() & 0xFFFF
        self.session = session
        self._watch.begin_session(session, now_ns)
        self._untaken.clear()
        self._stop = None
        self._arming = False
        self._hello_ns = NEVER_NS  # who is known is not asked: `due` need not find that out at each wake
        self._again_ns = now_ns + KEEPALIVE_EVERY_NS
        return self._frame(Arm(self._watchdog_ms), now_ns)

    def velocity(self, cycle: int, values: Axes3, now_ns: int) -> bytes:
        """VELOCITY, of m/s, m/s and rad/s, in the wire's integers, rounded towards zero."""
        if self._stop is None:  # KEEPALIVE has done its work; a STOP is not ended by this
            self._again_ns = NEVER_NS
        vx, vy, wz = values
        told = self._motion.told = (int(vx * 1e6), int(vy * 1e6), int(wz * 1e6))
        return self._frame(Drive(cycle & _U32, self._ttl_ms, *told), now_ns)

    def stop(self, category: int, reason: Reason, now_ns: int) -> bytes:
        """STOP, from now on repeated by `due`; nothing where nobody has identified himself."""
        if self._watch.identity is None:
            return b""
        self._stop = Stop(category, reason)
        self._again_ns = now_ns + STOP_EVERY_NS
        packet = self._frame(self._stop, now_ns)
        self._watch.end_session(self._seq)
        self._untaken.clear()
        return packet

    def due(self, now_ns: int) -> bytes:
        """What has to be said again by now: HELLO, KEEPALIVE or STOP, or nothing."""
        out = b""
        if now_ns >= self._hello_ns and self._asks():
            nonce = self._random_u32() & _U32
            self._watch.asked(nonce)
            out += self._frame(Hello(nonce), now_ns)
            self._hello_ns = now_ns + HELLO_EVERY_NS
        if now_ns >= self._again_ns:
            out += self._frame(self._stop or KeepAlive(), now_ns)
            self._again_ns = now_ns + self._again_every_ns()
        return out

    def next_due_ns(self) -> int:
        """When `due` or `lost` has to be asked again at the latest, if nothing is heard or written before."""
        due_ns = min(self._again_ns, self._watch.patient_until_ns())
        return self._hello_ns if self._hello_ns < due_ns and self._asks() else due_ns

    def _asks(self) -> bool:
        """Whether HELLO is to be said: to the unknown always, to the known for an arming and only at rest."""
        watch = self._watch
        return watch.identity is None or (self._arming and not watch.introduced and watch.at_rest())

    def _again_every_ns(self) -> int:
        if self._stop is None:
            return KEEPALIVE_EVERY_NS
        return STOP_AGAIN_EVERY_NS if self._watch.stop_confirmed() else STOP_EVERY_NS

    def _frame(self, body: Body, now_ns: int) -> bytes:
        self._seq = seq = (self._seq + 1) & _U32
        if self._watch.armed:
            self._untaken.append((seq, now_ns))
        return encode(Packet(self.session, seq, body))
