"""The gate: the process that owns the motors and lets a command through only when it is on time, fresh and sane.

One thread, one loop, no numpy, no waiting for anyone. Each wake does the same in the same order: what the clock says,
what the controller says, what the policy process says, what has to be said again, what the operator wants. A STOP is
written before anything else is done about its cause.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mvla_daemon.core.admission import Mode
from mvla_daemon.core.messages import MS, SECOND, Phase, Reason
from mvla_daemon.core.session import Event, Rules, What
from mvla_daemon.errors import ExitCode
from mvla_daemon.helm import Crew, Helm
from mvla_daemon.motors.serial_port import PortLostError
from mvla_daemon.ops.control import Control
from mvla_daemon.ops.notify import Notifier
from mvla_daemon.ops.telemetry import Telemetry
from mvla_daemon.policy_ear import PolicyEar
from mvla_daemon.pulse import Pulse

MESSAGES_PER_WAKE = 16
"""A flooding policy process gets no more of a wake than this."""
IDLE_WAKE_NS = 1 * SECOND
SUSPENDED_NS = 5 * MS
"""The boot-time clock gains on the monotonic one exactly while the machine is suspended."""
LATE_WAKE_NS = 200 * MS
HEAR_EVERY_NS = 25 * MS
"""While armed the controller wakes nobody: it is heard at every wake, before anything is written, and this often at the
latest. It speaks once a cycle and a cycle wakes the gate twice anyway; a third wake would cost as much as each of them.
What it may have to tell, it has acted upon already."""
UNWATCHED = frozenset({Phase.ARMED, Phase.STOPPING})
"""Then the port is heard as above and not polled: poll(2) of a terminal can wait for the kernel's ordinary thread, and
a STOP with it (`motors/serial_port.py`)."""


@dataclass(frozen=True, slots=True)
class GateSettings:
    """What the gate's loop needs of the configuration; `end_ns` is when a bounded run ends.

    `identify_ns` is how long a board may take to boot after its port was opened, 0 for ever.
    """

    rules: Rules
    late_wake_ns: int
    policy_dead_ns: int
    identify_ns: int
    end_ns: int | None = None


class Gate:
    """The loop: listens to everyone, and tells the helm what it heard."""

    def __init__(
        self,
        settings: GateSettings,
        crew: Crew,
        telemetry: Telemetry,
        signals_fd: int,
        notifier: Notifier | None = None,
    ) -> None:
        self._settings = settings
        self._admission = crew.admission
        self._link = crew.link
        self._port = crew.port
        self._keeper = crew.keeper
        self._announce = crew.announce
        self._telemetry = telemetry
        self._clock = crew.clock
        self._errand = crew.errand
        self._signals_fd = signals_fd
        self.helm = Helm(settings.rules, crew)
        self._pulse = Pulse(
            notifier or Notifier(""),
            self.helm,
            crew,
            boot_is_bounded=settings.identify_ns > 0,
            policy_dead_ns=settings.policy_dead_ns,
        )
        self._ear = PolicyEar(crew, self.helm, telemetry, self._pulse.spans_ns)
        self._heard_ns = 0
        # A pause between the readings of the two clocks makes the difference too small, never too large.
        self._suspended_ns = max(self._clock.suspended_ns() for _ in range(3))

    def serve(self, control: Control) -> None:
        """Run until something ends the daemon; an error in the gate itself stops the robot before it is raised."""
        try:
            while self.helm.exit_code is None:
                self._wake(control)
        except BaseException:
            self.helm.stop_at_last()
            raise

    def _wake(self, control: Control) -> None:
        now_ns = self._clock.now_ns()
        operators, operators_ns = control.watch(now_ns)
        planned_ns = min(now_ns + IDLE_WAKE_NS, self._due_ns(), operators_ns, self._pulse.next_ns)
        readable = self._wait(planned_ns, operators)
        now_ns = self._clock.now_ns()
        self._check_clocks(planned_ns, now_ns)
        self._check_deadline(now_ns)
        self._hear_controller(readable, now_ns)
        self._hear_policy(readable)
        self._check_policy_alive(self._clock.now_ns())
        self._check_end(readable, self._clock.now_ns())
        self.helm.move_on(self._clock.now_ns())
        self._hear_operator(readable, control)
        if self._pulse.is_due(now_ns):
            self._pulse.beat(now_ns, self._due_ns())

    # --- waiting ---

    def _due_ns(self) -> int:
        """The earliest time at which something has to be done, though nothing is heard."""
        dues = [self._port.reopen_ns if self._port.fd is None else self._link.next_due_ns()]
        if self.helm.state.phase is Phase.ARMED:
            dues.append(self._admission.due()[0])
        if self.helm.state.phase in UNWATCHED and self._port.fd is not None:
            dues.append(self._heard_ns + HEAR_EVERY_NS)
        timer_ns = self.helm.timer_ns()
        if timer_ns is not None:
            dues.append(timer_ns)
        if self._settings.end_ns is not None and not self.helm.state.exiting:
            dues.append(self._settings.end_ns)
        return min(dues)

    def _wait(self, until_ns: int, operators: Sequence[int]) -> set[int]:
        fds = [self._signals_fd, *self._keeper.filenos(), *self._errand.filenos(), *operators]
        if self._port.fd is not None and self.helm.state.phase not in UNWATCHED:
            fds.append(self._port.fd)
        return self._clock.wait(fds, until_ns)

    # --- the clock ---

    def _check_clocks(self, planned_ns: int, now_ns: int) -> None:
        suspended_ns = self._clock.suspended_ns()
        slept_ns = suspended_ns - self._suspended_ns
        self._suspended_ns = max(self._suspended_ns, suspended_ns)
        if slept_ns > SUSPENDED_NS:
            self.helm.fault(Reason.SUSPENDED, f"the machine was suspended for {slept_ns / SECOND:.3f} s", now_ns)
        elif now_ns - planned_ns > self._settings.late_wake_ns:
            self.helm.fault(Reason.INTERNAL, f"the gate itself woke {(now_ns - planned_ns) / MS:.0f} ms late", now_ns)

    def _check_deadline(self, now_ns: int) -> None:
        if self.helm.state.phase is Phase.ARMED:
            due_ns, reason = self._admission.due()
            if now_ns >= due_ns:
                self.helm.fault(reason, "", now_ns, due_ns)

    def _check_policy_alive(self, now_ns: int) -> None:
        """Whoever is asked for cycles and completes none is dead, whether its process lives or not."""
        if self._admission.mode is not Mode.IDLE and self._keeper.ready:
            silent_ns = now_ns - self._admission.last_completed_ns
            if silent_ns >= self._settings.policy_dead_ns:
                why = f"the policy process completed no cycle for {silent_ns / SECOND:.1f} s"
                self.helm.fault(Reason.POLICY_LOST, why, now_ns)

    def _check_end(self, readable: set[int], now_ns: int) -> None:
        if self._settings.end_ns is not None and now_ns >= self._settings.end_ns:
            self.helm.end(ExitCode.OK, "", now_ns)
        ending = self._errand.ended(readable)
        if ending is not None:
            self.helm.end(*ending, now_ns)

    # --- the controller ---

    def _hear_controller(self, readable: set[int], now_ns: int) -> None:
        if self._port.fd is None:
            if self._port.reopen(now_ns):
                self._link.opened(now_ns)
                self._announce.port(f"{self._port.path} is back; asking who is there", "warning")
            return
        fault = None
        if self._port.fd in readable or self.helm.state.phase in UNWATCHED:
            self._heard_ns = now_ns
            try:
                data = self._port.read()
            except PortLostError as error:
                self.helm.lose_port(str(error), now_ns)
                return
            known = self._link.identity
            fault = self._link.receive(data, now_ns)
            if self._link.identity is not None and known is None:
                self._announce.identity(self._port.path, self._link.identity)
        fault = fault or self._link.lost(now_ns)
        if fault is not None:
            self.helm.fault(*fault, now_ns)
        if self._link.identity is None:
            self._check_identified(now_ns)

    def _check_identified(self, now_ns: int) -> None:
        """A port that never answered since the start is the wrong one; one that came back is asked without end."""
        identify_ns = self._settings.identify_ns
        if self._port.was_lost or not identify_ns:
            return
        if now_ns - self._link.opened_ns < identify_ns:
            return
        heard = sum(self._link.decoder.counts.values())
        what = f"{heard} pieces of something else" if heard else "nothing"
        self.helm.end(
            ExitCode.UNAVAILABLE,
            f"{self._port.path} did not identify itself as a motor controller within {identify_ns / SECOND:g} s (heard "
            f"{what}); check motor.port, motor.baud ({self._port.baud}) and that its firmware speaks motor link v1.",
            now_ns,
        )

    # --- the policy process ---

    def _hear_policy(self, readable: set[int]) -> None:
        for data in islice(self._keeper.messages(readable), MESSAGES_PER_WAKE):
            self._ear.take(data, self._clock.now_ns())
        now_ns = self._clock.now_ns()
        # To start a process takes time that the repeating of a STOP may need.
        ended = self._keeper.watch(readable, now_ns, may_start=self.helm.state.phase is not Phase.STOPPING)
        if ended:
            self.helm.fault(Reason.POLICY_LOST, ended, now_ns)
        if self._keeper.given_up:
            self.helm.end(ExitCode.INTERNAL, self._keeper.given_up, now_ns)

    # --- the operator ---

    def _hear_operator(self, readable: set[int], control: Control) -> None:
        now_ns = self._clock.now_ns()
        if self._signals_fd in readable:
            os.read(self._signals_fd, 64)
            self.helm.end(ExitCode.OK, "", now_ns)
        control.serve(readable, now_ns)

    def operate(self, request: str, uid: int, pid: int) -> dict[str, Any]:
        """Do what an operator asks, and say what came of it; `uid` and `pid` are the kernel's word on who it is."""
        now_ns = self._clock.now_ns()
        if request == "status":
            return {"ok": True, **self.helm.status(now_ns), **self._telemetry.losses()}
        before = self.helm.state
        event = Event(What(request), missing=self.helm.missing())
        refusal = self.helm.apply(event, now_ns, f"asked for by user {uid}")
        self._announce.operator(request, uid, pid, refusal, now_ns, did_something=self.helm.state != before)
        return {"ok": not refusal, "text": refusal, "state": self.helm.state.phase.name.lower()}
