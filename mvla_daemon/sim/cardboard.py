"""What a cardboard box in a simulated room looks like: its sides, the tape on them and what is printed there."""

from __future__ import annotations

import numpy as np

from mvla_daemon.opencv import load_opencv
from mvla_daemon.sim.room import Bgr, Box, Room
from mvla_daemon.sim.texture import Face, Floats, develop, illumination, lambert, mottle

_BOX_TEXELS_PER_M = 400
_TAPE_M = 0.05


def box_faces(room: Room, box: Box) -> tuple[Face, ...]:
    """The four sides and, last, the top of a cardboard box, closed with tape along its length."""
    rng = np.random.default_rng((room.texture_seed, 2, round(1e4 * box.length_m)))
    cos, sin = np.cos(box.yaw_rad), np.sin(box.yaw_rad)
    along, aside, up = np.array([cos, sin, 0.0]), np.array([-sin, cos, 0.0]), np.array([0.0, 0.0, 1.0])
    half_length, half_width = along * box.length_m / 2, aside * box.width_m / 2
    middle, height = np.array([box.x_m, box.y_m, box.height_m]), up * box.height_m
    strength = illumination(room.light, box.x_m, box.y_m)
    # Each as seen from outside: its normal, from the top's middle to its upper left corner, right, down, how far taped.
    sides = (
        (along, half_length - half_width, 2 * half_width, -height, 0.4),
        (-along, half_width - half_length, -2 * half_width, -height, 0.4),
        (aside, half_length + half_width, -2 * half_length, -height, 0.0),
        (-aside, -half_length - half_width, 2 * half_length, -height, 0.0),
        (up, half_length + half_width, -2 * half_width, -2 * half_length, 1.0),
    )
    faces = []
    for normal, corner, right, down, taped in sides:
        color = _cardboard(rng, box.color, (float(np.linalg.norm(down)), float(np.linalg.norm(right))))
        _tape(color, box.color, taped)
        if not taped:
            _print_arrows(color, box.color)
        if normal is not up:
            color *= np.linspace(1.0, 0.8, color.shape[0], dtype=np.float32)[:, None, None]
        light = strength * np.float32(lambert(room.light, middle, normal) if normal is not up else 1)
        faces.append(Face(middle + corner, right, down, develop(color, light, room.light.tint)))
    return tuple(faces)


def _cardboard(rng: np.random.Generator, color: Bgr, size_m: tuple[float, float]) -> Floats:
    """A side of this size (down, along), its edges worn."""
    rows, columns = (max(8, round(side_m * _BOX_TEXELS_PER_M)) for side_m in size_m)
    shade = 1 + mottle(rng, (rows, columns), (20, 20), 0.02) + mottle(rng, (rows, columns), (rows, 5), 0.025)
    shade[[0, 1, 2, -3, -2, -1]] *= 0.82
    shade[:, [0, 1, 2, -3, -2, -1]] *= 0.82
    return shade[..., None] * np.asarray(color, np.float32)


def _tape(color: Floats, card: Bgr, share: float) -> None:
    """A stripe down the middle, over this share of the height."""
    half, middle = round(_TAPE_M / 2 * _BOX_TEXELS_PER_M), color.shape[1] // 2
    stripe = color[: round(share * color.shape[0]), middle - half : middle + half]
    stripe *= 0.45
    stripe += 0.35 * np.asarray(card, np.float32) + (48, 56, 62)


def _print_arrows(color: Floats, card: Bgr) -> None:
    """Two arrows, this way up, as on a shipping box."""
    height, width = color.shape[:2]
    arrow = np.array([(0, 0), (6, 7), (2, 7), (2, 16), (-2, 16), (-2, 7), (-6, 7)]) * height / 28
    for shift in (0.69, 0.86):
        points = np.rint(arrow + np.array([width * shift, height * 0.2])).astype(np.int32)
        load_opencv().fillPoly(color, [points], [0.45 * value for value in card], 16)  # cv2.LINE_AA
