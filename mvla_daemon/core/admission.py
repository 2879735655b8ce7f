"""Which of the policy process's messages become motion: on time, in turn, from a fresh frame, finite, inside limits.

While rehearsing, every check is made and nothing is written; while driving, an admitted command is written at once.
The caller reads the clock; nothing here does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum, auto

from mvla_daemon.core.freshness import CAMERA_ABSENT_NS, FrameWatch
from mvla_daemon.core.limits import Axes3, AxisLimit, VelocityGuard
from mvla_daemon.core.messages import MS, SECOND, Reason
from mvla_daemon.core.schedule import CycleSchedule, Turn

MAX_COMMANDS_PER_PERIOD = 4
"""More than this many in T are dropped: no camera that the daemon takes frames from is that fast."""
MAX_MESSAGES_PER_SECOND = 1000
"""More than this (or ten a period, for fast loops) is a flood, not a policy."""
BUDGET_MARGIN_NS = 2 * MS
"""The rehearsals' p99 must leave this much of the deadline free; without it the robot would stop every second. Of a
deadline shorter than 20 ms it is a tenth."""


class Mode(IntEnum):
    """What the gate asks of the policy process."""

    IDLE = 0
    REHEARSE = 1
    DRIVE = 2


class Kind(Enum):
    """What becomes of a message."""

    ADMIT = auto()
    DROP = auto()
    FAULT = auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of one message: `reason` with FAULT; `why` says it in words or names the counter."""

    kind: Kind
    reason: Reason | None = None
    why: str = ""


ADMITTED = Verdict(Kind.ADMIT)


@dataclass(slots=True)  # one for each cycle: a frozen one takes three times as long to make
class Offer:
    """A command as the policy process sends it (m/s, m/s, rad/s)."""

    epoch: int
    cycle: int
    captured_ns: int
    picture_crc: int
    values: Axes3


class Admission:
    """The gate's judgement of starts and commands; `counts` says how many were admitted or dropped, and why."""

    def __init__(
        self,
        *,
        period_ns: int,
        allowed_ns: int,
        max_frame_age_ns: int,
        frozen_after_ns: int,
        limits: Sequence[AxisLimit],
        rehearsals: int,
    ) -> None:
        self.mode = Mode.IDLE
        self.epoch = 0
        self.counts: dict[str, int] = {}
        self.schedule = CycleSchedule(period_ns, allowed_ns)
        self.watch = FrameWatch(max_frame_age_ns, frozen_after_ns)
        self.last_completed_ns = 0
        self.rehearsals_in_a_row = 0
        self._rehearsals = rehearsals
        self._margin_ns = min(BUDGET_MARGIN_NS, allowed_ns // 10)
        self._spans_ns: deque[int] = deque(maxlen=rehearsals)
        self._guard = VelocityGuard(limits, period_ns)
        self._recent_ns: deque[int] = deque(maxlen=MAX_COMMANDS_PER_PERIOD)
        self._flood_limit = max(MAX_MESSAGES_PER_SECOND, 10 * SECOND // period_ns)
        self._second = 0
        self._messages = 0

    def enter(self, mode: Mode, now_ns: int) -> None:
        """Begin a new epoch; what the policy process says of an earlier one no longer counts.

        Driving begins from the last rehearsal's start, so that there is no pause in which nobody watches the deadline.
        """
        if self.mode is Mode.IDLE:  # a policy process that has been silent since before stays so through a new arming
            self.last_completed_ns = now_ns
        if self.schedule.outstanding:  # its result, which may never come, counts for nothing any more
            self._drop("abandoned_cycle")
        self.mode = mode
        self.epoch = (self.epoch + 1) & 0xFFFFFFFF
        if mode is Mode.DRIVE:
            self.schedule.begin(self.schedule.last_start_ns)
            self.watch.begin_drive()
        else:
            self.schedule.begin(now_ns)
            self.watch.reset()
        self._guard.reset(now_ns)
        self._recent_ns.clear()
        self._spans_ns.clear()
        self.rehearsals_in_a_row = 0

    def flooded(self, now_ns: int) -> bool:
        """Count one message; true when this second has brought more than any policy sends."""
        second = now_ns // SECOND
        if second != self._second:
            self._second = second
            self._messages = 0
        self._messages += 1
        return self._messages > self._flood_limit

    def forgive_flood(self) -> None:
        """Another policy process speaks from now on, which is not to blame for what the one before it sent."""
        self._messages = 0

    def start(self, epoch: int, cycle: int, announced_ns: int, now_ns: int) -> Verdict:
        """Judge the announcement that a cycle has begun."""
        if epoch != self.epoch or self.mode is Mode.IDLE:
            return self._drop("old_epoch")
        turn = self.schedule.start(cycle, announced_ns, now_ns)
        if turn is Turn.PASSED:
            return self._drop("passed_start")
        if turn is Turn.OUT_OF_TURN:
            return _fault(Reason.SEQUENCE_ERROR, f"start of cycle {cycle} out of turn")
        return ADMITTED

    def command(self, offer: Offer, now_ns: int) -> Verdict:
        """Judge a command; ADMIT in DRIVE mode means: write it now, then call `wrote`."""
        if offer.epoch != self.epoch or self.mode is Mode.IDLE:
            return self._drop("old_epoch")
        due_ns, reason = self.due()
        turn = self.schedule.finish(offer.cycle)
        if turn is Turn.PASSED:
            return self._drop("passed_cycle")
        if turn is Turn.OUT_OF_TURN:
            return _fault(Reason.SEQUENCE_ERROR, f"command of cycle {offer.cycle} out of turn")
        self.last_completed_ns = now_ns
        verdict = self._judge(offer, due_ns, reason, now_ns)
        if self.mode is Mode.REHEARSE:
            self._rehearsed(verdict, due_ns, now_ns)
        return verdict

    def _judge(self, offer: Offer, due_ns: int, reason: Reason, now_ns: int) -> Verdict:
        violation = self._guard.violation(offer.values, now_ns)
        if violation is not None:
            return _fault(violation, "cycle {}: {:g} m/s, {:g} m/s, {:g} rad/s".format(offer.cycle, *offer.values))
        if now_ns > due_ns:
            return _fault(reason, f"cycle {offer.cycle} came {(now_ns - due_ns) / MS:.2f} ms late")
        unusable = self.watch.unusable(offer.captured_ns, now_ns)
        if unusable is not None:
            return self._drop(unusable)
        age_ns = now_ns - offer.captured_ns
        stale_or_frozen = self.watch.fault(offer.captured_ns, offer.picture_crc, now_ns)
        if self.mode is Mode.REHEARSE and age_ns > CAMERA_ABSENT_NS:
            return self._camera_lost(age_ns)
        if stale_or_frozen is Reason.FRAME_FROZEN and self.mode is Mode.REHEARSE:
            stale_or_frozen = None  # a robot that stands may see the same picture for long
        if stale_or_frozen is not None:
            return _fault(stale_or_frozen, f"the picture is {age_ns / MS:.1f} ms old")
        recent = self._recent_ns
        if len(recent) == MAX_COMMANDS_PER_PERIOD and now_ns - recent[0] < self.schedule.period_ns:
            return self._drop("too_many")
        recent.append(now_ns)
        self.counts["admitted"] = self.counts.get("admitted", 0) + 1
        if self.mode is Mode.REHEARSE:
            self.wrote(offer, now_ns)
        return ADMITTED

    def starved(self, epoch: int, captured_ns: int, now_ns: int) -> Verdict:
        """Judge the word that there is no frame to think about; `captured_ns` is when the newest one was captured."""
        if epoch != self.epoch or self.mode is Mode.IDLE:
            return self._drop("old_epoch")
        age_ns = now_ns - captured_ns
        return self._camera_lost(age_ns) if age_ns > CAMERA_ABSENT_NS else self._drop("no_frame")

    def _camera_lost(self, age_ns: int) -> Verdict:
        return _fault(Reason.CAMERA_LOST, f"the newest picture is {age_ns / SECOND:.1f} s old")

    def wrote(self, offer: Offer, now_ns: int) -> None:
        """Take note that the command went out (or, rehearsing, would have)."""
        self.watch.wrote(offer.captured_ns, now_ns)
        self._guard.wrote(offer.values, now_ns)

    def _rehearsed(self, verdict: Verdict, deadline_ns: int, now_ns: int) -> None:
        self._spans_ns.append(now_ns - deadline_ns + self.schedule.allowed_ns)
        self.rehearsals_in_a_row = self.rehearsals_in_a_row + 1 if verdict.kind is Kind.ADMIT else 0

    def why_not_rehearsed(self) -> str:
        """What the rehearsals still lack before driving may begin; empty when enough in a row were on time."""
        allowed_ms = self.schedule.allowed_ns / MS
        if self.rehearsals_in_a_row >= self._rehearsals:
            spans = sorted(self._spans_ns)
            p99_ns = spans[-(-99 * len(spans) // 100) - 1]
            if p99_ns <= self.schedule.allowed_ns - self._margin_ns:
                return ""
            return (
                f"a cycle takes {p99_ns / MS:.1f} ms (p99 of {len(spans)} rehearsals, median "
                f"{spans[len(spans) // 2] / MS:.1f} ms) and control.deadline_ms is {allowed_ms:g}, of which "
                f"{self._margin_ns / MS:g} ms must stay free; use a smaller network or a faster engine"
            )
        if not self._spans_ns:
            return "the policy process has completed no rehearsal"
        return (
            f"only {self.rehearsals_in_a_row} of {self._rehearsals} rehearsals in a row were on time; the slowest of "
            f"the last {len(self._spans_ns)} took {max(self._spans_ns) / MS:.1f} ms of {allowed_ms:g} ms"
        )

    def due(self) -> tuple[int, Reason]:
        """The moment after which a command comes too late, and why; when driving, the robot must then be stopped."""
        stale_ns = self.watch.stale_at_ns() if self.mode is Mode.DRIVE else None
        if stale_ns is not None and stale_ns < self.schedule.deadline_ns:
            return stale_ns, Reason.FRAME_STALE
        return self.schedule.deadline_ns, Reason.DEADLINE_MISSED

    def _drop(self, counter: str) -> Verdict:
        self.counts[counter] = self.counts.get(counter, 0) + 1
        return Verdict(Kind.DROP, why=counter)


def _fault(reason: Reason, why: str) -> Verdict:
    return Verdict(Kind.FAULT, reason, why)
