"""The picture of many drives for a person: their ways, laid over one another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from mvla_daemon.sim.drive import Drive
from mvla_daemon.sim.drive_labels import INK, Points, Style
from mvla_daemon.sim.drive_map import BAD, FLOOR, TOUCHED, corners_of, places_of, rgb
from mvla_daemon.sim.drive_picture import (
    MARGIN_IN,
    WIDTH_IN,
    axes_at,
    counted,
    draw_scale,
    load_matplotlib,
    new_figure,
    write_figure,
)
from mvla_daemon.sim.room import ROBOT_RADIUS_M, Room
from mvla_daemon.sim.world import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ENDINGS = {
    "reached the cup, left of the box": ("#0072b2", "o"),
    "reached the cup, right of the box": ("#e69f00", "o"),
    "reached the cup": ("#009e73", "o"),
    "touched the box": ("#c8102e", "X"),
    "touched the other box": ("#c8102e", "P"),
    "touched the cup": ("#c8102e", "*"),
    "touched the wall": ("#c8102e", "D"),
    "wrong side of the box": ("#882288", "v"),
    "too slow": ("#444444", "s"),
    "still driving": ("#888888", "s"),
}
"""What the ways of many drives are told apart by: a color, and a mark at the end, so that color is never all."""


def draw_drives(drives: Sequence[Drive], path: Path, title: str) -> None:
    """Write the picture of many drives' ways, at least one; size and errors as `draw_drive`."""
    write_figure(figure_of_all(drives, title), path)


def figure_of_all(drives: Sequence[Drive], title: str) -> Figure:
    """The ways of many drives, each laid so that its box is in the middle and its cup right of its start."""
    mpl = load_matplotlib()
    ways = [_laid(one.room, places_of(one.poses)) for one in drives]
    boxes = [_laid(one.room, corners_of(one.room.boxes[0])) for one in drives]
    ends = [_laid(one.room, places_of([one.room.start, one.room.cup])) for one in drives]
    places = np.concatenate([*ways, *boxes, *ends])
    low, high = places.min(axis=0) - (0.3, 0.4), places.max(axis=0) + 0.3
    wide_in = WIDTH_IN - 2 * MARGIN_IN
    tall_in = wide_in * float((high[1] - low[1]) / (high[0] - low[0]))
    endings = [_ending(one) for one in drives]
    stops = [_laid(one.room, places_of([stop.pose for stop in one.stops])) for one in drives if one.stops]
    legend_in = 0.25 * math.ceil((len(set(endings)) + bool(stops)) / 2) + 0.3
    reached = sum(one.outcome is Outcome.REACHED for one in drives)
    summary = f"{reached} of {counted(len(drives), 'drive')} reached the cup"
    figure = new_figure(mpl, legend_in + tall_in, (title, INK), summary)
    axes = axes_at(figure, MARGIN_IN, legend_in, wide_in, tall_in)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    axes.add_patch(mpl.patches.Rectangle(low, *(high - low), color=FLOOR))
    faint = max(1.0 / len(drives), 0.08)
    for one, box, (start, cup) in zip(drives, boxes, ends, strict=True):
        axes.add_patch(mpl.patches.Polygon(box, color=rgb(one.room.boxes[0].color), alpha=faint, lw=0))
        axes.add_patch(mpl.patches.Circle(cup, one.room.cup.radius_m, color=rgb(one.room.cup.color), alpha=faint, lw=0))
        axes.add_patch(mpl.patches.Circle(start, ROBOT_RADIUS_M, color=INK, alpha=faint / 4, lw=0))
    _draw_ways(mpl, axes, ways, endings, stops)
    starts, cups = np.array(ends).swapaxes(0, 1)
    style: Style = {"ha": "center", "va": "center", "weight": "bold", "fontsize": 11, "color": INK, "zorder": 9}
    style["path_effects"] = [mpl.patheffects.withStroke(linewidth=3, foreground="white")]
    axes.text(starts[:, 0].mean(), starts[:, 1].min() - ROBOT_RADIUS_M - 0.1, "start", **style)
    axes.text(cups[:, 0].mean(), cups[:, 1].min() - 0.2, "cup", **style)
    axes.text(0.0, 0.0, "box", **style)
    draw_scale(figure, legend_in / 2, wide_in / float(high[0] - low[0]))
    return figure


def _draw_ways(mpl: ModuleType, axes: Axes, ways: list[Points], endings: list[str], stops: list[Points]) -> None:
    """A line a drive, those that failed on top, with a mark at the end; how many of each are told below the map."""
    handles = []
    for name, (color, mark) in _ENDINGS.items():
        chosen = [way for way, ending in zip(ways, endings, strict=True) if ending == name]
        if not chosen:
            continue
        good = name.startswith("reached")
        line: Style = {"color": color, "lw": 1.5, "alpha": 0.6 if good else 1.0, "zorder": 4 if good else 5}
        axes.add_collection(mpl.collections.LineCollection(chosen, **line), autolim=False)
        size: Style = {"ms": 4 if good else 10, "mec": "white", "mew": 0.6}
        axes.plot(*np.array([way[-1] for way in chosen]).T, mark, color=color, zorder=6 if good else 7, **size)
        label = f"{name}: {len(chosen)}"
        handles.append(mpl.lines.Line2D([], [], color=color, lw=3, marker=mark, mec="white", ms=9, label=label))
    if stops:
        look: Style = {"marker": "8", "ls": "none", "ms": 9, "mfc": BAD, "mec": "white", "zorder": 8}
        handles += axes.plot(*np.concatenate(stops).T, label=f"stopped: {sum(map(len, stops))}", **look)
    place: Style = {
        "loc": "upper right",
        "bbox_to_anchor": (1.0, -0.01),
        "ncols": 2,
        "fontsize": 11,
        "borderaxespad": 0.3,
    }
    axes.legend(handles=handles, frameon=False, labelcolor=INK, **place)


def _laid(room: Room, places: Points) -> Points:
    """Moved so that the box to pass is at (0, 0), and turned so that from start to cup is along x."""
    box = room.boxes[0]
    ahead_rad = math.atan2(room.cup.y_m - room.start.y_m, room.cup.x_m - room.start.x_m)
    cos, sin = math.cos(ahead_rad), math.sin(ahead_rad)
    laid: Points = (places - (box.x_m, box.y_m)) @ np.array([[cos, -sin], [sin, cos]])
    return laid


def _ending(drive: Drive) -> str:
    """The entry of `_ENDINGS`."""
    if drive.outcome is Outcome.REACHED:
        return f"reached the cup, {drive.passed.value} of the box" if drive.passed else "reached the cup"
    others = {
        Outcome.WRONG_SIDE: "wrong side of the box",
        Outcome.TIMEOUT: "too slow",
        Outcome.RUNNING: "still driving",
    }
    return others[drive.outcome] if drive.outcome in others else TOUCHED[drive.outcome]
