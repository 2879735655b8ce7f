"""A histogram of times as inline SVG, on a logarithmic scale: a fraction of a millisecond and an outlier both show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 340, 130
_LEFT, _RIGHT, _TOP, _BOTTOM = 4, 336, 16, 108
_BINS_PER_DECADE = 10
_LEAST_MS = 0.01
"""Below the resolution of a record; a time of zero has to have a place too."""


def histogram(times_ms: Sequence[float], bounds_ms: Mapping[str, float]) -> str:
    """The SVG element; each of `bounds_ms`, by what it bounds, is shown as a line."""
    values = [max(_LEAST_MS, ms) for ms in times_ms]
    marked = [*values, *bounds_ms.values()]
    first = math.floor(math.log10(min(marked)) * _BINS_PER_DECADE) - 1
    last = math.floor(math.log10(max(marked)) * _BINS_PER_DECADE) + 2
    last = max(last, first + _BINS_PER_DECADE)
    counts = [0] * (last - first)
    for ms in values:
        counts[math.floor(math.log10(ms) * _BINS_PER_DECADE) - first] += 1
    wide = (_RIGHT - _LEFT) / len(counts)
    parts = [f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{_BOTTOM}" y2="{_BOTTOM}"/>']
    for number, count in enumerate(counts):
        if count:
            tall = max(2.0, (_BOTTOM - _TOP) * count / max(counts))
            parts.append(
                f'<rect class="bar" x="{_LEFT + number * wide + 0.5:.1f}" y="{_BOTTOM - tall:.1f}" '
                f'width="{wide - 1:.1f}" height="{tall:.1f}"/>'
            )

    def place(ms: float) -> float:
        return _LEFT + (math.log10(ms) * _BINS_PER_DECADE - first) * wide

    parts += [_tick(ms, place(ms)) for ms in _round_numbers(10 ** (first / 10), 10 ** (last / 10))]
    parts += [_bound(f"{what} ≤ {ms:g} ms", place(ms)) for what, ms in bounds_ms.items()]
    label = f"{len(values)} times from {min(times_ms):.2f} to {max(times_ms):.2f} ms"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _bound(text: str, x: float) -> str:
    anchor = "end" if x > WIDTH / 2 else "start"
    return (
        f'<line class="bound" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" y2="{_BOTTOM}"/>'
        f'<text class="bound" x="{x:.1f}" y="10" text-anchor="{anchor}">{text}</text>'
    )


def _tick(ms: float, x: float) -> str:
    return (
        f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{_BOTTOM}" y2="{_BOTTOM + 4}"/>'
        f'<text x="{x:.1f}" y="{_BOTTOM + 17}" text-anchor="middle">{ms:g}</text>'
    )


def _round_numbers(least: float, most: float) -> list[float]:
    """1, 2 and 5 of each decade where there is room for all, else the decades."""
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    numbers = [step * 10.0**decade for decade in decades for step in steps]
    margin = 1.04
    return [number for number in numbers if least * margin < number < most / margin]
