"""The simulated robot's camera: where in its picture the places of the room are."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from mvla_daemon.sim.room import (
    CAMERA_FOCAL_PX,
    CAMERA_FORWARD_M,
    CAMERA_HEIGHT_M,
    CAMERA_HEIGHT_PX,
    CAMERA_PITCH_RAD,
    CAMERA_WIDTH_PX,
    Pose,
    Room,
)
from mvla_daemon.sim.texture import Points

Corners: TypeAlias = NDArray[np.int32]
"""Corners of polygons in the picture, (..., n, 2), in sixteenths of a pixel."""

NEAR_M = 0.01
"""Nothing nearer than this before the lens is seen; a robot that touches a thing holds its lens 6 cm away from it."""
_BEYOND_PX = 2
"""How far outside the picture faces are cut off, so that the line along the cut is not in it."""
SHIFT = 4
"""How many bits of `Corners` are behind the point, as OpenCV's drawing takes it."""
LINE_8, LINE_AA = 8, 16
"""cv2.LineTypes."""

_LENS = np.array(
    [[CAMERA_FOCAL_PX, 0, (CAMERA_WIDTH_PX - 1) / 2], [0, CAMERA_FOCAL_PX, (CAMERA_HEIGHT_PX - 1) / 2], [0, 0, 1]]
)
_IN_VIEW = np.array(
    [
        [0, 0, 1, -NEAR_M],
        [1, 0, _BEYOND_PX, 0],
        [-1, 0, CAMERA_WIDTH_PX - 1 + _BEYOND_PX, 0],
        [0, 1, _BEYOND_PX, 0],
        [0, -1, CAMERA_HEIGHT_PX - 1 + _BEYOND_PX, 0],
    ]
)
"""A point (u·depth, v·depth, depth, 1) is in view where none of these five products with it is negative."""


class View:
    """The camera of a robot at a pose; with a `room` it is kept inside its walls.

    `place` is that of its lens, (3,) metres.
    """

    def __init__(self, pose: Pose, room: Room | None = None) -> None:
        cos, sin = math.cos(pose.yaw_rad), math.sin(pose.yaw_rad)
        level, dip = math.cos(CAMERA_PITCH_RAD), math.sin(CAMERA_PITCH_RAD)
        x_m, y_m = pose.x_m + CAMERA_FORWARD_M * cos, pose.y_m + CAMERA_FORWARD_M * sin
        if room is not None:
            x_m = min(max(x_m, room.west_m + 2 * NEAR_M), room.east_m - 2 * NEAR_M)
            y_m = min(max(y_m, room.south_m + 2 * NEAR_M), room.north_m - 2 * NEAR_M)
        self.place = np.array([x_m, y_m, CAMERA_HEIGHT_M])
        right, down = (sin, -cos, 0.0), (-dip * cos, -dip * sin, -level)
        self._matrix = _LENS @ np.array([right, down, (level * cos, level * sin, -dip)])
        self._ahead = np.array([[cos, -sin], [sin, cos]])

    def pixels(self, points: Points) -> Points:
        """(u·depth, v·depth, depth) of points in the room, both (..., 3)."""
        seen: Points = (points - self.place) @ self._matrix.T
        return seen

    def bearings(self, places: Points) -> Points:
        """The directions of places on the floor, (n, 2) metres, in radians to the left of straight ahead."""
        forward_left = (places - self.place[:2]) @ self._ahead
        bearings: Points = np.arctan2(forward_left[:, 1], forward_left[:, 0])
        return bearings

    def outline(self, corners: Points) -> Points | None:
        """The part of a convex polygon, (n, 3) metres, that is in view, as (m, 2) pixels; None where none is.

        Sutherland and Hodgman, "Reentrant polygon clipping" (1974), in homogeneous coordinates.
        """
        polygon = np.column_stack([self.pixels(corners), np.ones(len(corners))])
        inside = polygon @ _IN_VIEW.T
        if (inside.max(axis=0) < 0).any():
            return None
        for border in _IN_VIEW[inside.min(axis=0) < 0]:
            polygon = _cut(polygon, polygon @ border)
            if len(polygon) < 3:
                return None
        outline: Points = polygon[:, :2] / polygon[:, 2:3]
        return outline

    def from_texels(self, texels_to_room: Points, left: int, top: int) -> Points:
        """The homography from a face's texels to the part of the picture that begins at this pixel, (3, 3)."""
        from_here = texels_to_room.copy()
        from_here[:, 2] -= self.place
        homography: Points = self._matrix @ from_here
        homography[0] -= left * homography[2]
        homography[1] -= top * homography[2]
        return homography


def project(pose: Pose, point: tuple[float, float, float]) -> tuple[float, float] | None:
    """Where the camera of a robot at a pose sees a point of the room, in metres: (u, v) in pixels, or None behind it.

    (0, 0) is the middle of the upper left pixel, u to the right, v down; (u, v) may lie outside the picture.
    """
    u, v, depth = View(pose).pixels(np.array(point))
    return (float(u / depth), float(v / depth)) if depth > NEAR_M else None


def _cut(polygon: Points, inside: Points) -> Points:
    """The part of a convex polygon where `inside`, one number a corner, is not negative."""
    kept = []
    for i, (corner, height) in enumerate(zip(polygon, inside, strict=True)):
        if (inside[i - 1] < 0) != (height < 0):
            kept.append(corner + (polygon[i - 1] - corner) * height / (height - inside[i - 1]))
        if height >= 0:
            kept.append(corner)
    return np.array(kept)


def fixed(pixels: Points) -> Corners:
    """Places in the picture, (..., 2) pixels, as the corners that OpenCV draws with `SHIFT`."""
    return np.rint(pixels * (1 << SHIFT)).astype(np.int32)
