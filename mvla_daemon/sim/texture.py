"""What the surfaces of a simulated room look like: painted once, with the lamp's light on them.

Those of the boxes are in cardboard.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mvla_daemon.opencv import load_opencv

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mvla_daemon.sim.room import Bgr, Light, Room

Floats: TypeAlias = NDArray[np.float32]
Picture: TypeAlias = NDArray[np.uint8]
Points: TypeAlias = NDArray[np.float64]
"""One point or many, metres: (3,) or (n, 2 or 3)."""

_LEVELS = 4
_FLOOR_TEXELS_PER_M = 200
_SHADOW_TEXEL = 4
"""In texels of the floor: what is soft needs no more, and blurring it was half of the time that all faces took."""
_WALL_TEXELS_PER_M = 120
LAMP_HEIGHT_M = 2.4
"""Of the one lamp, above the floor."""
_AMBIENT = 0.7
"""The share of a surface's light that comes from everywhere and not from the lamp."""
_KNEE, _WHITE = 165.0, 236.0
"""Above the knee brightness is compressed, as a camera does, so that it only comes near to white."""
_FALLOFF_M = 3.0
_PLANK_M, _PLANK_LENGTH_M = 0.14, 1.3
_SKIRTING_M = 0.09


class Face:
    """A rectangle in the room with its picture, as seen from its visible side.

    `origin` is its upper left corner; `right` and `down` are the edges that leave from there, at a right angle; metres.
    """

    def __init__(self, origin: Points, right: Points, down: Points, bgr: Picture) -> None:
        cv2 = load_opencv()
        self.origin = origin
        self.corners: Points = origin + np.stack([0 * right, right, right + down, down])
        """Round the rectangle, (4, 3)."""
        self.normal = np.cross(down, right)
        """Out of its visible side, of any length."""
        blue, green, red, _ = cv2.mean(bgr)
        self.edge: Bgr = (0.75 * blue, 0.75 * green, 0.75 * red)
        """The color of its border."""
        self.levels: list[tuple[Picture, Points]] = []
        """Its picture, BGRA, and what takes a texel's (column, row, 1), counted from the first one's middle, to the
        room; and again with half as many texels each way."""
        self.middle: Points = origin + (right + down) / 2
        self.texel_m = float(np.linalg.norm(right)) / bgr.shape[1]
        # OpenCV 5 warps four channels in half the time that three take; OpenCV 4 in the same.
        picture = cv2.cvtColor(bgr, cv2.COLOR_BGR2BGRA)
        for _ in range(_LEVELS):
            column, row = right / picture.shape[1], down / picture.shape[0]
            self.levels.append((picture, np.stack([column, row, origin + (column + row) / 2], axis=1)))
            half = (max(1, picture.shape[1] // 2), max(1, picture.shape[0] // 2))
            picture = cv2.resize(picture, half, interpolation=cv2.INTER_AREA)


def illumination(light: Light, x_m: Floats | float, y_m: Floats | float) -> Floats:
    """The light's strength above places on the floor: 1 is normal."""
    square = (np.asarray(x_m) - light.lamp_x_m) ** 2 + (np.asarray(y_m) - light.lamp_y_m) ** 2
    strength: Floats = (light.gain / (1 + light.falloff * square / _FALLOFF_M**2)).astype(np.float32)
    return strength


def lambert(light: Light, place: Points, normal: Points) -> float:
    """The share of the light that a surface takes which stands at `place` and faces along the unit vector `normal`."""
    ray = np.array([light.lamp_x_m, light.lamp_y_m, LAMP_HEIGHT_M]) - place
    return _AMBIENT + (1 - _AMBIENT) * max(0.0, float(ray @ normal)) / float(np.linalg.norm(ray))


def develop(color: Floats, strength: Floats | float, tint: Bgr) -> Picture:
    """The camera's values for surfaces of these colors, (..., 3) of 0 to 255 under white light, in this light."""
    linear = color * np.asarray(strength, np.float32)[..., None] * np.asarray(tint, np.float32)
    room = _WHITE - _KNEE
    over = np.maximum(linear - _KNEE, 0)
    values: Picture = np.rint(np.minimum(linear, _KNEE) + room * (1 - np.exp(-over / room))).astype(np.uint8)
    return values


def ceiling_color(room: Room) -> Bgr:
    """What is seen above the walls."""
    strength = illumination(room.light, (room.west_m + room.east_m) / 2, (room.south_m + room.north_m) / 2)
    blue, green, red = develop(np.array([196, 202, 204], np.float32), strength, room.light.tint).tolist()
    return blue, green, red


def floor_face(room: Room, shadows: Sequence[tuple[Points, float]]) -> Face:
    """The floor as on a map, north up; `shadows` are the footprints (n, 2) and heights of what stands on it, metres."""
    length_m, width_m = room.east_m - room.west_m, room.north_m - room.south_m
    shape = (round(width_m * _FLOOR_TEXELS_PER_M), round(length_m * _FLOOR_TEXELS_PER_M))
    x_m = np.linspace(0, length_m, shape[1], dtype=np.float32)[None, :]
    y_m = np.linspace(width_m, 0, shape[0], dtype=np.float32)[:, None]
    rng = np.random.default_rng(room.texture_seed)
    pattern = (_planks, _tiles, _terrazzo)[room.texture_seed % 3](rng, x_m, y_m)
    strength = illumination(room.light, x_m + room.west_m, y_m + room.south_m)
    edge_m = np.minimum(np.minimum(x_m, length_m - x_m), np.minimum(y_m, width_m - y_m))
    strength *= 1 - 0.3 * np.exp(-edge_m / 0.12)
    strength *= _shade(room, shape, shadows)
    color = pattern[..., None] * np.asarray(room.floor_color, np.float32)
    origin = np.array([room.west_m, room.north_m, 0.0])
    right, down = np.array([length_m, 0.0, 0.0]), np.array([0.0, -width_m, 0.0])
    return Face(origin, right, down, develop(color, strength, room.light.tint))


def _shade(room: Room, shape: tuple[int, int], shadows: Sequence[tuple[Points, float]]) -> Floats:
    """How much of the light reaches each texel past what stands on the floor.

    Soft shadows away from the lamp, darker where the things stand.
    """
    cv2 = load_opencv()
    lamp = np.array([room.light.lamp_x_m, room.light.lamp_y_m])
    per_m = _FLOOR_TEXELS_PER_M / _SHADOW_TEXEL
    reaches = np.ones((shape[0] // _SHADOW_TEXEL, shape[1] // _SHADOW_TEXEL), np.float32)
    for footprint, height_m in shadows:
        cast = lamp + (footprint - lamp) * LAMP_HEIGHT_M / (LAMP_HEIGHT_M - min(height_m, 1.0))
        for outline, depth, blur_m in ((np.concatenate([footprint, cast]), 0.3, 0.05), (footprint, 0.8, 0.035)):
            texels = np.rint((outline - (room.west_m, room.north_m)) * (per_m, -per_m)).astype(np.int32)
            dark = np.zeros_like(reaches)
            cv2.fillConvexPoly(dark, cv2.convexHull(texels), depth)
            reaches *= 1 - cv2.GaussianBlur(dark, (0, 0), blur_m * per_m)
    shade: Floats = cv2.resize(reaches, shape[::-1], interpolation=cv2.INTER_LINEAR)
    return shade


def mottle(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[float, float], sigma: float) -> Floats:
    """Stains of about `cells` texels (down, along), to be added to a shade of this shape; they average 0."""
    grid = (max(2, round(shape[0] / cells[0])), max(2, round(shape[1] / cells[1])))
    small = rng.normal(0, sigma, grid).astype(np.float32)
    stains: Floats = load_opencv().resize(small, shape[::-1], interpolation=2)  # cv2.INTER_CUBIC
    return stains


def _planks(rng: np.random.Generator, x_m: Floats, y_m: Floats) -> Floats:
    """Boards along x, each of its own shade and with a grain, the joints staggered."""
    shape = (y_m.shape[0], x_m.shape[1])
    row = (y_m / _PLANK_M).astype(int)
    along = x_m / _PLANK_LENGTH_M + rng.uniform(0, 1, row.max() + 1).astype(np.float32)[row]
    column = along.astype(int)
    shade = rng.normal(1, 0.09, (row.max() + 1, column.max() + 1)).astype(np.float32)[row, column]
    shade += mottle(rng, shape, (2.5, 60), 0.05)
    joint = (y_m % _PLANK_M < 0.008) | (along % 1 * _PLANK_LENGTH_M < 0.008)
    return np.where(joint, 0.55, shade).astype(np.float32)


def _tiles(rng: np.random.Generator, x_m: Floats, y_m: Floats) -> Floats:
    """Square tiles with light joints, each of its own shade."""
    shape = (y_m.shape[0], x_m.shape[1])
    tile_m = rng.uniform(0.28, 0.45)
    row, column = (y_m / tile_m).astype(int), (x_m / tile_m).astype(int)
    shade = rng.normal(1, 0.06, (row.max() + 1, column.max() + 1)).astype(np.float32)[row, column]
    shade += mottle(rng, shape, (14, 14), 0.04) + mottle(rng, shape, (50, 50), 0.03)
    joint = (y_m % tile_m < 0.01) | (x_m % tile_m < 0.01)
    return np.where(joint, 0.7, shade).astype(np.float32)


def _terrazzo(rng: np.random.Generator, x_m: Floats, y_m: Floats) -> Floats:
    """Poured stone: large clouds with small dark and light chips."""
    shape = (y_m.shape[0], x_m.shape[1])
    chips = mottle(rng, shape, (5, 5), 1)
    shade = 1 + mottle(rng, shape, (80, 80), 0.05) + 0.22 * np.clip(np.abs(chips) - 1.1, 0, 1) * np.sign(chips)
    return shade.astype(np.float32)


def wall_faces(room: Room) -> tuple[Face, ...]:
    """The four walls, west, north, east and south, as seen from inside."""
    rng = np.random.default_rng((room.texture_seed, 1))
    length_m, width_m = room.east_m - room.west_m, room.north_m - room.south_m
    feet = (
        (room.west_m, room.south_m, 0.0, width_m),
        (room.west_m, room.north_m, length_m, 0.0),
        (room.east_m, room.north_m, 0.0, -width_m),
        (room.east_m, room.south_m, -length_m, 0.0),
    )
    down = np.array([0.0, 0.0, -room.wall_height_m])
    faces = []
    for x_m, y_m, dx_m, dy_m in feet:
        right = np.array([dx_m, dy_m, 0.0])
        color = _wall_color(rng, room, abs(dx_m + dy_m))
        share = np.linspace(0, 1, color.shape[1], dtype=np.float32)[None, :]
        strength = illumination(room.light, x_m + share * dx_m, y_m + share * dy_m)
        inward = np.array([dy_m, -dx_m, 0.0]) / abs(dx_m + dy_m)
        strength *= lambert(room.light, np.array([x_m + dx_m / 2, y_m + dy_m / 2, 1.0]), inward)
        corner_m = np.minimum(share, 1 - share) * abs(dx_m + dy_m)
        strength *= 1 - 0.25 * np.exp(-corner_m / 0.15)
        origin = np.array([x_m, y_m, room.wall_height_m])
        faces.append(Face(origin, right, down, develop(color, strength, room.light.tint)))
    return tuple(faces)


def _wall_color(rng: np.random.Generator, room: Room, length_m: float) -> Floats:
    """A painted wall with a skirting board, and a framed picture or two."""
    shape = (round(room.wall_height_m * _WALL_TEXELS_PER_M), round(length_m * _WALL_TEXELS_PER_M))
    paint = 1 + mottle(rng, shape, (24, 24), 0.012) + mottle(rng, shape, (90, 90), 0.025)
    height_m = np.linspace(room.wall_height_m, 0, shape[0], dtype=np.float32)[:, None]
    paint *= 1 - 0.12 * np.exp(-height_m / 0.3)
    color: Floats = paint[..., None] * np.asarray(room.wall_color, np.float32)
    for middle in np.arange(0.5, length_m - 0.4, 1.4) + rng.uniform(0, 0.4):
        wide, low, high = rng.uniform(0.35, 0.6), rng.uniform(0.55, 0.7), rng.uniform(0.95, 1.2)
        tone = rng.uniform(90, 160) + rng.uniform(-18, 18, 3)  # no color that could be taken for a cup's
        if rng.uniform() < 0.6 and high < room.wall_height_m and middle + wide / 2 < length_m:
            for margin, frame in ((0.0, (48, 56, 64)), (0.025, (214, 218, 220)), (0.07, tone)):
                left = round((middle - wide / 2 + margin) * _WALL_TEXELS_PER_M)
                right = round((middle + wide / 2 - margin) * _WALL_TEXELS_PER_M)
                top, bottom = (round((room.wall_height_m - z) * _WALL_TEXELS_PER_M) for z in (high, low))
                edge = round(margin * _WALL_TEXELS_PER_M)
                color[top + edge : bottom - edge, left:right] = frame
    skirting = round((room.wall_height_m - _SKIRTING_M) * _WALL_TEXELS_PER_M)
    color[skirting:] = 0.45 * color[skirting:] + (92, 96, 98)
    color[skirting - 1 : skirting + 1] *= 0.6
    color[-2:] *= 0.5
    return color
