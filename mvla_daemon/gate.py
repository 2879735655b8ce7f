"""The gate: the process that owns the motors and lets a command through only when it is on time, fresh and sane.

One thread, one loop, no numpy, no waiting for anyone. Each wake does the same in the same order: what the clock says,
what the controller says, what the policy process says, what has to be said again, what the operator wants. A STOP is
written before anything else is done about its cause.
"""

from __future__ import annotations

import os
import select
import time
from dataclasses import dataclass
from typing import Any

from mvla_daemon.core.admission import Admission, Kind, Mode, Offer, Verdict
from mvla_daemon.core.messages import MS, SECOND, Phase, Reason, Velocity
from mvla_daemon.core.safety import step
from mvla_daemon.core.session import Do, Effect, Event, Rules, What, initial, next_due_ns
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.link import Failed, MalformedError, Ready, Started, unpack
from mvla_daemon.motors.mvla import MvlaLink
from mvla_daemon.motors.serial_port import PortLostError, SerialPort
from mvla_daemon.ops.announce import Announcer
from mvla_daemon.ops.control import ControlServer
from mvla_daemon.ops.telemetry import GateCycle, Telemetry
from mvla_daemon.policy_keeper import PolicyKeeper

MESSAGES_PER_WAKE = 16
"""A flooding policy process gets no more of a wake than this."""
IDLE_WAKE_NS = 1 * SECOND
IDENTIFY_NS = 5 * SECOND
"""How long a board may take to boot after its port was opened."""
REOPEN_EVERY_NS = 500 * MS
SUSPENDED_NS = 5 * MS
"""The boot-time clock gains on the monotonic one exactly while the machine is suspended."""
LATE_WAKE_NS = 200 * MS
BACKLOGGED_CYCLES = 2
STOPS_AT_LAST = 100
STOP_AT_LAST_EVERY_S = 0.01


@dataclass(frozen=True, slots=True)
class GateSettings:
    """What the gate's loop needs of the configuration; `end_ns` is when a bounded run ends."""

    rules: Rules
    port_path: str
    baud: int
    late_wake_ns: int
    policy_dead_ns: int
    end_ns: int | None = None


class Gate:
    """The loop and what it works with.

    When `serve` returns, `exit_code` is the process's, and `farewell` the sentence for the user, where there is one.
    """

    def __init__(
        self,
        settings: GateSettings,
        *,
        admission: Admission,
        link: MvlaLink,
        port: SerialPort,
        keeper: PolicyKeeper,
        telemetry: Telemetry,
        signals_fd: int,
    ) -> None:
        self._settings = settings
        self._rules = settings.rules
        self._admission = admission
        self._link = link
        self._port: SerialPort | None = port
        self._keeper = keeper
        self._telemetry = telemetry
        self._announce = Announcer(telemetry)
        self._signals_fd = signals_fd
        self._control: ControlServer | None = None
        now_ns = time.monotonic_ns()
        self._state = initial(settings.rules, now_ns)
        self._link.opened(now_ns)
        self._suspended_ns = _suspended_so_far_ns()
        self._backlog = 0
        self._driven_ns = 0
        self._reopen_ns = 0
        self._port_was_lost = False
        self._refusal = ""
        self._ending = ExitCode.OK
        self.counts: dict[str, int] = {}
        self.exit_code: ExitCode | None = None
        self.farewell = ""
        self.ever_armed = False

    def serve(self, control: ControlServer) -> None:
        """Run until something ends the daemon; an error in the gate itself stops the robot before it is raised."""
        self._control = control
        try:
            while self.exit_code is None:
                self._wake()
        except BaseException:
            self._stop_at_last()
            raise

    def _wake(self) -> None:
        planned_ns = self._next_wake_ns(time.monotonic_ns())
        readable = self._wait(planned_ns)
        now_ns = time.monotonic_ns()
        self._check_clocks(planned_ns, now_ns)
        self._check_deadline(now_ns)
        self._hear_controller(readable, now_ns)
        self._hear_policy(readable)
        self._move_on(time.monotonic_ns())
        self._hear_operator(readable)

    def _stop_at_last(self) -> None:
        """Nothing of the loop can be relied on any more: say STOP until it is confirmed, for a second at most."""
        for _ in range(STOPS_AT_LAST):
            if self._port is None or not self._link.identified:
                return
            now_ns = time.monotonic_ns()
            self._port.write(self._link.stop(self._rules.stop_category, Reason.INTERNAL, now_ns))
            if select.select([self._port.fd], [], [], STOP_AT_LAST_EVERY_S)[0]:
                self._link.receive(self._port.read(), now_ns)
            if self._link.at_rest():
                return

    # --- waiting ---

    def _next_wake_ns(self, now_ns: int) -> int:
        wakes = [now_ns + IDLE_WAKE_NS, self._link.next_due_ns() if self._port is not None else self._reopen_ns]
        if self._state.phase is Phase.ARMED:
            wakes.append(self._admission.due()[0])
        timer_ns = self._timer_ns()
        if timer_ns is not None:
            wakes.append(timer_ns)
        if self._settings.end_ns is not None and not self._state.exiting:
            wakes.append(self._settings.end_ns)
        return min(wakes)

    def _timer_ns(self) -> int | None:
        """The session's own timer; waiting to arm by itself has none while something is missing: an event ends that."""
        waiting = self._state.phase in {Phase.DISARMED, Phase.STOPPED}
        return None if waiting and self._missing() else next_due_ns(self._rules, self._state)

    def _wait(self, until_ns: int) -> set[int]:
        fds = [self._signals_fd, *self._keeper.filenos()]
        if self._port is not None:
            fds.append(self._port.fd)
        if self._control is not None:
            fds += self._control.filenos()
        # select() and not poll(), which rounds up to whole milliseconds.
        return set(select.select(fds, [], [], max(0, until_ns - time.monotonic_ns()) / SECOND)[0])

    # --- one wake ---

    def _check_clocks(self, planned_ns: int, now_ns: int) -> None:
        suspended_ns = _suspended_so_far_ns()
        if suspended_ns - self._suspended_ns > SUSPENDED_NS:
            # Once more, lest a pause between the readings of the two clocks is taken for a suspension.
            suspended_ns = _suspended_so_far_ns()
        slept_ns = suspended_ns - self._suspended_ns
        self._suspended_ns = suspended_ns
        if slept_ns > SUSPENDED_NS:
            self._fault(Reason.SUSPENDED, f"the machine was suspended for {slept_ns / SECOND:.3f} s", now_ns)
        elif now_ns - planned_ns > self._settings.late_wake_ns:
            self._fault(Reason.INTERNAL, f"the gate itself woke {(now_ns - planned_ns) / MS:.0f} ms late", now_ns)

    def _check_deadline(self, now_ns: int) -> None:
        if self._state.phase is Phase.ARMED:
            due_ns, reason = self._admission.due()
            if now_ns >= due_ns:
                self._fault(reason, "", now_ns, due_ns)

    def _hear_controller(self, readable: set[int], now_ns: int) -> None:
        if self._port is None:
            self._reopen_port(now_ns)
            return
        fault = None
        if self._port.fd in readable:
            try:
                data = self._port.read()
            except PortLostError as error:
                self._lose_port(str(error), now_ns)
                return
            known = self._link.identity
            fault = self._link.receive(data, now_ns)
            if self._link.identity is not None and known is None:
                self._announce.identity(self._settings.port_path, self._link.identity)
        fault = fault or self._link.lost(now_ns)
        if fault is not None:
            self._fault(*fault, now_ns)

    def _hear_policy(self, readable: set[int]) -> None:
        child = self._keeper.child
        if child is not None and child.socket.fileno() in readable:
            for _ in range(MESSAGES_PER_WAKE):
                data = child.receive()
                if not data:
                    break
                self._on_message(data, time.monotonic_ns())
        now_ns = time.monotonic_ns()
        ended = self._keeper.watch(readable, now_ns)
        if ended:
            self._fault(Reason.POLICY_LOST, ended, now_ns)
        if self._keeper.given_up:
            self._end(ExitCode.INTERNAL, self._keeper.given_up, now_ns)

    def _on_message(self, data: bytes, now_ns: int) -> None:
        try:
            message = unpack(data)
        except MalformedError as error:
            self._fault(Reason.SEQUENCE_ERROR, str(error), now_ns)
            return
        if self._admission.flooded(now_ns):
            self._fault(Reason.SEQUENCE_ERROR, "the policy process floods its socket", now_ns)
        elif isinstance(message, Offer):
            self._on_offer(message, now_ns)
        elif isinstance(message, Started):
            verdict = self._admission.start(message.epoch, message.cycle, message.announced_ns, now_ns)
            self._on_verdict(verdict, now_ns)
        elif isinstance(message, Ready):
            self._keeper.on_ready()
            self._announce.policy_ready(message.about)
        else:
            self._on_failure(message, now_ns)

    def _on_offer(self, offer: Offer, now_ns: int) -> None:
        schedule = self._admission.schedule
        start_ns, deadline_ns = schedule.last_start_ns, schedule.deadline_ns
        verdict = self._admission.command(offer, now_ns)
        driving = self._state.phase is Phase.ARMED and self._admission.mode is Mode.DRIVE
        written_ns = self._drive(offer, now_ns) if verdict.kind is Kind.ADMIT and driving else 0
        self._on_verdict(verdict, now_ns)
        self._telemetry.cycle(
            GateCycle(offer.epoch, offer.cycle, start_ns, deadline_ns, now_ns, written_ns, offer.captured_ns)
        )

    def _on_verdict(self, verdict: Verdict, now_ns: int) -> None:
        if verdict.kind is Kind.FAULT and verdict.reason is not None:
            self._fault(verdict.reason, verdict.why, now_ns)

    def _on_failure(self, failed: Failed, now_ns: int) -> None:
        """Before it was ever ready, the daemon cannot do its work; later, it is a stop and a new process."""
        if self._keeper.ready:
            self._fault(Reason.POLICY_ERROR, failed.sentence, now_ns)
        else:
            self._end(failed.exit_code, failed.sentence, now_ns)

    def _drive(self, offer: Offer, now_ns: int) -> int:
        """Write the VELOCITY, unless earlier output is still under way; when it was written, or 0."""
        if self._port is None:
            return 0
        try:
            blocked = self._link.backlogged(now_ns) or self._port.queued_bytes() > 0
            written = not blocked and self._port.write(
                self._link.velocity(offer.cycle, Velocity(*offer.values), now_ns)
            )
        except PortLostError as error:
            self._lose_port(str(error), now_ns)
            return 0
        if not written:
            self._count("backlogged_cycles")
            self._backlog += 1
            if self._backlog >= BACKLOGGED_CYCLES:
                self._fault(Reason.CONTROLLER_LOST, "what was written before is still queued", now_ns)
            return 0
        self._backlog = 0
        self._admission.wrote(offer, now_ns)
        self._driven_ns = time.monotonic_ns()
        return self._driven_ns

    def _move_on(self, now_ns: int) -> None:
        """What the session has been waiting for, and what has to be said again."""
        phase = self._state.phase
        if phase is Phase.ARMING:
            if self._link.confirmed:
                self._apply(Event(What.CONFIRMED), now_ns)
            elif self._link.ready_to_arm() and not self._admission.why_not_rehearsed():
                self._apply(Event(What.REHEARSED), now_ns)
        elif phase is Phase.STOPPING and (self._link.standstill() or (self._state.exiting and self._link.at_rest())):
            self._apply(Event(What.STANDSTILL), now_ns)
        if self._admission.mode is not Mode.IDLE and self._keeper.ready:
            silent_ns = now_ns - self._admission.last_completed_ns
            if silent_ns >= self._settings.policy_dead_ns:
                why = f"the policy process completed no cycle for {silent_ns / SECOND:.1f} s"
                self._fault(Reason.POLICY_LOST, why, now_ns)
        timer_ns = self._timer_ns()
        if timer_ns is not None and now_ns >= timer_ns:
            self._apply(Event(What.TICK, missing=self._missing()), now_ns)
        if self._port is not None:
            self._write(self._link.due(now_ns), now_ns)
            self._check_identified(now_ns)
        if self._settings.end_ns is not None and now_ns >= self._settings.end_ns:
            self._end(ExitCode.OK, "", now_ns)

    # --- what events lead to ---

    def _fault(self, reason: Reason, why: str, now_ns: int, due_ns: int | None = None) -> None:
        self._apply(Event(What.FAULT, reason=reason), now_ns, why, due_ns)

    def _apply(self, event: Event, now_ns: int, why: str = "", due_ns: int | None = None) -> str:
        """Take one step, carry its effects out, tell people what changed; the refusal, if there was one."""
        before = self._state
        self._state, effects = step(self._rules, before, event, now_ns)
        refusal = ""
        for effect in effects:
            if effect.do is Do.STOP:
                self._stop(effect, why, due_ns, now_ns, was_driving=before.phase is Phase.ARMED)
            elif effect.do is Do.REFUSE:
                refusal = self._refusal = effect.text
                self._announce.refused(refusal)
            else:
                self._do(effect, now_ns)
        if self._state.phase is not before.phase or self._state.reason is not before.reason:
            self._announce.change(before, self._state, why)
        return refusal

    def _stop(self, effect: Effect, why: str, due_ns: int | None, now_ns: int, *, was_driving: bool) -> None:
        self._write(self._link.stop(effect.category, effect.reason, now_ns), now_ns)
        written_ns = time.monotonic_ns()
        child = self._keeper.child
        doing = child.board.read() if child is not None and was_driving else None
        self._announce.stop(effect.reason, why, doing, due_ns=due_ns, written_ns=written_ns, driven_ns=self._driven_ns)

    def _do(self, effect: Effect, now_ns: int) -> None:
        match effect.do:
            case Do.ARM:
                self._write(self._link.arm(now_ns), now_ns)
            case Do.DRIVE:
                self.ever_armed = True
                self._backlog = self._driven_ns = 0
                self._order(Mode.DRIVE, now_ns)
            case Do.REHEARSE:
                if self._state.phase is Phase.ARMING:
                    self._link.begin_arming(now_ns)
                self._order(Mode.REHEARSE, now_ns)
            case Do.IDLE:
                self._link.end_arming()
                self._order(Mode.IDLE, now_ns)
            case Do.RENEW_POLICY:
                self._keeper.renew()
            case Do.EXIT:
                self._exit(clean=effect.clean)

    def _order(self, mode: Mode, now_ns: int) -> None:
        self._admission.enter(mode, now_ns)
        self._keeper.order(self._admission.epoch, mode)

    def _missing(self) -> str:
        """What keeps the robot from being armed right now; empty when nothing does."""
        if self._port is None:
            return f"{self._settings.port_path} is gone"
        if self._state.phase is Phase.ARMING:
            return self._link.why_not_ready() or self._admission.why_not_rehearsed() or "the controller did not answer"
        return self._link.why_not_ready() or ("" if self._keeper.ready else "the policy process is still loading")

    def _end(self, code: ExitCode, farewell: str, now_ns: int) -> None:
        """Begin to end: the STOP first, then standstill, then the exit code."""
        if self._state.exiting:
            return
        self._ending, self.farewell = code, farewell
        reachable = self._port is not None and self._link.identified
        self._apply(Event(What.SHUTDOWN, reachable=reachable), now_ns, farewell or "asked to end")

    def _exit(self, *, clean: bool) -> None:
        if not clean and not self.farewell:
            self._ending = ExitCode.UNAVAILABLE
            self.farewell = "The motor controller did not report standstill; look at the robot before you go on."
        self.exit_code = self._ending

    # --- the port ---

    def _write(self, packets: bytes, now_ns: int) -> None:
        if self._port is None or not packets:
            return
        try:
            if not self._port.write(packets):
                self._count("unwritten")
        except PortLostError as error:
            self._lose_port(str(error), now_ns)

    def _lose_port(self, why: str, now_ns: int) -> None:
        if self._port is None:
            return
        self._port.close()
        self._port = None
        self._port_was_lost = True
        self._reopen_ns = now_ns + REOPEN_EVERY_NS
        self._announce.port(f"serial port lost: {why}", "error")
        self._fault(Reason.PORT_LOST, why, now_ns)

    def _reopen_port(self, now_ns: int) -> None:
        if now_ns < self._reopen_ns:
            return
        self._reopen_ns = now_ns + REOPEN_EVERY_NS
        try:
            self._port = SerialPort(self._settings.port_path, self._settings.baud)
        except DaemonError:
            self._count("reopen_failed")
            return
        self._link.opened(now_ns)
        self._announce.port(f"{self._settings.port_path} is back; asking who is there", "warning")

    def _check_identified(self, now_ns: int) -> None:
        """A port that never answered since the start is the wrong one; one that came back is asked without end."""
        if self._link.identified or self._port_was_lost or now_ns - self._link.opened_ns < IDENTIFY_NS:
            return
        heard = sum(self._link.decoder.counts.values())
        what = f"{heard} pieces of something else" if heard else "nothing"
        self._end(
            ExitCode.UNAVAILABLE,
            f"{self._settings.port_path} did not identify itself as a motor controller within 5 s (heard {what}); "
            f"check motor.port, motor.baud ({self._settings.baud}) and that its firmware speaks motor link v1.",
            now_ns,
        )

    # --- the operator ---

    def _hear_operator(self, readable: set[int]) -> None:
        if self._signals_fd in readable:
            os.read(self._signals_fd, 64)
            self._end(ExitCode.OK, "", time.monotonic_ns())
        if self._control is None:
            return
        fds = self._control.filenos()
        for fd in readable.intersection(fds[1:]):
            self._control.serve(fd)
        if fds[0] in readable:
            self._control.accept(time.monotonic_ns())
        self._control.tidy(time.monotonic_ns())

    def operate(self, request: str, uid: int) -> dict[str, Any]:
        """Do what an operator asks, and say what came of it."""
        now_ns = time.monotonic_ns()
        if request == "status":
            return self._status(now_ns)
        self._announce.operator(request, uid)
        event = Event(What(request), missing=self._missing())
        refusal = self._apply(event, now_ns, f"asked for by user {uid}")
        return {"ok": not refusal, "text": refusal, "state": self._state.phase.name.lower()}

    def _status(self, now_ns: int) -> dict[str, Any]:
        state, link = self._state, self._link
        return {
            "ok": True,
            "state": state.phase.name.lower(),
            "reason": state.reason.label if state.reason is not None else None,
            "since_s": round((now_ns - state.since_ns) / SECOND, 3),
            "missing": self._missing(),
            "refusal": self._refusal,
            "session": link.session,
            "cycle": self._admission.schedule.last_cycle,
            "controller": link.identity.text if link.identity is not None else None,
            "policy_ready": self._keeper.ready,
            "policy_restarts": self._keeper.restarts,
            "stops_in_window": len(state.stops_ns),
            "counts": {**self._admission.counts, **self.counts},
            "link": {**link.counts, **{f"odd_{k}": v for k, v in link.decoder.counts.items() if v}},
            "dropped_records": self._telemetry.dropped,
        }

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1


def _suspended_so_far_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()
