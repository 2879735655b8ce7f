"""What events lead to: the state machine's effects carried out, on the wire first and in words afterwards."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from typing import Any

from mvla_daemon import __version__
from mvla_daemon.core.admission import Admission, Mode, Offer
from mvla_daemon.core.messages import MS, SECOND, Phase, Reason
from mvla_daemon.core.safety import step
from mvla_daemon.core.session import Do, Effect, Event, Rules, State, What, initial, next_due_ns
from mvla_daemon.errors import ExitCode
from mvla_daemon.motors.motor_port import Port
from mvla_daemon.motors.mvla import MvlaLink
from mvla_daemon.motors.serial_port import PortLostError
from mvla_daemon.ops.announce import Announcer
from mvla_daemon.ops.clock import Clock
from mvla_daemon.ops.errand import Errand
from mvla_daemon.policy_keeper import Keeper

BACKLOGGED_CYCLES = 2
_HELD_STOPPED = frozenset({Phase.STOPPING, Phase.STOPPED, Phase.LATCHED})
STOP_AT_LAST_NS = 1 * SECOND
STOP_AT_LAST_EVERY_NS = 10 * MS


@dataclass(frozen=True, slots=True)
class Crew:
    """What the gate works with."""

    admission: Admission
    link: MvlaLink
    port: Port
    keeper: Keeper
    announce: Announcer
    clock: Clock
    errand: Errand


class Helm:
    """Holds the session's state, and is the only one that writes to the motors.

    `exit_code` is set when all is over; `farewell` is the sentence for the user, where there is one.
    """

    def __init__(self, rules: Rules, crew: Crew) -> None:
        self._rules = rules
        self._admission = crew.admission
        self._link = crew.link
        self._port = crew.port
        self._keeper = crew.keeper
        self._announce = crew.announce
        self._clock = crew.clock
        self.state = initial(rules, self._clock.now_ns())
        self.exit_code: ExitCode | None = None
        self.farewell = ""
        self.ever_armed = False
        self.counts: dict[str, int] = {}
        self._ending = ExitCode.OK
        self._refusal = ""
        self._backlog = 0
        self._driven_ns = 0
        self._category = rules.stop_category
        self._events: deque[tuple[Event, str, int | None]] = deque()
        self._link.opened(self._clock.now_ns())

    # --- events ---

    def fault(self, reason: Reason, why: str, now_ns: int, due_ns: int | None = None) -> None:
        """Something went wrong; `due_ns` is the deadline that passed, where one did."""
        self.apply(Event(What.FAULT, reason=reason), now_ns, why, due_ns)

    def apply(self, event: Event, now_ns: int, why: str = "", due_ns: int | None = None) -> str:
        """Take one step, carry its effects out, tell people what changed; the refusal, if there was one.

        What the effects themselves bring about (a STOP whose write finds the port gone) is the next step, not a part
        of this one.
        """
        self._events.append((event, why, due_ns))
        if len(self._events) > 1:
            return ""
        refusal = ""
        while self._events:
            refusal = self._step(*self._events[0], now_ns) or refusal
            self._events.popleft()
        return refusal

    def _step(self, event: Event, why: str, due_ns: int | None, now_ns: int) -> str:
        before = self.state
        self.state, effects = step(self._rules, before, event, now_ns)
        refusal = ""
        for effect in effects:
            if effect.do is Do.STOP:
                self._stop(effect, before, why, due_ns, now_ns)
            elif effect.do is Do.REFUSE:
                refusal = self._refusal = effect.text
                self._announce.refused(refusal)
            else:
                self._do(effect, now_ns)
        if self.state.phase is not before.phase or self.state.reason is not before.reason:
            self._announce.change(before, self.state, why)
        return refusal

    def move_on(self, now_ns: int) -> None:
        """What the session has been waiting for, and what has to be said again."""
        phase = self.state.phase
        if phase is Phase.ARMING:
            if self._link.confirmed:
                self.apply(Event(What.CONFIRMED), now_ns)
            elif self._link.ready_to_arm() and not self._admission.why_not_rehearsed():
                self.apply(Event(What.REHEARSED), now_ns)
        elif phase is Phase.STOPPING and (self._link.standstill() or (self.state.exiting and self._link.at_rest())):
            self.apply(Event(What.STANDSTILL), now_ns)
        timer_ns = self.timer_ns()
        if timer_ns is not None and now_ns >= timer_ns:
            self.apply(Event(What.TICK, missing=self.missing()), now_ns)
        if self._port.fd is not None:
            if self.state.phase in _HELD_STOPPED and not self._link.stopping:  # the port is back
                self.write(self._link.stop(self._category, self.state.reason or Reason.INTERNAL, now_ns), now_ns)
            self.write(self._link.due(now_ns), now_ns)

    def timer_ns(self) -> int | None:
        """The session's own timer; waiting to arm by itself has none while something is missing: an event ends that."""
        phase = self.state.phase
        if phase is Phase.ARMED:
            return None
        waiting = phase in {Phase.DISARMED, Phase.STOPPED}
        return None if waiting and self.missing() else next_due_ns(self._rules, self.state)

    def missing(self) -> str:
        """What keeps the robot from being armed right now; empty when nothing does."""
        if self._port.fd is None:
            return f"{self._port.path} is gone"
        if self.state.phase is Phase.ARMING:
            return self._link.why_not_ready() or self._admission.why_not_rehearsed() or "the controller did not answer"
        return self._link.why_not_ready() or ("" if self._keeper.ready else "the policy process is still loading")

    def end(self, code: ExitCode, farewell: str, now_ns: int) -> None:
        """Begin to end: the STOP first, then standstill, then the exit code."""
        if self.state.exiting:
            return
        self._ending, self.farewell = code, farewell
        reachable = self._port.fd is not None and self._link.identified
        self.apply(Event(What.SHUTDOWN, reachable=reachable), now_ns, farewell)

    # --- the wire ---

    def drive(self, offer: Offer, now_ns: int) -> int:
        """Write the VELOCITY of an admitted command, unless earlier output is under way; when it was written, or 0."""
        try:
            blocked = self._link.backlogged(now_ns) or self._port.queued_bytes() > 0
            written = not blocked and self._port.write(self._link.velocity(offer.cycle, offer.values, now_ns))
        except PortLostError as error:
            self.lose_port(str(error), now_ns)
            return 0
        if not written:
            self._count("backlogged_cycles")
            self._backlog += 1
            if self._backlog >= BACKLOGGED_CYCLES:
                self.fault(Reason.CONTROLLER_LOST, "what was written before is still queued", now_ns)
            return 0
        self._backlog = 0
        self._admission.wrote(offer, now_ns)
        self._driven_ns = self._clock.now_ns()
        return self._driven_ns

    def write(self, packets: bytes, now_ns: int) -> None:
        """Write packets that will be said again if they get lost."""
        try:
            if packets and not self._port.write(packets):
                self._count("unwritten")
        except PortLostError as error:
            self.lose_port(str(error), now_ns)

    def lose_port(self, why: str, now_ns: int) -> None:
        """The port is gone: the controller stops by itself, and this session is over."""
        self._port.drop(now_ns)
        self._announce.port(f"serial port lost: {why}", "error")
        self.fault(Reason.PORT_LOST, why, now_ns)

    def stop_at_last(self) -> None:
        """Nothing of the loop can be relied on any more: say STOP until it stands, for a second at most."""
        now_ns = again_ns = self._clock.now_ns()
        end_ns = now_ns + STOP_AT_LAST_NS
        while now_ns < end_ns:
            fd = self._port.fd
            if fd is None or not self._link.identified:
                return
            if now_ns >= again_ns:  # each is answered at once: to say it at every answer would be over in no time
                self._port.write(self._link.stop(self._rules.stop_category, Reason.INTERNAL, now_ns))
                again_ns = now_ns + STOP_AT_LAST_EVERY_NS
            if self._clock.wait([fd], again_ns):
                self._link.receive(self._port.read(), now_ns)
            if self._link.at_rest():
                return
            now_ns = self._clock.now_ns()

    def _stop(self, effect: Effect, before: State, why: str, due_ns: int | None, now_ns: int) -> None:
        self._category = effect.category
        self.write(self._link.stop(effect.category, effect.reason, now_ns), now_ns)
        written_ns = self._clock.now_ns()
        re_arming = before.phase is Phase.ARMING and not before.arm_sent and before.origin is not Phase.DISARMED
        if (before.phase in _HELD_STOPPED or re_arming) and effect.reason is not Reason.SHUTDOWN:
            return  # not another stop, but a stricter reason or category for the one that still stands
        was_driving = before.phase is Phase.ARMED
        doing = self._keeper.doing() if self._admission.mode is not Mode.IDLE else None
        driven_ns = self._driven_ns if was_driving else 0
        self._announce.stop(effect.reason, why, doing, due_ns=due_ns, written_ns=written_ns, driven_ns=driven_ns)

    # --- the other effects ---

    def _do(self, effect: Effect, now_ns: int) -> None:
        match effect.do:
            case Do.ARM:
                self.write(self._link.arm(now_ns), now_ns)
            case Do.DRIVE:
                self.ever_armed = True
                self._backlog = self._driven_ns = 0
                self._order(Mode.DRIVE, now_ns)
            case Do.REHEARSE:
                if self.state.phase is Phase.ARMING:
                    self._link.begin_arming(now_ns)
                self._order(Mode.REHEARSE, now_ns)
            case Do.IDLE:
                self._link.end_arming()
                self._order(Mode.IDLE, now_ns)
            case Do.RENEW_POLICY:
                self._keeper.renew()
                self._admission.forgive_flood()
            case Do.EXIT:
                self._exit(clean=effect.clean)

    def _order(self, mode: Mode, now_ns: int) -> None:
        self._admission.enter(mode, now_ns)
        self._keeper.order(self._admission.epoch, mode)

    def _exit(self, *, clean: bool) -> None:
        if not clean and not self.farewell:
            self._ending = ExitCode.UNAVAILABLE
            self.farewell = "The motor controller did not report standstill; look at the robot before you go on."
        self.exit_code = self._ending

    def status(self, now_ns: int) -> dict[str, Any]:
        """What an operator wants to know; scripts read it, so that keys are added but never renamed."""
        link = self._link
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": self.state.phase.name.lower(),
            "reason": self.state.reason.label if self.state.reason is not None else None,
            "since_s": round((now_ns - self.state.since_ns) / SECOND, 3),
            "missing": self.missing(),
            "refusal": self._refusal,
            "session": link.session,
            "controller": link.identity.text if link.identity is not None else None,
            "policy_ready": self._keeper.ready,
            "policy_restarts": self._keeper.restarts,
            "stops_in_window": len(self.state.stops_ns),
            "counts": {**self._admission.counts, **self.counts},
            "link": {**link.counts, **{f"odd_{k}": v for k, v in link.decoder.counts.items() if v}},
        }

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1
