"""`mvla-daemon selftest`: brings faults about on this machine, against a simulated robot, and says what holds."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from mvla_daemon.config import Config
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.selftest.bench import Progress, run_rows
from mvla_daemon.selftest.fault import Fault
from mvla_daemon.selftest.faults import faults
from mvla_daemon.selftest.load import busy
from mvla_daemon.selftest.page import page
from mvla_daemon.selftest.report import as_json, lines_of, table
from mvla_daemon.selftest.results import Totals

OUT = Path("build/selftest")
BROKEN = 1
LOAD_MS = 10.0
"""By how much later a STOP may come on a machine whose processors are all busy."""
_BAR = 24


def run(config: Config, options: argparse.Namespace) -> int:
    """Run the rows that were asked for; 0 when all holds, 1 when a guarantee is broken.

    The real motors and the real camera are never opened.
    """
    chosen = [_under(fault, options) for fault in _chosen(faults(config), options.fault)]
    out: Path = options.out or OUT
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DaemonError(
            f"--out {out} cannot be made ({error.strerror}): name a folder that you may write.", ExitCode.NO_PERMISSION
        ) from error
    _say(f"Bringing faults about against a simulated robot; no motor is moved. The reports go to {out}.\n")
    with busy() if options.load else nullcontext():
        report = run_rows(config, chosen, options.tries, out, _Teller())
    _say(table(report))
    for name, text in (("selftest.json", as_json(report)), ("selftest.html", page(report))):
        (out / name).write_text(text, encoding="utf-8")
        _say(f"{out / name}\n")
    if report.interrupted:
        raise DaemonError("Interrupted: what is above is not all.", ExitCode.TRY_AGAIN)
    return BROKEN if Totals.of(report.rows).broken else ExitCode.OK


def _chosen(known: Sequence[Fault], asked: str | None) -> list[Fault]:
    """The rows of a list such as F05,F23; all of them without one."""
    if asked is None:
        return list(known)
    names = [name.strip().upper() for name in asked.split(",")]
    rows = list(dict.fromkeys(fault.row for fault in known))
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise DaemonError(f"--fault {unknown[0]}: the self-test knows {', '.join(rows)}.", ExitCode.USAGE)
    return [fault for fault in known if fault.row in names]


def _under(fault: Fault, options: argparse.Namespace) -> Fault:
    """The fault under the burden that was asked for."""
    if options.grow is not None and not fault.not_here:
        fault = replace(fault, large_mib=options.grow)
    if options.load and fault.bounds is not None:
        fault = replace(fault, bounds=fault.bounds.later_by(LOAD_MS))
    return fault


class _Teller:
    """A bar that is written over where there is a terminal, else a line for each row."""

    def __init__(self) -> None:
        self._began_s: float | None = None

    def __call__(self, progress: Progress) -> None:
        if sys.stdout.isatty():
            _say(f"\r\x1b[2K{self._bar(progress)}" if progress.done < progress.total else "\r\x1b[2K")
        elif progress.ended is not None:
            _say(f"{progress.done:>5}/{progress.total}  {lines_of(progress.ended)}\n")

    def _bar(self, progress: Progress) -> str:
        now_s = time.monotonic()
        if self._began_s is None:
            self._began_s = now_s
        full = _BAR * progress.done // max(1, progress.total)
        left = ""
        if progress.done:
            left_s = (now_s - self._began_s) * (progress.total - progress.done) / progress.done
            left = f"  {left_s // 60:.0f}:{left_s % 60:02.0f} left"
        bar = "#" * full + "." * (_BAR - full)
        line = f"[{bar}] {progress.done}/{progress.total}{left}  {progress.fault.row} {progress.fault.what}"
        return line[: shutil.get_terminal_size().columns - 1]


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
