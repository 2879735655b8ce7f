"""What a session is made of: events, effects, rules and the state; `safety.py` says what leads to what."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from mvla_daemon.core.messages import MS, SECOND, Phase, Reason

RECOVERABLE = frozenset({Reason.DEADLINE_MISSED, Reason.FRAME_STALE})
"""Reasons that pass by themselves: a machine was busy for a moment, a frame was late."""
POLICY_BROKEN = frozenset({Reason.POLICY_LOST, Reason.POLICY_ERROR, Reason.SEQUENCE_ERROR})
"""Reasons after which the policy process cannot be trusted any more and is replaced by a new one."""
RECOVER_PAUSE_NS = 500 * MS
"""Standstill before an automatic re-arming, so that a person sees that the robot has stopped."""
ARMING_TIMEOUT_NS = 5 * SECOND
"""Rehearsals and standstill take about a second; after this long something is wrong and is said. Where the rehearsals
that are asked for take longer by themselves, so may arming; see `Rules`."""
CONFIRM_TIMEOUT_NS = 200 * MS
"""A controller sends STATUS at once after ARM; ten status periods without it is a refusal."""
RETRY_PAUSE_NS = 1 * SECOND
"""Between automatic attempts to arm while disarmed."""
LOOSEST_CATEGORY = 2
"""Of STOP, in the words of motor link v1: decelerate and hold."""


class What(Enum):
    """The kinds of events."""

    ARM = "arm"
    DISARM = "disarm"
    STOP = "stop"
    SHUTDOWN = "shutdown"
    REHEARSED = "rehearsed"
    CONFIRMED = "confirmed"
    FAULT = "fault"
    STANDSTILL = "standstill"
    TICK = "tick"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    `reason` comes with FAULT. `missing` says what still keeps the robot from being armed, empty when nothing does; it
    is looked at with ARM and TICK. `reachable` (SHUTDOWN) says whether there is a controller to tell.
    """

    what: What
    reason: Reason = Reason.INTERNAL
    missing: str = ""
    reachable: bool = True


class Do(Enum):
    """The kinds of effects, carried out in order."""

    STOP = "stop"
    ARM = "arm"
    REHEARSE = "rehearse"
    DRIVE = "drive"
    IDLE = "idle"
    RENEW_POLICY = "renew_policy"
    REFUSE = "refuse"
    EXIT = "exit"


@dataclass(frozen=True, slots=True)
class Effect:
    """Something to do: `reason` and `category` with STOP, `text` with REFUSE, `clean` with EXIT."""

    do: Do
    reason: Reason = Reason.INTERNAL
    category: int = 1
    text: str = ""
    clean: bool = True


@dataclass(frozen=True, slots=True)
class Rules:
    """The part of the configuration that the state machine needs."""

    auto_arm: bool
    auto_recover: bool
    stop_category: int
    stop_timeout_ns: int
    max_stops: int
    stop_window_ns: int
    arming_timeout_ns: int = ARMING_TIMEOUT_NS


@dataclass(frozen=True, slots=True)
class State:
    """Where the session is; `reason` is that of the newest stop, `stops_ns` when the recent ones were."""

    since_ns: int
    phase: Phase = Phase.DISARMED
    reason: Reason | None = None
    origin: Phase = Phase.DISARMED
    """While ARMING: where a refusal leads back to."""
    arm_sent: bool = False
    disarming: bool = False
    exiting: bool = False
    wants_arming: bool = False
    stops_ns: tuple[int, ...] = ()
    category: int = LOOSEST_CATEGORY
    """The strictest one of the STOPs since the last drive: a further STOP may only tighten (2, 1, 0)."""


def initial(rules: Rules, now_ns: int) -> State:
    """Disarmed, whatever was before."""
    return State(since_ns=now_ns - RETRY_PAUSE_NS, wants_arming=rules.auto_arm)


def severity(reason: Reason | None) -> int:
    """How strict a reason is: a stop under way takes a stricter one over and ignores the others."""
    assert reason is not None  # whoever is stopped is so for a reason
    if reason is Reason.PORT_LOST:
        return 3
    if reason in {Reason.CONTROLLER_LOST, Reason.CONTROLLER_RESET, Reason.CONTROLLER_FAULT}:
        return 2
    return 0 if reason in RECOVERABLE else 1


def next_due_ns(rules: Rules, state: State) -> int | None:
    """When a TICK will change something by the passing of time alone."""
    if state.phase is Phase.DISARMED and state.wants_arming:
        return state.since_ns + RETRY_PAUSE_NS
    if state.phase is Phase.ARMING:
        return state.since_ns + (CONFIRM_TIMEOUT_NS if state.arm_sent else rules.arming_timeout_ns)
    if state.phase is Phase.STOPPING:
        return state.since_ns + rules.stop_timeout_ns
    if state.phase is Phase.STOPPED:
        return state.since_ns + RECOVER_PAUSE_NS
    return None
