"""What /proc says of a process while it runs: memory, file descriptors, threads, and the processor's time."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1 << 20
SETTLED = 0.1
"""The first part of a run, in which caches fill and libraries load what they put off."""
MOST_MIB = 50.0
GROWTH_MIB = 1.0
"""A page here and there is no growth: an hour at 50 Hz has 180,000 cycles, and 6 bytes lost in each are more."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process. `processor_ns` is what all its threads have had so far."""

    at_ns: int
    resident: int
    descriptors: int
    threads: int
    processor_ns: int


def look(pid: int, at_ns: int, proc: Path = Path("/proc")) -> Sample | None:
    """How the process is now; None if it is no more."""
    own = proc / str(pid)
    try:
        tasks = list((own / "task").iterdir())
        ran_ns = sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
        resident = int((own / "statm").read_text().split()[1]) * PAGE
        return Sample(at_ns, resident, len(list((own / "fd").iterdir())), len(tasks), ran_ns)
    except (OSError, IndexError):
        return None


@dataclass(frozen=True, slots=True)
class Waits:
    """How long somebody has been kept from running so far, in ms: `steal` is what the host gave to other machines.

    `queued` is what the threads of each process have waited for a processor (proc(5): schedstat), `steal` of all
    processors together, in steps of a clock tick.
    """

    steal: float
    queued: dict[str, float]

    @classmethod
    def of(cls, pids: Mapping[str, int | None], proc: Path = Path("/proc")) -> Waits:
        """Those of these processes now; one that has ended has waited for nothing."""
        ticks = int((proc / "stat").read_text().split("\n", 1)[0].split()[8])
        queued = dict.fromkeys(pids, 0.0)
        for name, pid in pids.items():
            with suppress(OSError, IndexError):
                for task in (proc / str(pid) / "task").iterdir():
                    queued[name] += int((task / "schedstat").read_text().split()[1]) / 1e6
        return cls(1000 * ticks / os.sysconf("SC_CLK_TCK"), queued)

    def since(self, before: Waits) -> str:
        """What has come to it since, as words."""
        parts = [f"{name} queued for {ms - before.queued.get(name, 0.0):.1f} ms" for name, ms in self.queued.items()]
        return ", ".join([f"{self.steal - before.steal:.0f} ms stolen by the host", *parts])


@dataclass(frozen=True, slots=True)
class Flatness:
    """A process over its life, from when it had settled: MiB and counts at the beginning and at the end."""

    minutes: float
    resident_mib: tuple[float, float]
    most_mib: float
    descriptors: tuple[int, int]
    threads: tuple[int, int]
    processor: float
    """Share of one processor."""

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Flatness | None:
        """What these samples come to; None where there are too few of them."""
        settled = samples[int(len(samples) * SETTLED) :]
        part = len(settled) // 5
        if part < 1:
            return None
        first, last = settled[:part], settled[-part:]

        def median(name: str, of: Sequence[Sample]) -> float:
            return statistics.median(getattr(sample, name) for sample in of)

        took_ns = settled[-1].at_ns - settled[0].at_ns
        return cls(
            took_ns / 60e9,
            (median("resident", first) / MIB, median("resident", last) / MIB),
            max(sample.resident for sample in samples) / MIB,
            (round(median("descriptors", first)), round(median("descriptors", last))),
            (round(median("threads", first)), round(median("threads", last))),
            (settled[-1].processor_ns - settled[0].processor_ns) / took_ns,
        )

    def problems(self) -> list[str]:
        """What has grown, or is more than it may be."""
        grown = []
        if self.most_mib > MOST_MIB:
            grown.append(f"it held {self.most_mib:.1f} MiB, {MOST_MIB:g} are the most that it may")
        if self.resident_mib[1] - self.resident_mib[0] > GROWTH_MIB:
            grown.append(f"its memory grew from {self.resident_mib[0]:.1f} to {self.resident_mib[1]:.1f} MiB")
        for name, (first, last) in (("file descriptors", self.descriptors), ("threads", self.threads)):
            if last > first:
                grown.append(f"its {name} grew from {first} to {last}")
        return grown

    def line(self) -> str:
        """It as a sentence."""
        return (
            f"over {self.minutes:.1f} minutes: {self.resident_mib[0]:.1f} then {self.resident_mib[1]:.1f} MiB resident "
            f"(at most {self.most_mib:.1f}), {self.descriptors[0]} then {self.descriptors[1]} file descriptors, "
            f"{self.threads[0]} then {self.threads[1]} threads, {self.processor:.1%} of a processor"
        )
