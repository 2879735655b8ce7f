"""The session's state machine, cell by cell and over long random lives, against a table written by hand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvla_daemon.core.messages import Phase, Reason, Stage
from mvla_daemon.core.safety import step
from mvla_daemon.core.session import Do, Effect, Event, Rules, State, What, initial, next_due_ns

MS = 1_000_000
SECOND = 1_000_000_000
NOW = 1_000 * SECOND
MANUAL = Rules(
    auto_arm=False,
    auto_recover=True,
    stop_category=1,
    stop_timeout_ns=1000 * MS,
    max_stops=3,
    stop_window_ns=60 * SECOND,
)
AUTO = replace(MANUAL, auto_arm=True)

RECOVERABLE = {Reason.DEADLINE_MISSED, Reason.FRAME_STALE}
BROKEN_POLICY = {Reason.POLICY_LOST, Reason.POLICY_ERROR, Reason.SEQUENCE_ERROR}
STRICTNESS = {
    Reason.DEADLINE_MISSED: 0,
    Reason.FRAME_STALE: 0,
    Reason.FRAME_FROZEN: 1,
    Reason.CAMERA_LOST: 1,
    Reason.NOT_FINITE: 1,
    Reason.LIMIT_VIOLATED: 1,
    Reason.POLICY_LOST: 1,
    Reason.POLICY_ERROR: 1,
    Reason.SEQUENCE_ERROR: 1,
    Reason.CONTROLLER_LOST: 2,
    Reason.CONTROLLER_RESET: 2,
    Reason.CONTROLLER_FAULT: 2,
    Reason.OPERATOR: 1,
    Reason.SHUTDOWN: 1,
    Reason.CONFIG_CHANGED: 1,
    Reason.INTERNAL: 1,
    Reason.PORT_LOST: 3,
    Reason.SUSPENDED: 1,
}
LATCHING = [reason for reason in Reason if reason not in RECOVERABLE]


def fault(reason: Reason) -> Event:
    return Event(What.FAULT, reason=reason)


ARM, DISARM, STOP, SHUTDOWN = Event(What.ARM), Event(What.DISARM), Event(What.STOP), Event(What.SHUTDOWN)
REHEARSED, CONFIRMED = Event(What.REHEARSED), Event(What.CONFIRMED)
STANDSTILL, TICK = Event(What.STANDSTILL), Event(What.TICK)
UNREACHABLE_SHUTDOWN = Event(What.SHUTDOWN, reachable=False)


def words(effects: tuple[Effect, ...]) -> list[str]:
    """Effects as short texts: "stop operator 1", "refuse because", "exit clean"."""
    said = []
    for effect in effects:
        text = effect.do.value
        if effect.do is Do.STOP:
            text += f" {effect.reason.label} {effect.category}"
        elif effect.do is Do.REFUSE:
            text += f" {effect.text}"
        elif effect.do is Do.EXIT:
            text += " clean" if effect.clean else " unclean"
        said.append(text)
    return said


@dataclass
class Session:
    """A session that is led through events, at a time that only the test moves."""

    rules: Rules = MANUAL
    now_ns: int = NOW
    state: State = field(init=False)

    def __post_init__(self) -> None:
        self.state = initial(self.rules, self.now_ns)

    def take(self, *events: Event, after_ns: int = 0) -> list[str]:
        """What the last of these events leads to."""
        self.now_ns += after_ns
        effects: tuple[Effect, ...] = ()
        for event in events:
            self.state, effects = step(self.rules, self.state, event, self.now_ns)
        return words(effects)


def session(phase: Phase, rules: Rules = MANUAL, reason: Reason | None = None) -> Session:
    """A session that has come to this phase by events; stopped for `reason` where the phase is of a stop."""
    lived = Session(rules)
    if phase is Phase.LATCHED:
        lived.take(ARM, REHEARSED, CONFIRMED, fault(reason or Reason.NOT_FINITE), STANDSTILL)
    elif phase is not Phase.DISARMED:
        way = [ARM, REHEARSED, CONFIRMED, fault(reason or Reason.DEADLINE_MISSED), STANDSTILL]
        lived.take(*way[: {Phase.ARMING: 1, Phase.ARMED: 3, Phase.STOPPING: 4, Phase.STOPPED: 5}[phase]])
    assert lived.state.phase is phase
    return lived


def arming_with_arm_sent(origin: Phase = Phase.DISARMED) -> Session:
    lived = session(origin)
    assert lived.take(ARM) == ["rehearse"]
    assert lived.take(REHEARSED) == ["arm"]
    return lived


# --- the whole table, by hand ---

NOTHING: list[str] = []
CELLS: dict[tuple[Phase, What], tuple[Phase, list[str]]] = {
    (Phase.DISARMED, What.ARM): (Phase.ARMING, ["rehearse"]),
    (Phase.DISARMED, What.DISARM): (Phase.DISARMED, NOTHING),
    (Phase.DISARMED, What.STOP): (Phase.STOPPING, ["stop operator 1", "idle"]),
    (Phase.DISARMED, What.SHUTDOWN): (Phase.STOPPING, ["stop shutdown 1", "idle"]),
    (Phase.DISARMED, What.REHEARSED): (Phase.DISARMED, NOTHING),
    (Phase.DISARMED, What.CONFIRMED): (Phase.DISARMED, NOTHING),
    (Phase.DISARMED, What.FAULT): (Phase.DISARMED, NOTHING),
    (Phase.DISARMED, What.STANDSTILL): (Phase.DISARMED, NOTHING),
    (Phase.DISARMED, What.TICK): (Phase.DISARMED, NOTHING),
    (Phase.ARMING, What.ARM): (Phase.ARMING, ["refuse arming is under way already"]),
    (Phase.ARMING, What.DISARM): (Phase.DISARMED, ["idle"]),
    (Phase.ARMING, What.STOP): (Phase.STOPPING, ["stop operator 1", "idle"]),
    (Phase.ARMING, What.SHUTDOWN): (Phase.STOPPING, ["stop shutdown 1", "idle"]),
    (Phase.ARMING, What.REHEARSED): (Phase.ARMING, ["arm"]),
    (Phase.ARMING, What.CONFIRMED): (Phase.ARMING, NOTHING),
    (Phase.ARMING, What.FAULT): (Phase.DISARMED, ["idle", "refuse arming was given up: not_finite"]),
    (Phase.ARMING, What.STANDSTILL): (Phase.ARMING, NOTHING),
    (Phase.ARMING, What.TICK): (Phase.ARMING, NOTHING),
    (Phase.ARMED, What.ARM): (Phase.ARMED, ["refuse the robot is armed already"]),
    (Phase.ARMED, What.DISARM): (Phase.STOPPING, ["stop operator 1", "idle"]),
    (Phase.ARMED, What.STOP): (Phase.STOPPING, ["stop operator 1", "idle"]),
    (Phase.ARMED, What.SHUTDOWN): (Phase.STOPPING, ["stop shutdown 1", "idle"]),
    (Phase.ARMED, What.REHEARSED): (Phase.ARMED, NOTHING),
    (Phase.ARMED, What.CONFIRMED): (Phase.ARMED, NOTHING),
    (Phase.ARMED, What.FAULT): (Phase.STOPPING, ["stop not_finite 1", "idle"]),
    (Phase.ARMED, What.STANDSTILL): (Phase.ARMED, NOTHING),
    (Phase.ARMED, What.TICK): (Phase.ARMED, NOTHING),
    (Phase.STOPPING, What.ARM): (Phase.STOPPING, ["refuse the robot is still stopping"]),
    (Phase.STOPPING, What.DISARM): (Phase.STOPPING, ["stop operator 1", "idle"]),
    (Phase.STOPPING, What.STOP): (Phase.STOPPING, ["stop operator 1", "idle"]),
    (Phase.STOPPING, What.SHUTDOWN): (Phase.STOPPING, ["stop shutdown 1", "idle"]),
    (Phase.STOPPING, What.REHEARSED): (Phase.STOPPING, NOTHING),
    (Phase.STOPPING, What.CONFIRMED): (Phase.STOPPING, NOTHING),
    (Phase.STOPPING, What.FAULT): (Phase.STOPPING, ["stop not_finite 1", "idle"]),
    (Phase.STOPPING, What.STANDSTILL): (Phase.STOPPED, NOTHING),
    (Phase.STOPPING, What.TICK): (Phase.STOPPING, NOTHING),
    (Phase.STOPPED, What.ARM): (Phase.ARMING, ["rehearse"]),
    (Phase.STOPPED, What.DISARM): (Phase.DISARMED, ["idle"]),
    (Phase.STOPPED, What.STOP): (Phase.LATCHED, ["stop operator 1", "idle"]),
    (Phase.STOPPED, What.SHUTDOWN): (Phase.STOPPING, ["stop shutdown 1", "idle"]),
    (Phase.STOPPED, What.REHEARSED): (Phase.STOPPED, NOTHING),
    (Phase.STOPPED, What.CONFIRMED): (Phase.STOPPED, NOTHING),
    (Phase.STOPPED, What.FAULT): (Phase.LATCHED, ["stop not_finite 1", "idle"]),
    (Phase.STOPPED, What.STANDSTILL): (Phase.STOPPED, NOTHING),
    (Phase.STOPPED, What.TICK): (Phase.STOPPED, NOTHING),
    (Phase.LATCHED, What.ARM): (Phase.ARMING, ["rehearse"]),
    (Phase.LATCHED, What.DISARM): (
        Phase.LATCHED,
        ["refuse the stop is latched, nothing moves; only `mvla-daemon arm` ends it"],
    ),
    (Phase.LATCHED, What.STOP): (Phase.LATCHED, NOTHING),
    (Phase.LATCHED, What.SHUTDOWN): (Phase.STOPPING, ["stop shutdown 1", "idle"]),
    (Phase.LATCHED, What.REHEARSED): (Phase.LATCHED, NOTHING),
    (Phase.LATCHED, What.CONFIRMED): (Phase.LATCHED, NOTHING),
    (Phase.LATCHED, What.FAULT): (Phase.LATCHED, NOTHING),
    (Phase.LATCHED, What.STANDSTILL): (Phase.LATCHED, NOTHING),
    (Phase.LATCHED, What.TICK): (Phase.LATCHED, NOTHING),
}
MEMORY_ONLY = {(Phase.DISARMED, What.DISARM)}
"""Cells without a new phase or an effect that still remember something."""


@pytest.mark.parametrize("rules", [MANUAL, AUTO])
def test_a_session_begins_with_nothing_but_what_was_configured(rules: Rules) -> None:
    assert initial(rules, NOW) == State(
        since_ns=NOW - SECOND,
        phase=Phase.DISARMED,
        reason=None,
        origin=Phase.DISARMED,
        arm_sent=False,
        disarming=False,
        exiting=False,
        wants_arming=rules.auto_arm,
        stops_ns=(),
        category=2,
    )


def test_events_and_effects_are_called_by_their_names() -> None:
    assert [what.value for what in What] == [what.name.lower() for what in What]
    assert [do.value for do in Do] == [do.name.lower() for do in Do]


def test_reasons_and_stages_are_labelled_by_their_names_for_people() -> None:
    assert Reason.DEADLINE_MISSED.label == "deadline_missed"
    stages = ["wait_frame", "preprocess", "h2d", "compute", "d2h", "postprocess", "send"]
    assert [stage.label for stage in Stage] == stages


def test_a_fault_without_a_reason_is_one_of_our_own() -> None:
    assert session(Phase.ARMED).take(Event(What.FAULT)) == ["stop internal 1", "idle"]


def test_the_table_by_hand_has_all_54_cells() -> None:
    assert set(CELLS) == set(product(Phase, What))
    assert len(CELLS) == 54


@pytest.mark.parametrize(("phase", "what"), CELLS)
def test_each_cell(phase: Phase, what: What) -> None:
    lived = session(phase)
    before = lived.state
    effects = lived.take(Event(what, reason=Reason.NOT_FINITE), after_ns=100 * MS)
    assert (lived.state.phase, effects) == CELLS[phase, what]
    if lived.state.phase is not phase:
        assert lived.state.since_ns == lived.now_ns
    if CELLS[phase, what] == (phase, NOTHING) and (phase, what) not in MEMORY_ONLY:
        assert lived.state is before


@pytest.mark.parametrize("origin", [Phase.DISARMED, Phase.STOPPED, Phase.LATCHED])
@pytest.mark.parametrize("what", What)
def test_after_arm_was_sent_everything_but_the_confirmation_stops_or_waits(origin: Phase, what: What) -> None:
    lived = arming_with_arm_sent(origin)
    effects = lived.take(Event(what, reason=Reason.NOT_FINITE), after_ns=100 * MS)
    expected = {
        What.ARM: (Phase.ARMING, ["refuse arming is under way already"]),
        What.DISARM: (Phase.STOPPING, ["stop operator 1", "idle"]),
        What.STOP: (Phase.STOPPING, ["stop operator 1", "idle"]),
        What.SHUTDOWN: (Phase.STOPPING, ["stop shutdown 1", "idle"]),
        What.CONFIRMED: (Phase.ARMED, ["drive"]),
        What.FAULT: (Phase.STOPPING, ["stop not_finite 1", "idle"]),
    }
    assert (lived.state.phase, effects) == expected.get(what, (Phase.ARMING, []))


# --- arming ---


@pytest.mark.parametrize("origin", [Phase.DISARMED, Phase.STOPPED, Phase.LATCHED])
def test_arming_is_rehearsals_then_arm_then_confirmation_then_drive(origin: Phase) -> None:
    lived = session(origin)
    assert lived.take(ARM) == ["rehearse"]
    assert lived.take(CONFIRMED) == []
    assert lived.take(REHEARSED) == ["arm"]
    assert lived.take(REHEARSED) == []
    assert lived.take(CONFIRMED) == ["drive"]
    assert lived.state.phase is Phase.ARMED
    assert lived.state.reason is None


@pytest.mark.parametrize("origin", [Phase.DISARMED, Phase.STOPPED, Phase.LATCHED])
def test_arming_is_refused_at_once_while_something_is_missing(origin: Phase) -> None:
    lived = session(origin)
    before = lived.state
    assert lived.take(Event(What.ARM, missing="the port is gone")) == ["refuse the port is gone"]
    assert lived.state is before


@pytest.mark.parametrize(
    ("origin", "mode"), [(Phase.DISARMED, "idle"), (Phase.STOPPED, "rehearse"), (Phase.LATCHED, "idle")]
)
def test_arming_that_takes_5_s_is_refused_and_leads_back_to_where_it_began(origin: Phase, mode: str) -> None:
    lived = session(origin)
    reason = lived.state.reason
    lived.take(ARM)
    assert lived.take(Event(What.TICK, missing="too slow"), after_ns=5 * SECOND - 1) == []
    assert lived.state.phase is Phase.ARMING
    assert lived.take(Event(What.TICK, missing="too slow"), after_ns=1) == [mode, "refuse too slow"]
    assert (lived.state.phase, lived.state.reason) == (origin, reason)


def test_an_arm_that_is_not_confirmed_within_200_ms_is_a_controller_fault() -> None:
    lived = arming_with_arm_sent()
    assert lived.take(TICK, after_ns=200 * MS - 1) == []
    assert lived.take(TICK, after_ns=1) == ["stop controller_fault 1", "idle"]
    lived.take(STANDSTILL)
    assert (lived.state.phase, lived.state.reason) == (Phase.LATCHED, Reason.CONTROLLER_FAULT)


def test_the_200_ms_begin_with_arm_and_not_with_the_rehearsals() -> None:
    lived = session(Phase.ARMING)
    lived.take(REHEARSED, after_ns=4_900 * MS)
    assert lived.take(TICK, after_ns=199 * MS) == []
    assert lived.take(CONFIRMED) == ["drive"]


@pytest.mark.parametrize("origin", [Phase.DISARMED, Phase.STOPPED, Phase.LATCHED])
@pytest.mark.parametrize("reason", sorted(RECOVERABLE))
def test_a_late_rehearsal_is_no_stop_before_arm_was_sent(origin: Phase, reason: Reason) -> None:
    lived = session(origin)
    lived.take(ARM)
    before = lived.state
    assert lived.take(fault(reason)) == []
    assert lived.state is before


@pytest.mark.parametrize("reason", LATCHING)
def test_a_fault_before_arm_was_sent_gives_the_arming_up_without_a_word_to_the_controller(reason: Reason) -> None:
    lived = session(Phase.ARMING)
    renewal = ["renew_policy"] if reason in BROKEN_POLICY else []
    assert lived.take(fault(reason)) == [*renewal, "idle", f"refuse arming was given up: {reason.label}"]
    assert lived.state.phase is Phase.DISARMED


@pytest.mark.parametrize("reason", LATCHING)
def test_a_fault_while_a_stopped_robot_rehearses_latches(reason: Reason) -> None:
    lived = session(Phase.STOPPED)
    lived.take(ARM)
    effects = lived.take(fault(reason))
    said = {f"stop {reason.label} 1", f"refuse arming was given up: {reason.label}"}
    assert set(effects) - {"idle", "renew_policy"} == said
    assert ("renew_policy" in effects) == (reason in BROKEN_POLICY)
    assert (lived.state.phase, lived.state.reason) == (Phase.LATCHED, reason)


def test_a_fault_while_a_latched_robot_rehearses_leaves_it_latched_for_the_stricter_reason() -> None:
    lived = session(Phase.LATCHED, reason=Reason.CONTROLLER_RESET)
    lived.take(ARM, fault(Reason.NOT_FINITE))
    assert (lived.state.phase, lived.state.reason) == (Phase.LATCHED, Reason.CONTROLLER_RESET)
    lived.take(ARM, fault(Reason.PORT_LOST))
    assert (lived.state.phase, lived.state.reason) == (Phase.LATCHED, Reason.PORT_LOST)


@pytest.mark.parametrize("reason", Reason)
@pytest.mark.parametrize("origin", [Phase.DISARMED, Phase.STOPPED, Phase.LATCHED])
def test_every_fault_after_arm_was_sent_is_a_stop(origin: Phase, reason: Reason) -> None:
    lived = arming_with_arm_sent(origin)
    assert lived.take(fault(reason))[0] == f"stop {reason.label} 1"
    assert (lived.state.phase, lived.state.reason) == (Phase.STOPPING, reason)
    assert lived.take(CONFIRMED) == []


def test_disarming_an_arming_that_began_from_a_stop_says_stop_once_more() -> None:
    lived = session(Phase.STOPPED)
    lived.take(ARM)
    assert lived.take(DISARM) == ["stop operator 1", "idle"]
    lived.take(STANDSTILL)
    assert lived.state.phase is Phase.DISARMED


def test_arm_and_disarm_do_not_take_a_latch_back() -> None:
    lived = session(Phase.LATCHED, reason=Reason.CONTROLLER_FAULT)
    lived.take(ARM)
    assert lived.take(DISARM) == ["idle"]
    lived.take(STANDSTILL)
    assert (lived.state.phase, lived.state.reason) == (Phase.LATCHED, Reason.CONTROLLER_FAULT)


def test_a_shutdown_without_standstill_removes_the_drive_before_it_exits() -> None:
    lived = session(Phase.ARMED)
    lived.take(SHUTDOWN)
    assert lived.take(TICK, after_ns=1000 * MS) == ["stop controller_fault 0", "exit unclean"]


@pytest.mark.parametrize("phase", [Phase.STOPPING, Phase.STOPPED])
def test_an_escalation_is_said_on_the_wire(phase: Phase) -> None:
    assert session(phase).take(fault(Reason.POLICY_LOST)) == ["stop policy_lost 1", "idle", "renew_policy"]


def test_no_new_policy_process_is_started_on_the_way_out() -> None:
    lived = session(Phase.ARMED)
    lived.take(SHUTDOWN)
    assert lived.take(fault(Reason.POLICY_LOST)) == []


# --- by itself, or not ---


def test_configured_to_arm_by_itself_it_does_so_at_once_and_retries_a_second_after_a_refusal() -> None:
    lived = Session(AUTO)
    assert lived.take(TICK) == ["rehearse"]
    lived.take(Event(What.TICK, missing="too slow"), after_ns=5 * SECOND)
    assert lived.state.phase is Phase.DISARMED
    assert lived.take(TICK, after_ns=1 * SECOND - 1) == []
    assert lived.take(TICK, after_ns=1) == ["rehearse"]


def test_arming_by_itself_waits_in_silence_while_something_is_missing() -> None:
    lived = Session(AUTO)
    before = lived.state
    assert lived.take(Event(What.TICK, missing="the policy process is still loading"), after_ns=SECOND) == []
    assert lived.state is before
    assert lived.take(TICK) == ["rehearse"]


@pytest.mark.parametrize("phase", [Phase.DISARMED, Phase.ARMING, Phase.ARMED, Phase.STOPPING, Phase.STOPPED])
def test_after_a_disarming_nothing_arms_by_itself_any_more(phase: Phase) -> None:
    lived = session(phase, AUTO)
    lived.take(DISARM)
    lived.take(STANDSTILL)
    assert lived.state.phase is Phase.DISARMED
    assert lived.take(TICK, after_ns=3600 * SECOND) == []
    assert next_due_ns(AUTO, lived.state) is None


@pytest.mark.parametrize("event", [TICK, STANDSTILL, REHEARSED, CONFIRMED, *map(fault, Reason)])
def test_configured_to_arm_by_hand_it_never_does_so_by_itself(event: Event) -> None:
    lived = Session(MANUAL)
    effects = lived.take(event, after_ns=3600 * SECOND)
    assert set(effects) <= {"renew_policy"}
    assert lived.state.phase is Phase.DISARMED
    assert next_due_ns(MANUAL, lived.state) is None


@pytest.mark.parametrize("reason", Reason)
def test_what_follows_standstill_depends_on_the_reason_alone(reason: Reason) -> None:
    lived = session(Phase.STOPPING, reason=reason)
    effects = lived.take(STANDSTILL, after_ns=50 * MS)
    if reason in RECOVERABLE:
        assert (lived.state.phase, effects) == (Phase.STOPPED, [])
    else:
        assert (lived.state.phase, effects) == (Phase.LATCHED, ["idle"])
    assert lived.state.reason is reason


@pytest.mark.parametrize("reason", sorted(RECOVERABLE))
def test_without_automatic_recovery_every_stop_latches(reason: Reason) -> None:
    lived = session(Phase.STOPPING, replace(MANUAL, auto_recover=False), reason)
    assert lived.take(STANDSTILL) == ["idle"]
    assert lived.state.phase is Phase.LATCHED


def test_a_stopped_robot_arms_by_itself_500_ms_after_standstill_and_not_after_the_stop() -> None:
    lived = session(Phase.STOPPING)
    lived.take(STANDSTILL, after_ns=600 * MS)
    assert lived.take(TICK, after_ns=500 * MS - 1) == []
    assert lived.state.phase is Phase.STOPPED
    assert lived.take(TICK, after_ns=1) == ["rehearse"]
    assert lived.state.phase is Phase.ARMING


def test_a_stopped_robot_waits_in_silence_while_something_is_missing() -> None:
    lived = session(Phase.STOPPED)
    before = lived.state
    assert lived.take(Event(What.TICK, missing="the port is gone"), after_ns=3600 * SECOND) == []
    assert lived.state is before
    assert lived.take(TICK) == ["rehearse"]


def stop_and_stand(lived: Session, reason: Reason = Reason.DEADLINE_MISSED) -> Phase:
    """The phase after one more way from standstill to driving, a stop, and standstill again."""
    lived.take(ARM, REHEARSED, CONFIRMED, fault(reason), STANDSTILL)
    return lived.state.phase


@pytest.mark.parametrize("max_stops", [1, 2, 3, 5])
def test_the_last_allowed_stop_within_the_window_latches(max_stops: int) -> None:
    lived = Session(replace(MANUAL, max_stops=max_stops))
    phases = []
    for _ in range(max_stops):
        phases.append(stop_and_stand(lived))
        lived.now_ns += 1 * SECOND
    assert phases == [Phase.STOPPED] * (max_stops - 1) + [Phase.LATCHED]


@pytest.mark.parametrize(("window_ns", "phase"), [(0, Phase.STOPPED), (-1, Phase.LATCHED)])
def test_a_stop_counts_until_the_window_is_over(window_ns: int, phase: Phase) -> None:
    lived = Session(MANUAL)
    for _ in range(2):
        assert stop_and_stand(lived) is Phase.STOPPED
        lived.now_ns += 20 * SECOND
    lived.now_ns += 20 * SECOND + window_ns  # now 60 s after the first
    assert stop_and_stand(lived) is phase


@pytest.mark.parametrize(("late_ns", "phase"), [(0, Phase.STOPPED), (-1, Phase.LATCHED)])
def test_the_window_is_looked_at_when_the_robot_stands(late_ns: int, phase: Phase) -> None:
    lived = Session(replace(MANUAL, max_stops=2))
    assert stop_and_stand(lived) is Phase.STOPPED
    lived.take(ARM, REHEARSED, CONFIRMED)
    lived.take(fault(Reason.FRAME_STALE), after_ns=59_900 * MS)
    lived.take(STANDSTILL, after_ns=100 * MS + late_ns)
    assert lived.state.phase is phase


def test_stops_that_are_a_window_apart_never_latch_and_are_not_kept() -> None:
    lived = Session(MANUAL)
    for _ in range(20):
        assert stop_and_stand(lived) is Phase.STOPPED
        assert len(lived.state.stops_ns) == 1
        lived.now_ns += 60 * SECOND


def test_an_arming_by_hand_does_not_forget_the_stops() -> None:
    lived = Session(MANUAL)
    assert [stop_and_stand(lived) for _ in range(4)] == [Phase.STOPPED, Phase.STOPPED, Phase.LATCHED, Phase.LATCHED]
    assert len(lived.state.stops_ns) == 3


# --- a stop under way ---


@pytest.mark.parametrize("reason", Reason)
def test_a_fault_while_driving_says_stop_before_anything_else(reason: Reason) -> None:
    lived = session(Phase.ARMED, replace(MANUAL, stop_category=0))
    mode = "rehearse" if reason in RECOVERABLE else "idle"
    renewal = ["renew_policy"] if reason in BROKEN_POLICY else []
    assert lived.take(fault(reason)) == [f"stop {reason.label} 0", mode, *renewal]
    assert (lived.state.phase, lived.state.reason) == (Phase.STOPPING, reason)
    assert lived.state.stops_ns == (NOW,)


@pytest.mark.parametrize("first", Reason)
def test_a_stop_takes_over_only_a_stricter_reason(first: Reason) -> None:
    for second in Reason:
        lived = session(Phase.STOPPING, reason=first)
        stopping_since_ns = lived.state.since_ns
        effects = lived.take(fault(second), after_ns=100 * MS)
        stricter = STRICTNESS[second] > STRICTNESS[first]
        assert lived.state.reason is (second if stricter else first)
        assert (lived.state.phase, lived.state.since_ns) == (Phase.STOPPING, stopping_since_ns)
        assert ("idle" in effects) == stricter
        assert ("renew_policy" in effects) == (second in BROKEN_POLICY)
        assert len(lived.state.stops_ns) == 1


@pytest.mark.parametrize("reason", Reason)
def test_standing_still_a_stricter_reason_latches(reason: Reason) -> None:
    lived = session(Phase.STOPPED)
    lived.take(fault(reason))
    expected = (Phase.STOPPED, Reason.DEADLINE_MISSED) if reason in RECOVERABLE else (Phase.LATCHED, reason)
    assert (lived.state.phase, lived.state.reason) == expected


@pytest.mark.parametrize("first", LATCHING)
def test_a_latch_takes_over_only_a_stricter_reason(first: Reason) -> None:
    for second in Reason:
        lived = session(Phase.LATCHED, reason=first)
        effects = lived.take(fault(second))
        assert lived.state.phase is Phase.LATCHED
        assert lived.state.reason is (second if STRICTNESS[second] > STRICTNESS[first] else first)
        said = [f"stop {second.label} 1"] if STRICTNESS[second] > STRICTNESS[first] else []
        assert effects == [*said, *(["renew_policy"] if second in BROKEN_POLICY else [])]


def test_an_operators_stop_of_a_stopped_robot_latches() -> None:
    lived = session(Phase.STOPPED)
    lived.take(STOP)
    assert (lived.state.phase, lived.state.reason) == (Phase.LATCHED, Reason.OPERATOR)


@pytest.mark.parametrize(
    ("configured", "words"), [(0, ["stop shutdown 0"]), (1, ["stop shutdown 0"]), (2, ["stop shutdown 0"])]
)
def test_a_stop_never_loosens(configured: int, words: list[str]) -> None:
    lived = session(Phase.STOPPING, replace(MANUAL, stop_category=configured))
    assert lived.take(TICK, after_ns=1000 * MS)[0] == "stop controller_fault 0"
    assert lived.take(SHUTDOWN, after_ns=SECOND)[:1] == words


@pytest.mark.parametrize("configured", [0, 1, 2])
def test_after_a_new_drive_a_stop_is_of_the_configured_category_again(configured: int) -> None:
    lived = session(Phase.STOPPING, replace(MANUAL, stop_category=configured))
    lived.take(TICK, after_ns=1000 * MS)
    lived.take(ARM, REHEARSED)
    before = lived.state
    assert lived.take(STOP)[0] == "stop operator 0"  # not known to drive: the old category stands
    lived.state = before
    lived.take(CONFIRMED)
    assert lived.take(STOP)[0] == f"stop operator {configured}"


def test_an_operators_stop_turns_what_would_pass_by_itself_into_a_latch() -> None:
    lived = session(Phase.STOPPING)
    lived.take(STOP, STANDSTILL)
    assert (lived.state.phase, lived.state.reason) == (Phase.LATCHED, Reason.OPERATOR)


@pytest.mark.parametrize("reason", LATCHING)
@pytest.mark.parametrize("event", [STOP, DISARM])
def test_an_operators_word_never_takes_a_latch_back(reason: Reason, event: Event) -> None:
    lived = session(Phase.STOPPING, reason=reason)
    assert lived.take(event) == []
    lived.take(STANDSTILL)
    assert (lived.state.phase, lived.state.reason) == (Phase.LATCHED, reason)


@pytest.mark.parametrize(
    ("events", "phase"),
    [
        ([DISARM], Phase.DISARMED),
        ([STOP], Phase.LATCHED),
        ([DISARM, DISARM], Phase.DISARMED),
        ([DISARM, STOP], Phase.LATCHED),
        ([STOP, DISARM], Phase.LATCHED),
        ([DISARM, STOP, DISARM], Phase.LATCHED),
        ([DISARM, fault(Reason.DEADLINE_MISSED)], Phase.DISARMED),
        ([DISARM, fault(Reason.CONTROLLER_FAULT)], Phase.LATCHED),
        ([DISARM, fault(Reason.CONTROLLER_FAULT), DISARM], Phase.LATCHED),
    ],
)
def test_where_a_driving_robot_ends_by_an_operators_words(events: list[Event], phase: Phase) -> None:
    lived = session(Phase.ARMED)
    lived.take(*events)
    assert lived.state.phase is Phase.STOPPING
    lived.take(STANDSTILL)
    assert lived.state.phase is phase


@pytest.mark.parametrize("reason", Reason)
def test_without_standstill_in_time_the_drive_is_removed_and_the_stop_latched(reason: Reason) -> None:
    lived = session(Phase.STOPPING, reason=reason)
    assert lived.take(TICK, after_ns=1000 * MS - 1) == []
    effects = lived.take(TICK, after_ns=1)
    latched_for = reason if STRICTNESS[reason] >= 2 else Reason.CONTROLLER_FAULT
    assert effects == [f"stop {latched_for.label} 0", "idle"]
    assert (lived.state.phase, lived.state.reason) == (Phase.LATCHED, latched_for)


def test_a_disarming_without_standstill_in_time_latches() -> None:
    lived = session(Phase.ARMED)
    lived.take(DISARM)
    assert lived.take(TICK, after_ns=1000 * MS) == ["stop controller_fault 0", "idle"]
    assert lived.state.phase is Phase.LATCHED
    assert lived.take(STANDSTILL) == []


def test_standstill_at_the_last_moment_is_in_time() -> None:
    lived = session(Phase.STOPPING)
    lived.take(STANDSTILL, after_ns=1000 * MS)
    assert lived.state.phase is Phase.STOPPED


# --- the end ---


@pytest.mark.parametrize("phase", Phase)
def test_a_shutdown_waits_for_standstill_and_then_exits(phase: Phase) -> None:
    lived = session(phase)
    assert lived.take(SHUTDOWN) == ["stop shutdown 1", "idle"]
    assert lived.state.phase is Phase.STOPPING
    assert lived.take(TICK, after_ns=1000 * MS - 1) == []
    assert lived.take(STANDSTILL) == ["exit clean"]


@pytest.mark.parametrize("phase", Phase)
def test_a_shutdown_without_standstill_in_time_is_not_clean(phase: Phase) -> None:
    lived = session(phase)
    lived.take(SHUTDOWN)
    effects = lived.take(TICK, after_ns=1000 * MS)
    assert effects[-1] == "exit unclean"
    assert "exit clean" not in effects


@pytest.mark.parametrize("phase", Phase)
def test_a_shutdown_with_nobody_to_tell_exits_at_once(phase: Phase) -> None:
    lived = session(phase)
    assert lived.take(UNREACHABLE_SHUTDOWN) == ["idle", "exit clean"]


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("second", [SHUTDOWN, UNREACHABLE_SHUTDOWN])
def test_a_second_shutdown_changes_nothing(phase: Phase, second: Event) -> None:
    lived = session(phase)
    lived.take(SHUTDOWN)
    before = lived.state
    assert lived.take(second, after_ns=500 * MS) == []
    assert lived.state is before


@pytest.mark.parametrize("event", [ARM, DISARM, STOP, REHEARSED, CONFIRMED, *map(fault, Reason)])
def test_nothing_but_standstill_and_time_ends_a_shutdown(event: Event) -> None:
    lived = session(Phase.ARMED)
    lived.take(SHUTDOWN)
    effects = lived.take(event)
    assert (lived.state.phase, lived.state.reason) == (Phase.STOPPING, Reason.SHUTDOWN)
    assert {effect.split()[0] for effect in effects} <= {"refuse", "renew_policy"}
    assert lived.take(STANDSTILL) == ["exit clean"]


# --- long lives ---

FORWARD = {
    Phase.DISARMED: (ARM,),
    Phase.ARMING: (REHEARSED, CONFIRMED),
    Phase.ARMED: (fault(Reason.DEADLINE_MISSED), fault(Reason.FRAME_STALE), DISARM),
    Phase.STOPPING: (STANDSTILL,),
    Phase.STOPPED: (TICK,),
    Phase.LATCHED: (ARM,),
}
EVENTS = (
    ARM,
    Event(What.ARM, missing="something"),
    DISARM,
    STOP,
    SHUTDOWN,
    UNREACHABLE_SHUTDOWN,
    REHEARSED,
    CONFIRMED,
    *map(fault, Reason),
    STANDSTILL,
    TICK,
    Event(What.TICK, missing="something"),
)
DELAYS_NS = (0, 1, 20 * MS, 199 * MS, 200 * MS, 500 * MS, 1 * SECOND, 5 * SECOND, 60 * SECOND)
MOVING = {"rehearse", "arm", "drive"}


@dataclass
class Life(Session):
    """A session whose every step is held against what must be true of all; after EXIT a new one begins."""

    mode: str = "idle"
    arm_said: bool = False
    """ARM was written, and no STOP since."""
    latched: bool = False
    asked: bool = False
    met: set[tuple[Phase, What]] = field(default_factory=set)

    def live(self, event: Event) -> None:
        before, self.met = self.state, self.met | {(self.state.phase, event.what)}
        self.asked |= event.what is What.ARM
        effects = self.take(event)
        self.check_motion(event, effects)
        self.check_stops(before, event, effects)
        self.check_reason(before, event)
        self.check_memory(before, event)
        self.check_timer()
        if any(effect.startswith("exit") for effect in effects):
            assert self.state.exiting
            self.state, self.mode, self.arm_said, self.latched = initial(self.rules, self.now_ns), "idle", False, False
            self.asked = False

    def check_motion(self, event: Event, effects: list[str]) -> None:
        if self.latched:
            assert event.what is What.ARM or not MOVING & set(effects)
        if not self.rules.auto_arm and not self.asked:
            assert not MOVING & set(effects)
        for effect in effects:
            if effect.startswith("stop"):
                self.arm_said = False
            elif effect == "arm":
                assert self.mode == "rehearse"
                self.arm_said = True
            elif effect == "drive":
                assert event.what is What.CONFIRMED
                assert self.arm_said
                assert self.mode == "rehearse"
            if effect in {"idle", "rehearse", "drive"}:
                self.mode = effect
        assert (self.mode == "drive") == (self.state.phase is Phase.ARMED and not self.state.exiting)
        self.latched = self.state.phase is Phase.LATCHED or (self.latched and "rehearse" not in effects)

    def check_stops(self, before: State, event: Event, effects: list[str]) -> None:
        under_power = before.phase is Phase.ARMED or before.arm_sent
        left = self.state.phase not in {Phase.ARMED, Phase.ARMING}
        if under_power and left:
            assert effects[0].startswith("stop ")
            assert self.state.phase is Phase.STOPPING
        if before.phase is Phase.ARMED and event.what is What.FAULT:
            assert effects[0] == f"stop {event.reason.label} 1"
        if self.state.phase is Phase.STOPPING and before.phase is not Phase.STOPPING:
            assert self.state.stops_ns[-1] == self.now_ns
        assert list(self.state.stops_ns) == sorted(self.state.stops_ns)
        assert len(self.state.stops_ns) <= self.rules.max_stops
        assert not any(effect.startswith("stop") for effect in effects[1:])

    def check_reason(self, before: State, event: Event) -> None:
        stopped = {Phase.STOPPING, Phase.STOPPED, Phase.LATCHED}
        if before.phase in stopped and self.state.phase in stopped and event.what is not What.SHUTDOWN:
            assert before.reason is not None
            assert self.state.reason is not None
            assert STRICTNESS[self.state.reason] >= STRICTNESS[before.reason]
        if self.state.phase is Phase.STOPPED:
            assert self.state.reason in RECOVERABLE

    def check_memory(self, before: State, event: Event) -> None:
        """What a phase remembers is of this phase."""
        state = self.state
        if state.phase is not before.phase:
            assert state.since_ns == self.now_ns
        if state.arm_sent:
            assert state.phase in {Phase.ARMING, Phase.ARMED}
        if state.disarming:
            assert (state.phase, state.reason) == (Phase.STOPPING, Reason.OPERATOR)
        if event.what in {What.STOP, What.DISARM} and before.phase is not Phase.LATCHED and not state.exiting:
            assert not state.wants_arming

    def check_timer(self) -> None:
        due_ns = next_due_ns(self.rules, self.state)
        if due_ns is None:
            assert step(self.rules, self.state, TICK, self.now_ns + 3600 * SECOND) == (self.state, ())
            return
        early, nothing = step(self.rules, self.state, TICK, due_ns - 1)
        assert early is self.state
        assert nothing == ()
        assert step(self.rules, self.state, TICK, due_ns) != (self.state, ())


def live(life: Life, choices: list[tuple[Event | None, int]]) -> None:
    """Live through these events; None stands for what leads on from the phase that the life is in."""
    for number, (event, delay_ns) in enumerate(choices):
        onward = FORWARD[life.state.phase]
        life.now_ns += delay_ns
        life.live(event or onward[number % len(onward)])


RULES = st.builds(
    Rules,
    auto_arm=st.booleans(),
    auto_recover=st.booleans(),
    stop_category=st.just(1),
    stop_timeout_ns=st.sampled_from([1, 1000 * MS]),
    max_stops=st.integers(1, 4),
    stop_window_ns=st.sampled_from([1, 60 * SECOND]),
)
CHOICES = st.tuples(st.none() | st.sampled_from(EVENTS), st.sampled_from(DELAYS_NS))


@settings(max_examples=100)
@given(RULES, st.lists(CHOICES, min_size=30, max_size=80))
def test_whatever_happens_the_invariants_hold(rules: Rules, choices: list[tuple[Event | None, int]]) -> None:
    live(Life(rules), choices)


@pytest.mark.parametrize("rules", [MANUAL, AUTO])
def test_a_long_random_life_meets_every_cell_and_keeps_the_invariants(rules: Rules) -> None:
    random, life = Random(54), Life(rules)
    choices = [(random.choice([None, random.choice(EVENTS)]), random.choice(DELAYS_NS)) for _ in range(10_000)]
    live(life, choices)
    assert life.met == set(product(Phase, What))
