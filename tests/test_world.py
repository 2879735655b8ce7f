"""A drive: what counts as touching, on which side the box was passed, and when it is over."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest

from mvla_daemon.core.messages import Velocity
from mvla_daemon.sim.room import Box, Cup, Light, Pose, Room, Side
from mvla_daemon.sim.world import Outcome, World, gap_to_box_m, touched

MS = 1_000_000
SECOND = 1_000_000_000
BROWN, BLUE, RED = (60.0, 110.0, 170.0), (160.0, 110.0, 80.0), (40.0, 40.0, 200.0)
A_HAIR = 1e-6
STILL = Velocity()
AHEAD, BACK = Velocity(0.4, 0.0, 0.0), Velocity(-0.4, 0.0, 0.0)
LEFT, RIGHT = Velocity(0.0, 0.4, 0.0), Velocity(0.0, -0.4, 0.0)

ROOM = Room(
    seed=0,
    west_m=0.0,
    east_m=4.5,
    south_m=-2.0,
    north_m=2.0,
    wall_height_m=2.0,
    wall_color=(200.0, 200.0, 200.0),
    floor_color=(120.0, 120.0, 120.0),
    texture_seed=1,
    start=Pose(0.6, 0.0, 0.0),
    cup=Cup(3.6, 0.0, 0.09, 0.22, RED),
    boxes=(Box(2.0, 0.0, 0.0, 0.4, 0.2, 0.2, BROWN), Box(1.0, 1.4, math.pi / 4, 0.4, 0.2, 0.2, BLUE)),
    light=Light(1.0, (1.0, 1.0, 1.0), 2.0, 0.0, 0.3),
)


def drive(world: World, *legs: tuple[Velocity, float], every_ms: int = 5) -> World:
    """Turn the wheels for so many seconds each, until the drive is over."""
    now_ms = 0
    for wheels, for_s in legs:
        end_ms = now_ms + round(for_s * 1000)
        while now_ms < end_ms and world.outcome is Outcome.RUNNING:
            now_ms += every_ms
            world.advance(now_ms * MS, wheels)
    return world


def drive_to(world: World, *places: tuple[float, float]) -> World:
    """Drive straight from place to place, looking east, slower near each."""
    now_ns = 0
    for x_m, y_m in places:
        for _ in range(1500):
            dx, dy = x_m - world.pose.x_m, y_m - world.pose.y_m
            if math.hypot(dx, dy) < 0.02 or world.outcome is not Outcome.RUNNING:
                break
            speed = min(0.4, 1.0 * math.hypot(dx, dy)) / math.hypot(dx, dy)
            now_ns += 20 * MS
            world.advance(now_ns, Velocity(speed * dx, speed * dy, -2 * world.pose.yaw_rad))
    return world


def test_the_gap_to_a_box_is_to_its_nearest_side_or_corner() -> None:
    box = Box(1.0, 1.0, 0.0, 0.4, 0.2, 0.2, BROWN)
    assert gap_to_box_m(box, 1.5, 1.05) == pytest.approx(0.3)
    assert gap_to_box_m(box, 0.9, 0.5) == pytest.approx(0.4)
    assert gap_to_box_m(box, 1.5, 1.5) == pytest.approx(0.5)
    assert gap_to_box_m(box, 1.1, 0.95) == 0.0


def test_the_gap_to_a_turned_box_turns_with_it() -> None:
    box = Box(1.0, 1.0, math.radians(30), 0.4, 0.2, 0.2, BROWN)
    for along, across, gap in ((0.5, 0.05, 0.3), (-0.1, -0.5, 0.4), (0.5, 0.5, 0.5), (-0.5, 0.5, 0.5), (0.1, 0.05, 0)):
        x_m = 1.0 + along * math.cos(math.radians(30)) - across * math.sin(math.radians(30))
        y_m = 1.0 + along * math.sin(math.radians(30)) + across * math.cos(math.radians(30))
        assert gap_to_box_m(box, x_m, y_m) == pytest.approx(gap)


CORNER = 0.18 / math.sqrt(2)


@pytest.mark.parametrize(
    ("x_m", "y_m", "away", "thing"),
    [
        (2.0 - 0.2 - 0.18, 0.0, (-1, 0), Outcome.TOUCHED_BOX),
        (2.0, 0.1 + 0.18, (0, 1), Outcome.TOUCHED_BOX),
        (2.2 + CORNER, -0.1 - CORNER, (1, -1), Outcome.TOUCHED_BOX),
        (1.0 + (0.2 + 0.18) / math.sqrt(2), 1.4 + (0.2 + 0.18) / math.sqrt(2), (1, 1), Outcome.TOUCHED_OTHER_BOX),
        (1.0 + (0.1 + 0.18) / math.sqrt(2), 1.4 - (0.1 + 0.18) / math.sqrt(2), (1, -1), Outcome.TOUCHED_OTHER_BOX),
        (3.6 - 0.27, 0.0, (-1, 0), Outcome.TOUCHED_CUP),
        (3.6, 0.27, (0, 1), Outcome.TOUCHED_CUP),
        (0.18, 0.5, (1, 0), Outcome.TOUCHED_WALL),
        (4.5 - 0.18, 0.5, (-1, 0), Outcome.TOUCHED_WALL),
        (3.0, -2.0 + 0.18, (0, 1), Outcome.TOUCHED_WALL),
        (3.0, 2.0 - 0.18, (0, -1), Outcome.TOUCHED_WALL),
    ],
)
def test_touching_begins_at_the_robots_edge(x_m: float, y_m: float, away: tuple[int, int], thing: Outcome) -> None:
    assert touched(ROOM, x_m + away[0] * A_HAIR, y_m + away[1] * A_HAIR) is None
    assert touched(ROOM, x_m - away[0] * A_HAIR, y_m - away[1] * A_HAIR) is thing


@pytest.mark.parametrize(
    ("start", "wheels", "outcome"),
    [
        (Pose(0.6, 0.0, 0.0), AHEAD, Outcome.TOUCHED_BOX),
        (Pose(1.0, 0.0, 0.0), LEFT, Outcome.TOUCHED_OTHER_BOX),
        (Pose(0.6, 0.0, 0.0), BACK, Outcome.TOUCHED_WALL),
        (Pose(0.6, 0.0, 0.0), RIGHT, Outcome.TOUCHED_WALL),
        (Pose(2.6, 0.0, 0.0), AHEAD, Outcome.TOUCHED_CUP),
    ],
)
def test_what_it_touches_ends_the_drive_and_holds_it_for_good(start: Pose, wheels: Velocity, outcome: Outcome) -> None:
    world = drive(World(replace(ROOM, start=start), Side.LEFT, seed=1), (wheels, 10))
    assert world.outcome is outcome
    stuck = world.pose
    assert touched(ROOM, stuck.x_m, stuck.y_m) is outcome
    assert world.velocity == STILL
    world.advance(world.next_step_ns + SECOND, Velocity(-0.4, 0.3, 0.5))
    assert world.outcome is outcome
    assert world.pose == stuck
    assert world.next_step_ns > 1000 * MS


def test_it_stops_at_an_edge_within_a_step() -> None:
    world = drive(World(ROOM, Side.LEFT, seed=1), (AHEAD, 10))
    assert 0.18 - 0.4 * 1.1 * 0.005 < gap_to_box_m(ROOM.boxes[0], world.pose.x_m, world.pose.y_m) <= 0.18


@pytest.mark.parametrize(("side", "y_m"), [(Side.LEFT, 0.6), (Side.RIGHT, -0.6)])
def test_the_cup_is_reached_past_the_box_on_the_side_asked_for(side: Side, y_m: float) -> None:
    world = drive_to(World(ROOM, side, seed=1), (1.5, y_m), (2.5, y_m), (3.15, 0.0))
    now_ns = world.next_step_ns
    assert world.outcome in {Outcome.RUNNING, Outcome.REACHED}
    assert world.passed is side
    world.advance(now_ns + 500 * MS, STILL)
    assert world.outcome is Outcome.REACHED


@pytest.mark.parametrize(("side", "y_m"), [(Side.LEFT, -0.6), (Side.RIGHT, 0.6)])
def test_the_other_side_is_wrong_from_the_line_through_the_box_on(side: Side, y_m: float) -> None:
    world = drive_to(World(ROOM, side, seed=1), (1.5, y_m), (1.95, y_m))
    assert world.outcome is Outcome.RUNNING
    world.advance(world.next_step_ns + SECOND, AHEAD)
    assert world.outcome is Outcome.WRONG_SIDE
    assert world.duration_ns is not None
    assert world.track[-1].pose.x_m == pytest.approx(2.0, abs=0.02)
    assert world.pose.x_m > 2.2


def test_the_side_is_judged_across_the_way_from_start_to_cup() -> None:
    """Here the way runs north, so left is west."""
    turned = replace(ROOM, start=Pose(2.0, -1.6, math.pi / 2), cup=replace(ROOM.cup, x_m=2.0, y_m=1.6))
    world = drive_to(World(turned, Side.LEFT, seed=1), (1.4, -1.0), (1.4, 0.1))
    assert world.passed is Side.LEFT
    assert world.outcome is Outcome.RUNNING


def test_going_back_over_the_line_undoes_having_passed() -> None:
    world = World(ROOM, Side.LEFT, seed=1)
    drive_to(world, (1.5, 0.6), (2.2, 0.6))
    assert world.passed is Side.LEFT
    world.advance(world.next_step_ns + 2 * SECOND, BACK)
    assert world.passed is None
    assert world.outcome is Outcome.RUNNING


def past_the_box(seed: int = 1) -> World:
    """A robot at about 0.46 m from the cup that is still fast."""
    world = drive_to(World(ROOM, Side.LEFT, seed), (1.5, 0.6), (2.5, 0.6), (3.03, 0.0))
    world.advance(world.next_step_ns + 320 * MS, AHEAD)
    assert 0.43 < math.hypot(world.pose.x_m - 3.6, world.pose.y_m) < 0.49
    assert world.velocity.linear_x_mps > 0.3
    assert world.outcome is Outcome.RUNNING
    return world


def test_reached_takes_three_tenths_of_a_second_of_slowness() -> None:
    world = past_the_box()
    slow_for_ms: list[int] = [0]
    while world.outcome is Outcome.RUNNING:
        jerk = max(slow_for_ms) > 200 and len(slow_for_ms) < 120
        world.advance(world.next_step_ns, Velocity(0.0, 0.2 if jerk else 0.0, 0.0))
        slow = math.hypot(world.velocity.linear_x_mps, world.velocity.linear_y_mps) < 0.08
        slow_for_ms.append(slow_for_ms[-1] + 5 if slow else 0)
    assert slow_for_ms.count(5) == 2
    assert slow_for_ms[-1] == 305


def test_near_but_fast_is_not_reached_and_neither_is_slow_but_far() -> None:
    fast = past_the_box()
    fast.advance(fast.next_step_ns + 900 * MS, Velocity(0.0, 0.1, 0.0))
    assert math.hypot(fast.pose.x_m - 3.6, fast.pose.y_m) < 0.5
    assert fast.outcome is Outcome.RUNNING
    far = drive_to(World(ROOM, Side.LEFT, seed=1), (1.5, 0.6), (2.5, 0.6), (3.09, 0.0))
    far.advance(far.next_step_ns + 2 * SECOND, STILL)
    assert 0.5 < math.hypot(far.pose.x_m - 3.6, far.pose.y_m) < 0.54
    assert far.outcome is Outcome.RUNNING


def test_a_robot_that_never_came_past_the_box_has_not_reached_the_cup() -> None:
    world = drive_to(World(replace(ROOM, start=Pose(2.8, 0.0, 0.0)), Side.LEFT, seed=1), (3.2, 0.0))
    world.advance(world.next_step_ns + SECOND, STILL)
    assert math.hypot(world.pose.x_m - 3.6, world.pose.y_m) < 0.48
    assert (world.passed, world.outcome) == (None, Outcome.RUNNING)


@pytest.mark.parametrize("y_m", [-0.6, 0.6])
def test_without_a_side_asked_for_either_will_do(y_m: float) -> None:
    world = drive_to(World(ROOM, None, seed=1), (1.5, y_m), (2.5, y_m), (3.18, 0.0))
    world.advance(world.next_step_ns + SECOND, STILL)
    assert world.outcome is Outcome.REACHED
    assert world.passed is (Side.LEFT if y_m > 0 else Side.RIGHT)


def test_a_drive_takes_half_a_minute_at_most_counted_from_its_first_motion() -> None:
    world = World(ROOM, Side.LEFT, seed=1)
    world.advance(100 * SECOND, STILL)
    assert world.outcome is Outcome.RUNNING
    assert world.track == []
    world.advance(100 * SECOND + 5 * MS, Velocity(0.0, 0.0, 0.2))
    world.advance(130 * SECOND - 5 * MS, STILL)
    assert world.outcome is Outcome.RUNNING
    world.advance(130 * SECOND, STILL)
    assert world.outcome is Outcome.TIMEOUT
    assert world.duration_ns == 30 * SECOND


def test_an_ended_drive_goes_on_but_its_outcome_stays() -> None:
    world = past_the_box()
    world.advance(world.next_step_ns + SECOND, STILL)
    assert world.outcome is Outcome.REACHED
    reached_after_ns, samples = world.duration_ns, len(world.track)
    world.advance(world.next_step_ns + SECOND, BACK)
    assert world.pose.x_m < 2.9
    assert world.outcome is Outcome.REACHED
    world.advance(world.next_step_ns + 3 * SECOND, AHEAD)
    assert touched(ROOM, world.pose.x_m, world.pose.y_m) is not None
    assert world.velocity == STILL
    assert (world.outcome, world.duration_ns, len(world.track)) == (Outcome.REACHED, reached_after_ns, samples)


def test_the_track_is_sampled_fifty_times_a_second() -> None:
    world = World(ROOM, Side.LEFT, seed=1)
    for now_ms in range(3, 2004, 3):
        world.advance(now_ms * MS, AHEAD)
    assert len(world.track) == 100
    assert {later.at_ns - sooner.at_ns for sooner, later in pairwise(world.track)} == {20 * MS}
    assert world.track[-1].pose.x_m == pytest.approx(0.6 + 0.4 * 1.94, abs=0.04)
    assert world.track[-1].speed_mps == pytest.approx(0.4, rel=0.04)


@pytest.mark.parametrize("every_ms", [1, 10, 20, 1000])
def test_how_often_it_is_asked_changes_nothing(every_ms: int) -> None:
    legs = ((Velocity(0.3, 0.2, 0.1), 3), (Velocity(0.4, -0.05, -0.1), 3), (STILL, 1))
    one = drive(World(ROOM, Side.LEFT, seed=9), *legs, every_ms=5)
    other = drive(World(ROOM, Side.LEFT, seed=9), *legs, every_ms=every_ms)
    assert one.track == other.track
    assert one.outcome is other.outcome


def test_another_seed_is_another_run() -> None:
    tracks = [drive(World(ROOM, Side.LEFT, seed), (AHEAD, 1)).track for seed in (1, 1, 2)]
    assert tracks[0] == tracks[1] != tracks[2]
