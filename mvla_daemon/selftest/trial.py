"""One try after the other: waits until the robot drives, brings a fault about, gathers what came of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mvla_daemon.config import Config
from mvla_daemon.core.messages import SECOND, Reason
from mvla_daemon.errors import DaemonError
from mvla_daemon.motors.link_v1 import Arm, Drive, Stop
from mvla_daemon.selftest.daemon_link import DaemonLink
from mvla_daemon.selftest.fault import Fault, Way
from mvla_daemon.selftest.ground_link import GroundLink
from mvla_daemon.selftest.judge import Evidence, Outcome, Sighting, Terms, WireWatch, judge
from mvla_daemon.selftest.wire_log import Timed, drove_on_ms

PATIENCE_S = 10.0
"""For what takes a second at most where nothing else runs; what takes longer has not come."""
DRIVE_PATIENCE_S = 40.0
"""A new policy process loads for some seconds; a slow machine takes a few times as long."""
LOOK_EVERY_S = 0.002
ASK_EVERY_S = 0.1
SETTLED = (4, 12)
"""After how many commands a fault may come: at some point of the run-up, or thereafter."""
MOST_RENEWALS = 2
"""A daemon gives up after some policy processes within a minute, so it is replaced before."""
POLICY_GONE_S = 1.0
OWN_STOP_MS = 20
"""Beyond ttl or watchdog, within this the controller has to begin to stop by itself, by motor link v1."""
_RESTING = {"stopped", "latched", "disarmed"}


@dataclass(slots=True)
class Trials:
    """Tries of faults. `config` is one for the ground; what the daemon says goes to `log`.

    After `most_renewals` policy processes the daemon is replaced. `commands` is how many VELOCITY were written so far.
    """

    config: Config
    ground: GroundLink
    folder: Path
    log: Path
    chance: random.Random
    most_renewals: int = MOST_RENEWALS
    commands: int = 0
    _watch: WireWatch = field(init=False)
    _daemon: DaemonLink | None = None
    _frames: list[Timed] = field(default_factory=list)
    _reasons: set[Reason] = field(default_factory=set)
    _driven: int = 0
    """VELOCITY since the newest ARM, 0 after a STOP."""
    _driven_ns: int = 0
    _arm: Timed | None = None

    def __post_init__(self) -> None:
        self._watch = WireWatch(Terms.of(self.config))

    @property
    def daemon(self) -> DaemonLink:
        """The one that runs, or has ended last."""
        assert self._daemon is not None
        return self._daemon

    # --- the daemon ---

    def start(self) -> None:
        """Start a daemon, after the end of the one before."""
        self._end()
        ground = (str(self.ground.port), self.ground.camera)
        self._daemon = DaemonLink(self.config, ground, self.folder / "sabotage", self.log)

    def _end(self) -> None:
        """End the daemon in order, at once where that does not work; the next one knows of no session."""
        if self._daemon is not None:
            self._daemon.send_signal("gate", "SIGTERM")
            self._until(lambda: self.daemon.ended is not None, PATIENCE_S)
            self._daemon.close()
            for timed in self._frames:
                self._watch.follow(timed)
            self._frames.clear()
        self._watch.driving = False
        self._driven = 0

    def close(self) -> Sighting:
        """End the daemon; what was seen on the wire since the last try."""
        self._end()
        self._daemon = None
        return self._watch.take()

    def look(self) -> None:
        """Take in what has arrived and what was said since."""
        self.daemon.listen()
        for timed in self.ground.wire.read():
            self._frames.append(timed)
            body = timed.packet.body
            if isinstance(body, Drive):
                self._driven += 1
                self.commands += 1
                self._driven_ns = timed.at_ns
            elif isinstance(body, (Arm, Stop)):
                self._driven = 0
                self._arm = timed if isinstance(body, Arm) else self._arm
            if isinstance(body, Stop) and body.reason in set(Reason):
                self._reasons.add(Reason(body.reason))

    def drive(self, commands: int) -> bool:
        """Wait until that many commands were written since the arming; arm where nobody else does. False: in vain."""
        asked_s = 0.0
        end_s = time.monotonic() + DRIVE_PATIENCE_S
        while self._driven < commands and self.daemon.ended is None and time.monotonic() < end_s:
            self.look()
            if self.daemon.state == "latched" and time.monotonic() - asked_s > ASK_EVERY_S:
                asked_s = time.monotonic()
                self._operate("arm")
            time.sleep(LOOK_EVERY_S)
        running = self.daemon.ended is None
        self.look()  # it may just have said why it ended
        return self._driven >= commands and running

    def linger(self, for_s: float) -> None:
        """Watch it for so long, and do nothing."""
        self._until(lambda: self.daemon.ended is not None, for_s)

    def _operate(self, request: str) -> None:
        """A daemon that has no control socket yet, or no more, is no news: what it does is judged elsewhere."""
        try:
            self.daemon.operate(request)
        except DaemonError:
            self.daemon.listen()

    def _until(self, true: Callable[[], bool], patience_s: float) -> bool:
        end_s = time.monotonic() + patience_s
        while not true():
            if time.monotonic() > end_s:
                return False
            self.look()
            time.sleep(LOOK_EVERY_S)
        self.look()
        return True

    # --- a try ---

    def one(self, fault: Fault, way: Way) -> Outcome:
        """Bring `fault` about in this way, see the robot stop, and drive again; what came of it."""
        if self.daemon.ended is not None or self.daemon.renewals >= self.most_renewals:
            self.start()
        if not self._ready(fault):
            why = self.daemon.why()
            self.start()
            if not self._ready(fault):
                return Outcome(problems=(f"the daemon did not drive: {why}",))
        time.sleep(self.chance.random() * self.config.control.period_ns / SECOND)
        self.look()
        self._reasons.clear()
        known, damaged, policy_pid = len(self.daemon.records), self.ground.wire.damaged, self.daemon.policy_pid()
        injected_ns = time.monotonic_ns()
        for number, step in enumerate(way):
            self._do(step, fault, known)
            if number == 0 and fault.silences:
                injected_ns = time.monotonic_ns()
        problems = self._see_it_through(fault, known, policy_pid)
        if self.ground.wire.damaged != damaged:
            problems.append("the daemon wrote bytes that are no packet")
        record = self.daemon.stop_record(known) or {}
        evidence = Evidence(
            self._frames, injected_ns, str(record.get("reason", "")), record.get("late_us"), tuple(problems)
        )
        outcome = judge(fault, evidence, self._watch)
        self._frames.clear()
        return outcome

    def _ready(self, fault: Fault) -> bool:
        return self.drive(self.chance.randint(*SETTLED)) and self._prepare(fault)

    def _prepare(self, fault: Fault) -> bool:
        """Have the policy process hold as much memory as the fault asks for, and drive on."""
        if not fault.large_mib:
            return True
        if self.daemon.policy_resident_mib() >= fault.large_mib:
            return True
        self.daemon.sabotage(f"grow {fault.large_mib}")
        grown = self._until(lambda: self.daemon.policy_resident_mib() >= fault.large_mib, DRIVE_PATIENCE_S)
        self._until(lambda: self.daemon.ended is not None, 2 * self.config.control.period_ns / SECOND)
        return grown and self.drive(SETTLED[0])

    def _do(self, step: str, fault: Fault, known: int) -> None:
        """One step of a way; the words are those of `fault.Way`."""
        kind, _, words = step.partition(" ")
        match kind:
            case "ground":
                self.ground.order(words)
            case "policy":
                self.daemon.sabotage(words)
            case "signal":
                self.daemon.send_signal(*words.split())
            case "operator":
                self._operate(words)
            case "pause":
                self._until(lambda: False, float(words) / 1000)
            case _:
                self._await(words, fault, known)

    def _await(self, what: str, fault: Fault, known: int) -> bool:
        """Until it has come; False: in vain."""
        if what == "stop":
            return self._until(lambda: bool(self._reasons), PATIENCE_S)
        if what == "told":
            return self._until(lambda: self.daemon.stop_record(known) is not None, PATIENCE_S)
        if what == "rest":
            patience_s = PATIENCE_S + self.config.safety.stop_timeout_ms / 1000
            return self._until(lambda: self.daemon.state in _RESTING or self.daemon.ended is not None, patience_s)
        if what == "end":
            return self._until(lambda: self.daemon.ended is not None, PATIENCE_S)
        reason = Reason[what.upper()]
        safety = self.config.safety
        patience_s = PATIENCE_S + (safety.policy_dead_after_ms + safety.stop_timeout_ms) / 1000
        return self._until(lambda: reason in self._reasons or not fault.must_stop, patience_s)

    def _see_it_through(self, fault: Fault, known: int, policy_pid: int | None) -> list[str]:
        """Wait for what must follow, then for the next drive; what of it was not as it must be."""
        problems = []
        if self.daemon.policy_holds(self.ground.port):
            problems.append("the policy process holds the motors' port open")
        if fault.must_stop:
            self._await("stop", fault, known)
        if self._reasons and fault.last is not None:
            self._await(fault.last.label, fault, known)
        if self._reasons:
            self._await("told", fault, known)
        if fault.exit_code is not None:
            problems += self._see_the_end(fault, policy_pid)
        elif self._reasons:
            self._await("rest", fault, known)
        drives = self.daemon.ended is None and self.drive(SETTLED[0])
        if self.daemon.ended not in {None, fault.exit_code}:
            problems.append(f"the daemon ended with {self.daemon.ended}: {self.daemon.why()}")
        elif not drives and fault.exit_code is None:
            problems.append(f"it did not drive again: {self.daemon.why()}")
        return problems

    def _see_the_end(self, fault: Fault, policy_pid: int | None) -> list[str]:
        """The daemon ends as it must, and its policy process with it; killed, the controller stops by itself."""
        problems = []
        if not self._await("end", fault, 0):
            problems.append("the daemon did not end")
        if not self._until(lambda: gone(policy_pid), POLICY_GONE_S):
            problems.append(f"the policy process outlived the gate by {POLICY_GONE_S:g} s")
        if fault.silences:
            allowed_ms = min(self.config.ttl_ms, self.config.motor.watchdog_ms) + OWN_STOP_MS
            self._until(lambda: False, 2 * allowed_ms / 1000)
            assert self._arm is not None
            driven_ms = drove_on_ms(self._arm, self._driven_ns, self.ground.said())
            if driven_ms > allowed_ms:
                problems.append(f"the controller drove on for {driven_ms:.0f} ms, {allowed_ms} are allowed")
        return problems


def gone(pid: int | None) -> bool:
    """Whether that process has ended; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the one to open, the other to read, when it ends in between
        return True
