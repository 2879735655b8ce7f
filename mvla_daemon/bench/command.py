"""`mvla-daemon bench --policies`: FP32 against FP16 on each engine that is here, beside what was published."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from mvla_daemon.bench.bound import cache_bytes, measured_bandwidth
from mvla_daemon.bench.contest import WARM_UPS, Contest, Terms, hold
from mvla_daemon.bench.device import MODULES, gpu, missing_modules, processor
from mvla_daemon.bench.picture import draw_bench
from mvla_daemon.bench.record import as_json
from mvla_daemon.bench.report import Report
from mvla_daemon.bench.subject import Subject, subjects_of
from mvla_daemon.bench.table import table
from mvla_daemon.config import Config
from mvla_daemon.errors import DaemonError, ExitCode

OUT = Path("build/bench")
TRIES = 200


def run(config: Config, given: Sequence[str], options: argparse.Namespace) -> int:
    """Measure, print, and write JSON and picture; `given` are the --set of the command line. Raises DaemonError."""
    engines, absent = _engines(options.engines)
    subjects = subjects_of(config, options.policies)
    out = _folder(options.out or OUT)
    tries: int = options.tries or TRIES
    began = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix="mvla-bench-") as scratch:
        contests = _hold_all(subjects, engines, Terms(config, given, tries, Path(scratch)))
    memory = measured_bandwidth("this machine's memory")
    machine = "; ".join(filter(None, (processor(), gpu(), f"{os.uname().sysname} {os.uname().release}")))
    report = Report(began, machine, engines, absent, tries, WARM_UPS, tuple(contests), memory, cache_bytes())
    _say(f"{table(report)}\n")
    _write(out / "bench.json", as_json(report))
    _draw(report, out / "bench.png")
    return _verdict(contests)


def _engines(asked: str | None) -> tuple[tuple[str, ...], dict[str, str]]:
    """Those to measure on, and of the others what they lack; raises DaemonError for one that was asked for."""
    lacking = {engine: ", ".join(missing) for engine in MODULES if (missing := missing_modules(engine))}
    if asked is None:
        return tuple(engine for engine in MODULES if engine not in lacking), lacking
    names = tuple(dict.fromkeys(name.strip() for name in asked.split(",")))
    if unknown := [name for name in names if name not in MODULES]:
        raise DaemonError(f"--engines {unknown[0]}: the bench knows {', '.join(MODULES)}.", ExitCode.USAGE)
    if absent := [name for name in names if name in lacking]:
        raise DaemonError(
            f"--engines {absent[0]}: {lacking[absent[0]]} cannot be imported here; install it, or leave it out.",
            ExitCode.UNAVAILABLE,
        )
    return names, {}


def _folder(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DaemonError(
            f"--out {out} cannot be made ({error.strerror}): name a folder that you may write.", ExitCode.NO_PERMISSION
        ) from error
    return out


def _hold_all(subjects: Sequence[Subject], engines: Sequence[str], terms: Terms) -> list[Contest]:
    rows = [
        (subject, engine, precision) for subject in subjects for engine in engines for precision in subject.precisions
    ]
    contests = []
    for number, (subject, engine, precision) in enumerate(rows, start=1):
        contest = hold(subject, engine, precision, terms)
        contests.append(contest)
        measured = contest.measured
        said = f"{measured.latency.mean:.3f} ms" if measured else contest.why
        _say(f"{number:>5}/{len(rows)}  {subject.name} ({subject.whose}), {engine} {precision}: {said}\n")
    return contests


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise DaemonError(
            f"{path} cannot be written ({error.strerror}): name a folder that you may write with --out.",
            ExitCode.NO_PERMISSION,
        ) from error
    _say(f"{path}\n")


def _draw(report: Report, path: Path) -> None:
    """A machine without matplotlib, as a robot is, has the table and the JSON; that is said."""
    try:
        draw_bench(report, path)
    except DaemonError as error:
        if error.exit_code is not ExitCode.UNAVAILABLE:
            raise
        _say(f"No picture: {error}\n")
    else:
        _say(f"{path}\n")


def _verdict(contests: Sequence[Contest]) -> int:
    """All is well when something was measured and nothing failed; raises DaemonError otherwise."""
    for contest in contests:
        if contest.failed is not None:
            raise DaemonError(
                f"{contest.subject.name} on {contest.engine} in {contest.precision}: {contest.why}", contest.failed
            )
    if not any(contest.measured for contest in contests):
        raise DaemonError(f"Nothing was measured: {contests[0].why}.", ExitCode.UNAVAILABLE)
    return ExitCode.OK


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
