"""The cup in the simulated robot's pictures: its colors and its shape."""

from __future__ import annotations

import math

import numpy as np

from mvla_daemon.opencv import load_opencv
from mvla_daemon.sim.room import Bgr, Room
from mvla_daemon.sim.texture import LAMP_HEIGHT_M, Picture, Points, develop, illumination
from mvla_daemon.sim.view import LINE_8, LINE_AA, NEAR_M, SHIFT, View, fixed


def cup_colors(room: Room, normals: Points) -> tuple[list[list[Bgr]], Bgr]:
    """The colors of a cup's pieces, whose outside faces along `normals`, (n, 3): [band][piece], and of its border.

    The bands are the inside, the lower, the printed and the upper outside, and the rim.
    """
    cup = room.cup
    full, white = np.asarray(cup.color, np.float32), np.array([214, 222, 226], np.float32)
    lamp = np.array([room.light.lamp_x_m - cup.x_m, room.light.lamp_y_m - cup.y_m, LAMP_HEIGHT_M])
    cosine = (normals @ lamp / np.linalg.norm(normals, axis=1) / np.linalg.norm(lamp)).astype(np.float32)[:, None]
    outside, inside = 0.62 + 0.38 * np.maximum(cosine, 0), 0.45 + 0.3 * np.maximum(-cosine, 0)
    body = full * outside + 30 * np.maximum(cosine / np.abs(cosine).max(), 0) ** 12
    rim = np.broadcast_to(0.5 * (full + white), body.shape)
    strength = illumination(room.light, cup.x_m, cup.y_m)
    colors = [develop(band, strength, room.light.tint) for band in (white * inside, body, white * outside, body, rim)]
    blue, green, red = develop(0.5 * full, strength, room.light.tint).tolist()
    return [band.tolist() for band in colors], (blue, green, red)


class CupPainter:
    """The cup as rings of points, and the flat pieces between them.

    `footprint` is what its rim covers of the floor, (n, 2) metres, counter-clockwise.
    """

    _SIDES = 64
    _FOOT = 0.7
    """The radius of the foot, as a share of the rim's."""
    _PRINTED = (0.36, 0.62)
    """The white band's place, as shares of the height."""
    _BANDS = ((5, 4), (0, 1), (1, 2), (2, 3), (3, 4))
    """Between which rings: the inside, the lower, printed and upper outside, the rim; from back to front."""

    def __init__(self, room: Room) -> None:
        self._cv2 = load_opencv()
        cup = room.cup
        turns = np.arange(self._SIDES) * (math.tau / self._SIDES)
        around = np.column_stack([np.cos(turns), np.sin(turns)])
        middle = np.array([cup.x_m, cup.y_m])
        self.footprint: Points = middle + cup.radius_m * around
        outside = [(self._FOOT + (1 - self._FOOT) * share, share) for share in (0.0, *self._PRINTED, 1.0)]
        rings = [
            np.column_stack([middle + radius * cup.radius_m * around, np.full(self._SIDES, height * cup.height_m)])
            for radius, height in (*outside, (0.92, 1.0), (0.64, 0.02))
        ]
        self._rings = np.stack(rings)
        turns += math.pi / self._SIDES
        slope = (1 - self._FOOT) * cup.radius_m / cup.height_m
        self._normals = np.column_stack([np.cos(turns), np.sin(turns), np.full(self._SIDES, -slope)])
        self._colors, self._line_color = cup_colors(room, self._normals)

    def paint(self, view: View, out: Picture) -> None:
        """Draw the pieces that are turned to the lens, and a smooth line round them all."""
        pixels = view.pixels(self._rings)
        ahead = pixels[..., 2] > NEAR_M
        if not ahead.any():
            return
        corners = fixed(pixels[..., :2] / np.maximum(pixels[..., 2:], NEAR_M))
        outward = ((view.place - self._rings[3]) * self._normals).sum(axis=1) > 0
        from_above = np.full(self._SIDES, view.place[2] > self._rings[3, 0, 2])
        for band, turned in enumerate((~outward, outward, outward, outward, from_above)):
            low, high = self._BANDS[band]
            pieces = np.stack(
                [corners[low], np.roll(corners[low], -1, axis=0), np.roll(corners[high], -1, axis=0), corners[high]],
                axis=1,
            )
            # A lens nearer than this to a piece is inside the cup; see NEAR_M.
            whole = ahead[low] & np.roll(ahead[low], -1) & ahead[high] & np.roll(ahead[high], -1)
            for side in np.flatnonzero(turned & whole):
                self._cv2.fillConvexPoly(out, pieces[side], self._colors[band][side], LINE_8, SHIFT)
        hull = self._cv2.convexHull(corners[:4][ahead[:4]])
        self._cv2.polylines(out, [hull], True, self._line_color, 1, LINE_AA, SHIFT)
