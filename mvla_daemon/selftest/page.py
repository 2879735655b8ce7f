"""The self-test's findings as one HTML file: no scripts, nothing from elsewhere, light and dark."""

from __future__ import annotations

from html import escape

from mvla_daemon.selftest.bench import Report
from mvla_daemon.selftest.histogram import histogram
from mvla_daemon.selftest.results import Kind, Row, Spread, Totals

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #d9dce1; --back: #fcfcfd; --card: #f2f3f6;
  --bar: #3a5bc7; --good: #18794e; --bad: #c62a2f; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --soft: #a4a9b2; --line: #363a40; --back: #111214;
  --card: #1b1d20; --bar: #849dff; --good: #4cc38a; --bad: #ff8b86; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 76rem; background: var(--back); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { margin: .25rem 0; } .soft { color: var(--soft); } .good { color: var(--good); } .bad { color: var(--bad); }
.totals { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0; }
.totals div { background: var(--card); border-radius: .5rem; padding: .6rem 1rem; min-width: 9rem; }
.totals b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: 600; vertical-align: bottom; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; }
td.what { min-width: 17.5rem; } td.v { min-width: 15rem; } tr.off td { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1rem; margin-top: 1rem; }
figure { margin: 0; padding: .9rem 1rem; background: var(--card); border-radius: .5rem; }
figcaption { margin-bottom: .4rem; } svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; } svg .bar { fill: var(--bar); }
svg .axis { stroke: var(--line); } svg .bound { stroke: var(--bad); stroke-dasharray: 4 3; }
svg text.bound { fill: var(--bad); stroke: none; }
"""
_MARKS = {Kind.HOLDS: ("good", "✓ holds"), Kind.BROKEN: ("bad", "✗ broken"), Kind.NOT_HERE: ("soft", "not here")}


def page(report: Report) -> str:
    """The whole file."""
    totals = Totals.of(report.rows)
    says = (
        f'<p class="bad"><b>Broken:</b> {escape("; ".join(totals.broken))}</p>'
        if totals.broken
        else '<p class="good"><b>All that was tried holds.</b></p>'
    )
    cut = '<p class="bad">Interrupted: this is not all.</p>' if report.interrupted else ""
    about = "".join(f'<p class="soft">{escape(line)}</p>' for line in (report.machine, report.terms, report.policy))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>mvla-daemon selftest</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Does the robot stop?</h1>\n{says}{cut}\n{about}"
        f'<p class="soft">{escape(report.began)}, {report.took_s / 60:.1f} minutes, against a simulated robot: '
        f"no motor was moved.</p>\n{_totals(totals)}\n{_table(report)}\n{_histograms(report)}\n</body>\n</html>\n"
    )


def _totals(totals: Totals) -> str:
    shown = (
        (totals.injected, "faults injected"),
        (totals.after_stop, "VELOCITY after a stop"),
        (totals.out_of_limits, "numbers non-finite or out of limits"),
        (totals.missed, "missed stops"),
    )
    return f'<div class="totals">{"".join(f"<div><b>{value}</b>{name}</div>" for value, name in shown)}</div>'


def _table(report: Report) -> str:
    heads = ("late p50", "late p99", "late max", "to STOP p50", "to STOP p99", "VELOCITY after")
    head = "".join(f'<th class="n">{name}</th>' for name in ("tries", *heads))
    rows = "\n".join(_row(row) for row in report.rows)
    return (
        f'<h2>Faults</h2>\n<p class="soft">Times in ms. Late: from the cycle\'s deadline to the first byte of STOP, by '
        f"the gate's clock. To STOP: from the last VELOCITY to STOP, at the far end of the wire. VELOCITY after: "
        f'written after a STOP and before a new arming.</p>\n<div class="wide"><table>\n<tr><th>fault</th><th></th>'
        f"{head}<th>verdict</th></tr>\n{rows}\n</table></div>"
    )


def _row(row: Row) -> str:
    verdict = row.verdict()
    style, mark = _MARKS[verdict.kind]
    name = f'<td>{row.fault.row}</td><td class="what">{escape(row.fault.what)}</td>'
    said = f'<td class="v"><span class="{style}">{mark}</span>'
    said += f' <span class="soft">{escape(verdict.why)}</span></td>' if verdict.why else "</td>"
    if verdict.kind is Kind.NOT_HERE:
        return f'<tr class="off">{name}<td colspan="7"></td><td class="v">{escape(verdict.why)}</td></tr>'
    times = [_ms(row.late, share) for share in (50, 99, 100)] + [_ms(row.wire, share) for share in (50, 99)]
    cells = (str(len(row.outcomes)), *times, str(row.after_stop))
    columns = "".join(f'<td class="n">{cell}</td>' for cell in cells)
    return f"<tr>{name}{columns}{said}</tr>"


def _ms(spread: Spread, share: float) -> str:
    value = spread.at(share)
    return "-" if value is None else f"{value:.2f}"


def _histograms(report: Report) -> str:
    cards = "\n".join(_card(row) for row in report.rows if row.late.ms or row.wire.ms)
    return f'<h2>Times</h2>\n<div class="cards">\n{cards}\n</div>' if cards else ""


def _card(row: Row) -> str:
    """The lateness where there is one, else the time since the last VELOCITY."""
    bounds = row.fault.bounds
    if row.late.ms:
        shown, what = row.late.ms, "STOP after its deadline"
        promised = {"p50": bounds.late_p50_ms, "p99": bounds.late_p99_ms} if bounds is not None else {}
    else:
        shown, what = row.wire.ms, "last VELOCITY to STOP"
        promised = {"p99": bounds.wire_p99_ms} if bounds is not None else {}
    caption = (
        f"<b>{row.fault.row}</b> {escape(row.fault.what)}<br>"
        f'<span class="soft">{what}, ms, {len(shown)} {"tries" if len(shown) > 1 else "try"}</span>'
    )
    drawn = histogram(shown, {name: most for name, most in promised.items() if most is not None})
    return f"<figure><figcaption>{caption}</figcaption>{drawn}</figure>"
