"""How fast the loop goes on this machine: the whole daemon on a simulated controller, with pictures from memory.

With `--null` the engine returns at once and the deadline is T, so that what is measured is the daemon's own cost, and
the highest rate is looked for at which it misses no deadline. Misses while the machine itself stood still are told
apart and driven on after: nothing that runs on it could have kept them. Without `--null` the configuration's policy and
rate are kept, and the first stop is the end.
"""

from __future__ import annotations

import csv
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvla_daemon.camera_source import NULL, SIMULATED
from mvla_daemon.config import Config
from mvla_daemon.core.messages import SECOND
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.ops.bench_drive import Drive, drive
from mvla_daemon.ops.statistics import Statistics, percentile
from mvla_daemon.ops.telemetry import Cycle, GateCycle, PolicyCycle

RATES_HZ = (50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
PROBE_S = 3.0
TRIES = 2
"""A machine that others use may stall once; a rate that it cannot hold fails again."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run at one rate, and what came out."""

    rate_hz: float
    seconds: float
    drive: Drive
    statistics: Statistics

    def verdict(self) -> str:
        """What became of it, in a few words."""
        return self.drive.stop or f"no miss{self.but()}"

    def but(self) -> str:
        """What is not held against it."""
        stood_ms = self.drive.stood_ms
        if not stood_ms:
            return ""
        longest = f"{min(stood_ms):.1f} to {max(stood_ms):.1f} ms"
        return f" but {len(stood_ms)} while the machine itself stood still (for {longest})"

    def line(self) -> str:
        """A row of the table of runs."""
        spans = self.statistics.stage_ms("frame_to_wire")
        shares = "".join(f"{percentile(spans, share):9.2f}" for share in (50, 99, 99.9))
        return f"{self.rate_hz:7g}{self.seconds:9g}{self.statistics.commands:10}{shares}   {self.verdict()}"


def bench(config: Config, given: Sequence[str], *, null: bool, rate_hz: float | None, seconds: float) -> int:
    """Measure and print; `given` are the --set of the command line. DaemonError, TRY_AGAIN, where no rate was held."""
    _tell(f"{'rate':>7}{'s':>9}{'commands':>10}{'p50':>9}{'p99':>9}{'p99.9':>9}   (frame to wire, ms)")
    if not null or rate_hz is not None:
        best = _best_of(config, given, null=null, rate_hz=rate_hz or config.control.rate_hz, seconds=seconds)
    else:
        best = _search(config, given, seconds)
    for warning in best.drive.warnings:
        _tell(warning)
    _tell("\n".join(["", *best.statistics.table(), ""]))
    if best.drive.stop:
        raise DaemonError(f"{best.rate_hz:g} Hz was not held: {best.drive.stop}.", ExitCode.TRY_AGAIN)
    what = f"no deadline missed{best.but()}, each of them T long" if null else "no stop"
    _tell(f"{best.rate_hz:g} Hz held for {seconds:g} s: {what}.")
    return ExitCode.OK


def _search(config: Config, given: Sequence[str], seconds: float) -> Run:
    """The highest rate that holds: short probes upwards until one fails, then the whole time downwards."""
    held = []
    for rate_hz in RATES_HZ:
        probe = _best_of(config, given, null=True, rate_hz=rate_hz, seconds=min(PROBE_S, seconds))
        if probe.drive.stop:
            break
        held.append(rate_hz)
    run = probe
    for rate_hz in reversed(held):
        run = _best_of(config, given, null=True, rate_hz=rate_hz, seconds=seconds)
        if not run.drive.stop:
            break
    return run


def _best_of(config: Config, given: Sequence[str], *, null: bool, rate_hz: float, seconds: float) -> Run:
    """The first of a few runs without a stop, or the last; one that never began to drive tells enough by itself."""
    for _ in range(TRIES):
        run = _run(config, given, null=null, rate_hz=rate_hz, seconds=seconds)
        _tell(run.line())
        if not run.drive.stop or not run.statistics.commands:
            break
    return run


def _run(config: Config, given: Sequence[str], *, null: bool, rate_hz: float, seconds: float) -> Run:
    statistics = Statistics()
    with tempfile.TemporaryDirectory(prefix="mvla-bench-") as folder:
        trace = Path(folder) / "trace.csv"
        words = _words(config, given, null=null, rate_hz=rate_hz)
        driven = drive([*words, "--trace", str(trace)], seconds, period_ns=round(SECOND / rate_hz) if null else None)
        for record in _cycles(trace):
            statistics.add(record)
    return Run(rate_hz, seconds, driven, statistics)


def _words(config: Config, given: Sequence[str], *, null: bool, rate_hz: float) -> list[str]:
    """The daemon's command line: the configuration and what was given for it, but for what a bench changes."""
    changes = {
        "camera.source": NULL,
        "camera.fps": rate_hz,
        "camera.rotation": 0,
        "motor.port": SIMULATED,
        "safety.arm": "auto",
        "safety.recover": "never",
        "log.format": "json",
        "log.level": "info",
        "control.rate_hz": rate_hz,
    }
    if null:
        period_ms = 1000 / rate_hz
        changes |= {
            "policy.backend": "null",
            "control.deadline_ms": period_ms,
            "safety.recover": "auto",
            "safety.max_stops": 1000,
            "safety.stop_window_s": 1,
            # None of these is to be what stops it.
            "control.max_frame_age_ms": max(config.control.max_frame_age_ms, math.ceil(3 * period_ms)),
            "camera.frozen_after_ms": 0,
            "motor.watchdog_ms": max(config.motor.watchdog_ms, math.ceil(2 * period_ms) + 20),
        }
    settings = [*given, *(f"{key}={json.dumps(value)}" for key, value in changes.items())]
    return ["--config", str(config.path), *(f"--set={setting}" for setting in settings)]


def _cycles(trace: Path) -> Iterator[Cycle]:
    """Both halves of every cycle that was traced."""
    with trace.open(newline="") as lines:
        for row in csv.DictReader(lines):
            values: dict[str, Any] = {"start_ns": 0, **{name: int(value) for name, value in row.items()}}
            for kind in (GateCycle, PolicyCycle):
                yield kind(**{name: values[name] for name in kind.__slots__})


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
