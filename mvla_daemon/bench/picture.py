"""The bench's findings as a picture: latencies against the cycle and against what was published, and memory."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from mvla_daemon.bench.contest import Contest
from mvla_daemon.bench.published import CYCLE_MS
from mvla_daemon.bench.report import Report
from mvla_daemon.sim.drive_labels import INK, Style
from mvla_daemon.sim.drive_picture import MARGIN_IN, WIDTH_IN, axes_at, load_matplotlib, new_figure, write_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW_IN, _FOOT_IN, _TITLE_IN, _NAMES_IN, _GAP_IN = 0.34, 0.72, 0.34, 3.25, 0.3
_COLORS = {"FP32": "#0072b2", "FP16": "#e69f00"}
_BAD, _FAINT = "#c8102e", "#7a828e"
_FIGURE: Style = {"va": "center", "fontsize": 8.5, "weight": "bold", "zorder": 5}
_ROOMY = 0.2
"""Of the longest bar: a shorter one has its figure beside it."""
_LATENCY_SHARE = 0.66
"""Of the width beside the names; the rest is memory's."""


def draw_bench(report: Report, path: Path) -> None:
    """Write the picture, a PNG. `DaemonError`: UNAVAILABLE without matplotlib, NO_PERMISSION, as `write_figure`."""
    write_figure(figure_of(report), path)


def figure_of(report: Report) -> Figure:
    """A bar for each measurement, the policies from top to bottom."""
    mpl = load_matplotlib()
    rows = [row for row in report.contests if row.measured]
    tall_in = _ROW_IN * max(len(rows), 1)
    about = f"{report.machine}; each row {report.tries} inferences, measured"
    figure = new_figure(mpl, _FOOT_IN + tall_in + _TITLE_IN, ("FP32 against FP16, a policy at a time", INK), about)
    wide_in = WIDTH_IN - 2 * MARGIN_IN - _NAMES_IN - _GAP_IN
    latency = axes_at(figure, MARGIN_IN + _NAMES_IN, _FOOT_IN, wide_in * _LATENCY_SHARE, tall_in)
    left_in = MARGIN_IN + _NAMES_IN + wide_in * _LATENCY_SHARE + _GAP_IN
    memory = axes_at(figure, left_in, _FOOT_IN, wide_in * (1 - _LATENCY_SHARE), tall_in)
    for axes, title in ((latency, "latency: mean, line to p99 (ms)"), (memory, "peak memory (MiB)")):
        _prepare(axes, title, len(rows))
    _draw_latencies(latency, report, rows)
    _draw_memory(memory, rows)
    _draw_legend(mpl, figure)
    return figure


def _prepare(axes: Axes, title: str, rows: int) -> None:
    axes.set_axis_on()
    axes.set_title(title, fontsize=10.5, color=INK, loc="left")
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_yticks([])
    axes.tick_params(labelsize=9, labelcolor=INK, color=_FAINT)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)


def _draw_latencies(axes: Axes, report: Report, rows: list[Contest]) -> None:
    axes.set_xscale("log")
    shown = [CYCLE_MS]
    for at, row in enumerate(rows):
        assert row.measured is not None
        latency, claim = row.measured.latency, row.subject.published
        shown += [latency.min, latency.p99]
        axes.plot([latency.mean, latency.p99], [at, at], color=INK, lw=1.4, zorder=3)
        axes.plot(latency.p99, at, "|", color=INK, ms=8, mew=1.4, zorder=3)
        bandwidth = report.bandwidth(row)
        if bandwidth is not None and (row.measured.on_gpu or not report.is_cached(row.subject, row.precision)):
            bound_ms = bandwidth.bound_ms(row.subject.weight_bytes(row.precision))
            shown.append(bound_ms)
            axes.plot(bound_ms, at, "D", color=INK, ms=4.5, zorder=4)
        if claim is not None:
            shown.append(claim.latency_ms(row.precision))
            axes.plot(claim.latency_ms(row.precision), at, "o", mfc="white", mec=_BAD, mew=1.6, ms=7, zorder=5)
        name = f"{row.subject.name[:26]}{', RANDOM WEIGHTS' if row.subject.manifest.weights == 'random' else ''}"
        words = f"{name}\n{row.engine} {row.precision}, {latency.mean:.4g} ms"
        axes.annotate(
            words,
            (0, at),
            (-8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8.5,
            color=INK,
            parse_math=False,
        )
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlim(min(shown) / 2, max(shown) * 1.6)
    for at, row in enumerate(rows):
        assert row.measured is not None
        axes.barh(at, row.measured.latency.mean, 0.62, color=_COLORS[row.precision], zorder=2)
    axes.axvline(CYCLE_MS, color=_BAD, lw=1.4, ls="--", zorder=2.5)


def _draw_memory(axes: Axes, rows: list[Contest]) -> None:
    peaks = [row.measured.peak_mib for row in rows if row.measured]
    for at, (row, peak_mib) in enumerate(zip(rows, peaks, strict=True)):
        axes.barh(at, peak_mib, 0.62, color=_COLORS[row.precision], zorder=2)
        inside = peak_mib >= _ROOMY * max(peaks)
        begin, color = (0, "white") if inside else (peak_mib, INK)
        axes.annotate(f"{peak_mib:.0f}", (begin, at), (4, 0), textcoords="offset points", color=color, **_FIGURE)


def _draw_legend(mpl: ModuleType, figure: Figure) -> None:
    """Under the bars: what is measured and what is published."""
    line = mpl.lines.Line2D
    marks = {
        "FP32, measured": mpl.patches.Patch(color=_COLORS["FP32"]),
        "FP16, measured": mpl.patches.Patch(color=_COLORS["FP16"]),
        f"the cycle, {CYCLE_MS:g} ms": line([], [], color=_BAD, lw=1.4, ls="--"),
        "memory's bound": line([], [], color=INK, marker="D", ms=4.5, lw=0),
        "published (random surrogate, no copies)": line([], [], mfc="white", mec=_BAD, mew=1.6, ms=7, marker="o", lw=0),
    }
    figure.legend(
        marks.values(), marks.keys(), loc="lower center", ncol=len(marks), fontsize=8.5, frameon=False, labelcolor=INK
    )
