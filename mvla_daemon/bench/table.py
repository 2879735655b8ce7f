"""The bench's findings for a terminal: a row for each measurement, then each policy's blocks and bounds."""

from __future__ import annotations

from collections.abc import Iterator

from mvla_daemon.bench.contest import Contest
from mvla_daemon.bench.published import CYCLE_MS
from mvla_daemon.bench.report import Pair, Report, weights_mb
from mvla_daemon.bench.subject import Subject

_COLUMNS = (
    ("policy", -22),
    ("weights", -15),
    ("parameters", 14),
    ("engine", -12),
    ("", -5),
    ("mean ms", 10),
    ("p99 ms", 10),
    ("published", 10),
    ("FPS", 9),
    ("of 20 ms", 9),
    ("peak MiB", 9),
    ("GPU MiB", 8),
    ("n", 6),
    ("copies", -7),
)
"""The heads, and how wide each column is; to the left where negative."""
_NOT_KNOWN = "-"


def table(report: Report) -> str:
    """The whole report."""
    lines = ["", report.machine, *_absences(report), *_terms(report), "", _line([head for head, _ in _COLUMNS])]
    for subject in report.subjects:
        lines += [_row(row) for row in report.rows(subject)]
    for subject in report.subjects:
        lines += ["", *_section(report, subject)]
    return "\n".join([*lines, ""])


def _absences(report: Report) -> Iterator[str]:
    for engine, lacks in report.absent.items():
        yield f"not here: {engine} ({lacks} not installed)"


def _terms(report: Report) -> Iterator[str]:
    yield (
        f"All rows are measured: n inferences of one picture after {report.warm_ups} that do not count, each row in a "
        "process of its own;"
    )
    yield (
        "from the host's input to the host's output, preprocessing outside; copies: to and from a device, inside, or "
        "none."
    )
    yield "The column `published` is what was claimed for a policy; below, what that was measured on."


def _row(row: Contest) -> str:
    subject, measured, claim = row.subject, row.measured, row.subject.published
    parameters = subject.weights.parameters
    about = [
        _short(subject.name),
        subject.whose.removesuffix(" weights"),
        f"{parameters:,}" if parameters is not None else _NOT_KNOWN,
        row.engine,
        row.precision,
    ]
    if measured is None:
        return f"{_line(about)}  {_short(row.why, 96) if row.failed is None else 'FAILED, see below'}"
    latency = measured.latency
    figures = [
        f"{latency.mean:.3f}",
        f"{latency.p99:.3f}",
        f"{claim.latency_ms(row.precision):.3f}" if claim else _NOT_KNOWN,
        f"{1000 / latency.mean:.1f}",
        f"{100 * latency.mean / CYCLE_MS:.1f} %",
        f"{measured.peak_mib:.0f}",
        _NOT_KNOWN if measured.gpu_mib is None else f"{measured.gpu_mib:.0f}",
        str(latency.n),
        "inside" if measured.on_gpu else "none",
    ]
    return _line([*about, *figures])


def _short(text: str, longest: int = 22) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _line(cells: list[str]) -> str:
    shown = [
        f"{cell:<{-width}}" if width < 0 else f"{cell:>{width}}"
        for cell, (_, width) in zip(cells, _COLUMNS, strict=False)
    ]
    return " ".join(shown).rstrip()


def _section(report: Report, subject: Subject) -> Iterator[str]:
    error = "" if subject.val_mae is None else f", val_mae {subject.val_mae:g} (published, by its checkpoint)"
    many = "an unknown number of" if subject.weights.parameters is None else f"{subject.weights.parameters:,}"
    yield f"{subject.name}: {many} parameters, {subject.whose}{error}; {weights_mb(subject, subject.precisions)}"
    for row in report.rows(subject):
        yield from _block(report, row)
    for pair in report.pairs(subject):
        yield f"  {_pair_line(pair)}"
    for line in _bounds(report, subject):
        yield f"  {line}"
    claim = subject.published
    for line in claim.lines(subject.weights.parameters) if claim else ["published: nothing for this policy"]:
        yield f"  {line}"


def _block(report: Report, row: Contest) -> Iterator[str]:
    measured = row.measured
    if measured is None:
        word = "not measured" if row.failed is None else "FAILED"
        yield f"  {row.engine} {row.precision}: {word}: {row.why}"
        return
    how = f", {measured.how}" if measured.how else ""
    copies = "copies inside" if measured.on_gpu else "no copies"
    yield (
        f"  {row.engine} {row.precision}, measured: {measured.device}{how}; {row.subject.whose}; "
        f"n = {measured.latency.n}; {copies}, preprocessing outside"
    )
    for line in measured.block.lines():
        yield f"  {line}"
    difference = report.difference(row)
    if difference is not None:
        yield f"    answers the same picture within {difference:.2g} of the FP32 action"


def _pair_line(pair: Pair) -> str:
    word = "saved" if pair.saved_percent >= 0 else "more"
    return (
        f"{pair.engine}, FP32 -> FP16, measured: {pair.speed_up:.2f}x as fast (means); {pair.fp32_mib:.1f} -> "
        f"{pair.fp16_mib:.1f} MiB, {abs(pair.saved_percent):.0f} % {word} ({pair.memory})"
    )


def _bounds(report: Report, subject: Subject) -> Iterator[str]:
    for bandwidth in report.bandwidths(subject):
        bounds = []
        for precision in subject.precisions:
            bound_ms = bandwidth.bound_ms(subject.weight_bytes(precision))
            fits = bandwidth.label == "measured" and report.is_cached(subject, precision)
            bounds.append(f"{precision} {bound_ms:.3f} ms" + (" (no bound: fits the cache)" if fits else ""))
        yield (
            f"memory bound on {bandwidth.device}: {', '.join(bounds)} at {bandwidth.gb_per_s:.1f} GB/s "
            f"({bandwidth.label}: {bandwidth.source})"
        )
