"""The state machine explored breadth first, to the end for one set of rules; `make explore` does it for more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from mvla_daemon.core.messages import Phase, Reason
from mvla_daemon.core.safety import step
from mvla_daemon.core.session import Do, Effect, Event, Rules, State, What
from tests.exploration import MS, WAYS, Exploration, rules

Result = tuple[State, tuple[Effect, ...]]


def test_no_life_of_a_session_breaks_a_rule() -> None:
    walk = Exploration(rules(1))
    walk.run(depth=30, max_nodes=5000)
    print(f"{len(walk.nodes)} states, {walk.transitions} transitions to depth {walk.depth}")
    assert walk.complete, "every state that can be reached was"
    assert len(walk.nodes) >= 1000
    assert walk.transitions >= 100_000
    for phase, leads_to in WAYS.items():
        assert {after for before, _, after in walk.met if before is phase} == {phase, *leads_to}
    assert {what for _, what, _ in walk.met} == set(What)


def without_stop(_rules: Rules, before: State, _event: Event, after: State, effects: tuple[Effect, ...]) -> Result:
    return after, tuple(e for e in effects if e.do is not Do.STOP or before.phase is not Phase.ARMED)


def idle_before_stop(_rules: Rules, _before: State, _event: Event, after: State, effects: tuple[Effect, ...]) -> Result:
    return after, tuple(sorted(effects, key=lambda effect: effect.do is Do.STOP))


def looser_later(_rules: Rules, before: State, _event: Event, after: State, effects: tuple[Effect, ...]) -> Result:
    return after, tuple(replace(e, category=2) if before.phase is Phase.LATCHED else e for e in effects)


def one_that_relaxes(_rules: Rules, before: State, event: Event, after: State, effects: tuple[Effect, ...]) -> Result:
    relaxes = before.phase is Phase.STOPPING and event.what is What.FAULT and not before.exiting
    return (replace(after, reason=event.reason) if relaxes else after), effects


def one_that_unlatches(_rules: Rules, before: State, event: Event, after: State, effects: tuple[Effect, ...]) -> Result:
    if before.phase is Phase.LATCHED and event.what is What.TICK:
        return replace(before, phase=Phase.ARMING, origin=Phase.LATCHED), (Effect(Do.REHEARSE),)
    return after, effects


def one_that_drives_unasked(
    _rules: Rules, before: State, event: Event, after: State, effects: tuple[Effect, ...]
) -> Result:
    if before.phase is Phase.ARMING and event.what is What.CONFIRMED:
        return replace(before, phase=Phase.ARMED), (Effect(Do.DRIVE),)
    return after, effects


def one_that_counts_no_stops(
    _rules: Rules, _before: State, _event: Event, after: State, effects: tuple[Effect, ...]
) -> Result:
    return replace(after, stops_ns=()), effects


def one_that_is_early(rules_: Rules, before: State, event: Event, after: State, effects: tuple[Effect, ...]) -> Result:
    early = event.what is What.TICK and before.phase is Phase.STOPPING and not effects
    return step(rules_, before, event, before.since_ns + 1000 * MS) if early else (after, effects)


def one_that_does_not_end(
    _rules: Rules, before: State, _event: Event, after: State, effects: tuple[Effect, ...]
) -> Result:
    return after, tuple(e for e in effects if e.do is not Do.EXIT or before.phase is not Phase.STOPPING)


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (without_stop, "whoever leaves motion says STOP first"),
        (idle_before_stop, "a STOP comes before everything else"),
        (looser_later, "a STOP never loosens"),
        (one_that_relaxes, "a reason never relaxes"),
        (one_that_unlatches, "nothing is due yet|only an operator ends a latch"),
        (one_that_drives_unasked, "it drives only after ARM, with no STOP since"),
        (one_that_counts_no_stops, "each stop is counted"),
        (one_that_is_early, "nothing is due yet"),
        (one_that_does_not_end, "the end comes with standstill, or unclean in time"),
    ],
)
def test_a_machine_with_a_fault_is_found_out_with_the_way_to_it(
    spoil: Callable[[Rules, State, Event, State, tuple[Effect, ...]], Result], rule: str
) -> None:
    def machine(rules_: Rules, state: State, event: Event, now_ns: int) -> Result:
        return spoil(rules_, state, event, *step(rules_, state, event, now_ns))

    with pytest.raises(AssertionError, match=rule) as caught:
        Exploration(rules(1), machine=machine).run(depth=20, max_nodes=2000)
    assert "after 0 ns: Event(" in str(caught.value)


def test_reasons_that_are_taken_as_one_are_so_to_the_machine() -> None:
    """What is explored with merged reasons is all: with every reason kept, the same ways are met."""
    merged, kept = Exploration(rules(1, auto_recover=False)), Exploration(rules(1, auto_recover=False), merged=False)
    merged.run(depth=4, max_nodes=10_000)
    kept.run(depth=4, max_nodes=10_000)
    assert set(merged.met) == set(kept.met)
    assert {state.reason for state, _ in kept.nodes} == {None, *Reason}
