"""Drives the simulated robot for an hour, with faults of all kinds at random moments, and says whether all holds.

    python scripts/soak.py [--minutes 60] [--seed 1] [--config config.toml] [--out build/soak]

Every byte on the wire is judged as the self-test judges it, and the gate's memory, file descriptors and threads have to
stay flat over the whole time. One gate lives through all of it: faults that end it are the self-test's.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
import time
from collections import deque
from pathlib import Path

from soak_watch import Flatness, Sample, Waits, look

from mvla_daemon.config_load import load_config
from mvla_daemon.core.messages import Reason
from mvla_daemon.errors import DaemonError
from mvla_daemon.selftest.bench import Report, with_robot
from mvla_daemon.selftest.fault import Fault
from mvla_daemon.selftest.faults import faults
from mvla_daemon.selftest.report import as_json, table
from mvla_daemon.selftest.results import Row, Totals
from mvla_daemon.selftest.trial import Trials

BETWEEN_S = (0.5, 6.0)
"""For how long it drives undisturbed between two faults."""
LINGER_S = 0.25
LOOK_EVERY_NS = 2_000_000_000
LOSSES, LOSSES_WITHIN_S = 3, 61.0
"""A daemon gives up when its policy process ends more often than five times within a minute."""
NEVER = sys.maxsize


@dataclasses.dataclass(slots=True)
class Soak:
    """One run. `needless` are the daemon's own words on stops where nothing had been done."""

    minutes: float
    chance: random.Random
    faults: bool = True
    samples: list[Sample] = dataclasses.field(default_factory=list)
    needless: list[str] = dataclasses.field(default_factory=list)
    gates: int = 1
    commands: int = 0
    _lost_s: deque[float] = dataclasses.field(default_factory=lambda: deque(maxlen=LOSSES))

    def run(self, trials: Trials, report: Report) -> None:
        """Fault after fault until the time is over."""
        trials.most_renewals = NEVER
        rows = [Row(fault, not_judged="the machine does other things too") for fault in lasting(faults(report.config))]
        report.rows += rows
        gate = trials.daemon.pid
        trials.daemon.records.clear()
        told_minute = 0
        began_s = time.monotonic()
        while (passed_s := time.monotonic() - began_s) < 60 * self.minutes:
            self._drive(trials)
            if self.faults:
                self._try(trials, self.chance.choice(rows))
                trials.daemon.records.clear()  # what was told up to here is that fault's
            if trials.daemon.pid != gate:  # it has ended, which is a problem of the try before
                gate, self.samples = trials.daemon.pid, []
                self.gates += 1
            told_minute = tell(passed_s, self.minutes, report, len(self.needless), told_minute)
        self.commands = trials.commands

    def _drive(self, trials: Trials) -> None:
        """Undisturbed for a while; each stop in it is a needless one."""
        end_s = time.monotonic() + self.chance.uniform(*BETWEEN_S)
        before = waits(trials)
        trials.drive(1)
        while (left_s := end_s - time.monotonic()) > 0 and trials.daemon.ended is None:
            trials.linger(min(left_s, LINGER_S))
            now = waits(trials)
            for record in trials.daemon.records:
                if record.get("kind") == "stop":
                    self.needless.append(f"{record['event']} (in {LINGER_S:g} s: {now.since(before)})")
            trials.daemon.records.clear()
            before = now
            self._look(trials.daemon.pid)

    def _look(self, pid: int) -> None:
        now_ns = time.monotonic_ns()
        if self.samples and now_ns - self.samples[-1].at_ns < LOOK_EVERY_NS:
            return
        sample = look(pid, now_ns)
        if sample is not None:
            self.samples.append(sample)

    def _try(self, trials: Trials, row: Row) -> None:
        fault = row.fault
        if fault.last in {Reason.POLICY_LOST, Reason.POLICY_ERROR, Reason.SEQUENCE_ERROR}:
            if len(self._lost_s) == LOSSES and time.monotonic() - self._lost_s[0] < LOSSES_WITHIN_S:
                return
            self._lost_s.append(time.monotonic())
        outcome = trials.one(fault, self.chance.choice(fault.ways))
        (row.spoilt if outcome.spoilt else row.outcomes).append(outcome)


def waits(trials: Trials) -> Waits:
    """How long each of the two processes has been kept waiting so far."""
    return Waits.of({"gate": trials.daemon.pid, "policy": trials.daemon.policy_pid()})


def lasting(known: list[Fault]) -> list[Fault]:
    """Those that a daemon survives and that take no memory that others may need."""
    return [fault for fault in known if not fault.not_here and fault.exit_code is None and not fault.large_mib]


def tell(passed_s: float, minutes: float, report: Report, needless: int, told_minute: int) -> int:
    """How far it is: written over where there is a terminal, else each minute; the minute."""
    totals = Totals.of(report.rows)
    minute, second = divmod(round(passed_s), 60)
    text = f"{minute}:{second:02} of {minutes:g}:00  {totals.line()}, {totals.needless + needless} needless stops"
    if sys.stdout.isatty():
        sys.stdout.write(f"\r\x1b[2K{text}")
    elif minute > told_minute:
        sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    return minute


def conclude(soak: Soak, report: Report, out: Path) -> int:
    """Print and write what was found; 0 when all holds."""
    report.rows = [row for row in report.rows if row.seen]
    print(table(report))
    flat = Flatness.of(soak.samples)
    problems = flat.problems() if flat else []
    if soak.gates > 1:
        problems.append(f"it ended, and {soak.gates - 1} others followed it")
    if flat:
        print(f"The gate {flat.line()}.")
    print(f"{soak.commands} commands; {len(soak.needless)} stops while nothing was done{':' if soak.needless else '.'}")
    print("".join(f"  {sentence}\n" for sentence in soak.needless), end="")
    for problem in problems:
        print(f"BROKEN: of the gate, {problem}.")
    found = json.loads(as_json(report))
    found["commands"], found["needless"] = soak.commands, soak.needless
    found["gate"] = {"problems": problems, "samples": [dataclasses.asdict(sample) for sample in soak.samples]}
    (out / "soak.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(out / "soak.json")
    return 1 if problems or Totals.of(report.rows).broken else 0


def main() -> int:
    """Soak as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1, help="of the choice of faults and moments")
    parser.add_argument("--no-faults", action="store_true", help="only see whether it ever stops by itself")
    parser.add_argument("--config", type=Path, default=Path("config.toml"))
    parser.add_argument("--out", type=Path, default=Path("build/soak"))
    options = parser.parse_args()
    soak = Soak(options.minutes, random.Random(options.seed), not options.no_faults)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        report = with_robot(load_config(options.config), options.out, soak.run)
    except (DaemonError, OSError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    return conclude(soak, report, options.out)


if __name__ == "__main__":
    sys.exit(main())
