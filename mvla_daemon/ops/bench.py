"""How fast the loop goes on this machine: the whole daemon on a simulated controller, with pictures from memory.

With `--null` the engine returns at once and the deadline is T, so that what is measured is the daemon's own cost, and
the highest rate is looked for at which no deadline is missed. Without it the configuration's policy and rate are kept.
"""

from __future__ import annotations

import csv
import json
import math
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvla_daemon.camera_source import NULL, SIMULATED
from mvla_daemon.config import Config
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.ops.child import Process, start_module
from mvla_daemon.ops.statistics import Statistics, percentile
from mvla_daemon.ops.telemetry import Cycle, GateCycle, PolicyCycle

RATES_HZ = (50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)
PROBE_S = 3.0
TRIES = 2
"""A machine that others use may stall once; a rate that it cannot hold fails again."""
START_S = 20.0
"""For loading and arming, before the seconds that were asked for begin."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run at one rate: what came out, and what stopped it, if anything did."""

    rate_hz: float
    seconds: float
    stop: str
    statistics: Statistics
    warnings: tuple[str, ...]

    def line(self) -> str:
        """A row of the table of runs."""
        spans = self.statistics.stage_ms("frame_to_wire")
        shares = "".join(f"{percentile(spans, share):9.2f}" for share in (50, 99, 99.9))
        verdict = self.stop or "no miss"
        return f"{self.rate_hz:7g}{self.seconds:9g}{self.statistics.commands:10}{shares}   {verdict}"


def bench(config: Config, given: Sequence[str], *, null: bool, rate_hz: float | None, seconds: float) -> int:
    """Measure and print; `given` are the --set of the command line. DaemonError, TRY_AGAIN, where no rate was held."""
    _tell(f"{'rate':>7}{'s':>9}{'commands':>10}{'p50':>9}{'p99':>9}{'p99.9':>9}   (frame to wire, ms)")
    if not null or rate_hz is not None:
        best = _best_of(config, given, null=null, rate_hz=rate_hz or config.control.rate_hz, seconds=seconds)
    else:
        best = _search(config, given, seconds)
    for warning in best.warnings:
        _tell(warning)
    _tell("\n".join(["", *best.statistics.table(), ""]))
    if best.stop:
        raise DaemonError(f"{best.rate_hz:g} Hz was not held: {best.stop}.", ExitCode.TRY_AGAIN)
    what = "no deadline missed, each of them T long" if null else "no stop"
    _tell(f"{best.rate_hz:g} Hz held for {seconds:g} s: {what}.")
    return ExitCode.OK


def _search(config: Config, given: Sequence[str], seconds: float) -> Run:
    """The highest rate that holds: short probes upwards until one fails, then the whole time downwards."""
    held = []
    for rate_hz in RATES_HZ:
        probe = _best_of(config, given, null=True, rate_hz=rate_hz, seconds=min(PROBE_S, seconds))
        if probe.stop:
            break
        held.append(rate_hz)
    run = probe
    for rate_hz in reversed(held):
        run = _best_of(config, given, null=True, rate_hz=rate_hz, seconds=seconds)
        if not run.stop:
            break
    return run


def _best_of(config: Config, given: Sequence[str], *, null: bool, rate_hz: float, seconds: float) -> Run:
    """The first of a few runs without a stop, or the last; one that never began to drive tells enough by itself."""
    for _ in range(TRIES):
        run = _run(config, given, null=null, rate_hz=rate_hz, seconds=seconds)
        _tell(run.line())
        if not run.stop or not run.statistics.commands:
            break
    return run


def _run(config: Config, given: Sequence[str], *, null: bool, rate_hz: float, seconds: float) -> Run:
    statistics = Statistics()
    with tempfile.TemporaryDirectory(prefix="mvla-bench-") as folder:
        trace = Path(folder) / "trace.csv"
        stop, warnings = _drive(_words(config, given, null=null, rate_hz=rate_hz), trace, seconds)
        for record in _cycles(trace):
            statistics.add(record)
    return Run(rate_hz, seconds, stop, statistics, warnings)


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
            # None of these is to be what stops it.
            "control.max_frame_age_ms": max(config.control.max_frame_age_ms, math.ceil(3 * period_ms)),
            "camera.frozen_after_ms": 0,
            "motor.watchdog_ms": max(config.motor.watchdog_ms, math.ceil(2 * period_ms) + 20),
        }
    settings = [*given, *(f"{key}={json.dumps(value)}" for key, value in changes.items())]
    return ["--config", str(config.path), *(f"--set={setting}" for setting in settings)]


def _drive(words: Sequence[str], trace: Path, seconds: float) -> tuple[str, tuple[str, ...]]:
    """Run the daemon until it stops or has driven long enough: why it stopped, and what it warned of."""
    pipe = subprocess.PIPE
    with start_module("mvla_daemon", *words, "--trace", str(trace), stdout=subprocess.DEVNULL, stderr=pipe) as process:
        try:
            listener = _Listener(process)
            answer = listener.wait_for({"refused", "armed"}, START_S)
            if answer is None or answer["kind"] == "refused":
                return (answer["event"] if answer else f"not armed within {START_S:g} s"), tuple(listener.warnings)
            stop = listener.wait_for({"stop"}, seconds)
            return (stop["event"] if stop else ""), tuple(listener.warnings)
        finally:
            process.terminate()
            process.wait()


class _Listener:
    """Reads what the daemon logs; raises DaemonError with its last sentence when it ends."""

    def __init__(self, process: Process) -> None:
        assert process.stderr is not None
        self._process = process
        self._fd = process.stderr.fileno()
        self._pending = b""
        self._said = "The daemon ended without a word; try again."
        self.warnings: list[str] = []

    def wait_for(self, kinds: set[str], seconds: float) -> dict[str, Any] | None:
        """The next record of one of these kinds, or None once the time is over."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            for record in self._read() if select.select([self._fd], [], [], left_s)[0] else ():
                if record["kind"] == "realtime" and record["level"] == "warning":
                    self.warnings.append(record["event"])
                if record["kind"] in kinds or record.get("state") in kinds:
                    return record
        return None

    def _exit_code(self) -> ExitCode:
        status = self._process.wait()
        return ExitCode(status) if status and status in list(ExitCode) else ExitCode.INTERNAL

    def _read(self) -> list[dict[str, Any]]:
        data = os.read(self._fd, 65536)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"{"):
                self._said = line.decode("utf-8", "replace").removeprefix("mvla-daemon: ")
        if not data:
            raise DaemonError(self._said, self._exit_code())
        return [json.loads(line) for line in lines if line.startswith(b"{")]


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
