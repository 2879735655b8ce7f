"""All that a bench has found, and the figures that come of putting rows side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mvla_daemon.bench.bound import ROBOTS, Bandwidth, published_bandwidth
from mvla_daemon.bench.contest import Contest, Measured
from mvla_daemon.bench.subject import Subject


@dataclass(frozen=True, slots=True)
class Pair:
    """FP32 against FP16 of one policy on one engine. `memory` says what was compared."""

    engine: str
    speed_up: float
    memory: str
    fp32_mib: float
    fp16_mib: float

    @property
    def saved_percent(self) -> float:
        """How much of the memory FP16 saves; negative where it takes more."""
        return 100 * (1 - self.fp16_mib / self.fp32_mib) if self.fp32_mib else 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """The rows, policy by policy, and under which terms they came about."""

    began: str
    machine: str
    engines: tuple[str, ...]
    absent: dict[str, str]
    """Engines that are not here, and what they lack."""
    tries: int
    warm_ups: int
    contests: tuple[Contest, ...]
    memory: Bandwidth
    cache_bytes: int

    @property
    def subjects(self) -> list[Subject]:
        """The policies in the order in which they were named."""
        return list({contest.subject.path: contest.subject for contest in self.contests}.values())

    def rows(self, subject: Subject) -> list[Contest]:
        """Those of one policy."""
        return [contest for contest in self.contests if contest.subject.path == subject.path]

    def difference(self, contest: Contest) -> float | None:
        """The largest distance on any axis from the policy's FP32 answer to the same picture, ONNX Runtime's first."""
        answers = [
            row.measured.answer for row in self.rows(contest.subject) if row.measured and row.precision == "FP32"
        ]
        if contest.measured is None or not answers:
            return None
        return max(abs(value - answers[0][axis]) for axis, value in contest.measured.answer.items())

    def pairs(self, subject: Subject) -> list[Pair]:
        """FP32 against FP16 on each engine that measured both."""
        found = []
        for engine in self.engines:
            both = {row.precision: row.measured for row in self.rows(subject) if row.engine == engine and row.measured}
            if len(both) == 2:
                found.append(_pair(engine, both["FP32"], both["FP16"]))
        return found

    def bandwidth(self, contest: Contest) -> Bandwidth | None:
        """Of the memory that this row's engine reads; None for a GPU of which it is not known."""
        if contest.measured is not None and contest.measured.on_gpu:
            return published_bandwidth(contest.measured.device)
        return self.memory

    def bandwidths(self, subject: Subject) -> list[Bandwidth]:
        """Of the machine's memory, of the GPU that was measured, and of the robots' boards."""
        known = [self.bandwidth(row) for row in self.rows(subject) if row.measured]
        return list(dict.fromkeys([one for one in (*known, self.memory, *ROBOTS) if one is not None]))

    def is_cached(self, subject: Subject, precision: str) -> bool:
        """Whether the weights fit into the processor's cache, so that its memory bounds nothing."""
        return subject.weight_bytes(precision) < self.cache_bytes


def _pair(engine: str, fp32: Measured, fp16: Measured) -> Pair:
    speed_up = fp32.latency.mean / fp16.latency.mean
    if fp32.gpu_mib is not None and fp16.gpu_mib is not None:
        return Pair(engine, speed_up, "GPU memory of the process", fp32.gpu_mib, fp16.gpu_mib)
    return Pair(
        engine, speed_up, "peak resident memory, the empty process's left out", fp32.policy_mib, fp16.policy_mib
    )


def weights_mb(subject: Subject, precisions: Sequence[str] = ("FP32", "FP16")) -> str:
    """The size of the weights at each precision."""
    return ", ".join(f"{subject.weight_bytes(one) / 1e6:,.1f} MB {one}" for one in precisions)
