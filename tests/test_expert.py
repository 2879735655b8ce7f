"""The expert drives rooms from seeds, through the policy process's shaper and the body's inertia and slip."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from mvla_daemon.core.limits import AxisLimit, VelocityShaper
from mvla_daemon.core.messages import Velocity
from mvla_daemon.motors.link_v1 import Arm, Drive, Hello, Packet, encode
from mvla_daemon.sim.controller import Controller
from mvla_daemon.sim.expert import expert
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.room import Box, Pose, Room, Side
from mvla_daemon.sim.world import Outcome, World, gap_to_box_m

MS = 1_000_000
LIMITS = (AxisLimit(0.5, 1.0), AxisLimit(0.5, 1.0), AxisLimit(1.5, 4.0))
ROOMS = [make_room(seed) for seed in range(60)]
SIDES = (Side.LEFT, Side.RIGHT)
BOTH_SIDES = pytest.mark.parametrize("side", SIDES)


def drive(
    world: World,
    driver: Callable[[Pose], Velocity],
    *,
    delay_ms: int = 0,
    noise: float = 0.0,
) -> list[tuple[Pose, Velocity]]:
    """Command at 50 Hz until the drive is over; where the driver was, and what it said.

    The controller's own ramp is left out: it follows such commands within 4 ms.
    """
    shaper, spread = VelocityShaper(LIMITS), random.Random(world.room.seed)
    said: list[tuple[Pose, Velocity]] = []
    underway: deque[tuple[int, Velocity]] = deque()
    wheels, now_ns = Velocity(), 0
    while world.outcome is Outcome.RUNNING:
        if now_ns % (20 * MS) == 0:
            said.append((world.pose, driver(world.pose)))
            vx, vy, wz = (v * spread.gauss(1.0, noise) for v in said[-1][1].as_tuple())
            underway.append((now_ns + delay_ms * MS, Velocity(*shaper.shape((vx, vy, wz), now_ns))))
        while underway and underway[0][0] <= now_ns:
            wheels = underway.popleft()[1]
        now_ns += 5 * MS
        world.advance(now_ns, wheels)
    return said


def by_expert(room: Room, side: Side) -> Callable[[Pose], Velocity]:
    return lambda pose: expert(room, pose, side)


def corners(box: Box) -> list[tuple[float, float, float]]:
    cos, sin = math.cos(box.yaw_rad), math.sin(box.yaw_rad)
    ends = [(a * box.length_m / 2, b * box.width_m / 2) for a in (-1, 1) for b in (-1, 1)]
    floor = [(box.x_m + cos * a - sin * b, box.y_m + sin * a + cos * b) for a, b in ends]
    return [(x_m, y_m, z_m) for x_m, y_m in floor for z_m in (0.0, box.height_m)]


def in_picture(pose: Pose, x_m: float, y_m: float, z_m: float) -> bool:
    """Of a camera 0.12 m in front of the robot's middle, 0.30 m up, looking 0.21 rad down; 640x480, 330 px focal."""
    cos, sin = math.cos(pose.yaw_rad), math.sin(pose.yaw_rad)
    dx, dy, down = x_m - pose.x_m, y_m - pose.y_m, 0.30 - z_m
    ahead, left = dx * cos + dy * sin - 0.12, dy * cos - dx * sin
    depth, below = ahead * math.cos(0.21) + down * math.sin(0.21), down * math.cos(0.21) - ahead * math.sin(0.21)
    return depth > 0 and abs(330 * left / depth) < 320 and abs(330 * below / depth) < 240


def to_cup(room: Room, pose: Pose) -> tuple[float, float]:
    """Metres and degrees, from the robot's middle and where it looks."""
    dx, dy = room.cup.x_m - pose.x_m, room.cup.y_m - pose.y_m
    off_rad = math.remainder(math.atan2(dy, dx) - pose.yaw_rad, math.tau)
    return math.hypot(dx, dy), math.degrees(off_rad)


@pytest.fixture(scope="module")
def drives() -> list[tuple[World, list[tuple[Pose, Velocity]]]]:
    """Sixty rooms, each on both sides, without delay or noise."""
    worlds = [World(room, side, seed=room.seed) for room in ROOMS for side in SIDES]
    return [(world, drive(world, by_expert(world.room, world.side))) for world in worlds]


Drives = list[tuple[World, list[tuple[Pose, Velocity]]]]


def test_it_reaches_the_cup_in_every_room_on_the_side_asked_for(drives: Drives) -> None:
    for world, _ in drives:
        assert (world.room.seed, world.outcome, world.passed) == (world.room.seed, Outcome.REACHED, world.side)


def test_it_takes_about_ten_seconds_and_keeps_its_distance(drives: Drives) -> None:
    for world, said in drives:
        assert world.duration_ns is not None
        assert 7.5 < world.duration_ns / 1e9 < 13.5
        for i, box in enumerate(world.room.boxes):
            assert min(gap_to_box_m(box, pose.x_m, pose.y_m) for pose, _ in said) > 0.18 + (0.15 if i else 0.10)


def test_it_stays_inside_its_limits_and_never_jumps(drives: Drives) -> None:
    for _, said in drives:
        for (_, last), (_, wish) in pairwise(said):
            assert math.hypot(wish.linear_x_mps, wish.linear_y_mps) <= 0.45
            assert abs(wish.angular_z_radps) <= 0.9
            assert math.hypot(wish.linear_x_mps - last.linear_x_mps, wish.linear_y_mps - last.linear_y_mps) < 0.02
            assert abs(wish.angular_z_radps - last.angular_z_radps) < 0.08


def test_it_always_sees_the_cup(drives: Drives) -> None:
    for world, said in drives:
        cup = world.room.cup
        assert all(in_picture(pose, cup.x_m, cup.y_m, cup.height_m / 2) for pose, _ in said)


def test_where_it_does_not_see_the_box_it_goes_straight_for_the_cup(drives: Drives) -> None:
    """A driver without memory could do nothing else there."""
    unseen = 0
    for world, said in drives:
        for pose, wish in said:
            if any(in_picture(pose, *corner) for corner in corners(world.room.boxes[0])):
                continue
            way_deg = math.degrees(math.atan2(wish.linear_y_mps, wish.linear_x_mps))
            assert way_deg == pytest.approx(to_cup(world.room, pose)[1], abs=0.5)
            unseen += 1
    assert unseen > 10_000


def test_it_gets_there_with_late_commands_and_noise() -> None:
    for room in ROOMS:
        side = SIDES[room.seed % 2]
        world = World(room, side, seed=room.seed + 1000)
        drive(world, by_expert(room, side), delay_ms=30, noise=0.05)
        assert (room.seed, world.outcome) == (room.seed, Outcome.REACHED)


@BOTH_SIDES
def test_told_the_other_side_it_passes_on_the_wrong_one(side: Side) -> None:
    (other,) = set(SIDES) - {side}
    for room in ROOMS[:5]:
        world = World(room, side, seed=1)
        drive(world, by_expert(room, other))
        assert world.outcome is Outcome.WRONG_SIDE


def test_a_driver_that_ignores_the_box_runs_into_it_or_passes_it_on_a_side_of_its_own() -> None:
    outcomes = set()
    for room in ROOMS[:20]:
        world = World(room, Side.LEFT, seed=1)
        drive(world, lambda pose, room=room: Velocity(0.3, 0.0, math.radians(to_cup(room, pose)[1])))  # type: ignore[misc]
        outcomes.add(world.outcome)
    assert Outcome.TOUCHED_BOX in outcomes
    assert Outcome.REACHED not in outcomes


def test_it_comes_to_rest_in_front_of_the_cup_and_stays_there() -> None:
    room = ROOMS[4]
    world = World(room, Side.LEFT, seed=4)
    drive(world, by_expert(room, Side.LEFT))
    for _ in range(200):
        world.advance(world.next_step_ns + 15 * MS, expert(room, world.pose, Side.LEFT))
    distance_m, off_deg = to_cup(room, world.pose)
    assert distance_m == pytest.approx(0.42, abs=0.01)
    assert abs(off_deg) < 1.0
    assert math.hypot(world.velocity.linear_x_mps, world.velocity.linear_y_mps) < 0.01


def test_too_near_the_cup_it_backs_off() -> None:
    cup = ROOMS[4].cup
    wish = expert(ROOMS[4], Pose(cup.x_m - 0.30, cup.y_m, 0.0), Side.LEFT)
    assert wish.linear_x_mps == pytest.approx(-0.12, abs=0.01)
    assert abs(wish.linear_y_mps) < 0.01


@BOTH_SIDES
def test_right_in_front_of_the_box_the_instruction_decides(side: Side) -> None:
    room = ROOMS[4]
    box, cup = replace(room.boxes[0], x_m=2.0, y_m=0.0), replace(room.cup, x_m=3.4, y_m=0.0)
    wish = expert(replace(room, boxes=(box,), cup=cup), Pose(1.2, 0.0, 0.0), side)
    assert wish.linear_y_mps * (1 if side is Side.LEFT else -1) > 0.1
    assert wish.linear_x_mps > 0.1


def test_left_and_right_are_mirror_images() -> None:
    room = ROOMS[4]
    box, cup = replace(room.boxes[0], x_m=2.0, y_m=0.1), replace(room.cup, x_m=3.4, y_m=-0.2)
    mirrored_box, mirrored_cup = replace(box, y_m=-0.1, yaw_rad=-box.yaw_rad), replace(cup, y_m=0.2)
    left = expert(replace(room, boxes=(box,), cup=cup), Pose(1.1, 0.3, 0.2), Side.LEFT)
    right = expert(replace(room, boxes=(mirrored_box,), cup=mirrored_cup), Pose(1.1, -0.3, -0.2), Side.RIGHT)
    assert right.as_tuple() == pytest.approx((left.linear_x_mps, -left.linear_y_mps, -left.angular_z_radps))


@BOTH_SIDES
@pytest.mark.parametrize("aside_m", [-0.5, -0.25, 0.25, 0.5])
@pytest.mark.parametrize("off_deg", [-40, 40])
def test_it_finds_its_way_from_odd_places(side: Side, aside_m: float, off_deg: float) -> None:
    for room in ROOMS[:4]:
        box = room.boxes[0]
        x_m, y_m = box.x_m - 0.6, box.y_m + aside_m
        yaw_rad = math.atan2(room.cup.y_m - y_m, room.cup.x_m - x_m) + math.radians(off_deg)
        world = World(replace(room, start=Pose(x_m, y_m, yaw_rad)), side, seed=1)
        drive(world, by_expert(room, side))
        assert (room.seed, world.outcome) == (room.seed, Outcome.REACHED)


@BOTH_SIDES
def test_beside_a_box_that_it_nearly_touches_it_moves_off(side: Side) -> None:
    room = ROOMS[4]
    turn = 1 if side is Side.LEFT else -1
    box = replace(room.boxes[0], x_m=2.0, y_m=0.0, yaw_rad=0.0)
    cup = replace(room.cup, x_m=3.4, y_m=0.0)
    beside = Pose(2.1, turn * (box.width_m / 2 + 0.18 + 0.02), 0.0)
    for boxes in ((box,), (replace(box, x_m=1.0, y_m=-turn * 1.0), box)):
        wish = expert(replace(room, boxes=boxes, cup=cup), beside, side)
        assert turn * wish.linear_y_mps > 0.05


def test_near_a_wall_it_keeps_off() -> None:
    room = replace(ROOMS[4], boxes=ROOMS[4].boxes[:1])
    near, far = (Pose(1.0, room.north_m - 0.18 - gap_m, 0.0) for gap_m in (0.02, 0.25))
    assert expert(room, near, Side.LEFT).linear_y_mps < expert(room, far, Side.LEFT).linear_y_mps - 0.1


@BOTH_SIDES
def test_it_drives_through_the_controllers_own_ramp_and_link(side: Side) -> None:
    room = ROOMS[4]
    controller, shaper, world = Controller(), VelocityShaper(LIMITS), World(room, side, seed=1)
    controller.receive(encode(Packet(0, 1, Hello(nonce=7))) + encode(Packet(5, 2, Arm(watchdog_ms=100))), 0)
    now_ns, seq = 0, 2
    while world.outcome is Outcome.RUNNING:
        if now_ns % (20 * MS) == 0:
            seq += 1
            vx, vy, wz = (round(v * 1e6) for v in shaper.shape(expert(room, world.pose, side).as_tuple(), now_ns))
            command = Drive(cycle=seq, ttl_ms=60, vx_umps=vx, vy_umps=vy, wz_uradps=wz)
            controller.receive(encode(Packet(5, seq, command)), now_ns)
        now_ns += 5 * MS
        controller.tick(now_ns)
        world.advance(now_ns, controller.velocity)
    assert world.outcome is Outcome.REACHED
