"""The camera picture of the simulated robot: where things are in it, what hides what, light and noise."""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mvla_daemon.sim.picture import Painter
from mvla_daemon.sim.room import Box, Cup, Light, Pose, Room
from mvla_daemon.sim.view import project

RED, BLUE, GREEN = (30.0, 30.0, 215.0), (220.0, 60.0, 40.0), (40.0, 200.0, 50.0)
AHEAD = Pose(1.0, 0.0, 0.0)
EVEN_LIGHT = Light(gain=1.0, tint=(1.0, 1.0, 1.0), lamp_x_m=2.0, lamp_y_m=0.0, falloff=0.0)


def a_room(*boxes: Box, **changes: Any) -> Room:
    """Grey walls, a yellowish floor, a red cup 2 m before `AHEAD`."""
    room = Room(
        seed=7,
        west_m=0.0,
        east_m=4.0,
        south_m=-1.5,
        north_m=1.5,
        wall_height_m=1.8,
        wall_color=(190.0, 190.0, 190.0),
        floor_color=(70.0, 120.0, 130.0),
        texture_seed=1,
        start=AHEAD,
        cup=Cup(3.0, 0.0, 0.09, 0.22, RED),
        boxes=boxes,
        light=EVEN_LIGHT,
    )
    return replace(room, **changes)


def a_box(x_m: float, y_m: float, **changes: Any) -> Box:
    return replace(Box(x_m, y_m, 0.3, 0.4, 0.3, 0.2, BLUE), **changes)


@cache
def painter_of(room: Room) -> Painter:
    return Painter(room)


def seen(room: Room, pose: Pose = AHEAD, number: int = 0) -> NDArray[np.int16]:
    out = np.zeros((480, 640, 3), np.uint8)
    painter_of(room).paint(pose, number, out)
    return out.astype(np.int16)


def where(picture: NDArray[np.int16], channel: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows and columns where this channel (0 is blue) is far above both others."""
    rows, columns = np.nonzero(picture[..., channel] - np.delete(picture, channel, axis=2).max(axis=2) > 45)
    return rows, columns


def pixel_of(pose: Pose, place: tuple[float, float, float]) -> tuple[int, int]:
    """The column and row of a place that is before the lens."""
    at = project(pose, place)
    assert at is not None
    return round(at[0]), round(at[1])


def red_columns(room: Room, pose: Pose = AHEAD) -> NDArray[np.intp]:
    return where(seen(room, pose), 2)[1]


def test_project_is_a_pinhole_that_looks_down_by_12_degrees() -> None:
    lens_x_m = 1.0 + 0.12
    on_axis = project(AHEAD, (lens_x_m + 2 * math.cos(0.21), 0.0, 0.30 - 2 * math.sin(0.21)))
    assert on_axis == pytest.approx((319.5, 239.5))
    horizon = project(AHEAD, (lens_x_m + 1e9, 0.0, 0.30))
    assert horizon == pytest.approx((319.5, 239.5 - 330 * math.tan(0.21)))
    left_edge = project(AHEAD, (lens_x_m + 2 * math.cos(0.21), 2 * 320 / 330, 0.30 - 2 * math.sin(0.21)))
    assert left_edge == pytest.approx((-0.5, 239.5))
    assert project(AHEAD, (0.5, 0.0, 0.30)) is None


def test_project_turns_with_the_robot() -> None:
    for yaw_rad in (0.7, 2.5, -1.9):
        x_m, y_m = 1.0 + 2 * math.cos(yaw_rad), -0.4 + 2 * math.sin(yaw_rad)
        turned = project(Pose(1.0, -0.4, yaw_rad), (x_m, y_m, 0.1))
        assert turned == pytest.approx(project(AHEAD, (3.0, 0.0, 0.1)))


def test_a_cup_straight_ahead_is_in_the_middle_column() -> None:
    columns = red_columns(a_room())
    assert columns.size > 300
    assert columns.min() + columns.max() == pytest.approx(639, abs=2)


@pytest.mark.parametrize(
    "pose", [Pose(1.0, 0.2, 0.0), Pose(1.0, 0.0, 0.15)], ids=["the robot further left", "the robot turned left"]
)
def test_the_cup_is_further_right_for(pose: Pose) -> None:
    assert red_columns(a_room(), pose).min() > red_columns(a_room()).max()


def test_nearer_is_bigger_as_the_distance_says() -> None:
    for distance_m in (0.5, 1.0, 2.0):
        columns = red_columns(a_room(), Pose(3.0 - 0.12 - distance_m, 0.0, 0.0))
        rim_depth_m = distance_m * math.cos(0.21) + (0.30 - 0.22) * math.sin(0.21)
        # The tangents of a circle are wider apart than its diameter by the slant at which they are seen.
        wide = 2 * 330 * 0.09 / rim_depth_m / math.sqrt(1 - (0.09 / distance_m) ** 2)
        assert columns.max() - columns.min() + 1 == pytest.approx(wide, abs=2.5)


@pytest.mark.parametrize("yaw_rad", [-0.3, 0.0, 0.25])
def test_a_box_is_painted_exactly_where_its_corners_are_projected(yaw_rad: float) -> None:
    for box in (a_box(2.0, -0.2), a_box(2.6, 0.3, yaw_rad=1.1), a_box(1.8, 0.0, height_m=0.5)):
        pose = Pose(1.0, 0.05, yaw_rad)
        rows, columns = where(seen(a_room(box), pose), 0)
        cos, sin = math.cos(box.yaw_rad), math.sin(box.yaw_rad)
        corners = [
            project(pose, (box.x_m + dx * cos - dy * sin, box.y_m + dx * sin + dy * cos, z_m))
            for dx in (-0.2, 0.2)
            for dy in (-0.15, 0.15)
            for z_m in (0.0, box.height_m)
        ]
        u, v = zip(*(corner for corner in corners if corner), strict=True)
        assert (columns.min(), columns.max()) == pytest.approx((max(min(u), 0), min(max(u), 639)), abs=2)
        assert (rows.min(), rows.max()) == pytest.approx((max(min(v), 0), min(max(v), 479)), abs=3)


@pytest.mark.parametrize("y_m", [-0.35, 0.0, 0.35])
def test_tape_runs_along_the_middle_of_the_top(y_m: float) -> None:
    box = a_box(1.9, y_m, yaw_rad=0.0)
    picture = seen(a_room(box))
    for x_m in (1.75, 1.9, 2.05):
        # Of the tape's five centimetres two on either side of its middle, and what is four beside it.
        inside, outside = ([pixel_of(AHEAD, (x_m, y_m + dy, 0.2)) for dy in (-far, far)] for far in (0.018, 0.04))
        greens = [
            [picture[row - 1 : row + 2, column - 1 : column + 2, 1].mean() for column, row in at]
            for at in (inside, outside)
        ]
        assert min(greens[0]) > max(greens[1]) + 10


def test_a_wall_at_the_left_is_at_the_left() -> None:
    pose = Pose(1.0, 1.2, 0.0)
    picture = seen(a_room(), pose)
    redness = picture[..., 2] - picture[..., 0]  # of the floor only
    for x_m in (1.5, 1.6, 1.8, 2.2):
        column, row = pixel_of(pose, (x_m, 1.5, 0.0))
        assert redness[row, column - 12 : column - 6].max() < 15
        assert redness[row, column + 6 : column + 12].min() > 20


@pytest.mark.parametrize("texture_seed", [0, 1, 2])
def test_the_floor_ends_at_the_wall_whatever_it_is_made_of(texture_seed: int) -> None:
    picture = seen(a_room(texture_seed=texture_seed), Pose(2.0, 0.6, 0.0))
    redness = (picture[..., 2] - picture[..., 0])[:, 300:340].mean(axis=1)
    _, row = pixel_of(Pose(2.0, 0.6, 0.0), (4.0, 0.6, 0.0))
    assert redness[row - 8 : row - 2].max() < 10
    assert redness[row + 3 : row + 9].min() > 12


@pytest.mark.parametrize("texture_seed", [0, 1, 2])
def test_what_is_on_the_floor_stays_in_its_place_while_the_robot_moves(texture_seed: int) -> None:
    room = a_room(texture_seed=texture_seed)
    places = [(1.6 + 0.03 * i, -0.5 + 0.03 * j, 0.0) for i in range(20) for j in range(30)]
    looks = []
    for pose in (Pose(1.0, 0.1, -0.1), Pose(0.8, -0.2, 0.2)):
        picture = seen(room, pose).mean(axis=2)
        columns, rows = np.array([pixel_of(pose, place) for place in places]).T
        looks.append(picture[rows, columns])
    assert np.corrcoef(looks)[0, 1] > 0.7


@pytest.mark.parametrize("pose", [Pose(1.0, 0.0, 0.0), Pose(2.5, 0.4, 0.3), Pose(3.0, -0.5, -0.2)])
def test_the_skirting_board_is_nine_centimetres_high(pose: Pose) -> None:
    picture = seen(a_room(), pose).mean(axis=2)
    y_m = pose.y_m + math.tan(pose.yaw_rad + 0.25) * (4.0 - pose.x_m)  # left of the cup
    column, row = pixel_of(pose, (4.0, y_m, 0.09))
    around = picture[row - 6 : row + 7, column - 1 : column + 2].mean(axis=1)
    assert around.argmin() == pytest.approx(6, abs=1)  # the dark line along its upper edge


@pytest.mark.parametrize("texture_seed", [0, 1, 2])
def test_floor_and_walls_are_not_plain(texture_seed: int) -> None:
    picture = seen(a_room(texture_seed=texture_seed)).mean(axis=2)
    blurred = picture[: 480 // 8 * 8].reshape(60, 8, 80, 8).mean(axis=(1, 3))  # so that the noise is out of it
    assert blurred[40:].std() > 4
    assert blurred[:15].std() > 2


def test_a_tall_box_hides_the_cup_behind_it() -> None:
    assert red_columns(a_room(a_box(2.2, 0.0, height_m=0.6))).size == 0
    assert red_columns(a_room(a_box(2.2, 0.1, height_m=0.6, width_m=0.05, length_m=0.05))).size > 100


@pytest.mark.parametrize(
    "box",
    [
        a_box(3.4, 0.0, height_m=0.6),
        # Its near end is nearer than the cup and its middle too: distances would put it before the cup.
        a_box(2.7, -0.57, yaw_rad=0.75, length_m=2.2, width_m=0.1, height_m=0.6),
    ],
    ids=["further away", "slanting behind it"],
)
def test_a_cup_before_a_box_is_seen_whole(box: Box) -> None:
    with_box, without = seen(a_room(box)), seen(a_room())
    rows, columns = where(without, 2)
    still_red = with_box[rows, columns, 2] - with_box[rows, columns, 0] > 30
    assert still_red.mean() > 0.97  # all but its smoothed edge
    assert where(with_box, 0)[0].size > 2000


def test_the_nearer_of_two_boxes_hides_the_other_however_they_are_numbered() -> None:
    near, far = a_box(1.9, 0.0, width_m=0.4, height_m=0.5), a_box(2.7, 0.0, height_m=0.3, color=GREEN)
    for boxes in ((near, far), (far, near)):
        picture = seen(a_room(*boxes))
        assert where(picture, 0)[0].size > 5000
        assert where(picture, 1)[0].size == 0
        behind = seen(a_room(*boxes), Pose(3.7, 0.0, math.pi))
        assert where(behind, 1)[0].size > 2000


def test_the_same_room_pose_and_number_give_the_same_bytes_whatever_was_painted_before() -> None:
    room = a_room(a_box(2.0, -0.3), a_box(3.2, 0.9, color=GREEN))
    one, other = Painter(room), Painter(room)
    draw = random.Random(3)
    poses = [Pose(draw.uniform(0.2, 3.8), draw.uniform(-1.3, 1.3), draw.uniform(-4, 4)) for _ in range(80)]
    first = np.zeros((80, 480, 640, 3), np.uint8)
    for number, pose in enumerate(poses):
        one.paint(pose, number, first[number])
    again = np.full((480, 640, 3), 255, np.uint8)
    for number, pose in reversed(list(enumerate(poses))):
        other.paint(pose, number, again)
        assert np.array_equal(again, first[number]), pose


def test_noise_changes_every_row_of_every_picture() -> None:
    painter = painter_of(a_room())
    out = np.zeros((480, 640, 3), np.uint8)
    sums = set()
    rows = []
    for number in range(60):
        painter.paint(AHEAD, number, out)
        sums.add(zlib.crc32(out[::16].tobytes()))
        rows.append([row.tobytes() for row in out])
    assert len(sums) == 60
    for before, after in pairwise(rows):
        assert sum(one == other for one, other in zip(before, after, strict=True)) == 0


def test_noise_is_small_and_the_rooms_own() -> None:
    difference = seen(a_room(), number=1) - seen(a_room(), number=2)
    assert 1 < difference.std() < 5
    assert abs(difference.mean()) < 0.05
    assert np.abs(difference).max() <= 20
    assert not np.array_equal(seen(a_room()), seen(a_room(seed=8)))


def poses_everywhere() -> list[Pose]:
    """Random ones, also beyond the walls and in the things, and a robot's radius from box, cup and walls."""
    draw = random.Random(11)
    poses = [Pose(draw.uniform(-0.3, 4.3), draw.uniform(-1.8, 1.8), draw.uniform(-7, 7)) for _ in range(150)]
    for step in range(24):
        yaw_rad = step * math.tau / 24
        poses += [Pose(x_m, y_m, yaw_rad) for x_m, y_m in ((0.18, 1.32), (3.82, -1.32), (2.0, -0.3 + 0.331))]
        at = (3.0 - 0.27 * math.cos(yaw_rad), -0.27 * math.sin(yaw_rad))
        poses += [Pose(*at, yaw_rad + aside) for aside in (-0.9, 0.0, 0.5)]
    return poses


def test_every_pose_gives_a_picture_that_is_neither_black_nor_white() -> None:
    room = a_room(a_box(2.0, -0.3, yaw_rad=0.0), a_box(0.9, 0.9, color=GREEN, height_m=0.5))
    painter = Painter(room)
    out = np.zeros((480, 640, 3), np.uint8)
    for pose in poses_everywhere():
        painter.paint(pose, 5, out)
        assert out[::16, ::16].max() >= 60, pose
        assert out.max() < 255, pose
        assert 40 < out[::8, ::8].mean() < 230, pose


def test_a_robot_that_touches_sees_the_thing_from_near() -> None:
    room = a_room(a_box(2.0, 0.0, yaw_rad=0.0, height_m=0.6))
    at_box = Pose(2.0 - 0.20 - 0.18, 0.0, 0.0)
    assert where(seen(room, at_box), 0)[0].size > 0.95 * 480 * 640
    at_cup = Pose(3.0 - 0.09 - 0.18, 0.0, 0.0)
    assert np.ptp(red_columns(a_room(), at_cup)) > 350


def test_a_cup_is_red_outside_and_pale_inside() -> None:
    pose = Pose(3.0 - 0.09 - 0.25, 0.0, 0.0)
    picture = seen(a_room(), pose)
    for place, red in (((3.0 - 0.08, 0.0, 0.18), True), ((3.0 + 0.07, 0.0, 0.18), False)):
        column, row = pixel_of(pose, place)
        blue, _, redness = picture[row, column]
        assert (redness - blue > 60) == red


def test_more_gain_is_brighter_and_neither_end_is_lost() -> None:
    bright = {"wall_color": (230.0, 230.0, 230.0), "floor_color": (150.0, 150.0, 155.0)}
    means = []
    for gain in (0.6, 0.8, 1.0, 1.2):
        light = Light(gain, (1.06, 1.03, 1.08), 2.0, 0.0, falloff=0.0)
        picture = seen(a_room(light=light, **bright))
        means.append(picture.mean())
        assert picture.max() < 255
    assert means == sorted(means)
    assert means[-1] > 1.3 * means[0]
    dim = Light(0.6, (0.88, 0.95, 0.92), 0.0, -1.5, falloff=1.0)
    dark = seen(a_room(light=dim, wall_color=(150.0, 150.0, 150.0), floor_color=(70.0, 80.0, 80.0)))
    assert (dark.max(axis=(1, 2)) >= 16).all()


def test_it_is_darker_away_from_the_lamp() -> None:
    near_left = Light(1.0, (1.0, 1.0, 1.0), 2.0, 1.5, falloff=1.0)
    picture = seen(a_room(light=near_left))
    assert picture[200:400, :200].mean() > 1.1 * picture[200:400, 440:].mean()
    even = seen(a_room())
    assert picture[200:400].mean() < even[200:400].mean()


def test_a_tint_colors_the_picture() -> None:
    warm = seen(a_room(light=replace(EVEN_LIGHT, tint=(0.8, 1.0, 1.1)))).mean(axis=(0, 1))
    plain = seen(a_room()).mean(axis=(0, 1))
    assert warm[0] < 0.9 * plain[0]
    assert warm[1] == pytest.approx(plain[1], rel=0.01)
    assert warm[2] > 1.04 * plain[2]


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((640, 480, 3), np.uint8),
        np.zeros((480, 640, 4), np.uint8),
        np.zeros((480, 640, 3), np.float32),
        np.zeros((480, 1280, 3), np.uint8)[:, ::2],
    ],
    ids=["turned", "four channels", "float", "with gaps"],
)
def test_a_picture_of_another_kind_is_refused(out: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"expected \(480, 640, 3\) uint8, contiguous"):
        painter_of(a_room()).paint(AHEAD, 0, out)
