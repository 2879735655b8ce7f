"""Pictures of a drive along a corridor, for the demo's clip."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Floats: TypeAlias = NDArray[np.float32]
Picture: TypeAlias = NDArray[np.uint8]
Texture: TypeAlias = NDArray[np.float32]
"""One face of the corridor, colours 0 to 255 in BGR: `[TEXELS_ACROSS, TEXELS_ALONG, 3]`."""

WIDTH, HEIGHT, FPS, LOOP_S = 640, 480, 50, 12

# The corridor repeats every LENGTH_M, which the camera drives once in LOOP_S: half a metre a second.
LENGTH_M, WIDE_M, HIGH_M, CAMERA_M = 6.0, 2.4, 2.6, 0.7
TEXELS_ALONG, TEXELS_ACROSS = 2048, 512
FOCAL_PX = 430.0
MARGIN_PX = 72  # what turning the camera may bring into the picture
NOISE_SIGMA = 1.5
FOG_BGR = np.array([205, 214, 218], np.float32)


def soft_noise(rng: np.random.Generator, across: int, along: int, sigma: float) -> Texture:
    """Stains of about `TEXELS / across` texels, seamless along the corridor, as `[TEXELS_ACROSS, TEXELS_ALONG, 1]`."""
    grid = rng.normal(0, sigma, (across, along)).astype(np.float32)
    wrapped = np.concatenate([grid, grid, grid], axis=1)
    large = cv2.resize(wrapped, (3 * TEXELS_ALONG, TEXELS_ACROSS), interpolation=cv2.INTER_CUBIC)
    return large[:, TEXELS_ALONG : 2 * TEXELS_ALONG, None].astype(np.float32)


def box(
    face: Texture, high_m: float, low: tuple[float, float], size: tuple[float, float], color: Sequence[float]
) -> None:
    """Paints a rectangle given in metres (across, along) onto a face that is `high_m` across."""
    across, along = TEXELS_ACROSS / high_m, TEXELS_ALONG / LENGTH_M
    rows = slice(round(low[0] * across), round((low[0] + size[0]) * across))
    face[rows, round(low[1] * along) : round((low[1] + size[1]) * along)] = color


def lamp_glow(strength: float) -> Floats:
    """How much brighter a place along the corridor is under the lamps, which hang every 2 m."""
    along_m = (np.arange(TEXELS_ALONG, dtype=np.float32) + 0.5) * LENGTH_M / TEXELS_ALONG
    glow: Floats = (1 + strength * np.cos(np.pi * (along_m - 1))).astype(np.float32)
    return glow[None, :, None]


def floor_face(rng: np.random.Generator) -> Texture:
    """Stone tiles of 40 cm with joints, each of its own shade."""
    across = np.arange(TEXELS_ACROSS) * WIDE_M / TEXELS_ACROSS / 0.4
    along = np.arange(TEXELS_ALONG) * LENGTH_M / TEXELS_ALONG / 0.4
    row, column = across.astype(int)[:, None], along.astype(int)[None, :]
    shade = rng.normal(0, 9, (8, 16))[row, column] + np.where((row + column) % 2, 18, -18)
    face: Texture = np.array([104, 118, 128], np.float32) + shade[..., None].astype(np.float32)
    face += soft_noise(rng, 24, 96, 7) + rng.normal(0, 4, (TEXELS_ACROSS, TEXELS_ALONG, 1)).astype(np.float32)
    joint = ((across % 1) < 0.03)[:, None] | ((along % 1) < 0.03)[None, :]
    face[joint] = (62, 66, 70)
    return face * lamp_glow(0.18)


def wall_face(
    rng: np.random.Generator, doors: tuple[tuple[float, tuple[int, int, int]], ...], poster_m: float
) -> Texture:
    """Two coats of paint over a skirting board, doors at the given places, and a poster."""
    face = np.empty((TEXELS_ACROSS, TEXELS_ALONG, 3), np.float32)
    face[:] = (176, 196, 202)
    box(face, HIGH_M, (0, 0), (1.0, LENGTH_M), (128, 140, 112))
    box(face, HIGH_M, (0.98, 0), (0.05, LENGTH_M), (70, 82, 74))
    box(face, HIGH_M, (0, 0), (0.1, LENGTH_M), (52, 58, 62))
    for at_m, color in doors:
        box(face, HIGH_M, (0, at_m - 0.07), (2.12, 1.09), (66, 72, 78))
        box(face, HIGH_M, (0, at_m), (2.05, 0.95), color)
        for low in (0.2, 1.15):
            box(face, HIGH_M, (low, at_m + 0.15), (0.75, 0.65), [0.8 * value for value in color])
        box(face, HIGH_M, (1.0, at_m + 0.82), (0.06, 0.09), (215, 225, 230))
        box(face, HIGH_M, (1.5, at_m + 1.15), (0.16, 0.26), (235, 235, 232))
    box(face, HIGH_M, (1.15, poster_m), (0.75, 0.55), (225, 228, 226))
    for line in range(5):
        bright = rng.integers(60, 200, 3).tolist()
        box(face, HIGH_M, (1.22 + 0.12 * line, poster_m + 0.06), (0.07, 0.2 + 0.05 * line), bright)
    return (face + soft_noise(rng, 12, 64, 4)) * lamp_glow(0.12)


def ceiling_face(rng: np.random.Generator) -> Texture:
    """Panels of 60 cm with dark gaps, and three lamps."""
    face = np.full((TEXELS_ACROSS, TEXELS_ALONG, 3), 168, np.float32) + soft_noise(rng, 8, 40, 4)
    for step in range(10):
        box(face, WIDE_M, (0, 0.6 * step), (WIDE_M, 0.02), (96, 98, 100))
    for step in range(1, 4):
        box(face, WIDE_M, (0.6 * step, 0), (0.02, LENGTH_M), (96, 98, 100))
    for lamp in range(3):
        box(face, WIDE_M, (0.95, 0.5 + 2 * lamp), (0.5, 1.0), (250, 255, 255))
    return face * lamp_glow(0.08)


@dataclass
class Corridor:
    """Draws pictures of the corridor.

    A straight look ahead is drawn first, a little larger than the picture: there only the place along the corridor
    changes from one picture to the next, so that each pixel's texel is a fixed address plus an offset. Turning the
    camera is then exactly a homography (Hartley and Zisserman, "Multiple View Geometry", section 8.4).
    """

    rng: np.random.Generator
    _atlas: NDArray[np.uint32] = field(init=False)
    _base: NDArray[np.int32] = field(init=False)
    _along: NDArray[np.int32] = field(init=False)
    _level: NDArray[np.int32] = field(init=False)
    _gain: Floats = field(init=False)
    _patch_gain: Floats = field(init=False)
    _fog: Floats = field(init=False)
    _noise: NDArray[np.int16] = field(init=False)

    LEVELS_ACROSS = 6
    LEVELS_ALONG = 9

    def __post_init__(self) -> None:
        """Paints the faces and computes what each pixel of the straight look sees."""
        rows, columns = np.mgrid[0 : HEIGHT + 2 * MARGIN_PX, 0 : WIDTH + 2 * MARGIN_PX].astype(np.float32)
        right = (columns - columns.mean()) / FOCAL_PX
        down = (rows - rows.mean()) / FOCAL_PX
        # Where the pixel's ray meets each face, as a distance along the corridor; the nearest one is seen.
        walls_m = (WIDE_M / 2) / np.maximum(np.abs(right), 1e-4)
        flats_m = np.where(down > 0, CAMERA_M, HIGH_M - CAMERA_M) / np.maximum(np.abs(down), 1e-4)
        ahead_m = np.minimum(np.minimum(walls_m, flats_m), 60.0)
        on_wall = walls_m < flats_m
        face = np.where(on_wall, np.where(right < 0, 0, 1), np.where(down > 0, 2, 3))
        across_m = np.where(on_wall, CAMERA_M - down * ahead_m, right * ahead_m + WIDE_M / 2)
        share = np.clip(across_m / np.where(on_wall, HIGH_M, WIDE_M), 0, 0.9999)
        self._address(face, share, ahead_m, np.where(on_wall, WIDE_M / 2, np.abs(down) * ahead_m))
        self._light(face, share, ahead_m)
        self._noise = np.rint(self.rng.normal(0, NOISE_SIGMA, (2 * HEIGHT, 2 * WIDTH, 3))).astype(np.int16)

    def _address(self, face: NDArray[np.int64], share: Floats, ahead_m: Floats, off_axis_m: Floats) -> None:
        """Chooses for each pixel the copy of its face, coarser with distance in either direction, against flicker."""
        coarse_across = ahead_m / FOCAL_PX * TEXELS_ACROSS / WIDE_M
        coarse_along = ahead_m**2 / (FOCAL_PX * off_axis_m) * TEXELS_ALONG / LENGTH_M
        level_across = np.clip(np.rint(np.log2(coarse_across)), 0, self.LEVELS_ACROSS - 1).astype(np.int32)
        self._level = np.clip(np.rint(np.log2(coarse_along)), 0, self.LEVELS_ALONG - 1).astype(np.int32)
        self._along = (ahead_m * (TEXELS_ALONG / LENGTH_M)).astype(np.int32)
        starts = np.zeros((4, self.LEVELS_ACROSS, self.LEVELS_ALONG), np.int32)
        maps: list[NDArray[np.uint32]] = []
        end = 0
        for number, painted in enumerate(self._faces()):
            for i, j in np.ndindex(self.LEVELS_ACROSS, self.LEVELS_ALONG):
                size = (TEXELS_ALONG >> j, TEXELS_ACROSS >> i)
                small = np.clip(cv2.resize(painted, size, interpolation=cv2.INTER_AREA), 0, 255).astype(np.uint8)
                maps.append(cv2.cvtColor(small, cv2.COLOR_BGR2BGRA).view(np.uint32).ravel())
                starts[number, i, j] = end
                end += maps[-1].size
        self._atlas = np.concatenate(maps)
        line = (share * (TEXELS_ACROSS >> level_across)).astype(np.int32)
        self._base = starts[face, level_across, self._level] + line * (TEXELS_ALONG >> self._level)

    def _faces(self) -> tuple[Texture, Texture, Texture, Texture]:
        left = wall_face(self.rng, ((0.6, (70, 96, 150)), (3.7, (140, 104, 62))), 2.3)
        right = wall_face(self.rng, ((2.2, (84, 128, 78)), (4.6, (70, 96, 150))), 0.6)
        return left, right, floor_face(self.rng), ceiling_face(self.rng)

    def _light(self, face: NDArray[np.int64], share: Floats, ahead_m: Floats) -> None:
        """Fog far away, darker corners, and how strongly a pixel's place takes part in the moving patches."""
        fog = 1 - np.exp(-((ahead_m / 11.0) ** 2))
        corner = np.minimum(share, 1 - share)
        clear = (1 - fog) * (1 - 0.35 * np.exp(-corner / 0.05))
        patch = np.choose(face, [0.25, 0.55, 0.9, 0.0]) * np.exp(-(((share - 0.62) / 0.16) ** 2))
        self._gain = clear[..., None].astype(np.float32)
        self._patch_gain = (clear * patch).astype(np.float32)
        self._fog = (fog[..., None] * FOG_BGR).astype(np.float32)

    def pictures(self, count: int) -> Iterator[Picture]:
        """The first `count` pictures of the loop, each `[HEIGHT, WIDTH, 3]` BGR."""
        along_m = np.arange(TEXELS_ALONG) * LENGTH_M / TEXELS_ALONG
        patches = (np.maximum(np.cos(2 * np.pi * along_m / 3.0), 0) ** 2).astype(np.float32)
        for number in range(count):
            turn = number / (LOOP_S * FPS)
            place = self._along + round(turn * TEXELS_ALONG)
            texels = self._atlas[self._base + ((place & (TEXELS_ALONG - 1)) >> self._level)]
            color = texels.view(np.uint8).reshape(*texels.shape, 4)[..., :3]
            lit = patches[(place + round(2 * turn * TEXELS_ALONG)) & (TEXELS_ALONG - 1)]
            straight = color * (self._gain + (lit * self._patch_gain)[..., None]) + self._fog
            yield self._shoot(straight, turn)

    def _shoot(self, straight: Floats, turn: float) -> Picture:
        """Turns the camera as a robot's swings (whole periods in the loop) and adds the sensor's noise."""
        phase = 2 * np.pi * turn
        yaw = 0.10 * np.sin(2 * phase) + 0.03 * np.sin(5 * phase + 1)
        pitch = 0.004 * np.sin(31 * phase) + 0.003 * np.sin(47 * phase)
        rotation, _ = cv2.Rodrigues(np.array([pitch, yaw, 0.006 * np.sin(7 * phase)]))
        lens = np.array([[FOCAL_PX, 0, (WIDTH - 1) / 2], [0, FOCAL_PX, (HEIGHT - 1) / 2], [0, 0, 1]])
        wide_lens = lens + np.array([[0, 0, MARGIN_PX], [0, 0, MARGIN_PX], [0, 0, 0]])
        to_straight = wide_lens @ rotation @ np.linalg.inv(lens)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        seen = cv2.warpPerspective(straight, to_straight, (WIDTH, HEIGHT), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        top, left = self.rng.integers(0, (HEIGHT, WIDTH))
        noisy = seen + self._noise[top : top + HEIGHT, left : left + WIDTH]
        picture: Picture = np.clip(noisy, 0, 255).astype(np.uint8)
        return picture
