"""What the simulated robot is in: a room with a floor, walls, a cup and boxes, and the light on them.

World axes follow REP 103: x forward, y left, z up, in metres; yaw in radians, counter-clockwise from x. The floor is
z = 0. The robot starts near the west wall and looks east, where the cup is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

Bgr: TypeAlias = tuple[float, float, float]
"""A color as OpenCV orders it, each 0 to 255, under white light of gain 1."""

ROBOT_RADIUS_M = 0.18
CAMERA_HEIGHT_M = 0.30
CAMERA_FORWARD_M = 0.12
"""In front of the robot's middle."""
CAMERA_PITCH_RAD = 0.21
"""Downward."""
CAMERA_WIDTH_PX, CAMERA_HEIGHT_PX = 640, 480
CAMERA_FOCAL_PX = 330.0
"""Of both axes: 88 degrees from side to side."""


class Side(Enum):
    """On which side of the box the robot passes, seen by the robot: left is +y."""

    LEFT = "left"
    RIGHT = "right"


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the robot is: metres and radians."""

    x_m: float
    y_m: float
    yaw_rad: float


@dataclass(frozen=True, slots=True)
class Box:
    """A cuboid on the floor; `length_m` along its own x, `width_m` along its own y."""

    x_m: float
    y_m: float
    yaw_rad: float
    length_m: float
    width_m: float
    height_m: float
    color: Bgr


@dataclass(frozen=True, slots=True)
class Cup:
    """An upright, slightly conical cup on the floor; `radius_m` is that of its rim."""

    x_m: float
    y_m: float
    radius_m: float
    height_m: float
    color: Bgr


@dataclass(frozen=True, slots=True)
class Light:
    """`gain` 1 is normal; `tint` multiplies blue, green and red; brightness falls off away from the lamp's place."""

    gain: float
    tint: Bgr
    lamp_x_m: float
    lamp_y_m: float
    falloff: float
    """0 is even light; 1 leaves half of it at 3 m from the lamp."""


@dataclass(frozen=True, slots=True)
class Room:
    """A room and all in it: a function of its seed alone.

    `boxes[0]` is the box to pass, between start and cup; the others stand aside. `texture_seed` draws floor and walls.
    """

    seed: int
    west_m: float
    east_m: float
    south_m: float
    north_m: float
    wall_height_m: float
    wall_color: Bgr
    floor_color: Bgr
    texture_seed: int
    start: Pose
    cup: Cup
    boxes: tuple[Box, ...]
    light: Light
