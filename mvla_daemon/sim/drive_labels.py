"""Words on the map of a drive, each near its thing, where they cover the least."""

from __future__ import annotations

import math
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mvla_daemon.sim.room import Box, Cup, Pose, Room

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points: TypeAlias = NDArray[np.float64]
"""Places on the floor, (n, 2), in metres."""
Style: TypeAlias = dict[str, Any]
"""Keywords of matplotlib."""

INK = "#1c2430"
"""Of words and outlines, unless they say something by their color."""

_TURNS_RAD = math.pi + np.arange(160) * (math.tau / 160)
DIRECTIONS: Points = np.column_stack([np.cos(_TURNS_RAD), np.sin(_TURNS_RAD)])
"""160, evenly all round, from the left on: of places as good as each other, words get the first."""


class Labels:
    """Words on a map, each near its thing, where they cover the least of what is there."""

    _PAD_M = 0.02
    _GAP_M = 0.04
    _APART_M = 0.08
    """As much as this, words keep away from things that are named already, so that nobody takes them for their name."""
    _REACHES_M = np.array([0.0, 0.08, 0.16, 0.26, 0.42, 0.60])

    def __init__(self, mpl: ModuleType, figure: Figure, axes: Axes, room: Room) -> None:
        self._axes = axes
        self._floor = np.array([room.west_m, room.south_m, room.east_m, room.north_m])
        self._halo = [mpl.patheffects.withStroke(linewidth=3, foreground="white")]
        self._renderer = mpl.backends.backend_agg.FigureCanvasAgg(figure).get_renderer()
        self._taken: list[tuple[float, float, float, float]] = []
        self._lines: list[Points] = []

    def avoid(self, line: Points, times: int = 1) -> None:
        """Points along a line that had better not be covered; each counts `times` times."""
        self._lines.append(np.repeat(line, times, axis=0))

    def keep_clear(self, x_m: float, y_m: float, radius_m: float) -> None:
        """A thing that is not to be covered."""
        self._taken.append((x_m - radius_m, y_m - radius_m, x_m + radius_m, y_m + radius_m))

    def put(self, words: str, thing: Pose | Cup | Box, radius_m: float, **style: Any) -> None:
        """Write words beside a thing; where there is no room beside it, a line leads to it."""
        look: Style = {"zorder": 9, "ha": "center", "va": "center", "parse_math": False, **style}
        if "bbox" not in look:
            look["path_effects"] = self._halo
        text = self._axes.text(thing.x_m, thing.y_m, words, **look)
        extent = text.get_window_extent(self._renderer).transformed(self._axes.transData.inverted())
        half = np.array([extent.width, extent.height]) / 2 + self._PAD_M
        if "bbox" in look:
            half[:] = half.max() + self._PAD_M
        at = np.array([thing.x_m, thing.y_m])
        directions = DIRECTIONS[::5]
        # From the middle of the words to the edge of their rectangle, in each direction.
        inside_m = (half / np.maximum(np.abs(directions), 1e-9)).min(axis=1)
        away_m = (radius_m + self._GAP_M + inside_m)[:, None, None] + self._REACHES_M[:, None]
        middles = (at + directions[:, None] * away_m).reshape(-1, 2)
        costs = self._costs(at, radius_m, middles - half, middles + half)
        costs += 0.3 * np.tile(self._REACHES_M, len(directions))
        best = int(costs.argmin())
        reach_m = self._REACHES_M[best % len(self._REACHES_M)]
        text.set_position((middles[best, 0], middles[best, 1]))
        low, high = middles[best] - half, middles[best] + half
        self._taken.append((low[0] - self._APART_M, low[1], high[0] + self._APART_M, high[1]))
        self.keep_clear(thing.x_m, thing.y_m, radius_m + self._APART_M)
        if reach_m or "bbox" in look:
            leader = _leader(at, radius_m, low, high)
            self.avoid(leader, times=5)
            self._axes.plot(*leader.T, color=INK, lw=1.0, zorder=5.5)

    def _costs(self, at: Points, radius_m: float, low: Points, high: Points) -> NDArray[np.float64]:
        """How much words in each of these rectangles cover that they should not, or the line does that leads there."""
        low, high = low[:, None], high[:, None]
        taken = np.array(self._taken)
        covered_m2 = np.maximum(np.minimum(high, taken[:, 2:]) - np.maximum(low, taken[:, :2]), 0.0).prod(axis=2)
        outside_m = np.maximum(self._floor[:2] - low, 0.0) + np.maximum(high - self._floor[2:], 0.0)
        lines = np.concatenate(self._lines)
        crossed = ((lines > low) & (lines < high)).all(axis=2)
        others = taken[~((at >= taken[:, :2]) & (at <= taken[:, 2:])).all(axis=1)]
        leaders = _leader(at, radius_m, low, high)
        blocked = ((leaders > others[:, :2]) & (leaders < others[:, 2:])).all(axis=3)
        costs: NDArray[np.float64] = 200 * covered_m2.sum(axis=1) + 1000 * outside_m.sum(axis=(1, 2))
        costs += 0.02 * crossed.sum(axis=1) + 0.4 * blocked.sum(axis=(0, 2))
        return costs


def _leader(at: Points, radius_m: float, low: Points, high: Points) -> Points:
    """50 points, along the first axis, on the straight line from a round thing's edge to the nearest of a rectangle."""
    to_nearest = np.clip(at, low, high) - at
    distance_m = np.maximum(np.hypot(to_nearest[..., :1], to_nearest[..., 1:]), 1e-9)
    return np.linspace(at + to_nearest * np.minimum(radius_m / distance_m, 1.0), at + to_nearest, 50)
