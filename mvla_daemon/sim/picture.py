"""What the simulated robot's camera sees: pictures of a room from a pose.

The room stands still, so all its light and shadow is painted beforehand onto its faces (texture.py, cardboard.py). A
picture is each visible face under its homography (Hartley and Zisserman, "Multiple View Geometry", section 8.1), then
the things on the floor from back to front, then the sensor's noise.
"""

from __future__ import annotations

import math
from itertools import combinations
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from mvla_daemon.opencv import load_opencv
from mvla_daemon.sim.cardboard import box_faces
from mvla_daemon.sim.cup import CupPainter
from mvla_daemon.sim.room import (
    CAMERA_FOCAL_PX,
    CAMERA_HEIGHT_M,
    CAMERA_HEIGHT_PX,
    CAMERA_PITCH_RAD,
    CAMERA_WIDTH_PX,
    Pose,
    Room,
)
from mvla_daemon.sim.texture import Face, Picture, Points, ceiling_color, floor_face, wall_faces
from mvla_daemon.sim.view import LINE_8, LINE_AA, SHIFT, View, fixed

_WIDEST_RAD = 1.0
"""Beyond the bearing of the picture's lower corners, 0.87."""
_NOISE_MEAN, _NOISE_SIGMA, _NOISE_MAX = 8, 2.2, 16
"""A sensor's black is not 0, so that its noise is not cut off there."""
_NOISE_PLACES = 256


def _row_of_floor(distance_m: float) -> int:
    """The picture's row in which the floor is seen at this distance from the lens."""
    dip = math.atan(CAMERA_HEIGHT_M / distance_m) - CAMERA_PITCH_RAD
    return round((CAMERA_HEIGHT_PX - 1) / 2 + CAMERA_FOCAL_PX * math.tan(dip))


_COARSER_ABOVE_ROW = (_row_of_floor(1.4), _row_of_floor(2.2), _row_of_floor(3.5), 0)
"""For each level of the floor's picture the row where the next one begins: further away a finer one would flicker."""


class Painter:
    """Renders what the camera at a pose sees in a room. One instance belongs to one thread."""

    def __init__(self, room: Room) -> None:
        self._cv2 = load_opencv()
        self._room = room
        self._boxes = [box_faces(room, box) for box in room.boxes]
        self._cup = CupPainter(room)
        # Things are numbered: the boxes first, the cup last.
        self._footprints = [*(faces[-1].corners[::-1, :2] for faces in self._boxes), self._cup.footprint]
        heights_m = [*(box.height_m for box in room.boxes), room.cup.height_m]
        self._floor = floor_face(room, list(zip(self._footprints, heights_m, strict=True)))
        self._ceiling = self._floor.corners + np.array([0, 0, room.wall_height_m])
        self._ceiling_color = ceiling_color(room)
        self._walls = wall_faces(room)
        self._between = {
            (i, j): _line_between(self._footprints[i], self._footprints[j])
            for i, j in combinations(range(len(self._footprints)), 2)
        }
        self._picture = np.zeros((CAMERA_HEIGHT_PX, CAMERA_WIDTH_PX, 4), np.uint8)
        self._warped = np.zeros_like(self._picture)
        self._mask = np.zeros((CAMERA_HEIGHT_PX, CAMERA_WIDTH_PX), np.uint8)
        self._noise = _noise(room.seed)

    def paint(self, pose: Pose, number: int, out: NDArray[np.uint8]) -> None:
        """Write the picture to `out`, uint8 (480, 640, 3) BGR, contiguous; `number` and the room's seed draw its noise.

        A camera beyond a wall looks from just before it; one inside a thing does not see that thing. Raises ValueError
        for a picture of another shape or dtype.
        """
        if out.shape != (CAMERA_HEIGHT_PX, CAMERA_WIDTH_PX, 3) or out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise ValueError(f"the picture is {out.shape} {out.dtype}, expected (480, 640, 3) uint8, contiguous")
        view = View(pose, self._room)
        self._paint_floor(view)
        ceiling = view.outline(self._ceiling)
        if ceiling is not None:
            self._cv2.fillConvexPoly(self._picture, fixed(ceiling), self._ceiling_color, LINE_8, SHIFT)
        for wall in self._walls:
            self._paint_face(view, wall)
        for thing in self._back_to_front(view):
            if thing == len(self._boxes):
                self._cup.paint(view, self._picture)
            else:
                for face in self._boxes[thing]:
                    self._paint_face(view, face)
        self._cv2.cvtColor(self._picture, self._cv2.COLOR_BGRA2BGR, dst=out)
        # Of two numbers one after the other the places are never the same, since 40503 is odd.
        row, column = divmod((40503 * number + self._room.seed) % _NOISE_PLACES**2, _NOISE_PLACES)
        noise = self._noise[row : row + CAMERA_HEIGHT_PX, column : column + CAMERA_WIDTH_PX]
        self._cv2.add(out, noise, dst=out)

    def _paint_floor(self, view: View) -> None:
        """In stripes, coarser with the distance; the walls are painted over what is too much of it."""
        outline = view.outline(self._floor.corners)
        if outline is None:
            return
        end, (_, highest) = CAMERA_HEIGHT_PX, np.floor(outline.min(axis=0)).astype(int)
        for (picture, to_room), row in zip(self._floor.levels, _COARSER_ABOVE_ROW, strict=True):
            begin = max(row, highest, 0)
            if begin < end:
                self._warp(view, picture, to_room, (slice(begin, end), slice(0, CAMERA_WIDTH_PX)), self._picture)
                end = begin

    def _paint_face(self, view: View, face: Face) -> None:
        """Through a mask of the part that is in view, if its visible side is."""
        if (view.place - face.origin) @ face.normal <= 0 or (outline := view.outline(face.corners)) is None:
            return
        left, top = np.maximum(np.floor(outline.min(axis=0)), 0).astype(int)
        right, bottom = np.minimum(np.ceil(outline.max(axis=0)) + 1, (CAMERA_WIDTH_PX, CAMERA_HEIGHT_PX)).astype(int)
        if left >= right or top >= bottom:
            return
        part = (slice(top, bottom), slice(left, right))
        corners = fixed(outline)
        self._mask[part] = 0
        self._cv2.fillConvexPoly(self._mask, corners, 255, LINE_8, SHIFT)
        pixel_m = float(np.linalg.norm(view.place - face.middle)) / CAMERA_FOCAL_PX
        coarser = min(max(int(math.log2(pixel_m / face.texel_m)), 0), len(face.levels) - 1)
        self._warp(view, *face.levels[coarser], part, self._warped)
        self._cv2.copyTo(self._warped[part], self._mask[part], self._picture[part])
        self._cv2.polylines(self._picture, [corners], True, face.edge, 1, LINE_AA, SHIFT)

    def _warp(self, view: View, picture: Picture, to_room: Points, part: tuple[slice, slice], onto: Picture) -> None:
        rows, columns = part
        homography = view.from_texels(to_room, columns.start, rows.start)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        self._cv2.warpPerspective(picture, homography, size, dst=onto[part], borderMode=self._cv2.BORDER_REPLICATE)

    def _back_to_front(self, view: View) -> list[int]:
        """The numbers of the things ahead, in an order in which each may be painted over those before it."""
        spans = {}
        for thing, footprint in enumerate(self._footprints):
            bearings = view.bearings(footprint)
            low, high = float(bearings.min()), float(bearings.max())
            # What spans more than half a turn is behind; a convex thing can't be so wide before a lens outside it.
            if low < _WIDEST_RAD and high > -_WIDEST_RAD and high - low < math.pi:
                spans[thing] = (low, high)
        hides = set()
        for (i, j), (normal, offset) in self._between.items():
            if i in spans and j in spans and spans[i][0] < spans[j][1] and spans[j][0] < spans[i][1]:
                hides.add((i, j) if view.place[:2] @ normal > offset else (j, i))
        order: list[int] = []
        waiting = list(spans)
        while waiting:
            # Of convex things apart, seen within half a turn, there is always one that hides no other.
            hidden = (one for one in waiting if not any((one, other) in hides for other in waiting))
            order.append(next(hidden, waiting[0]))
            waiting.remove(order[-1])
        return order


def _line_between(one: Points, other: Points) -> tuple[Points, float]:
    """The line that parts two convex footprints the widest: `one` lies where place @ normal > offset, `other` below.

    It is along an edge of either; both go counter-clockwise.
    """
    lines = []
    for sign, polygon, beyond in ((-1, one, other), (1, other, one)):
        edges = np.roll(polygon, -1, axis=0) - polygon
        outward = np.column_stack([edges[:, 1], -edges[:, 0]]) / np.linalg.norm(edges, axis=1, keepdims=True)
        offsets = (outward * polygon).sum(axis=1)
        gaps = (outward @ beyond.T).min(axis=1) - offsets
        widest = int(gaps.argmax())
        lines.append((float(gaps[widest]), sign * outward[widest], sign * float(offsets[widest])))
    _, normal, offset = max(lines, key=itemgetter(0))
    return normal, offset


def _noise(seed: int) -> Picture:
    size = (CAMERA_HEIGHT_PX + _NOISE_PLACES, CAMERA_WIDTH_PX + _NOISE_PLACES, 3)
    normal = np.random.default_rng((seed, 3)).standard_normal(size, np.float32)
    noise: Picture = np.clip(np.rint(normal * _NOISE_SIGMA + _NOISE_MEAN), 0, _NOISE_MAX).astype(np.uint8)
    return noise
