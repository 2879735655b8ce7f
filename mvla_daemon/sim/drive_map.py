"""The map of a drive: its room seen from above, the way, the robot on it, and words for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from mvla_daemon.sim.drive_labels import DIRECTIONS, INK, Labels, Points, Style
from mvla_daemon.sim.room import ROBOT_RADIUS_M, Bgr, Box, Cup, Pose
from mvla_daemon.sim.world import REACHED_M, Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mvla_daemon.sim.drive import Drive

FAINT = "#66707d"
"""Of words and lines that matter less than the way."""
FLOOR = "#f3f1ec"
"""Of the floor of a room."""
BAD = "#c8102e"
"""Of what went wrong: a stop, something touched, the wrong side."""
BADGE: Style = {"boxstyle": "circle,pad=0.22", "facecolor": INK, "edgecolor": "white"}
"""The disk under the number of a camera picture."""
TOUCHED = {
    Outcome.TOUCHED_BOX: "touched the box",
    Outcome.TOUCHED_OTHER_BOX: "touched the other box",
    Outcome.TOUCHED_CUP: "touched the cup",
    Outcome.TOUCHED_WALL: "touched the wall",
}
"""The endings by touch, in words."""
WALL_M = 0.07
"""The thickness of a wall as drawn, outside the room."""
GHOST_EVERY_S = 2.0
"""The time from one gray circle, where the robot was, to the next."""

_WALL = "#4a5360"
_FASTEST_MPS = 0.5
"""The right end of the color scale, the same in all pictures unless a robot was faster."""
_GHOSTS_APART_M = 0.25
_ARROWS_EVERY_M, _ARROWS_CLEAR_M = 0.9, 0.28
_ARROW_M = np.array([(0.10, 0.0), (-0.08, 0.07), (-0.04, 0.0), (-0.08, -0.07)])
"""The corners of an arrowhead that points along x."""


class Map:
    """One drive in its room, seen from above, in metres."""

    def __init__(self, mpl: ModuleType, figure: Figure, axes: Axes, drive: Drive) -> None:
        self._mpl, self._axes, self._drive = mpl, axes, drive
        self._labels = Labels(mpl, figure, axes, drive.room)

    def draw(self) -> None:
        """The room, the way, the robot on it, and last the words, where they cover the least."""
        start, end = self._drive.room.start, self._drive.poses[-1]
        self._draw_room()
        self._draw_ghosts()
        self._draw_way()
        self._draw_arrows()
        touched = self._drive.outcome in TOUCHED
        self._draw_robot(start, 7, ec=INK, fc="white")
        if self._drive.track:
            self._draw_robot(end, 7, ec=BAD if touched else INK, fc="#f9d0cc" if touched else "#b9d4ee")
        for at in (start, end):
            self._labels.keep_clear(at.x_m, at.y_m, ROBOT_RADIUS_M)
        for stop in self._drive.stops:
            self._axes.plot(stop.pose.x_m, stop.pose.y_m, "8", ms=15, mfc=BAD, mec="white", mew=1.8, zorder=8)
            self._labels.keep_clear(stop.pose.x_m, stop.pose.y_m, 0.09)
        self._write_words(end)

    def _draw_room(self) -> None:
        room, patches, axes = self._drive.room, self._mpl.patches, self._axes
        wide_m, tall_m = room.east_m - room.west_m, room.north_m - room.south_m
        outside = (room.west_m - WALL_M, room.south_m - WALL_M)
        axes.add_patch(patches.Rectangle(outside, wide_m + 2 * WALL_M, tall_m + 2 * WALL_M, color=_WALL))
        axes.add_patch(patches.Rectangle((room.west_m, room.south_m), wide_m, tall_m, color=FLOOR))
        cup = (room.cup.x_m, room.cup.y_m)
        axes.add_patch(patches.Circle(cup, REACHED_M, fill=False, ls=(0, (4, 3)), lw=1.4, ec=FAINT))
        self._labels.avoid(cup + REACHED_M * DIRECTIONS)
        for share, gain in ((1.0, 1.0), (0.72, 0.62)):
            axes.add_patch(patches.Circle(cup, share * room.cup.radius_m, color=rgb(room.cup.color, gain)))
        self._labels.keep_clear(*cup, room.cup.radius_m)
        for number, box in enumerate(room.boxes):
            look: Style = {"fc": "#cdd0d4", "ec": FAINT} if number else {"fc": rgb(box.color), "ec": INK}
            axes.add_patch(patches.Polygon(corners_of(box), lw=1.4, **look))
            self._labels.keep_clear(box.x_m, box.y_m, math.hypot(box.length_m, box.width_m) / 2)

    def _draw_ghosts(self) -> None:
        """Where the robot was every two seconds, unless it is drawn there already."""
        drawn, due_s = [self._drive.room.start, self._drive.poses[-1]], GHOST_EVERY_S
        for point in self._drive.track:
            if self._drive.seconds(point.at_ns) < due_s:
                continue
            due_s += GHOST_EVERY_S
            places = places_of([point.pose, *drawn])
            if np.hypot(*(places[1:] - places[0]).T).min() > _GHOSTS_APART_M:
                self._draw_robot(point.pose, 3, ec="#9aa3ae", fc="none")
                self._labels.avoid(places[0] + ROBOT_RADIUS_M * DIRECTIONS[::4])
                drawn.append(point.pose)

    def _draw_way(self) -> None:
        """The way, colored by speed, in a dark casing that shows every color."""
        way, mpl = places_of(self._drive.poses), self._mpl
        self._labels.avoid(way)
        speeds = np.array([point.speed_mps for point in self._drive.track])
        scale: Style = {"cmap": "viridis", "norm": mpl.colors.Normalize(0.0, fastest_mps(self._drive))}
        pieces = np.stack([way[:-1], way[1:]], axis=1)
        self._axes.plot(*way.T, color=INK, lw=6.5, solid_capstyle="round", zorder=4)
        line = mpl.collections.LineCollection(pieces, array=speeds, lw=4.2, capstyle="round", zorder=5, **scale)
        self._axes.add_collection(line, autolim=False)

    def _draw_arrows(self) -> None:
        """Arrowheads on the way, but for where a stop or the robot is drawn."""
        poses = self._drive.poses
        way = places_of(poses)
        others = places_of([poses[0], poses[-1], *(stop.pose for stop in self._drive.stops)])
        gone_m = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(way, axis=0).T))])
        for due_m in np.arange(0.55, gone_m[-1] - 0.3, _ARROWS_EVERY_M):
            before, here, after = (
                np.array([np.interp(at_m, gone_m, line) for line in way.T])
                for at_m in (due_m - 0.05, due_m, due_m + 0.05)
            )
            if np.hypot(*(here - others).T).min() < _ARROWS_CLEAR_M:
                continue
            x, y = (after - before) / max(np.hypot(*(after - before)), 1e-9)
            arrow = here + _ARROW_M @ np.array([[x, y], [-y, x]])
            self._axes.add_patch(self._mpl.patches.Polygon(arrow, fc="white", ec=INK, lw=1.3, zorder=6))
            self._labels.keep_clear(here[0], here[1], 0.07)

    def _draw_robot(self, pose: Pose, zorder: int, *, ec: str, fc: str) -> None:
        at = np.array([pose.x_m, pose.y_m])
        circle = self._mpl.patches.Circle(at, ROBOT_RADIUS_M, fc=fc, ec=ec, lw=2.0, zorder=zorder)
        self._axes.add_patch(circle)
        ahead = ROBOT_RADIUS_M * np.array([math.cos(pose.yaw_rad), math.sin(pose.yaw_rad)])
        tick = np.stack([at + 0.25 * ahead, at + ahead])
        self._axes.plot(*tick.T, color=ec, lw=2.6, solid_capstyle="butt", zorder=zorder)

    def _write_words(self, end: Pose) -> None:
        drive, room, labels = self._drive, self._drive.room, self._labels
        bold: Style = {"color": INK, "weight": "bold", "fontsize": 11}
        labels.put("cup", room.cup, room.cup.radius_m, **bold)
        for box, words in zip(room.boxes, ("box", *["other box"] * len(room.boxes)), strict=False):
            style: Style = {"color": FAINT, "fontsize": 10} if words == "other box" else bold
            labels.put(words, box, math.hypot(box.length_m, box.width_m) / 2, **style)
        labels.put("start", room.start, ROBOT_RADIUS_M, **bold)
        if drive.track:
            touched = drive.outcome in TOUCHED
            words = f"{'touched' if touched else 'end'}, {drive.duration_s:.1f} s"
            labels.put(words, end, ROBOT_RADIUS_M, **{**bold, "color": BAD if touched else INK})
        for stop in drive.stops:
            words = f"STOP {stop.reason}, {drive.seconds(stop.at_ns):.1f} s"
            labels.put(words, stop.pose, 0.10, **{**bold, "color": BAD})
        for number, (seconds, _) in enumerate(drive.insets, start=1):
            style = {**bold, "fontsize": 10, "color": "white", "bbox": BADGE}
            at = drive.pose_at(seconds)
            self._axes.plot(at.x_m, at.y_m, "o", ms=5.5, mfc="white", mec=INK, mew=1.3, zorder=7)
            labels.put(str(number), at, 0.05, **style)
        labels.put(f"goal: within {REACHED_M} m", room.cup, REACHED_M, color=FAINT, fontsize=10)


def places_of(things: Sequence[Pose | Cup]) -> Points:
    """Where on the floor these are, (n, 2), in metres."""
    return np.array([(one.x_m, one.y_m) for one in things])


def corners_of(box: Box) -> Points:
    """The four corners of a box on the floor, (4, 2), in metres, counterclockwise."""
    cos, sin = math.cos(box.yaw_rad), math.sin(box.yaw_rad)
    own = np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]) * (box.length_m / 2, box.width_m / 2)
    corners: Points = own @ np.array([[cos, sin], [-sin, cos]]) + (box.x_m, box.y_m)
    return corners


def rgb(color: Bgr, gain: float = 1.0) -> tuple[float, float, float]:
    """A color as matplotlib orders it, each 0 to 1, `gain` times as bright."""
    blue, green, red = (min(value * gain / 255, 1.0) for value in color)
    return (red, green, blue)


def fastest_mps(drive: Drive) -> float:
    """The right end of the color scale for this drive."""
    return max(_FASTEST_MPS, *(point.speed_mps for point in drive.track)) if drive.track else _FASTEST_MPS
