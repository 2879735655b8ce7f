"""The state machine of a session: when the robot may be armed, why it is stopped, and what follows.

`step(rules, state, event, now_ns)` is a pure function: no I/O, no clock. What each event does in each phase is one cell
of `TABLE`, so the whole behaviour can be read, printed and tested cell by cell. The gate turns the effects into bytes.

    DISARMED -> ARMING -> ARMED -> STOPPING -> STOPPED -> (ARMING | LATCHED)

Single cycles don't pass through here, only what changes something: the admission of each command is in `admission.py`.
What follows a stop depends on its reason alone, and a reason can get stricter but never milder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from mvla_daemon.core.messages import Phase, Reason
from mvla_daemon.core.session import (
    LOOSEST_CATEGORY,
    POLICY_BROKEN,
    RECOVERABLE,
    Do,
    Effect,
    Event,
    Rules,
    State,
    What,
    next_due_ns,
    severity,
)

Result: TypeAlias = tuple[State, tuple[Effect, ...]]
Cell: TypeAlias = Callable[[Rules, State, Event, int], Result]


def step(rules: Rules, state: State, event: Event, now_ns: int) -> Result:
    """The state after an event, and what is to be done about it; never raises."""
    return TABLE[state.phase, event.what](rules, state, event, now_ns)


def _ignore(_rules: Rules, state: State, _event: Event, _now_ns: int) -> Result:
    return state, ()


def _refuse(text: str) -> Cell:
    def cell(_rules: Rules, state: State, _event: Event, _now_ns: int) -> Result:
        return state, (Effect(Do.REFUSE, text=text),)

    return cell


def _begin_arming(_rules: Rules, state: State, event: Event, now_ns: int) -> Result:
    if event.missing:
        return state, (Effect(Do.REFUSE, text=event.missing),)
    arming = replace(state, phase=Phase.ARMING, since_ns=now_ns, origin=state.phase)
    return arming, (Effect(Do.REHEARSE),)


def _begin_arming_if_due(rules: Rules, state: State, event: Event, now_ns: int) -> Result:
    due_ns = next_due_ns(rules, state)
    if due_ns is None or now_ns < due_ns or event.missing:
        return state, ()
    return _begin_arming(rules, state, event, now_ns)


def _send_arm(_rules: Rules, state: State, _event: Event, now_ns: int) -> Result:
    if state.arm_sent:
        return state, ()
    return replace(state, arm_sent=True, since_ns=now_ns), (Effect(Do.ARM),)


def _armed(_rules: Rules, state: State, _event: Event, now_ns: int) -> Result:
    if not state.arm_sent:
        return state, ()
    armed = replace(state, phase=Phase.ARMED, since_ns=now_ns, reason=None, category=LOOSEST_CATEGORY)
    return armed, (Effect(Do.DRIVE),)


def _arming_overdue(rules: Rules, state: State, event: Event, now_ns: int) -> Result:
    due_ns = next_due_ns(rules, state)
    assert due_ns is not None  # an arming has always a time by which it must be over
    if now_ns < due_ns:
        return state, ()
    if state.arm_sent:
        return _stop(rules, state, Reason.CONTROLLER_FAULT, now_ns)
    refused = replace(state, phase=state.origin, since_ns=now_ns)
    # A robot that waits to re-arm by itself goes on rehearsing; the others rest.
    effect = Effect(Do.REHEARSE if state.origin is Phase.STOPPED else Do.IDLE)
    return refused, (effect, Effect(Do.REFUSE, text=event.missing))


def _fault_while_arming(rules: Rules, state: State, event: Event, now_ns: int) -> Result:
    if state.arm_sent:
        return _stop(rules, state, event.reason, now_ns)
    if event.reason in RECOVERABLE:  # a late rehearsal is no stop, it just does not count
        return state, ()
    back = replace(state, phase=state.origin, since_ns=now_ns)
    after, effects = step(rules, back, event, now_ns)
    idle, refusal = Effect(Do.IDLE), Effect(Do.REFUSE, text=f"arming was given up: {event.reason.label}")
    return after, (*effects, *(() if idle in effects else (idle,)), refusal)


def _stop(rules: Rules, state: State, reason: Reason, now_ns: int) -> Result:
    """Leave motion: the STOP comes first, whatever else there is to do."""
    recent = tuple(t for t in state.stops_ns if now_ns - t < rules.stop_window_ns)
    category = min(rules.stop_category, state.category)
    stopping = replace(
        state,
        phase=Phase.STOPPING,
        since_ns=now_ns,
        reason=reason,
        arm_sent=False,
        disarming=False,
        stops_ns=(*recent, now_ns)[-rules.max_stops :],
        category=category,
    )
    mode = Effect(Do.REHEARSE if reason in RECOVERABLE else Do.IDLE)
    return stopping, (Effect(Do.STOP, reason, category), mode, *_renewal(reason))


def _renewal(reason: Reason) -> tuple[Effect, ...]:
    return (Effect(Do.RENEW_POLICY, reason),) if reason in POLICY_BROKEN else ()


def _stop_for_fault(rules: Rules, state: State, event: Event, now_ns: int) -> Result:
    return _stop(rules, state, event.reason, now_ns)


def _stop_for_operator(rules: Rules, state: State, _event: Event, now_ns: int) -> Result:
    stopping, effects = _stop(rules, state, Reason.OPERATOR, now_ns)
    return replace(stopping, wants_arming=False), effects


def _disarm(rules: Rules, state: State, _event: Event, now_ns: int) -> Result:
    """As a stop, but an orderly end: what follows is DISARMED, and nothing arms by itself any more."""
    stopping, effects = _stop(rules, state, Reason.OPERATOR, now_ns)
    return replace(stopping, disarming=True, wants_arming=False), effects


def _disarm_arming(rules: Rules, state: State, event: Event, now_ns: int) -> Result:
    if state.arm_sent or state.origin is Phase.STOPPED:
        return _disarm(rules, state, event, now_ns)
    if state.origin is Phase.LATCHED:
        return replace(state, phase=Phase.LATCHED, since_ns=now_ns, wants_arming=False), (Effect(Do.IDLE),)
    return replace(state, phase=Phase.DISARMED, since_ns=now_ns, wants_arming=False), (Effect(Do.IDLE),)


def _stay_disarmed(_rules: Rules, state: State, _event: Event, _now_ns: int) -> Result:
    return replace(state, wants_arming=False), ()


def _shutdown(rules: Rules, state: State, event: Event, now_ns: int) -> Result:
    if not event.reachable:
        return replace(state, exiting=True), (Effect(Do.IDLE), Effect(Do.EXIT))
    stopping, effects = _stop(rules, state, Reason.SHUTDOWN, now_ns)
    return replace(stopping, exiting=True), effects


def _shutdown_stopping(rules: Rules, state: State, event: Event, now_ns: int) -> Result:
    if state.exiting:
        return state, ()
    return _shutdown(rules, state, event, now_ns)


def _escalate(_rules: Rules, state: State, event: Event, _now_ns: int) -> Result:
    """A stop under way takes over a stricter reason; its own time goes on."""
    if state.exiting:
        return state, ()
    if severity(event.reason) <= severity(state.reason):
        return state, _renewal(event.reason)
    after = replace(state, reason=event.reason, disarming=False)
    said = Effect(Do.STOP, event.reason, state.category)
    return after, (said, Effect(Do.IDLE), *_renewal(event.reason))


def _escalate_stopped(rules: Rules, state: State, event: Event, now_ns: int) -> Result:
    after, effects = _escalate(rules, state, event, now_ns)
    if after.reason is state.reason:
        return after, effects
    return replace(after, phase=Phase.LATCHED, since_ns=now_ns), effects


def _operator_while_stopping(_rules: Rules, state: State, event: Event, _now_ns: int) -> Result:
    """The operator's word is stricter than what would pass by itself; a disarming never takes a latch back."""
    stricter = severity(state.reason) < severity(Reason.OPERATOR)
    after = replace(
        state,
        reason=Reason.OPERATOR if stricter else state.reason,
        wants_arming=False,
        disarming=event.what is What.DISARM and (stricter or state.disarming),
    )
    said = Effect(Do.STOP, Reason.OPERATOR, state.category)
    return after, ((said, Effect(Do.IDLE)) if stricter else ())


def _latch_for_operator(_rules: Rules, state: State, _event: Event, now_ns: int) -> Result:
    latched = replace(state, phase=Phase.LATCHED, since_ns=now_ns, reason=Reason.OPERATOR, wants_arming=False)
    return latched, (Effect(Do.STOP, Reason.OPERATOR, state.category), Effect(Do.IDLE))


def _disarm_stopped(_rules: Rules, state: State, _event: Event, now_ns: int) -> Result:
    return replace(state, phase=Phase.DISARMED, since_ns=now_ns, wants_arming=False), (Effect(Do.IDLE),)


def _standstill(rules: Rules, state: State, _event: Event, now_ns: int) -> Result:
    if state.exiting:
        return state, (Effect(Do.EXIT),)
    if state.disarming:
        return replace(state, phase=Phase.DISARMED, since_ns=now_ns, disarming=False), ()
    # Both counts are of this stop too: the last of `max_stops` within the window latches.
    recent = [t for t in state.stops_ns if now_ns - t < rules.stop_window_ns]
    if rules.auto_recover and state.reason in RECOVERABLE and len(recent) < rules.max_stops:
        return replace(state, phase=Phase.STOPPED, since_ns=now_ns), ()
    return replace(state, phase=Phase.LATCHED, since_ns=now_ns), (Effect(Do.IDLE),)


def _stop_overdue(rules: Rules, state: State, _event: Event, now_ns: int) -> Result:
    """No standstill in time: the controlled stop did not work, so the drive has to go."""
    if now_ns < state.since_ns + rules.stop_timeout_ns:
        return state, ()
    if state.exiting:
        return state, (Effect(Do.STOP, Reason.CONTROLLER_FAULT, category=0), Effect(Do.EXIT, clean=False))
    assert state.reason is not None  # whoever is stopped is so for a reason
    reason = max(state.reason, Reason.CONTROLLER_FAULT, key=severity)
    latched = replace(state, phase=Phase.LATCHED, since_ns=now_ns, reason=reason, disarming=False, category=0)
    return latched, (Effect(Do.STOP, reason, category=0), Effect(Do.IDLE))


def _renew_if_broken(_rules: Rules, state: State, event: Event, _now_ns: int) -> Result:
    return state, _renewal(event.reason)


def _fault_latched(_rules: Rules, state: State, event: Event, _now_ns: int) -> Result:
    if severity(event.reason) <= severity(state.reason):
        return state, _renewal(event.reason)
    said = Effect(Do.STOP, event.reason, state.category)
    return replace(state, reason=event.reason), (said, *_renewal(event.reason))


_COLUMNS = tuple(What)
# fmt: off
_ROWS: Mapping[Phase, tuple[Cell, ...]] = {
    # phase          ARM, DISARM, STOP, SHUTDOWN, REHEARSED, CONFIRMED, FAULT, STANDSTILL, TICK
    Phase.DISARMED: (_begin_arming, _stay_disarmed, _stop_for_operator, _shutdown,
                     _ignore, _ignore, _renew_if_broken, _ignore, _begin_arming_if_due),
    Phase.ARMING:   (_refuse("arming is under way already"), _disarm_arming, _stop_for_operator, _shutdown,
                     _send_arm, _armed, _fault_while_arming, _ignore, _arming_overdue),
    Phase.ARMED:    (_refuse("the robot is armed already"), _disarm, _stop_for_operator, _shutdown,
                     _ignore, _ignore, _stop_for_fault, _ignore, _ignore),
    Phase.STOPPING: (_refuse("the robot is still stopping"), _operator_while_stopping, _operator_while_stopping,
                     _shutdown_stopping, _ignore, _ignore, _escalate, _standstill, _stop_overdue),
    Phase.STOPPED:  (_begin_arming, _disarm_stopped, _latch_for_operator, _shutdown,
                     _ignore, _ignore, _escalate_stopped, _ignore, _begin_arming_if_due),
    Phase.LATCHED:  (_begin_arming, _refuse("the stop is latched, nothing moves; only `mvla-daemon arm` ends it"),
                     _ignore, _shutdown, _ignore, _ignore, _fault_latched, _ignore, _ignore),
}
# fmt: on
TABLE: Mapping[tuple[Phase, What], Cell] = {
    (phase, what): cell for phase, row in _ROWS.items() for what, cell in zip(_COLUMNS, row, strict=True)
}
"""What each event does in each phase; a cell for every pair."""
