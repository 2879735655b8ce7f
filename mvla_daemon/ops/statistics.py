"""Where the time goes: the stages of each cycle, as percentiles over the newest cycles."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise

from mvla_daemon.core.messages import MS, SECOND
from mvla_daemon.ops.telemetry import Cycle, GateCycle, PolicyCycle

KEPT = 65_536
"""Cycles that the percentiles look back on: about twenty minutes at 50 Hz, and bounded memory for ever."""
UNMATCHED = 256
STAGES = (
    ("wait_frame", "captured to cycle start"),
    ("preprocess", "picture to network input"),
    ("h2d", "input to the device"),
    ("compute", "the network"),
    ("d2h", "output from the device"),
    ("postprocess", "output to command"),
    ("send", "policy process to gate"),
    ("gate", "checks and serial write"),
    ("frame_to_wire", "captured to written"),
)


def percentile(ordered: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted values: the smallest that at least `share` per cent are not above."""
    if not ordered:
        return 0.0
    return ordered[max(0, -(-int(share * len(ordered) * 10) // 1000) - 1)]


@dataclass(frozen=True, slots=True)
class Matched:
    """A cycle as both processes saw it."""

    gate: GateCycle
    policy: PolicyCycle

    def stages_ms(self) -> tuple[float, ...]:
        """How long each of `STAGES` took."""
        p, g = self.policy, self.gate
        thinking = (p.preprocess_ns, p.h2d_ns, p.compute_ns, p.d2h_ns, p.postprocess_ns)
        edges = (p.captured_ns, *thinking, p.sent_ns, g.received_ns, g.written_ns)
        spans = [(b - a) / MS for a, b in pairwise(edges)]
        return (*spans, (g.written_ns - p.captured_ns) / MS)


class Statistics:
    """Collects cycles; both halves of a cycle come over different sockets and in any order."""

    def __init__(self) -> None:
        self._waiting: OrderedDict[tuple[int, int], Cycle] = OrderedDict()
        self._stages: deque[tuple[float, ...]] = deque(maxlen=KEPT)
        self._written_ns: deque[int] = deque(maxlen=KEPT)
        self.commands = 0
        self.holds = 0
        self.stops: Counter[str] = Counter()
        self.first_ns = 0

    def add(self, record: Cycle) -> Matched | None:
        """Take one half; the whole cycle when it is complete."""
        if isinstance(record, GateCycle) and record.written_ns:
            self.commands += 1
            self.first_ns = self.first_ns or record.written_ns
            self._written_ns.append(record.written_ns)
        other = self._waiting.pop((record.epoch, record.cycle), None)
        if other is None:
            self._waiting[record.epoch, record.cycle] = record
            if len(self._waiting) > UNMATCHED:
                self._waiting.popitem(last=False)
            return None
        gate, policy = (record, other) if isinstance(record, GateCycle) else (other, record)
        if not isinstance(gate, GateCycle) or not isinstance(policy, PolicyCycle):
            return None
        matched = Matched(gate, policy)
        if gate.written_ns and policy.hold:
            self.holds += 1
        elif gate.written_ns:
            self._stages.append(matched.stages_ms())
        return matched

    def stage_ms(self, name: str, newest: int = KEPT) -> list[float]:
        """The sorted times of one stage over the newest cycles that began with a frame."""
        column = [known for known, _ in STAGES].index(name)
        return sorted(row[column] for row in islice(reversed(self._stages), newest))

    def rate_hz(self, now_ns: int) -> float:
        """Commands written in the last second."""
        return float(sum(1 for t in islice(reversed(self._written_ns), 2000) if now_ns - t <= SECOND))

    def gaps_ms(self) -> list[float]:
        """The sorted times between one written command and the next; pauses after a stop (over a second) left out."""
        times = list(self._written_ns)
        return sorted((b - a) / MS for a, b in pairwise(times) if b - a < SECOND)

    def table(self) -> list[str]:
        """The summary: a row per stage, in milliseconds."""
        rows = [f"{'ms':<16}{'p50':>9}{'p90':>9}{'p99':>9}{'p99.9':>9}{'max':>9}{'n':>9}"]
        rows += [_row(name, self.stage_ms(name), what) for name, what in STAGES]
        rows.append(_row("command gap", self.gaps_ms(), "one command to the next"))
        return rows


def _row(name: str, values: Sequence[float], what: str) -> str:
    cells: Iterable[float] = (*(percentile(values, share) for share in (50, 90, 99, 99.9)), values[-1] if values else 0)
    return f"{name:<16}" + "".join(f"{cell:>9.2f}" for cell in cells) + f"{len(values):>9}  {what}"
