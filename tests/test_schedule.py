"""Starts and deadlines: S_k = min(announced, receipt), D_k = min(S_k, S_{k-1} + T) + deadline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvla_daemon.core.schedule import CycleSchedule, Turn, hold_due_ns

MS = 1_000_000
T = 20 * MS
ALLOWED = 18 * MS
S0 = 5_000 * MS
LAST = 2**32 - 1


def begun() -> CycleSchedule:
    """A schedule whose last start stands at S0."""
    schedule = CycleSchedule(T, ALLOWED)
    schedule.begin(S0)
    return schedule


def test_before_any_start_the_first_command_is_due_t_and_the_deadline_after_the_last_start() -> None:
    schedule = begun()
    assert schedule.deadline_ns == S0 + T + ALLOWED
    assert not schedule.outstanding


@pytest.mark.parametrize(
    ("announced_ns", "received_ns", "start_ns"),
    [
        (S0 + 10 * MS, S0 + 10 * MS, S0 + 10 * MS),
        (S0 + 10 * MS - 1, S0 + 10 * MS, S0 + 10 * MS - 1),
        (S0 + 10 * MS + 1, S0 + 10 * MS, S0 + 10 * MS),
        (2**62, S0 + 10 * MS, S0 + 10 * MS),
        (-(2**63), S0 + 10 * MS, -(2**63)),
    ],
)
def test_a_start_is_the_earlier_of_its_announcement_and_its_receipt(
    announced_ns: int, received_ns: int, start_ns: int
) -> None:
    schedule = begun()
    assert schedule.start(1, announced_ns, received_ns) is Turn.EXPECTED
    assert schedule.last_start_ns == start_ns
    assert schedule.deadline_ns == start_ns + ALLOWED


@pytest.mark.parametrize(("after_ns", "counted_ns"), [(T - 1, T - 1), (T, T), (T + 1, T), (10 * T, T)])
def test_silence_does_not_push_the_deadline_back(after_ns: int, counted_ns: int) -> None:
    schedule = begun()
    schedule.start(1, S0 + after_ns, S0 + after_ns)
    assert schedule.deadline_ns == S0 + counted_ns + ALLOWED


def test_the_deadline_of_the_next_cycle_runs_from_the_start_and_not_from_the_command() -> None:
    schedule = begun()
    schedule.start(1, S0 + 10 * MS, S0 + 10 * MS)
    assert schedule.finish(1) is Turn.EXPECTED
    assert schedule.deadline_ns == S0 + 10 * MS + T + ALLOWED
    schedule.start(2, S0 + 15 * MS, S0 + 15 * MS)
    assert schedule.deadline_ns == S0 + 15 * MS + ALLOWED


def test_a_start_announced_before_the_one_before_it_tightens_its_own_deadline_and_the_next() -> None:
    schedule = begun()
    schedule.start(1, S0 - 50 * MS, S0 + 10 * MS)
    assert schedule.deadline_ns == S0 - 50 * MS + ALLOWED
    schedule.finish(1)
    schedule.start(2, S0 + 15 * MS, S0 + 15 * MS)
    assert schedule.deadline_ns == S0 - 50 * MS + T + ALLOWED


@pytest.mark.parametrize("first", [0, 1, 7, LAST])
def test_the_first_start_may_have_any_number_and_the_others_follow_it(first: int) -> None:
    schedule = begun()
    assert schedule.start(first, S0, S0) is Turn.EXPECTED
    assert schedule.finish(first) is Turn.EXPECTED
    assert schedule.start(first + 2, S0, S0) is Turn.OUT_OF_TURN
    assert schedule.start(first, S0, S0) is Turn.OUT_OF_TURN
    assert schedule.start(first - 1, S0, S0) is Turn.PASSED
    assert schedule.start(first + 1, S0, S0) is Turn.EXPECTED


@pytest.mark.parametrize("cycle", [6, 7, 8, 9])
def test_a_start_while_one_is_outstanding_changes_nothing(cycle: int) -> None:
    schedule = begun()
    schedule.start(7, S0 + 1 * MS, S0 + 1 * MS)
    expected = Turn.PASSED if cycle < 7 else Turn.OUT_OF_TURN
    assert schedule.start(cycle, S0 + 9 * MS, S0 + 9 * MS) is expected
    assert (schedule.last_cycle, schedule.deadline_ns) == (7, S0 + 1 * MS + ALLOWED)
    assert schedule.finish(7) is Turn.EXPECTED


@pytest.mark.parametrize(
    ("cycle", "turn"), [(0, Turn.PASSED), (6, Turn.PASSED), (8, Turn.OUT_OF_TURN), (LAST, Turn.OUT_OF_TURN)]
)
def test_a_command_of_another_cycle_changes_nothing(cycle: int, turn: Turn) -> None:
    schedule = begun()
    schedule.start(7, S0 + 1 * MS, S0 + 1 * MS)
    assert schedule.finish(cycle) is turn
    assert schedule.outstanding
    assert schedule.deadline_ns == S0 + 1 * MS + ALLOWED


def test_a_second_command_of_a_cycle_is_out_of_turn_and_changes_nothing() -> None:
    schedule = begun()
    schedule.start(7, S0, S0)
    schedule.finish(7)
    assert schedule.finish(7) is Turn.OUT_OF_TURN
    assert schedule.deadline_ns == S0 + T + ALLOWED


@pytest.mark.parametrize("cycle", [0, 7, LAST])
def test_a_command_before_any_start_is_out_of_turn(cycle: int) -> None:
    schedule = begun()
    assert schedule.finish(cycle) is Turn.OUT_OF_TURN
    assert schedule.deadline_ns == S0 + T + ALLOWED


def test_beginning_anew_forgets_what_was_outstanding() -> None:
    schedule = begun()
    schedule.start(7, S0, S0)
    schedule.begin(S0 + 100 * MS)
    assert not schedule.outstanding
    assert schedule.finish(7) is Turn.OUT_OF_TURN
    assert schedule.deadline_ns == S0 + 100 * MS + T + ALLOWED
    assert schedule.start(3, S0 + 101 * MS, S0 + 101 * MS) is Turn.EXPECTED


def test_a_hold_waits_one_millisecond_longer_than_t() -> None:
    assert hold_due_ns(S0, T) == S0 + 21 * MS


STEPS = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(0, 3 * T),
        st.integers(-(2**63), 2**63 - 1) | st.integers(-5 * T, 5 * T).map(lambda lie: S0 + lie),
    ),
    max_size=40,
)


@given(STEPS)
def test_lies_about_time_only_tighten(steps: list[tuple[bool, int, int]]) -> None:
    liar, honest = begun(), begun()
    now_ns, cycle = S0, 0
    for is_start, elapsed_ns, announced_ns in steps:
        now_ns += elapsed_ns
        if is_start and not honest.outstanding:
            cycle += 1
            assert honest.start(cycle, now_ns, now_ns) is Turn.EXPECTED
            assert liar.start(cycle, announced_ns, now_ns) is Turn.EXPECTED
        else:
            assert liar.finish(cycle) is honest.finish(cycle)
        assert liar.deadline_ns <= honest.deadline_ns
        assert liar.deadline_ns <= now_ns + T + ALLOWED


@given(STEPS, st.lists(st.integers(0, 3), min_size=40, max_size=40))
def test_whatever_is_said_the_deadline_is_the_formulas(steps: list[tuple[bool, int, int]], jumps: list[int]) -> None:
    schedule = begun()
    now_ns, cycle = S0, 100
    starts_ns, deadline_ns = [S0], S0 + T + ALLOWED
    for (is_start, elapsed_ns, announced_ns), jump in zip(steps, jumps, strict=False):
        now_ns += elapsed_ns
        said = cycle - 1 + jump
        if is_start:
            if schedule.start(said, announced_ns, now_ns) is Turn.EXPECTED:
                cycle = said
                starts_ns.append(min(announced_ns, now_ns))
                deadline_ns = min(starts_ns[-1], starts_ns[-2] + T) + ALLOWED
        elif schedule.finish(said) is Turn.EXPECTED:
            assert said == cycle
            deadline_ns = starts_ns[-1] + T + ALLOWED
        assert schedule.deadline_ns == deadline_ns
