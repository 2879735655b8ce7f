"""Every life of a session up to a depth: all events, with and without what arming lacks, around each of its times.

Breadth first, so that a broken rule comes with one of its shortest ways. A node is the state with its times relative to
now, and what somebody who sees nothing but events and effects knows. `python -m tests.exploration` goes deep.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import NamedTuple, TypeAlias

from mvla_daemon.core.messages import Phase, Reason
from mvla_daemon.core.safety import step
from mvla_daemon.core.session import Do, Effect, Event, Rules, State, What, initial

MS = 1_000_000
SECOND = 1_000_000_000
NOW = 1_000_000 * SECOND
WINDOW = 60 * SECOND
STOP_TIMEOUT = 1000 * MS
RECOVERABLE = {Reason.DEADLINE_MISSED, Reason.FRAME_STALE}
BROKEN_POLICY = {Reason.POLICY_LOST, Reason.POLICY_ERROR, Reason.SEQUENCE_ERROR}
CONTROLLER = {Reason.CONTROLLER_LOST, Reason.CONTROLLER_RESET, Reason.CONTROLLER_FAULT}
KIND_OF = {
    **dict.fromkeys(RECOVERABLE, Reason.DEADLINE_MISSED),
    **dict.fromkeys(CONTROLLER, Reason.CONTROLLER_FAULT),
    **dict.fromkeys(set(Reason) - RECOVERABLE - CONTROLLER - {Reason.OPERATOR, Reason.PORT_LOST}, Reason.INTERNAL),
}
"""One reason of each kind for all of it."""
STOPPED_PHASES = {Phase.STOPPING, Phase.STOPPED, Phase.LATCHED}
EVENTS = (
    *(Event(What.ARM, missing=missing) for missing in ("", "something")),
    *(Event(What.SHUTDOWN, reachable=reachable) for reachable in (True, False)),
    *(Event(What.TICK, missing=missing) for missing in ("", "something")),
    *(Event(What.FAULT, reason=reason) for reason in Reason),
    *map(Event, (What.DISARM, What.STOP, What.REHEARSED, What.CONFIRMED, What.STANDSTILL)),
)
WAYS = {
    Phase.DISARMED: {Phase.ARMING, Phase.STOPPING},
    Phase.ARMING: {Phase.ARMED, Phase.STOPPING, Phase.DISARMED, Phase.STOPPED, Phase.LATCHED},
    Phase.ARMED: {Phase.STOPPING},
    Phase.STOPPING: {Phase.STOPPED, Phase.LATCHED, Phase.DISARMED},
    Phase.STOPPED: {Phase.ARMING, Phase.LATCHED, Phase.DISARMED, Phase.STOPPING},
    Phase.LATCHED: {Phase.ARMING, Phase.STOPPING},
}
"""Where each phase may lead to."""


class Known(NamedTuple):
    """What events and effects have said so far."""

    mode: Do = Do.IDLE
    arm_said: bool = False
    """ARM was written, and no STOP since."""
    arms_itself: bool = False
    """Configured to, and no operator has said otherwise."""
    latched: bool = False
    """Latched, and no operator has asked for an arming since."""
    category: int = 3
    """The strictest STOP since the last drive; 3 before any."""


Node: TypeAlias = "tuple[State, Known]"
Step: TypeAlias = "tuple[int, Event]"


@dataclass
class Exploration:
    """One breadth-first walk of `machine`; AssertionError names the rule that is broken, and the way to it.

    `merged` takes reasons of one strictness as one where they are remembered; as events all of them come all the same.
    """

    rules: Rules
    merged: bool = True
    machine: Callable[[Rules, State, Event, int], tuple[State, tuple[Effect, ...]]] = step
    nodes: dict[Node, tuple[Node, Step] | None] = field(default_factory=dict)
    transitions: int = 0
    met: Counter[tuple[Phase, What, Phase]] = field(default_factory=Counter)
    depth: int = 0
    complete: bool = False

    def run(self, depth: int, max_nodes: int) -> None:
        """Explore; `complete` when nothing new was left before either bound was reached."""
        first = (initial(self.rules, NOW), Known(arms_itself=self.rules.auto_arm))
        self.nodes[first] = None
        border = [first]
        while border and self.depth < depth and len(self.nodes) < max_nodes:
            self.depth += 1
            border = [node for before in border for node in self._beyond(before)]
        self.complete = not border

    def _beyond(self, before: Node) -> Iterator[Node]:
        for delay_ns in delays_ns(before[0], self.rules):
            waited = (aged(before[0], delay_ns), before[1])
            for event in EVENTS:
                after, effects = self.machine(self.rules, waited[0], event, NOW)
                self.transitions += 1
                self.met[before[0].phase, event.what, after.phase] += 1
                try:
                    known = judged(self.rules, waited, event, after, effects)
                except AssertionError as error:
                    raise AssertionError(f"{error}\n{self._way(before, (delay_ns, event))}") from error
                node = (aged(self._merged(after), 0), known)
                ended = any(effect.do is Do.EXIT for effect in effects)
                if not ended and node not in self.nodes:
                    self.nodes[node] = (before, (delay_ns, event))
                    yield node

    def _merged(self, state: State) -> State:
        return replace(state, reason=KIND_OF.get(state.reason, state.reason)) if self.merged and state.reason else state

    def _way(self, node: Node, last: Step) -> str:
        steps = [last]
        while (parent := self.nodes[node]) is not None:
            node, taken = parent
            steps.append(taken)
        return "\n".join(f"after {delay_ns} ns: {event}" for delay_ns, event in reversed(steps))


def aged(state: State, by_ns: int) -> State:
    """The same state that much later, its times still relative to NOW.

    So that there are finitely many, what is long past is past alike, and a stop that will be counted for more than a
    nanosecond is as good as a new one: it could have been, since everything else may take no time.
    """
    window_ns = [NOW - WINDOW + off for off in (-1, 0, 1)]
    stops_ns = (max(at_ns - by_ns, window_ns[0]) for at_ns in state.stops_ns)
    border_ns = due_after_ns(state)
    return replace(
        state,
        since_ns=NOW if border_ns is None else max(state.since_ns - by_ns, NOW - border_ns - 1),
        stops_ns=tuple(at_ns if at_ns in window_ns else NOW for at_ns in stops_ns),
    )


def due_after_ns(state: State) -> int | None:
    """How long each phase may last, by the page; None for as long as it likes."""
    return {
        Phase.DISARMED: 1 * SECOND,
        Phase.ARMING: 200 * MS if state.arm_sent else 5 * SECOND,
        Phase.STOPPING: STOP_TIMEOUT,
        Phase.STOPPED: 500 * MS,
    }.get(state.phase)


def delays_ns(state: State, rules: Rules) -> list[int]:
    """Now, and just before, at and after each time at which something may change."""
    borders = [] if (due := due_after_ns(state)) is None else [state.since_ns + due]
    borders += [at_ns + rules.stop_window_ns for at_ns in state.stops_ns]
    return sorted({0, *(at_ns - NOW + off for at_ns in borders for off in (-1, 0, 1) if at_ns + off >= NOW)})


def strictness(reason: Reason | None) -> int:
    if reason is None:
        return -1
    return 3 if reason is Reason.PORT_LOST else 2 if reason in CONTROLLER else 0 if reason in RECOVERABLE else 1


def judged(rules: Rules, before: Node, event: Event, after: State, effects: tuple[Effect, ...]) -> Known:
    """What is known after a step that has kept every rule; AssertionError names the one that it broke."""
    state, known = before
    did = [effect.do for effect in effects]
    _judge_way(state, event, after, did)
    _judge_motion(rules, before, event, after, effects)
    _judge_reason(rules, state, event, after)
    _judge_count(rules, state, event, after)
    _judge_time(before, event, after, effects)
    _judge_end(state, event, after, effects)
    asked = event.what is What.ARM and not event.missing
    arms_itself = known.arms_itself and event.what not in {What.DISARM, What.STOP}
    if Do.DRIVE in did:
        return Known(mode=Do.DRIVE, arms_itself=arms_itself)
    stops = [effect for effect in effects if effect.do is Do.STOP]
    modes = [do for do in did if do in {Do.IDLE, Do.REHEARSE}]
    latched = after.phase is Phase.LATCHED or (known.latched and not (asked and Do.REHEARSE in did))
    return Known(
        mode=modes[-1] if modes else known.mode,
        arm_said=not stops and (known.arm_said or Do.ARM in did),
        # A latch that DISARM could not end has not ended the operator's wish either: nothing arms by itself from there.
        arms_itself=arms_itself,
        latched=latched,
        category=min([known.category, *(stop.category for stop in stops)]),
    )


def _judge_way(state: State, event: Event, after: State, did: list[Do]) -> None:
    assert after.phase is state.phase or after.phase in WAYS[state.phase], f"{state.phase} leads to {after.phase}"
    renews = event.what is What.FAULT and event.reason in BROKEN_POLICY and not state.exiting
    assert did.count(Do.RENEW_POLICY) == renews, "a policy process is renewed when it is broken, and only then"
    assert Do.STOP not in did[1:], "a STOP comes before everything else"
    if (Do.REFUSE in did) and event.what is What.ARM:
        assert after == state, "a refusal changes nothing"


def _judge_motion(rules: Rules, before: Node, event: Event, after: State, effects: tuple[Effect, ...]) -> None:
    state, known = before
    did = [effect.do for effect in effects]
    moved = after.phase is not state.phase
    if Do.DRIVE in did:
        assert event.what is What.CONFIRMED, "only a confirmation lets it drive"
        assert known.arm_said, "it drives only after ARM, with no STOP since"
        assert known.mode is Do.REHEARSE, "it drives only after rehearsing"
        assert state.phase is Phase.ARMING
    if Do.ARM in did:
        assert event.what is What.REHEARSED
        assert known.mode is Do.REHEARSE
        assert not known.arm_said, "ARM is said once"
    assert (after.phase is Phase.ARMED) == (Do.DRIVE in did or (state.phase is Phase.ARMED and not moved))
    if (state.phase is Phase.ARMED or known.arm_said) and (moved or event.what is What.FAULT) and Do.DRIVE not in did:
        assert did[:1] == [Do.STOP], "whoever leaves motion says STOP first"
        assert after.phase is Phase.STOPPING
    begins = after.phase is Phase.ARMING and moved
    if begins and event.what is not What.ARM:
        assert event.what is What.TICK
        assert not known.latched, "only an operator ends a latch"
        assert known.arms_itself if state.phase is Phase.DISARMED else rules.auto_recover
    assert not (begins and event.missing), "nothing is armed while something is missing"
    if begins and state.phase is Phase.LATCHED:
        assert event.what is What.ARM
    for effect in effects:
        if effect.do is Do.STOP:
            assert effect.category <= min(known.category, rules.stop_category), "a STOP never loosens"


def _judge_reason(rules: Rules, state: State, event: Event, after: State) -> None:
    """What follows depends on the reason; it gets stricter and never milder."""
    if after.phase in STOPPED_PHASES and not after.exiting:
        if state.phase in STOPPED_PHASES:
            assert strictness(after.reason) >= strictness(state.reason), "a reason never relaxes"
        elif state.phase is Phase.ARMING and state.origin in STOPPED_PHASES and not state.arm_sent:
            # An operator who asked for the arming may stop it: that is his own stop, and latches like any other.
            least = min(1, strictness(state.reason)) if event.what is What.STOP else strictness(state.reason)
            assert strictness(after.reason) >= least, "a reason never relaxes while nothing has moved"
    if after.phase in STOPPED_PHASES:
        assert after.reason is not None
    if after.phase is Phase.STOPPED:
        assert after.reason in RECOVERABLE
        assert rules.auto_recover
    if state.disarming:
        assert state.reason is Reason.OPERATOR, "what is stricter than the operator latches"
    if event.what is What.STOP and after.phase in {Phase.STOPPING, Phase.STOPPED} and not after.exiting:
        assert after.reason not in RECOVERABLE, "an operator's stop does not pass by itself"


def _judge_count(rules: Rules, state: State, event: Event, after: State) -> None:
    """How often it has stopped of late decides whether it may go on by itself."""
    if after.phase is Phase.STOPPING and state.phase is not Phase.STOPPING:
        assert after.stops_ns[-1:] == (NOW,), "each stop is counted"
        assert len(after.stops_ns) <= rules.max_stops
    if state.phase is Phase.STOPPING and event.what is What.STANDSTILL and not state.exiting:
        recent = sum(NOW - at_ns < rules.stop_window_ns for at_ns in state.stops_ns)
        expected = Phase.LATCHED
        if state.disarming:
            expected = Phase.DISARMED
        elif state.reason in RECOVERABLE and rules.auto_recover and recent < rules.max_stops:
            expected = Phase.STOPPED
        assert after.phase is expected, "after standstill the reason and the count decide"


def _judge_time(before: Node, event: Event, after: State, effects: tuple[Effect, ...]) -> None:
    """By the passing of time alone something happens at its time, and not a nanosecond before."""
    state, known = before
    if event.what is not What.TICK:
        return
    due = due_after_ns(state)
    if due is None or NOW - state.since_ns < due:
        assert (after, effects) == (state, ()), "nothing is due yet"
        return
    waits = state.phase in {Phase.DISARMED, Phase.STOPPED} and bool(event.missing)
    if not waits and (state.phase is not Phase.DISARMED or known.arms_itself):
        assert effects, "something was due"
    if state.phase is Phase.STOPPING:
        assert (effects[0].do, effects[0].category) == (Do.STOP, 0), "without standstill the drive is removed"


def _judge_end(state: State, event: Event, after: State, effects: tuple[Effect, ...]) -> None:
    did = [effect.do for effect in effects]
    exits = [effect for effect in effects if effect.do is Do.EXIT]
    assert after.exiting == (state.exiting or event.what is What.SHUTDOWN), "nothing but SHUTDOWN ends it, for good"
    if state.exiting:
        assert not {Do.ARM, Do.DRIVE, Do.REHEARSE, Do.RENEW_POLICY} & set(did), "nothing begins on the way out"
        assert after.phase is Phase.STOPPING
    stood = event.what is What.STANDSTILL
    overdue = event.what is What.TICK and NOW - state.since_ns >= STOP_TIMEOUT
    if state.exiting and (stood or overdue):
        assert [exit_.clean for exit_ in exits] == [stood], "the end comes with standstill, or unclean in time"
    else:
        unreachable = event.what is What.SHUTDOWN and not event.reachable and not state.exiting
        assert len(exits) == unreachable


def rules(max_stops: int, category: int = 1, *, auto_arm: bool = False, auto_recover: bool = True) -> Rules:
    return Rules(auto_arm, auto_recover, category, STOP_TIMEOUT, max_stops, WINDOW)


DEEP = [
    *(rules(1, auto_arm=arm, auto_recover=recover) for arm, recover in product((False, True), (False, True))),
    *(rules(2, category, auto_arm=True) for category in (0, 1, 2)),
]


def main() -> int:
    parser = argparse.ArgumentParser(description="Explores the session's state machine.")
    parser.add_argument("--depth", type=int, default=100)
    parser.add_argument("--nodes", type=int, default=100_000, help="for each set of rules")
    parser.add_argument("--every-reason", action="store_true", help="merge no reasons; takes several times as long")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    states = transitions = 0
    for explored in DEEP:
        walk = Exploration(explored, merged=not arguments.every_reason)
        walk.run(arguments.depth, arguments.nodes)
        states, transitions = states + len(walk.nodes), transitions + walk.transitions
        whole = "all there are" if walk.complete else "not all"
        print(
            f"{explored}:\n  {len(walk.nodes)} states ({whole}, depth {walk.depth}), {walk.transitions} transitions",
            flush=True,
        )
    print(f"{states} states and {transitions} transitions in {time.monotonic() - began_s:.0f} s: every rule is kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
