"""What the tries of each fault come to: percentiles, and whether what was promised holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from mvla_daemon.ops.statistics import percentile
from mvla_daemon.selftest.fault import Fault
from mvla_daemon.selftest.judge import Outcome

JUDGED_FROM = 20
"""Fewer tries than this say nothing of percentiles."""


class Kind(Enum):
    """How a row ended."""

    HOLDS = "holds"
    BROKEN = "BROKEN"
    NOT_HERE = "not here"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`why` is what was broken, or what was not judged; empty where there is nothing to say."""

    kind: Kind
    why: str = ""


@dataclass(frozen=True, slots=True)
class Spread:
    """Sorted times in ms."""

    ms: tuple[float, ...]

    def at(self, share: float) -> float | None:
        """That percentile; None without a time."""
        return percentile(self.ms, share) if self.ms else None


@dataclass(slots=True)
class Row:
    """A fault and its tries. `not_judged` says why times say nothing here, where they do not.

    `spoilt` are tries in which the robot had stopped by itself before. Times are judged from index `timed_from` of the
    outcomes on: a row whose times failed is tried once more.
    """

    fault: Fault
    outcomes: list[Outcome] = field(default_factory=list)
    spoilt: list[Outcome] = field(default_factory=list)
    timed_from: int = 0
    not_judged: str = ""

    @property
    def late(self) -> Spread:
        """STOP after its deadline, by the gate's clock."""
        return Spread(tuple(sorted(one.late_ms for one in self.outcomes[self.timed_from :] if one.late_ms is not None)))

    @property
    def wire(self) -> Spread:
        """Last VELOCITY to STOP, at the far end."""
        return Spread(tuple(sorted(one.wire_ms for one in self.outcomes[self.timed_from :] if one.wire_ms is not None)))

    @property
    def seen(self) -> list[Outcome]:
        """All tries: what may never happen counts in the spoilt ones too."""
        return [*self.outcomes, *self.spoilt]

    @property
    def after_stop(self) -> int:
        """VELOCITY outside an armed session."""
        return sum(one.after_stop for one in self.seen)

    @property
    def reasons(self) -> Counter[str]:
        """How often each sequence of reasons was on the wire."""
        return Counter(", ".join(reason.label for reason in one.reasons) or "none" for one in self.outcomes)

    def late_beyond(self) -> list[str]:
        """The bounds that the times do not keep, where there are enough of them."""
        bounds = self.fault.bounds
        if bounds is None:
            return []
        promised = (
            ("STOP after its deadline, p50", self.late, 50, bounds.late_p50_ms),
            ("STOP after its deadline, p99", self.late, 99, bounds.late_p99_ms),
            ("last VELOCITY to STOP, p99", self.wire, 99, bounds.wire_p99_ms),
        )
        beyond = []
        for name, spread, share, most_ms in promised:
            value_ms = spread.at(share)
            if most_ms is None or value_ms is None or len(spread.ms) < JUDGED_FROM:
                continue
            if value_ms > most_ms:
                beyond.append(f"{name} {value_ms:.2f} ms, promised {most_ms:g} ms")
        return beyond

    def verdict(self) -> Verdict:
        """Order and content always count, times where they are judged."""
        if self.fault.not_here:
            return Verdict(Kind.NOT_HERE, self.fault.not_here)
        problems = Counter(problem for one in self.seen for problem in one.problems)
        if problems:
            return Verdict(Kind.BROKEN, "; ".join(f"{text} ({count} x)" for text, count in problems.items()))
        beyond = self.late_beyond()
        if beyond and not self.not_judged:
            return Verdict(Kind.BROKEN, "; ".join(beyond))
        if beyond:
            return Verdict(Kind.HOLDS, f"late, not judged ({self.not_judged}): {'; '.join(beyond)}")
        timed = max(len(self.late.ms), len(self.wire.ms))
        if self.fault.bounds is not None and timed < JUDGED_FROM:
            return Verdict(Kind.HOLDS, f"times not judged: {timed} of {JUDGED_FROM} tries")
        return Verdict(Kind.HOLDS)


@dataclass(frozen=True, slots=True)
class Totals:
    """All rows together."""

    injected: int
    after_stop: int
    out_of_limits: int
    missed: int
    needless: int
    broken: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Totals:
        """Those of these rows."""
        tries = [one for row in rows for one in row.seen]
        broken = [f"{row.fault.row} ({row.fault.what})" for row in rows if row.verdict().kind is Kind.BROKEN]
        return cls(
            sum(len(row.outcomes) for row in rows),
            sum(one.after_stop for one in tries),
            sum(one.out_of_limits for one in tries),
            sum(one.missed for one in tries),
            sum(len(row.spoilt) for row in rows),
            tuple(broken),
        )

    def line(self) -> str:
        """Them as a sentence."""
        return (
            f"{self.injected} faults injected: {self.after_stop} VELOCITY after a stop, {self.out_of_limits} numbers "
            f"non-finite or out of limits, {self.missed} missed stops"
        )
