"""The simulated robot's body: lag, slip, drift, and steps that do not depend on who asks when."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from mvla_daemon.core.messages import Velocity
from mvla_daemon.sim.body import Body
from mvla_daemon.sim.room import Pose

MS = 1_000_000
ORIGIN = Pose(0.0, 0.0, 0.0)
SEEDS = range(40)


def driven(wheels: Velocity, for_ms: int, seed: int = 1, start: Pose = ORIGIN, every_ms: int = 5) -> Body:
    body = Body(start, seed)
    for now_ms in range(every_ms, for_ms + 1, every_ms):
        body.advance(now_ms * MS, wheels)
    return body


def test_at_rest_it_stays_exactly_where_it_is() -> None:
    start = Pose(1.5, -0.25, 0.75)
    body = driven(Velocity(), 10_000, start=start)
    assert body.pose == start
    assert body.velocity == Velocity()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_it_follows_its_wheels_with_a_lag(axis: int) -> None:
    wheels = Velocity(*(0.4 if i == axis else 0.0 for i in range(3)))
    reached = [driven(wheels, ms).velocity.as_tuple()[axis] for ms in (5, 60, 1000)]
    assert 0.0 < reached[0] < 0.06
    assert 0.55 * reached[2] < reached[1] < 0.85 * reached[2]


@pytest.mark.parametrize("seed", SEEDS)
def test_slip_is_a_few_per_cent_at_most(seed: int) -> None:
    ahead = driven(Velocity(0.4, 0.0, 0.0), 5000, seed).pose
    aside = driven(Velocity(0.0, 0.4, 0.0), 5000, seed).pose
    around = driven(Velocity(0.0, 0.0, 0.5), 5000, seed).pose
    assert math.hypot(ahead.x_m, ahead.y_m) == pytest.approx(2.0, rel=0.08)
    assert math.hypot(aside.x_m, aside.y_m) == pytest.approx(2.0, rel=0.10)
    assert around.yaw_rad == pytest.approx(2.5, rel=0.06)
    assert (around.x_m, around.y_m) == (0.0, 0.0)


def test_runs_differ_in_slip_and_in_drift() -> None:
    poses = [driven(Velocity(0.4, 0.0, 0.0), 5000, seed).pose for seed in SEEDS]
    aside_m = [driven(Velocity(0.0, 0.4, 0.0), 5000, seed).pose.y_m for seed in SEEDS]
    turned_rad = [driven(Velocity(0.0, 0.0, 0.5), 5000, seed).pose.yaw_rad for seed in SEEDS]
    assert max(aside_m) - min(aside_m) > 0.15
    assert max(turned_rad) - min(turned_rad) > 0.05
    assert max(pose.x_m for pose in poses) - min(pose.x_m for pose in poses) > 0.02
    assert min(pose.y_m for pose in poses) < -0.01 < 0.01 < max(pose.y_m for pose in poses)
    assert min(pose.yaw_rad for pose in poses) < -0.005 < 0.005 < max(pose.yaw_rad for pose in poses)


def test_drift_changes_while_it_drives() -> None:
    body = Body(ORIGIN, seed=3)
    aside = []
    for now_ms in range(5, 20_001, 5):
        body.advance(now_ms * MS, Velocity(0.4, 0.0, 0.0))
        aside.append(body.velocity.linear_y_mps)
    settled = aside[200:]
    assert 0.003 < max(settled) - min(settled) < 0.08
    assert max(abs(one - next_one) for one, next_one in pairwise(settled)) < 0.003


def test_forward_is_where_it_looks_and_left_is_left() -> None:
    north = Pose(0.0, 0.0, math.pi / 2)
    ahead = driven(Velocity(0.4, 0.0, 0.0), 1000, start=north).pose
    left = driven(Velocity(0.0, 0.4, 0.0), 1000, start=north).pose
    assert ahead.y_m > 0.3
    assert abs(ahead.x_m) < 0.05
    assert left.x_m < -0.3
    assert abs(left.y_m) < 0.05


def test_a_turn_that_drives_on_is_a_circle() -> None:
    body = Body(ORIGIN, seed=2)
    xs, ys = [], []
    for now_ms in range(5, 20_001, 5):
        body.advance(now_ms * MS, Velocity(0.4, 0.0, 0.8))
        xs.append(body.pose.x_m)
        ys.append(body.pose.y_m)
        assert abs(body.pose.yaw_rad) <= math.pi
    assert max(xs) - min(xs) == pytest.approx(1.0, rel=0.12)
    assert max(ys) - min(ys) == pytest.approx(1.0, rel=0.12)


def test_a_step_moves_along_the_yaw_of_its_middle() -> None:
    """The chord of an arc; the yaw of either end would spiral outwards or inwards."""
    body = driven(Velocity(0.4, 0.1, 1.4), 500)
    before = body.pose
    body.advance(body.next_step_ns, Velocity(0.4, 0.1, 1.4))
    after, velocity = body.pose, body.velocity
    middle_rad = (before.yaw_rad + after.yaw_rad) / 2
    ahead_m, left_m = velocity.linear_x_mps * 0.005, velocity.linear_y_mps * 0.005
    x_m = ahead_m * math.cos(middle_rad) - left_m * math.sin(middle_rad)
    y_m = ahead_m * math.sin(middle_rad) + left_m * math.cos(middle_rad)
    assert (after.x_m - before.x_m, after.y_m - before.y_m) == pytest.approx((x_m, y_m), abs=1e-9)


@pytest.mark.parametrize("every_ms", [1, 2, 5, 10, 20, 100, 3000])
def test_it_does_not_matter_how_often_it_is_asked(every_ms: int) -> None:
    wheels = Velocity(0.3, -0.2, 0.4)
    often, seldom = driven(wheels, 3000, every_ms=5), driven(wheels, 3000, every_ms=every_ms)
    assert often.pose == seldom.pose
    assert often.velocity == seldom.velocity


def test_a_step_counts_when_it_is_complete_and_time_never_goes_back() -> None:
    body = Body(ORIGIN, seed=1, now_ns=7 * MS)
    assert body.next_step_ns == 12 * MS
    body.advance(12 * MS - 1, Velocity(0.4, 0.0, 0.0))
    assert body.pose == ORIGIN
    body.advance(12 * MS, Velocity(0.4, 0.0, 0.0))
    moved = body.pose
    assert moved.x_m > 0.0
    body.advance(0, Velocity(0.4, 0.0, 0.0))
    assert body.pose == moved
    assert body.next_step_ns == 17 * MS


def test_a_held_body_stays_while_time_goes_on() -> None:
    body = driven(Velocity(0.4, 0.0, 0.3), 500)
    body.hold()
    held = body.pose
    body.advance(2000 * MS, Velocity(0.4, 0.0, 0.3))
    assert body.pose == held
    assert body.velocity == Velocity()
    assert body.next_step_ns == 2005 * MS


def test_a_seed_is_the_same_run_again() -> None:
    wheels = Velocity(0.3, 0.1, -0.2)
    assert driven(wheels, 2000, seed=5).pose == driven(wheels, 2000, seed=5).pose
    assert driven(wheels, 2000, seed=5).pose != driven(wheels, 2000, seed=-5).pose
