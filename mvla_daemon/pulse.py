"""The gate's pulse, for systemd: that it is ready, that it lives, and what it does; a datagram a second.

What is alive is the gate: its loop goes round, and none of the times at which it has to do something has passed
unheeded. While armed these are the deadline, the age of the picture and the controller's silence, and whenever cycles
are asked for, the policy process's silence. A robot that is latched, without a camera or without a port has no such
times, and lives. The policy process is the gate's to replace, not systemd's: only one that loads for an hour is a
reason to begin anew.
"""

from __future__ import annotations

from collections import deque

from mvla_daemon.core.admission import Mode
from mvla_daemon.core.messages import MS, SECOND, Phase
from mvla_daemon.helm import Crew, Helm
from mvla_daemon.motors.controller_watch import NEVER_NS
from mvla_daemon.ops.notify import Notifier

EVERY_NS = 1 * SECOND
LEAST_NS = 10 * MS
"""However short systemd's patience is: the gate has other work."""
UNHEEDED_NS = 1 * SECOND
"""What the gate does at the wake at which it is due is far quicker, even on a machine that is busy."""
LONGEST_LOAD_NS = 3600 * SECOND
"""To build the engine of a large network takes tens of minutes on a Jetson; what loads for longer is hung."""
EXTENSION_US = 30_000_000
"""By how much a start may last longer after each sign of life."""
SPANS = 200
"""Of how many of the newest cycles the p99 is told: four seconds at 50 Hz, sorted once a second."""


class Pulse:
    """`boot_is_bounded`: a controller that does not answer in time ends the daemon (motor.identify_timeout_s).

    `next_ns` is when it wants to beat again, `NEVER_NS` without a service manager. Into `spans_ns` the gate puts how
    long each cycle took, from its start to its command's arrival.
    """

    def __init__(
        self, notifier: Notifier, helm: Helm, crew: Crew, *, boot_is_bounded: bool, policy_dead_ns: int
    ) -> None:
        self._notifier = notifier
        self._helm = helm
        self._crew = crew
        self._boot_is_bounded = boot_is_bounded
        self._policy_dead_ns = policy_dead_ns
        self._is_on = notifier.is_listened_to
        self._every_ns = EVERY_NS
        if notifier.watchdog_ns:
            self._every_ns = max(LEAST_NS, min(EVERY_NS, notifier.watchdog_ns // 2))
        self._told_state = helm.state
        self._told_ready = False
        self._loaded_ns = self._counted_ns = crew.clock.now_ns()
        self._counted = 0
        self.next_ns = self._loaded_ns if self._is_on else NEVER_NS
        self.spans_ns: deque[int] = deque(maxlen=SPANS)

    def is_due(self, now_ns: int) -> bool:
        """Whether there is something to tell: a second has passed, or the state is another."""
        return self._is_on and (now_ns >= self.next_ns or self._helm.state is not self._told_state)

    def beat(self, now_ns: int, due_ns: int) -> None:
        """Tell it; `due_ns` is the earliest time at which the gate has to do something."""
        self.next_ns = now_ns + self._every_ns
        if self._crew.keeper.ready:
            self._loaded_ns = now_ns
        is_alive = now_ns - min(due_ns, self._policy_due_ns()) < UNHEEDED_NS
        is_ready = not self._told_ready and self._is_ready()
        said = [f"STATUS={self._status(now_ns)}"]
        if self._helm.state.exiting:
            said.append("STOPPING=1")
        elif is_ready:
            said.append("READY=1")
        elif not self._told_ready and is_alive:
            said.append(f"EXTEND_TIMEOUT_USEC={EXTENSION_US}")
        if is_alive and self._notifier.watchdog_ns:
            said.append("WATCHDOG=1")
        self._told_ready |= self._notifier.tell(*said) and is_ready

    def _policy_due_ns(self) -> int:
        """Until when the policy process has to complete a cycle, or to have loaded."""
        admission, keeper = self._crew.admission, self._crew.keeper
        if not keeper.ready:
            return self._loaded_ns + LONGEST_LOAD_NS
        return NEVER_NS if admission.mode is Mode.IDLE else admission.last_completed_ns + self._policy_dead_ns

    def _is_ready(self) -> bool:
        """Whether it could be armed but for what may take as long as it likes: a board's boot, a port that went."""
        crew = self._crew
        asked_in_vain = not self._boot_is_bounded or crew.port.was_lost
        return crew.keeper.ready and (crew.link.identified or asked_in_vain)

    def _status(self, now_ns: int) -> str:
        helm, state, before = self._helm, self._helm.state, self._told_state
        self._told_state = state
        phase = state.phase.name.lower()
        pace = self._pace(now_ns)
        if state.exiting:
            return f"ending: {helm.farewell}" if helm.farewell else "ending"
        if state.phase is Phase.ARMED:
            return f"{phase}: {pace}" if state is before else phase
        if state.phase is Phase.DISARMED:
            return f"{phase}: {helm.missing() or 'ready to be armed'}"
        if state.phase is Phase.ARMING or state.reason is None:
            return phase
        return f"{phase} ({state.reason.label})"

    def _pace(self, now_ns: int) -> str:
        """Commands a second since the last beat, and what 99 of 100 of the newest cycles took at most."""
        admission = self._crew.admission
        took_ns, count = now_ns - self._counted_ns, admission.counts.get("admitted", 0) - self._counted
        self._counted_ns, self._counted = now_ns, self._counted + count
        spans = sorted(self.spans_ns)
        p99_ns = spans[-(-99 * len(spans) // 100) - 1] if spans else 0
        allowed_ms = admission.schedule.allowed_ns / MS
        return f"{count * SECOND / max(1, took_ns):.1f} Hz, cycle p99 {p99_ns / MS:.1f} of {allowed_ms:g} ms"
