"""The self-test's findings as a table for a terminal, and as JSON for programs."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from mvla_daemon.selftest.bench import Report
from mvla_daemon.selftest.results import Kind, Row, Spread, Totals

_WIDTH = 118
_INDENT = "      "
_PERCENTILES = (50, 99, 100)


def table(report: Report) -> str:
    """The whole report, a row for each fault."""
    lines = [
        "",
        report.machine,
        report.terms,
        report.policy,
        "",
        f"{'':44} {'':>5} {'STOP after its deadline':>24} {'last VELOCITY':>15} {'VELOCITY':>8}",
        f"{'':44} {'':>5} {'by the gate, ms':>24} {'to STOP, ms':>15} {'after':>8}",
        f"{'fault':44} {'tries':>5} {'p50':>8}{'p99':>8}{'max':>8} {'p50':>7}{'p99':>8} {'STOP':>8}  verdict",
    ]
    lines += [lines_of(row) for row in report.rows]
    totals = Totals.of(report.rows)
    lines += ["", f"{totals.line()}; {report.took_s / 60:.1f} minutes"]
    if totals.needless:
        lines.append(f"beside those the robot stopped {totals.needless} times by itself, for a late cycle or picture")
    lines.append(f"BROKEN: {'; '.join(totals.broken)}" if totals.broken else "All that was tried holds.")
    return "\n".join([*lines, ""])


def lines_of(row: Row) -> str:
    """One row, and below it why it is judged so."""
    verdict = row.verdict()
    why = textwrap.wrap(verdict.why, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)
    return "\n".join([_line(row, verdict.kind.value), *why])


def _line(row: Row, verdict: str) -> str:
    fault = row.fault
    if fault.not_here:
        return f"{fault.row} {fault.what:40} {'':>54}  {verdict}"
    late = "".join(f"{_ms(row.late, share):>8}" for share in _PERCENTILES)
    wire = f"{_ms(row.wire, 50):>7}{_ms(row.wire, 99):>8}"
    return f"{fault.row} {fault.what:40} {len(row.outcomes):>5} {late} {wire} {row.after_stop:>8}  {verdict}"


def _ms(spread: Spread, share: float) -> str:
    value = spread.at(share)
    return "-" if value is None else f"{value:.2f}"


def as_json(report: Report) -> str:
    """All that was found, each single time included."""
    totals = Totals.of(report.rows)
    found = {
        "began": report.began,
        "took_s": round(report.took_s, 1),
        "interrupted": report.interrupted,
        "machine": report.machine,
        "policy": report.policy,
        "real_time": report.real_time,
        "config": report.config.model_dump(mode="json", exclude={"path"}),
        "totals": {
            "injected": totals.injected,
            "velocity_after_stop": totals.after_stop,
            "out_of_limits": totals.out_of_limits,
            "missed_stops": totals.missed,
            "needless_stops": totals.needless,
            "broken": totals.broken,
        },
        "rows": [_as_dict(row) for row in report.rows],
    }
    return json.dumps(found, indent=1)


def _as_dict(row: Row) -> dict[str, Any]:
    verdict = row.verdict()
    about = {"row": row.fault.row, "what": row.fault.what, "verdict": verdict.kind.value, "why": verdict.why}
    if verdict.kind is Kind.NOT_HERE:
        return about
    return {
        **about,
        "tries": len(row.outcomes),
        "reasons": dict(row.reasons),
        "velocity_after_stop": row.after_stop,
        "tried_once_more": row.timed_from > 0,
        "late_ms": _spread(row.late),
        "velocity_to_stop_ms": _spread(row.wire),
    }


def _spread(spread: Spread) -> dict[str, Any]:
    names = {50: "p50", 99: "p99", 100: "max"}
    return {**{name: spread.at(share) for share, name in names.items()}, "all": [round(ms, 3) for ms in spread.ms]}
