"""The latency block of a measurement, with the names that trtexec gives them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median

from mvla_daemon.ops.statistics import percentile

FIGURES = ("min", "mean", "median", "p90", "p95", "p99")
PARTS = {
    "latency": "Latency",
    "enqueue": "Enqueue Time",
    "h2d": "H2D Latency",
    "compute": "Compute Time",
    "d2h": "D2H Latency",
}
"""From the host's input to the host's output, and what that consists of."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Times in milliseconds, in brief."""

    min: float
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    n: int

    @classmethod
    def of(cls, times_ms: Sequence[float]) -> Spread:
        """Of at least one time."""
        ordered = sorted(times_ms)
        p90, p95, p99 = (percentile(ordered, share) for share in (90, 95, 99))
        return cls(ordered[0], fmean(ordered), median(ordered), p90, p95, p99, len(ordered))

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Block:
    """Inferences in a second of the whole measurement, and the parts that exist on this engine."""

    throughput_hz: float
    parts: dict[str, Spread]

    def lines(self) -> list[str]:
        """For a terminal; what does not exist on this engine is '-'."""
        head = f"  {'ms':<14}" + "".join(f"{figure:>10}" for figure in FIGURES)
        rows = [f"  {title:<14}{self._cells(part)}" for part, title in PARTS.items()]
        return [f"  {'Throughput':<14}{self.throughput_hz:>10.1f} inferences/s", head, *rows]

    def _cells(self, part: str) -> str:
        spread = self.parts.get(part)
        if spread is None:
            return f"{'-':>10}" * len(FIGURES)
        return "".join(f"{getattr(spread, figure):>10.3f}" for figure in FIGURES)
