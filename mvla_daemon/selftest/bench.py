"""Runs the rows of the self-test on this machine: ground and daemon, the tries of each fault, what they come to."""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from mvla_daemon import __version__
from mvla_daemon.config import Config
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.selftest.fault import Fault
from mvla_daemon.selftest.ground_link import GroundLink
from mvla_daemon.selftest.judge import Outcome
from mvla_daemon.selftest.load import Load
from mvla_daemon.selftest.on_blocks import BUNDLED_POLICY, on_blocks
from mvla_daemon.selftest.results import Row
from mvla_daemon.selftest.trial import Trials

SPOILT_IN_A_ROW = 6
"""A robot that stops this often by itself, before the fault has any effect, cannot be tested."""
LOADED = 0.1
"""Where others take more of the machine than this, times say nothing of the daemon."""
PROBATION_S = 1.0
"""For how long a policy has to drive without a stop."""


@dataclass(slots=True)
class Report:
    """What was found. `policy` says which one drove, and why it was not the user's."""

    config: Config
    policy: str = ""
    real_time: bool = False
    began: str = field(default_factory=lambda: time.strftime("%Y-%m-%d %H:%M:%S %z"))
    took_s: float = 0.0
    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False

    @property
    def machine(self) -> str:
        """Where it was found."""
        fifo = "SCHED_FIFO" if self.real_time else "no real-time scheduling"
        return (
            f"mvla-daemon {__version__}, Python {platform.python_version()}, Linux {platform.release()} "
            f"{platform.machine()}, {len(os.sched_getaffinity(0))} processors, {fifo}"
        )

    @property
    def terms(self) -> str:
        """What was asked for."""
        control, limits = self.config.control, self.config.limits
        return (
            f"{control.rate_hz:g} Hz, deadline {control.deadline_ms:g} ms, pictures at most "
            f"{control.max_frame_age_ms:g} ms old, {self.config.camera.fps:g} pictures a second, watchdog "
            f"{self.config.motor.watchdog_ms} ms, up to {limits.linear_x.max:g} m/s and {limits.angular_z.max:g} rad/s"
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: `done` of `total` tries, now at `fault`; `ended` is the row that has just ended."""

    done: int
    total: int
    fault: Fault
    ended: Row | None = None


def run_rows(
    config: Config, chosen: Sequence[Fault], tries: int | None, out: Path, tell: Callable[[Progress], None]
) -> Report:
    """Try the faults, one after the other; as `with_robot` for the rest."""
    return with_robot(config, out, lambda trials, report: _Bench(trials, report, tell).run(chosen, tries))


def with_robot(config: Config, out: Path, work: Callable[[Trials, Report], None]) -> Report:
    """Have a simulated robot drive, and `work` fill in the report's rows; wire and log go to the folder `out`.

    Ctrl-C ends it with what was found so far. DaemonError when not even the simulated robot drives.
    """
    report = Report(config)
    began_s = time.monotonic()
    with TemporaryDirectory(prefix="mvla-selftest-") as name:
        folder = Path(name)
        log = out / "daemon.log"
        log.unlink(missing_ok=True)
        ground = GroundLink(folder, out / "wire.log", config.camera.fps)
        try:
            trials, report.policy = _begin(config, ground, folder, log)
            try:
                report.config, report.real_time = trials.config, trials.daemon.is_real_time
                work(trials, report)
            except KeyboardInterrupt:
                report.interrupted = True
            finally:
                seen = trials.close()
        finally:
            ground.close()
    if report.rows and seen.problems:
        last = Outcome(after_stop=seen.after_stop, out_of_limits=seen.out_of_limits, problems=tuple(seen.problems))
        report.rows[-1].spoilt.append(last)
    report.took_s = time.monotonic() - began_s
    return report


def _begin(config: Config, ground: GroundLink, folder: Path, log: Path) -> tuple[Trials, str]:
    """A daemon that drives: by the user's policy where that can be, else by the bundled one; and words about it."""
    file = folder / "config.toml"
    trials = Trials(on_blocks(config, file, bundled_policy=False), ground, folder, log, random.Random(1))  # noqa: S311 - repeatable, no secret
    why = _probation(trials)
    if not why:
        return trials, f"policy {config.policy.manifest}"
    bundled = on_blocks(config, file, bundled_policy=True)
    if bundled.policy.manifest != config.policy.manifest:
        trials = Trials(bundled, ground, folder, log, random.Random(1))  # noqa: S311 - as above
        if not _probation(trials):
            words = (
                f"policy {BUNDLED_POLICY['manifest']} instead of {config.policy.manifest}, which does not drive here"
            )
            return trials, f"{words}: {why}"
    raise DaemonError(f"The simulated robot does not drive on this machine: {why}", ExitCode.UNAVAILABLE)


def _probation(trials: Trials) -> str:
    """Why it does not drive; empty when it does."""
    trials.start()
    if trials.drive(max(1, round(PROBATION_S * trials.config.control.rate_hz))):
        return ""
    why = trials.daemon.why()
    trials.close()
    return why


@dataclass(slots=True)
class _Bench:
    """One run over rows."""

    trials: Trials
    report: Report
    tell: Callable[[Progress], None]
    _done: int = 0
    _total: int = 0

    def run(self, chosen: Sequence[Fault], tries: int | None) -> None:
        """All of them, in order; a row is in the report as soon as its first try is over."""
        counts = [0 if fault.not_here else tries or fault.tries for fault in chosen]
        self._total = sum(counts)
        for fault, count in zip(chosen, counts, strict=True):
            row = Row(fault)
            self.report.rows.append(row)
            self._try_row(row, count)
            self.tell(Progress(self._done, self._total, fault, row))

    def _try_row(self, row: Row, count: int) -> None:
        for attempt in range(2):
            self._total += attempt * count
            row.timed_from = len(row.outcomes)
            load = Load()
            for number in range(count):
                self.tell(Progress(self._done, self._total, row.fault))
                row.outcomes.append(self._try(row, number))
                self._done += 1
            row.not_judged = self._why_not_judged(load.of_others())
            if not row.late_beyond() or row.not_judged:
                return

    def _try(self, row: Row, number: int) -> Outcome:
        """One try that says something; the others are kept aside."""
        way = row.fault.ways[number % len(row.fault.ways)]
        for _ in range(SPOILT_IN_A_ROW):
            outcome = self.trials.one(row.fault, way)
            if not outcome.spoilt:
                return outcome
            row.spoilt.append(outcome)
        reasons = ", ".join(reason.label for reason in outcome.reasons) or "none"
        return Outcome(
            outcome.reasons, problems=(f"the robot stopped {SPOILT_IN_A_ROW} times before the fault: {reasons}",)
        )

    def _why_not_judged(self, others: float) -> str:
        if not self.report.real_time:
            return "no real-time scheduling"
        return f"others took {others:.0%} of this machine" if others > LOADED else ""
