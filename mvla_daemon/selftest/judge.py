"""Judges one try by what arrived at the far end of the wire: no I/O, no clock, no word of the daemon but its lateness.

What may never happen, whatever the machine is doing, is kept apart from what takes how long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mvla_daemon.config import Config
from mvla_daemon.core.messages import AXES, MS, SECOND, Reason
from mvla_daemon.core.session import RECOVERABLE
from mvla_daemon.motors.link_v1 import Arm, Drive, Stop
from mvla_daemon.selftest.fault import Fault
from mvla_daemon.selftest.wire_log import Timed

MICRO = 1_000_000
ROUNDED_UMPS = 2
"""What rounding to the wire's integers may add to a rise."""
REPEATED_WITHIN_NS = 250 * MS
"""A STOP is said every 10 ms until it is confirmed and every 100 ms after that: within this long, twice at least."""
HELD_NS = 60 * MS
"""How long the daemon goes on writing before it has to notice that nothing is taken, by motor link v1."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a configuration promises: nanoseconds, and µm/s (µm/s²), µm/s, µrad/s by axis."""

    period_ns: int
    deadline_ns: int
    most: tuple[float, ...]
    accel: tuple[float, ...]

    @classmethod
    def of(cls, config: Config) -> Terms:
        """Those of a configuration."""
        limits = config.limits.by_axis()
        return cls(
            config.control.period_ns,
            config.control.deadline_ns,
            tuple(limit.maximum * MICRO for limit in limits),
            tuple(limit.accel * MICRO for limit in limits),
        )

    @property
    def held(self) -> int:
        """How many VELOCITY an output buffer may hold when nobody reads it: three at 50 Hz."""
        return max(3, -(-HELD_NS // self.period_ns))


@dataclass(slots=True)
class Sighting:
    """What may never be on the wire: how often it was there, and in words."""

    after_stop: int = 0
    out_of_limits: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class WireWatch:
    """Follows the wire from the daemon's first byte on, and counts what may never be there.

    The limit of acceleration is `accel * time + accel * T` over any stretch. When a frame was written is known only to
    lie between two readings, so each stretch is taken as long as it can have been: what is counted is proved.
    """

    terms: Terms
    driving: bool = False
    """In a session: since its ARM, to the first STOP."""
    _seen: Sighting = field(default_factory=Sighting)
    _session: int = 0
    _last: tuple[int, ...] = (0, 0, 0)
    _risen: list[float] = field(default_factory=lambda: [0.0] * len(AXES))
    _least: list[float] = field(default_factory=lambda: [0.0] * len(AXES))
    _after_ns: int = 0

    def take(self) -> Sighting:
        """What was seen since the last call."""
        seen, self._seen = self._seen, Sighting()
        return seen

    def follow(self, timed: Timed) -> None:
        """Take in the next packet."""
        body = timed.packet.body
        if isinstance(body, Arm):
            self._arm(timed)
        elif isinstance(body, Stop):
            self.driving = False
        elif isinstance(body, Drive):
            if not self.driving or timed.packet.session != self._session:
                self._seen.after_stop += 1
                self._seen.problems.append("a VELOCITY outside an armed session")
            self._judge_limits(timed, (body.vx_umps, body.vy_umps, body.wz_uradps))
        self._after_ns = timed.after_ns

    def _arm(self, timed: Timed) -> None:
        self.driving = True
        self._session = timed.packet.session
        self._last = (0, 0, 0)
        self._risen = [0.0] * len(AXES)
        self._least = [-accel * timed.after_ns / SECOND for accel in self.terms.accel]

    def _judge_limits(self, timed: Timed, values: tuple[int, ...]) -> None:
        for axis, (value, last) in enumerate(zip(values, self._last, strict=True)):
            accel, most = self.terms.accel[axis], self.terms.most[axis]
            self._risen[axis] += _rise(last, value)
            grown = self._risen[axis] - accel * timed.at_ns / SECOND - self._least[axis]
            too_sudden = grown > accel * self.terms.period_ns / SECOND + ROUNDED_UMPS
            if abs(value) > most + 1 or too_sudden:
                self._seen.out_of_limits += 1
                self._seen.problems.append(
                    f"{AXES[axis]} went from {last / MICRO:g} to {value / MICRO:g}, outside its limits"
                )
            # The daemon judged this command after it had written the frame before, so not before that one's reading.
            self._least[axis] = min(self._least[axis], self._risen[axis] - accel * self._after_ns / SECOND)
        self._last = values


def _rise(last: int, value: int) -> float:
    """What of a change counts against the acceleration: none of it while coming towards zero."""
    towards_zero = abs(value) <= abs(last) and last * value >= 0
    return 0.0 if towards_zero else float(abs(value - last))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one try.

    `frames` are those since the try before, to the drive after this one. `late_us` is what the daemon's record of the
    stop says. `problems` is what was seen elsewhere than on the wire, as sentences.
    """

    frames: Sequence[Timed]
    injected_ns: int
    told: str = ""
    late_us: int | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """One try, judged. `wire_ms` is last VELOCITY to STOP at the far end, `late_ms` STOP after its deadline there.

    `spoilt`: the robot was not driving any more when the fault came, or stopped for a late cycle of its own before the
    fault had any effect; such a try says nothing of the fault.
    """

    reasons: tuple[Reason, ...] = ()
    late_ms: float | None = None
    wire_ms: float | None = None
    after_stop: int = 0
    out_of_limits: int = 0
    missed: bool = False
    spoilt: bool = False
    problems: tuple[str, ...] = ()


def judge(fault: Fault, evidence: Evidence, watch: WireWatch) -> Outcome:
    """What came of one try; `watch` has followed the wire up to it, and follows this one's."""
    before = [timed for timed in evidence.frames if timed.at_ns <= evidence.injected_ns]
    later = evidence.frames[len(before) :]
    for timed in before:
        watch.follow(timed)
    was_driving = watch.driving
    for timed in later:
        watch.follow(timed)
    seen = watch.take()
    stops = [(timed, timed.packet.body) for timed in later if isinstance(timed.packet.body, Stop)]
    reasons = tuple(dict.fromkeys(_reason(stop) for _, stop in stops))
    first = stops[0][0] if stops else None
    problems = [*seen.problems, *evidence.problems]
    missed = was_driving and fault.must_stop and first is None
    needless = bool(reasons) and reasons[0] in RECOVERABLE and reasons[0] not in fault.reasons
    if missed:
        problems.append("no STOP came")
    if was_driving and not needless:
        problems += _of_reasons(fault, reasons) + _of_repetition(fault, later, [timed for timed, _ in stops])
        problems += _of_drive(fault, later, first, evidence.injected_ns, watch.terms)
    told = first is not None and evidence.late_us is not None and evidence.told == reasons[0].label
    return Outcome(
        reasons=reasons,
        late_ms=evidence.late_us / 1000 if told and evidence.late_us is not None else None,
        wire_ms=None if first is None or fault.silences else _since_velocity_ms(evidence.frames, first),
        after_stop=seen.after_stop,
        out_of_limits=seen.out_of_limits,
        missed=missed,
        spoilt=not was_driving or needless,
        problems=tuple(dict.fromkeys(problems)),
    )


def _reason(stop: Stop) -> Reason:
    """A number that the protocol does not know is as bad as any: the codec's own tests are elsewhere."""
    return Reason(stop.reason) if stop.reason in set(Reason) else Reason.INTERNAL


def _since_velocity_ms(frames: Sequence[Timed], stop: Timed) -> float | None:
    """Last VELOCITY to STOP; None without one, and where both were read at once, from a buffer that held them."""
    driven_ns = [timed.at_ns for timed in frames if timed.at_ns <= stop.at_ns and isinstance(timed.packet.body, Drive)]
    return (stop.at_ns - driven_ns[-1]) / MS if driven_ns and driven_ns[-1] < stop.at_ns else None


def _of_reasons(fault: Fault, reasons: tuple[Reason, ...]) -> list[str]:
    problems = []
    if reasons and reasons[0] not in fault.reasons:
        due = " or ".join(reason.label for reason in sorted(fault.reasons)) or "none"
        problems.append(f"STOP {reasons[0].label} came where {due} is due")
    if fault.last is not None and reasons and fault.last not in reasons:
        problems.append(f"STOP {fault.last.label} did not follow")
    return problems


def _of_repetition(fault: Fault, later: Sequence[Timed], stops: Sequence[Timed]) -> list[str]:
    """Whether STOP is said again until it is confirmed, and while the robot stands."""
    if not stops:
        return []
    armed_ns = [t.at_ns for t in later if isinstance(t.packet.body, Arm) and t.at_ns > stops[0].at_ns]
    until_ns = min(armed_ns, default=later[-1].at_ns)
    said = sum(timed.at_ns <= until_ns for timed in stops)
    if until_ns - stops[0].at_ns > REPEATED_WITHIN_NS and said < 2:
        return ["STOP was not repeated"]
    if said < fault.unanswered_ms // 20:
        return [f"{said} STOP in {fault.unanswered_ms} ms without an answer, where one each 10 ms is due"]
    return []


def _of_drive(fault: Fault, later: Sequence[Timed], stop: Timed | None, injected_ns: int, terms: Terms) -> list[str]:
    """What must not be driven between the fault and its STOP."""
    until_ns = later[-1].at_ns if stop is None and later else stop.at_ns if stop is not None else 0
    drives = [timed for timed in later if isinstance(timed.packet.body, Drive) and timed.at_ns <= until_ns]
    problems = []
    if fault.silences and any(timed.after_ns >= injected_ns for timed in drives):
        problems.append("a VELOCITY was written after the fault")
    held = sum(stop is not None and timed.at_ns == stop.at_ns for timed in drives)
    if held > terms.held:
        problems.append(f"an output buffer held {held} VELOCITY before the STOP, at most {terms.held} are allowed")
    return problems
