"""The watch over how the robot moves: what is stuck, reversed or runs away is found, what only lags is let be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvla_daemon.motors.link_v1 import Identity
from mvla_daemon.motors.motion_watch import MotionWatch

MS = 1_000_000
REPORT_MS = 20
AXES = ("linear_x", "linear_y", "angular_z")
FLOOR = (100_000, 100_000, 200_000)
ACCEL = (1.0, 1.0, 4.0)


def identity(decel_mm_s2: int = 2000, decel_mrad_s2: int = 8000) -> Identity:
    return Identity(1, b"robot", 1, 0, 20, 1000, decel_mm_s2, decel_mrad_s2)


def on(axis: int, value: float) -> tuple[int, int, int]:
    """This much (m/s or rad/s) on one axis, as the wire has it."""
    micros = [0, 0, 0]
    micros[axis] = round(value * 1e6)
    return (micros[0], micros[1], micros[2])


@dataclass
class Watched:
    """A watch, and a clock that goes from report to report."""

    accel: tuple[float, float, float] = ACCEL
    who: Identity | None = field(default_factory=identity)
    now_ns: int = 12_345 * MS

    def __post_init__(self) -> None:
        self.watch = MotionWatch(self.accel)
        self.watch.begin(self.who, self.now_ns)

    def report(self, measured: tuple[int, int, int], after_ms: float = REPORT_MS) -> str:
        self.now_ns += round(after_ms * MS)
        return self.watch.judge(measured, self.now_ns)

    def run(self, measure: Callable[[int], tuple[int, int, int]], for_ms: int) -> int | None:
        """Report every 20 ms what `measure(ms)` says; after how many ms something was wrong, or None."""
        for at_ms in range(REPORT_MS, for_ms + 1, REPORT_MS):
            if self.report(measure(at_ms)):
                return at_ms
        return None


def steady(measured: tuple[int, int, int], _at_ms: int) -> tuple[int, int, int]:
    return measured


def risen(axis: int, speed: float, at_ms: int) -> tuple[int, int, int]:
    """On the ramp to a speed, and there."""
    return on(axis, min(speed, at_ms / 1000 * ACCEL[axis]))


def slowly(axis: int, rate: float, at_ms: int) -> tuple[int, int, int]:
    """On a ramp that begins 60 ms late."""
    return on(axis, rate * max(0, at_ms - 60) / 1000)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [1, -1])
def test_a_stuck_axis_is_found_half_a_second_after_it_should_have_moved(axis: int, sign: int) -> None:
    watched = Watched()
    watched.watch.told = on(axis, sign * 4 * FLOOR[axis] / 1e6)
    # Three reports' delay; then the slow edge rises by 0.02 m/s (0.08 rad/s) a report, and the sixth time (the third)
    # it is past the tolerance.
    assert watched.run(lambda _: (0, 0, 0), 2000) == 60 + (6, 6, 3)[axis] * REPORT_MS + 500


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [1, -1])
def test_a_reversed_axis_is_found(axis: int, sign: int) -> None:
    watched = Watched()
    speed = FLOOR[axis] / 1e6
    watched.watch.told = on(axis, sign * speed)
    # As fast as it can, the wrong way: outside from the moment at which standing still would have been allowed.
    found_ms = watched.run(lambda _: on(axis, -sign * speed), 2000)
    assert found_ms is not None
    assert found_ms <= 500 + 60 + 2 * REPORT_MS


@pytest.mark.parametrize("axis", range(3))
def test_an_axis_that_runs_away_is_found_at_once(axis: int) -> None:
    watched = Watched()
    assert watched.run(lambda ms: on(axis, ms / 1000 * 10), 2000) == (520 if axis < 2 else 540)


def test_what_goes_on_after_it_was_told_to_stand_is_found_when_it_should_have_braked() -> None:
    watched = Watched()
    watched.watch.told = on(0, 0.5)
    assert watched.run(lambda ms: on(0, min(0.5, ms / 1000)), 1000) is None
    watched.watch.told = (0, 0, 0)
    found_ms = watched.run(lambda _: on(0, 0.5), 3000)
    assert found_ms is not None
    # 0.15 m/s of 0.5 m/s is tolerance (30 % of where the edge then is, at least 0.1): the edge falls at 1 m/s².
    assert 500 + 100 <= found_ms <= 500 + 60 + 150 + 2 * REPORT_MS


@pytest.mark.parametrize("axis", range(3))
def test_the_tolerance_is_a_floor_and_beyond_it_30_percent(axis: int) -> None:
    for speed, off in ((0.0, FLOOR[axis]), (FLOOR[axis] / 1e6, FLOOR[axis]), (2.0, 600_000)):
        for sign in (1, -1):
            told = on(axis, speed)
            for beyond, is_found in ((0, False), (1, True)):
                watched = Watched()
                watched.watch.told = told
                watched.run(partial(risen, axis, speed), 3000)
                measured = on(axis, (told[axis] + sign * (off + beyond)) / 1e6)
                found = watched.run(partial(steady, measured), 600)
                assert (found is not None) is is_found, (speed, sign, beyond)


def test_half_a_second_is_from_the_first_report_that_was_off_and_one_good_one_ends_it() -> None:
    watched = Watched()
    away = on(1, 0.2)
    assert watched.report(away) == ""
    assert watched.report(away, 499) == ""
    assert watched.report(away, 1) != ""
    watched = Watched()
    for _ in range(20):
        assert watched.report(away) == ""
        assert watched.report(away, 480) == ""
        assert watched.report((0, 0, 0)) == ""


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [1, -1])
def test_the_half_second_can_begin_with_the_session(axis: int, sign: int) -> None:
    watched = Watched()
    away = on(axis, sign * (FLOOR[axis] + 1) / 1e6)
    assert watched.report(away, 0) == ""
    assert watched.report(away, 500) != ""


def test_axes_do_not_share_their_half_second() -> None:
    watched = Watched()
    for _ in range(10):
        assert watched.run(lambda _: on(0, 0.2), 300) is None
        assert watched.run(lambda _: on(1, 0.2), 300) is None


def test_the_fault_names_the_axis_and_both_speeds() -> None:
    for axis, name in enumerate(AXES):
        watched = Watched()
        watched.watch.told = on(axis, 0.75)
        said = ""
        while not said:
            said = watched.report(on(axis, -0.25))
        unit = "rad/s" if axis == 2 else "m/s"
        assert said.startswith(f"it was told 0.75 {unit} of {name} and measures -0.25: "), said


def test_of_several_axes_the_first_is_named() -> None:
    watched = Watched()
    away = (200_000, 200_000, 400_000)
    assert watched.report(away) == ""
    assert "of linear_x" in watched.report(away, 500)


def test_a_session_begins_from_standstill_with_nothing_held_against_it() -> None:
    watched = Watched()
    watched.watch.told = on(0, 0.5)
    watched.run(lambda _: (0, 0, 0), 600)
    watched.watch.begin(identity(), watched.now_ns)
    assert watched.watch.told == (0, 0, 0)
    assert watched.run(lambda _: (0, 0, 0), 2000) is None
    assert watched.run(lambda _: on(0, 0.5), 2000) == 520


def test_one_that_knows_no_session_yet_judges_as_if_it_had_just_begun() -> None:
    watch = MotionWatch(ACCEL)
    assert watch.judge((0, 0, 0), 20 * MS) == ""


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(
    ("accel", "who", "rate"),
    [
        (1.0, identity(2000, 2000), 1.0),
        (5.0, identity(500, 500), 0.5),
        (1.0, identity(0, 0), 1.0),  # it says nothing of its ramp
        (1.0, None, 1.0),
    ],
)
def test_the_slow_edge_is_the_slower_of_two_ramps(axis: int, accel: float, who: Identity | None, rate: float) -> None:
    for share, is_found in ((1.0, False), (0.71, False), (0.6, True)):
        watched = Watched((accel, accel, accel), who)
        watched.watch.told = on(axis, 10.0)
        found = watched.run(partial(slowly, axis, rate * share), 8000)
        assert (found is not None) is is_found, share


# --- a controller that keeps to its side, and one that does not ---

COMMANDS = st.lists(
    st.tuples(
        st.integers(1, 80),  # times 5 ms until the next one
        st.tuples(*(st.floats(-1, 1),) * 3),  # of 2 m/s, 2 m/s, 4 rad/s
    ),
    max_size=12,
)


@settings(max_examples=100)
@given(
    commands=COMMANDS,
    delay=st.integers(0, 12),
    faster=st.tuples(*(st.floats(1, 20),) * 3),
    decel=st.sampled_from([500, 2000, 60_000]),
    report_every=st.integers(4, 8),
)
def test_whoever_follows_at_the_slower_ramp_or_faster_is_never_accused(
    commands: list[tuple[int, tuple[float, float, float]]],
    delay: int,
    faster: tuple[float, float, float],
    decel: int,
    report_every: int,
) -> None:
    """Every 5 ms a controller moves each axis towards the command of up to 60 ms ago; commands jump as they like."""
    watched = Watched(ACCEL, identity(decel, decel))
    steps = [min(accel, decel / 1000) * 5000 * more for accel, more in zip(ACCEL, faster, strict=True)]
    timeline = [(0, 0, 0)]
    for steps_until_next, shares in [*commands, (300, (0.0, 0.0, 0.0))]:
        timeline += [(round(shares[0] * 2e6), round(shares[1] * 2e6), round(shares[2] * 4e6))] * steps_until_next
    speeds = [0.0, 0.0, 0.0]
    for at, told in enumerate(timeline):
        watched.watch.told = told
        target = timeline[max(0, at - delay)]
        for axis, step in enumerate(steps):
            gap = target[axis] - speeds[axis]
            speeds[axis] += max(-step, min(step, gap))
        if at % report_every == 0:
            rounded = (round(speeds[0]), round(speeds[1]), round(speeds[2]))
            assert watched.report(rounded, 5 * report_every if at else 0) == ""


@settings(max_examples=100)
@given(
    axis=st.integers(0, 2),
    told=st.floats(-3, 3),
    measured=st.floats(-3, 3),
)
def test_a_steady_speed_outside_the_tolerance_is_always_found_and_one_inside_never(
    axis: int, told: float, measured: float
) -> None:
    watched = Watched()
    watched.watch.told = on(axis, told)
    watched.run(lambda ms: on(axis, max(-1, min(1, ms / 1000 * ACCEL[axis] / max(abs(told), 1e-9))) * told), 3200)
    off = abs(on(axis, measured)[axis] - on(axis, told)[axis])
    allowed = max(FLOOR[axis], 0.3 * abs(on(axis, told)[axis]))
    found = watched.run(lambda _: on(axis, measured), 600)
    assert (found is not None) is (off > allowed)
