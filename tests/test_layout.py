"""Rooms from seeds: the same again, fair, and of many kinds."""

from __future__ import annotations

import math

import pytest

from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.room import Box, Pose, Room

ROOMS = [make_room(seed) for seed in range(300)]
ROBOT_RADIUS_M = 0.18
ROOM_11_START = (0.5026189314525321, -0.03616771096436078, -0.10979815769992174)
ROOM_11_CUP = (3.557704527029409, -0.30592462829775835)
ROOM_11_BOXES = [(1.7924410083941713, -0.11278246694390091), (3.8591497688399437, 0.6252795897584247)]
ROOM_11_TEXTURE = 494552993


def from_start_m(room: Room) -> float:
    return math.hypot(room.cup.x_m - room.start.x_m, room.cup.y_m - room.start.y_m)


def in_the_way_of(room: Room, box: Box) -> tuple[float, float]:
    """How far the box's middle lies along the way from start to cup, and how far to the left of it."""
    way_rad = math.atan2(room.cup.y_m - room.start.y_m, room.cup.x_m - room.start.x_m)
    dx, dy = box.x_m - room.start.x_m, box.y_m - room.start.y_m
    along_m = dx * math.cos(way_rad) + dy * math.sin(way_rad)
    return along_m, dy * math.cos(way_rad) - dx * math.sin(way_rad)


def corners(box: Box) -> list[tuple[float, float]]:
    cos, sin = math.cos(box.yaw_rad), math.sin(box.yaw_rad)
    ends = [(a * box.length_m / 2, b * box.width_m / 2) for a in (-1, 1) for b in (-1, 1)]
    return [(box.x_m + cos * a - sin * b, box.y_m + sin * a + cos * b) for a, b in ends]


def bearing_deg(pose: Pose, x_m: float, y_m: float) -> float:
    """From the camera, 0.12 m in front of the robot's middle."""
    cos, sin = math.cos(pose.yaw_rad), math.sin(pose.yaw_rad)
    dx, dy = x_m - pose.x_m, y_m - pose.y_m
    return math.degrees(math.atan2(dy * cos - dx * sin, dx * cos + dy * sin - 0.12))


def to_walls_m(room: Room, x_m: float, y_m: float) -> float:
    return min(x_m - room.west_m, room.east_m - x_m, y_m - room.south_m, room.north_m - y_m)


def test_a_seed_is_the_same_room_again_and_another_seed_another_room() -> None:
    assert [make_room(seed) for seed in range(300)] == ROOMS
    assert [room.seed for room in ROOMS] == list(range(300))
    assert len({(room.start, room.texture_seed) for room in ROOMS}) == 300
    assert make_room(-1).start != make_room(1).start


def test_the_rooms_stay_what_they_were_when_the_policy_was_trained() -> None:
    room = ROOMS[11]
    assert (room.start.x_m, room.start.y_m, room.start.yaw_rad) == pytest.approx(ROOM_11_START, abs=1e-9)
    assert (room.cup.x_m, room.cup.y_m) == pytest.approx(ROOM_11_CUP, abs=1e-9)
    assert [(box.x_m, box.y_m) for box in room.boxes] == [pytest.approx(at, abs=1e-9) for at in ROOM_11_BOXES]
    assert room.texture_seed == ROOM_11_TEXTURE


def test_the_cup_is_ahead_and_the_box_between() -> None:
    for room in ROOMS:
        assert 2.6 <= from_start_m(room) <= 3.6
        assert abs(room.start.yaw_rad) <= 0.25
        along_m, left_m = in_the_way_of(room, room.boxes[0])
        assert 1.1 <= along_m <= from_start_m(room) - 1.2
        assert abs(left_m) <= 0.35


def test_box_and_cup_are_in_the_picture_at_the_start() -> None:
    for room in ROOMS:
        assert abs(bearing_deg(room.start, room.cup.x_m, room.cup.y_m)) < 41
        assert all(abs(bearing_deg(room.start, *corner)) < 44 for corner in corners(room.boxes[0]))


def test_the_box_can_be_passed_on_both_sides() -> None:
    for room in ROOMS:
        way_rad = math.atan2(room.cup.y_m - room.start.y_m, room.cup.x_m - room.start.x_m)
        box = room.boxes[0]
        aside_m = math.hypot(box.length_m, box.width_m) / 2 + ROBOT_RADIUS_M + 0.15
        for turn in (-1, 1):
            x_m = box.x_m - turn * aside_m * math.sin(way_rad)
            y_m = box.y_m + turn * aside_m * math.cos(way_rad)
            assert to_walls_m(room, x_m, y_m) > ROBOT_RADIUS_M + 0.25
            for other in room.boxes[1:]:
                assert min(math.hypot(x_m - u, y_m - v) for u, v in corners(other)) > ROBOT_RADIUS_M + 0.25


def test_all_is_inside_the_walls_and_nothing_in_anything_else() -> None:
    for room in ROOMS:
        assert to_walls_m(room, room.start.x_m, room.start.y_m) > ROBOT_RADIUS_M + 0.2
        assert to_walls_m(room, room.cup.x_m, room.cup.y_m) > 0.4
        for box in room.boxes:
            assert all(to_walls_m(room, *corner) > 0.0 for corner in corners(box))
        for other in room.boxes[1:]:
            assert math.hypot(other.x_m - room.boxes[0].x_m, other.y_m - room.boxes[0].y_m) > 1.0
            radius_m = math.hypot(other.length_m, other.width_m) / 2
            for x_m, y_m in [(room.start.x_m, room.start.y_m), (room.cup.x_m, room.cup.y_m), *corners(room.boxes[0])]:
                assert math.hypot(other.x_m - x_m, other.y_m - y_m) > radius_m + ROBOT_RADIUS_M


def test_the_things_have_the_sizes_and_colors_that_tell_them_apart() -> None:
    for room in ROOMS:
        assert 0.08 < room.cup.radius_m < 0.10
        assert 0.19 < room.cup.height_m < 0.25
        blue, green, red = room.cup.color
        assert red > 2 * max(blue, green)
        blue, green, red = room.boxes[0].color
        assert red > green > blue
        for other in room.boxes[1:]:
            assert other.color[0] > other.color[2]
        assert all(0 <= part <= 255 for part in (*room.wall_color, *room.floor_color))
        assert 0 <= room.texture_seed < 2**31


def test_rooms_are_of_many_kinds() -> None:
    with_second_box = sum(len(room.boxes) == 2 for room in ROOMS)
    assert all(len(room.boxes) in {1, 2} for room in ROOMS)
    assert 120 < with_second_box < 190
    lefts = [in_the_way_of(room, room.boxes[0])[1] for room in ROOMS]
    assert min(lefts) < -0.25 < 0.25 < max(lefts)
    assert 110 < sum(left > 0 for left in lefts) < 190
    assert {round(room.light.gain, 1) for room in ROOMS} >= {0.7, 0.8, 0.9, 1.0, 1.1, 1.2}
    assert min(room.start.yaw_rad for room in ROOMS) < -0.2 < 0.2 < max(room.start.yaw_rad for room in ROOMS)
    assert max(from_start_m(room) for room in ROOMS) - min(from_start_m(room) for room in ROOMS) > 0.8
