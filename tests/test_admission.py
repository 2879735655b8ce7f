"""Which of a policy process's messages become motion: all that it may say, at every border, to the nanosecond."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvla_daemon.core.admission import Admission, Kind, Mode, Offer, Verdict
from mvla_daemon.core.limits import AxisLimit
from mvla_daemon.core.messages import Reason

MS = 1_000_000
SECOND = 1_000_000_000
NOW = 5 * SECOND
T = 20 * MS
ALLOWED = 20 * MS
MAX_AGE = 100 * MS
FROZEN_AFTER = 500 * MS
ZERO = (0.0, 0.0, 0.0)
WRONG = (math.nan, math.inf, -math.inf)


def new_admission(rehearsals: int = 3, period_ns: int = T, allowed_ns: int = ALLOWED) -> Admission:
    return Admission(
        period_ns=period_ns,
        allowed_ns=allowed_ns,
        max_frame_age_ns=MAX_AGE,
        frozen_after_ns=FROZEN_AFTER,
        limits=(AxisLimit(0.5, 1.0), AxisLimit(0.5, 1.0), AxisLimit(1.5, 4.0)),
        rehearsals=rehearsals,
    )


@dataclass
class Gate:
    """The gate around an admission: its clock, and a well-behaved policy process that can be told to lie."""

    admission: Admission = field(default_factory=new_admission)
    now_ns: int = NOW
    cycle: int = 100
    crc: int = 1

    def enter(self, mode: Mode) -> None:
        self.admission.enter(mode, self.now_ns)

    def start(self, *, epoch: int | None = None, cycle: int | None = None, announced_ns: int | None = None) -> Verdict:
        """The start of the next cycle, unless told otherwise."""
        if cycle is None:
            self.cycle += 1
        return self.admission.start(
            self.admission.epoch if epoch is None else epoch,
            self.cycle if cycle is None else cycle,
            self.now_ns if announced_ns is None else announced_ns,
            self.now_ns,
        )

    def command(
        self,
        values: tuple[float, float, float] = ZERO,
        *,
        epoch: int | None = None,
        cycle: int | None = None,
        age_ns: int = 10 * MS,
        same_picture: bool = False,
    ) -> Verdict:
        """The command of the cycle under way, from a new picture, unless told otherwise; written where admitted."""
        self.crc += not same_picture
        offer = Offer(
            self.admission.epoch if epoch is None else epoch,
            self.cycle if cycle is None else cycle,
            self.now_ns - age_ns,
            self.crc,
            values,
        )
        verdict = self.admission.command(offer, self.now_ns)
        if verdict.kind is Kind.ADMIT and self.admission.mode is Mode.DRIVE:
            self.admission.wrote(offer, self.now_ns)
        return verdict

    def cycle_of(self, took_ns: int, *, age_ns: int = 10 * MS, same_picture: bool = False) -> Verdict:
        """A cycle that begins T after the last one began, and takes this long."""
        self.now_ns = self.admission.schedule.last_start_ns + T
        assert self.start().kind is Kind.ADMIT
        self.now_ns += took_ns
        return self.command(age_ns=age_ns, same_picture=same_picture)


def driving() -> Gate:
    """Just armed: the last rehearsal began at NOW, its command was there at once."""
    gate = Gate(now_ns=NOW - T)
    gate.enter(Mode.REHEARSE)
    assert gate.cycle_of(0).kind is Kind.ADMIT
    assert gate.now_ns == NOW
    gate.enter(Mode.DRIVE)
    return gate


def rehearsing(rehearsals: int = 3) -> Gate:
    gate = Gate(new_admission(rehearsals))
    gate.enter(Mode.REHEARSE)
    return gate


def is_fault(verdict: Verdict, reason: Reason) -> bool:
    return (verdict.kind, verdict.reason) == (Kind.FAULT, reason) and bool(verdict.why)


def is_drop(verdict: Verdict, counter: str) -> bool:
    return (verdict.kind, verdict.reason, verdict.why) == (Kind.DROP, None, counter)


# --- the deadline ---


@pytest.mark.parametrize(("late_ns", "kind"), [(-1, Kind.ADMIT), (0, Kind.ADMIT), (1, Kind.FAULT)])
def test_a_command_has_until_its_start_and_the_deadline(late_ns: int, kind: Kind) -> None:
    gate = driving()
    gate.now_ns = NOW + 15 * MS
    gate.start()
    gate.now_ns += ALLOWED + late_ns
    verdict = gate.command()
    assert verdict.kind is kind
    if kind is Kind.FAULT:
        assert is_fault(verdict, Reason.DEADLINE_MISSED)


@pytest.mark.parametrize("announced_ns", [NOW + 15 * MS, NOW + 15 * MS + 1, NOW + SECOND, 2**63 - 1])
def test_a_start_that_is_announced_in_the_future_begins_when_it_is_received(announced_ns: int) -> None:
    gate = driving()
    gate.now_ns = NOW + 15 * MS
    gate.start(announced_ns=announced_ns)
    assert gate.admission.due() == (NOW + 35 * MS, Reason.DEADLINE_MISSED)


def test_a_start_that_is_announced_for_the_past_has_that_much_less_time() -> None:
    gate = driving()
    gate.now_ns = NOW + 15 * MS
    gate.start(announced_ns=NOW + 8 * MS)
    assert gate.admission.due() == (NOW + 28 * MS, Reason.DEADLINE_MISSED)
    gate.now_ns = NOW + 28 * MS + 1
    assert is_fault(gate.command(), Reason.DEADLINE_MISSED)


@pytest.mark.parametrize("silent_ns", [T, T + 1, 39 * MS])
def test_a_start_that_comes_late_gets_no_more_time_for_it(silent_ns: int) -> None:
    gate = driving()
    gate.now_ns = NOW + silent_ns
    gate.start()
    assert gate.admission.due()[0] == NOW + T + ALLOWED


def test_driving_begins_from_the_last_rehearsals_start() -> None:
    gate = rehearsing()
    gate.cycle_of(5 * MS)
    began_ns = gate.admission.schedule.last_start_ns
    gate.now_ns += 12 * MS
    gate.enter(Mode.DRIVE)
    assert gate.admission.due() == (began_ns + T + ALLOWED, Reason.DEADLINE_MISSED)


def test_driving_without_a_rehearsal_is_overdue_at_once() -> None:
    gate = Gate()
    gate.enter(Mode.DRIVE)
    assert gate.admission.due()[0] == T + ALLOWED < NOW


def test_the_deadline_may_be_shorter_than_the_period() -> None:
    gate = Gate(new_admission(allowed_ns=15 * MS))
    gate.enter(Mode.REHEARSE)
    assert gate.admission.due()[0] == NOW + T + 15 * MS
    gate.start()
    assert gate.admission.due()[0] == NOW + 15 * MS


def test_a_rehearsal_that_was_announced_when_driving_began_is_of_the_past_and_no_offence() -> None:
    gate = driving()
    rehearsal_epoch = gate.admission.epoch - 1
    gate.now_ns = NOW + 5 * MS
    assert is_drop(gate.start(epoch=rehearsal_epoch), "old_epoch")
    assert is_drop(gate.command(epoch=rehearsal_epoch), "old_epoch")
    assert gate.start().kind is Kind.ADMIT
    assert gate.command().kind is Kind.ADMIT
    assert gate.admission.due()[0] == NOW + 5 * MS + T + ALLOWED


def test_due_names_the_deadline_or_the_frames_age_whichever_comes_first() -> None:
    gate = rehearsing()
    gate.cycle_of(0, age_ns=70 * MS)
    gate.enter(Mode.DRIVE)
    gate.cycle_of(5 * MS, age_ns=84 * MS)
    assert gate.admission.due() == (gate.now_ns + 16 * MS, Reason.FRAME_STALE)
    gate.cycle_of(0, age_ns=60 * MS)  # fresh for 40 ms more, as long as the next command has
    assert gate.admission.due() == (gate.now_ns + 40 * MS, Reason.DEADLINE_MISSED)


# --- turns and epochs ---


@pytest.mark.parametrize("behind", [1, 2, 50, 2**32 - 1])
def test_what_is_of_another_epoch_is_dropped_and_counted_and_moves_nothing(behind: int) -> None:
    gate = driving()
    gate.start()
    before = gate.admission.due()
    epoch = (gate.admission.epoch - behind) & 0xFFFFFFFF
    assert is_drop(gate.start(epoch=epoch, cycle=102), "old_epoch")
    assert is_drop(gate.command((math.nan, 1e30, 0.0), epoch=epoch), "old_epoch")
    assert gate.admission.counts["old_epoch"] == 2
    assert gate.admission.due() == before
    assert gate.command().kind is Kind.ADMIT


@pytest.mark.parametrize("mode", [None, Mode.IDLE])
def test_when_nothing_is_asked_for_nothing_counts(mode: Mode | None) -> None:
    gate = Gate()
    if mode is not None:
        gate.enter(mode)
    assert is_drop(gate.start(), "old_epoch")
    assert is_drop(gate.command(), "old_epoch")


@pytest.mark.parametrize("mode", Mode)
def test_every_change_of_mode_is_a_new_epoch(mode: Mode) -> None:
    gate = Gate()
    epochs = []
    for _ in range(3):
        gate.enter(mode)
        epochs.append(gate.admission.epoch)
    assert epochs == [1, 2, 3]


def test_epochs_wrap_with_their_field_of_32_bits() -> None:
    gate = Gate()
    gate.admission.epoch = 2**32 - 1
    gate.enter(Mode.REHEARSE)
    assert gate.admission.epoch == 0
    assert gate.start().kind is Kind.ADMIT


def test_the_modes_are_these_numbers_on_the_socket() -> None:
    assert {mode.name: int(mode) for mode in Mode} == {"IDLE": 0, "REHEARSE": 1, "DRIVE": 2}


def test_what_is_admitted_needs_no_words() -> None:
    assert driving().start() == Verdict(Kind.ADMIT, None, "")


@pytest.mark.parametrize("behind", [1, 2, 100])
def test_a_passed_start_or_command_is_dropped_and_counted_and_moves_nothing(behind: int) -> None:
    gate = driving()
    gate.start()
    before = gate.admission.due()
    assert is_drop(gate.start(cycle=gate.cycle - behind), "passed_start")
    assert is_drop(gate.command((math.nan, 0.0, 0.0), cycle=gate.cycle - behind), "passed_cycle")
    assert gate.admission.due() == before
    assert gate.admission.counts["passed_start"] == gate.admission.counts["passed_cycle"] == 1
    assert gate.command().kind is Kind.ADMIT


@pytest.mark.parametrize("ahead", [0, 1, 2, 1000])
def test_a_start_twice_or_while_one_is_outstanding_is_a_sequence_error(ahead: int) -> None:
    gate = driving()
    gate.start()
    assert is_fault(gate.start(cycle=gate.cycle + ahead), Reason.SEQUENCE_ERROR)


@pytest.mark.parametrize("ahead", [0, 2, 1000])
def test_a_start_that_skips_a_cycle_or_repeats_one_is_a_sequence_error(ahead: int) -> None:
    gate = driving()
    gate.start()
    gate.command()
    assert is_fault(gate.start(cycle=gate.cycle + ahead), Reason.SEQUENCE_ERROR)


@pytest.mark.parametrize("ahead", [1, 2, 1000])
def test_a_command_of_a_cycle_that_has_not_begun_is_a_sequence_error(ahead: int) -> None:
    gate = driving()
    gate.start()
    assert is_fault(gate.command(cycle=gate.cycle + ahead), Reason.SEQUENCE_ERROR)


def test_a_second_command_of_a_cycle_is_a_sequence_error() -> None:
    gate = driving()
    gate.start()
    assert gate.command().kind is Kind.ADMIT
    assert is_fault(gate.command(), Reason.SEQUENCE_ERROR)


# --- pictures ---


@pytest.mark.parametrize(
    ("age_ns", "counter"),
    [(-5 * MS - 1, "frame_in_future"), (-SECOND, "frame_in_future"), (11 * MS, "frame_backwards")],
)
def test_no_command_comes_from_a_frame_of_an_impossible_time(age_ns: int, counter: str) -> None:
    gate = driving()
    gate.start()
    gate.command()
    gate.start()
    assert is_drop(gate.command(age_ns=age_ns), counter)
    assert gate.admission.counts[counter] == 1


@pytest.mark.parametrize("age_ns", [-5 * MS, 0, 10 * MS])
def test_a_frame_a_little_ahead_of_now_or_held_may_command(age_ns: int) -> None:
    gate = driving()
    gate.start()
    gate.command()
    gate.start()
    assert gate.command(age_ns=age_ns).kind is Kind.ADMIT


@pytest.mark.parametrize(
    ("age_ns", "reason"),
    [
        (MAX_AGE, None),
        (MAX_AGE + 1, Reason.FRAME_STALE),
        (SECOND, Reason.FRAME_STALE),
        (SECOND + 1, Reason.CAMERA_LOST),
        (NOW, Reason.CAMERA_LOST),
    ],
)
def test_an_old_frame_is_stale_and_after_a_second_the_camera_lost(age_ns: int, reason: Reason | None) -> None:
    gate = rehearsing()
    gate.start()
    verdict = gate.command(age_ns=age_ns)
    assert verdict.reason is reason
    assert verdict.kind is (Kind.ADMIT if reason is None else Kind.FAULT)


def test_holding_one_frame_is_stale_100_ms_after_its_capture() -> None:
    gate = driving()
    captured_ns = gate.now_ns
    while True:
        gate.now_ns = gate.admission.schedule.last_start_ns + 21 * MS
        if gate.now_ns >= gate.admission.due()[0]:
            break
        gate.start()
        verdict = gate.command(age_ns=gate.now_ns - captured_ns, same_picture=True)
        assert verdict.kind is Kind.ADMIT
    assert gate.admission.due() == (captured_ns + MAX_AGE, Reason.FRAME_STALE)


def test_the_same_picture_with_ever_new_capture_times_is_frozen_after_500_ms() -> None:
    gate = driving()
    verdicts = [gate.cycle_of(0, same_picture=True) for _ in range(26)]
    assert [verdict.kind for verdict in verdicts[:25]] == [Kind.ADMIT] * 25
    assert is_fault(verdicts[25], Reason.FRAME_FROZEN)


# --- values ---


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("mode", [Mode.REHEARSE, Mode.DRIVE])
def test_what_is_not_finite_is_never_admitted(axis: int, wrong: float, mode: Mode) -> None:
    gate = driving() if mode is Mode.DRIVE else rehearsing()
    values = tuple(wrong if index == axis else 0.0 for index in range(3))
    gate.start()
    assert is_fault(gate.command((values[0], values[1], values[2])), Reason.NOT_FINITE)
    for _ in range(50):
        assert gate.cycle_of(5 * MS).kind is Kind.ADMIT
    gate.start()
    assert is_fault(gate.command((values[0], values[1], values[2])), Reason.NOT_FINITE)


def test_what_is_not_finite_and_late_too_is_judged_by_the_stricter() -> None:
    gate = driving()
    gate.start()
    gate.now_ns += SECOND
    assert is_fault(gate.command((math.nan, 0.0, 0.0)), Reason.NOT_FINITE)


@pytest.mark.parametrize("values", [(0.51, 0.0, 0.0), (0.0, -1e30, 0.0), (0.0, 0.0, 1.4)])
def test_the_first_command_begins_from_zero_within_the_limits(values: tuple[float, float, float]) -> None:
    gate = driving()
    gate.now_ns += 15 * MS
    gate.start()
    assert is_fault(gate.command(values), Reason.LIMIT_VIOLATED)


def test_a_violation_is_said_with_its_cycle_and_values() -> None:
    gate = driving()
    gate.start()
    assert gate.command((0.6, 0.0, -1.25)).why == "cycle 102: 0.6 m/s, 0 m/s, -1.25 rad/s"


def test_what_the_rehearsals_wished_for_is_forgotten_when_driving_begins() -> None:
    gate = rehearsing()
    for step in range(1, 20):
        gate.now_ns += 20 * MS
        gate.start()
        assert gate.command((step * 0.02, 0.0, 0.0)).kind is Kind.ADMIT
    gate.enter(Mode.DRIVE)
    gate.now_ns += 20 * MS
    gate.start()
    assert is_fault(gate.command((0.38, 0.0, 0.0)), Reason.LIMIT_VIOLATED)


@pytest.mark.parametrize("mode", [Mode.REHEARSE, Mode.DRIVE])
def test_standing_for_long_saves_up_no_acceleration(mode: Mode) -> None:
    gate = driving() if mode is Mode.DRIVE else rehearsing()
    for _ in range(50):
        gate.cycle_of(5 * MS)
    gate.start()
    assert is_fault(gate.command((0.1, 0.0, 0.0)), Reason.LIMIT_VIOLATED)


def test_an_admitted_command_that_was_not_written_is_not_what_the_next_is_measured_by() -> None:
    gate = driving()
    gate.cycle_of(0)
    admission, written_ns = gate.admission, gate.now_ns
    unwritten = Offer(admission.epoch, 103, written_ns, 9, (0.02, 0.0, 0.0))
    admission.start(admission.epoch, 103, written_ns, written_ns)
    assert admission.command(unwritten, written_ns).kind is Kind.ADMIT
    assert admission.watch.stale_at_ns() == written_ns - 10 * MS + MAX_AGE
    gate.cycle = 103
    gate.now_ns += 20 * MS
    gate.start()
    assert gate.command((-0.03, 0.0, 0.0)).kind is Kind.ADMIT  # 0.05 away from what was not written


# --- too much of it ---


@pytest.mark.parametrize(("after_ns", "kind"), [(T - 1, Kind.DROP), (T, Kind.ADMIT)])
def test_more_than_four_commands_in_t_are_dropped_and_counted(after_ns: int, kind: Kind) -> None:
    gate = driving()
    verdicts = []
    for offset_ns in (0, 1, 2, 3, after_ns):
        gate.now_ns = NOW + offset_ns
        gate.start()
        verdicts.append(gate.command())
    assert [verdict.kind for verdict in verdicts] == [Kind.ADMIT] * 4 + [kind]
    assert gate.admission.counts.get("too_many", 0) == (kind is Kind.DROP)


def test_what_was_dropped_does_not_count_among_the_four() -> None:
    gate = driving()
    for _ in range(10):
        gate.start()
        gate.command()
    gate.now_ns += T
    kinds = []
    for _ in range(5):
        gate.start()
        kinds.append(gate.command().kind)
    assert kinds == [Kind.ADMIT] * 4 + [Kind.DROP]


@pytest.mark.parametrize(("period_ns", "limit"), [(T, 1000), (10 * MS, 1000), (1 * MS, 10_000)])
def test_more_than_a_thousand_messages_a_second_or_ten_a_period_are_a_flood(period_ns: int, limit: int) -> None:
    admission = new_admission(period_ns=period_ns)
    assert not any(admission.flooded(NOW + i) for i in range(limit))
    assert admission.flooded(NOW + limit)
    assert admission.flooded(NOW + SECOND - 1)
    assert not admission.flooded(NOW + SECOND)


def test_a_new_policy_process_is_not_to_blame_for_the_flood_of_the_one_before_it() -> None:
    admission = new_admission()
    while not admission.flooded(NOW):
        pass
    admission.forgive_flood()
    assert not any(admission.flooded(NOW + i) for i in range(1000))
    assert admission.flooded(NOW + 1000)


def test_a_flood_in_the_first_second_of_all_is_one_too() -> None:
    admission = new_admission()
    assert not any(admission.flooded(i) for i in range(1000))
    assert admission.flooded(1000)


# --- rehearsals ---


def test_before_any_rehearsal_the_refusal_says_so() -> None:
    assert rehearsing().admission.why_not_rehearsed() == "the policy process has completed no rehearsal"
    assert new_admission(1).why_not_rehearsed() == "the policy process has completed no rehearsal"


def test_enough_rehearsals_in_a_row_on_time_are_asked_for() -> None:
    gate = rehearsing()
    for done in (1, 2):
        gate.cycle_of(5 * MS)
        why = gate.admission.why_not_rehearsed()
        assert why.startswith(f"only {done} of 3 rehearsals in a row were on time")
        assert "took 5.0 ms of 20 ms" in why
    gate.cycle_of(5 * MS)
    assert gate.admission.why_not_rehearsed() == ""


@pytest.mark.parametrize("how", ["late", "stale", "future", "limit", "nan"])
def test_one_bad_rehearsal_begins_the_count_anew(how: str) -> None:
    gate = rehearsing()
    for _ in range(3):
        gate.cycle_of(5 * MS)
    gate.start()
    gate.now_ns += ALLOWED + 1 if how == "late" else 0
    values = {"limit": (0.6, 0.0, 0.0), "nan": (math.nan, 0.0, 0.0)}.get(how, ZERO)
    assert gate.command(values, age_ns={"stale": MAX_AGE + 1, "future": -SECOND}.get(how, 0)).kind is not Kind.ADMIT
    for _ in range(2):
        gate.cycle_of(5 * MS)
        assert gate.admission.why_not_rehearsed() != ""
    gate.cycle_of(5 * MS)
    assert gate.admission.why_not_rehearsed() == ""


@pytest.mark.parametrize(("took_ns", "enough_room"), [(18 * MS, True), (18 * MS + 1, False), (20 * MS, False)])
def test_rehearsals_have_to_leave_2_ms_of_the_deadline_free(took_ns: int, enough_room: bool) -> None:
    gate = rehearsing()
    for _ in range(3):
        assert gate.cycle_of(took_ns).kind is Kind.ADMIT
    assert (gate.admission.why_not_rehearsed() == "") == enough_room


@pytest.mark.parametrize(
    ("allowed_ns", "most_ns"), [(100 * MS, 98 * MS), (20 * MS, 18 * MS), (10 * MS, 9 * MS), (1 * MS, 900_000)]
)
def test_of_a_shorter_deadline_a_tenth_has_to_stay_free(allowed_ns: int, most_ns: int) -> None:
    for took_ns, enough_room in ((most_ns, True), (most_ns + 1, False)):
        gate = Gate(new_admission(1, period_ns=allowed_ns, allowed_ns=allowed_ns))
        gate.enter(Mode.REHEARSE)
        gate.start()
        gate.now_ns += took_ns
        assert gate.command().kind is Kind.ADMIT
        assert (gate.admission.why_not_rehearsed() == "") == enough_room


def test_the_refusal_prints_the_budget() -> None:
    gate = rehearsing()
    for took_ns in (7 * MS, 18_900_000, 6 * MS):
        gate.cycle_of(took_ns)
    assert gate.admission.why_not_rehearsed() == (
        "a cycle takes 18.9 ms (p99 of 3 rehearsals, median 7.0 ms) and control.deadline_ms is 20, of which 2 ms must "
        "stay free; use a smaller network or a faster engine"
    )


@pytest.mark.parametrize(("slow", "enough_room"), [(2, True), (3, False)])
def test_the_budget_is_the_99th_percentile(slow: int, enough_room: bool) -> None:
    gate = rehearsing(200)
    for index in range(200):
        gate.cycle_of(19 * MS if index < slow else 5 * MS)
    assert (gate.admission.why_not_rehearsed() == "") == enough_room


def test_slow_rehearsals_are_forgotten_once_as_many_newer_ones_were_fast() -> None:
    gate = rehearsing()
    for took_ns in (19 * MS, 5 * MS, 5 * MS):
        gate.cycle_of(took_ns)
    assert gate.admission.why_not_rehearsed() != ""
    gate.cycle_of(5 * MS)
    assert gate.admission.why_not_rehearsed() == ""


def test_the_time_that_a_late_start_costs_counts_against_the_budget() -> None:
    gate = rehearsing()
    for _ in range(3):
        gate.now_ns = gate.admission.schedule.last_start_ns + T + 4 * MS
        gate.start()
        gate.now_ns += 15 * MS
        assert gate.command().kind is Kind.ADMIT
    assert "19.0 ms" in gate.admission.why_not_rehearsed()


@pytest.mark.parametrize("mode", Mode)
def test_rehearsals_of_an_earlier_arming_do_not_count(mode: Mode) -> None:
    gate = rehearsing()
    for _ in range(3):
        gate.cycle_of(5 * MS)
    gate.enter(mode)
    assert gate.admission.why_not_rehearsed() == "the policy process has completed no rehearsal"


def test_driving_is_no_rehearsal() -> None:
    gate = driving()
    for _ in range(10):
        assert gate.cycle_of(5 * MS).kind is Kind.ADMIT
    assert gate.admission.rehearsals_in_a_row == 0


def test_the_signs_of_life_are_counted_from_the_first_rehearsal_and_on_through_the_drive() -> None:
    gate = Gate()
    gate.enter(Mode.IDLE)
    gate.now_ns += 10 * SECOND
    gate.enter(Mode.REHEARSE)
    assert gate.admission.last_completed_ns == gate.now_ns
    gate.cycle_of(5 * MS)
    completed_ns = gate.now_ns
    gate.now_ns += 3 * MS
    gate.enter(Mode.DRIVE)
    assert gate.admission.last_completed_ns == completed_ns


def test_what_is_admitted_is_counted() -> None:
    gate = driving()
    for _ in range(5):
        gate.cycle_of(5 * MS)
    assert gate.admission.counts == {"admitted": 6}


def test_a_completed_cycle_is_a_sign_of_life_whatever_it_brings() -> None:
    gate = driving()
    gate.cycle_of(5 * MS)
    assert gate.admission.last_completed_ns == NOW + 25 * MS
    gate.now_ns += 1 * MS
    gate.start()
    gate.command(age_ns=-SECOND)
    assert gate.admission.last_completed_ns == NOW + 26 * MS
    gate.now_ns += 1 * MS
    gate.command(cycle=gate.cycle - 1)
    gate.command(epoch=gate.admission.epoch - 1)
    assert gate.admission.last_completed_ns == NOW + 26 * MS


# --- a policy process that says anything ---

TIMES = st.sampled_from([0, -1, 1, -(2**63), 2**63 - 1]) | st.integers(-200 * MS, 200 * MS).map(lambda off: NOW + off)
VALUE = st.sampled_from([0.0, 0.01, -0.01, 0.5, 0.51, math.nan, math.inf, -math.inf]) | st.floats()
MESSAGE = st.tuples(
    st.integers(0, 30 * MS),
    st.sampled_from(["start", "command", "start", "command", "cycle"]),
    st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1]),
    st.sampled_from([0, 0, 0, 0, 0, 0, -1, 1, 2]),
    TIMES | st.none(),
    st.integers(0, 2),
    st.just(ZERO) | st.tuples(VALUE, VALUE, VALUE),
)


@settings(max_examples=150)
@given(st.lists(MESSAGE, min_size=5, max_size=40))
def test_whatever_it_says_only_what_is_allowed_is_admitted(
    messages: list[tuple[int, str, int, int, int | None, int, tuple[float, float, float]]],
) -> None:
    gate = driving()
    admission = gate.admission
    begun: set[int] = set()
    admitted_ns: list[int] = []
    newest_ns, latest_due_ns = 0, admission.due()[0]
    for elapsed_ns, kind, epoch_off, cycle_off, time_ns, crc, values in messages:
        gate.now_ns += elapsed_ns
        now_ns, epoch = gate.now_ns, admission.epoch + epoch_off
        if kind != "command":
            cycle = gate.cycle + 1 + cycle_off
            if admission.start(epoch, cycle, now_ns if time_ns is None else time_ns, now_ns).kind is Kind.ADMIT:
                gate.cycle = cycle
                begun.add(cycle)
        latest_due_ns = min(admission.due()[0], now_ns + T + ALLOWED)
        if kind != "start":
            captured_ns = now_ns - 5 * MS if time_ns is None else time_ns
            cycle = gate.cycle + cycle_off
            offer = Offer(epoch, cycle, captured_ns, crc, values)
            if admission.command(offer, now_ns).kind is Kind.ADMIT:
                assert epoch_off == 0
                assert now_ns <= latest_due_ns
                begun.remove(cycle)
                assert newest_ns <= captured_ns <= now_ns + 5 * MS
                assert now_ns - captured_ns <= MAX_AGE
                assert all(abs(v) <= limit for v, limit in zip(values, (0.5, 0.5, 1.5), strict=True))
                assert len(admitted_ns) < 4 or now_ns - admitted_ns[-4] >= T
                admission.wrote(offer, now_ns)
                admitted_ns.append(now_ns)
                newest_ns = min(captured_ns, now_ns)
        assert admission.due()[0] <= now_ns + T + ALLOWED


@pytest.mark.parametrize(("after_ns", "verdict"), [(0, Kind.ADMIT), (1, Kind.FAULT)])
def test_a_command_that_comes_after_the_picture_before_it_is_too_old_comes_too_late(
    after_ns: int, verdict: Kind
) -> None:
    gate = driving()  # the last rehearsal's frame was captured at NOW - 10 ms
    for _ in range(3):
        gate.cycle_of(0, age_ns=-SECOND)
    gate.now_ns = NOW + 4 * T
    gate.start()
    gate.now_ns = NOW - 10 * MS + MAX_AGE + after_ns
    found = gate.command(age_ns=5 * MS)
    assert (found.kind, found.reason) == (verdict, Reason.FRAME_STALE if after_ns else None)


def test_driving_without_any_usable_frame_becomes_stale() -> None:
    gate = driving()  # the last rehearsal's frame was captured at NOW - 10 ms
    for _ in range(4):
        gate.cycle_of(0, age_ns=-SECOND)
    assert gate.admission.due() == (NOW - 10 * MS + MAX_AGE, Reason.FRAME_STALE)


def test_a_late_command_from_an_unusable_frame_is_a_missed_deadline_all_the_same() -> None:
    gate = driving()
    gate.start()
    gate.now_ns += 20 * MS + 1
    assert is_fault(gate.command(age_ns=-SECOND), Reason.DEADLINE_MISSED)


def test_a_new_arming_does_not_grant_a_silent_policy_another_two_seconds() -> None:
    gate = driving()
    gate.cycle_of(5 * MS)
    completed_ns = gate.now_ns
    for _ in range(3):  # the stop, then armings by itself
        gate.now_ns += 700 * MS
        gate.enter(Mode.REHEARSE)
    assert gate.admission.last_completed_ns == completed_ns


def test_after_idling_the_clock_of_a_silent_policy_begins_anew() -> None:
    gate = driving()
    gate.enter(Mode.IDLE)
    gate.now_ns += 10 * SECOND
    gate.enter(Mode.REHEARSE)
    assert gate.admission.last_completed_ns == gate.now_ns


def test_a_frozen_picture_is_no_stop_while_rehearsing() -> None:
    gate = rehearsing()
    verdicts = [gate.cycle_of(0, same_picture=True) for _ in range(60)]
    assert {verdict.reason for verdict in verdicts} == {None}


@pytest.mark.parametrize(("age_ns", "lost"), [(SECOND, False), (SECOND + 1, True)])
def test_a_policy_without_frames_is_alive_until_its_camera_counts_as_lost(age_ns: int, lost: bool) -> None:
    gate = rehearsing()
    verdict = gate.admission.starved(gate.admission.epoch, gate.now_ns - age_ns, gate.now_ns)
    assert is_fault(verdict, Reason.CAMERA_LOST) if lost else is_drop(verdict, "no_frame")
    assert is_drop(gate.admission.starved(gate.admission.epoch - 1, 0, gate.now_ns), "old_epoch")
    gate.enter(Mode.IDLE)
    assert is_drop(gate.admission.starved(gate.admission.epoch, 0, gate.now_ns), "old_epoch")


@pytest.mark.parametrize("mode", [Mode.REHEARSE, Mode.IDLE])
def test_an_arming_knows_no_earlier_frames(mode: Mode) -> None:
    gate = driving()
    gate.enter(mode)
    gate.enter(Mode.REHEARSE)
    gate.start()
    assert gate.command(age_ns=60 * MS).kind is Kind.ADMIT


def test_a_picture_of_a_second_is_no_lost_camera_where_that_age_is_allowed() -> None:
    admission = Admission(
        period_ns=T,
        allowed_ns=ALLOWED,
        max_frame_age_ns=5 * SECOND,
        frozen_after_ns=0,
        limits=(AxisLimit(0.5, 1.0),) * 3,
        rehearsals=1,
    )
    gate = Gate(admission)
    gate.enter(Mode.DRIVE)
    admission.schedule.begin(NOW)
    gate.start()
    assert gate.command(age_ns=2 * SECOND).kind is Kind.ADMIT


@pytest.mark.parametrize("mode", Mode)
def test_a_cycle_that_is_under_way_when_the_mode_changes_is_counted_as_abandoned(mode: Mode) -> None:
    gate = driving()
    gate.enter(mode)
    assert "abandoned_cycle" not in gate.admission.counts
    gate.enter(Mode.REHEARSE)
    gate.start()
    gate.enter(mode)
    assert gate.admission.counts["abandoned_cycle"] == 1
