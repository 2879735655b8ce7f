"""The two sides of the speed limits: what the policy process shapes, and what the gate lets through."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvla_daemon.core.limits import AxisLimit, VelocityGuard, VelocityShaper, without_denormals
from mvla_daemon.core.messages import Reason

MS = 1_000_000
SECOND = 1_000_000_000
NOW = 5 * SECOND
MAX = 0.5
LIMITS = (AxisLimit(MAX, 1.0), AxisLimit(MAX, 1.0), AxisLimit(1.5, 4.0))
T = 31_250_000
"""1/32 s, so that what the linear axes may gain within it, 1/32 m/s, is an exact number."""
ALLOWANCE = 0.03125
SMALLEST_NORMAL = 2.0**-126
ZERO = (0.0, 0.0, 0.0)
WRONG = (math.nan, math.inf, -math.inf)


def above(value: float) -> float:
    return math.nextafter(value, math.inf)


def on_axis(axis: int, value: float) -> tuple[float, float, float]:
    values = [0.0, 0.0, 0.0]
    values[axis] = value
    return (values[0], values[1], values[2])


def new_guard(*written: float) -> VelocityGuard:
    """A guard after a reset at NOW, then these forward speeds one second apart: each with its allowance filled up."""
    guard = VelocityGuard(LIMITS, T)
    guard.reset(NOW - len(written) * SECOND)
    for index, value in enumerate(written):
        now_ns = NOW - (len(written) - 1 - index) * SECOND
        assert guard.violation(on_axis(0, value), now_ns) is None
        guard.wrote(on_axis(0, value), now_ns)
    return guard


def new_shaper() -> VelocityShaper:
    shaper = VelocityShaper(LIMITS)
    shaper.reset(NOW)
    return shaper


# --- the gate's side ---


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_finite_is_seen_on_every_axis(axis: int, wrong: float) -> None:
    guard = VelocityGuard(LIMITS, T)
    guard.reset(NOW)
    assert guard.violation(on_axis(axis, wrong), NOW + SECOND) is Reason.NOT_FINITE
    outrageous_elsewhere = tuple(wrong if i == axis else 1e30 for i in range(3))
    assert guard.violation((outrageous_elsewhere[0], outrageous_elsewhere[1], outrageous_elsewhere[2]), NOW) is (
        Reason.NOT_FINITE
    )


@pytest.mark.parametrize(("axis", "maximum"), [(0, 0.5), (1, 0.5), (2, 1.5)])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_each_axis_may_reach_its_maximum_and_no_more(axis: int, maximum: float, sign: float) -> None:
    guard = VelocityGuard(LIMITS, T)
    guard.reset(NOW)
    assert guard.violation(on_axis(axis, sign * maximum), NOW + SECOND) is None
    assert guard.violation(on_axis(axis, sign * above(maximum)), NOW + SECOND) is Reason.LIMIT_VIOLATED
    assert guard.violation(on_axis(axis, sign * 1e30), NOW + SECOND) is Reason.LIMIT_VIOLATED


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("elapsed_ns", "gain"), [(0, ALLOWANCE), (T, 2 * ALLOWANCE), (4 * T, 5 * ALLOWANCE)])
def test_from_standstill_the_speed_may_gain_accel_times_time_and_the_allowance(
    sign: float, elapsed_ns: int, gain: float
) -> None:
    guard = new_guard()
    assert guard.violation(on_axis(0, sign * gain), NOW + elapsed_ns) is None
    assert guard.violation(on_axis(0, sign * above(gain)), NOW + elapsed_ns) is Reason.LIMIT_VIOLATED


def test_one_nanosecond_of_acceleration_more_is_a_violation() -> None:
    guard = new_guard()
    gain = ALLOWANCE + 10e-3
    assert guard.violation(on_axis(0, gain - 1e-12), NOW + 10 * MS) is None
    assert guard.violation(on_axis(0, gain - 1e-12), NOW + 10 * MS - 1) is Reason.LIMIT_VIOLATED


def test_the_allowance_is_spent_once_and_refills_at_accel() -> None:
    guard = new_guard()
    guard.wrote(on_axis(0, ALLOWANCE), NOW)
    assert guard.violation(on_axis(0, above(ALLOWANCE)), NOW) is Reason.LIMIT_VIOLATED
    for step in (2, 3, 4):  # exactly at accel: nothing refills
        now_ns = NOW + (step - 1) * T
        assert guard.violation(on_axis(0, above(step * ALLOWANCE)), now_ns) is Reason.LIMIT_VIOLATED
        assert guard.violation(on_axis(0, step * ALLOWANCE), now_ns) is None
        guard.wrote(on_axis(0, step * ALLOWANCE), now_ns)
    now_ns = NOW + 5 * T  # two T at the same speed: refilled, and no more than once
    guard.wrote(on_axis(0, 4 * ALLOWANCE), now_ns)
    assert guard.violation(on_axis(0, 5 * ALLOWANCE), now_ns) is None
    assert guard.violation(on_axis(0, above(5 * ALLOWANCE)), now_ns) is Reason.LIMIT_VIOLATED


def test_the_allowances_of_the_axes_are_their_own() -> None:
    guard = new_guard()
    guard.wrote(on_axis(0, ALLOWANCE), NOW)
    assert guard.violation((ALLOWANCE, ALLOWANCE, 4 * ALLOWANCE), NOW) is None
    assert guard.violation((ALLOWANCE, ALLOWANCE, above(4 * ALLOWANCE)), NOW) is Reason.LIMIT_VIOLATED


@pytest.mark.parametrize("last", [MAX, -MAX])
@pytest.mark.parametrize("part", [1.0, 0.999, 0.5, 1e-9, 0.0, -0.0])
def test_coming_towards_zero_is_free_at_any_time(last: float, part: float) -> None:
    guard = new_guard(last)
    assert guard.violation(on_axis(0, last * part), NOW) is None


@pytest.mark.parametrize("last", [MAX, -MAX])
def test_through_zero_the_whole_change_counts(last: float) -> None:
    guard = new_guard(last)
    assert guard.violation(on_axis(0, -last), NOW + 500 * MS) is Reason.LIMIT_VIOLATED
    assert guard.violation(on_axis(0, -math.copysign(0.01, last)), NOW) is Reason.LIMIT_VIOLATED
    assert guard.violation(on_axis(0, -last), NOW + 1000 * MS) is None


def test_a_clock_that_stands_or_runs_back_grants_nothing_beyond_the_allowance() -> None:
    guard = new_guard()
    for earlier_ns in (0, 1, SECOND):
        assert guard.violation(on_axis(0, ALLOWANCE), NOW - earlier_ns) is None
        assert guard.violation(on_axis(0, above(ALLOWANCE)), NOW - earlier_ns) is Reason.LIMIT_VIOLATED


def test_what_was_refused_leaves_no_trace() -> None:
    asked, untouched = new_guard(0.25), new_guard(0.25)
    for wrong in WRONG:
        for axis in range(3):
            assert asked.violation(on_axis(axis, wrong), NOW + MS) is Reason.NOT_FINITE
    assert asked.violation((1e30, -1e30, 1e30), NOW + MS) is Reason.LIMIT_VIOLATED
    for values in ((0.25, 0.0, 0.0), (0.29, 0.01, 0.1), (0.33, 0.05, 0.0), (0.4, 0.0, 0.0), (-0.1, 0.0, 0.0)):
        for now_ns in (NOW, NOW + 10 * MS, NOW + 50 * MS):
            assert asked.violation(values, now_ns) is untouched.violation(values, now_ns)


def test_a_reset_begins_from_standstill_with_the_whole_allowance() -> None:
    guard = new_guard(MAX)
    guard.reset(NOW)
    assert guard.violation(on_axis(0, MAX), NOW) is Reason.LIMIT_VIOLATED
    assert guard.violation(on_axis(0, ALLOWANCE), NOW) is None


def test_a_reset_refills_an_allowance_that_was_spent() -> None:
    guard = new_guard()
    guard.wrote(on_axis(0, ALLOWANCE), NOW)
    guard.reset(NOW)
    assert guard.violation(on_axis(0, ALLOWANCE), NOW) is None


def test_a_new_guard_and_a_new_shaper_stand_at_time_0() -> None:
    guard = VelocityGuard(LIMITS, T)
    assert guard.violation(on_axis(0, 2 * ALLOWANCE), T) is None
    assert guard.violation(on_axis(0, 2 * ALLOWANCE), T - 1) is Reason.LIMIT_VIOLATED
    assert VelocityShaper(LIMITS).shape((MAX, -MAX, 1.5), T) == (1 / 32, -1 / 32, 1 / 8)


# --- the policy process's side ---


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_shaper_clamps_to_the_maximum_up_to_ten_times_of_it(sign: float) -> None:
    for wish in (0.6, 5.0):
        assert new_shaper().shape(on_axis(0, sign * wish), NOW + SECOND) == on_axis(0, sign * MAX)


@pytest.mark.parametrize("wish", [(above(5.0), 0.1, 0.1), (0.1, -1e30, 0.1), (0.1, 0.1, above(15.0))])
def test_past_ten_times_the_gate_has_to_see_the_wish_as_it_is(wish: tuple[float, float, float]) -> None:
    assert new_shaper().shape(wish, NOW + SECOND) == wish


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_finite_goes_on_to_the_gate_and_is_forgotten(axis: int, wrong: float) -> None:
    poisoned, clean = new_shaper(), new_shaper()
    for shaper in (poisoned, clean):
        shaper.shape((0.1, 0.1, 0.1), NOW + 50 * MS)
    handed_on = poisoned.shape(on_axis(axis, wrong), NOW + 60 * MS)
    assert repr(handed_on) == repr(on_axis(axis, wrong))
    wish = (0.5, -0.5, 1.5)
    assert poisoned.shape(wish, NOW + 70 * MS) == clean.shape(wish, NOW + 70 * MS)


def test_the_shaper_gains_accel_times_time() -> None:
    shaper = new_shaper()
    seen = [shaper.shape((MAX, -MAX, 1.5), NOW + step * T) for step in (1, 2, 3)]
    assert seen == [(step / 32, -step / 32, step / 8) for step in (1, 2, 3)]


def test_the_shaper_gains_nothing_in_no_time_or_backwards() -> None:
    assert new_shaper().shape((MAX, MAX, 1.5), NOW) == ZERO
    assert new_shaper().shape((MAX, MAX, 1.5), NOW - SECOND) == ZERO


def test_the_shaper_slows_down_at_once_and_turns_by_way_of_zero() -> None:
    shaper = new_shaper()
    shaper.shape((MAX, MAX, 0.0), NOW + SECOND)
    assert shaper.shape((-MAX, 0.25, 0.0), NOW + SECOND) == (0.0, 0.25, 0.0)
    assert shaper.shape((-MAX, -MAX, 0.0), NOW + SECOND + T) == (-ALLOWANCE, 0.0, 0.0)


def test_the_shaper_begins_anew_from_standstill() -> None:
    shaper = new_shaper()
    shaper.shape((MAX, MAX, 1.5), NOW + SECOND)
    shaper.reset(NOW + 2 * SECOND)
    assert shaper.shape((MAX, MAX, 1.5), NOW + 2 * SECOND + T) == (1 / 32, 1 / 32, 1 / 8)


@pytest.mark.parametrize("value", [5e-324, -5e-324, math.nextafter(SMALLEST_NORMAL, 0.0), 0.0, -0.0])
def test_a_denormal_wish_is_zero(value: float) -> None:
    assert without_denormals(value) == 0.0
    assert new_shaper().shape((value, value, value), NOW + SECOND) == ZERO


@pytest.mark.parametrize("value", [SMALLEST_NORMAL, -SMALLEST_NORMAL, 0.1, math.inf, -math.inf])
def test_every_other_number_stays_what_it_is(value: float) -> None:
    assert without_denormals(value) == value
    assert math.isnan(without_denormals(math.nan))


# --- both together ---

WISH = st.floats(-10.0, 10.0) | st.sampled_from([0.0, 0.3, 1.0, -1.0, 10.0, -10.0])
"""As a part of the axis's maximum."""
ELAPSED_NS = st.sampled_from([0, 1, 10 * MS, 20 * MS, 21 * MS, 33 * MS]) | st.integers(0, 200 * MS)
PERIOD = 20 * MS
MAXIMA = (0.5, 0.5, 1.5)
ACCELS = (1.0, 1.0, 4.0)


def scaled(wish: tuple[float, float, float]) -> tuple[float, float, float]:
    return (wish[0] * MAXIMA[0], wish[1] * MAXIMA[1], wish[2] * MAXIMA[2])


def rise(last: float, value: float) -> float:
    """How far a change leads away from zero or past it; nothing for one that stays between zero and the last."""
    return 0.0 if min(last, 0.0) <= value <= max(last, 0.0) else abs(value - last)


@given(
    st.lists(
        st.tuples(
            st.tuples(WISH, WISH, WISH),
            ELAPSED_NS,
            st.sampled_from([0, PERIOD - 1]) | st.integers(0, PERIOD - 1),
        ),
        max_size=40,
    )
)
def test_what_the_shaper_makes_passes_the_guard_whatever_the_latency(
    cycles: list[tuple[tuple[float, float, float], int, int]],
) -> None:
    shaper, guard = VelocityShaper(LIMITS), VelocityGuard(LIMITS, PERIOD)
    guard.reset(NOW)
    shaper.reset(NOW)
    start_ns = receipt_ns = NOW
    for wish, elapsed_ns, latency_ns in cycles:
        start_ns += elapsed_ns
        receipt_ns = max(receipt_ns, start_ns + latency_ns)
        values = shaper.shape(scaled(wish), start_ns)
        assert guard.violation(values, receipt_ns) is None
        guard.wrote(values, receipt_ns)


PART = st.sampled_from([1.0, -1.0, 1.01, 0.0]) | st.floats(-1.1, 1.1)
LITTLE = st.floats(-0.15, 0.15)
"""As a part of the axis's maximum, so that some changes fit into the allowance and some do not."""


@given(st.lists(st.tuples(st.tuples(LITTLE, LITTLE, LITTLE), st.booleans(), PART, ELAPSED_NS), min_size=5, max_size=40))
def test_what_passes_the_guard_never_gains_more_than_accel_times_time_and_t(
    offers: list[tuple[tuple[float, float, float], bool, float, int]],
) -> None:
    guard = VelocityGuard(LIMITS, PERIOD)
    guard.reset(NOW)
    now_ns = NOW
    written = [(NOW, ZERO)]
    for little, jump, part, elapsed_ns in offers:
        now_ns += elapsed_ns
        last = written[-1][1]
        change = scaled(little)
        values = scaled((part, part, part)) if jump else tuple(a + b for a, b in zip(last, change, strict=True))
        if guard.violation((values[0], values[1], values[2]), now_ns) is None:
            guard.wrote((values[0], values[1], values[2]), now_ns)
            written.append((now_ns, (values[0], values[1], values[2])))
        for fraction in (1.0, 0.5, 0.0):
            last = written[-1][1]
            assert guard.violation((last[0] * fraction, last[1] * fraction, last[2] * fraction), now_ns) is None
    for axis in range(3):
        assert all(abs(values[axis]) <= MAXIMA[axis] for _, values in written)
        rises = [rise(before[1][axis], after[1][axis]) for before, after in pairwise(written)]
        for first in range(len(written)):
            for last_index in range(first + 1, len(written)):
                seconds = (written[last_index][0] - written[first][0] + PERIOD) / SECOND
                assert sum(rises[first:last_index]) <= ACCELS[axis] * seconds + 1e-9


@given(
    st.lists(st.tuples(st.tuples(PART, PART, PART), st.floats(0.0, 1.0), ELAPSED_NS), min_size=1, max_size=30),
)
def test_coming_towards_zero_is_never_refused(steps: list[tuple[tuple[float, float, float], float, int]]) -> None:
    guard = VelocityGuard(LIMITS, PERIOD)
    guard.reset(NOW)
    now_ns, last = NOW, ZERO
    for part, fraction, elapsed_ns in steps:
        now_ns += elapsed_ns
        wish = scaled(part)
        if guard.violation(wish, now_ns) is None:
            guard.wrote(wish, now_ns)
            last = wish
        slower = (last[0] * fraction, last[1], last[2] * fraction)
        assert guard.violation(slower, now_ns) is None
        guard.wrote(slower, now_ns)
        last = slower
