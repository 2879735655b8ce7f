"""Rooms for the simulated robot, drawn from a seed.

Places are drawn first and looked at afterwards: a room that is not fair (the box passable on both sides, box and cup in
the camera's view at the start) is thrown away and the next one drawn from the same seed.
"""

from __future__ import annotations

import math
import random

from mvla_daemon.sim.room import (
    CAMERA_FOCAL_PX,
    CAMERA_FORWARD_M,
    CAMERA_WIDTH_PX,
    ROBOT_RADIUS_M,
    Bgr,
    Box,
    Cup,
    Light,
    Pose,
    Room,
)

_PASSAGE_M = ROBOT_RADIUS_M + 0.28
"""The least from the middle of a robot that passes the box to a wall or to the other box."""
_PASSING_M = ROBOT_RADIUS_M + 0.27
"""From the box's corners to the middle of a robot that passes it."""
_VIEW_RAD = math.atan(CAMERA_WIDTH_PX / 2 / CAMERA_FOCAL_PX) - 0.02
_TRIES = 40
"""Places tried for the second box before the whole room is drawn anew."""


def make_room(seed: int) -> Room:
    """The room of this seed and nothing else; `boxes` has one or two entries."""
    draw = _Draw(f"room {seed}")
    while (room := _try_room(seed, draw)) is None:
        pass
    return room


class _Draw:
    """Numbers from a seed; `random()` is the one source that Python keeps the same between versions."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random  # noqa: S311 - a simulation, not a secret

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self._random()

    def color(self, blue: tuple[float, float], green: tuple[float, float], red: tuple[float, float]) -> Bgr:
        return (self.between(*blue), self.between(*green), self.between(*red))


def _try_room(seed: int, draw: _Draw) -> Room | None:
    start = Pose(draw.between(0.45, 0.80), draw.between(-0.35, 0.35), draw.between(-0.25, 0.25))
    way_m, way_rad = draw.between(2.6, 3.6), draw.between(-0.15, 0.15)
    cos, sin = math.cos(way_rad), math.sin(way_rad)
    cup = _draw_cup(draw, start.x_m + way_m * cos, start.y_m + way_m * sin)
    along_m, aside_m = draw.between(1.15, way_m - 1.25), draw.between(-0.32, 0.32)
    box = _draw_box(
        draw,
        start.x_m + along_m * cos - aside_m * sin,
        start.y_m + along_m * sin + aside_m * cos,
        draw.color((50, 90), (95, 140), (150, 205)),
    )
    east_m, south_m, north_m = cup.x_m + draw.between(0.45, 1.0), -draw.between(1.4, 2.1), draw.between(1.4, 2.1)
    bounds = (0.0, east_m, south_m, north_m)
    passages = [(box.x_m - turn * sin, box.y_m + turn * cos) for turn in _passing_offsets_m(box)]
    if not (_seen_from(start, cup, box) and all(_clear_of_walls_m(bounds, *at) >= _PASSAGE_M for at in passages)):
        return None
    boxes = [box]
    if draw.between(0.0, 1.0) < 0.5:
        other = _place_other_box(draw, bounds, (start.x_m, start.y_m), passages, cup)
        if other is None:
            return None
        boxes.append(other)
    return Room(
        seed=seed,
        west_m=0.0,
        east_m=east_m,
        south_m=south_m,
        north_m=north_m,
        wall_height_m=draw.between(1.0, 2.4),
        wall_color=draw.color((150, 230), (150, 230), (150, 230)),
        floor_color=draw.color((70, 150), (80, 150), (80, 155)),
        texture_seed=int(draw.between(0, 2**31)),
        start=start,
        cup=cup,
        boxes=tuple(boxes),
        light=_draw_light(draw, bounds),
    )


def _draw_cup(draw: _Draw, x_m: float, y_m: float) -> Cup:
    color = draw.color((20, 80), (15, 55), (175, 235))
    return Cup(x_m, y_m, draw.between(0.085, 0.095), draw.between(0.20, 0.24), color)


def _draw_box(draw: _Draw, x_m: float, y_m: float, color: Bgr) -> Box:
    """Low enough that the camera sees the cup over it, since what is behind the box is part of the task."""
    return Box(
        x_m,
        y_m,
        yaw_rad=draw.between(-math.pi / 2, math.pi / 2),
        length_m=draw.between(0.24, 0.40),
        width_m=draw.between(0.22, 0.34),
        height_m=draw.between(0.13, 0.21),
        color=color,
    )


def _draw_light(draw: _Draw, bounds: tuple[float, float, float, float]) -> Light:
    west_m, east_m, south_m, north_m = bounds
    return Light(
        gain=draw.between(0.65, 1.2),
        tint=draw.color((0.88, 1.06), (0.95, 1.03), (0.92, 1.08)),
        lamp_x_m=draw.between(west_m, east_m),
        lamp_y_m=draw.between(south_m, north_m),
        falloff=draw.between(0.0, 0.8),
    )


def _passing_offsets_m(box: Box) -> tuple[float, float]:
    """Where, to the left and to the right of the box's middle, the middle of a passing robot goes."""
    offset_m = math.hypot(box.length_m, box.width_m) / 2 + _PASSING_M
    return (offset_m, -offset_m)


def _clear_of_walls_m(bounds: tuple[float, float, float, float], x_m: float, y_m: float) -> float:
    west_m, east_m, south_m, north_m = bounds
    return min(x_m - west_m, east_m - x_m, y_m - south_m, north_m - y_m)


def _seen_from(start: Pose, cup: Cup, box: Box) -> bool:
    """Whether cup and box are in the camera's view from side to side; up and down they are at these distances."""
    camera_x_m = start.x_m + CAMERA_FORWARD_M * math.cos(start.yaw_rad)
    camera_y_m = start.y_m + CAMERA_FORWARD_M * math.sin(start.yaw_rad)
    box_radius_m = math.hypot(box.length_m, box.width_m) / 2
    for thing, radius_m in ((cup, cup.radius_m), (box, box_radius_m)):
        dx, dy = thing.x_m - camera_x_m, thing.y_m - camera_y_m
        bearing_rad = abs(math.remainder(math.atan2(dy, dx) - start.yaw_rad, math.tau))
        if bearing_rad + math.asin(radius_m / math.hypot(dx, dy)) > _VIEW_RAD:
            return False
    return True


def _place_other_box(
    draw: _Draw,
    bounds: tuple[float, float, float, float],
    start: tuple[float, float],
    passages: list[tuple[float, float]],
    cup: Cup,
) -> Box | None:
    """A box aside of both ways from start to cup, or None where none was found."""
    west_m, east_m, south_m, north_m = bounds
    for _ in range(_TRIES):
        x_m, y_m = draw.between(west_m, east_m), draw.between(south_m, north_m)
        other = _draw_box(draw, x_m, y_m, draw.color((120, 190), (95, 135), (60, 110)))
        radius_m = math.hypot(other.length_m, other.width_m) / 2
        ways_m = [_to_segment_m((x_m, y_m), end, at) for at in passages for end in (start, (cup.x_m, cup.y_m))]
        if _clear_of_walls_m(bounds, x_m, y_m) > radius_m and min(ways_m) > radius_m + _PASSAGE_M:
            return other
    return None


def _to_segment_m(point: tuple[float, float], one: tuple[float, float], other: tuple[float, float]) -> float:
    """From a point to the nearest of a straight segment."""
    dx, dy = other[0] - one[0], other[1] - one[1]
    share = ((point[0] - one[0]) * dx + (point[1] - one[1]) * dy) / (dx * dx + dy * dy)
    share = min(max(share, 0.0), 1.0)
    return math.hypot(point[0] - one[0] - share * dx, point[1] - one[1] - share * dy)
